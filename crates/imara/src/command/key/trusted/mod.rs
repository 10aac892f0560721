//! `imara key trusted`: keys that a TPM seals, one subcommand a file.

pub(super) mod blob;
pub(super) mod custody;
pub(super) mod how;
pub(super) mod kernel;
mod load;
mod new;
mod show;
mod update;

pub use blob::BlobFile;

use crate::command::CommandResult;
use crate::output::{Failure, warn};
use imara_engine::keys::trusted::{Mismatch, TrustedKeyError};
use imara_engine::tpm::TpmError;
use imara_format::key_blob::trusted::CommandError;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

/// Trusted keys, as the kernel has them: random bytes that leave it only sealed by a TPM 2.0. Make, load, seal anew, show.
///
/// Where the kernel has the type `trusted`, it makes and keeps the keys. Where it has not (Debian's have not), or with
/// --tpm, the TPM is asked from here, in encrypted sessions, and the key is put into the keyring as one of type `user`, which
/// nobody can change: `user:NAME` is then the master key of encrypted keys, where `trusted:NAME` would be. Whoever can find it can
/// read it: remove it once the keys under it are loaded (imara keyring remove). Blobs are the same in both ways.
///
/// Beside a blob F, F.sealed notes which TPM and parent key sealed it and to which PCR values, so that it can be told why it is
/// not unsealed. Nothing in either is secret.
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
    }
}

/// What is taken, as the kernel takes it, and does not do what its name says.
fn warn_of_ignored(words: &[OsString]) {
    if words.iter().any(|word| word.as_bytes().starts_with(b"pcrinfo=")) {
        warn("pcrinfo= is of a TPM 1.2 and counts for nothing: --pcrs seals to PCRs");
    }
}

/// The kernel's words are wrong.
fn wrong_words(what: &str, error: &CommandError) -> Failure {
    Failure::failed(format!("{what}: {error} ({})", error.errno()))
        .next("the kernel's words are: KEYLEN [keyhandle=H] [blobauth=…] [pcrlock=N] [migratable=0|1] [hash=…] [policydigest=…]")
}

/// Why a key was not sealed or unsealed, with the kernel's error number and what to do next.
pub(super) fn not_done(what: &str, error: TrustedKeyError) -> Failure {
    let number = error.errno().map(|errno| format!(" ({errno})")).unwrap_or_default();
    let next = next(&error);
    match error {
        TrustedKeyError::Tpm(error @ TpmError::Refused { .. }) => {
            Failure { what: format!("{what}: {error}{number}"), ..Failure::from(error) }
        }
        TrustedKeyError::Tpm(error) => error.into(),
        TrustedKeyError::Command(error) => wrong_words(what, &error),
        error => Failure::failed(format!("{what}: {error}{number}")).next(next),
    }
}

fn next(error: &TrustedKeyError) -> &'static str {
    match error {
        TrustedKeyError::NoParent => "name it: keyhandle=0x81000001, or --parent srk-p256",
        TrustedKeyError::ParentMissing { .. } => {
            "imara tpm srk create keeps a storage root key there; or take one that is there, or --parent srk-p256, which needs none"
        }
        TrustedKeyError::OwnerAuth => {
            "keep one in the TPM, which needs the value once: imara tpm srk create --owner-auth FILE"
        }
        TrustedKeyError::NotStorage { .. } => "name a storage key: imara tpm status lists what is kept in the TPM",
        TrustedKeyError::NotOpened { cause: Mismatch::Damaged, .. } => "take the blob from a backup",
        TrustedKeyError::NotOpened { cause: Mismatch::OtherTpm, .. } => {
            "unseal it on the machine it was made on; here, make another key: imara key trusted new"
        }
        TrustedKeyError::NotOpened { .. } => {
            "what a cleared TPM has sealed is lost: make another key with imara key trusted new, and what it is the master of anew"
        }
        TrustedKeyError::WrongAuth { lockout: Some(_), .. } => {
            "give the right value, with --auth FILE; do not guess: a locked TPM refuses other keys' users as well"
        }
        TrustedKeyError::WrongAuth { lockout: None, .. } => "give the right value, with --auth or --parent-auth FILE",
        TrustedKeyError::LockedOut(_) => {
            "wait; or, who has the lockout hierarchy's authorisation value: tpm2_dictionarylockout --clear-lockout"
        }
        TrustedKeyError::Pcrs(_) | TrustedKeyError::SomePcr(_) => {
            "boot what it is sealed to, and seal it there ahead of the change: imara key trusted update --pcrs … --pcrs-after …"
        }
        TrustedKeyError::PolicyUnknown => {
            "say which PCRs it is over with --pcrs; or satisfy it in a session of your own, policyhandle=H"
        }
        TrustedKeyError::SessionNotEnough(_) => {
            "begin it on /dev/tpm0, not /dev/tpmrm0, and leave it loaded; it serves once"
        }
        TrustedKeyError::PolicyNotMet(_) => "imara key trusted show tells what is known of its policy",
        TrustedKeyError::RecordOfAnother => "put the blob's own record beside it; or take it away, and say --pcrs",
        TrustedKeyError::NotMigratable => "such a key stays as it is, also in the kernel; make another one",
        TrustedKeyError::HashOfTpm(_) => "leave hash= out: every TPM has SHA-256",
        TrustedKeyError::Command(_)
        | TrustedKeyError::Blob(_)
        | TrustedKeyError::Hash(_)
        | TrustedKeyError::PolicyHash(_)
        | TrustedKeyError::Policy(_)
        | TrustedKeyError::Length(_)
        | TrustedKeyError::NoPcr(_)
        | TrustedKeyError::Tpm(_)
        | TrustedKeyError::Library(_) => "",
    }
}
