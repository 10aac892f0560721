//! What EVM makes of a file's label.
//!
//! | step | condition | status |
//! |---|---|---|
//! | b | overlayfs, Linux 6.10 on, signatures not to be verified | unknown |
//! | c | no label | no_label where it has a listed attribute, else no_xattrs |
//! | d | no place for attributes | unknown |
//! | e | an empty label, or one that cannot be read | fail |
//! | f | an HMAC label of another length than 21 | fail |
//! | g | no HMAC key; the HMAC is another / the same | fail; fail / pass |
//! | h | a signature of up to 9 bytes | fail |
//! | | a hash that is unknown or not there | fail, portable: fail_immutable |
//! | i | types 2 and 3, and no enabled attribute | no_xattrs |
//! | j | portable, and no security.ima | fail_immutable |
//! | k | type 3, the signature is good / not | pass / fail |
//! | l | portable, the signature is good / not | pass_immutable / fail_immutable |
//! | m | another type | fail |
//! | n | a filesystem mounted by another user namespace | fail, portable: fail_immutable |
//!
//! Step a, a status that was found before, is the caller's.
//!
//! Source: `evm_verify_hmac`, security/integrity/evm/evm_main.c; `evm_calc_hmac_or_hash`, evm_crypto.c.

use super::key::{HmacError, HmacKey};
use super::rules::Rules;
use super::snapshot::{EvmLabel, Snapshot};
use super::{HMAC_TYPE, PORTABLE_TYPE, SIGNATURE_TYPE};
use crate::crypto::{self, PublicKey};
use crate::integrity_status::IntegrityStatus;
use crate::keyring::{Keyring, VerifyError};
use crate::label::v3_digest;
use imara_format::evm::{EvmMode, Form, HMAC_SIZE};
use imara_format::hash::{Digest, HashAlgorithm};
use imara_format::signature::{Signature, SignatureFormatError, SignatureType};

/// Why a status is not a pass.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// EVM judges nothing yet.
    #[error("EVM has no key, so it judges nothing")]
    NotEnabled,
    /// The attribute asked about is not one that is protected.
    #[error("EVM does not protect {0}")]
    NotProtected(String),
    /// The filesystem has no place for labels.
    #[error("the filesystem keeps no such attributes")]
    NoAttributes,
    /// overlayfs, where only signatures are verified.
    #[error("on overlayfs only signatures are verified, and EVM is not to (bit x509)")]
    Overlay,
    /// No label.
    #[error("it has no security.evm")]
    NoLabel,
    /// Neither a label nor anything that one would protect.
    #[error("it has no security.evm, and no attribute that one would protect")]
    NothingToProtect,
    /// A label, and nothing that it protects.
    #[error("it has a security.evm, and no attribute that it would protect")]
    NothingProtected,
    /// The metadata cannot be read.
    #[error("{0}")]
    Metadata(String),
    /// The label is empty.
    #[error("its security.evm is empty")]
    Empty,
    /// The label cannot be read.
    #[error("its security.evm cannot be read")]
    Unreadable,
    /// A first byte that does not belong there.
    #[error("its security.evm has type {0}, where 2 (HMAC), 3 (signature) and 5 (portable signature) belong")]
    UnknownType(u8),
    /// An HMAC label of another length.
    #[error("its HMAC label has {0} bytes, exactly 21 needed")]
    HmacLength(usize),
    /// The filesystem was mounted from another user namespace.
    #[error("its filesystem was mounted by a user namespace of its own, on which nothing verifies")]
    Foreign,
    /// An HMAC, and no key.
    #[error("it is labelled with an HMAC, and EVM has no HMAC key")]
    NoHmacKey,
    /// The HMAC could not be made.
    #[error(transparent)]
    Hmac(#[from] HmacError),
    /// The HMAC is another.
    #[error("its HMAC is not that of its metadata: something that it protects was changed, or another key made it")]
    HmacDiffers,
    /// A signature too short for its header.
    #[error("its signature has {0} bytes, more than 9 needed")]
    SignatureTooShort(usize),
    /// A signature over a digest that cannot be made.
    #[error("its signature is over the hash algorithm {0}, which cannot be computed")]
    Hash(u8),
    /// A portable signature on a file without `security.ima`.
    #[error("a portable signature must cover security.ima, and it has none")]
    NoIma,
    /// The signature cannot be read.
    #[error("its signature cannot be read: {0}")]
    SignatureFormat(SignatureFormatError),
    /// A signature of an old version where version 3 is required.
    #[error("its signature has version {0}, and EVM requires version 3")]
    OldVersion(u8),
    /// A good signature of a version that this kernel takes for an older one.
    #[error("its signature is good and has version {0}, which Linux before 7.1 takes for version 2, and refuses")]
    NewVersion(u8),
    /// The signature does not verify.
    #[error("its signature: {0}")]
    Signature(VerifyError),
}

