//! Any bytes as `security.ima` and `security.evm`: what is read is written back to the same bytes, and verifies under no key
//! that did not sign it.

#![no_main]

use imara_engine::crypto::PublicKey;
use imara_format::hash::Digest;
use imara_format::label::{Label, algorithm_of, digest_part, encode_digest};
use imara_format::signature::{Signature, SignatureType};
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

static KEYS: LazyLock<[PublicKey; 2]> = LazyLock::new(|| {
    [
        PublicKey::from_bytes(include_bytes!("../../tests/vectors/key/p384.der")).expect("a certificate"),
        PublicKey::from_bytes(include_bytes!("../../tests/vectors/key/ca.der")).expect("a certificate"),
    ]
});

fuzz_target!(|label: &[u8]| {
    let _ = digest_part(label);
    let read = [Label::parse_ima(label), Label::parse_evm(label)];
    for read in read.into_iter().flatten() {
        let signature = match read {
            Label::Digest { digest, padding, legacy } => {
                assert_eq!(algorithm_of(label), Some(digest.algorithm()));
                let written = encode_digest(&digest);
                // What has an algorithm of its own is also read where it says more than it needs to.
                if written.len() + padding == label.len() && (written.first() == label.first()) {
                    assert!(label.starts_with(&written), "{legacy}");
                }
                continue;
            }
            Label::EvmHmac(mac) => {
                assert_eq!(mac.len(), 20);
                continue;
            }
            Label::Signature(signature) | Label::EvmPortable(signature) | Label::VeritySignature(signature) => {
                signature
            }
        };
        let kind = [SignatureType::Signature, SignatureType::Portable, SignatureType::Verity];
        let kind = kind.into_iter().find(|kind| label.first() == Some(&kind.id())).expect("one of the three");
        match signature {
            Signature::V1(_) => assert_eq!(signature.version(), 1),
            Signature::V2(v2) => assert_eq!(v2.encode(kind).as_deref(), Ok(label)),
            Signature::V3(v3) => assert_eq!(v3.encode_v3(kind).as_deref(), Ok(label)),
        }
        if let Signature::V2(v2) | Signature::V3(v2) = signature {
            // None of the vectors was made with these keys over nothing but zeros.
            let digest = Digest::zeros(v2.algorithm);
            assert!(KEYS.iter().all(|key| key.verify(&digest, v2.signature).is_err()));
        }
    }
});
