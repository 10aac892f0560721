//! OpenPGP's public keys and signatures, as far as packages are signed with them.
//!
//! A packet is a byte that says of what kind it is, its length, and its body. Key files have them in base64, between lines `-----BEGIN PGP PUBLIC KEY
//! BLOCK-----` and `-----END …`.
//!
//! | kind | body |
//! |---|---|
//! | 2 | a signature |
//! | 6, 14 | a public key, a subkey |
//! | 13 | what people call its owner |
//!
//! | size | a public key (version 4) |
//! |---|---|
//! | 1 | 4; 6 has the material's length (4 bytes) behind the algorithm |
//! | 4 | when it was made |
//! | 1 | algorithm: 1, 3 RSA; 19 ECDSA; 22 EdDSA; 27 Ed25519 |
//! | … | material: numbers, each its length in bits (2 bytes) and its bytes, with the curve before them (1 byte length); of 27 32 bytes |
//!
//! | size | a signature (version 4) |
//! |---|---|
//! | 1 | 4; 6 has lengths of 4 bytes below, and a salt (1 byte length) before the numbers |
//! | 1 | of what: 0 a document, 0x10 to 0x13 a key and its owner, 0x18 a subkey, 0x1f a key, 0x20 and 0x28 that one is revoked |
//! | 1, 1 | algorithm, hash |
//! | 2, … | what is signed with it: subpackets, each its length, its kind and a value |
//! | 2, … | more of them, that nobody vouches for |
//! | 2 | the beginning of the digest |
//! | … | numbers |
//!
//! Of version 3 the type and time alone are signed.
//!
//! Source: RFC 9580, RFC 4880.

use crate::base64;
use crate::hash::HashAlgorithm;
use crate::rpm::package::openpgp_hash;
use std::sync::Arc;

/// Why something is not read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenPgpError {
    /// There is no key in it.
    #[error("no OpenPGP public key: neither packets nor a block `-----BEGIN PGP PUBLIC KEY BLOCK-----`")]
    NoKey,
    /// A block that does not end, or is no base64.
    #[error("the block in line {line} is damaged: {what}")]
    Armor {
        /// Its first line.
        line: usize,
        /// What is wrong.
        what: &'static str,
    },
    /// A packet that contradicts itself.
    #[error("the packet at byte {offset} is damaged: {what}")]
    Packet {
        /// Where it begins.
        offset: usize,
        /// What is wrong.
        what: &'static str,
    },
}

/// A public key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Its version.
    pub version: u8,
    /// When it was made, in seconds since 1970.
    pub created: u32,
    /// What it is.
    pub material: Material,
    /// What its fingerprint and signatures over it are made of.
    pub body: Vec<u8>,
}

/// What a key is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Material {
    /// Modulus and exponent.
    Rsa(Vec<u8>, Vec<u8>),
    /// A point of P-256, P-384 or P-521, with 4 before it.
    Ecdsa(Curve, Vec<u8>),
    /// A point.
    Ed25519([u8; 32]),
    /// An algorithm that is not known here.
    Other(u8),
}

/// A curve of NIST's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Curve {
    P256,
    P384,
    P521,
}

/// A signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// Of what.
    pub kind: u8,
    /// By which hash; none that is known here.
    pub hash: Option<HashAlgorithm>,
    /// When it was made.
    pub created: Option<u32>,
    /// How many seconds after that it ends, if ever.
    pub expires: Option<u32>,
    /// How many seconds after a key was made it ends, if ever.
    pub key_expires: Option<u32>,
    /// What a key may be used for.
    pub key_flags: Option<u8>,
    /// Who is said to have made it: the end of a key's fingerprint, or its beginning for version 6.
    pub issuer: Option<[u8; 8]>,
    /// It says something that must be understood, and is not known here.
    pub is_beyond: bool,
    /// The signature.
    pub value: Value,
    /// Further signatures that it carries, not read: of a subkey that signs, over the key that it belongs to.
    pub embedded: Vec<Vec<u8>>,
    /// What goes into the digest before what is signed.
    pub salt: Vec<u8>,
    /// And what behind it.
    pub trailer: Vec<u8>,
}

