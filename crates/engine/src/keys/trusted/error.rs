//! Why a trusted key is not made or not unsealed. The kernel says EPERM to most of it and leaves the reason in its log.

use crate::crypto::KeyError;
use crate::keys::Errno;
use crate::tpm::{Difference, Lockout, Object, PolicyError, ResponseCode, Tpm, TpmError};
use imara_format::hash::HashAlgorithm;
use imara_format::key_blob::sealed_key::SealedKeyError;
use imara_format::key_blob::trusted::{CommandError, LONGEST_KEY, SHORTEST_KEY};
use imara_format::tpm::{ObjectAttributes, PcrSelection, PublicArea};
use std::fmt;
use tpm2_protocol::data::TpmRcBase;

/// Why a trusted key is not made or not unsealed.
#[derive(Debug, thiserror::Error)]
pub enum TrustedKeyError {
    /// The text is wrong.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// The blob is none.
    #[error(transparent)]
    Blob(#[from] SealedKeyError),
    /// A hash that no TPM has.
    #[error("hash={0} is none of sha1, sha256, sha384, sha512 and sm3, which a TPM can have")]
    Hash(HashAlgorithm),
    /// A hash that this TPM has not.
    #[error("the TPM has no {0} to name objects with")]
    HashOfTpm(HashAlgorithm),
    /// No parent is named.
    #[error("no parent key is named (keyhandle=)")]
    NoParent,
    /// Nothing is there.
    #[error("there is no parent key at {handle:#010x}; persistent objects of this TPM: {}", Handles(there))]
    ParentMissing {
        /// The handle.
        handle: u32,
        /// Those that there are.
        there: Vec<u32>,
    },
    /// Something else is there.
    #[error("at {handle:#010x} is {found}, which is no storage key and cannot seal")]
    NotStorage {
        /// The handle.
        handle: u32,
        /// What is there.
        found: String,
    },
    /// The parent did not make the blob, or not this one.
    #[error("the parent key {parent:#010x} does not open the blob: {cause}")]
    NotOpened {
        /// The parent's handle.
        parent: u32,
        /// What can be told of the reason.
        cause: Mismatch,
    },
    /// A key cannot be made each time.
    #[error("the owner hierarchy has an authorisation value, so no key can be made from its seed each time")]
    OwnerAuth,
    /// A wrong authorisation value.
    #[error("the authorisation value {whose} is wrong{}", Tries(*lockout))]
    WrongAuth {
        /// Of which key.
        whose: &'static str,
        /// How near the TPM is to a lockout, where this failure counts.
        lockout: Option<Lockout>,
    },
    /// Too many of them.
    #[error("the TPM refuses everything that failed authorisations count for{}", Waiting(*.0))]
    LockedOut(Option<Lockout>),
    /// PCRs have other values than the key is sealed to.
    #[error("{}", Differences(.0))]
    Pcrs(Vec<Difference>),
    /// The same, and which is not known.
    #[error("one of the PCRs {0} has another value than the key is sealed to, or its policy asks for more than these")]
    SomePcr(PcrSelection),
    /// The policy is only known by its digest.
    #[error("the key is sealed by a policy, and nothing is known of that policy but its digest")]
    PolicyUnknown,
    /// The TPM says that the policy is not met.
    #[error("the policy that the key is sealed by is not met ({0})")]
    PolicyNotMet(ResponseCode),
    /// A session that somebody else has begun.
    #[error(
        "the session {0:#010x} does not satisfy the policy: it is not loaded, was used before, or has not its digest"
    )]
    SessionNotEnough(u32),
    /// The policy noted beside the blob is not the blob's.
    #[error("the record beside the blob is that of another blob: its policy has another digest")]
    RecordOfAnother,
    /// A policy over PCRs is by SHA-256 here.
    #[error("a policy over PCRs needs hash=sha256, not {0}")]
    PolicyHash(HashAlgorithm),
    /// Values that make no policy.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// A key that stays as it is.
    #[error("the key was made with migratable=0 and cannot be sealed anew")]
    NotMigratable,
    /// Too few or too many bytes.
    #[error("a trusted key has {SHORTEST_KEY} to {LONGEST_KEY} bytes, this one {0}")]
    Length(usize),
    /// A PCR that no TPM has.
    #[error("pcrlock={0} is no PCR; there are 0 to 23")]
    NoPcr(u32),
    /// The TPM refused, or could not be reached.
    #[error(transparent)]
    Tpm(#[from] TpmError),
    /// The library failed.
    #[error(transparent)]
    Library(KeyError),
}

/// What can be told of why a parent does not open a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mismatch {
    /// It is the parent that made it: the blob is not what it made.
    Damaged,
    /// The same TPM has another key there.
    OtherParent,
    /// It is another TPM.
    OtherTpm,
    /// One of these two.
    OtherParentOrTpm,
    /// Nothing was noted when it was sealed.
    Unknown,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Damaged => "it is the key that sealed it, so the blob was changed since",
            Self::OtherParent => {
                "it was sealed in this TPM by another key: the TPM was cleared since, or its storage key replaced"
            }
            Self::OtherTpm => "it was sealed in another TPM",
            Self::OtherParentOrTpm => "another key sealed it: the TPM was cleared since, or it is another TPM",
            Self::Unknown => "the blob was changed, or sealed in another TPM, or the TPM was cleared since",
        })
    }
}

