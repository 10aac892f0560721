//! `imara key encrypted show`.

use super::{SCHEMA, blob_of, blob_words, document, find_key, parse_blob};
use crate::command::CommandResult;
use crate::command::key::kept::read_blob;
use crate::command::keyring::refusal::{Attempt, refused};
use crate::command::paths::{printable, printable_bytes};
use crate::output::{Failure, Outcome, complain, print, print_json};
use imara_format::key::KeyLine;
use imara_format::key_blob::encrypted::Blob;
use imara_linux::key_service::{self as keys, KeyType};
use serde_json::{Value, json};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Show encrypted keys: format, length and master key of each.
///
/// Without arguments those in the kernel that may be seen. Nothing is decrypted and no key bytes are printed.
#[derive(clap::Args)]
pub struct Show {
    /// Keys in the kernel, by name or number, and files with blobs (a path with a `/`, or a file that is there)
    #[arg(value_name = "KEY_OR_BLOB")]
    keys: Vec<OsString>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Show {
    /// Runs it.
    ///
    /// # Errors
    /// What the command could not do.
    pub fn run(self) -> CommandResult {
        let mut documents = Vec::new();
        let mut failed = false;
        let given: Vec<OsString> = match self.keys.is_empty() {
            false => self.keys.clone(),
            true => visible()?.into_iter().map(OsString::from).collect(),
        };
        for key in &given {
            match about(key) {
                Ok((name, serial, blob)) => {
                    documents.push(document(json!({ "name": name, "serial": serial }), &blob));
                    let number = serial.map(|serial| format!(" (key {serial})")).unwrap_or_default();
                    if !self.json {
                        print(format_args!("{name}{number}: {}\n", blob_words(&blob)));
                    }
                }
                Err(failure) => {
                    failed = true;
                    complain(&failure);
                    documents.push(
                        json!({ "name": printable_bytes(key.as_bytes()), "error": failure.what, "next": failure.next }),
                    );
                }
            }
        }
        if self.json {
            print_json(&json!({ "schema": SCHEMA, "keys": Value::Array(documents) }));
        } else if given.is_empty() {
            print("no encrypted key that may be seen\n");
        }
        Ok(if failed { Outcome::Failed } else { Outcome::Done })
    }
}

/// The numbers of the encrypted keys that may be seen.
fn visible() -> Result<Vec<String>, Failure> {
    let lines = keys::visible_keys().map_err(|error| refused(Attempt::Read { key: keys::PROC_KEYS }, &error))?;
    let usable = lines.into_iter().filter(KeyLine::is_usable).map(|line| line.serial);
    let encrypted =
        usable.filter(|serial| keys::describe(*serial).is_ok_and(|key| key.kind == KeyType::Encrypted.name()));
    Ok(encrypted.map(|serial| serial.to_string()).collect())
}

fn about(key: &OsStr) -> Result<(String, Option<i32>, Blob), Failure> {
    let path = Path::new(key);
    if key.as_bytes().contains(&b'/') || path.is_file() {
        let shown = printable(path);
        return Ok((shown.clone(), None, parse_blob(&read_blob(path)?, &shown)?));
    }
    let (serial, description) = find_key(key)?;
    let name = printable_bytes(&description);
    let shown = format!("{name} (key {serial})");
    Ok((name, Some(serial.0), blob_of(serial, &shown)?))
}
