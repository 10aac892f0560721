//! Making labels, and verifying them: digest labels and signatures.
//!
//! This is the label alone, without a policy: what an appraisal makes of it is [`crate::appraise`]'s.

use crate::crypto::{PublicKey, SignatureError, SigningKey, UnsupportedHash, hash};
use crate::keyring::{Keyring, VerifyError};
use imara_format::hash::{Digest, HashAlgorithm};
use imara_format::label::{Attribute, Label, LabelError};
use imara_format::signature::{Signature, SignatureTooLong, SignatureType, SignatureV1, SignatureV2, v3_message};

/// What a label that verified proves.
#[derive(Debug, Clone, Copy)]
pub enum Verified<'k> {
    /// The content is the label's: integrity, not who made it.
    Digest(Digest),
    /// The content is what the key's owner signed.
    Signature {
        /// The key.
        key: &'k PublicKey,
        /// The header's version.
        version: u8,
        /// The digest signed; in version 3 the file's or fs-verity's digest, which is signed with the label's type.
        digest: Digest,
    },
}

/// Why a label does not verify. `E` is why the content could not be collected.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejected<E> {
    /// The label cannot be read.
    #[error(transparent)]
    Label(#[from] LabelError),
    /// The content has another digest.
    #[error("the content has changed: its digest is {found}, labelled {labelled}")]
    Changed {
        /// The label's digest.
        labelled: Box<Digest>,
        /// The content's.
        found: Digest,
    },
    /// The signature does not verify.
    #[error(transparent)]
    Signature(#[from] VerifyError),
    /// A signature of type 6 has another version than 3.
    #[error("signature version {0} does not belong into a label of this type")]
    Version(u8),
    /// An fs-verity signature, where the content's digest is asked for.
    #[error("the label signs an fs-verity digest, not the content")]
    Verity,
    /// A digest or a signature of the content, where an fs-verity digest is to be verified.
    #[error("the label does not sign an fs-verity digest")]
    NotVerity,
    /// The hash of a version 3 message cannot be computed.
    #[error(transparent)]
    Hash(UnsupportedHash),
    /// The content could not be collected.
    #[error("{0}")]
    Collect(E),
}

/// Why a label cannot be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// The key cannot sign this digest.
    #[error(transparent)]
    Key(#[from] SignatureError),
    /// The signature does not fit a label.
    #[error(transparent)]
    TooLong(#[from] SignatureTooLong),
    /// The hash of a version 3 message cannot be computed.
    #[error(transparent)]
    Hash(#[from] UnsupportedHash),
    /// A hash that has no number in a version 1 header.
    #[error("version 1 signatures are over sha1 or sha256, not {0}")]
    V1Hash(HashAlgorithm),
}

/// The default hash of this build, for labels that name none: what most distributions configure.
pub const DEFAULT_HASH: HashAlgorithm = HashAlgorithm::Sha256;

/// Signs a file's digest: a whole `security.ima`, type 3, version 2, as evmctl writes it.
///
/// # Errors
/// [`SignError`].
pub fn sign(digest: &Digest, key: &SigningKey, key_id: Option<[u8; 4]>) -> Result<Vec<u8>, SignError> {
    sign_as(SignatureType::Signature, digest, key, key_id)
}

/// Signs a digest with a version 2 header, in a label of type `kind`.
///
/// # Errors
/// [`SignError`].
pub fn sign_as(
    kind: SignatureType,
    digest: &Digest,
    key: &SigningKey,
    key_id: Option<[u8; 4]>,
) -> Result<Vec<u8>, SignError> {
    let signature = key.sign(digest)?;
    let key_id = key_id.unwrap_or_else(|| key.key_id());
    Ok(SignatureV2 { algorithm: digest.algorithm(), key_id, signature: &signature }.encode(kind)?)
}

/// Signs an fs-verity digest: a whole `security.ima`, type 6, version 3.
///
/// # Errors
/// [`SignError`].
pub fn sign_verity(digest: &Digest, key: &SigningKey, key_id: Option<[u8; 4]>) -> Result<Vec<u8>, SignError> {
    sign_v3(SignatureType::Verity, digest, key, key_id)
}

/// Signs a digest with a version 3 header, in a label of type `kind`, which is signed with it. Of a file's own digest, type
/// 3, Linux 7.1 and newer take it.
///
/// # Errors
/// [`SignError`].
pub fn sign_v3(
    kind: SignatureType,
    digest: &Digest,
    key: &SigningKey,
    key_id: Option<[u8; 4]>,
) -> Result<Vec<u8>, SignError> {
    let signature = key.sign(&v3_digest(kind, digest)?)?;
    let key_id = key_id.unwrap_or_else(|| key.key_id());
    Ok(SignatureV2 { algorithm: digest.algorithm(), key_id, signature: &signature }.encode_v3(kind)?)
}

/// Signs a file's digest, SHA-1 or SHA-256, with a version 1 header: what kernels verified before 3.7, and RSA keys alone
/// make. `timestamp` is in seconds since 1970.
///
/// # Errors
/// [`SignError`].
pub fn sign_v1(digest: &Digest, key: &SigningKey, timestamp: u32) -> Result<Vec<u8>, SignError> {
    let key_id = key.v1_id().ok_or(SignatureError::NotRsa(key.kind()))?;
    let algorithm = digest.algorithm();
    let header = SignatureV1::header_of(algorithm, key_id, timestamp).ok_or(SignError::V1Hash(algorithm))?;
    Ok(SignatureV1::encode(&header, &key.sign_v1(digest, &header)?)?)
}

/// The digest that a version 3 signature is over, made with the digest's own algorithm.
///
/// # Errors
/// [`UnsupportedHash`].
pub fn v3_digest(kind: SignatureType, digest: &Digest) -> Result<Digest, UnsupportedHash> {
    hash(digest.algorithm(), &[&v3_message(kind, digest)])
}

/// Verifies `security.ima` for a content, whose digest `digest_for` makes with the algorithm that the label asks for.
///
/// # Errors
/// [`Rejected`].
pub fn verify_label<'k, E>(
    label: &[u8],
    mut digest_for: impl FnMut(HashAlgorithm) -> Result<Digest, E>,
    keyring: &'k Keyring,
) -> Result<Verified<'k>, Rejected<E>> {
    match Label::parse_ima(label)? {
        Label::Digest { digest: labelled, .. } => {
            let found = digest_for(labelled.algorithm()).map_err(Rejected::Collect)?;
            if labelled == found {
                Ok(Verified::Digest(found))
            } else {
                Err(Rejected::Changed { labelled: Box::new(labelled), found })
            }
        }
        Label::Signature(Signature::V2(signature)) => {
            let digest = digest_for(signature.algorithm).map_err(Rejected::Collect)?;
            let key = keyring.verify(&signature, &digest)?;
            Ok(Verified::Signature { key, version: 2, digest })
        }
        Label::Signature(Signature::V1(signature)) => {
            // The kernel goes by its default hash; the header's own word is all there is elsewhere.
            let algorithm = signature.algorithm().unwrap_or(DEFAULT_HASH);
            let digest = digest_for(algorithm).map_err(Rejected::Collect)?;
            let key = keyring.verify_v1(&signature, &digest)?;
            Ok(Verified::Signature { key, version: 1, digest })
        }
        Label::Signature(Signature::V3(signature)) => {
            let digest = digest_for(signature.algorithm).map_err(Rejected::Collect)?;
            let message = v3_digest(SignatureType::Signature, &digest).map_err(Rejected::Hash)?;
            let key = keyring.verify(&signature, &message)?;
            Ok(Verified::Signature { key, version: 3, digest })
        }
        Label::VeritySignature(_) => Err(Rejected::Verity),
        Label::EvmHmac(_) | Label::EvmPortable(_) => Err(not_ima(label)),
    }
}

/// Verifies a `security.ima` of type 6 for an fs-verity digest, which `digest_for` makes.
///
/// # Errors
/// [`Rejected`].
pub fn verify_verity_label<'k, E>(
    label: &[u8],
    mut digest_for: impl FnMut(HashAlgorithm) -> Result<Digest, E>,
    keyring: &'k Keyring,
) -> Result<Verified<'k>, Rejected<E>> {
    match Label::parse_ima(label)? {
        Label::VeritySignature(Signature::V3(signature)) => {
            let digest = digest_for(signature.algorithm).map_err(Rejected::Collect)?;
            let message = v3_digest(SignatureType::Verity, &digest).map_err(Rejected::Hash)?;
            let key = keyring.verify(&signature, &message)?;
            Ok(Verified::Signature { key, version: 3, digest })
        }
        Label::VeritySignature(signature) => Err(Rejected::Version(signature.version())),
        Label::Digest { .. } | Label::Signature(_) => Err(Rejected::NotVerity),
        Label::EvmHmac(_) | Label::EvmPortable(_) => Err(not_ima(label)),
    }
}

