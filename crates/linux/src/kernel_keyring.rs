//! A keyring of the kernel's as the place where verification keys are kept.
//!
//! The kernel does not give a certificate's key back; it verifies with it (`KEYCTL_PKEY_VERIFY`). So a key is looked for there by
//! the id that a signature carries, as the kernel does it itself (`id:` and the 4 bytes), for each signature anew, and verified with
//! by its number. Keys of type `user` that verify version 1 signatures are read as they are.
//!
//! The first use of an algorithm can make the kernel load a module, that is, run modprobe. A process that answers for the execution
//! of files calls [`KernelKeyring::warm_up`] before it starts to.
//!
//! Source: `request_asymmetric_key`, security/integrity/digsig_asymmetric.c; security/keys/keyctl_pkey.c;
//! `software_key_determine_akcipher`, crypto/asymmetric_keys/public_key.c.

use crate::key_service::{self as keys, KeyType};
use imara_engine::crypto::{KeptKey, KeyKind, PublicKey, SignatureError};
use imara_engine::keyring::KeySource;
use imara_format::hash::{Digest, HashAlgorithm, to_hex};
use imara_format::key::{Errno, KeySerial};
use std::io;
use std::sync::OnceLock;

/// A keyring of the kernel's.
#[derive(Debug)]
pub struct KernelKeyring {
    serial: KeySerial,
    name: String,
    /// The keyring of those that are never taken.
    revoked: Option<KeySerial>,
    /// Every key that was ever found, for as long as this is there: whoever verifies holds on to it.
    found: OnceLock<Box<Found>>,
}

/// A key that was found, and the one that was found next.
#[derive(Debug)]
struct Found {
    serial: KeySerial,
    kind: KeyType,
    id: Vec<u8>,
    key: PublicKey,
    next: OnceLock<Box<Found>>,
}

/// A key in the kernel.
#[derive(Debug)]
struct InKernel {
    serial: KeySerial,
    name: String,
    encoding: &'static str,
    kind: KeyKind,
}

/// The hashes that are tried out before there is anything to wait for.
const HASHES: [HashAlgorithm; 8] = [
    HashAlgorithm::Sha1,
    HashAlgorithm::Sha224,
    HashAlgorithm::Sha256,
    HashAlgorithm::Sha384,
    HashAlgorithm::Sha512,
    HashAlgorithm::Sha3_256,
    HashAlgorithm::Sha3_384,
    HashAlgorithm::Sha3_512,
];

impl KernelKeyring {
    /// The keyring of that number. `revoked` is where the kernel looks first for keys that are never taken (`.ima_blacklist`).
    pub fn new(serial: KeySerial, name: String, revoked: Option<KeySerial>) -> Self {
        Self { serial, name, revoked, found: OnceLock::new() }
    }

    /// Makes the kernel load whatever verifying with the keys that are there now needs.
    pub fn warm_up(&self) {
        for key in self.keys() {
            for algorithm in HASHES {
                // What the kernel does not have it says again when it is asked to verify.
                let Ok(digest) = Digest::new(algorithm, &vec![0; algorithm.digest_size()]) else { continue };
                let signature = match key.kind() {
                    KeyKind::Rsa(bits) => vec![1; bits.div_ceil(8) as usize],
                    KeyKind::P192 | KeyKind::P256 | KeyKind::P384 | KeyKind::P521 | KeyKind::Sm2 => {
                        vec![0x30, 6, 2, 1, 1, 2, 1, 1]
                    }
                };
                let _ = key.verify(&digest, &signature);
            }
        }
    }

    /// The key under a number, from among those that were found before, or found now.
    fn known(&self, serial: KeySerial, kind: KeyType, id: &[u8]) -> Option<&PublicKey> {
        let mut place = &self.found;
        loop {
            let found = match place.get() {
                Some(found) => found,
                None => {
                    let key = read_key(serial, kind, id)?;
                    // Another thread may be faster; then what it found comes first.
                    place.get_or_init(|| Box::new(Found { serial, kind, id: id.to_vec(), key, next: OnceLock::new() }))
                }
            };
            if found.serial == serial && found.kind == kind && found.id == id {
                return Some(&found.key);
            }
            place = &found.next;
        }
    }
}

impl KeySource for KernelKeyring {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn find(&self, key_id: &[u8; 4]) -> Option<&PublicKey> {
        let id = format!("id:{}", to_hex(key_id));
        let serial = keys::search(self.serial, KeyType::Asymmetric, id.as_bytes()).ok()?;
        self.known(serial, KeyType::Asymmetric, key_id)
    }

    fn find_v1(&self, key_id: &[u8; 8]) -> Option<&PublicKey> {
        // As evmctl names it: without leading zeros.
        let name = format!("{:X}", u64::from_be_bytes(*key_id));
        let serial = keys::search(self.serial, KeyType::User, name.as_bytes()).ok()?;
        self.known(serial, KeyType::User, key_id)
    }

