//! `imara verity`.

use super::CommandResult;
use crate::output::Failure;
use imara_format::hash::from_hex;
use imara_format::verity::{VerityHash, VerityParameters};

mod digest;
mod enable;
mod sign;

/// fs-verity: files that cannot change, by a digest that the kernel checks as they are read.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    Digest(digest::Arguments),
    Enable(enable::Arguments),
    Sign(sign::Arguments),
}

/// Runs it.
///
/// # Errors
/// What the command could not do.
pub fn run(arguments: Arguments) -> CommandResult {
    match arguments.command {
        Command::Digest(arguments) => digest::run(&arguments),
        Command::Enable(arguments) => enable::run(&arguments),
        Command::Sign(arguments) => sign::run(&arguments),
    }
}

/// How a file's tree is made.
#[derive(clap::Args)]
struct Tree {
    /// The hash: sha256 or sha512
    #[arg(long, value_name = "HASH", default_value = "sha256", value_parser = hash)]
    hash: VerityHash,
    /// The size of a block, in bytes; kernels before 6.3 take their page size alone
    #[arg(long, value_name = "BYTES", default_value_t = 4096)]
    block_size: u32,
    /// Up to 32 bytes that are hashed before each block, in hexadecimal
    #[arg(long, value_name = "HEX", value_parser = salt)]
    salt: Option<Salt>,
}

#[derive(Clone)]
struct Salt(Vec<u8>);

impl Tree {
    fn parameters(&self) -> Result<VerityParameters, Failure> {
        let salt = self.salt.as_ref().map(|salt| salt.0.as_slice()).unwrap_or_default();
        VerityParameters::new(self.hash, self.block_size, salt).map_err(Failure::usage)
    }
}

fn hash(name: &str) -> Result<VerityHash, String> {
    let hash = VerityHash::ALL.into_iter().find(|hash| hash.algorithm().name() == name);
    hash.ok_or_else(|| "fs-verity knows sha256 and sha512".to_owned())
}

fn salt(text: &str) -> Result<Salt, String> {
    from_hex(text).map(Salt).map_err(|error| error.to_string())
}
