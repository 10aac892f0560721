//! What goes wrong between us and a TPM, in facts.

use std::{fmt, io, time::Duration};

use imara_format::{hash::HashAlgorithm, tpm::StructureError};

use super::{Bank, ResponseCode, pcr::MAX_BANKS, quote::MAX_NONCE};
use crate::crypto::KeyError;

/// What went wrong between us and the TPM.
#[derive(Debug, thiserror::Error)]
pub enum TpmError {
    /// The response did not arrive.
    #[error("{command} got no response from the TPM: {source}")]
    Transport {
        /// The command sent.
        command: &'static str,
        /// What the transport met.
        source: io::Error,
    },
    /// The TPM refused the command.
    #[error("the TPM refused {command} with {code}{}", code.advice())]
    Refused {
        /// The command sent.
        command: &'static str,
        /// The TPM's answer.
        code: ResponseCode,
    },
    /// The TPM kept asking for the command to be sent again.
    #[error("the TPM answered {command} with {code} for {} ms; it is busy or hangs: try again later, or reset it by a reboot", waited.as_millis())]
    Busy {
        /// The command sent.
        command: &'static str,
        /// Its last answer.
        code: ResponseCode,
        /// How long it was given.
        waited: Duration,
    },
    /// The response is no answer to the command.
    #[error("the TPM's response to {command} is malformed at byte {offset}: {what} is {found}, {needed} needed")]
    Malformed {
        /// The command sent.
        command: &'static str,
        /// What was being read.
        what: &'static str,
        /// Where, in bytes from the response's start.
        offset: usize,
        /// What stands there, or how much is left.
        found: u64,
        /// What should stand there, or how much is needed.
        needed: u64,
    },
    /// A response that somebody on the way has made, or changed.
    #[error(
        "the TPM's response to {command} is not authentic: it was changed on its way, or something else answers in the TPM's place"
    )]
    Forged {
        /// The command sent.
        command: &'static str,
    },
    /// A key that no secret can be agreed on with.
    #[error("no secret can be agreed on with the TPM's key, {key}: an RSA or ECC storage key is needed as the parent")]
    CannotSalt {
        /// The key.
        key: String,
    },
    /// An object whose name cannot be computed.
    #[error("the object's name is made with the algorithm {0:#06x}, which is not known here")]
    UnknownNameAlgorithm(u16),
    /// A property that every TPM has.
    #[error("the TPM does not tell its property {0:#x}")]
    NoProperty(u32),
    /// More than a quote takes.
    #[error("a nonce of {0} bytes, where a quote takes {MAX_NONCE}")]
    NonceTooLong(usize),
    /// OpenSSL failed.
    #[error(transparent)]
    Crypto(KeyError),
    /// It cannot be recorded what is loaded in a TPM without resource manager.
    #[error("what is loaded in the TPM cannot be recorded: {0}")]
    Record(io::Error),
    /// The TPM has no such bank.
    #[error("the TPM has no {bank} PCR bank; it has {}", Names(allocated))]
    NoBank {
        /// The bank asked for.
        bank: HashAlgorithm,
        /// The banks that it has.
        allocated: Vec<Bank>,
    },
    /// There is no such PCR.
    #[error("there is no PCR {0}; a TPM has PCRs 0 to 23")]
    NoPcr(u32),
    /// The bank is there, but not this PCR of it.
    #[error("the TPM returned no value for PCR {index} of bank {bank}: the PCR is not allocated there")]
    NotAllocated {
        /// The bank asked for.
        bank: HashAlgorithm,
        /// The PCR asked for.
        index: u32,
    },
    /// PCRs were extended by others between the parts of one reading, each time.
    #[error("the PCRs changed while they were read, {0} times over: read fewer, or wait until the machine is quiet")]
    Unsettled(u32),
    /// No TPM knows the algorithm.
    #[error("a TPM knows no hash {0}: there is no PCR bank of it, and nothing is hashed with it")]
    NoIdentifier(HashAlgorithm),
    /// An extend needs a digest for each of one to eight banks.
    #[error("a PCR extend takes 1 to {MAX_BANKS} digests, {0} given")]
    DigestCount(usize),
    /// The TPM gave no random bytes.
    #[error("the TPM gave no random bytes where {wanted} were asked for")]
    NoRandom {
        /// Bytes still wanted.
        wanted: usize,
    },
}

/// Banks by name, for a message.
pub(super) struct Names<'a>(pub(super) &'a [Bank]);

impl fmt::Display for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, bank) in self.0.iter().enumerate() {
            write!(f, "{}{bank}", if place == 0 { "" } else { ", " })?;
        }
        if self.0.is_empty() { f.write_str("none") } else { Ok(()) }
    }
}

impl From<StructureError> for TpmError {
    fn from(error: StructureError) -> Self {
        let StructureError { structure, what, offset, found, needed } = error;
        Self::Malformed { command: structure, what, offset, found, needed }
    }
}
