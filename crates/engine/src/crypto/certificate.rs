//! What a certificate says beside its key.

use super::der::{BIT_STRING, Element, OBJECT_IDENTIFIER, SEQUENCE};
use super::digest::hash;
use super::key::{KeyError, key_bits, sha1_of};
use imara_format::hash::{Digest, HashAlgorithm, to_hex};
use openssl::asn1::Asn1Time;
use openssl::nid::Nid;
use openssl::x509::X509Ref;

/// What a certificate says beside the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The subject, `O=…, CN=…`.
    pub subject: String,
    /// The issuer.
    pub issuer: String,
    /// The serial number, big-endian, as its INTEGER has it.
    pub serial: Vec<u8>,
    /// The beginning of its validity as OpenSSL prints it.
    pub not_before: String,
    /// The end of its validity as OpenSSL prints it. Neither the kernel nor Imara refuses a signature for it.
    pub not_after: String,
    /// Whether that end has passed.
    pub expired: bool,
    /// Serial number, then the issuer's name without its SEQUENCE header: the kernel's first id of the key.
    pub serial_and_issuer: Vec<u8>,
    /// The subject key identifier, if it has one: the kernel's second id of the key.
    pub subject_key_id: Option<Vec<u8>>,
    /// The issuer's key identifier, if it names one.
    pub authority_key_id: Option<Vec<u8>>,
    /// Whether it says that its key may sign certificates (basicConstraints, `cA`).
    pub is_authority: bool,
    /// What its key may be used for, in X.509's words, if it says so (keyUsage).
    pub key_usage: Option<Vec<&'static str>>,
    /// The algorithm that its issuer signed it with, in OpenSSL's words.
    pub signature_algorithm: String,
    /// The digest of what its issuer signed, with the hash that it was signed with: what the kernel's `.blacklist` names
    /// as `tbs:`.
    pub to_be_signed: Option<Digest>,
    /// SHA-256 of all of it.
    pub fingerprint: Option<Digest>,
}

/// The bits of keyUsage, from the first one on.
///
/// Source: RFC 5280, 4.2.1.3.
const KEY_USAGES: [&str; 9] = [
    "digitalSignature",
    "nonRepudiation",
    "keyEncipherment",
    "dataEncipherment",
    "keyAgreement",
    "keyCertSign",
    "cRLSign",
    "encipherOnly",
    "decipherOnly",
];

impl Certificate {
    pub(super) fn new(certificate: &X509Ref) -> Result<Self, KeyError> {
        let mut serial = certificate.serial_number().to_bn()?.to_vec();
        // An INTEGER has a sign: a leading zero keeps a high first bit positive, and zero has one byte.
        if serial.first().is_none_or(|byte| byte & 0x80 != 0) {
            serial.insert(0, 0);
        }
        let issuer = certificate.issuer_name().to_der()?;
        let issuer = Element::parse(&issuer).map(|name| name.contents).unwrap_or_default();
        let der = certificate.to_der()?;
        let signed = to_be_signed(&der).unwrap_or_default();
        let algorithm = certificate.signature_algorithm().object().nid();
        let now = Asn1Time::days_from_now(0)?;
        Ok(Self {
            subject: name_text(certificate.subject_name()),
            issuer: name_text(certificate.issuer_name()),
            not_after: certificate.not_after().to_string(),
            expired: certificate.not_after().compare(&now)? == std::cmp::Ordering::Less,
            serial_and_issuer: [&serial, issuer].concat(),
            serial,
            not_before: certificate.not_before().to_string(),
            subject_key_id: certificate.subject_key_id().map(|id| id.as_slice().to_vec()),
            authority_key_id: certificate.authority_key_id().map(|id| id.as_slice().to_vec()),
            is_authority: extension(signed, BASIC_CONSTRAINTS).is_some_and(is_authority),
            key_usage: extension(signed, KEY_USAGE).map(key_usage),
            signature_algorithm: algorithm.long_name().unwrap_or("unknown").to_owned(),
            to_be_signed: hash_of(algorithm).and_then(|algorithm| hash(algorithm, &[signed]).ok()),
            fingerprint: hash(HashAlgorithm::Sha256, &[&der]).ok(),
        })
    }
}

fn name_text(name: &openssl::x509::X509NameRef) -> String {
    let entries = name.entries().map(|entry| {
        let value = entry.data().to_string().map_or_else(|_| to_hex(entry.data().as_slice()), |text| text.to_string());
        format!("{}={value}", entry.object().nid().short_name().unwrap_or("?"))
    });
    entries.collect::<Vec<_>>().join(", ")
}

/// The identifiers of extensions, as DER has them (2.5.29.15 and 2.5.29.19).
const KEY_USAGE: &[u8] = &[0x55, 0x1d, 15];
const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 19];
/// `[3]`, in which a certificate has its extensions.
const EXTENSIONS: u8 = 0xa3;
const BOOLEAN: u8 = 0x01;
const OCTET_STRING: u8 = 0x04;

/// The part of a certificate that its issuer signs, with its header.
fn to_be_signed(der: &[u8]) -> Option<&[u8]> {
    let certificate = Element::parse(der).filter(|element| element.tag == SEQUENCE)?;
    certificate.contents.get(..Element::parse(certificate.contents)?.size)
}

