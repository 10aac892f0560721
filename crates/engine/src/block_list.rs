//! What is never taken: contents by their digest, certificates, and keys.
//!
//! The kernel has the same in `.blacklist` (`bin:`, `tbs:`) and `.ima_blacklist`. It compares the one digest that it has collected, in
//! the algorithm that the label names; here a content is looked for in every algorithm that the list uses, so another label does
//! not get it past.
//!
//! Source: certs/blacklist.c; `ima_check_blacklist`, security/integrity/ima/ima_appraise.c.

use crate::crypto::Certificate;
use imara_format::block_list::Blocked;
use imara_format::hash::{Digest, HashAlgorithm};
use std::collections::{BTreeSet, HashSet};

/// What is never taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockList {
    contents: HashSet<Digest>,
    algorithms: BTreeSet<HashAlgorithm>,
    certificates: HashSet<Vec<u8>>,
    keys: Vec<Vec<u8>>,
}

impl FromIterator<Blocked> for BlockList {
    fn from_iter<T: IntoIterator<Item = Blocked>>(entries: T) -> Self {
        let mut list = Self::default();
        for entry in entries {
            match entry {
                Blocked::Content(digest) => {
                    list.algorithms.insert(digest.algorithm());
                    list.contents.insert(digest);
                }
                Blocked::Certificate(digest) => {
                    list.certificates.insert(digest);
                }
                Blocked::Key(id) => list.keys.push(id),
            }
        }
        list
    }
}

impl BlockList {
    /// How many contents, certificates and keys it has.
    pub fn counts(&self) -> [usize; 3] {
        [self.contents.len(), self.certificates.len(), self.keys.len()]
    }

    /// Whether a certificate is on it: by the digest of what its issuer signed, or by one of its key's ids.
    pub fn has_certificate(&self, certificate: &Certificate) -> bool {
        let named = |id: &Vec<u8>| {
            let subject = certificate.subject_key_id.as_ref();
            certificate.serial_and_issuer.ends_with(id) || subject.is_some_and(|subject| subject.ends_with(id))
        };
        certificate.to_be_signed.is_some_and(|digest| self.certificates.contains(digest.as_bytes()))
            || self.keys.iter().any(named)
    }

    /// Whether whatever is signed with this key id is not taken.
    pub fn has_key(&self, key_id: &[u8; 4]) -> bool {
        self.keys.iter().any(|id| id.ends_with(key_id))
    }

    /// The digest by which a file is on it. `digest` is the one that is known, its content's or, for `verity`, fs-verity's; `content`
    /// makes the content's in the algorithms that are lacking.
    ///
    /// # Errors
    /// What `content` says: a content that cannot be looked for is not known to be off the list.
    pub fn find<E>(
        &self,
        digest: &Digest,
        verity: bool,
        mut content: impl FnMut(HashAlgorithm) -> Result<Digest, E>,
    ) -> Result<Option<Digest>, E> {
        if self.contents.contains(digest) {
            return Ok(Some(*digest));
        }
        // fs-verity's tells nothing of the content's in the same algorithm.
        for algorithm in self.algorithms.iter().filter(|algorithm| verity || **algorithm != digest.algorithm()) {
            let digest = content(*algorithm)?;
            if self.contents.contains(&digest) {
                return Ok(Some(digest));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::{KeyType, SigningKey, hash};
    use crate::keyring::{Keyring, VerifyError};
    use crate::label;
    use imara_format::label::Label;
    use imara_format::signature::Signature;
    use std::convert::Infallible;

    fn digest(algorithm: HashAlgorithm, content: &[u8]) -> Digest {
        hash(algorithm, &[content]).unwrap()
    }

    #[test]
    fn a_content_is_found_whatever_algorithm_its_label_names() {
        use HashAlgorithm::{Sha1, Sha256, Sha512};
        let list: BlockList =
            [Blocked::Content(digest(Sha256, b"bad")), Blocked::Content(digest(Sha1, b"worse"))].into_iter().collect();
        for (content, known, found) in [
            (&b"bad"[..], Sha256, Some(Sha256)),
            (b"bad", Sha1, Some(Sha256)),
            (b"bad", Sha512, Some(Sha256)),
            (b"worse", Sha256, Some(Sha1)),
            (b"good", Sha256, None),
        ] {
            let found_in =
                list.find::<Infallible>(&digest(known, content), false, |algorithm| Ok(digest(algorithm, content)));
            assert_eq!(found_in.unwrap(), found.map(|algorithm| digest(algorithm, content)), "{known}");
        }
        // What cannot be hashed is not known to be good.
        assert_eq!(list.find(&digest(Sha512, b"good"), false, |_| Err("unreadable")), Err("unreadable"));
        // Nothing more is hashed than the list asks for.
        let none = BlockList::default().find(&digest(Sha1, b"x"), false, |_| Err("asked"));
        assert_eq!(none, Ok(None));
    }

    #[test]
    fn a_blocked_key_verifies_nothing_by_certificate_or_by_id() {
        let key = SigningKey::generate(KeyType::P256).unwrap();
        let der = key.self_signed_certificate("blocked", 3).unwrap();
        let certificate = || crate::crypto::PublicKey::from_bytes(&der).unwrap();
        let signed = digest(HashAlgorithm::Sha256, b"content");
        let bytes = label::sign(&signed, &key, None).unwrap();
        let Ok(Label::Signature(Signature::V2(signature))) = Label::parse_ima(&bytes) else { panic!("no signature") };
        let told = certificate();
        let told = told.certificate().unwrap();
        let id = told.subject_key_id.clone().unwrap();
        let tbs = told.to_be_signed.unwrap().as_bytes().to_vec();
        let other = SigningKey::generate(KeyType::P256).unwrap().key_id().to_vec();
        for (name, entry, blocked) in [
            ("its certificate", Blocked::Certificate(tbs), true),
            ("the whole id", Blocked::Key(id.clone()), true),
            ("the id's end", Blocked::Key(id[id.len() - 4..].to_vec()), true),
            ("another key", Blocked::Key(other), false),
            ("another certificate", Blocked::Certificate(vec![0; 32]), false),
        ] {
            let before: Keyring = [certificate()].into_iter().collect();
            let mut after = Keyring::new().with_block_list([entry.clone()].into_iter().collect());
            after.add(certificate());
            for keyring in [before.with_block_list([entry].into_iter().collect()), after] {
                match keyring.verify(&signature, &signed) {
                    Ok(_) => assert!(!blocked, "{name}"),
                    Err(error) => {
                        assert!(
                            blocked && error == VerifyError::RevokedKey { key_id: key.key_id() },
                            "{name}: {error}"
                        );
                    }
                }
            }
        }
    }
}