impl TrustedKeyError {
    /// The error number that the kernel's key type gives; none where nothing in the kernel corresponds.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Command(error) => Some(error.errno()),
            Self::Blob(_) | Self::Hash(_) | Self::HashOfTpm(_) | Self::NoParent | Self::NoPcr(_) => Some(Errno::Einval),
            Self::ParentMissing { .. }
            | Self::NotStorage { .. }
            | Self::NotOpened { .. }
            | Self::OwnerAuth
            | Self::WrongAuth { .. }
            | Self::LockedOut(_)
            | Self::Pcrs(_)
            | Self::SomePcr(_)
            | Self::PolicyUnknown
            | Self::PolicyNotMet(_)
            | Self::SessionNotEnough(_)
            | Self::NotMigratable
            | Self::Tpm(TpmError::Refused { .. }) => Some(Errno::Eperm),
            Self::RecordOfAnother | Self::PolicyHash(_) | Self::Policy(_) | Self::Length(_) => None,
            Self::Tpm(_) | Self::Library(_) => None,
        }
    }
}

/// What it means that no primary key is made.
pub(super) fn making(error: TpmError) -> TrustedKeyError {
    match &error {
        TpmError::Refused { code, .. }
            if matches!(code.base(), Some(TpmRcBase::AuthFail | TpmRcBase::BadAuth | TpmRcBase::AuthMissing)) =>
        {
            TrustedKeyError::OwnerAuth
        }
        _ => error.into(),
    }
}

/// Whether a parent says that a blob is none of its own.
pub(super) fn is_integrity(code: ResponseCode) -> bool {
    code.base() == Some(TpmRcBase::Integrity)
}

/// What it means that the TPM does not seal.
pub(super) fn sealing(tpm: &mut Tpm, error: TpmError, parent: &Object, hash: HashAlgorithm) -> TrustedKeyError {
    let TpmError::Refused { code, .. } = &error else { return error.into() };
    match code.base() {
        Some(TpmRcBase::Hash) => TrustedKeyError::HashOfTpm(hash),
        Some(TpmRcBase::AuthFail | TpmRcBase::BadAuth) => wrong_auth(tpm, OF_PARENT, parent.public()),
        Some(TpmRcBase::Lockout) => TrustedKeyError::LockedOut(tpm.lockout().ok()),
        _ => error.into(),
    }
}

/// What it means that the TPM does not unseal.
pub(super) fn unsealing(tpm: &mut Tpm, error: TpmError, public: &PublicArea) -> TrustedKeyError {
    let TpmError::Refused { code, command } = &error else { return error.into() };
    let code = *code;
    match code.base() {
        Some(TpmRcBase::AuthFail | TpmRcBase::BadAuth) if *command == "TPM2_Load" => {
            TrustedKeyError::WrongAuth { whose: OF_PARENT, lockout: None }
        }
        Some(TpmRcBase::AuthFail | TpmRcBase::BadAuth) => wrong_auth(tpm, OF_KEY, public),
        Some(TpmRcBase::Lockout) => TrustedKeyError::LockedOut(tpm.lockout().ok()),
        Some(TpmRcBase::PolicyFail | TpmRcBase::Value | TpmRcBase::AuthUnavailable) if *command != "TPM2_Load" => {
            TrustedKeyError::PolicyNotMet(code)
        }
        _ => error.into(),
    }
}

const OF_PARENT: &str = "of the parent key (keyauth=)";
pub(super) const OF_KEY: &str = "of the key (blobauth=)";

pub(super) fn wrong_auth(tpm: &mut Tpm, whose: &'static str, public: &PublicArea) -> TrustedKeyError {
    let counts = !public.attributes.contains(ObjectAttributes::NO_DA);
    TrustedKeyError::WrongAuth { whose, lockout: if counts { tpm.lockout().ok() } else { None } }
}

struct Handles<'a>(&'a [u32]);

impl fmt::Display for Handles<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let handles: Vec<String> = self.0.iter().map(|handle| format!("{handle:#010x}")).collect();
        f.write_str(if handles.is_empty() { "none" } else { "" })?;
        f.write_str(&handles.join(", "))
    }
}

struct Tries(Option<Lockout>);

impl fmt::Display for Tries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => Ok(()),
            Some(Lockout { counter, max_tries, .. }) => {
                write!(f, "; the TPM has counted {counter} such failures and locks itself at {max_tries}")
            }
        }
    }
}

struct Waiting(Option<Lockout>);

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => Ok(()),
            Some(Lockout { counter, max_tries, interval, .. }) => {
                write!(f, ": it has counted {counter} of them, {max_tries} lock it; ")?;
                match interval {
                    0 => f.write_str("it forgets none of them by itself"),
                    seconds => write!(f, "it forgets one every {seconds} s"),
                }
            }
        }
    }
}

struct Differences<'a>(&'a [Difference]);

impl fmt::Display for Differences<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, Difference { bank, pcr, wanted, found }) in self.0.iter().enumerate() {
            let wanted: Vec<String> = wanted.iter().map(|value| value.to_hex()).collect();
            let separator = if place == 0 { "" } else { "; " };
            write!(f, "{separator}PCR {bank}:{pcr} is {}, sealed to {}", found.to_hex(), wanted.join(" or "))?;
        }
        Ok(())
    }
}
