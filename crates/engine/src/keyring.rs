//! The certificates that labels are verified with.
//!
//! A keyring answers as the kernel's `.ima` and `.evm` do: by the end of a key's ids, the first key found decides, and a
//! key that is on the block list never verifies. It is built once and then shared by threads.
//!
//! Keys may also be kept elsewhere, in a keyring of the kernel's ([`KeySource`]): that is asked for each signature, so what is added
//! or removed there counts from then on.
//!
//! Source: security/integrity/digsig_asymmetric.c, digsig.c; crypto/asymmetric_keys/asymmetric_type.c.

use crate::block_list::BlockList;
use crate::crypto::{PublicKey, SignatureError};
use imara_format::hash::{Digest, HashAlgorithm, to_hex};
use imara_format::signature::{SignatureV1, SignatureV2};
use std::fmt;

/// Keys, in the order they were added, then those kept elsewhere, and what is never taken.
#[derive(Debug, Default)]
pub struct Keyring {
    keys: Vec<PublicKey>,
    sources: Vec<Box<dyn KeySource>>,
    revoked: Vec<PublicKey>,
    blocked: BlockList,
}

/// Keys that are kept elsewhere: a keyring of the kernel's.
pub trait KeySource: fmt::Debug + Send + Sync {
    /// What people know it by.
    fn name(&self) -> String;

    /// The key that it has now for signatures with `key_id`. It can be used as long as the source is there.
    fn find(&self, key_id: &[u8; 4]) -> Option<&PublicKey>;

    /// The same for signatures of version 1.
    fn find_v1(&self, key_id: &[u8; 8]) -> Option<&PublicKey>;

    /// Whether it is known there that nothing by that key id is to be taken.
    fn revokes(&self, key_id: &[u8; 4]) -> bool;

    /// The keys that it has now.
    fn keys(&self) -> Vec<&PublicKey>;
}

/// Why a signature is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// No key has this id (`ENOKEY`).
    #[error("unknown key id {}", to_hex(.key_id))]
    UnknownKey {
        /// The id, 4 bytes or, in version 1, 8.
        key_id: Vec<u8>,
    },
    /// A revoked key has this id (`EKEYREJECTED`).
    #[error("revoked key id {}", to_hex(.key_id))]
    RevokedKey {
        /// The id.
        key_id: [u8; 4],
    },
    /// The digest collected is of another algorithm than the signature's.
    #[error("the signature is over {signed}, the content was collected with {collected}")]
    AlgorithmMismatch {
        /// The signature's algorithm.
        signed: HashAlgorithm,
        /// The collected digest's.
        collected: HashAlgorithm,
    },
    /// The key was found, and the signature does not verify under it (`EKEYREJECTED`).
    #[error("key {}: {error}", to_hex(.key_id))]
    Rejected {
        /// The id.
        key_id: Vec<u8>,
        /// Why.
        error: SignatureError,
    },
}

impl Keyring {
    /// An empty keyring: everything signed is by an unknown key.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a key. Of two that answer to one id, the first added decides. One whose certificate is on the block list is revoked
    /// instead.
    pub fn add(&mut self, key: PublicKey) {
        match key.certificate().is_some_and(|certificate| self.blocked.has_certificate(certificate)) {
            true => self.revoke(key),
            false => self.keys.push(key),
        }
    }

    /// Adds keys that are kept elsewhere.
    pub fn add_source(&mut self, source: Box<dyn KeySource>) {
        self.sources.push(source);
    }

    /// Puts what is never taken in force, for the keys that are there as for those to come.
    #[must_use]
    pub fn with_block_list(mut self, blocked: BlockList) -> Self {
        self.blocked = blocked;
        for key in std::mem::take(&mut self.keys) {
            self.add(key);
        }
        self
    }

    /// Whether another is sure to come to the same: not where keys are kept elsewhere, which may have been others a moment ago.
    pub fn is_the_same(&self, other: &Self) -> bool {
        let alike = |ours: &[PublicKey], theirs: &[PublicKey]| {
            ours.len() == theirs.len() && ours.iter().zip(theirs).all(|(our, their)| our.is_the_same(their))
        };
        alike(&self.keys, &other.keys)
            && alike(&self.revoked, &other.revoked)
            && self.blocked == other.blocked
            && self.sources.is_empty()
            && other.sources.is_empty()
    }

    /// What is never taken.
    pub const fn blocked(&self) -> &BlockList {
        &self.blocked
    }

    /// Refuses every signature whose key id `key` answers to, as `.ima_blacklist` does.
    pub fn revoke(&mut self, key: PublicKey) {
        self.revoked.push(key);
    }

