//! Does a file's label match its content?
//!
//! The order of the questions is the kernel's, and so are the statuses and the words for each cause, which are what its
//! audit records say. EVM is asked once there is a label, and before that is looked at: *unknown* is what it answers without
//! a key, and lets the appraisal go on.
//!
//! Source: `ima_appraise_measurement`, `xattr_verify`, security/integrity/ima/ima_appraise.c.

pub use crate::integrity_status::IntegrityStatus;
use crate::keyring::{Keyring, VerifyError};
use crate::label::v3_digest;
use imara_format::hash::Digest;
use imara_format::label;
use imara_format::signature::{Signature, SignatureType};
use std::fmt;

/// Why an appraisal did not pass, in the kernel's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// There is no `security.ima`.
    MissingHash,
    /// A signature is needed and there is none.
    ImaSignatureRequired,
    /// An fs-verity signature is needed and there is none.
    VeritySignatureRequired,
    /// EVM has no label for the metadata.
    MissingHmac,
    /// EVM's label does not match the metadata, or cannot be checked.
    InvalidHmac,
    /// EVM's portable signature does not match the metadata.
    InvalidFailImmutable,
    /// The digest in the label is not the content's.
    InvalidHash,
    /// The signature does not verify, or its key is not known.
    InvalidSignature,
    /// The signature's version does not belong to its type.
    InvalidSignatureVersion,
    /// The fs-verity signature does not verify.
    InvalidVeritySignature,
    /// The label's type is unknown.
    UnknownImaData,
    /// `security.ima` could not be read, or not judged.
    Unknown,
    /// The label's hash algorithm is not one that the rule allows.
    DeniedHashAlgorithm,
    /// A label's hash algorithm is one that nobody here computes, and was to be written.
    UnavailableHashAlgorithm,
    /// The content is on the block list.
    Blocked,
    /// The content could not be read.
    CollectFailed,
    /// The rule goes by the fs-verity digest, and the file has none.
    NoVerityDigest,
    /// The fs-verity digest could not be had, or is in an algorithm that nobody here knows.
    InvalidVerityDigest,
    /// The measurement could not be recorded.
    MeasureFailed,
    /// A signed file is opened for writing.
    Immutable,
    /// Somebody can write to what is to be run, or did while it was judged.
    Writers,
    /// Nothing moved on the decision for longer than it may take.
    Overdue,
    /// The kernel was to use it without asking, and nobody had judged it for that.
    NoVerdict,
    /// What is mapped already was to be made executable, and lacks what it needs for that.
    FailedMprotect,
    /// It is the guard's own.
    Protected,
}

impl Cause {
    /// Whether what is only measured goes on all the same, without an entry, as in the kernel.
    pub const fn is_nothing_to_measure(self) -> bool {
        matches!(self, Self::NoVerityDigest | Self::InvalidVerityDigest)
    }

    /// The words of the kernel's audit records.
    pub const fn words(self) -> &'static str {
        match self {
            Self::MissingHash => "missing-hash",
            Self::ImaSignatureRequired => "IMA-signature-required",
            Self::VeritySignatureRequired => "verity-signature-required",
            Self::MissingHmac => "missing-HMAC",
            Self::InvalidHmac => "invalid-HMAC",
            Self::InvalidFailImmutable => "invalid-fail-immutable",
            Self::InvalidHash => "invalid-hash",
            Self::InvalidSignature => "invalid-signature",
            Self::InvalidSignatureVersion => "invalid-signature-version",
            Self::InvalidVeritySignature => "invalid-verity-signature",
            Self::UnknownImaData => "unknown-ima-data",
            Self::Unknown => "unknown",
            Self::DeniedHashAlgorithm => "denied-hash-algorithm",
            Self::UnavailableHashAlgorithm => "unavailable-hash-algorithm",
            Self::Blocked => "blacklisted-hash",
            Self::CollectFailed => "failed",
            Self::NoVerityDigest => "no-verity-digest",
            Self::InvalidVerityDigest => "invalid-verity-digest",
            Self::MeasureFailed => "measurement-failed",
            Self::Immutable => "signed-file-opened-for-writing",
            Self::Writers => "mmapped_writers",
            Self::Overdue => "no-decision-in-time",
            Self::NoVerdict => "no-verdict",
            Self::FailedMprotect => "failed-mprotect",
            Self::Protected => "protected",
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.words())
    }
}