/// What was found.
#[derive(Debug, Clone)]
pub struct Found<'k> {
    /// The status.
    pub status: IntegrityStatus,
    /// Why it is not a pass.
    pub reason: Option<Reason>,
    /// Who signed, where the signature is good.
    pub signer: Option<&'k PublicKey>,
    /// The HMAC label that the kernel writes in place of a good signature of type 3, at once.
    pub becomes: Option<Vec<u8>>,
}

impl Found<'_> {
    const fn because(status: IntegrityStatus, reason: Reason) -> Self {
        Self { status, reason: Some(reason), signer: None, becomes: None }
    }
}

/// What labels are verified with.
#[derive(Debug, Clone, Copy)]
pub struct Verifier<'k> {
    /// Which kernel's EVM.
    pub rules: &'k Rules,
    /// What it is to do.
    pub mode: EvmMode,
    /// The HMAC key, where it is loaded.
    pub hmac_key: Option<&'k dyn HmacKey>,
    /// The certificates.
    pub keys: &'k Keyring,
}

impl<'k> Verifier<'k> {
    /// What IMA asks about `security.ima`, and the hooks about a file: unknown where there is no key, or where `name` is not
    /// protected.
    pub fn verify_xattr(&self, name: &str, snapshot: &Snapshot) -> Found<'k> {
        if !self.mode.key_loaded() {
            return Found::because(IntegrityStatus::Unknown, Reason::NotEnabled);
        }
        if !self.rules.xattrs.protects(name) {
            return Found::because(IntegrityStatus::Unknown, Reason::NotProtected(name.to_owned()));
        }
        self.status(snapshot)
    }

    /// The status of a file, whatever its label.
    pub fn status(&self, snapshot: &Snapshot) -> Found<'k> {
        use IntegrityStatus as S;
        if snapshot.place.overlay && self.rules.knows_overlay() && !self.mode.contains(EvmMode::X509) {
            return Found::because(S::Unknown, Reason::Overlay);
        }
        let label = match &snapshot.label {
            EvmLabel::Unsupported => return Found::because(S::Unknown, Reason::NoAttributes),
            EvmLabel::Absent if snapshot.has_listed(&self.rules.xattrs) => {
                return Found::because(S::NoLabel, Reason::NoLabel);
            }
            EvmLabel::Absent => return Found::because(S::NoXattrs, Reason::NothingToProtect),
            EvmLabel::Unreadable => return Found::because(S::Fail, Reason::Unreadable),
            EvmLabel::Value(label) => label,
        };
        match label.first() {
            None => Found::because(S::Fail, Reason::Empty),
            Some(&HMAC_TYPE) => self.hmac(label, snapshot),
            Some(&(SIGNATURE_TYPE | PORTABLE_TYPE)) if label.len() <= 9 => {
                Found::because(S::Fail, Reason::SignatureTooShort(label.len()))
            }
            Some(&SIGNATURE_TYPE) => match self.signature(label, Form::Signature, snapshot) {
                Ok(key) => Found { status: S::Pass, reason: None, signer: Some(key), becomes: self.becomes(snapshot) },
                Err(reason @ Reason::NothingProtected) => Found::because(S::NoXattrs, reason),
                Err(reason) => Found::because(S::Fail, reason),
            },
            Some(&PORTABLE_TYPE) => match self.signature(label, Form::Portable, snapshot) {
                Ok(key) => Found { status: S::PassImmutable, reason: None, signer: Some(key), becomes: None },
                Err(reason) => Found::because(S::FailImmutable, reason),
            },
            Some(other) => Found::because(S::Fail, Reason::UnknownType(*other)),
        }
    }

    fn hmac(&self, label: &[u8], snapshot: &Snapshot) -> Found<'k> {
        use IntegrityStatus as S;
        let expected = match label.split_first() {
            Some((_, hmac)) if hmac.len() == HMAC_SIZE => hmac,
            _ => return Found::because(S::Fail, Reason::HmacLength(label.len())),
        };
        if snapshot.place.foreign {
            return Found::because(S::Fail, Reason::Foreign);
        }
        let Some(key) = self.hmac_key else {
            return Found::because(S::Fail, Reason::NoHmacKey);
        };
        if let Some(why) = &snapshot.unbound {
            return Found::because(S::Fail, Reason::Metadata(why.clone()));
        }
        // The kernel makes the HMAC before it asks whether there was anything to make it over.
        match snapshot.hmac(self.rules, key) {
            Err(error) => Found::because(S::Fail, Reason::Hmac(error)),
            Ok(_) if !snapshot.is_covered(Form::Hmac, self.rules) => {
                Found::because(S::NoXattrs, Reason::NothingProtected)
            }
            Ok(hmac) if crypto::equal(&hmac, expected) => {
                Found { status: S::Pass, reason: None, signer: None, becomes: None }
            }
            Ok(_) => Found::because(S::Fail, Reason::HmacDiffers),
        }
    }

    fn signature(&self, label: &[u8], form: Form, snapshot: &Snapshot) -> Result<&'k PublicKey, Reason> {
        if snapshot.place.foreign {
            return Err(Reason::Foreign);
        }
        // The byte that names the hash is looked at before the version: in version 1 it is the lowest of the timestamp.
        let id = label.get(2).copied().unwrap_or(u8::MAX);
        let algorithm = HashAlgorithm::from_id(id).ok_or(Reason::Hash(id))?;
        let digest = snapshot.digest(form, self.rules, algorithm).map_err(|_| Reason::Hash(id))?;
        if form == Form::Portable && !snapshot.has_ima() {
            return Err(Reason::NoIma);
        }
        if !snapshot.is_covered(form, self.rules) {
            return Err(Reason::NothingProtected);
        }
        if form.is_bound()
            && let Some(why) = &snapshot.unbound
        {
            return Err(Reason::Metadata(why.clone()));
        }
        verify(label, form, &digest, self)
    }

    /// A good signature of type 3 is replaced by an HMAC as soon as anybody asks about it.
    fn becomes(&self, snapshot: &Snapshot) -> Option<Vec<u8>> {
        let key = self.hmac_key.filter(|_| self.mode.contains(EvmMode::HMAC))?;
        let kept = snapshot.place.read_only || (snapshot.place.overlay && self.rules.knows_overlay());
        if kept { None } else { snapshot.hmac_label(self.rules, key).ok() }
    }
}

