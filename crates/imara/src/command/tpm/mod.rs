//! `imara tpm`: the TPM, one subcommand a file.

mod authorisation;
mod event_log;
mod extend;
mod hash;
mod pcrs;
mod quote;
mod quote_files;
mod random;
mod srk;
mod status;
pub mod target;
mod verify_quote;

pub use quote::{Nonce, nonce};
pub use quote_files::QuoteFiles;

use super::CommandResult;

/// The TPM: its state, PCRs and quotes of them, the firmware's event log, its storage root key,
/// random numbers, hashing.
///
/// Nothing stays loaded in the TPM after a command. Where the kernel's resource manager does not see to that (any TPM but
/// /dev/tpmrm0), what is loaded is recorded in /run/imara-tpm, so that the next command flushes what one that was killed has
/// left.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    Status(status::Status),
    Random(random::Random),
    Pcrs(pcrs::Pcrs),
    Hash(hash::Hash),
    Extend(extend::Extend),
    Quote(quote::Quote),
    VerifyQuote(verify_quote::VerifyQuote),
    EventLog(event_log::Arguments),
    Srk(srk::Arguments),
}

/// The version of the form of what `--json` prints here.
const SCHEMA: u32 = 1;

/// Runs it.
///
/// # Errors
/// What the command could not do.
pub fn run(arguments: Arguments) -> CommandResult {
    // Authorisation values and random numbers pass through this process: no core dump, no debugger of another.
    imara_linux::sys::process::forbid_dumps();
    match arguments.command {
        Command::Status(status) => status.run(),
        Command::Random(random) => random.run(),
        Command::Pcrs(pcrs) => pcrs.run(),
        Command::Hash(hash) => hash.run(),
        Command::Extend(extend) => extend.run(),
        Command::Quote(quote) => quote.run(),
        Command::VerifyQuote(verify) => verify.run(),
        Command::EventLog(log) => event_log::run(log),
        Command::Srk(srk) => srk::run(srk),
    }
}
