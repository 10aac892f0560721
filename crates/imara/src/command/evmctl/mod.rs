//! `evmctl`: the commands, options, output and exit statuses of ima-evm-utils 1.6.2, for scripts that call it.
//!
//! What it tells people goes to standard error, what programs read to standard output, both as the original does. Where the
//! original hides a failure, this does not: `docs/divergences.md` lists these places.
//!
//! | exit status | when |
//! |---|---|
//! | 0 | done |
//! | 1 | wrong options; a signature that does not verify; a hash that cannot be computed |
//! | 125 | everything else that failed |

mod certificates;
mod convert;
pub mod hash_name;
mod help;
mod hmac;
mod ima_boot_aggregate;
mod ima_clear;
mod ima_fix;
mod ima_hash;
mod ima_measurement;
mod ima_setxattr;
mod ima_sign;
mod ima_verify;
mod import;
mod key;
mod metadata;
mod options;
mod pcrs;
mod recursion;
mod sign;
mod sign_hash;
mod verify;

use options::{Invocation, Options, Told};
use std::cell::{Cell, OnceCell};
use std::fmt::Display;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Why a command failed; what is to be told of it has been.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failed {
    /// Exit status 1.
    Positive,
    /// Exit status 125.
    Negative,
}

type Ending = Result<(), Failed>;

/// What each command works with.
struct Evmctl {
    options: Options,
    /// The last error of the kernel's, told once more when the command has failed.
    errno: Cell<Option<i32>>,
    key: OnceCell<key::PrivateKey>,
}

/// A command's name, its arguments as its usage line has them, and what it does in a line.
struct Command {
    name: &'static str,
    arguments: &'static str,
    does: &'static str,
    run: fn(&Evmctl, &[PathBuf]) -> Ending,
}

const SIGNING: &str = "[--sigfile] [--key key] [--pass[=<password>]] file";

const COMMANDS: &[Command] = &[
    Command { name: "help", arguments: "<command>", does: "", run: help::run },
    Command { name: "import", arguments: "pubkey keyring", does: "Adds a certificate to a keyring.", run: import::run },
    Command {
        name: "sign",
        arguments: "[-r] [--imahash | --imasig ] [--key key] [--pass[=<password>]] file",
        does: "Signs a file's metadata.",
        run: sign::run,
    },
    Command { name: "verify", arguments: "file", does: "Verifies signatures of files' metadata.", run: verify::run },
    Command { name: "ima_sign", arguments: SIGNING, does: "Signs a file's content.", run: ima_sign::run },
    Command {
        name: "ima_verify",
        arguments: "file",
        does: "Verifies signatures of files' content.",
        run: ima_verify::run,
    },
    Command {
        name: "ima_setxattr",
        arguments: "[--sigfile file]",
        does: "Labels a file with a signature from a file.",
        run: ima_setxattr::run,
    },
    Command { name: "ima_hash", arguments: "file", does: "Labels a file with its digest.", run: ima_hash::run },
    Command {
        name: "ima_measurement",
        arguments: "[--ignore-violations] [--verify-sig [--key key1, key2, ...]] [--pcrs [hash-algorithm,]file [--pcrs \
                    hash-algorithm,file] ...] [--verify-bank hash-algorithm] file",
        does: "Compares a measurement list with PCR values.",
        run: ima_measurement::run,
    },
    Command {
        name: "ima_boot_aggregate",
        arguments: "[--pcrs hash-algorithm,file] [TPM 1.2 BIOS event log] [--hwtpm]",
        does: "Sums up the boot PCRs, as the kernel's first measurement does.",
        run: ima_boot_aggregate::run,
    },
    Command {
        name: "ima_fix",
        arguments: "[-t fdsxm] path",
        does: "Opens files, for a kernel in fix mode to label them.",
        run: ima_fix::run,
    },
    Command {
        name: "ima_clear",
        arguments: "[-t fdsxm] path",
        does: "Removes the IMA and EVM labels of files.",
        run: ima_clear::run,
    },
    Command {
        name: "sign_hash",
        arguments: "[--veritysig] [--key key] [--pass[=<password>]]",
        does: "Signs the digests that shaXsum or \"fsverity digest\" printed.",
        run: sign_hash::run,
    },
    Command {
        name: "hmac",
        arguments: "[--imahash | --imasig] [--hmackey key] file",
        does: "Labels a file with the HMAC of its metadata, as a kernel with this key would.",
        run: hmac::run,
    },
];