/// SHA-1 of the key's bit string, as [`super::key::key_hash`], from the certificate's own bytes: OpenSSL would write the key anew, which takes it as
/// long as reading the certificate.
pub(super) fn key_hash(certificate: &X509Ref) -> Option<[u8; 20]> {
    const VERSION: u8 = 0xa0;
    let der = certificate.to_der().ok()?;
    // Serial number, algorithm, issuer, validity, subject, key.
    let fields = elements(Element::parse(to_be_signed(&der)?)?.contents).filter(|field| field.tag != VERSION);
    let info = fields.take(6).last().filter(|info| info.tag == SEQUENCE)?;
    Some(sha1_of(key_bits(&info)?))
}

/// The elements that follow each other in some bytes.
fn elements(mut bytes: &[u8]) -> impl Iterator<Item = Element<'_>> {
    std::iter::from_fn(move || {
        let element = Element::parse(bytes)?;
        bytes = element.rest;
        Some(element)
    })
}

/// The value of an extension.
fn extension<'a>(signed: &'a [u8], identifier: &[u8]) -> Option<&'a [u8]> {
    let fields = Element::parse(signed)?.contents;
    let all = elements(fields).find(|element| element.tag == EXTENSIONS)?.contents;
    let found = elements(Element::parse(all)?.contents).find(|extension| {
        let first = Element::parse(extension.contents);
        first.is_some_and(|first| first.tag == OBJECT_IDENTIFIER && first.contents == identifier)
    })?;
    elements(found.contents).find(|element| element.tag == OCTET_STRING).map(|value| value.contents)
}

fn is_authority(value: &[u8]) -> bool {
    let first = Element::parse(value).and_then(|constraints| Element::parse(constraints.contents));
    first.is_some_and(|first| first.tag == BOOLEAN && first.contents == [0xff])
}

fn key_usage(value: &[u8]) -> Vec<&'static str> {
    // After the number of bits that the last byte lacks.
    let bits = Element::parse(value).filter(|element| element.tag == BIT_STRING).map_or(&[][..], |bits| bits.contents);
    let bytes = bits.split_first().map(|(_, bytes)| bytes).unwrap_or_default();
    let set = |bit: usize| bytes.get(bit / 8).is_some_and(|byte| byte & 0x80 >> (bit % 8) != 0);
    KEY_USAGES.into_iter().enumerate().filter(|(bit, _)| set(*bit)).map(|(_, name)| name).collect()
}

fn hash_of(algorithm: Nid) -> Option<HashAlgorithm> {
    Some(match algorithm.signature_algorithms()?.digest {
        Nid::SHA1 => HashAlgorithm::Sha1,
        Nid::SHA224 => HashAlgorithm::Sha224,
        Nid::SHA256 => HashAlgorithm::Sha256,
        Nid::SHA384 => HashAlgorithm::Sha384,
        Nid::SHA512 => HashAlgorithm::Sha512,
        Nid::SM3 => HashAlgorithm::Sm3,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use crate::crypto::{KeyType, PublicKey, SigningKey};

    #[test]
    fn a_certificate_says_what_its_key_is_for() {
        let key = SigningKey::generate(KeyType::P256).unwrap();
        let der = key.self_signed_certificate("a name", 3).unwrap();
        let read = PublicKey::from_bytes(&der).unwrap();
        let told = read.certificate().unwrap();
        assert_eq!(told.key_usage.as_deref(), Some(&["digitalSignature"][..]));
        assert!(!told.is_authority && !told.expired);
        assert_eq!((&told.subject, &told.issuer), (&"CN=a name".to_owned(), &"CN=a name".to_owned()));
        assert_eq!(told.authority_key_id, told.subject_key_id);
        assert_eq!(told.signature_algorithm, "ecdsa-with-SHA256");
        assert!(told.serial_and_issuer.starts_with(&told.serial));
    }

    #[test]
    fn what_the_issuer_signed_has_the_digest_that_openssl_finds() {
        // openssl asn1parse -inform der -in rsa2048.der -strparse 4 -out tbs -noout; openssl dgst -sha256 tbs
        let vector = |name: &str| {
            std::fs::read(format!("{}/../../tests/vectors/key/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
        };
        let read = PublicKey::from_bytes(&vector("rsa2048.der")).unwrap();
        let told = read.certificate().unwrap();
        assert_eq!(
            told.to_be_signed.as_ref().unwrap().to_hex(),
            "dc533b402e0c5b5d7cb25819d23e91265f1ac26a1b8da3b389d79df50ccf0c70"
        );
        assert_eq!(
            told.fingerprint.as_ref().unwrap().to_hex(),
            "8e111b3d38d24fa124a7f24b050bd06bc34b72f5ccdae0e74cfc157b8abc42ae"
        );
    }

    #[test]
    fn every_certificate_of_a_bundle_is_read() {
        let certificate =
            |name: &str| SigningKey::generate(KeyType::P256).unwrap().self_signed_certificate(name, 3).unwrap();
        let (first, second) = (certificate("first"), certificate("second"));
        let pem = |der: &[u8]| openssl::x509::X509::from_der(der).unwrap().to_pem().unwrap();
        let bundle = [pem(&first), b"between\n".to_vec(), pem(&second)].concat();
        let read = PublicKey::certificates(&bundle).unwrap();
        assert_eq!(read.iter().map(|(der, _)| der).collect::<Vec<_>>(), [&first, &second]);
        assert_eq!(PublicKey::certificates(&first).unwrap().len(), 1);
        let bare = SigningKey::generate(KeyType::P256).unwrap().public_pem().unwrap();
        assert!(PublicKey::certificates(&bare).is_err());
        let cut = &bundle[..bundle.len() - 40];
        assert!(PublicKey::certificates(cut).is_err());
    }
}
