//! `imara key trusted new`.

use super::blob::{self, Form, record_path};
use super::how::{self, Auths, ParentName, Pcrs};
use super::kernel::Place;
use super::show::{blob_words, document};
use super::{custody, kernel, not_done, warn_of_ignored, wrong_words};
use crate::command::CommandResult;
use crate::command::change::Change;
use crate::command::key::kept::{Into, Out, command_text};
use crate::command::keyring::named::KeyringName;
use crate::command::paths::printable_bytes;
use crate::output::{Failure, Outcome};
use imara_engine::keys::KeyMaterial;
use imara_engine::keys::trusted::{self, TrustedKey};
use imara_engine::tpm::Tpm;
use imara_format::key::KeySerial;
use imara_format::key_blob::sealed_key::TrustedBlob;
use imara_format::key_blob::sealed_record::{PcrRecord, SealedRecord};
use imara_format::key_blob::trusted::{AuthText, Command, Options};
use imara_linux::key_service::KeyType;
use imara_linux::tpm_address::TpmAddress;
use serde_json::json;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

/// Make a trusted key, and keep its blob in a file: without the blob the key is gone at the next boot.
///
/// The words are the kernel's: `imara key trusted new kmk 32 --out /etc/keys/kmk-trusted.blob`. Without keyhandle= the parent is the
/// storage root key kept at 0x81000001, else the one on P-256 that is made from the owner hierarchy's seed each time.
#[derive(clap::Args)]
pub struct New {
    /// The key's name, its description in the kernel
    #[arg(value_name = "NAME")]
    name: OsString,
    /// KEYLEN [keyhandle=H] [keyauth=…] [blobauth=…] [pcrlock=N] [migratable=0|1] [hash=ALG] [policydigest=…]
    #[arg(value_name = "WORD", required = true)]
    words: Vec<OsString>,
    #[command(flatten)]
    into: Into,
    /// The parent key: srk-p256 or srk-rsa2048, made from the owner hierarchy's seed each time, or a persistent handle
    #[arg(long, value_name = "KEY")]
    parent: Option<ParentName>,
    #[command(flatten)]
    pcrs: Pcrs,
    #[command(flatten)]
    auths: Auths,
    /// Ask this TPM from here, and not through the kernel's keys: a device, or a software TPM's socket
    #[arg(long, value_name = "TPM")]
    tpm: Option<TpmAddress>,
    /// Put no key into a keyring: make the blob alone
    #[arg(long, conflicts_with = "keyring")]
    blob_only: bool,
    #[command(flatten)]
    out: Out,
    /// The blob's form
    #[arg(long, value_enum, default_value_t = Form::Hex)]
    form: Form,
    #[command(flatten)]
    change: Change,
}

impl New {
    /// Runs it.
    ///
    /// # Errors
    /// What the command could not do.
    pub fn run(self) -> CommandResult {
        let made = self.make()?;
        Ok(self.tell(&made))
    }

    /// Makes the key and keeps its blob.
    fn make(&self) -> Result<Made, Failure> {
        let name = self.name.as_bytes();
        let shown = printable_bytes(name);
        if self.out.out.is_none() {
            return Err(Failure::usage("--out FILE is missing: without its blob the key is gone at the next boot"));
        }
        self.out.check()?;
        self.pcrs.check(&self.out)?;
        let words = command_text("new", &self.words);
        let command = KeyMaterial::new([words.as_slice(), self.auths.words()?.as_bytes()].concat());
        let parsed = Command::parse(command.as_bytes()).map_err(|error| wrong_words(&shown, &error))?;
        let Command::New { length, options } = parsed else {
            return Err(Failure::usage("these are not the words of a new key: KEYLEN [OPTION…]"));
        };
        warn_of_ignored(&self.words);
        if self.pcrs.is_given() && !options.policy_digest.is_empty() {
            return Err(Failure::usage("--pcrs makes the policy, and policydigest= is another"));
        }
        let in_kernel = self.tpm.is_none() && !self.blob_only && custody::kernel_has_type()?;
        let kind = if in_kernel { KeyType::Trusted } else { KeyType::User };
        let keyring = match self.blob_only {
            true => None,
            false => Some(self.into.find(kind, name)?),
        };
        let target = how::sealing_target(in_kernel, self.tpm.as_ref(), self.parent, &options)?;
        let (serial, blob, record) = target.with(|tpm| {
            let (parent, options, pcrs) = sealing(tpm, self.parent, &self.pcrs, options.clone(), &shown)?;
            if self.change.dry_run {
                trusted::lockable(options.pcr_lock).map_err(|error| not_done(&shown, error))?;
                // What is said is said of the blob that would be made; nothing is kept of it.
                let trial = Options { pcr_lock: 0, ..options };
                let (key, record) =
                    TrustedKey::new(tpm, length, parent, &trial).map_err(|error| not_done(&shown, error))?;
                return Ok((None, key.blob().clone(), SealedRecord { pcrs, ..record }));
            }
            match &keyring {
                Some(keyring) if in_kernel => {
                    let place = Place { name, shown: &shown, keyring };
                    let (serial, blob, record) = kernel::make(tpm, place, length, parent, &options)?;
                    Ok((Some(serial), blob, SealedRecord { pcrs, ..record }))
                }
                _ => {
                    let (key, record) =
                        TrustedKey::new(tpm, length, parent, &options).map_err(|error| not_done(&shown, error))?;
                    let serial = match &keyring {
                        Some(keyring) => Some(custody::keep(&shown, name, key.material(), keyring)?),
                        None => None,
                    };
                    Ok((serial, key.blob().clone(), SealedRecord { pcrs, ..record }))
                }
            }
        })?;
        if !self.change.dry_run {
            keep(&self.out, self.form, &blob, &record).inspect_err(|_| {
                if let (Some(serial), Some(keyring)) = (serial, &keyring) {
                    let _ = imara_linux::key_service::unlink(serial, keyring.serial);
                }
            })?;
        }
        Ok(Made { key: serial.map(|serial| (serial, kind)), blob, record })
    }

