//! Quotes: PCR values that a TPM signs, with a nonce of whoever wants to know.
//!
//! Source: TCG TPM 2.0 Library, part 3, `TPM2_Quote`.

use imara_format::tpm::PcrSelection;
use tpm2_protocol::{
    basic::{TpmBuffer, TpmHandle},
    data::TpmtSigScheme,
    frame::TpmQuoteCommand,
};

use super::{AuthValue, Object, Tpm, TpmError, command::Request, pcr::selection_list};

/// A quote, as the TPM gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quote {
    /// What is signed: TPMS_ATTEST.
    pub message: Vec<u8>,
    /// TPMT_SIGNATURE.
    pub signature: Vec<u8>,
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
}