/// What a signature is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A number.
    Rsa(Vec<u8>),
    /// Two.
    Ecdsa(Vec<u8>, Vec<u8>),
    /// Two, one after the other.
    Ed25519([u8; 64]),
    /// An algorithm that is not known here.
    Other(u8),
}

/// A key with what belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The key itself.
    pub primary: Key,
    /// What people call its owner.
    pub user: Option<String>,
    /// Signatures that say something of it; with the owner's name that they are of, if of one.
    pub signatures: Vec<(Option<Arc<[u8]>>, Signature)>,
    /// Further keys, each with the signatures of it.
    pub subkeys: Vec<(Key, Vec<Signature>)>,
}

/// Reads all keys of a file, as packets or in blocks.
///
/// # Errors
/// [`OpenPgpError`].
pub fn certificates(bytes: &[u8]) -> Result<Vec<Certificate>, OpenPgpError> {
    const BEGIN: &[u8] = b"-----BEGIN PGP PUBLIC KEY BLOCK-----";
    let found = if bytes.windows(BEGIN.len()).any(|window| window == BEGIN) {
        let mut found = Vec::new();
        for block in blocks(bytes, BEGIN)? {
            found.extend(of_packets(&block)?);
        }
        found
    } else if bytes.first().is_some_and(|byte| byte & 0x80 != 0) {
        of_packets(bytes)?
    } else {
        return Err(OpenPgpError::NoKey);
    };
    if found.is_empty() { Err(OpenPgpError::NoKey) } else { Ok(found) }
}

/// Reads the signatures that packets hold.
///
/// # Errors
/// [`OpenPgpError`].
pub fn signatures(bytes: &[u8]) -> Result<Vec<Signature>, OpenPgpError> {
    let mut signatures = Vec::new();
    for packet in packets(bytes)? {
        if packet.kind == 2 {
            signatures.push(signature(&packet)?);
        }
    }
    Ok(signatures)
}

fn blocks(bytes: &[u8], begin: &[u8]) -> Result<Vec<Vec<u8>>, OpenPgpError> {
    let (mut blocks, mut block) = (Vec::new(), None::<(usize, bool, String)>);
    for (number, line) in (1..).zip(bytes.split(|byte| *byte == b'\n')) {
        let line = line.trim_ascii();
        match &mut block {
            None if line == begin => block = Some((number, false, String::new())),
            None => {}
            // Headers end with an empty line.
            Some((_, inside, _)) if !*inside => *inside = line.is_empty(),
            Some((first, _, text)) if line.starts_with(b"-----END ") => {
                let damaged = OpenPgpError::Armor { line: *first, what: "it is not in base64" };
                blocks.push(base64::decode(text).ok_or(damaged)?);
                block = None;
            }
            // A checksum, which says nothing that a signature would not.
            Some(_) if line.starts_with(b"=") => {}
            Some((_, _, text)) => text.push_str(&String::from_utf8_lossy(line)),
        }
    }
    match block {
        None => Ok(blocks),
        Some((line, ..)) => Err(OpenPgpError::Armor { line, what: "it does not end" }),
    }
}

struct Packet<'p> {
    offset: usize,
    kind: u8,
    body: &'p [u8],
}

/// Reads from the front.
struct Reader<'r>(&'r [u8]);

impl<'r> Reader<'r> {
    fn take(&mut self, count: usize) -> Option<&'r [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn number(&mut self, size: usize) -> Option<usize> {
        Some(self.take(size)?.iter().fold(0, |number, byte| number << 8 | usize::from(*byte)))
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    /// Its length in bits, and its bytes; without zeros before them, which nobody should have written.
    fn integer(&mut self) -> Option<&'r [u8]> {
        let bits = self.number(2)?;
        let bytes = self.take(bits.div_ceil(8))?;
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        bytes.get(zeros..)
    }

    /// As packets and subpackets have it, but for packets in pieces (first byte 224 to 254), which are for contents alone.
    fn length(&mut self) -> Option<usize> {
        let first = self.byte()?;
        Some(match first {
            0..=191 => usize::from(first),
            192..=254 => (usize::from(first).saturating_sub(192) << 8)
                .saturating_add(usize::from(self.byte()?))
                .saturating_add(192),
            255 => self.number(4)?,
        })
    }
}