/// For version 1 alone.
const CONVERT: Command = Command {
    name: "convert",
    arguments: "key",
    does: "Writes a public key in the form that version 1 signatures are verified with.",
    run: convert::run,
};

/// The commands that there are.
fn commands() -> impl Iterator<Item = &'static Command> {
    COMMANDS.iter().chain(version_1_is_allowed().then_some(&CONVERT))
}

/// Whether version 1 signatures may be made, which the original decides when it is built.
fn version_1_is_allowed() -> bool {
    std::env::var_os("EVMCTL_SIGV1").is_some_and(|value| value == "1")
}

/// Runs `evmctl` with the process's arguments.
pub fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    let program = arguments.next().unwrap_or_else(|| "evmctl".into()).to_string_lossy().into_owned();
    let invocation = match Invocation::parse(&program, arguments.collect()) {
        Ok(invocation) => invocation,
        Err(Told) => return ExitCode::from(1),
    };
    let (options, words) = match invocation {
        Invocation::Help => {
            help::everything();
            return ExitCode::SUCCESS;
        }
        Invocation::Version => {
            tell_out("evmctl 1.6.2\n");
            return ExitCode::SUCCESS;
        }
        Invocation::Command(options, words) => (*options, words),
    };
    let Some((name, words)) = words.split_first() else {
        help::everything();
        return ExitCode::SUCCESS;
    };
    let name = name.to_string_lossy();
    let Some(command) = commands().find(|command| command.name.eq_ignore_ascii_case(&name)) else {
        tell_out(format_args!("Invalid command: {name}\n"));
        return ExitCode::from(125);
    };
    let evmctl = Evmctl { options, errno: Cell::new(None), key: OnceCell::new() };
    match evmctl.run(command, words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failed) => {
            if let Some(number) = evmctl.errno.get() {
                tell(format_args!("errno: {} ({number})\n", system_text(&io::Error::from_raw_os_error(number))));
            }
            ExitCode::from(match failed {
                Failed::Positive => 1,
                Failed::Negative => 125,
            })
        }
    }
}

impl Evmctl {
    fn run(&self, command: &Command, words: &[PathBuf]) -> Ending {
        self.options.set_up()?;
        (command.run)(self, words)
    }

    /// The first argument, or what is missing is told.
    fn path<'a>(&self, words: &'a [PathBuf], command: &str) -> Result<&'a Path, Failed> {
        words.first().map(PathBuf::as_path).ok_or_else(|| missing(command))
    }

    /// Keeps the kernel's error for the last line.
    fn note(&self, error: &io::Error) {
        if let Some(number) = error.raw_os_error() {
            self.errno.set(Some(number));
        }
    }

    fn is_verbose(&self) -> bool {
        self.options.verbose > 0
    }
}

/// What a command says whose arguments are missing.
fn missing(command: &str) -> Failed {
    tell("Parameters missing\n");
    if let Some(command) = commands().find(|known| known.name == command) {
        tell_out(format_args!("usage: {} {}\n", command.name, command.arguments));
    }
    Failed::Negative
}

/// Tells people, on standard error.
fn tell(text: impl Display) {
    // Nobody is left to be told when standard error is gone.
    let _ = write!(io::stderr().lock(), "{text}");
}

/// Tells programs, on standard output.
fn tell_out(text: impl Display) {
    crate::output::print(text);
}

/// The kernel's words for an error, as strerror(3) has them.
fn system_text(error: &io::Error) -> String {
    let text = error.to_string();
    match text.split_once(" (os error") {
        Some((words, _)) => words.to_owned(),
        None => text,
    }
}

/// A number as C's `%x` prints it.
fn short_hex(bytes: &[u8]) -> String {
    let hex = imara_format::hash::to_hex(bytes);
    match hex.trim_start_matches('0') {
        "" => "0".to_owned(),
        digits => digits.to_owned(),
    }
}
