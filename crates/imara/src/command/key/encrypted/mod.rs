//! `imara key encrypted`: keys that leave the kernel only sealed, one subcommand a file.

mod check;
mod export;
mod load;
mod new;
mod show;
mod update;

pub(crate) use super::kept::read_blob;

use super::secret::read_secret;
use super::trusted::BlobFile;
use crate::command::CommandResult;
use crate::command::keyring::named::{Keyring, serial};
use crate::command::keyring::refusal::{Attempt, refused};
use crate::command::paths::printable_bytes;
use crate::output::Failure;
use imara_engine::keys::encrypted::{Damage, EncryptedKeyError};
use imara_engine::keys::{KeyMaterial, MasterKeyError, MasterKeys};
use imara_format::hash::from_hex;
use imara_format::key::{Errno, KeySerial};
use imara_format::key_blob::encrypted::{Blob, Command, MasterName, MasterType, PayloadFormat};
use imara_linux::key_service::{self as keys, KeyType, errno_of};
use imara_linux::tpm_address::TpmAddress;
use serde_json::{Value, json};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Encrypted keys, as the kernel has them: make, load, give another master key, show, export, check.
///
/// An encrypted key is sealed with a master key (user:NAME or trusted:NAME) whenever it leaves the kernel; what leaves is its
/// blob. With --master FILE a command does without the kernel's key service, as for the image of another machine; FILE holds the
/// master key's bytes, or the blob of a trusted key, which a TPM unseals.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    New(new::New),
    Load(load::Load),
    Update(update::Update),
    Show(show::Show),
    Export(export::Export),
    Check(check::Check),
}

/// The number of the JSON documents' form.
const SCHEMA: u32 = 1;

/// Runs it.
///
/// # Errors
/// What the command could not do.
pub fn run(arguments: Arguments) -> CommandResult {
    match arguments.command {
        Verb::New(new) => new.run(),
        Verb::Load(load) => load.run(),
        Verb::Update(update) => update.run(),
        Verb::Show(show) => show.run(),
        Verb::Export(export) => export.run(),
        Verb::Check(check) => check.run(),
    }
}

/// Parses a blob that came from somewhere.
pub(crate) fn parse_blob(text: &[u8], source: &str) -> Result<Blob, Failure> {
    Blob::parse(text).map_err(|error| {
        Failure::failed(format!("{source}: no blob of an encrypted key: {error} ({})", error.errno()))
            .next("a blob is what `imara key encrypted export` or `keyctl pipe` prints: FORMAT MASTER KEYLEN HEX")
    })
}

/// The TPM that unseals a master key which is given as a trusted key's blob.
#[derive(Default, clap::Args)]
pub(crate) struct Unsealing {
    /// The TPM that unseals --master, where that is a trusted key's blob; without, /dev/tpmrm0
    #[arg(long, value_name = "TPM", requires = "master")]
    tpm: Option<TpmAddress>,
    /// The authorisation value that unseals it is what F holds
    #[arg(long, value_name = "F", requires = "master")]
    master_auth: Option<PathBuf>,
}

/// The one master key whose bytes are in a file, or sealed in it.
pub(crate) struct MasterFile {
    path: PathBuf,
    bytes: KeyMaterial,
}

impl MasterFile {
    /// Reads the bytes; those of a trusted key's blob are unsealed.
    pub(crate) fn read_or_unseal(path: &Path, unsealing: &Unsealing) -> Result<Self, Failure> {
        let bytes = read_secret(path)?;
        let bytes = match BlobFile::of(path, bytes.as_bytes())? {
            None => bytes,
            Some(blob) => blob.unseal(unsealing.tpm.as_ref(), unsealing.master_auth.as_deref())?,
        };
        Ok(Self { path: path.to_owned(), bytes })
    }

    /// What is wrong with the file, where the blob opens with something that is easily mistaken for it.
    fn mistake(&self, blob: &Blob) -> Option<&'static str> {
        let bytes = self.bytes.as_bytes();
        let trimmed = bytes.strip_suffix(b"\n");
        let hex = || {
            let text = std::str::from_utf8(bytes.trim_ascii()).ok()?;
            from_hex(text).ok()
        };
        let opens = |candidate: Vec<u8>| {
            let candidate = KeyMaterial::new(candidate);
            imara_engine::keys::encrypted::EncryptedKey::open(blob, &candidate).is_ok()
        };
        if trimmed.is_some_and(|trimmed| !trimmed.is_empty() && opens(trimmed.to_vec())) {
            return Some("the file ends in a newline that the master key has not");
        }
        if trimmed.is_none() && opens([bytes, b"\n"].concat()) {
            return Some("the master key ends in a newline that the file has not");
        }
        hex().is_some_and(opens).then_some("the file has the master key in hexadecimal, where its bytes are needed")
    }
}

