//! Any bytes as a file with a private key, a certificate or a public key, and as a PKCS#11 URI.

#![no_main]

use imara_engine::crypto::{KeyKind, PublicKey, SigningKey, hash};
use imara_format::hash::HashAlgorithm;
use imara_format::pkcs11_uri::Pkcs11Uri;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = str::from_utf8(bytes) {
        let _ = Pkcs11Uri::parse(text);
    }
    let _ = PublicKey::from_certificate_der(bytes);
    if let Ok(key) = PublicKey::from_bytes(bytes) {
        let _ = (key.key_id(), key.v1_id(), key.certificate().map(|certificate| certificate.subject.len()));
        assert!(key.is_same_key(&key));
    }
    if let Ok(key) = SigningKey::from_bytes(bytes, Some(b"secret123")) {
        let algorithm = if key.kind() == KeyKind::Sm2 { HashAlgorithm::Sm3 } else { HashAlgorithm::Sha256 };
        let digest = hash(algorithm, &[b"content"]).expect("known hashes");
        // A damaged key may still be read; what it then signs need not verify, and must not do harm.
        if let Ok(signature) = key.sign(&digest) {
            let _ = key.public().verify(&digest, &signature);
        }
    }
});