fn packets(bytes: &[u8]) -> Result<Vec<Packet<'_>>, OpenPgpError> {
    let (mut packets, mut reader) = (Vec::new(), Reader(bytes));
    while !reader.0.is_empty() {
        let offset = bytes.len().saturating_sub(reader.0.len());
        let damaged = |what| OpenPgpError::Packet { offset, what };
        let head = reader.byte().unwrap_or(0);
        let (kind, length) = match head {
            0xc0.. if matches!(reader.0.first(), Some(224..=254)) => (head & 0x3f, None),
            0xc0.. => (head & 0x3f, reader.length()),
            0x80.. => {
                let length = match head & 3 {
                    0 => reader.number(1),
                    1 => reader.number(2),
                    2 => reader.number(4),
                    _ => None,
                };
                (head >> 2 & 0xf, length)
            }
            _ => return Err(damaged("no packet begins like this")),
        };
        let length = length.ok_or_else(|| damaged("it has no length"))?;
        let body = reader.take(length).ok_or_else(|| damaged("it is cut off"))?;
        packets.push(Packet { offset, kind, body });
    }
    Ok(packets)
}

fn of_packets(bytes: &[u8]) -> Result<Vec<Certificate>, OpenPgpError> {
    let mut certificates = Vec::<Certificate>::new();
    let mut user = None::<Arc<[u8]>>;
    for packet in packets(bytes)? {
        match (packet.kind, certificates.last_mut()) {
            (6, _) => {
                user = None;
                let primary = key(&packet)?;
                certificates.push(Certificate { primary, user: None, signatures: Vec::new(), subkeys: Vec::new() });
            }
            (13, Some(certificate)) => {
                let name = String::from_utf8_lossy(packet.body).into_owned();
                certificate.user.get_or_insert(name);
                user = Some(packet.body.into());
            }
            // A picture, of which signatures are that follow.
            (17, Some(_)) => user = None,
            (14, Some(certificate)) => certificate.subkeys.push((key(&packet)?, Vec::new())),
            (2, Some(certificate)) => {
                let signature = signature(&packet)?;
                match certificate.subkeys.last_mut() {
                    Some((_, signatures)) => signatures.push(signature),
                    None => certificate.signatures.push((user.clone(), signature)),
                }
            }
            // Marks, trust of the program that wrote them.
            _ => {}
        }
    }
    Ok(certificates)
}

fn curve(oid: &[u8]) -> Option<Curve> {
    Some(match oid {
        [0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7] => Curve::P256,
        [0x2b, 0x81, 4, 0, 0x22] => Curve::P384,
        [0x2b, 0x81, 4, 0, 0x23] => Curve::P521,
        _ => return None,
    })
}

const ED25519: [u8; 9] = [0x2b, 6, 1, 4, 1, 0xda, 0x47, 0x0f, 1];

fn key(packet: &Packet<'_>) -> Result<Key, OpenPgpError> {
    let short = || OpenPgpError::Packet { offset: packet.offset, what: "a key that is cut off, or too long" };
    let read = || -> Option<Key> {
        let mut reader = Reader(packet.body);
        let version = reader.byte()?;
        let created = u32::try_from(reader.number(4)?).ok()?;
        // What is longer has no fingerprint.
        if version == 4 && packet.body.len() > usize::from(u16::MAX) {
            return None;
        }
        if !matches!(version, 4 | 6) {
            return Some(Key { version, created, material: Material::Other(0), body: packet.body.to_vec() });
        }
        let algorithm = reader.byte()?;
        if version == 6 {
            let length = reader.number(4)?;
            reader = Reader(reader.take(length)?);
        }
        let material = match algorithm {
            1 | 3 => Material::Rsa(reader.integer()?.to_vec(), reader.integer()?.to_vec()),
            19 | 22 => {
                let length = usize::from(reader.byte()?);
                let oid = reader.take(length)?;
                let point = reader.integer()?;
                match (algorithm, curve(oid)) {
                    (19, Some(curve)) => Material::Ecdsa(curve, point.to_vec()),
                    (22, _) if oid == ED25519 => Material::Ed25519(point.strip_prefix(&[0x40])?.try_into().ok()?),
                    _ => Material::Other(algorithm),
                }
            }
            27 => Material::Ed25519(reader.array()?),
            other => Material::Other(other),
        };
        Some(Key { version, created, material, body: packet.body.to_vec() })
    };
    read().ok_or_else(short)
}

