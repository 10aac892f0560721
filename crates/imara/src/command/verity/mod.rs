//! `imara verity`.

use super::CommandResult;
use super::paths::{Paths, path_json};
use crate::output::{Failure, Outcome, complain, print, print_json};
use imara_format::hash::from_hex;
use imara_format::verity::{VerityHash, VerityParameters};
use imara_linux::tree::TreeFile;
use serde_json::{Map, Value, json};
use std::path::Path;

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

/// How the commands here tell what they did of each file.
struct Told<'a> {
    /// What is done to a file, for the sum: `enabled`.
    done: &'a str,
    json: bool,
    quiet: bool,
}

impl Told<'_> {
    /// Does `work` for every file; it gives what is to be printed, and the same for programs.
    fn each(
        &self,
        paths: &Paths,
        work: impl Fn(&TreeFile<'_>) -> Result<(String, Map<String, Value>), Failure> + Sync,
    ) -> CommandResult {
        let (mut done, mut failed) = (0_u64, 0_u64);
        let mut documents = Vec::new();
        paths.for_each(self.quiet, work, |path: &Path, result: Result<(String, Map<String, Value>), Failure>| {
            let mut document = path_json(path);
            match result {
                Ok((line, more)) => {
                    done += 1;
                    document.extend(more);
                    if !self.json && !self.quiet {
                        print(line);
                    }
                }
                Err(failure) => {
                    failed += 1;
                    complain(&failure);
                    document.insert("error".into(), json!(failure.what));
                    document.insert("next".into(), json!(failure.next));
                }
            }
            if self.json {
                documents.push(Value::Object(document));
            }
        })?;
        if self.json {
            let mut document = Map::from_iter([("schema".to_owned(), json!(1))]);
            document.insert(self.done.to_owned(), json!(done));
            document.insert("failed".to_owned(), json!(failed));
            document.insert("files".to_owned(), json!(documents));
            print_json(&Value::Object(document));
        } else if failed > 0 && failed + done > 1 {
            complain(&Failure::failed(format!("{failed} of {} files were not {}", failed + done, self.done)));
        }
        Ok(if failed == 0 { Outcome::Done } else { Outcome::Failed })
    }
}
