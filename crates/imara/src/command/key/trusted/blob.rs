//! A trusted key's blob in a file, in whichever form, and what is noted beside it.

use super::{how, not_done};
use crate::command::new_files::next_path;
use crate::command::paths::{printable, read, read_text};
use crate::output::Failure;
use imara_engine::keys::KeyMaterial;
use imara_engine::keys::trusted::{self, PolicyKnowledge, TrustedKey};
use imara_format::hash::{from_hex, to_hex};
use imara_format::key_blob::sealed_key::{PEM_LABEL, SealedKey, SealedKeyError, TrustedBlob};
use imara_format::key_blob::sealed_record::SealedRecord;
use imara_format::key_blob::trusted::Options;
use imara_linux::tpm_address::TpmAddress;
use std::path::{Path, PathBuf};

/// The form that a blob is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Form {
    /// Hexadecimal, as the kernel reads and prints it
    Hex,
    /// PEM (TSS2 PRIVATE KEY), as the OpenSSL engines and providers for TPMs have it
    Pem,
}

/// A blob from a file, with its record.
pub struct BlobFile {
    /// The file, for people.
    pub shown: String,
    /// The blob.
    pub blob: TrustedBlob,
    /// What is noted beside it.
    pub record: Option<SealedRecord>,
}

impl BlobFile {
    /// A file's content, if it is a sealed key; bytes that are no blob may be a key themselves.
    ///
    /// # Errors
    /// It is a blob that is not whole, or what is noted beside it cannot be read.
    pub fn of(path: &Path, content: &[u8]) -> Result<Option<Self>, Failure> {
        // What does not say so itself is not even decoded: copies of a key would be left behind.
        match says_what_it_is(content).then(|| parse(content)) {
            Some(Ok(blob)) => Self::with_record(path, blob).map(Some),
            // Its bytes are no key: what would be sealed with them, the blob from the backup would never open.
            Some(Err(error)) => Err(Failure::failed(format!(
                "{}: it looks like a trusted key's blob, and is not whole: {error} (EINVAL)",
                printable(path)
            ))
            .next("take the blob from a backup")),
            None if path.as_os_str() != "-" && record_path(path).symlink_metadata().is_ok() => {
                Err(Failure::failed(format!(
                    "{}: it is no trusted key's blob, though {} beside it is the record of one",
                    printable(path),
                    printable(&record_path(path))
                ))
                .next("take the blob from a backup; or, where the file is a key itself, take the record away"))
            }
            None => Ok(None),
        }
    }

    /// Unseals it for this process: the key goes nowhere else.
    ///
    /// # Errors
    /// Why it is not unsealed.
    pub fn unseal(self, tpm: Option<&TpmAddress>, auth: Option<&Path>) -> Result<KeyMaterial, Failure> {
        let words = how::auth_words(auth)?;
        let options = Options::parse(words.as_bytes()).map_err(|error| super::wrong_words(&self.shown, &error))?;
        let known = PolicyKnowledge { record: self.record.as_ref(), pcrs: None };
        let key = how::target(tpm).with(|tpm| {
            TrustedKey::load(tpm, self.blob.clone(), &options, &known).map_err(|error| not_done(&self.shown, error))
        })?;
        Ok(key.into_material())
    }

    /// Reads a blob: hexadecimal, PEM or DER. Its record is beside it, in `FILE.sealed`.
    ///
    /// # Errors
    /// It cannot be read, or is none.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let shown = printable(path);
        let text = read(path).map_err(|error| Failure::failed(format!("{shown}: {error}")))?;
        let blob = parse(&text).map_err(|error| {
            Failure::failed(format!("{shown}: no blob of a trusted key: {error} (EINVAL)")).next(
                "a blob is what `keyctl pipe` prints of a trusted key, hexadecimal, or a PEM file of a sealed key",
            )
        })?;
        Self::with_record(path, blob)
    }

    fn with_record(path: &Path, blob: TrustedBlob) -> Result<Self, Failure> {
        let shown = printable(path);
        let record = if path.as_os_str() == "-" { None } else { record_of(path, &blob)? };
        Ok(Self { shown, blob, record })
    }
}

/// The record beside a blob.
fn record_of(path: &Path, blob: &TrustedBlob) -> Result<Option<SealedRecord>, Failure> {
    let beside = record_path(path);
    // A command that was killed after it had written the blob: its record is put into its place now.
    let next = next_path(&beside);
    if let Some(record) = read_record(&next).ok().flatten()
        && record.sealed.is_some()
        && record.sealed == trusted::name_of(blob)
    {
        let _ = std::fs::rename(next, beside);
        return Ok(Some(record));
    }
    read_record(&beside).map_err(|error| {
        Failure::failed(format!("{}: {error}", printable(&beside)))
            .next("take it away, and nothing will be known of the policy but what the blob says")
    })
}

fn read_record(path: &Path) -> Result<Option<SealedRecord>, String> {
    if !path.is_file() {
        return Ok(None);
    }
    let text = read_text(path).map_err(|error| error.to_string())?;
    SealedRecord::parse(&text).map(Some).map_err(|error| error.to_string())
}

/// Hexadecimal, also behind the kernel's word `load`, PEM, or the bytes themselves.
fn parse(content: &[u8]) -> Result<TrustedBlob, SealedKeyError> {
    let text = std::str::from_utf8(content).unwrap_or_default().trim();
    if text.contains(PEM_LABEL) {
        return SealedKey::from_pem(text).map(TrustedBlob::Key);
    }
    match from_hex(text.strip_prefix("load ").unwrap_or(text)) {
        Ok(bytes) if !bytes.is_empty() => TrustedBlob::parse(&bytes),
        Ok(_) | Err(_) => TrustedBlob::parse(content),
    }
}

/// Whether somewhere in it is the label of a key of a TPM, or the first of their object identifiers' bytes.
fn says_what_it_is(content: &[u8]) -> bool {
    let contains = |part: &[u8]| content.windows(part.len()).any(|window| window.eq_ignore_ascii_case(part));
    contains(PEM_LABEL.as_bytes())
        || contains(&[0x06, 0x06, 0x67, 0x81, 0x05, 0x0a, 0x01])
        || contains(b"06066781050a01")
}

/// Where the record of a blob is.
pub fn record_path(blob: &Path) -> PathBuf {
    let mut name = blob.as_os_str().to_owned();
    name.push(".sealed");
    name.into()
}

/// A blob's text.
pub fn text(blob: &TrustedBlob, form: Form) -> Vec<u8> {
    match (blob, form) {
        (TrustedBlob::Key(key), Form::Pem) => key.to_pem().into_bytes(),
        (blob, Form::Hex | Form::Pem) => to_hex(&blob.to_bytes()).into_bytes(),
    }
}
