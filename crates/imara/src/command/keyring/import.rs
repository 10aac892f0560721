//! `imara keyring import`.

use super::SCHEMA;
use super::certificates::Source;
use super::named::{Keyring, KeyringName};
use super::refusal::{Attempt, refused};
use crate::command::CommandResult;
use crate::command::change::Change;
use crate::command::paths::{path_json, printable, read};
use crate::output::{Failure, Outcome, complain, print, print_json, warn};
use imara_engine::crypto::PublicKey;
use imara_format::hash::to_hex;
use imara_format::key::KeySerial;
use imara_linux::key_service::{self as keys, KeyType};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Put certificates, or bare RSA keys, into a keyring.
///
/// A certificate may be in DER or in PEM, and a file in PEM may hold several; the kernel gets DER. What is in the keyring
/// already is left as it is. Whether a keyring takes a certificate depends on who has signed it: .ima and .evm take what a key of
/// .builtin_trusted_keys has signed (or one of .secondary_trusted_keys or .machine, where the kernel is built so), _ima and
/// _evm take any.
#[derive(clap::Args)]
pub struct Import {
    /// The keyring: .ima, .evm, _ima, _evm, @u, a number
    #[arg(value_name = "KEYRING")]
    keyring: KeyringName,
    /// Certificates, in DER or PEM; `-` is standard input
    #[arg(value_name = "CERT", required = true)]
    files: Vec<PathBuf>,
    /// The files are RSA public keys, which verify version 1 signatures: each becomes a key of type `user` by the name
    /// that such signatures carry, as `evmctl import --rsa` does it
    #[arg(long)]
    rsa: bool,
    #[command(flatten)]
    change: Change,
}

/// What became of one certificate or key.
struct Imported {
    id: String,
    about: String,
    serial: Option<KeySerial>,
    there: bool,
    details: Value,
}

impl Import {
    /// Runs it.
    ///
    /// # Errors
    /// What the command could not do.
    pub fn run(self) -> CommandResult {
        let keyring = self.keyring.find()?;
        let mut documents = Vec::new();
        let mut outcome = Outcome::Done;
        for path in &self.files {
            let results = match self.rsa {
                true => vec![self.bare(path, &keyring)],
                false => match Source::read(path) {
                    Ok(sources) => sources.iter().map(|source| self.certificate(source, &keyring)).collect(),
                    Err(failure) => vec![Err(self.advise(path, failure))],
                },
            };
            for result in results {
                let mut document = path_json(path);
                match result {
                    Ok(imported) => {
                        document.insert("imported".into(), json!(imported.serial.is_some() && !imported.there));
                        document.insert("there_already".into(), json!(imported.there));
                        document.insert("serial".into(), json!(imported.serial.map(|serial| serial.0)));
                        document.insert("key_id".into(), json!(imported.id));
                        document.insert("certificate".into(), imported.details.clone());
                        self.tell(path, &keyring, &imported);
                    }
                    Err(failure) => {
                        complain(&failure);
                        outcome = outcome.max(failure.outcome);
                        document.insert("imported".into(), json!(false));
                        document.insert("error".into(), json!(failure.what));
                        document.insert("next".into(), json!(failure.next));
                    }
                }
                documents.push(Value::Object(document));
            }
        }
        if self.change.json {
            let keyring = json!({ "serial": keyring.serial.0, "name": keyring.to_string() });
            print_json(&json!({ "schema": SCHEMA, "keyring": keyring, "keys": documents }));
        }
        Ok(outcome)
    }

    fn tell(&self, path: &Path, keyring: &Keyring, imported: &Imported) {
        if self.change.json || self.change.quiet {
            return;
        }
        let (shown, about) = (printable(path), &imported.about);
        match imported.serial {
            Some(serial) if imported.there => {
                print(format_args!("{shown}: is in {keyring} already: key {serial}, {about}\n"));
            }
            Some(serial) => print(format_args!("{shown}: key {serial} in {keyring}, {about}\n")),
            None => print(format_args!("{shown}: would go into {keyring}, {about}\n")),
        }
    }

    /// What to do about a file that is no certificate.
    fn advise(&self, path: &Path, failure: Failure) -> Failure {
        let Ok(bytes) = read(path) else { return failure };
        let key = PublicKey::from_bytes(&bytes).ok();
        match key {
            Some(key) if key.v1_id().is_some() => failure.next(
                "the kernel takes bare public keys of RSA alone, and for version 1 signatures alone: --rsa; else the key's certificate \
                 is needed",
            ),
            Some(_) | None => failure.next("a certificate is needed, as x509_ima.der of imara key generate"),
        }
    }

    fn certificate(&self, source: &Source, keyring: &Keyring) -> Result<Imported, Failure> {
        let id = to_hex(&source.key.key_id());
        let subject = source.key.subject().unwrap_or_default();
        if source.key.certificate().is_some_and(|certificate| certificate.subject_key_id.is_none()) {
            warn(format_args!(
                "{}: {subject} has no subject key identifier: the kernel will not find it for signatures that carry the key id {id}; \
                 imara key generate makes certificates that have one",
                printable(&source.path)
            ));
        }
        let (serial, there) = source.put_into(keyring, self.change.dry_run)?;
        Ok(Imported { id, about: source.words(), serial, there, details: source.json() })
    }

    fn bare(&self, path: &Path, keyring: &Keyring) -> Result<Imported, Failure> {
        let shown = printable(path);
        let bytes = read(path).map_err(|error| Failure::failed(format!("{shown}: {error}")))?;
        let key = PublicKey::from_bytes(&bytes).map_err(|error| Failure::failed(format!("{shown}: {error}")))?;
        let Some((id, payload)) = key.v1_id().zip(key.v1_payload()) else {
            let found =
                if key.is_certificate() { "a certificate".to_owned() } else { format!("a key of type {}", key.kind()) };
            return Err(Failure::failed(format!("{shown}: {found}, where a bare RSA public key is needed")).next(
                "a certificate is imported without --rsa; its public key is what `openssl x509 -pubkey -noout` prints",
            ));
        };
        // The kernel looks for the number without leading zeros.
        let name = format!("{:X}", u64::from_be_bytes(id));
        let about = format!("{}, version 1 key id {name}", key.kind());
        let mut held = keyring.keys().unwrap_or_default().into_iter();
        let there = held.find(|(_, told)| told.kind == KeyType::User.name() && told.description == name.as_bytes());
        if let Some((serial, _)) = &there
            && keys::read(*serial).is_ok_and(|held| held.as_bytes() != payload)
        {
            return Err(Failure::failed(format!(
                "{shown}: {keyring} holds another key under the name {name}: {serial}"
            ))
            .next(format!("if that is not meant: imara keyring remove {keyring} {serial}")));
        }
        let serial = match &there {
            Some((serial, _)) => Some(*serial),
            None if self.change.dry_run => None,
            None => {
                let added = keys::add(KeyType::User, Some(name.as_bytes()), payload, keyring.serial);
                Some(added.map_err(|error| refused(Attempt::User { key: &shown, keyring }, &error))?)
            }
        };
        Ok(Imported { id: name, about, serial, there: there.is_some(), details: Value::Null })
    }
}