    fn revokes(&self, key_id: &[u8; 4]) -> bool {
        let id = format!("id:{}", to_hex(key_id));
        self.revoked.is_some_and(|ring| keys::search(ring, KeyType::Asymmetric, id.as_bytes()).is_ok())
    }

    fn keys(&self) -> Vec<&PublicKey> {
        let held = keys::keys_of(self.serial).unwrap_or_default();
        let ids = held.into_iter().filter_map(|serial| {
            let told = keys::describe(serial).ok().filter(|told| told.kind == KeyType::Asymmetric.name())?;
            // The kernel describes a certificate by the whole of its id. Whoever gave it another description has a key that is
            // found, and not listed here.
            let described = String::from_utf8_lossy(&told.description).into_owned();
            let id = imara_format::hash::from_hex(described.rsplit(": ").next()?).ok()?;
            Some((serial, *id.last_chunk::<4>()?))
        });
        ids.filter_map(|(serial, id)| self.known(serial, KeyType::Asymmetric, &id)).collect()
    }
}

fn read_key(serial: KeySerial, kind: KeyType, id: &[u8]) -> Option<PublicKey> {
    if kind == KeyType::User {
        let key = PublicKey::from_v1_payload(keys::read(serial).ok()?.as_bytes())?;
        // The description is its maker's word; the id is the key's own.
        return key.v1_id().filter(|found| found == id).map(|_| key);
    }
    let name = keys::describe(serial).map(|told| String::from_utf8_lossy(&told.description).into_owned()).ok()?;
    let (encoding, kind) = kind_of(serial)?;
    Some(PublicKey::kept(kind, *id.first_chunk()?, Box::new(InKernel { serial, name, encoding, kind })))
}

/// What kind of key it is, and the encoding of its signatures.
fn kind_of(serial: KeySerial) -> Option<(&'static str, KeyKind)> {
    if let Ok(query) = keys::public_key_query(serial, "pkcs1", "sha256") {
        return Some(("pkcs1", KeyKind::Rsa(query.key_bits)));
    }
    let kind = match keys::public_key_query(serial, "x962", "sha256").ok()?.key_bits {
        192 => KeyKind::P192,
        256 => KeyKind::P256,
        384 => KeyKind::P384,
        521 | 528 => KeyKind::P521,
        _ => return None,
    };
    Some(("x962", kind))
}

impl KeptKey for InKernel {
    fn name(&self) -> &str {
        &self.name
    }

    fn verify(&self, digest: &Digest, signature: &[u8]) -> Result<(), SignatureError> {
        if let KeyKind::Rsa(bits) = self.kind {
            let needed = bits.div_ceil(8) as usize;
            if signature.len() != needed {
                return Err(SignatureError::RsaLength { found: signature.len(), needed });
            }
        }
        let algorithm = digest.algorithm();
        let verified =
            keys::public_key_verify(self.serial, self.encoding, algorithm.name(), digest.as_bytes(), signature);
        verified.map_err(|error| self.meaning(&error, algorithm))
    }
}