/// What a rule asks of the label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Requirement {
    /// `appraise_type=imasig`: a digest is not enough.
    pub signature: bool,
    /// `digest_type=verity`.
    pub verity: bool,
}

/// An appraisal's result.
#[derive(Clone, Debug, PartialEq)]
pub struct Appraisal {
    /// The status.
    pub status: IntegrityStatus,
    /// Why it is not [`IntegrityStatus::Pass`].
    pub cause: Option<Cause>,
    /// What the key said, where a signature was tried.
    pub signature_error: Option<VerifyError>,
    /// The digest by which the content is on the block list.
    pub blocked: Option<Digest>,
    /// Whether the label is a signature, or EVM's is a portable one: such a file may not be opened for writing.
    pub immutable: bool,
    /// Whether a fix may write a digest label in place of this one.
    pub fixable: bool,
}

impl Appraisal {
    const fn pass(immutable: bool) -> Self {
        let (cause, signature_error, blocked) = (None, None, None);
        Self { status: IntegrityStatus::Pass, cause, signature_error, blocked, immutable, fixable: false }
    }

    const fn not(status: IntegrityStatus, cause: Cause, immutable: bool) -> Self {
        Self { status, cause: Some(cause), signature_error: None, blocked: None, immutable, fixable: true }
    }

    /// Of a file without the fs-verity digest that the rule goes by: its label is not looked at.
    pub fn without_verity() -> Self {
        let appraisal = Self::not(IntegrityStatus::Unknown, Cause::NoVerityDigest, false);
        Self { fixable: false, ..appraisal }
    }

    /// Of a content that is on the block list by `digest`: no label makes up for that, and none is written.
    pub fn blocked(digest: Digest) -> Self {
        let appraisal = Self::not(IntegrityStatus::Fail, Cause::Blocked, false);
        Self { blocked: Some(digest), fixable: false, ..appraisal }
    }
}

const SIGNATURE: u8 = 3;
const VERITY_SIGNATURE: u8 = 6;

