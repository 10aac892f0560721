//! Public areas: what a TPM object is, as everybody may know it.
//!
//! | size | meaning |
//! |---|---|
//! | 2 | type: 0001 RSA, 0023 elliptic curve, 0008 keyed hash (sealed data among them), 0025 symmetric |
//! | 2 | the algorithm of its name |
//! | 4 | attributes |
//! | 2 + n | digest of its policy, or empty |
//! | | parameters of the type |
//! | 2 + n, twice for a curve's point | what makes it unique: modulus, point, or digest |
//!
//! Its name is the algorithm's two bytes and the hash of all of this.
//!
//! Source: TPMT_PUBLIC, TCG TPM 2.0 Library, part 2.

use super::{Reader, StructureError};
use crate::hash::HashAlgorithm;
use std::fmt;

/// A public area.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct PublicArea {
    bytes: Vec<u8>,
    /// The algorithm of its name, as the TPM numbers it.
    pub name_algorithm: u16,
    /// What it may be used for.
    pub attributes: ObjectAttributes,
    /// The digest of its policy; empty where it has none.
    pub policy: Vec<u8>,
    /// What it is.
    pub kind: PublicKind,
}

/// What an object is, with its parameters.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PublicKind {
    /// An RSA key.
    Rsa {
        /// How a storage key protects its children.
        symmetric: Option<Symmetric>,
        /// The scheme that it is bound to.
        scheme: Option<Scheme>,
        /// The modulus' size in bits.
        bits: u16,
        /// The public exponent.
        exponent: u32,
        /// The modulus; empty or all zero in a template.
        modulus: Vec<u8>,
    },
    /// A key on an elliptic curve.
    Ecc {
        /// How a storage key protects its children.
        symmetric: Option<Symmetric>,
        /// The scheme that it is bound to.
        scheme: Option<Scheme>,
        /// The curve.
        curve: Curve,
        /// The point's x; empty or all zero in a template.
        x: Vec<u8>,
        /// The point's y.
        y: Vec<u8>,
    },
    /// An HMAC key, or sealed data when it has no scheme.
    KeyedHash {
        /// Whether it has a scheme, so is a key.
        is_key: bool,
        /// The digest of its secret and a seed.
        unique: Vec<u8>,
    },
    /// A symmetric key.
    Symmetric,
}

/// A block cipher: its TPM identifier, the key's bits, and the mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Symmetric {
    /// The cipher; AES is 6.
    pub algorithm: u16,
    /// Bits of the key.
    pub bits: u16,
    /// The mode; CFB is 0x43.
    pub mode: u16,
}

/// A signing or encryption scheme, with the hash that it uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Scheme {
    /// The scheme; RSASSA is 0x14, RSAPSS 0x16, ECDSA 0x18.
    pub algorithm: u16,
    /// The hash; 0 for RSAES, which has none.
    pub hash: u16,
}

/// A named curve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Curve {
    /// NIST P-256.
    P256,
    /// NIST P-384.
    P384,
    /// NIST P-521.
    P521,
    /// Another, by the TPM's number.
    Other(u16),
}

impl Curve {
    const fn from_id(id: u16) -> Self {
        match id {
            3 => Self::P256,
            4 => Self::P384,
            5 => Self::P521,
            other => Self::Other(other),
        }
    }
}

impl fmt::Display for Curve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::P256 => f.write_str("P-256"),
            Self::P384 => f.write_str("P-384"),
            Self::P521 => f.write_str("P-521"),
            Self::Other(id) => write!(f, "curve {id:#06x}"),
        }
    }
}

/// An object's attributes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ObjectAttributes(pub u32);

impl ObjectAttributes {
    /// It never leaves its TPM.
    pub const FIXED_TPM: Self = Self(1 << 1);
    /// It never leaves its parent.
    pub const FIXED_PARENT: Self = Self(1 << 4);
    /// The TPM made its secret.
    pub const SENSITIVE_DATA_ORIGIN: Self = Self(1 << 5);
    /// Its authorisation value is enough to use it.
    pub const USER_WITH_AUTH: Self = Self(1 << 6);
    /// Failed authorisations of it do not count towards a lockout.
    pub const NO_DA: Self = Self(1 << 10);
    /// It works on nothing but what the TPM made or vouches for.
    pub const RESTRICTED: Self = Self(1 << 16);
    /// It decrypts.
    pub const DECRYPT: Self = Self(1 << 17);
    /// It signs.
    pub const SIGN: Self = Self(1 << 18);