impl InKernel {
    fn meaning(&self, error: &io::Error, algorithm: HashAlgorithm) -> SignatureError {
        match keys::errno_of(error) {
            Some(Errno::Ekeyrejected | Errno::Ebadmsg | Errno::Einval) => SignatureError::Wrong,
            Some(Errno::Enopkg | Errno::Enoent) => SignatureError::UnsupportedHash { kind: self.kind, algorithm },
            Some(_) | None => SignatureError::Keeper(error.raw_os_error().unwrap_or_default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use imara_engine::crypto::{KeyType as Kind, SigningKey, hash};
    use imara_engine::keyring::{Keyring, VerifyError};
    use imara_engine::label;
    use imara_format::label::Label;
    use imara_format::signature::{Signature, SignatureType, SignatureV2};

    fn digest(algorithm: HashAlgorithm, content: &[u8]) -> Digest {
        hash(algorithm, &[content]).unwrap()
    }

    fn verify<'k>(keyring: &'k Keyring, label: &[u8], digest: &Digest) -> Result<&'k PublicKey, VerifyError> {
        match Label::parse_ima(label).unwrap() {
            Label::Signature(Signature::V2(signature)) => keyring.verify(&signature, digest),
            Label::Signature(Signature::V1(signature)) => keyring.verify_v1(&signature, digest),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_kernel_verifies_with_keys_that_it_does_not_give_out_and_until_they_are_removed() {
        let rsa = SigningKey::generate(Kind::Rsa2048).unwrap();
        let certificate = rsa.self_signed_certificate("kept", 3).unwrap();
        let made = keys::join_new_session().and_then(|_| {
            let ring = keys::new_keyring(b"kept", keys::SESSION_KEYRING)?;
            Ok((ring, keys::add(KeyType::Asymmetric, None, &certificate, ring)?))
        });
        let (ring, serial) = match made {
            Ok(made) => made,
            Err(error) => return println!("skipped: the_kernel_verifies: no asymmetric keys: {error}"),
        };
        let mut keyring = Keyring::new();
        let source = KernelKeyring::new(ring, "kept".into(), None);
        source.warm_up();
        keyring.add_source(Box::new(source));
        let sha256 = digest(HashAlgorithm::Sha256, b"content");
        for algorithm in [HashAlgorithm::Sha1, HashAlgorithm::Sha256, HashAlgorithm::Sha384, HashAlgorithm::Sha512] {
            let digest = digest(algorithm, b"content");
            let label = label::sign(&digest, &rsa, None).unwrap();
            let key = verify(&keyring, &label, &digest).unwrap();
            assert_eq!((key.key_id(), key.kind()), (rsa.key_id(), KeyKind::Rsa(2048)), "{algorithm}");
            assert!(key.subject().unwrap().starts_with("kept: "), "{:?}", key.subject());
            let wrong = VerifyError::Rejected { key_id: rsa.key_id().to_vec(), error: SignatureError::Wrong };
            let other = self::digest(algorithm, b"other");
            assert_eq!(verify(&keyring, &label, &other).map(PublicKey::key_id), Err(wrong));
        }
        let label = label::sign(&sha256, &rsa, None).unwrap();
        let short = SignatureV2 { algorithm: HashAlgorithm::Sha256, key_id: rsa.key_id(), signature: &[1; 255] };
        let short = short.encode(SignatureType::Signature).unwrap();
        assert!(matches!(verify(&keyring, &short, &sha256), Err(VerifyError::Rejected { .. })));
        assert_eq!(keyring.keys().len(), 1);

        // A key that is added later counts, and of another kind, too, where the kernel has it.
        let ec = SigningKey::generate(Kind::P256).unwrap();
        match keys::add(KeyType::Asymmetric, None, &ec.self_signed_certificate("later", 3).unwrap(), ring) {
            Ok(_) => {
                let label = label::sign(&sha256, &ec, None).unwrap();
                let key = verify(&keyring, &label, &sha256).unwrap();
                assert_eq!((key.key_id(), key.kind()), (ec.key_id(), KeyKind::P256));
                let other = digest(HashAlgorithm::Sha256, b"other");
                assert!(matches!(verify(&keyring, &label, &other), Err(VerifyError::Rejected { .. })));
            }
            Err(error) => println!("skipped: the_kernel_verifies: ECDSA: {error}"),
        }

        // One that is revoked, whatever keyring it is in.
        let blacklist = keys::new_keyring(b"blacklist", keys::SESSION_KEYRING).unwrap();
        let mut strict = Keyring::new();
        strict.add_source(Box::new(KernelKeyring::new(ring, "kept".into(), Some(blacklist))));
        assert!(verify(&strict, &label, &sha256).is_ok());
        keys::link(serial, blacklist).unwrap();
        let revoked = VerifyError::RevokedKey { key_id: rsa.key_id() };
        assert_eq!(verify(&strict, &label, &sha256).map(PublicKey::key_id), Err(revoked));

        // And one that is taken out counts no more.
        keys::unlink(serial, ring).unwrap();
        let unknown = VerifyError::UnknownKey { key_id: rsa.key_id().to_vec() };
        assert_eq!(verify(&keyring, &label, &sha256).map(PublicKey::key_id), Err(unknown));
    }

    #[test]
    fn version_1_keys_are_read_and_known_by_their_own_id() {
        let rsa = SigningKey::generate(Kind::Rsa2048).unwrap();
        let bare = PublicKey::from_bytes(&rsa.public_pem().unwrap()).unwrap();
        let payload = bare.v1_payload().unwrap();
        let name = |id: [u8; 8]| format!("{:X}", u64::from_be_bytes(id));
        let id = bare.v1_id().unwrap();
        let made = keys::join_new_session().and_then(|_| {
            let ring = keys::new_keyring(b"version 1", keys::SESSION_KEYRING)?;
            keys::add(KeyType::User, Some(name(id).as_bytes()), payload, ring)?;
            Ok(ring)
        });
        let ring = match made {
            Ok(ring) => ring,
            Err(error) => return println!("skipped: version_1_keys: no key service: {error}"),
        };
        let mut keyring = Keyring::new();
        keyring.add_source(Box::new(KernelKeyring::new(ring, "version 1".into(), None)));
        let sha1 = digest(HashAlgorithm::Sha1, b"content");
        let label = label::sign_v1(&sha1, &rsa, 0).unwrap();
        assert_eq!(verify(&keyring, &label, &sha1).unwrap().v1_id(), Some(id));
        assert!(verify(&keyring, &label, &digest(HashAlgorithm::Sha1, b"other")).is_err());
        // Under the name of another key it verifies nothing.
        let other = SigningKey::generate(Kind::Rsa2048).unwrap();
        let label = label::sign_v1(&sha1, &other, 0).unwrap();
        keys::add(KeyType::User, Some(name(other.v1_id().unwrap()).as_bytes()), payload, ring).unwrap();
        assert!(matches!(verify(&keyring, &label, &sha1), Err(VerifyError::UnknownKey { .. })));
    }
}
