//! Signatures as a TPM makes them.
//!
//! | size | RSASSA 0014, RSAPSS 0016 | ECDSA 0018 |
//! |---|---|---|
//! | 2 | scheme | scheme |
//! | 2 | hash | hash |
//! | 2 + n | the signature | r, big endian, without leading zeros |
//! | 2 + n | | s, likewise |
//!
//! Source: TPMT_SIGNATURE, TCG TPM 2.0 Library, part 2.

use super::{Reader, StructureError};
use crate::hash::HashAlgorithm;

/// A signature and the scheme that made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TpmSignature {
    /// RSA with the padding of PKCS#1 v1.5.
    RsaSsa {
        /// The hash.
        hash: HashAlgorithm,
        /// The signature, as long as the modulus.
        signature: Vec<u8>,
    },
    /// RSA with PSS.
    RsaPss {
        /// The hash.
        hash: HashAlgorithm,
        /// The signature, as long as the modulus.
        signature: Vec<u8>,
    },
    /// ECDSA.
    Ecdsa {
        /// The hash.
        hash: HashAlgorithm,
        /// The first number.
        r: Vec<u8>,
        /// The second number.
        s: Vec<u8>,
    },
}

const RSASSA: u16 = 0x0014;
const RSAPSS: u16 = 0x0016;
const ECDSA: u16 = 0x0018;

impl TpmSignature {
    /// Reads a signature that is all of `bytes`.
    ///
    /// # Errors
    /// [`StructureError`], also for schemes and hashes that quotes are not made with.
    pub fn parse(bytes: &[u8]) -> Result<Self, StructureError> {
        let mut reader = Reader::new("the signature", bytes);
        let scheme = reader.u16("scheme")?;
        let known = matches!(scheme, RSASSA | RSAPSS | ECDSA);
        if !known {
            return Err(reader.malformed("scheme", 0, scheme.into(), RSASSA.into()));
        }
        let (at, id) = (reader.offset(), reader.u16("hash")?);
        let sha256 = 0x000b;
        let hash = HashAlgorithm::from_tpm_id(id).ok_or_else(|| reader.malformed("hash", at, id.into(), sha256))?;
        let signature = match scheme {
            ECDSA => Self::Ecdsa { hash, r: reader.sized("r", 66)?.to_vec(), s: reader.sized("s", 66)?.to_vec() },
            _ => {
                let signature = reader.sized("signature", 512)?.to_vec();
                if scheme == RSASSA { Self::RsaSsa { hash, signature } } else { Self::RsaPss { hash, signature } }
            }
        };
        reader.end()?;
        Ok(signature)
    }

    /// The hash of what is signed.
    pub const fn hash(&self) -> HashAlgorithm {
        match self {
            Self::RsaSsa { hash, .. } | Self::RsaPss { hash, .. } | Self::Ecdsa { hash, .. } => *hash,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn signatures_of_a_tpm_are_read() {
        let rsa = include_bytes!("../../../../tests/vectors/tpm/quote/rsa_sha256.tpmt_signature");
        let plain = include_bytes!("../../../../tests/vectors/tpm/quote/rsa_sha256.sig").to_vec();
        assert_eq!(
            TpmSignature::parse(rsa),
            Ok(TpmSignature::RsaSsa { hash: HashAlgorithm::Sha256, signature: plain })
        );
        let ecc = include_bytes!("../../../../tests/vectors/tpm/quote/ecc_sha256.tpmt_signature");
        let TpmSignature::Ecdsa { r, s, .. } = TpmSignature::parse(ecc).unwrap() else { panic!("another scheme") };
        assert_eq!((r.len(), s.len()), (32, 32));
        for cut in 0..ecc.len() {
            assert!(TpmSignature::parse(&ecc[..cut]).is_err(), "{cut}");
        }
    }

    #[test]
    fn a_scheme_that_no_quote_has_is_refused() {
        let error = TpmSignature::parse(&[0, 5, 0, 11, 0, 0]).unwrap_err().to_string();
        assert_eq!(error, "the signature is malformed at byte 0: scheme is 5, 20 needed");
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = TpmSignature::parse(&bytes);
        }
    }
}