/// Appraises content whose digest is `digest` by its label.
///
/// `new` says that the very open that asks has created the file; such a file has no label yet and passes, unless a
/// signature is required and it has content. `evm` is what EVM makes of the file: asked only where there is a label.
pub fn appraise(
    label: Option<&[u8]>,
    digest: &Digest,
    empty: bool,
    new: bool,
    requirement: Requirement,
    keys: &Keyring,
    evm: impl FnOnce() -> IntegrityStatus,
) -> Appraisal {
    let needed = match requirement {
        Requirement { signature: true, verity: true } => Some(Cause::VeritySignatureRequired),
        Requirement { signature: true, verity: false } => Some(Cause::ImaSignatureRequired),
        Requirement { signature: false, verity: _ } => None,
    };
    let Some(label) = label.filter(|label| !label.is_empty()) else {
        if new && (needed.is_none() || empty) {
            return Appraisal::pass(false);
        }
        return Appraisal::not(IntegrityStatus::NoLabel, needed.unwrap_or(Cause::MissingHash), false);
    };
    // The kernel's fix mode never replaces a signature of type 3.
    let fixable = label[0] != SIGNATURE;
    let evm = evm();
    let stopped = match evm {
        IntegrityStatus::NoLabel | IntegrityStatus::NoXattrs => Some((Cause::MissingHmac, false)),
        IntegrityStatus::FailImmutable => Some((Cause::InvalidFailImmutable, true)),
        IntegrityStatus::Fail => Some((Cause::InvalidHmac, false)),
        IntegrityStatus::Pass | IntegrityStatus::PassImmutable | IntegrityStatus::Unknown => None,
    };
    if let Some((cause, immutable)) = stopped {
        return Appraisal { fixable, ..Appraisal::not(evm, cause, immutable) };
    }
    let portable = evm == IntegrityStatus::PassImmutable;
    if let Some(expected) = label::digest_part(label) {
        return match needed {
            Some(cause) if !portable => Appraisal::not(IntegrityStatus::Fail, cause, false),
            _ if expected.starts_with(digest.as_bytes()) => Appraisal::pass(portable),
            _ => Appraisal::not(IntegrityStatus::Fail, Cause::InvalidHash, portable),
        };
    }
    let appraisal = match label[0] {
        SIGNATURE if requirement.signature && requirement.verity => {
            Appraisal::not(IntegrityStatus::Fail, Cause::VeritySignatureRequired, true)
        }
        SIGNATURE => verify(label, digest, keys),
        VERITY_SIGNATURE if requirement.signature && !requirement.verity => {
            Appraisal::not(IntegrityStatus::Fail, Cause::ImaSignatureRequired, true)
        }
        VERITY_SIGNATURE if label.get(1) != Some(&3) => {
            Appraisal::not(IntegrityStatus::Fail, Cause::InvalidSignatureVersion, true)
        }
        VERITY_SIGNATURE => verify_verity(label, digest, keys),
        _ => Appraisal::not(IntegrityStatus::Unknown, Cause::UnknownImaData, false),
    };
    Appraisal { fixable, ..appraisal }
}

fn verify(label: &[u8], digest: &Digest, keys: &Keyring) -> Appraisal {
    if label.get(1).is_some_and(|version| *version >= 3) {
        return Appraisal::not(IntegrityStatus::Fail, Cause::InvalidSignatureVersion, true);
    }
    if label.get(1) == Some(&0) {
        // No signature support at all: what the kernel answers for a version that never was.
        return Appraisal::not(IntegrityStatus::Unknown, Cause::Unknown, true);
    }
    match Signature::parse(label) {
        Ok(Signature::V2(signature)) => match keys.verify(&signature, digest) {
            Ok(_) => Appraisal::pass(true),
            Err(error) => Appraisal {
                signature_error: Some(error),
                ..Appraisal::not(IntegrityStatus::Fail, Cause::InvalidSignature, true)
            },
        },
        // Version 1 needs keys of another kind, which no keyring of ours holds.
        Ok(Signature::V1(_) | Signature::V3(_)) | Err(_) => {
            Appraisal::not(IntegrityStatus::Fail, Cause::InvalidSignature, true)
        }
    }
}