impl MasterKeys for MasterFile {
    fn master_key(&self, _: &MasterName) -> Result<KeyMaterial, MasterKeyError> {
        Ok(KeyMaterial::new(self.bytes.as_bytes().to_vec()))
    }
}

/// Why a command made no key, with the kernel's error number and what to do next.
pub(crate) fn not_made(what: &str, error: &EncryptedKeyError) -> Failure {
    let number = error.errno().map(|errno| format!(" ({errno})")).unwrap_or_default();
    let failure = Failure::failed(format!("{what}: {error}{number}"));
    match error {
        EncryptedKeyError::Command(_) => {
            failure.next("the kernel's words are: [default|ecryptfs|enc32] user:NAME|trusted:NAME KEYLEN")
        }
        EncryptedKeyError::Master(error) => failure.next(master_next(error)),
        EncryptedKeyError::NotAuthentic { damage, .. } => failure.next(damage_next(damage)),
        EncryptedKeyError::MasterType { .. } => {
            failure.next("the kernel cannot do that; make a new key, or seal the key's bytes anew with new --payload")
        }
        EncryptedKeyError::Misplaced { .. } | EncryptedKeyError::Library(_) => failure,
    }
}

fn master_next(error: &MasterKeyError) -> String {
    match (error.master.kind(), error.errno) {
        (MasterType::User, Errno::Enokey) => {
            let name = error.master.description().escape_ascii();
            format!("load it: imara key load; or keyctl padd user {name} @u <FILE")
        }
        (MasterType::User, _) => "see it with `imara keyring show @u`".to_owned(),
        (MasterType::Trusted, _) => "load it into the kernel: imara key load".to_owned(),
    }
}

pub fn damage_next(damage: &Damage) -> &'static str {
    match damage {
        Damage::Format { .. } | Damage::Length { .. } | Damage::MasterType { .. } => "put that word back into the blob",
        Damage::Digit { .. } | Damage::Mac { .. } | Damage::Somewhere => "take the blob from a backup",
        Damage::Unknown => {
            "try the master key that was in force when the blob was written, or another copy of the blob"
        }
    }
}

/// Why the kernel did not take a command, which it says in a number alone.
pub fn refused_by_kernel(
    what: &str,
    command: &[u8],
    description: &[u8],
    keyring: &Keyring,
    error: &std::io::Error,
) -> Failure {
    match errno_of(error) {
        Some(Errno::Einval | Errno::Enokey) => {}
        Some(Errno::Eopnotsupp) if master_kind(command, description) == Some(MasterType::Trusted) => {
            return Failure::lacking(format!(
                "{what}: its master key is a trusted key, and this kernel has none (EOPNOTSUPP)"
            ))
            .next("load it with --master BLOB, the trusted key's blob, which the TPM unseals for that moment; or modprobe trusted");
        }
        _ => return refused(Attempt::Sealed { key: what, keyring }, error),
    }
    // The same command, judged here, where the reason is known.
    match imara_engine::keys::encrypted::EncryptedKey::instantiate(command, description, &keys::KernelMasterKeys) {
        Err(reason) => match (&reason, errno_of(error)) {
            // A trusted key is nobody's but the kernel's: that it is not there is all that can be told.
            (EncryptedKeyError::Master(reason), Some(Errno::Enokey)) => Failure::failed(format!(
                "{what}: the master key {} is not in any keyring that this session leads to (ENOKEY)",
                reason.master
            ))
            .next(master_next(&MasterKeyError { errno: Errno::Enokey, ..reason.clone() })),
            (EncryptedKeyError::Master(reason), _) => Failure::failed(format!(
                "{what}: the blob does not authenticate under the master key {}, or the blob is damaged (EINVAL)",
                reason.master
            ))
            .next(damage_next(&Damage::Unknown)),
            _ => not_made(what, &reason),
        },
        Ok(_) => Failure::failed(format!("{what}: the kernel refuses the command ({})", errno_of(error).map_or("", Errno::name)))
            .next(
                "kernels take the key's bytes in the command only with CONFIG_USER_DECRYPTED_DATA: give them with --payload; \
                 dmesg tells more",
            ),
    }
}