    const NAMES: [(Self, &'static str); 11] = [
        (Self::FIXED_TPM, "fixedTPM"),
        (Self(1 << 2), "stClear"),
        (Self::FIXED_PARENT, "fixedParent"),
        (Self::SENSITIVE_DATA_ORIGIN, "sensitiveDataOrigin"),
        (Self::USER_WITH_AUTH, "userWithAuth"),
        (Self(1 << 7), "adminWithPolicy"),
        (Self::NO_DA, "noDA"),
        (Self(1 << 11), "encryptedDuplication"),
        (Self::RESTRICTED, "restricted"),
        (Self::DECRYPT, "decrypt"),
        (Self::SIGN, "sign"),
    ];

    /// Whether all of `other` are set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// These and `other`.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Display for ObjectAttributes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let set = Self::NAMES.iter().filter(|(attribute, _)| self.contains(*attribute)).map(|(_, name)| *name);
        f.write_str(&set.collect::<Vec<_>>().join("|"))
    }
}

impl fmt::Debug for ObjectAttributes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#010x} {self}", self.0)
    }
}

const RSA: u16 = 0x0001;
const KEYED_HASH: u16 = 0x0008;
const ECC: u16 = 0x0023;
const SYMMETRIC_CIPHER: u16 = 0x0025;
const NULL: u16 = 0x0010;
const XOR: u16 = 0x000a;
const RSAES: u16 = 0x0015;
const ECDAA: u16 = 0x001a;

/// The largest digest.
const MAX_DIGEST: usize = 64;
/// The largest modulus or coordinate.
const MAX_NUMBER: usize = 512;

impl PublicArea {
    /// Reads a public area that is all of `bytes`.
    ///
    /// # Errors
    /// [`StructureError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, StructureError> {
        let mut reader = Reader::new("a public area", bytes);
        let found = reader.u16("type")?;
        let name_algorithm = reader.u16("name algorithm")?;
        let attributes = ObjectAttributes(reader.u32("attributes")?);
        let policy = reader.sized("policy", MAX_DIGEST)?.to_vec();
        let kind = match found {
            RSA => {
                let (symmetric, scheme) = (read_symmetric(&mut reader)?, read_scheme(&mut reader)?);
                let bits = reader.u16("key bits")?;
                let exponent = match reader.u32("exponent")? {
                    0 => 65537,
                    other => other,
                };
                PublicKind::Rsa {
                    symmetric,
                    scheme,
                    bits,
                    exponent,
                    modulus: reader.sized("modulus", MAX_NUMBER)?.to_vec(),
                }
            }
            ECC => {
                let (symmetric, scheme) = (read_symmetric(&mut reader)?, read_scheme(&mut reader)?);
                let curve = Curve::from_id(reader.u16("curve")?);
                // The key derivation function has the form of a scheme, and nothing here uses it.
                read_scheme(&mut reader)?;
                PublicKind::Ecc {
                    symmetric,
                    scheme,
                    curve,
                    x: reader.sized("x coordinate", MAX_NUMBER)?.to_vec(),
                    y: reader.sized("y coordinate", MAX_NUMBER)?.to_vec(),
                }
            }
            KEYED_HASH => {
                let is_key = match reader.u16("scheme")? {
                    NULL => false,
                    scheme => {
                        reader.u16("hash")?;
                        if scheme == XOR {
                            reader.u16("key derivation function")?;
                        }
                        true
                    }
                };
                PublicKind::KeyedHash { is_key, unique: reader.sized("unique digest", MAX_DIGEST)?.to_vec() }
            }
            SYMMETRIC_CIPHER => {
                read_symmetric(&mut reader)?;
                reader.sized("unique digest", MAX_DIGEST)?;
                PublicKind::Symmetric
            }
            other => return Err(reader.malformed("type", 0, other.into(), RSA.into())),
        };
        reader.end()?;
        Ok(Self { bytes: bytes.to_vec(), name_algorithm, attributes, policy, kind })
    }

    /// Reads a public area behind its u16 size, which is all of `bytes`.
    ///
    /// # Errors
    /// [`StructureError`].
    pub fn parse_sized(bytes: &[u8]) -> Result<Self, StructureError> {
        let mut reader = Reader::new("a sized public area", bytes);
        let area = reader.sized("public area", MAX_AREA)?;
        reader.end()?;
        Self::parse(area)
    }

    /// As it was read.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The same behind its u16 size.
    pub fn to_sized(&self) -> Vec<u8> {
        let size = u16::try_from(self.bytes.len()).unwrap_or(u16::MAX);
        [&size.to_be_bytes(), self.bytes.as_slice()].concat()
    }

    /// Whether it is a key that protects children: restricted, and decrypts.
    pub const fn is_storage_key(&self) -> bool {
        self.attributes.contains(ObjectAttributes::RESTRICTED.with(ObjectAttributes::DECRYPT))
    }

    /// Whether it is a key that signs nothing but what the TPM made, and never leaves it: what quotes are made with.
    pub const fn is_attestation_key(&self) -> bool {
        const NEEDED: ObjectAttributes =
            ObjectAttributes::RESTRICTED.with(ObjectAttributes::SIGN).with(ObjectAttributes::FIXED_TPM);
        self.attributes.contains(NEEDED)
    }

    /// The algorithm of its name, where the kernel maps it.
    pub fn name_hash(&self) -> Option<HashAlgorithm> {
        HashAlgorithm::from_tpm_id(self.name_algorithm)
    }
}