/// A version 3 signature over a structure that holds the digest: fs-verity's where the rule goes by that. The content's own could be in
/// it as well, and is taken, as in the kernel.
fn verify_verity(label: &[u8], digest: &Digest, keys: &Keyring) -> Appraisal {
    let failed = Appraisal::not(IntegrityStatus::Fail, Cause::InvalidVeritySignature, true);
    let (Ok(Signature::V3(signature)), Ok(message)) =
        (Signature::parse(label), v3_digest(SignatureType::Verity, digest))
    else {
        return failed;
    };
    match keys.verify(&signature, &message) {
        Ok(_) => Appraisal::pass(true),
        Err(error) => Appraisal { signature_error: Some(error), ..failed },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::{self, KeyType, SigningKey};
    use imara_format::hash::HashAlgorithm::{self, Sha1, Sha256};

    fn digest(algorithm: HashAlgorithm, content: &[u8]) -> Digest {
        crypto::hash(algorithm, &[content]).unwrap()
    }

    #[test]
    fn the_verdict_on_each_kind_of_label_is_the_kernels() {
        let (content, other) = (digest(Sha256, b"content"), digest(Sha256, b"other"));
        let key = SigningKey::generate(KeyType::P256).unwrap();
        let stranger = SigningKey::generate(KeyType::P256).unwrap();
        let keys: Keyring = [key.public_key().unwrap()].into_iter().collect();
        let sign = |digest, key| crate::label::sign(digest, key, None).unwrap();
        let sign_verity = |digest, key| crate::label::sign_verity(digest, key, None).unwrap();
        let hash = Requirement::default();
        let imasig = Requirement { signature: true, verity: false };
        let sigv3 = Requirement { signature: true, verity: true };
        let good = sign(&content, &key);
        let version = |number| [&good[..1], &[number], &good[2..]].concat();
        let short = |label: &[u8]| label[..label.len() - 1].to_vec();
        let digest_label = label::encode_digest(&content);
        let padded = [digest_label.as_slice(), &[7; 9]].concat();
        let pass = (IntegrityStatus::Pass, None);
        let fail = |cause| (IntegrityStatus::Fail, Some(cause));
        use Cause as C;
        for (name, label, requirement, expected) in [
            ("no label", None, hash, (IntegrityStatus::NoLabel, Some(C::MissingHash))),
            ("empty label", Some(vec![]), hash, (IntegrityStatus::NoLabel, Some(C::MissingHash))),
            ("no label, imasig", None, imasig, (IntegrityStatus::NoLabel, Some(C::ImaSignatureRequired))),
            ("no label, sigv3", None, sigv3, (IntegrityStatus::NoLabel, Some(C::VeritySignatureRequired))),
            ("good hash", Some(digest_label.clone()), hash, pass),
            ("good hash with bytes behind it", Some(padded), hash, pass),
            ("good hash, imasig", Some(digest_label.clone()), imasig, fail(C::ImaSignatureRequired)),
            ("good hash, sigv3", Some(digest_label.clone()), sigv3, fail(C::VeritySignatureRequired)),
            ("other hash", Some(label::encode_digest(&other)), hash, fail(C::InvalidHash)),
            ("cut hash", Some(short(&digest_label)), hash, fail(C::InvalidHash)),
            ("hash type alone", Some(vec![4]), hash, fail(C::InvalidHash)),
            ("good signature", Some(good.clone()), hash, pass),
            ("good signature, imasig", Some(good.clone()), imasig, pass),
            ("good signature, sigv3", Some(good.clone()), sigv3, fail(C::VeritySignatureRequired)),
            ("signature of other content", Some(sign(&other, &key)), imasig, fail(C::InvalidSignature)),
            ("a stranger's signature", Some(sign(&content, &stranger)), imasig, fail(C::InvalidSignature)),
            ("cut signature", Some(short(&good)), imasig, fail(C::InvalidSignature)),
            ("signature type alone", Some(vec![3]), imasig, fail(C::InvalidSignature)),
            ("version 3", Some(version(3)), imasig, fail(C::InvalidSignatureVersion)),
            ("version 255", Some(version(255)), hash, fail(C::InvalidSignatureVersion)),
            ("version 1", Some(version(1)), hash, fail(C::InvalidSignature)),
            ("version 0", Some(version(0)), hash, (IntegrityStatus::Unknown, Some(C::Unknown))),
            ("verity signature, imasig", Some(vec![6, 3, 4]), imasig, fail(C::ImaSignatureRequired)),
            ("verity signature", Some(vec![6, 3, 4]), hash, fail(C::InvalidVeritySignature)),
            ("verity signature, sigv3", Some(sign_verity(&content, &key)), sigv3, pass),
            ("verity signature of the content, any", Some(sign_verity(&content, &key)), hash, pass),
            ("verity signature of other", Some(sign_verity(&other, &key)), sigv3, fail(C::InvalidVeritySignature)),
            ("a stranger's for verity", Some(sign_verity(&content, &stranger)), sigv3, fail(C::InvalidVeritySignature)),
            ("cut verity signature", Some(short(&sign_verity(&content, &key))), sigv3, fail(C::InvalidVeritySignature)),
            ("verity signature, version 2", Some(vec![6, 2, 4]), hash, fail(C::InvalidSignatureVersion)),
            ("EVM's HMAC", Some(vec![2; 21]), hash, (IntegrityStatus::Unknown, Some(C::UnknownImaData))),
            ("unknown type", Some(vec![0]), hash, (IntegrityStatus::Unknown, Some(C::UnknownImaData))),
        ] {
            let appraisal =
                appraise(label.as_deref(), &content, false, false, requirement, &keys, || IntegrityStatus::Unknown);
            assert_eq!((appraisal.status, appraisal.cause), expected, "{name}");
            let signature = label.as_ref().is_some_and(|label| matches!(label.first(), Some(3 | 6)));
            assert_eq!(appraisal.immutable, signature, "{name}");
        }
    }

    #[test]
    fn a_file_that_the_open_itself_made_passes_unless_a_signature_is_due_for_content() {
        let (content, keys) = (digest(Sha1, b""), Keyring::new());
        let imasig = Requirement { signature: true, verity: false };
        for (requirement, empty, expected) in [
            (Requirement::default(), false, IntegrityStatus::Pass),
            (imasig, true, IntegrityStatus::Pass),
            (imasig, false, IntegrityStatus::NoLabel),
        ] {
            assert_eq!(
                appraise(None, &content, empty, true, requirement, &keys, || panic!("EVM is not asked")).status,
                expected
            );
        }
    }

    #[test]
    fn what_evm_says_counts_as_in_the_kernel() {
        let content = digest(Sha256, b"content");
        let (keys, good) = (Keyring::new(), label::encode_digest(&content));
        let wrong = label::encode_digest(&digest(Sha256, b"other"));
        let hash = Requirement::default();
        let imasig = Requirement { signature: true, verity: false };
        use {Cause as C, IntegrityStatus as S};
        for (evm, label, requirement, cause, immutable) in [
            (S::Pass, &good, hash, None, false),
            (S::Pass, &good, imasig, Some(C::ImaSignatureRequired), false),
            (S::Unknown, &good, hash, None, false),
            (S::PassImmutable, &good, hash, None, true),
            (S::PassImmutable, &good, imasig, None, true),
            (S::PassImmutable, &wrong, imasig, Some(C::InvalidHash), true),
            (S::NoLabel, &good, hash, Some(C::MissingHmac), false),
            (S::NoXattrs, &good, hash, Some(C::MissingHmac), false),
            (S::Fail, &good, hash, Some(C::InvalidHmac), false),
            (S::Fail, &good, imasig, Some(C::InvalidHmac), false),
            (S::FailImmutable, &good, hash, Some(C::InvalidFailImmutable), true),
        ] {
            let appraisal = appraise(Some(label), &content, false, false, requirement, &keys, || evm);
            assert_eq!((appraisal.cause, appraisal.immutable), (cause, immutable), "{evm}, {requirement:?}");
            assert_eq!(appraisal.status == S::Pass, cause.is_none());
        }
    }

    #[test]
    fn a_fix_replaces_anything_but_a_signature() {
        let (content, keys) = (digest(Sha1, b""), Keyring::new());
        for (label, fixable) in
            [(None, true), (Some(&[1; 21][..]), true), (Some(&[6, 3]), true), (Some(&[3, 2]), false)]
        {
            let appraisal =
                appraise(label, &content, false, false, Requirement::default(), &keys, || IntegrityStatus::Pass);
            assert_eq!(appraisal.fixable, fixable, "{label:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_label_is_judged_without_a_panic_and_never_passes_by_chance(label: Vec<u8>) {
            let content = digest(Sha256, b"content");
            let keys = Keyring::new();
            let appraisal = appraise(Some(&label), &content, false, false, Requirement::default(), &keys, || IntegrityStatus::Unknown);
            assert_ne!(appraisal.status, IntegrityStatus::Pass);
        }
    }
}