fn master_kind(command: &[u8], description: &[u8]) -> Option<MasterType> {
    match Command::parse(command, description).ok()? {
        Command::New { master, .. } | Command::Update { master } => Some(master.kind()),
        Command::Load(blob) => Some(blob.master.kind()),
    }
}

/// A key of type `encrypted` in the kernel, by number or by description.
pub(crate) fn find_key(name: &OsStr) -> Result<(KeySerial, Vec<u8>), Failure> {
    let _ = keys::reach_user_keyring();
    let shown = printable_bytes(name.as_bytes());
    let found = match serial(name) {
        Some(serial) => Ok(serial),
        None => keys::request(KeyType::Encrypted, name.as_bytes()),
    };
    let told =
        found.and_then(|serial| Ok((serial, keys::describe(serial)?))).map_err(|error| match errno_of(&error) {
            Some(Errno::Enokey) => {
                Failure::failed(format!("{shown}: no encrypted key of that name or number (ENOKEY)"))
                    .next("imara key encrypted show lists them; imara key load loads those of /etc/keys")
            }
            _ => refused(Attempt::Read { key: &shown }, &error),
        })?;
    let (serial, description) = told;
    match description.kind == KeyType::Encrypted.name() {
        true => Ok((serial, description.description)),
        false => Err(Failure::failed(format!(
            "{shown} is a key of type {}, not encrypted",
            printable_bytes(description.kind.as_bytes())
        ))),
    }
}

/// The blob of a key in the kernel.
pub(crate) fn blob_of(serial: KeySerial, shown: &str) -> Result<Blob, Failure> {
    blob_under(serial, shown, None)
}

/// The same of a key whose master key is known by name.
fn blob_under(serial: KeySerial, shown: &str, master: Option<&MasterName>) -> Result<Blob, Failure> {
    let text = keys::read(serial).map_err(|error| {
        let master_is = |what: &str| match master {
            Some(master) => format!("{shown}: its master key {master} {what}"),
            None => format!("{shown} cannot be read: the master key that it is sealed with {what}"),
        };
        match (errno_of(&error), master) {
            (Some(Errno::Enokey), Some(master)) => {
                let errno = Errno::Enokey;
                Failure::failed(master_is("is not in any keyring that this session leads to (ENOKEY)"))
                    .next(master_next(&MasterKeyError { master: master.clone(), errno, what: String::new() }))
            }
            (Some(Errno::Enokey), None) => {
                Failure::failed(master_is("is not in any keyring that this session leads to (ENOKEY)"))
                    .next("load that: imara key load; the key itself is in use without it")
            }
            (Some(Errno::Eopnotsupp), _) => {
                Failure::lacking(master_is("is a trusted key, and this kernel has none (EOPNOTSUPP)"))
                    .next("modprobe trusted; or have a master of type user: imara key trusted new puts one there that the TPM seals")
            }
            _ => refused(Attempt::Read { key: shown }, &error),
        }
    })?;
    parse_blob(text.as_bytes(), shown)
}

/// What a command tells in JSON, with what the blob says.
fn document(told: Value, blob: &Blob) -> Value {
    let mut document = json!({
        "schema": SCHEMA,
        "format": blob.format.unwrap_or(PayloadFormat::Default).name(),
        "before_linux_3_1": blob.format.is_none(),
        "master": blob.master.to_string(),
        "bytes": blob.length.bytes(),
    });
    if let (Some(document), Value::Object(told)) = (document.as_object_mut(), told) {
        document.extend(told);
    }
    document
}

/// What a blob says, for people: `default, 32 bytes under user:kmk`.
fn blob_words(blob: &Blob) -> String {
    let old = if blob.format.is_none() { ", from before Linux 3.1" } else { "" };
    let format = blob.format.unwrap_or(PayloadFormat::Default);
    format!("{format}{old}, {} bytes under {}", blob.length.bytes(), printable_bytes(&blob.master.to_text()))
}
