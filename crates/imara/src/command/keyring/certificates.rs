//! Certificates in files, and which keys of the kernel's are theirs: the kernel does not give a certificate back.

use super::named::Keyring;
use super::refusal::{Attempt, refused};
use crate::command::paths::{path_json, printable, read};
use crate::output::Failure;
use imara_engine::crypto::PublicKey;
use imara_format::hash::to_hex;
use imara_format::key::{Errno, KeyPermissions, KeySerial};
use imara_linux::key_service::{self as keys, KeyType, errno_of};
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Where certificates are kept, as the kernel's own default has it (CONFIG_IMA_X509_PATH).
pub const FOLDER: &str = "/etc/keys";
/// What an asymmetric key has by itself, and its user may search for it.
const SEARCHABLE: KeyPermissions = KeyPermissions(0x3909_0000);
/// The most files of a folder that are looked at.
const MOST_FILES: usize = 4096;
/// How the names of certificates' files end.
pub const ENDINGS: [&str; 5] = ["der", "pem", "crt", "cer", "x509"];

/// A certificate and where it was read.
pub struct Source {
    /// The file.
    pub path: PathBuf,
    /// The certificate as the kernel takes it.
    pub der: Vec<u8>,
    /// Its key, and what it says beside.
    pub key: PublicKey,
}

impl Source {
    /// Reads the certificates of a file.
    ///
    /// # Errors
    /// It cannot be read, or has no certificate.
    pub fn read(path: &Path) -> Result<Vec<Self>, Failure> {
        let shown = printable(path);
        let bytes = read(path).map_err(|error| Failure::failed(format!("{shown}: {error}")))?;
        let certificates =
            PublicKey::certificates(&bytes).map_err(|error| Failure::failed(format!("{shown}: {error}")))?;
        Ok(certificates.into_iter().map(|(der, key)| Self { path: path.to_owned(), der, key }).collect())
    }

    /// The number of the key in `keyring`, or in one that it leads to, which the kernel has under this certificate's first
    /// id.
    pub fn find_in(&self, keyring: KeySerial) -> Option<KeySerial> {
        let certificate = self.key.certificate()?;
        let id = format!("ex:{}", to_hex(&certificate.serial_and_issuer));
        keys::search(keyring, KeyType::Asymmetric, id.as_bytes()).ok()
    }

    /// Puts it into a keyring, unless it is there already: the key's number, and whether it was there.
    ///
    /// # Errors
    /// The kernel's refusal, explained.
    pub fn put_into(&self, keyring: &Keyring, dry_run: bool) -> Result<(Option<KeySerial>, bool), Failure> {
        // The search follows keyrings that this one leads to: only what it holds itself is there already.
        let there = self.find_in(keyring.serial);
        let there = there.filter(|serial| keys::keys_of(keyring.serial).is_ok_and(|held| held.contains(serial)));
        if there.is_some() || dry_run {
            return Ok((there, there.is_some()));
        }
        let added = keys::add(KeyType::Asymmetric, None, &self.der, keyring.serial);
        let name = format!("{} ({})", printable(&self.path), self.words());
        let serial = added.map_err(|error| refused(Attempt::Certificate { source: &name, keyring }, &error))?;
        Ok((Some(self.searchable(serial, keyring).unwrap_or(serial)), false))
    }

    /// Keys in the kernel's own keyrings can be searched for, and verified with, by the kernel alone: nobody possesses them, and
    /// the permissions of a new key leave its user no search. So once the kernel has judged, taken and measured the
    /// certificate, a copy that its user may search for takes its place. None where there is no need, or it cannot be.
    fn searchable(&self, serial: KeySerial, keyring: &Keyring) -> Option<KeySerial> {
        let hidden = keys::public_key_query(serial, "pkcs1", "sha256")
            .is_err_and(|error| errno_of(&error) == Some(Errno::Eacces));
        if !hidden {
            return None;
        }
        let copy = keys::add(KeyType::Asymmetric, None, &self.der, keys::PROCESS_KEYRING).ok()?;
        let placed = keys::set_permissions(copy, SEARCHABLE).and_then(|()| keys::link(copy, keyring.serial));
        let _ = keys::unlink(copy, keys::PROCESS_KEYRING);
        placed.ok().map(|()| copy)
    }

    /// In short: `RSA-2048, key id 7a1f04c3, CN=IMA signing key`.
    pub fn words(&self) -> String {
        let id = to_hex(&self.key.key_id());
        format!("{}, key id {id}, {}", self.key.kind(), self.key.subject().unwrap_or_default())
    }