fn signature(packet: &Packet<'_>) -> Result<Signature, OpenPgpError> {
    let short = || OpenPgpError::Packet { offset: packet.offset, what: "a signature that is cut off" };
    parse_signature(packet.body).ok_or_else(short)
}

fn parse_signature(body: &[u8]) -> Option<Signature> {
    let mut reader = Reader(body);
    let version = reader.byte()?;
    let mut found = Signature {
        kind: 0,
        hash: None,
        created: None,
        expires: None,
        key_expires: None,
        key_flags: None,
        issuer: None,
        is_beyond: false,
        embedded: Vec::new(),
        value: Value::Other(0),
        salt: Vec::new(),
        trailer: Vec::new(),
    };
    let algorithm = match version {
        3 => {
            reader.byte().filter(|length| *length == 5)?;
            let signed = reader.take(5)?;
            let mut inner = Reader(signed);
            found.kind = inner.byte()?;
            found.created = u32::try_from(inner.number(4)?).ok();
            found.trailer = signed.to_vec();
            found.issuer = Some(reader.array()?);
            let algorithm = reader.byte()?;
            found.hash = openpgp_hash(u64::from(reader.byte()?));
            reader.take(2)?;
            algorithm
        }
        4 | 6 => {
            let size = if version == 4 { 2 } else { 4 };
            found.kind = reader.byte()?;
            let algorithm = reader.byte()?;
            found.hash = openpgp_hash(u64::from(reader.byte()?));
            let length = reader.number(size)?;
            let hashed = reader.take(length)?;
            let signed = body.len().checked_sub(reader.0.len())?;
            subpackets(hashed, true, &mut found)?;
            let length = reader.number(size)?;
            subpackets(reader.take(length)?, false, &mut found)?;
            reader.take(2)?;
            if version == 6 {
                let length = reader.number(1)?;
                found.salt = reader.take(length)?.to_vec();
            }
            let length = u32::try_from(signed).ok()?.to_be_bytes();
            found.trailer = [body.get(..signed)?, &[version, 0xff], &length].concat();
            algorithm
        }
        // Another that nobody here has a key for.
        _ => return Some(Signature { is_beyond: true, ..found }),
    };
    found.value = match algorithm {
        1 | 3 => Value::Rsa(reader.integer()?.to_vec()),
        19 => Value::Ecdsa(reader.integer()?.to_vec(), reader.integer()?.to_vec()),
        22 => {
            let (r, s) = (reader.integer()?, reader.integer()?);
            let mut both = [0; 64];
            let (first, second) = both.split_at_mut(32);
            for (half, number) in [(first, r), (second, s)] {
                // Numbers are written without the zeros before them.
                let start = half.len().checked_sub(number.len())?;
                half.get_mut(start..)?.copy_from_slice(number);
            }
            Value::Ed25519(both)
        }
        27 => Value::Ed25519(reader.array()?),
        other => Value::Other(other),
    };
    Some(found)
}

impl Signature {
    /// The signatures that it carries, but for what is none.
    pub fn carried(&self) -> impl Iterator<Item = Self> {
        self.embedded.iter().filter_map(|body| parse_signature(body))
    }
}

