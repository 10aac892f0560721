//! Signing a file's metadata: the labels of types 3 and 5 that `evmctl sign` makes.

use super::rules::Rules;
use super::snapshot::Snapshot;
use crate::crypto::{SigningKey, UnsupportedHash};
use crate::label::{SignError, v3_digest};
use imara_format::evm::Form;
use imara_format::hash::{Digest, HashAlgorithm};
use imara_format::signature::{SignatureType, SignatureV2};

/// Which version a signature's header has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Version {
    /// Over the digest: what every kernel verifies.
    #[default]
    V2,
    /// Over the label's type, the algorithm and the digest: Linux 7.1 on.
    V3,
}

/// Why a file's metadata cannot be signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EvmSignError {
    /// A portable signature must cover `security.ima`.
    #[error("a portable signature must cover security.ima, and it has none")]
    NoIma,
    /// No attribute that the signature would cover: no kernel would verify it.
    #[error("it has no attribute that EVM protects, so a signature would protect nothing and never verify")]
    NothingToProtect,
    /// Something that the signature would be over could not be found out.
    #[error("{0}")]
    Unbound(String),
    /// The hash cannot be computed.
    #[error(transparent)]
    Hash(#[from] UnsupportedHash),
    /// The key cannot sign, or the signature does not fit.
    #[error(transparent)]
    Sign(#[from] SignError),
}

/// A whole `security.evm`, and the digest that it signs.
///
/// # Errors
/// [`EvmSignError`].
pub fn sign(
    snapshot: &Snapshot,
    form: SignatureForm,
    rules: &Rules,
    algorithm: HashAlgorithm,
    key: &SigningKey,
    key_id: Option<[u8; 4]>,
) -> Result<(Vec<u8>, Digest), EvmSignError> {
    let SignatureForm { portable, version } = form;
    let (form, kind) = match portable {
        true => (Form::Portable, SignatureType::Portable),
        false => (Form::Signature, SignatureType::Signature),
    };
    if portable && !snapshot.has_ima() {
        return Err(EvmSignError::NoIma);
    }
    if !snapshot.is_covered(form, rules) {
        return Err(EvmSignError::NothingToProtect);
    }
    if form.is_bound()
        && let Some(why) = &snapshot.unbound
    {
        return Err(EvmSignError::Unbound(why.clone()));
    }
    let digest = snapshot.digest(form, rules, algorithm)?;
    let signed = match version {
        Version::V2 => digest,
        Version::V3 => v3_digest(kind, &digest)?,
    };
    let signature = key.sign(&signed).map_err(SignError::from)?;
    let header = SignatureV2 { algorithm, key_id: key_id.unwrap_or_else(|| key.key_id()), signature: &signature };
    let label = match version {
        Version::V2 => header.encode(kind),
        Version::V3 => header.encode_v3(kind),
    };
    Ok((label.map_err(SignError::from)?, digest))
}

/// What kind of signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SignatureForm {
    /// Type 5: it moves with the file, and nothing that it covers may change.
    pub portable: bool,
    /// The header's version.
    pub version: Version,
}