/// `Label::parse_ima` makes no EVM label; should it ever, it is refused like any type that does not belong there.
fn not_ima<E>(label: &[u8]) -> Rejected<E> {
    let found = label.first().copied().unwrap_or_default();
    Rejected::Label(LabelError::UnknownType { attribute: Attribute::Ima, found })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::{KeyError, KeyKind, KeyType};
    use imara_format::hash::{from_hex, to_hex};
    use imara_format::label::encode_digest;
    use proptest::prelude::*;
    use serde_json::Value;
    use std::convert::Infallible;
    use std::sync::LazyLock;

    fn vector(path: &str) -> Vec<u8> {
        let path = format!("{}/../../tests/vectors/{path}", env!("CARGO_MANIFEST_DIR"));
        std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    fn vectors(path: &str) -> Vec<Value> {
        serde_json::from_slice(&vector(path)).unwrap()
    }

    fn text<'a>(value: &'a Value, name: &str) -> &'a str {
        value[name].as_str().unwrap_or_else(|| panic!("no {name} in {value}"))
    }

    fn bytes(value: &Value, name: &str) -> Vec<u8> {
        from_hex(text(value, name)).unwrap()
    }

    fn algorithm(value: &Value) -> HashAlgorithm {
        HashAlgorithm::from_name(text(value, "hash")).unwrap()
    }

    fn signing_key(name: &str) -> SigningKey {
        SigningKey::from_pem(&vector(&format!("key/{name}")), None).unwrap()
    }

    fn keyring(names: &[&str]) -> Keyring {
        names.iter().map(|name| PublicKey::from_bytes(&vector(&format!("key/{name}"))).unwrap()).collect()
    }

    fn all_certificates() -> Keyring {
        keyring(&["rsa2048.der", "rsa1024.der", "p256.der", "p384.der", "rsa2048-ownskid.der"])
    }

    fn given(digest: Digest) -> impl FnMut(HashAlgorithm) -> Result<Digest, Infallible> {
        move |asked| {
            assert_eq!(asked, digest.algorithm());
            Ok(digest)
        }
    }

    #[test]
    fn signatures_of_evmctl_verify_and_rsa_ones_are_made_again_to_the_byte() {
        let keyring = all_certificates();
        let mut made_again = 0;
        for case in vectors("signature/signatures.json") {
            let label = bytes(&case, "xattr");
            let digest = Digest::new(algorithm(&case), &bytes(&case, "digest")).unwrap();
            if case["digest_input"].is_string() {
                assert_eq!(hash(digest.algorithm(), &[&bytes(&case, "digest_input")]), Ok(digest));
            }
            let (kind, signature) = match (text(&case, "kind"), Label::parse_evm(&label).unwrap()) {
                ("evm-immutable", Label::Signature(Signature::V3(signature))) => (SignatureType::Signature, signature),
                ("evm-portable", Label::EvmPortable(Signature::V2(signature))) => (SignatureType::Portable, signature),
                (_, Label::Signature(Signature::V2(signature))) => (SignatureType::Signature, signature),
                other => panic!("{other:?}"),
            };
            assert_eq!(to_hex(&signature.key_id), text(&case, "keyid"));
            let key = keyring.verify(&signature, &digest).unwrap();
            assert_eq!(to_hex(&key.key_id()), text(&case, "keyid"));

            let signer = signing_key(text(&case, "key"));
            assert_eq!(signer.key_id(), signature.key_id);
            if matches!(key.kind(), KeyKind::Rsa(_)) && text(&case, "kind") != "evm-immutable" {
                assert_eq!(sign_as(kind, &digest, &signer, None), Ok(label.clone()), "{case}");
                made_again += 1;
            }
            // Over anything else it is wrong.
            let other = hash(digest.algorithm(), &[b"other"]).unwrap();
            assert_eq!(
                keyring.verify(&signature, &other).unwrap_err(),
                VerifyError::Rejected { key_id: signature.key_id.to_vec(), error: SignatureError::Wrong }
            );
            let short = Digest::zeros(HashAlgorithm::Md5);
            assert!(matches!(keyring.verify(&signature, &short), Err(VerifyError::AlgorithmMismatch { .. })));
        }
        assert_eq!(made_again, 41);
    }

    #[test]
    fn signatures_over_hashes_and_fs_verity_digests_of_evmctl_verify() {
        let keyring = all_certificates();
        for case in vectors("signature/signatures_other.json") {
            let kind = text(&case, "kind");
            if !kind.starts_with("sign_hash") {
                continue;
            }
            let label = from_hex(text(&case, "stdout").trim().rsplit(' ').next().unwrap()).unwrap();
            let file_digest = text(&case, "stdin").split([' ', ':']).find(|word| word.len() >= 32).unwrap();
            let digest = Digest::new(algorithm(&case), &from_hex(file_digest).unwrap()).unwrap();
            let signer = signing_key(text(&case, "key"));
            let verified = if kind == "sign_hash" {
                if matches!(signer.kind(), KeyKind::Rsa(_)) {
                    assert_eq!(sign(&digest, &signer, None), Ok(label.clone()));
                }
                assert_eq!(verify_verity_label(&label, given(digest), &keyring).unwrap_err(), Rejected::NotVerity);
                verify_label(&label, given(digest), &keyring)
            } else {
                assert_eq!(v3_message(SignatureType::Verity, &digest), bytes(&case, "ima_file_id"));
                assert_eq!(
                    v3_digest(SignatureType::Verity, &digest).unwrap().as_bytes(),
                    bytes(&case, "signed_digest")
                );
                if matches!(signer.kind(), KeyKind::Rsa(_)) {
                    assert_eq!(sign_verity(&digest, &signer, None), Ok(label.clone()));
                }
                assert_eq!(verify_label(&label, given(digest), &keyring).unwrap_err(), Rejected::Verity);
                verify_verity_label(&label, given(digest), &keyring)
            };
            let Verified::Signature { key, .. } = verified.unwrap() else { panic!() };
            assert_eq!(key.key_id(), signer.key_id());
        }
    }

    #[test]
    fn version_1_signatures_verify_with_bare_keys_alone() {
        let bare = keyring(&["rsa2048.pub", "rsa1024.pub"]);
        let certificates = all_certificates();
        let mut seen = 0;
        for case in vectors("signature/signatures_other.json") {
            if !text(&case, "kind").ends_with("-v1") {
                continue;
            }
            seen += 1;
            let label = bytes(&case, "xattr");
            let digest = Digest::new(algorithm(&case), &bytes(&case, "digest")).unwrap();
            let Label::Signature(Signature::V1(signature)) = Label::parse_ima(&label).unwrap() else { panic!() };
            assert_eq!(to_hex(&signature.key_id), text(&case, "keyid_v1"));
            assert_eq!(u64::from(signature.timestamp()), case["timestamp"].as_u64().unwrap());
            bare.verify_v1(&signature, &digest).unwrap();
            assert!(matches!(verify_label(&label, given(digest), &bare), Ok(Verified::Signature { version: 1, .. })));
            assert_eq!(
                certificates.verify_v1(&signature, &digest).unwrap_err(),
                VerifyError::UnknownKey { key_id: signature.key_id.to_vec() }
            );
            let other = hash(digest.algorithm(), &[b"other"]).unwrap();
            assert!(matches!(
                bare.verify_v1(&signature, &other),
                Err(VerifyError::Rejected { error: SignatureError::Wrong, .. })
            ));
        }
        assert_eq!(seen, 8);
    }

    #[test]
    fn keys_have_the_ids_that_the_kernel_and_evmctl_give_them() {
        for case in vectors("key/asymmetric_ids.json") {
            let key = PublicKey::from_bytes(&vector(&format!("key/{}", text(&case, "cert")))).unwrap();
            let certificate = key.certificate().unwrap();
            assert_eq!(to_hex(&certificate.serial_and_issuer), text(&case, "id0_serial_issuer"));
            assert_eq!(certificate.subject_key_id.as_deref().map(to_hex).as_deref(), case["id1_skid"].as_str());
            let by_sha1 = from_hex(text(&case, "keyid_evmctl_from_private_key_alone")).unwrap();
            let by_sha1 = *by_sha1.first_chunk().unwrap();
            match case["kernel_finds_by"].as_str() {
                Some(id) => {
                    assert_eq!(format!("id:{}", to_hex(&key.key_id())), id);
                    assert!(key.answers_to(&key.key_id()));
                }
                None => {
                    assert!(!key.answers_to(&by_sha1), "a certificate without SKID is not found by its key's SHA-1")
                }
            }
            let name = text(&case, "cert").trim_end_matches(".der");
            let bare = PublicKey::from_bytes(&vector(&format!("key/{name}.pub"))).unwrap();
            assert_eq!(bare.key_id(), by_sha1);
            assert!(bare.answers_to(&by_sha1));
            assert_eq!(signing_key(&format!("{name}.key")).key_id(), by_sha1);
            let pem = PublicKey::from_bytes(&vector(&format!("key/{name}.pem"))).unwrap();
            assert_eq!(pem.certificate(), key.certificate());
        }
    }

    #[test]
    fn the_first_key_with_an_id_decides_and_a_revoked_one_never_verifies() {
        let digest = hash(HashAlgorithm::Sha256, &[b"content"]).unwrap();
        let label = sign(&digest, &signing_key("rsa2048.key"), None).unwrap();
        let unknown = verify_label(&label, given(digest), &keyring(&["p256.der"])).unwrap_err();
        assert_eq!(unknown.to_string(), "unknown key id 0f44e507");
        let mut revoking = keyring(&["rsa2048.der"]);
        assert!(verify_label(&label, given(digest), &revoking).is_ok());
        revoking.revoke(PublicKey::from_bytes(&vector("key/rsa2048.der")).unwrap());
        let revoked = verify_label(&label, given(digest), &revoking).unwrap_err();
        assert_eq!(revoked.to_string(), "revoked key id 0f44e507");
        // Signed by one key in the name of another.
        let forged = sign(&digest, &signing_key("rsa2048-ownskid.key"), Some([0x0f, 0x44, 0xe5, 0x07])).unwrap();
        let wrong = verify_label(&forged, given(digest), &keyring(&["rsa2048.der"])).unwrap_err();
        assert_eq!(
            wrong,
            Rejected::Signature(VerifyError::Rejected {
                key_id: vec![0x0f, 0x44, 0xe5, 0x07],
                error: SignatureError::Wrong
            })
        );
    }

    #[test]
    fn every_kind_of_key_signs_what_verifies_under_it() {
        let hashes = [HashAlgorithm::Sha1, HashAlgorithm::Sha224, HashAlgorithm::Sha256, HashAlgorithm::Sha384]
            .into_iter()
            .chain([HashAlgorithm::Sha512, HashAlgorithm::Sha3_256, HashAlgorithm::Sha3_512]);
        let hashes = hashes.collect::<Vec<_>>();
        for kind in [KeyType::Rsa1024, KeyType::Rsa2048, KeyType::P256, KeyType::P384, KeyType::P521] {
            let key = SigningKey::generate(kind).unwrap();
            let certificate = key.self_signed_certificate("a test", 10).unwrap();
            let certificate = PublicKey::from_bytes(&certificate).unwrap();
            assert_eq!(certificate.key_id(), key.key_id());
            assert_eq!(certificate.certificate().unwrap().subject, "CN=a test");
            let keyring = [certificate].into_iter().collect::<Keyring>();
            for algorithm in &hashes {
                let digest = hash(*algorithm, &[b"content"]).unwrap();
                let label = sign(&digest, &key, None).unwrap();
                assert_eq!(imara_format::label::algorithm_of(&label), Some(*algorithm));
                let verified = verify_label(&label, given(digest), &keyring);
                assert!(verified.is_ok(), "{kind:?} {algorithm}: {verified:?}");
                let cut = &label[..label.len() - 1];
                assert!(matches!(verify_label(cut, given(digest), &keyring), Err(Rejected::Label(_))));
                let mut flipped = label.clone();
                *flipped.last_mut().unwrap() ^= 1;
                assert!(matches!(verify_label(&flipped, given(digest), &keyring), Err(Rejected::Signature(_))));
            }
            let unsupported = Digest::zeros(HashAlgorithm::Streebog256);
            assert!(matches!(key.sign(&unsupported), Err(SignatureError::UnsupportedHash { .. })));
        }
    }

    #[test]
    fn sm2_signs_sm3_digests_alone_and_openssl_made_the_key() {
        let key = signing_key("sm2.key");
        assert_eq!(key.kind(), KeyKind::Sm2);
        let keyring = keyring(&["sm2.pem"]);
        let digest = hash(HashAlgorithm::Sm3, &[b"content"]).unwrap();
        let label = sign(&digest, &key, None).unwrap();
        assert_eq!(label[..3], [3, 2, 17]);
        assert!(verify_label(&label, given(digest), &keyring).is_ok());
        let other = hash(HashAlgorithm::Sm3, &[b"another"]).unwrap();
        assert!(verify_label(&label, given(other), &keyring).is_err());
        let sha256 = hash(HashAlgorithm::Sha256, &[b"content"]).unwrap();
        assert!(matches!(sign(&sha256, &key, None), Err(SignError::Key(SignatureError::UnsupportedHash { .. }))));
        let made = SigningKey::generate(KeyType::Sm2).unwrap();
        assert_eq!(made.kind(), KeyKind::Sm2);
        assert_eq!(made.public().verify(&digest, &made.sign(&digest).unwrap()), Ok(()));
        let again = SigningKey::from_pem(&made.to_pem(None).unwrap(), None).unwrap();
        assert_eq!((again.kind(), again.key_id()), (KeyKind::Sm2, made.key_id()));
    }

    #[test]
    fn version_1_signatures_are_made_to_the_byte_as_evmctl_made_them() {
        let mut made = 0;
        for case in vectors("signature/signatures_other.json") {
            if !text(&case, "kind").ends_with("-v1") {
                continue;
            }
            let digest = Digest::new(algorithm(&case), &bytes(&case, "digest")).unwrap();
            let timestamp = u32::try_from(case["timestamp"].as_u64().unwrap()).unwrap();
            let key = signing_key(text(&case, "key"));
            assert_eq!(to_hex(&sign_v1(&digest, &key, timestamp).unwrap()), text(&case, "xattr"));
            assert_eq!(to_hex(key.public().v1_payload().unwrap()), text(&case, "pubkey_blob"));
            made += 1;
        }
        assert_eq!(made, 8);
        let sha512 = Digest::zeros(HashAlgorithm::Sha512);
        let rsa = signing_key("rsa1024.key");
        assert_eq!(sign_v1(&sha512, &rsa, 0), Err(SignError::V1Hash(HashAlgorithm::Sha512)));
        let ec = sign_v1(&Digest::zeros(HashAlgorithm::Sha1), &signing_key("p256.key"), 0);
        assert_eq!(ec, Err(SignError::Key(SignatureError::NotRsa(KeyKind::P256))));
    }

    #[test]
    fn a_version_3_signature_holds_for_its_type_of_label_alone() {
        let (digest, keyring) = (hash(HashAlgorithm::Sha256, &[b"content"]).unwrap(), keyring(&["rsa2048.der"]));
        let key = signing_key("rsa2048.key");
        let label = sign_v3(SignatureType::Signature, &digest, &key, None).unwrap();
        assert_eq!(label[..2], [3, 3]);
        assert!(matches!(
            verify_label(&label, given(digest), &keyring),
            Ok(Verified::Signature { version: 3, digest: signed, .. }) if signed == digest
        ));
        // The same bytes as a signature of an fs-verity digest, and the other way round.
        let renamed = |kind: u8, label: &[u8]| [&[kind], &label[1..]].concat();
        let verity = sign_verity(&digest, &key, None).unwrap();
        assert!(verify_verity_label(&verity, given(digest), &keyring).is_ok());
        assert!(verify_verity_label(&renamed(6, &label), given(digest), &keyring).is_err());
        assert!(verify_label(&renamed(3, &verity), given(digest), &keyring).is_err());
    }

    #[test]
    fn an_ecdsa_signature_with_anything_around_it_is_refused() {
        let digest = hash(HashAlgorithm::Sha256, &[b"content"]).unwrap();
        let key = signing_key("p256.key");
        let signature = key.sign(&digest).unwrap();
        let public = key.public();
        assert_eq!(public.verify(&digest, &signature), Ok(()));
        let followed = [&signature[..], &[0]].concat();
        // The same two integers with a length that BER allows and DER does not.
        let long_length = [&[0x30, 0x81][..], &signature[1..]].concat();
        for wrong in [&followed[..], &long_length, &signature[..8], &[], &[0x30]] {
            assert_eq!(public.verify(&digest, wrong), Err(SignatureError::NotDer));
        }
    }

    #[test]
    fn keys_are_read_from_every_form_or_refused_with_the_reason() {
        let plain = signing_key("rsa2048.key");
        let encrypted = vector("key/rsa2048-enc.key");
        let read = SigningKey::from_pem(&encrypted, Some(b"secret123")).unwrap();
        assert_eq!(read.key_id(), plain.key_id());
        for (passphrase, error) in [
            (None, KeyError::PassphraseNeeded),
            (Some(&b"wrong"[..]), KeyError::WrongPassphrase),
            (Some(&[b'x'; 5000][..]), KeyError::WrongPassphrase),
            (Some(&b""[..]), KeyError::WrongPassphrase),
        ] {
            assert_eq!(SigningKey::from_pem(&encrypted, passphrase).unwrap_err(), error);
        }
        let again = plain.to_pem(Some(b"another one")).unwrap();
        assert!(again.starts_with(b"-----BEGIN ENCRYPTED PRIVATE KEY-----"));
        assert_eq!(SigningKey::from_pem(&again, Some(b"another one")).unwrap().key_id(), plain.key_id());
        assert_eq!(signing_key("rsa2048-ownskid-combined.pem").key_id(), [5, 6, 7, 8]);
        let with_issuer = [vector("key/ca.pem"), vector("key/rsa2048-ownskid-combined.pem")].concat();
        assert_eq!(SigningKey::from_pem(&with_issuer, None).unwrap().key_id(), [5, 6, 7, 8]);
        let with_another = [vector("key/rsa2048.key"), vector("key/ca.pem")].concat();
        assert_eq!(SigningKey::from_pem(&with_another, None).unwrap().key_id(), plain.key_id());
        assert_eq!(PublicKey::from_bytes(&vector("key/rsa2048.key")).unwrap_err(), KeyError::PrivateKeyGiven);
        for junk in [&b""[..], b"nothing", &[0x30, 0x02, 0xff, 0xff], b"-----BEGIN X-----\n-----END X-----\n"] {
            assert!(matches!(PublicKey::from_bytes(junk), Err(KeyError::NotAPublicKey(_))), "{junk:?}");
            assert!(matches!(SigningKey::from_bytes(junk, None), Err(KeyError::NotAPrivateKey(_))), "{junk:?}");
        }
        let ed25519 = openssl_ed25519();
        assert_eq!(PublicKey::from_bytes(&ed25519).unwrap_err(), KeyError::UnsupportedType("ED25519".into()));
    }

    /// SubjectPublicKeyInfo of an Ed25519 key.
    fn openssl_ed25519() -> Vec<u8> {
        [&[0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00][..], &[9; 32]].concat()
    }

    #[test]
    fn a_digest_label_proves_the_content_alone() {
        let vectors: Value = serde_json::from_slice(&vector("label/labels.json")).unwrap();
        for (name, label) in vectors["digest_of_nothing"].as_object().unwrap() {
            let label = from_hex(label.as_str().unwrap()).unwrap();
            let digest = hash(HashAlgorithm::from_name(name).unwrap(), &[]).unwrap();
            assert_eq!(encode_digest(&digest), label);
            let padded = [&label[..], &[0; 3]].concat();
            assert!(matches!(verify_label(&label, given(digest), &Keyring::new()), Ok(Verified::Digest(_))));
            assert_eq!(verify_label(&padded, given(digest), &Keyring::new()).is_ok(), label[0] == 4);
            let found = hash(digest.algorithm(), &[b"x"]).unwrap();
            assert_eq!(
                verify_label(&label, given(found), &Keyring::new()).unwrap_err(),
                Rejected::Changed { labelled: Box::new(digest), found }
            );
        }
        for case in vectors["v3_message"].as_array().unwrap() {
            let algorithm = HashAlgorithm::from_name(text(case, "algorithm")).unwrap();
            let digest = Digest::new(algorithm, &bytes(case, "digest")).unwrap();
            assert_eq!(v3_digest(SignatureType::Verity, &digest).unwrap().to_hex(), text(case, "hashed"));
        }
        for label in vectors["evm_hmac"].as_array().unwrap() {
            let label = from_hex(label.as_str().unwrap()).unwrap();
            assert!(matches!(Label::parse_evm(&label), Ok(Label::EvmHmac(hmac)) if hmac.len() == 20));
            assert!(matches!(
                verify_label(&label, given(Digest::zeros(HashAlgorithm::Sha1)), &Keyring::new()),
                Err(Rejected::Label(LabelError::UnknownType { .. }))
            ));
        }
    }

    #[test]
    fn keys_are_shared_by_threads_and_opened_once() {
        fn shared<T: Send + Sync>() {}
        shared::<PublicKey>();
        shared::<Keyring>();
        shared::<SigningKey>();
        crate::crypto::warm_up().unwrap();
        let keyring = all_certificates();
        let digest = hash(HashAlgorithm::Sha256, &[b"content"]).unwrap();
        let label = sign(&digest, &signing_key("rsa2048.key"), None).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        assert!(verify_label(&label, given(digest), &keyring).is_ok());
                    }
                });
            }
        });
    }

    proptest! {
        #[test]
        fn any_bytes_are_verified_or_refused(
            kind in 0u8..8,
            version in 0u8..5,
            algorithm in any::<u8>(),
            rest in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            static KEYRING: LazyLock<Keyring> = LazyLock::new(|| keyring(&["p256.der", "rsa1024.pub"]));
            let mut signature = vec![kind, version, algorithm];
            signature.extend([0xca, 0x9e, 0xed, 0xda]);
            signature.extend(u16::try_from(rest.len()).unwrap().to_be_bytes());
            signature.extend(&rest);
            for label in [&signature[..], &rest] {
                let digest_for = |algorithm| hash(algorithm, &[b"content"]);
                prop_assert!(verify_label(label, digest_for, &KEYRING).is_err());
                prop_assert!(verify_verity_label(label, digest_for, &KEYRING).is_err());
            }
        }

        #[test]
        fn any_bytes_are_a_key_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = (PublicKey::from_bytes(&bytes), SigningKey::from_bytes(&bytes, Some(b"x")));
        }
    }
}
