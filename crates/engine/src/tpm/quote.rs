//! Quotes: PCR values that a TPM signs, with a nonce of whoever wants to know.
//!
//! Source: TCG TPM 2.0 Library, part 3, `TPM2_Quote`.

use imara_format::{
    hash::{Digest, HashAlgorithm},
    pcr::PcrValues,
    tpm::{PcrSelection, QuoteAttestation, TpmSignature},
};
use tpm2_protocol::{
    basic::{TpmBuffer, TpmHandle},
    data::TpmtSigScheme,
    frame::TpmQuoteCommand,
};

use super::{
    AuthValue, Object, Tpm, TpmError,
    command::Request,
    pcr::{READINGS, selection_list},
};
use crate::crypto;

/// A quote, as the TPM gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quote {
    /// What is signed: TPMS_ATTEST.
    pub message: Vec<u8>,
    /// TPMT_SIGNATURE.
    pub signature: Vec<u8>,
}

/// What a quote says of PCR values: the hash of all of them, in the selection's order. `None` where one is not there, or the
/// hash cannot be computed.
pub fn pcr_digest(selection: &PcrSelection, values: &PcrValues, algorithm: HashAlgorithm) -> Option<Digest> {
    let values: Option<Vec<Digest>> = selection.iter().map(|(bank, pcr)| values.value(bank?, pcr)).collect();
    let values = values?;
    let parts: Vec<&[u8]> = values.iter().map(Digest::as_bytes).collect();
    crypto::hash(algorithm, &parts).ok()
}

/// The longest nonce: TPM2B_DATA takes a digest and its algorithm.
pub const MAX_NONCE: usize = 64;

impl Tpm {
    /// Has the TPM sign the values of PCRs, by a key and the scheme that it is bound to.
    ///
    /// # Errors
    /// [`TpmError`] as the TPM answers; [`TpmError::NonceTooLong`].
    pub fn quote(
        &mut self,
        key: &Object,
        key_auth: &AuthValue,
        nonce: &[u8],
        selection: &PcrSelection,
    ) -> Result<Quote, TpmError> {
        if nonce.len() > MAX_NONCE {
            return Err(TpmError::NonceTooLong(nonce.len()));
        }
        let command = TpmQuoteCommand {
            handles: [TpmHandle::new(key.handle())],
            qualifying_data: TpmBuffer::try_from(nonce).expect("no longer than it may be"),
            in_scheme: TpmtSigScheme::default(),
            pcr_select: selection_list(selection)?,
        };
        let request = Request { name: "TPM2_Quote", command: &command, names: &[key.name()], returns_handle: false };
        self.authorised(&request, key_auth, |_, reader| {
            let message = reader.sized("quote's message", 2048)?.to_vec();
            let signature = reader.rest().to_vec();
            reader.bytes("signature", signature.len())?;
            Ok(Quote { message, signature })
        })
    }

    /// The same with the values that were quoted. They are read beside it, and both anew while somebody extends.
    ///
    /// # Errors
    /// As [`quote`](Self::quote); [`TpmError::Unsettled`].
    pub fn quote_with_values(
        &mut self,
        key: &Object,
        key_auth: &AuthValue,
        nonce: &[u8],
        selection: &PcrSelection,
    ) -> Result<(Quote, PcrValues), TpmError> {
        for _ in 0..READINGS {
            let mut values = PcrValues::new();
            for (_, pcr, value) in self.pcr_read_selection(selection)? {
                values.insert(pcr, value).expect("a selection has each PCR of a bank once");
            }
            let quote = self.quote(key, key_auth, nonce, selection)?;
            let (message, signature) =
                (QuoteAttestation::parse(&quote.message)?, TpmSignature::parse(&quote.signature)?);
            let digest = pcr_digest(&message.selection, &values, signature.hash());
            if digest.is_some_and(|digest| digest.as_bytes() == message.pcr_digest) {
                return Ok((quote, values));
            }
        }
        Err(TpmError::Unsettled(READINGS))
    }
}
