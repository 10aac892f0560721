//! What commands about sealed keys have in common: the keyring that a key is made in, and the file that its blob is kept in.

use crate::command::change::Change;
use crate::command::keyring::named::{Keyring, KeyringName};
use crate::command::new_files::{write_together, write_with_record};
use crate::command::paths::{printable, printable_bytes, read};
use crate::output::{Failure, Outcome, print};
use imara_linux::key_service::{self as keys, KeyType};
use serde_json::Value;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Where a blob is written to.
#[derive(clap::Args)]
pub struct Out {
    /// Write the key's blob to F, readable by its owner alone; `-` is standard output
    #[arg(long, value_name = "F")]
    pub out: Option<PathBuf>,
    /// Write over F where it is there
    #[arg(long, requires = "out")]
    pub force: bool,
}

impl Out {
    /// Whether what is there already would be in the way.
    ///
    /// # Errors
    /// It would.
    pub fn check(&self) -> Result<(), Failure> {
        match &self.out {
            Some(path) if !self.force && path.as_os_str() != "-" && path.symlink_metadata().is_ok() => {
                Err(Failure::failed(format!("{} is already there", printable(path)))
                    .next("choose another --out, or write over it with --force"))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Writes the blob's text.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, blob: &[u8]) -> Result<(), Failure> {
        match &self.out {
            Some(path) if path.as_os_str() != "-" => write_together(&[(path, blob, 0o600)], self.force),
            _ => self.print(blob),
        }
    }

    /// Writes the blob's text, and what is noted of it beside: never one of them with the other of another blob's.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn write_with_record(&self, blob: &[u8], beside: &Path, record: &[u8]) -> Result<(), Failure> {
        match &self.out {
            Some(path) if path.as_os_str() != "-" => {
                write_with_record((path, blob), (beside, record), 0o600, self.force)
            }
            _ => self.print(blob),
        }
    }

    fn print(&self, blob: &[u8]) -> Result<(), Failure> {
        if self.is_stdout() {
            print(format_args!("{}\n", String::from_utf8_lossy(blob).trim_end()));
        }
        Ok(())
    }

    /// The file's name, where it is written to a file.
    pub fn place(&self) -> Option<String> {
        self.out.as_ref().filter(|path| path.as_os_str() != "-").map(|path| printable(path))
    }

    /// Whether the blob goes to standard output.
    pub fn is_stdout(&self) -> bool {
        self.out.as_ref().is_some_and(|path| path.as_os_str() == "-")
    }

    /// Tells what was done; only the blob is for standard output where it goes there.
    pub fn report(&self, change: &Change, text: String, document: &Value) -> Outcome {
        if self.is_stdout() { Outcome::Done } else { change.report(text, document) }
    }
}

/// The kernel's command: its keyword and the words as they were given, a blank between them.
pub fn command_text<T: AsRef<OsStr>>(keyword: &str, words: &[T]) -> Vec<u8> {
    let mut text = keyword.as_bytes().to_vec();
    for word in words {
        text.push(b' ');
        text.extend_from_slice(word.as_ref().as_bytes());
    }
    text
}

/// Reads a blob's text from a file; like a shell, without the newlines at its end, and without a `load ` before it.
///
/// # Errors
/// It cannot be read.
pub fn read_blob(path: &Path) -> Result<Vec<u8>, Failure> {
    let mut text = read(path).map_err(|error| Failure::failed(format!("{}: {error}", printable(path))))?;
    while text.last() == Some(&b'\n') {
        text.pop();
    }
    Ok(match text.strip_prefix(b"load ") {
        Some(blob) => blob.to_vec(),
        None => text,
    })
}

/// The keyring that a key is made in.
#[derive(clap::Args)]
pub struct Into {
    /// The keyring for it: @u, @s, a number, or a name
    #[arg(long, value_name = "KEYRING", default_value = "@u")]
    pub keyring: KeyringName,
}

impl Into {
    /// The keyring, in which no key of that type and name may be yet: add_key(2) would take the command for an update.
    ///
    /// # Errors
    /// There is no such keyring, or the key is in it already.
    pub fn find(&self, kind: KeyType, description: &[u8]) -> Result<Keyring, Failure> {
        let keyring = self.keyring.find()?;
        let _ = keys::reach_user_keyring();
        let held = keys::keys_of(keyring.serial).unwrap_or_default();
        let mut held = held.into_iter().filter_map(|key| Some((key, keys::describe(key).ok()?)));
        let there = held.find(|(_, held)| held.kind == kind.name() && held.description == description);
        match there {
            None => Ok(keyring),
            Some((serial, _)) => Err(Failure::failed(format!(
                "{}: a key of type {} and that name is in {} already: {serial}",
                printable_bytes(description),
                kind.name(),
                self.keyring
            ))
            .next(format!(
                "keep it; or take it out first: imara keyring remove {} {serial} (a key whose blob is nowhere is lost then)",
                self.keyring
            ))),
        }
    }
}