/// What is not signed only says whose key to look for.
fn subpackets(bytes: &[u8], signed: bool, found: &mut Signature) -> Option<()> {
    let mut reader = Reader(bytes);
    while !reader.0.is_empty() {
        let length = reader.length()?;
        let mut value = Reader(reader.take(length)?);
        let kind = value.byte()?;
        let number = |value: &mut Reader<'_>| value.number(4).and_then(|number| u32::try_from(number).ok());
        match (kind & 0x7f, signed) {
            (2, true) => found.created = Some(number(&mut value)?),
            (3, true) => found.expires = number(&mut value).filter(|seconds| *seconds > 0),
            (9, true) => found.key_expires = number(&mut value).filter(|seconds| *seconds > 0),
            (27, true) => found.key_flags = value.byte(),
            (16, _) => found.issuer = found.issuer.or(value.array()),
            (33, _) => {
                let version = value.byte()?;
                let id = if version == 4 { value.0.last_chunk() } else { value.0.first_chunk() };
                found.issuer = id.copied().or(found.issuer);
            }
            // It proves itself.
            (32, _) => found.embedded.push(value.0.to_vec()),
            // Preferences, reasons, what others may do: that these are known takes nothing from a signature, and gives it nothing.
            (4..=7 | 11 | 12 | 21..=26 | 28..=31 | 34, _) => {}
            // Marked as what must be understood, and is not: such as somebody's own notations.
            (_, true) if kind & 0x80 != 0 => found.is_beyond = true,
            _ => {}
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ARMORED: &[u8] = include_bytes!("../../../tests/vectors/rpm/eddsa.asc");
    const SUBKEY: &[u8] = include_bytes!("../../../tests/vectors/rpm/openpgp/subkey.pgp");
    const SIGNATURE: &[u8] = include_bytes!("../../../tests/vectors/rpm/openpgp/subkey.sig");

    #[test]
    fn keys_are_read_with_what_belongs_to_them() {
        let twice = [ARMORED, b"\nwords between them\n", ARMORED].concat();
        assert_eq!(certificates(&twice).unwrap().len(), 2);
        let found = certificates(ARMORED).unwrap();
        assert_eq!(found[0].user.as_deref(), Some("eddsa <eddsa@example.com>"));
        assert!(matches!(found[0].primary.material, Material::Ed25519(_)));
        let found = certificates(SUBKEY).unwrap();
        assert_eq!((found.len(), found[0].signatures.len(), found[0].subkeys.len()), (1, 1, 1));
        assert!(matches!(&found[0].subkeys[0].0.material, Material::Rsa(modulus, _) if modulus.len() == 256));
        let acknowledged = &found[0].subkeys[0].1[0];
        assert_eq!(acknowledged.key_flags, Some(2));
        assert_eq!(acknowledged.carried().map(|carried| carried.kind).collect::<Vec<_>>(), [0x19]);
    }

    #[test]
    fn a_signature_says_who_made_it_and_when() {
        let found = signatures(SIGNATURE).unwrap();
        assert_eq!((found.len(), found[0].kind, found[0].hash), (1, 0, Some(HashAlgorithm::Sha512)));
        assert_eq!((found[0].created, found[0].is_beyond), (Some(1_700_438_400), false));
        assert_eq!(found[0].issuer, Some([0xf9, 0x89, 0x3f, 0x37, 0x55, 0xfe, 0x7c, 0x48]));
        assert!(matches!(&found[0].value, Value::Rsa(number) if number.len() == 256));
    }

    #[test]
    fn what_is_no_key_is_refused_with_the_reason() {
        let text = str::from_utf8(ARMORED).unwrap();
        for (bytes, what) in [
            (b"".to_vec(), "no OpenPGP public key"),
            (b"a certificate".to_vec(), "no OpenPGP public key"),
            (SIGNATURE.to_vec(), "no OpenPGP public key"),
            (text.replace("-----END", "").into_bytes(), "the block in line 1 is damaged"),
            (text.replace("\n=", "\n!=").into_bytes(), "not in base64"),
            (SUBKEY[..SUBKEY.len() - 1].to_vec(), "it is cut off"),
            (vec![0x99], "it has no length"),
            (vec![0xc6, 0xff, 0xff, 0xff, 0xff, 0xff], "it is cut off"),
            (vec![0xc6, 0x02, 4, 0], "a key that is cut off"),
        ] {
            let error = certificates(&bytes).unwrap_err().to_string();
            assert!(error.contains(what), "{what}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(offset in 0..SUBKEY.len(), byte: u8, any in proptest::collection::vec(any::<u8>(), 0..200)) {
            let (mut key, mut signature) = (SUBKEY.to_vec(), SIGNATURE.to_vec());
            key[offset] = byte;
            let place = offset % signature.len();
            signature[place] = byte;
            for bytes in [key, signature, any] {
                let _ = (certificates(&bytes), signatures(&bytes));
            }
        }
    }
}