impl fmt::Debug for PublicArea {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self} {:?}", self.attributes)
    }
}

impl fmt::Display for PublicArea {
    /// `RSA-2048`, `ECC P-256`, `sealed data`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            PublicKind::Rsa { bits, .. } => write!(f, "RSA-{bits}"),
            PublicKind::Ecc { curve, .. } => write!(f, "ECC {curve}"),
            PublicKind::KeyedHash { is_key: false, .. } => f.write_str("sealed data"),
            PublicKind::KeyedHash { is_key: true, .. } => f.write_str("an HMAC key"),
            PublicKind::Symmetric => f.write_str("a symmetric key"),
        }
    }
}

/// Larger than any public area of a real TPM.
const MAX_AREA: usize = 2048;

fn read_symmetric(reader: &mut Reader<'_>) -> Result<Option<Symmetric>, StructureError> {
    let algorithm = reader.u16("symmetric algorithm")?;
    if algorithm == NULL {
        return Ok(None);
    }
    let bits = reader.u16("symmetric key bits")?;
    // XOR has a hash where ciphers have their bits, and no mode.
    let mode = if algorithm == XOR { NULL } else { reader.u16("symmetric mode")? };
    Ok(Some(Symmetric { algorithm, bits, mode }))
}

fn read_scheme(reader: &mut Reader<'_>) -> Result<Option<Scheme>, StructureError> {
    let algorithm = reader.u16("scheme")?;
    match algorithm {
        NULL => Ok(None),
        RSAES => Ok(Some(Scheme { algorithm, hash: 0 })),
        _ => {
            let hash = reader.u16("scheme's hash")?;
            if algorithm == ECDAA {
                reader.u16("scheme's counter")?;
            }
            Ok(Some(Scheme { algorithm, hash }))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::from_hex;
    use proptest::prelude::*;

    #[test]
    fn public_areas_of_real_tpms_are_read() {
        for (name, bytes, printed, attributes) in [
            (
                "RSA AK",
                include_bytes!("../../../../tests/vectors/tpm/quote/ak_rsa.tpmt_public").as_slice(),
                "RSA-2048",
                0x0005_0072,
            ),
            (
                "ECC AK",
                include_bytes!("../../../../tests/vectors/tpm/quote/ak_ecc.tpmt_public").as_slice(),
                "ECC P-256",
                0x0005_0072,
            ),
        ] {
            let area = PublicArea::parse(bytes).unwrap();
            assert_eq!((area.to_string().as_str(), area.attributes.0), (printed, attributes), "{name}");
            assert_eq!(area.as_bytes(), bytes);
            assert!(area.is_attestation_key() && !area.is_storage_key());
            assert_eq!(PublicArea::parse_sized(&area.to_sized()), Ok(area));
        }
        let sealed = include_bytes!("../../../../tests/vectors/tpm/sealed/public");
        let area = PublicArea::parse_sized(sealed).unwrap();
        assert!(matches!(area.kind, PublicKind::KeyedHash { is_key: false, .. }));
        assert_eq!(area.policy.len(), 32);
    }

    #[test]
    fn attributes_are_named() {
        let text = ObjectAttributes(0x0003_0472).to_string();
        assert_eq!(text, "fixedTPM|fixedParent|sensitiveDataOrigin|userWithAuth|noDA|restricted|decrypt");
    }

    #[test]
    fn what_is_no_public_area_is_refused_with_the_place() {
        for (hex, reason) in [
            ("", "a public area is malformed at byte 0: type is 0, 2 needed"),
            ("0005000b000000000000", "a public area is malformed at byte 0: type is 5, 1 needed"),
            ("0008000b00000040ffff", "a public area is malformed at byte 8: policy is 65535, 64 needed"),
            (
                "0008000b00000040000000100000 00",
                "a public area is malformed at byte 14: bytes after the end is 1, 0 needed",
            ),
        ] {
            let error = PublicArea::parse(&from_hex(&hex.replace(' ', "")).unwrap()).unwrap_err();
            assert_eq!(error.to_string(), reason);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(
            kind in prop::sample::select(vec![1_u16, 8, 0x23, 0x25, 0x42]),
            bytes in proptest::collection::vec(any::<u8>(), 0..96),
        ) {
            let _ = PublicArea::parse(&[&kind.to_be_bytes(), bytes.as_slice()].concat()).map(|area| area.to_string());
            let _ = PublicArea::parse_sized(&bytes);
        }
    }
}
