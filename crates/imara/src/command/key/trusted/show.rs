//! `imara key trusted show`.

use super::blob::BlobFile;
use super::how;
use super::{SCHEMA, kernel};
use crate::command::CommandResult;
use crate::command::keyring::named::serial;
use crate::command::keyring::refusal::{Attempt, refused};
use crate::command::paths::printable_bytes;
use crate::output::{Failure, Outcome, complain, print, print_json};
use imara_engine::keys::trusted::{self, OWNER, TrustedKeyError};
use imara_format::hash::to_hex;
use imara_format::key::{Errno, KeyLine, KeySerial};
use imara_format::key_blob::sealed_key::{SealedKey, TrustedBlob, is_migratable};
use imara_format::key_blob::sealed_record::{PcrRecord, SealedRecord};
use imara_linux::key_service::{self as keys, KeyType, errno_of};
use imara_linux::tpm_address::TpmAddress;
use serde_json::{Value, json};
use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Show trusted keys: what seals each of them, and whether the PCRs that it is sealed to have the right values now.
///
/// Without arguments those in the kernel that may be seen. Nothing is unsealed and no key bytes are printed. Exit status: 0 shown,
/// 1 one could not be read, or would not be unsealed now because of its PCRs.
#[derive(clap::Args)]
pub struct Show {
    /// Keys in the kernel, by name or number, and files with blobs (a path with a `/`, or a file that is there)
    #[arg(value_name = "KEY_OR_BLOB")]
    keys: Vec<OsString>,
    /// The TPM whose PCRs are compared; without, /dev/tpmrm0 where it is there
    #[arg(long, value_name = "TPM")]
    tpm: Option<TpmAddress>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A key that was found.
struct Found {
    name: String,
    serial: Option<KeySerial>,
    blob: TrustedBlob,
    record: Option<SealedRecord>,
}

impl Show {
    /// Runs it.
    ///
    /// # Errors
    /// What the command could not do.
    pub fn run(self) -> CommandResult {
        let mut documents = Vec::new();
        let mut outcome = Outcome::Done;
        let given: Vec<OsString> = match self.keys.is_empty() {
            false => self.keys.clone(),
            true => visible()?.into_iter().map(OsString::from).collect(),
        };
        for key in &given {
            match about(key).and_then(|found| Ok((self.pcrs_now(&found)?, found))) {
                Ok((now, found)) => {
                    if matches!(now, Some(Err(_))) {
                        outcome = Outcome::Failed;
                    }
                    let told = json!({ "name": found.name, "serial": found.serial.map(|serial| serial.0) });
                    let mut document = document(told, &found.blob, found.record.as_ref());
                    document["pcrs_fit_now"] = json!(now.as_ref().map(Result::is_ok));
                    document["pcrs_now"] =
                        json!(now.as_ref().and_then(|now| now.as_ref().err().map(ToString::to_string)));
                    documents.push(document);
                    if !self.json {
                        print(text(&found, now.as_ref()));
                    }
                }
                Err(failure) => {
                    outcome = Outcome::Failed;
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
            print("no trusted key that may be seen\n");
        }
        Ok(outcome)
    }

    /// Whether the PCRs noted have a set of the values noted now; none where nothing is noted, or there is no TPM to ask.
    fn pcrs_now(&self, found: &Found) -> Result<Option<Result<(), TrustedKeyError>>, Failure> {
        let Some(record) = found.record.as_ref().and_then(|record| record.pcrs.as_ref()) else { return Ok(None) };
        if self.tpm.is_none() && !Path::new(how::MANAGED).exists() {
            return Ok(None);
        }
        let (policy, _) = trusted::policy_of_pcrs(record)
            .map_err(|error| Failure::failed(format!("{}: what is noted beside it: {error}", found.name)))?;
        let now = how::target(self.tpm.as_ref()).with(|tpm| Ok(trusted::values_now(tpm, &record.selection)?))?;
        let differences = policy.differences(&now);
        Ok(Some(if differences.is_empty() { Ok(()) } else { Err(TrustedKeyError::Pcrs(differences)) }))
    }
}

/// The numbers of the trusted keys that may be seen.
fn visible() -> Result<Vec<String>, Failure> {
    let lines = keys::visible_keys().map_err(|error| refused(Attempt::Read { key: keys::PROC_KEYS }, &error))?;
    let usable = lines.into_iter().filter(KeyLine::is_usable).map(|line| line.serial);
    let trusted = usable.filter(|serial| keys::describe(*serial).is_ok_and(|key| key.kind == KeyType::Trusted.name()));
    Ok(trusted.map(|serial| serial.to_string()).collect())
}

fn about(key: &OsStr) -> Result<Found, Failure> {
    let path = Path::new(key);
    if key.as_bytes().contains(&b'/') || path.is_file() {
        let BlobFile { shown, blob, record } = BlobFile::read(path)?;
        return Ok(Found { name: shown, serial: None, blob, record });
    }
    let (serial, description) = find_key(key)?;
    let name = printable_bytes(&description);
    let blob = kernel::blob_of(serial, &name)?;
    Ok(Found { name, serial: Some(serial), blob, record: None })
}

/// A key of type `trusted` in the kernel, by number or by description.
///
/// # Errors
/// There is none.
pub fn find_key(name: &OsStr) -> Result<(KeySerial, Vec<u8>), Failure> {
    let _ = keys::reach_user_keyring();
    let shown = printable_bytes(name.as_bytes());
    let found = match serial(name) {
        Some(serial) => Ok(serial),
        None => keys::request(KeyType::Trusted, name.as_bytes()),
    };
    let told =
        found.and_then(|serial| Ok((serial, keys::describe(serial)?))).map_err(|error| match errno_of(&error) {
            Some(Errno::Enokey) => Failure::failed(format!("{shown}: no trusted key of that name or number (ENOKEY)"))
                .next("imara key trusted show lists those of the kernel; a file with a blob is named by its path"),
            _ => refused(Attempt::Read { key: &shown }, &error),
        })?;
    let (serial, description) = told;
    match description.kind == KeyType::Trusted.name() {
        true => Ok((serial, description.description)),
        false => Err(Failure::failed(format!(
            "{shown} is a key of type {}, not trusted",
            printable_bytes(description.kind.as_bytes())
        ))
        .next("of a key of type user that imara key trusted made, the file with the blob tells all")),
    }
}

fn parent_words(blob: &TrustedBlob) -> String {
    match blob {
        TrustedBlob::Old { .. } => "a parent that is not noted (from before Linux 5.13)".to_owned(),
        TrustedBlob::Key(SealedKey { parent: OWNER, rsa_parent, .. }) => {
            format!("the storage root key made each time ({})", if *rsa_parent { "RSA-2048" } else { "P-256" })
        }
        TrustedBlob::Key(SealedKey { parent, .. }) if parent >> 24 == 0x80 => {
            format!("a key that was loaded for that moment ({parent:#010x}); the blob in its file names it for good")
        }
        TrustedBlob::Key(SealedKey { parent, .. }) => format!("{parent:#010x}"),
    }
}

fn hash_words(blob: &TrustedBlob) -> String {
    let public = blob.public();
    public.name_hash().map_or_else(|| format!("{:#06x}", public.name_algorithm), |hash| hash.to_string())
}

const fn needs_auth(blob: &TrustedBlob) -> Option<bool> {
    match blob {
        TrustedBlob::Key(SealedKey { empty_auth, .. }) => Some(!*empty_auth),
        TrustedBlob::Old { .. } => None,
    }
}

/// What a blob says, for people, in half a line.
pub fn blob_words(blob: &TrustedBlob, record: Option<&SealedRecord>) -> String {
    let mut words = format!("sealed under {}, {}", parent_words(blob), hash_words(blob));
    if !is_migratable(blob.public()) {
        words.push_str(", not migratable");
    }
    if needs_auth(blob) == Some(true) {
        words.push_str(", with an authorisation value");
    }
    match record.and_then(|record| record.pcrs.as_ref()) {
        Some(PcrRecord { selection, sets, .. }) if sets.len() > 1 => {
            // Writing into memory does not fail.
            let _ = write!(words, ", to one of {} sets of values of the PCRs {selection}", sets.len());
        }
        Some(PcrRecord { selection, .. }) => {
            let _ = write!(words, ", to the PCRs {selection}");
        }
        None if !blob.public().policy.is_empty() => words.push_str(", by a policy"),
        None => {}
    }
    words
}

fn text(found: &Found, now: Option<&Result<(), TrustedKeyError>>) -> String {
    let number = found.serial.map(|serial| format!(" (key {serial})")).unwrap_or_default();
    let mut text = format!("{}{number}: {}\n", found.name, blob_words(&found.blob, found.record.as_ref()));
    match now {
        Some(Ok(())) => text.push_str("  the PCRs have such values now\n"),
        Some(Err(error)) => {
            let _ = writeln!(text, "  would not be unsealed now: {error}");
        }
        None => {}
    }
    text
}

/// What a command tells in JSON, with what the blob says.
pub fn document(told: Value, blob: &TrustedBlob, record: Option<&SealedRecord>) -> Value {
    let pcrs = record.and_then(|record| record.pcrs.as_ref()).map(|pcrs| {
        let sets = pcrs.sets.iter().map(|set| {
            let values = set.iter().map(|(pcr, value)| (format!("{}:{pcr}", value.algorithm()), json!(value.to_hex())));
            Value::Object(values.collect())
        });
        json!({ "selection": pcrs.selection.to_string(), "sets": sets.collect::<Vec<_>>(), "with_auth": pcrs.with_auth })
    });
    let parent = match blob {
        TrustedBlob::Key(key) => Some(format!("{:#010x}", key.parent)),
        TrustedBlob::Old { .. } => None,
    };
    let policy = &blob.public().policy;
    let mut document = json!({
        "schema": SCHEMA,
        "blob": kernel::blob_text(blob),
        "before_linux_5_13": matches!(blob, TrustedBlob::Old { .. }),
        "parent": parent,
        "hash": hash_words(blob),
        "migratable": is_migratable(blob.public()),
        "needs_auth": needs_auth(blob),
        "policy_digest": (!policy.is_empty()).then(|| to_hex(policy)),
        "pcrs": pcrs,
        "parent_name": record.and_then(|record| record.parent.as_deref()).map(to_hex),
        "tpm_name": record.and_then(|record| record.tpm.as_deref()).map(to_hex),
    });
    if let (Some(document), Value::Object(told)) = (document.as_object_mut(), told) {
        document.extend(told);
    }
    document
}