    fn tell(&self, made: &Made) -> Outcome {
        let Made { key, blob, record } = made;
        let shown = printable_bytes(self.name.as_bytes());
        let place = self.out.place();
        let document_of = json!({
            "name": shown,
            "made": !self.change.dry_run,
            "serial": key.map(|(serial, _)| serial.0),
            "type": key.map(|(_, kind)| kind.name()),
            "blob_file": place,
        });
        let words = blob_words(blob, Some(record));
        let place = place.map(|place| format!("; blob in {place}")).unwrap_or_default();
        let text = match (key, self.change.dry_run) {
            (_, true) => format!("would make {shown}: {words}{place}\n"),
            (Some((serial, kind)), false) => {
                told(&shown, *serial, *kind, &self.into.keyring, &format!("{words}{place}"))
            }
            (None, false) => format!("{shown}: {words}{place}\n"),
        };
        self.out.report(&self.change, text, &document(document_of, blob, Some(record)))
    }
}

/// What was made.
struct Made {
    /// The key, where it went into a keyring.
    key: Option<(KeySerial, KeyType)>,
    blob: TrustedBlob,
    record: SealedRecord,
}

/// How a key is sealed: under which parent, with which options, to which PCRs.
///
/// # Errors
/// The TPM lacks what is asked for.
pub fn sealing<'o>(
    tpm: &mut Tpm,
    parent: Option<ParentName>,
    pcrs: &Pcrs,
    mut options: Options<'o>,
    shown: &str,
) -> Result<(trusted::Parent, Options<'o>, Option<PcrRecord>), Failure> {
    let failure = |error| not_done(shown, error);
    let parent = how::parent(tpm, parent, &options).map_err(failure)?;
    let with_auth = options.blob_auth.is_some_and(|auth: AuthText<'_>| !auth.is_empty());
    let record = pcrs.record(tpm, with_auth)?;
    if let Some(record) = &record {
        let (policy, _) = trusted::policy_of_pcrs(record).map_err(|error| failure(error.into()))?;
        options.policy_digest = trusted::digest_of(&policy, options.hash).map_err(failure)?;
    }
    Ok((parent, options, record))
}

/// Writes the blob, and what is noted beside it.
///
/// # Errors
/// They cannot be written.
pub fn keep(out: &Out, form: Form, blob: &TrustedBlob, record: &SealedRecord) -> Result<(), Failure> {
    let mut blob = blob.clone();
    if let (TrustedBlob::Key(key), Some(pcrs), Form::Pem) = (&mut blob, &record.pcrs, form) {
        // Others' tools read the policy there.
        if let Ok((_, commands)) = trusted::policy_of_pcrs(pcrs) {
            key.policy = commands;
        }
    }
    let record = SealedRecord { sealed: trusted::name_of(&blob), ..record.clone() };
    let beside = out.out.as_deref().map(record_path).unwrap_or_default();
    out.write_with_record(&blob::text(&blob, form), &beside, record.to_text().as_bytes())
}

/// What was made of a blob in the kernel, for people.
pub fn told(shown: &str, serial: KeySerial, kind: KeyType, keyring: &KeyringName, words: &str) -> String {
    match kind {
        KeyType::User => format!(
            "{shown}: key {serial} of type user, {words}\n\
             it is user:{shown} to the keys under it; remove it once they are loaded: imara keyring remove {keyring} {serial}\n"
        ),
        _ => format!("{shown}: key {serial}, {words}\n"),
    }
}
