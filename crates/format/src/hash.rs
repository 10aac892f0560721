//! Hash algorithms by the kernel's numbers and names, digests, and hexadecimal text.
//!
//! The number is what labels and signature headers carry, the name is what policies and measurement lists carry, and
//! the TPM's own identifier is what PCR banks carry.
//!
//! Source: `enum hash_algo`, include/uapi/linux/hash_info.h; `hash_algo_name`, crypto/hash_info.c; TPM identifiers:
//! TCG Algorithm Registry.

use std::fmt;

macro_rules! algorithms {
    ($($(#[$doc:meta])* $variant:ident = $id:literal, $name:literal, $size:literal, $tpm:expr;)*) => {
        /// A hash algorithm that the kernel's integrity subsystem can name.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
        pub enum HashAlgorithm { $($(#[$doc])* $variant,)* }

        impl HashAlgorithm {
            /// All of them, in ascending number.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The kernel's number, one byte in labels and signature headers.
            pub const fn id(self) -> u8 { match self { $(Self::$variant => $id,)* } }

            /// The algorithm with the kernel's number `id`, if there is one.
            pub const fn from_id(id: u8) -> Option<Self> { match id { $($id => Some(Self::$variant),)* _ => None } }

            /// The kernel's name, as policies, measurement lists and `ima_hash=` spell it.
            pub const fn name(self) -> &'static str { match self { $(Self::$variant => $name,)* } }

            /// The algorithm with the kernel's name `name`, spelled exactly so.
            pub fn from_name(name: &str) -> Option<Self> { match name { $($name => Some(Self::$variant),)* _ => None } }

            /// The digest's size in bytes.
            pub const fn digest_size(self) -> usize { match self { $(Self::$variant => $size,)* } }

            /// The TPM's identifier (`TPM_ALG_ID`), where it has one that the kernel maps.
            pub const fn tpm_id(self) -> Option<u16> { match self { $(Self::$variant => $tpm,)* } }
        }
    };
}

algorithms! {
    /// MD4.
    Md4 = 0, "md4", 16, None;
    /// MD5.
    Md5 = 1, "md5", 16, None;
    /// SHA-1.
    Sha1 = 2, "sha1", 20, Some(0x0004);
    /// RIPEMD-160.
    Rmd160 = 3, "rmd160", 20, None;
    /// SHA-256.
    Sha256 = 4, "sha256", 32, Some(0x000b);
    /// SHA-384.
    Sha384 = 5, "sha384", 48, Some(0x000c);
    /// SHA-512.
    Sha512 = 6, "sha512", 64, Some(0x000d);
    /// SHA-224.
    Sha224 = 7, "sha224", 28, None;
    /// RIPEMD-128.
    Rmd128 = 8, "rmd128", 16, None;
    /// RIPEMD-256.
    Rmd256 = 9, "rmd256", 32, None;
    /// RIPEMD-320.
    Rmd320 = 10, "rmd320", 40, None;
    /// Whirlpool-256.
    Wp256 = 11, "wp256", 32, None;
    /// Whirlpool-384.
    Wp384 = 12, "wp384", 48, None;
    /// Whirlpool-512.
    Wp512 = 13, "wp512", 64, None;
    /// Tiger-128.
    Tgr128 = 14, "tgr128", 16, None;
    /// Tiger-160.
    Tgr160 = 15, "tgr160", 20, None;
    /// Tiger-192.
    Tgr192 = 16, "tgr192", 24, None;
    /// SM3.
    Sm3 = 17, "sm3", 32, Some(0x0012);
    /// Streebog-256.
    Streebog256 = 18, "streebog256", 32, None;
    /// Streebog-512.
    Streebog512 = 19, "streebog512", 64, None;
    /// SHA3-256 (Linux 6.7 on).
    Sha3_256 = 20, "sha3-256", 32, None;
    /// SHA3-384 (Linux 6.7 on).
    Sha3_384 = 21, "sha3-384", 48, None;
    /// SHA3-512 (Linux 6.7 on).
    Sha3_512 = 22, "sha3-512", 64, None;
}

impl HashAlgorithm {
    /// The algorithm whose TPM identifier is `id`, among those that the kernel maps.
    pub fn from_tpm_id(id: u16) -> Option<Self> {
        Self::ALL.iter().copied().find(|algorithm| algorithm.tpm_id() == Some(id))
    }
}

impl fmt::Display for HashAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The largest digest, in bytes.
pub const MAX_DIGEST_SIZE: usize = 64;

/// A digest and the algorithm that made it; its length is always the algorithm's.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest {
    algorithm: HashAlgorithm,
    bytes: [u8; MAX_DIGEST_SIZE],
}

/// A digest of the wrong length.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{algorithm} digest has {found} bytes, {needed} needed")]
pub struct DigestLengthError {
    /// The algorithm named.
    pub algorithm: HashAlgorithm,
    /// Bytes found.
    pub found: usize,
    /// Bytes that the algorithm's digest has.
    pub needed: usize,
}

impl Digest {
    /// A digest from exactly as many bytes as the algorithm makes.
    ///
    /// # Errors
    /// [`DigestLengthError`] when `bytes` is shorter or longer.
    pub fn new(algorithm: HashAlgorithm, bytes: &[u8]) -> Result<Self, DigestLengthError> {
        let needed = algorithm.digest_size();
        let mut digest = Self { algorithm, bytes: [0; MAX_DIGEST_SIZE] };
        match digest.bytes.get_mut(..needed) {
            Some(room) if bytes.len() == needed => room.copy_from_slice(bytes),
            _ => return Err(DigestLengthError { algorithm, found: bytes.len(), needed }),
        }
        Ok(digest)
    }

    /// All zero bytes, as the kernel lists a violation.
    pub fn zeros(algorithm: HashAlgorithm) -> Self {
        Self { algorithm, bytes: [0; MAX_DIGEST_SIZE] }
    }

    /// All bytes 0xff, as the kernel extends a violation.
    pub fn ones(algorithm: HashAlgorithm) -> Self {
        let mut digest = Self::zeros(algorithm);
        digest.bytes.iter_mut().take(algorithm.digest_size()).for_each(|byte| *byte = 0xff);
        digest
    }

    /// The algorithm that made it.
    pub const fn algorithm(&self) -> HashAlgorithm {
        self.algorithm
    }

    /// The digest's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.algorithm.digest_size()).unwrap_or(&[])
    }

    /// Whether every byte is zero.
    pub fn is_zero(&self) -> bool {
        self.bytes.iter().all(|byte| *byte == 0)
    }

    /// Lower-case hexadecimal.
    pub fn to_hex(&self) -> String {
        to_hex(self.as_bytes())
    }
}

impl fmt::Display for Digest {
    /// `sha256:e3b0c442…`, as in the ascii measurement list.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm, self.to_hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Bytes as lower-case hexadecimal text.
pub fn to_hex(bytes: &[u8]) -> String {
    let digit = |nibble: u8| char::from_digit(u32::from(nibble), 16).unwrap_or('0');
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// Text that is not hexadecimal.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum HexError {
    /// An odd number of digits.
    #[error("hexadecimal text has an odd number of digits ({0})")]
    OddLength(usize),
    /// A character that is no hexadecimal digit.
    #[error("{byte:#04x} at offset {offset} is not a hexadecimal digit")]
    NotADigit {
        /// The byte found.
        byte: u8,
        /// Its offset in the text, in bytes.
        offset: usize,
    },
}

/// Bytes from hexadecimal text, of either case.
///
/// # Errors
/// [`HexError`] with the offset of the first character that does not belong.
pub fn from_hex(text: &str) -> Result<Vec<u8>, HexError> {
    let mut digits = Vec::with_capacity(text.len());
    for (offset, byte) in text.bytes().enumerate() {
        let digit = char::from(byte).to_digit(16).ok_or(HexError::NotADigit { byte, offset })?;
        digits.push(u8::try_from(digit).unwrap_or(0));
    }
    let pairs = digits.chunks_exact(2);
    if !pairs.remainder().is_empty() {
        return Err(HexError::OddLength(text.len()));
    }
    Ok(pairs.map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_lead_back_to_the_algorithm() {
        for (index, algorithm) in HashAlgorithm::ALL.iter().enumerate() {
            assert_eq!(usize::from(algorithm.id()), index);
            assert_eq!(HashAlgorithm::from_id(algorithm.id()), Some(*algorithm));
            assert_eq!(HashAlgorithm::from_name(algorithm.name()), Some(*algorithm));
            assert!(algorithm.digest_size() <= MAX_DIGEST_SIZE);
        }
        assert_eq!(HashAlgorithm::from_id(23), None);
        assert_eq!(HashAlgorithm::from_name("SHA256"), None);
        assert_eq!(HashAlgorithm::from_tpm_id(0x000b), Some(HashAlgorithm::Sha256));
    }

    #[test]
    fn a_digest_has_its_algorithms_length_or_is_refused() {
        let short = Digest::new(HashAlgorithm::Sha256, &[1; 31]).unwrap_err();
        assert_eq!(short.to_string(), "sha256 digest has 31 bytes, 32 needed");
        assert!(Digest::new(HashAlgorithm::Sha1, &[1; 21]).is_err());
        assert_eq!(Digest::ones(HashAlgorithm::Sha1).as_bytes(), [0xff; 20]);
        assert!(Digest::zeros(HashAlgorithm::Sha512).is_zero());
    }

    #[test]
    fn hexadecimal_text_is_read_back_or_refused_with_the_offset() {
        assert_eq!(from_hex("00fFa5"), Ok(vec![0, 0xff, 0xa5]));
        assert_eq!(to_hex(&[0, 0xff, 0xa5]), "00ffa5");
        assert_eq!(from_hex("0"), Err(HexError::OddLength(1)));
        assert_eq!(from_hex("0g"), Err(HexError::NotADigit { byte: b'g', offset: 1 }));
        assert!(from_hex("ü0").is_err());
    }
}