    /// The keys, in the order they were added, then those that sources have now.
    pub fn keys(&self) -> Vec<&PublicKey> {
        self.keys.iter().chain(self.sources.iter().flat_map(|source| source.keys())).collect()
    }

    /// Whether it has no keys, and nowhere to look for any.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.sources.is_empty()
    }

    /// What people know the sources of keys by that are kept elsewhere.
    pub fn source_names(&self) -> Vec<String> {
        self.sources.iter().map(|source| source.name()).collect()
    }

    /// The keys that are revoked: those whose certificates are on the block list, too.
    pub fn revoked(&self) -> &[PublicKey] {
        &self.revoked
    }

    /// The key that signatures with `key_id` are verified with.
    pub fn find(&self, key_id: &[u8; 4]) -> Option<&PublicKey> {
        let given = self.keys.iter().find(|key| key.answers_to(key_id));
        given.or_else(|| self.sources.iter().find_map(|source| source.find(key_id)))
    }

    fn revokes(&self, key_id: &[u8; 4]) -> bool {
        self.blocked.has_key(key_id)
            || self.revoked.iter().any(|key| key.answers_to(key_id))
            || self.sources.iter().any(|source| source.revokes(key_id))
    }

    /// Verifies a signature with a version 2 header over `digest`; for version 3 that is the digest of its message
    /// ([`crate::label::v3_digest`]).
    ///
    /// # Errors
    /// [`VerifyError`], checked in the kernel's order: revoked, unknown, wrong.
    pub fn verify(&self, signature: &SignatureV2<'_>, digest: &Digest) -> Result<&PublicKey, VerifyError> {
        let key_id = signature.key_id;
        if self.revokes(&key_id) {
            return Err(VerifyError::RevokedKey { key_id });
        }
        let key = self.find(&key_id).ok_or_else(|| VerifyError::UnknownKey { key_id: key_id.to_vec() })?;
        let (signed, collected) = (signature.algorithm, digest.algorithm());
        if signed != collected {
            return Err(VerifyError::AlgorithmMismatch { signed, collected });
        }
        let rejected = |error| VerifyError::Rejected { key_id: key_id.to_vec(), error };
        key.verify(digest, signature.signature).map_err(rejected)?;
        Ok(key)
    }

    /// Verifies a version 1 signature; `digest` is of the default hash. Only bare RSA public keys can, as only `user` keys
    /// can in the kernel.
    ///
    /// # Errors
    /// [`VerifyError`].
    pub fn verify_v1(&self, signature: &SignatureV1<'_>, digest: &Digest) -> Result<&PublicKey, VerifyError> {
        let key_id = signature.key_id.to_vec();
        let given = self.keys.iter().find(|key| key.v1_id() == Some(signature.key_id));
        let key = given.or_else(|| self.sources.iter().find_map(|source| source.find_v1(&signature.key_id)));
        let key = key.ok_or_else(|| VerifyError::UnknownKey { key_id: key_id.clone() })?;
        key.verify_v1(digest, signature).map_err(|error| VerifyError::Rejected { key_id, error })?;
        Ok(key)
    }
}

impl FromIterator<PublicKey> for Keyring {
    fn from_iter<T: IntoIterator<Item = PublicKey>>(keys: T) -> Self {
        Self { keys: keys.into_iter().collect(), ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::{KeyType, SigningKey};
    use imara_format::block_list::Blocked;

    #[test]
    fn keyrings_are_the_same_when_they_verify_and_refuse_the_same() {
        let certificate = |key: &SigningKey| key.self_signed_certificate("somebody", 3).unwrap();
        let keys = [KeyType::P256, KeyType::P256].map(|kind| certificate(&SigningKey::generate(kind).unwrap()));
        let of = |which: &[usize], blocked: &[u8]| {
            let list: BlockList = blocked.iter().map(|byte| Blocked::Key(vec![*byte; 4])).collect();
            let mut keyring = Keyring::new().with_block_list(list);
            which.iter().for_each(|which| keyring.add(PublicKey::from_bytes(&keys[*which]).unwrap()));
            keyring
        };
        for (name, one, other, same) in [
            ("nothing", of(&[], &[]), of(&[], &[]), true),
            ("the same keys", of(&[0, 1], &[7]), of(&[0, 1], &[7]), true),
            // The first that answers to an id decides.
            ("another order", of(&[0, 1], &[]), of(&[1, 0], &[]), false),
            ("one more", of(&[0], &[]), of(&[0, 1], &[]), false),
            ("one less", of(&[0], &[]), of(&[], &[]), false),
            ("one more blocked", of(&[0], &[]), of(&[0], &[1]), false),
            ("another blocked", of(&[0], &[2]), of(&[0], &[1]), false),
        ] {
            assert_eq!(one.is_the_same(&other), same, "{name}");
        }
    }
}
