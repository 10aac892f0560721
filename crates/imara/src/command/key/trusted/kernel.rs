//! The kernel's own trusted keys.
//!
//! The kernel seals and unseals by handles, and opens no policy. So where the parent is a key that is made each time, or the policy
//! is over PCRs, that is prepared in the TPM as the kernel sees it (`/dev/tpm0`), used once, and flushed. It refuses with a number
//! alone; what it means is then looked for in the TPM, without spending a failed authorisation.

use super::blob::BlobFile;
use super::{how, not_done};
use crate::command::keyring::named::Keyring;
use crate::command::keyring::refusal::{Attempt, refused};
use crate::output::Failure;
use imara_engine::keys::KeyMaterial;
use imara_engine::keys::trusted::{self, OWNER, Parent, PolicyKnowledge, TrustedKey, TrustedKeyError};
use imara_engine::tpm::Tpm;
use imara_format::hash::{from_hex, to_hex};
use imara_format::key::{Errno, KeySerial};
use imara_format::key_blob::sealed_key::{SealedKey, TrustedBlob};
use imara_format::key_blob::sealed_record::SealedRecord;
use imara_format::key_blob::trusted::{Command, Options};
use imara_format::tpm::PcrSelection;
use imara_linux::key_service::{self as keys, KeyType, errno_of};
use std::io;

/// A key's name, and where it goes.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    /// Its description.
    pub name: &'a [u8],
    /// The same for people.
    pub shown: &'a str,
    /// The keyring.
    pub keyring: &'a Keyring,
}

/// What a key of the kernel's is sealed with.
enum Sealing<'a> {
    New(Place<'a>, usize),
    Update(KeySerial, &'a str),
}

impl Sealing<'_> {
    fn shown(&self) -> &str {
        match self {
            Self::New(place, _) => place.shown,
            Self::Update(_, shown) => shown,
        }
    }

    /// Has the kernel do it, under the parent that the options name.
    fn ask(&self, options: Options<'_>) -> io::Result<KeySerial> {
        match self {
            Self::New(place, length) => {
                let command = KeyMaterial::new(Command::New { length: *length, options }.to_text());
                keys::add(KeyType::Trusted, Some(place.name), command.as_bytes(), place.keyring.serial)
            }
            Self::Update(serial, _) => {
                let command = KeyMaterial::new(Command::Update { options }.to_text());
                keys::update(*serial, command.as_bytes()).map(|()| *serial)
            }
        }
    }
}

/// Has the kernel make a key.
///
/// # Errors
/// The kernel refuses.
pub fn make(
    tpm: &mut Tpm,
    place: Place<'_>,
    length: usize,
    parent: Parent,
    options: &Options<'_>,
) -> Result<(KeySerial, TrustedBlob, SealedRecord), Failure> {
    seal(tpm, &Sealing::New(place, length), parent, options).inspect_err(|_| {
        if let Ok(key) = keys::search(place.keyring.serial, KeyType::Trusted, place.name) {
            let _ = keys::unlink(key, place.keyring.serial);
        }
    })
}

/// Has the kernel seal a key of its own anew.
///
/// # Errors
/// The kernel refuses.
pub fn update(
    tpm: &mut Tpm,
    (serial, shown): (KeySerial, &str),
    parent: Parent,
    options: &Options<'_>,
) -> Result<(TrustedBlob, SealedRecord), Failure> {
    seal(tpm, &Sealing::Update(serial, shown), parent, options).map(|(_, blob, record)| (blob, record))
}

fn seal(
    tpm: &mut Tpm,
    sealing: &Sealing<'_>,
    parent: Parent,
    options: &Options<'_>,
) -> Result<(KeySerial, TrustedBlob, SealedRecord), Failure> {
    let shown = sealing.shown();
    tpm.leaving_nothing(|tpm| {
        let object = parent.load(tpm).map_err(|error| not_done(shown, error))?;
        let here = Options { parent: Some(object.handle()), ..options.clone() };
        let key = sealing.ask(here).map_err(|error| not_sealed(tpm, sealing, parent, options, &error))?;
        let blob = match blob_of(key, shown)? {
            TrustedBlob::Key(key) => {
                let rsa_parent = parent == Parent::Made(imara_engine::tpm::template::KeyKind::Rsa2048);
                TrustedBlob::Key(SealedKey { parent: parent.handle(), rsa_parent, ..key })
            }
            old @ TrustedBlob::Old { .. } => old,
        };
        Ok((key, blob, trusted::note(tpm, &object)))
    })
}