    /// What the certificate says, in JSON.
    pub fn json(&self) -> Value {
        let mut document: Map<String, Value> = path_json(&self.path);
        let mut tell = |name: &str, value: Value| document.insert(name.into(), value);
        tell("key", json!(self.key.kind().to_string()));
        tell("key_id", json!(to_hex(&self.key.key_id())));
        if let Some(certificate) = self.key.certificate() {
            let hex = |bytes: &Option<Vec<u8>>| bytes.as_deref().map(to_hex);
            tell("subject", json!(certificate.subject));
            tell("issuer", json!(certificate.issuer));
            tell("serial_number", json!(to_hex(&certificate.serial)));
            tell("not_before", json!(certificate.not_before));
            tell("not_after", json!(certificate.not_after));
            tell("expired", json!(certificate.expired));
            tell("key_usage", json!(certificate.key_usage));
            tell("authority", json!(certificate.is_authority));
            tell("signature_algorithm", json!(certificate.signature_algorithm));
            tell("subject_key_id", json!(hex(&certificate.subject_key_id)));
            tell("authority_key_id", json!(hex(&certificate.authority_key_id)));
            tell("sha256", json!(certificate.fingerprint.as_ref().map(ToString::to_string)));
            tell("to_be_signed", json!(certificate.to_be_signed.as_ref().map(ToString::to_string)));
        }
        Value::Object(document)
    }

    /// What the certificate says, for people, a line each.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut tell = |name: &str, value: &str| lines.push(format!("{name:<9} {value}"));
        if let Some(certificate) = self.key.certificate() {
            let hex = |bytes: &Option<Vec<u8>>| bytes.as_deref().map_or_else(|| "none".to_owned(), to_hex);
            let over = if certificate.expired { " (over; no signature is refused for it)" } else { "" };
            let usage = certificate.key_usage.as_ref().map_or_else(|| "not said".to_owned(), |usage| usage.join(", "));
            let authority = if certificate.is_authority { "an authority (CA)" } else { "no authority" };
            tell("subject", &certificate.subject);
            tell("issuer", &certificate.issuer);
            tell("number", &to_hex(&certificate.serial));
            tell("valid", &format!("{} to {}{over}", certificate.not_before, certificate.not_after));
            tell("key", &format!("{}, key id {}", self.key.kind(), to_hex(&self.key.key_id())));
            tell("use", &format!("{usage}; {authority}"));
            tell("signed", &certificate.signature_algorithm);
            tell(
                "key ids",
                &format!("subject {}, issuer {}", hex(&certificate.subject_key_id), hex(&certificate.authority_key_id)),
            );
            let digests = [("sha256", &certificate.fingerprint), ("tbs", &certificate.to_be_signed)];
            for (name, digest) in digests {
                if let Some(digest) = digest {
                    tell(name, &digest.to_hex());
                }
            }
        }
        tell("file", &printable(&self.path));
        lines
    }
}

/// The certificates of files and folders.
pub struct Sources(Vec<Source>);

impl Sources {
    /// Reads them. What is no certificate in a folder is passed over.
    ///
    /// # Errors
    /// A file or folder that is named cannot be read, or a file has no certificate.
    pub fn read(paths: &[PathBuf]) -> Result<Self, Failure> {
        let mut sources = Vec::new();
        for path in paths {
            if path.is_dir() {
                let failure = |error| Failure::failed(format!("{}: {error}", printable(path)));
                sources.extend(folder(path).map_err(failure)?);
            } else {
                sources.extend(Source::read(path)?);
            }
        }
        Ok(Self(sources))
    }

    /// Those of [`FOLDER`], as far as they can be read.
    pub fn of_this_machine() -> Self {
        Self(folder(Path::new(FOLDER)).unwrap_or_default())
    }

    /// Which of the keys that a keyring leads to have one of these certificates.
    pub fn in_keyring(&self, keyring: KeySerial) -> HashMap<KeySerial, &Source> {
        let found = self.0.iter().filter_map(|source| Some((source.find_in(keyring)?, source)));
        // The first file of several that have it.
        found.fold(HashMap::new(), |mut all, (serial, source)| {
            all.entry(serial).or_insert(source);
            all
        })
    }
}

/// The certificates of a folder, by the names of their files. Private keys are not read, as far as names tell them.
fn folder(path: &Path) -> std::io::Result<Vec<Source>> {
    let named = |path: &PathBuf| {
        let ending = path.extension().and_then(|ending| ending.to_str());
        let private = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("privkey"));
        ending.is_some_and(|ending| ENDINGS.contains(&ending)) && !private && path.is_file()
    };
    let entries = std::fs::read_dir(path)?.filter_map(|entry| Some(entry.ok()?.path()));
    let mut files: Vec<PathBuf> = entries.filter(named).take(MOST_FILES).collect();
    files.sort();
    Ok(files.iter().filter_map(|file| Source::read(file).ok()).flatten().collect())
}
