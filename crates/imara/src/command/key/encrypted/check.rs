//! `imara key encrypted check`.

use super::{MasterFile, Unsealing, blob_words, document, not_made, parse_blob};
use crate::command::CommandResult;
use crate::command::key::kept::read_blob;
use crate::command::paths::printable;
use crate::output::{Failure, Outcome, print, print_json};
use imara_engine::keys::encrypted::{Damage, EncryptedKey, EncryptedKeyError};
use serde_json::json;
use std::path::PathBuf;

/// Check that a blob authenticates and decrypts under a master key, without the kernel. No key bytes are printed.
///
/// The exit status is 1 when it does not; where it can be told, a wrong master key is told from a damaged blob.
#[derive(clap::Args)]
pub struct Check {
    /// The master key's bytes, as they were given to the kernel, or a trusted key's blob; `-` is standard input
    #[arg(long, value_name = "FILE")]
    master: PathBuf,
    #[command(flatten)]
    unsealing: Unsealing,
    /// The file with the blob; `-` is standard input
    #[arg(value_name = "BLOB")]
    blob: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Print nothing but errors
    #[arg(short, long)]
    quiet: bool,
}

impl Check {
    /// Runs it.
    ///
    /// # Errors
    /// The blob does not authenticate, or cannot be read.
    pub fn run(self) -> CommandResult {
        let shown = printable(&self.blob);
        if self.master.as_os_str() == "-" && self.blob.as_os_str() == "-" {
            return Err(Failure::usage("only one of --master and BLOB can be standard input"));
        }
        let blob = parse_blob(&read_blob(&self.blob)?, &shown)?;
        let master = MasterFile::read_or_unseal(&self.master, &self.unsealing)?;
        let failure = match EncryptedKey::open(&blob, &master.bytes) {
            Ok(_) => None,
            Err(error @ EncryptedKeyError::NotAuthentic { damage: Damage::Unknown, .. }) => {
                Some(match master.mistake(&blob) {
                    None => not_made(&shown, &error),
                    Some(mistake) => Failure::failed(format!(
                        "{shown}: the master key is not right as {} has it: {mistake}",
                        printable(&master.path)
                    ))
                    .next("correct the file, and check again"),
                })
            }
            Err(error) => Some(not_made(&shown, &error)),
        };
        if let Some(failure) = failure {
            if self.json {
                let told = json!({ "blob": shown, "authentic": false, "error": failure.what, "next": failure.next });
                print_json(&document(told, &blob));
            }
            return Err(failure);
        }
        if self.json {
            print_json(&document(json!({ "blob": shown, "authentic": true }), &blob));
        } else if !self.quiet {
            print(format_args!("{shown}: authentic: {}\n", blob_words(&blob)));
        }
        Ok(Outcome::Done)
    }
}