/// Has the kernel unseal a blob.
///
/// # Errors
/// The kernel refuses.
pub fn load(
    place: Place<'_>,
    file: &BlobFile,
    options: &Options<'_>,
    pcrs: Option<&PcrSelection>,
) -> Result<KeySerial, Failure> {
    let known = PolicyKnowledge { record: file.record.as_ref(), pcrs };
    let add = |blob: Vec<u8>, options: Options<'_>| {
        let command = KeyMaterial::new(Command::Load { blob, options }.to_text());
        keys::add(KeyType::Trusted, Some(place.name), command.as_bytes(), place.keyring.serial)
    };
    let has_policy = !file.blob.public().policy.is_empty() && options.policy_session == 0;
    let plain = match &file.blob {
        _ if has_policy => None,
        TrustedBlob::Key(key) if key.parent == OWNER => None,
        TrustedBlob::Key(key) => Some(key.to_kernel(key.parent)),
        old @ TrustedBlob::Old { .. } => Some(old.to_bytes()),
    };
    if let Some(blob) = plain {
        return add(blob, options.clone()).map_err(|error| {
            let looked = how::target(None).with(|tpm| Ok(not_unsealed(tpm, place, file, options, &known, &error)));
            looked.unwrap_or_else(|_| by_number(place.shown, place.keyring, &error))
        });
    }
    let not_done = |error| not_done(&file.shown, error);
    how::unmanaged().with(|tpm| {
        let parent = trusted::find_parent(tpm, &file.blob, options, known.record).map_err(not_done)?;
        let policy = known.policy(tpm, &file.blob, options).map_err(not_done)?;
        let object = parent.load(tpm).map_err(not_done)?;
        let policy_session = match &policy {
            Some(policy) => tpm.begin_policy(policy)?,
            None => options.policy_session,
        };
        let here = Options { parent: Some(object.handle()), policy_session, ..options.clone() };
        let blob = match &file.blob {
            TrustedBlob::Key(key) => key.to_kernel(object.handle()),
            old @ TrustedBlob::Old { .. } => old.to_bytes(),
        };
        add(blob, here).map_err(|error| not_unsealed(tpm, place, file, options, &known, &error))
    })
}

/// The blob of a key of the kernel's.
///
/// # Errors
/// It cannot be read.
pub fn blob_of(key: KeySerial, shown: &str) -> Result<TrustedBlob, Failure> {
    let text = keys::read(key).map_err(|error| refused(Attempt::Read { key: shown }, &error))?;
    let text = String::from_utf8_lossy(text.as_bytes()).into_owned();
    let blob = from_hex(&text).map_err(|error| error.to_string());
    blob.and_then(|blob| TrustedBlob::parse(&blob).map_err(|error| error.to_string()))
        .map_err(|error| Failure::failed(format!("{shown}: the kernel's blob of it is none: {error}")))
}

/// A blob as the kernel prints it.
pub fn blob_text(blob: &TrustedBlob) -> String {
    to_hex(&blob.to_bytes())
}

/// Why the kernel did not seal, as the TPM tells it.
fn not_sealed(
    tpm: &mut Tpm,
    sealing: &Sealing<'_>,
    parent: Parent,
    options: &Options<'_>,
    error: &io::Error,
) -> Failure {
    let shown = sealing.shown();
    let (number, length) = (errno_of(error), if let Sealing::New(_, length) = sealing { *length } else { 32 });
    if number == Some(Errno::E2big) {
        return Failure::failed(format!(
            "{shown}: the kernel makes no blob that large, of a key of {length} bytes with hash={} (E2BIG)",
            options.hash
        ))
        .next("at most 112 bytes with SHA-256; --tpm /dev/tpmrm0 makes larger ones, which the kernel loads as well");
    }
    let trial = Options { pcr_lock: 0, ..options.clone() };
    match (number, TrustedKey::new(tpm, length, parent, &trial)) {
        (Some(Errno::Eperm | Errno::Einval), Err(reason)) => not_done(shown, reason),
        (Some(Errno::Eperm), Ok(_)) if matches!(sealing, Sealing::Update(..)) => {
            not_done(shown, TrustedKeyError::NotMigratable)
        }
        (Some(Errno::Eperm), Ok(_)) if options.pcr_lock != 0 => {
            Failure::failed(format!("{shown}: pcrlock= needs CAP_SYS_ADMIN (EPERM)"))
        }
        _ => match sealing {
            Sealing::New(place, _) => by_number(shown, place.keyring, error),
            Sealing::Update(..) => refused(Attempt::Read { key: shown }, error),
        },
    }
}

/// Why the kernel did not unseal, as far as it shows without trying authorisation values.
fn not_unsealed(
    tpm: &mut Tpm,
    place: Place<'_>,
    file: &BlobFile,
    options: &Options<'_>,
    known: &PolicyKnowledge<'_>,
    error: &io::Error,
) -> Failure {
    match errno_of(error) {
        Some(Errno::Eperm) => match trusted::why_not_unsealed(tpm, &file.blob, options, known) {
            // The kernel locks the PCR after it has unsealed, and has the same number for a caller who may not.
            TrustedKeyError::WrongAuth { .. } if options.pcr_lock != 0 => {
                Failure::failed(format!("{}: pcrlock= needs CAP_SYS_ADMIN (EPERM)", file.shown)).next(
                    "run it as root, or leave pcrlock= out; where that is not it, the authorisation value is wrong: see --auth",
                )
            }
            reason => not_done(&file.shown, reason),
        },
        Some(Errno::Einval) => Failure::failed(format!("{}: the kernel cannot read it (EINVAL)", file.shown))
            .next("a blob from before Linux 5.13 needs keyhandle=; dmesg tells more"),
        _ => by_number(place.shown, place.keyring, error),
    }
}

fn by_number(shown: &str, keyring: &Keyring, error: &io::Error) -> Failure {
    match errno_of(error) {
        Some(number @ (Errno::Eperm | Errno::Einval)) => {
            Failure::failed(format!("{shown}: the kernel refuses ({number})")).next("dmesg tells what the TPM said")
        }
        _ => refused(Attempt::Sealed { key: shown, keyring }, error),
    }
}
