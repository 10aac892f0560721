//! What a quote says: the message that the TPM signs.
//!
//! | size | meaning |
//! |---|---|
//! | 4 | `ff` `TCG`: made by a TPM |
//! | 2 | 8018: a quote |
//! | 2 + n | qualified name of the key that signs |
//! | 2 + n | the nonce that was given |
//! | 8, 4, 4, 1 | clock in ms, resets, restarts, whether the clock was never set back |
//! | 8 | version of the firmware |
//! | 4 + ... | selection of PCRs |
//! | 2 + n | digest of their values, with the hash of the signature's scheme, in the selection's order |
//!
//! Source: TPMS_ATTEST, TCG TPM 2.0 Library, part 2.

use super::{PcrSelection, Reader, StructureError};

/// A quote's message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuoteAttestation {
    /// The qualified name of the key that signs.
    pub signer: Vec<u8>,
    /// What the quote was made fresh with.
    pub nonce: Vec<u8>,
    /// Milliseconds of the TPM's clock.
    pub clock: u64,
    /// How often the TPM was reset; obfuscated for keys outside the endorsement and platform hierarchies.
    pub reset_count: u32,
    /// How often it was restarted or resumed since.
    pub restart_count: u32,
    /// Whether the clock has certainly not gone back.
    pub safe: bool,
    /// The firmware's version, likewise obfuscated.
    pub firmware: u64,
    /// Which PCRs.
    pub selection: PcrSelection,
    /// The digest of their values.
    pub pcr_digest: Vec<u8>,
}

/// `TPM_GENERATED_VALUE`.
const MAGIC: u32 = 0xff54_4347;
/// `TPM_ST_ATTEST_QUOTE`.
const QUOTE: u16 = 0x8018;

impl QuoteAttestation {
    /// Reads a message that is all of `bytes`.
    ///
    /// # Errors
    /// [`StructureError`], also for attestations of other kinds.
    pub fn parse(bytes: &[u8]) -> Result<Self, StructureError> {
        let mut reader = Reader::new("the quote's message", bytes);
        reader.expect("mark of a TPM", MAGIC)?;
        let (at, kind) = (reader.offset(), reader.u16("kind of attestation")?);
        if kind != QUOTE {
            return Err(reader.malformed("kind of attestation", at, kind.into(), QUOTE.into()));
        }
        let signer = reader.sized("name of the signer", 66)?.to_vec();
        let nonce = reader.sized("nonce", 66)?.to_vec();
        let clock = reader.u64("clock")?;
        let (reset_count, restart_count) = (reader.u32("number of resets")?, reader.u32("number of restarts")?);
        let (at, safe) = (reader.offset(), reader.u8("whether the clock is safe")?);
        if safe > 1 {
            return Err(reader.malformed("whether the clock is safe", at, safe.into(), 1));
        }
        let firmware = reader.u64("version of the firmware")?;
        let selection = PcrSelection::read(&mut reader)?;
        let pcr_digest = reader.sized("digest of the PCRs", 64)?.to_vec();
        reader.end()?;
        let safe = safe == 1;
        Ok(Self { signer, nonce, clock, reset_count, restart_count, safe, firmware, selection, pcr_digest })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const QUOTE_BYTES: &[u8] = include_bytes!("../../../../tests/vectors/tpm/quote/rsa_sha1_sha256.attest");

    #[test]
    fn a_tpms_quote_is_read() {
        let quote = QuoteAttestation::parse(QUOTE_BYTES).unwrap();
        assert_eq!(quote.selection.to_string(), "sha1:10+sha256:10");
        assert_eq!((quote.clock, quote.reset_count, quote.restart_count, quote.safe), (856, 2, 0, true));
        assert_eq!(quote.firmware, 0x2019_1023_0016_3636);
        assert_eq!(quote.nonce.len(), 32);
    }

    #[test]
    fn other_attestations_and_forgeries_without_the_mark_are_refused() {
        let mut certification = QUOTE_BYTES.to_vec();
        certification[5] = 0x17;
        let error = QuoteAttestation::parse(&certification).unwrap_err().to_string();
        assert!(error.ends_with("kind of attestation is 32791, 32792 needed"), "{error}");
        let mut forged = QUOTE_BYTES.to_vec();
        forged[0] = 0xfe;
        assert!(QuoteAttestation::parse(&forged).unwrap_err().to_string().contains("mark of a TPM"));
        for cut in 0..QUOTE_BYTES.len() {
            assert!(QuoteAttestation::parse(&QUOTE_BYTES[..cut]).is_err(), "{cut}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(change in any::<(prop::sample::Index, u8)>(), bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = QuoteAttestation::parse(&bytes);
            let mut changed = QUOTE_BYTES.to_vec();
            let place = change.0.index(changed.len());
            changed[place] = change.1;
            let _ = QuoteAttestation::parse(&changed);
        }
    }
}