fn verify<'k>(label: &[u8], form: Form, digest: &Digest, with: &Verifier<'k>) -> Result<&'k PublicKey, Reason> {
    let signature = Signature::parse(label).map_err(Reason::SignatureFormat)?;
    if with.mode.contains(EvmMode::SIGV3_REQUIRED) && with.rules.knows_sigv3() && signature.version() != 3 {
        return Err(Reason::OldVersion(signature.version()));
    }
    match &signature {
        Signature::V1(signature) => with.keys.verify_v1(signature, digest),
        Signature::V2(signature) => with.keys.verify(signature, digest),
        Signature::V3(signature) => {
            let kind = if form == Form::Portable { SignatureType::Portable } else { SignatureType::Signature };
            let of_version_3 = || {
                let message = v3_digest(kind, digest).map_err(|_| Reason::Hash(digest.algorithm().id()))?;
                with.keys.verify(signature, &message).map_err(Reason::Signature)
            };
            if with.rules.knows_sigv3() {
                return of_version_3();
            }
            // Before 7.1 it is taken for a version 2, which a true one never is.
            let verified = with.keys.verify(signature, digest);
            if matches!(verified, Err(VerifyError::Rejected { .. })) && of_version_3().is_ok() {
                return Err(Reason::NewVersion(3));
            }
            verified
        }
    }
    .map_err(Reason::Signature)
}
