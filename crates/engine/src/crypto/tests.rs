//! Keys in every form, and what is said of those that cannot be used.

use super::*;
use imara_format::hash::Digest;
use std::sync::{Arc, Mutex};

fn vector(name: &str) -> Vec<u8> {
    let path = format!("{}/../../tests/vectors/key/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn key(name: &str) -> SigningKey {
    SigningKey::from_bytes(&vector(name), None).unwrap()
}

#[test]
fn a_private_key_is_the_same_in_every_form() {
    for (name, passphrase, same_as, kind) in [
        ("rsa2048-enc.key", Some(&b"secret123"[..]), "rsa2048.key", KeyKind::Rsa(2048)),
        ("rsa2048-enc-traditional.key", Some(b"secret123"), "rsa2048.key", KeyKind::Rsa(2048)),
        ("rsa2048-enc.der", Some(b"secret123"), "rsa2048.key", KeyKind::Rsa(2048)),
        ("rsa2048-pkcs1.der", None, "rsa2048.key", KeyKind::Rsa(2048)),
        ("p256-pkcs8.der", None, "p256.key", KeyKind::P256),
        ("p256-sec1.key", None, "p256.key", KeyKind::P256),
        ("p521.key", None, "p521.key", KeyKind::P521),
        ("sm2.key", None, "sm2.key", KeyKind::Sm2),
    ] {
        let read = SigningKey::from_bytes(&vector(name), passphrase).unwrap();
        assert_eq!((read.key_id(), read.kind()), (key(same_as).key_id(), kind), "{name}");
        let copy = read.duplicate().unwrap();
        assert_eq!((copy.key_id(), copy.kind()), (read.key_id(), read.kind()), "{name}");
        if passphrase.is_some() {
            let without = SigningKey::from_bytes(&vector(name), None).unwrap_err();
            assert_eq!(without, KeyError::PassphraseNeeded, "{name}");
            let wrong = SigningKey::from_bytes(&vector(name), Some(b"another")).unwrap_err();
            assert_eq!(wrong, KeyError::WrongPassphrase, "{name}");
        }
    }
}

#[test]
fn a_key_in_a_certificate_has_the_id_that_it_has_without() {
    for name in ["ca", "leaf", "p256", "p384", "rsa1024", "rsa2048", "rsa2048-noskid", "rsa2048-ownskid", "sm2"] {
        let certificate = PublicKey::from_bytes(&vector(&format!("{name}.pem"))).unwrap();
        let bare = PublicKey::from_bytes(&vector(&format!("{name}.pub"))).unwrap();
        assert!(certificate.is_certificate() && !bare.is_certificate(), "{name}");
        assert!(certificate.is_same_key(&bare), "{name}");
    }
}

#[test]
fn what_is_no_private_key_is_said_as_what_it_is() {
    let cut = |name: &str, length| vector(name)[..length].to_vec();
    for (name, bytes, error) in [
        ("certificate", vector("rsa2048.der"), KeyError::PublicKeyGiven("a certificate")),
        ("certificate in PEM", vector("rsa2048.pem"), KeyError::PublicKeyGiven("a certificate")),
        ("public key in PEM", vector("p256.pub"), KeyError::PublicKeyGiven("a public key")),
        ("cut DER", cut("p256-pkcs8.der", 100), KeyError::Truncated { found: 100, stated: 138 }),
        ("cut PEM", cut("rsa2048.key", 900), KeyError::TruncatedPem),
        ("cut encrypted DER", cut("rsa2048-enc.der", 1000), KeyError::Truncated { found: 1000, stated: 1329 }),
    ] {
        assert_eq!(SigningKey::from_bytes(&bytes, Some(b"secret123")).unwrap_err(), error, "{name}");
    }
    for (name, bytes, error) in [
        ("private key in DER", vector("p256-pkcs8.der"), KeyError::PrivateKeyGiven),
        ("cut certificate", cut("rsa2048.der", 801), KeyError::Truncated { found: 801, stated: 802 }),
        ("cut certificate in PEM", cut("rsa2048.pem", 1000), KeyError::TruncatedPem),
    ] {
        assert_eq!(PublicKey::from_bytes(&bytes).unwrap_err(), error, "{name}");
    }
    let pem = PublicKey::from_certificate_der(&vector("rsa2048.pem"));
    assert!(matches!(pem, Err(KeyError::NotAPublicKey(_))), "{pem:?}");
}

#[test]
fn a_certificate_beside_a_key_is_known_by_its_key() {
    let combined = key("rsa2048-ownskid-combined.pem");
    assert!(combined.certificate().is_some() && combined.strange_certificate().is_none());
    assert_eq!(combined.duplicate().unwrap().key_id(), combined.key_id());
    let strange = SigningKey::from_bytes(&[vector("rsa2048.key"), vector("p256.pem")].concat(), None).unwrap();
    assert_eq!(strange.key_id(), key("rsa2048.key").key_id());
    assert!(strange.certificate().is_none());
    assert_eq!(strange.strange_certificate().unwrap().subject, "O=Spec vectors, CN=p256");
    let expired =
        SigningKey::from_bytes(&[vector("rsa2048.key"), vector("rsa2048-expired.pem")].concat(), None).unwrap();
    assert!(expired.certificate().unwrap().expired);
    assert!(!combined.certificate().unwrap().expired);
}

/// A token that holds a key of ours, and keeps what it was given to sign.
struct Token {
    public: TokenPublicKey,
    key: PKey<openssl::pkey::Private>,
    signed: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl TokenKey for Token {
    fn public(&self) -> &TokenPublicKey {
        &self.public
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, String> {
        self.signed.lock().unwrap().push(message.to_vec());
        if let Ok(rsa) = self.key.rsa() {
            let mut signature = vec![0; rsa.size() as usize];
            rsa.private_encrypt(message, &mut signature, openssl::rsa::Padding::PKCS1).map_err(|e| e.to_string())?;
            return Ok(signature);
        }
        let ec = self.key.ec_key().map_err(|error| error.to_string())?;
        let signature = openssl::ecdsa::EcdsaSig::sign(message, &ec).map_err(|error| error.to_string())?;
        let integer = |number: &openssl::bn::BigNumRef| number.to_vec_padded(32).unwrap();
        Ok([integer(signature.r()), integer(signature.s())].concat())
    }
}

#[test]
fn a_key_in_a_token_signs_as_one_in_a_file_and_never_leaves_it() {
    let digest = hash(HashAlgorithm::Sha256, &[b"content"]).unwrap();
    for name in ["rsa2048", "p256"] {
        let private = PKey::private_key_from_pem(&vector(&format!("{name}.key"))).unwrap();
        let public = match private.rsa() {
            Ok(rsa) => TokenPublicKey::Rsa { modulus: rsa.n().to_vec(), exponent: rsa.e().to_vec() },
            Err(_) => TokenPublicKey::Ec {
                parameters: vec![6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7],
                point: {
                    let key = private.ec_key().unwrap();
                    let mut context = openssl::bn::BigNumContext::new().unwrap();
                    let form = openssl::ec::PointConversionForm::UNCOMPRESSED;
                    key.public_key().to_bytes(key.group(), form, &mut context).unwrap()
                },
            },
        };
        let signed = Arc::default();
        let token = Token { public, key: private, signed: Arc::clone(&signed) };
        let key = SigningKey::in_token(Box::new(token)).unwrap();
        assert_eq!(key.key_id(), self::key(&format!("{name}.key")).key_id());
        let certificate = PublicKey::from_bytes(&vector(&format!("{name}.der"))).unwrap();
        assert_eq!(certificate.verify(&digest, &key.sign(&digest).unwrap()), Ok(()), "{name}");
        assert!(signed.lock().unwrap()[0].ends_with(digest.as_bytes()));
        assert_eq!(key.to_pem(None).unwrap_err(), KeyError::InToken);
        assert!(matches!(key.duplicate(), Err(KeyError::InToken)));
        let v1 = crate::label::sign_v1(&Digest::zeros(HashAlgorithm::Sha1), &key, 7);
        assert_eq!(v1.is_ok(), name == "rsa2048");
    }
    let junk = TokenPublicKey::Ec { parameters: vec![1], point: vec![2] };
    let token =
        Token { public: junk, key: PKey::from_rsa(Rsa::generate(1024).unwrap()).unwrap(), signed: Arc::default() };
    assert!(matches!(SigningKey::in_token(Box::new(token)), Err(KeyError::NotAPublicKey(_))));
}

#[test]
fn bytes_that_are_no_key_are_told_by_what_they_are_and_nothing_of_them_is_shown() {
    for (bytes, said) in [
        (&b""[..], "it is empty"),
        (b"\x7fELF\x02\x01", "it is an ELF file"),
        (b"ssh-rsa AAAA me@here", "it is an OpenSSH key"),
        (b"my secret\n", "it is text without a BEGIN line"),
        (&[0x9c; 32], "it does not begin with a SEQUENCE, as DER does"),
    ] {
        let public = PublicKey::from_bytes(bytes).unwrap_err().to_string();
        assert_eq!(public, format!("neither a certificate nor a public key, in DER or PEM ({said})"));
        let private = SigningKey::from_bytes(bytes, None).unwrap_err().to_string();
        assert_eq!(private, format!("no private key in PEM or DER ({said})"));
    }
}
