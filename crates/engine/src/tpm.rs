//! TPM 2.0 operations over a transport port: PCR banks, reading and extending PCRs, startup and shutdown, what the
//! status page shows of the TPM, and random bytes.
//!
//! Commands are built by `tpm2-protocol`. Responses are read in `tpm/response.rs`, field by field, because a bank or a
//! property that the codec does not know is nothing to fail on. All integers are big endian:
//!
//! | offset | size | command | response |
//! |---|---|---|---|
//! | 0 | 2 | tag: 8001 without, 8002 with authorisations | the same |
//! | 2 | 4 | size of all of it | size of all of it |
//! | 6 | 4 | command code | response code |
//! | 10 | | handles, \[u32 size, authorisations\], parameters | \[u32 size of the parameters\], parameters, \[sessions\] |
//!
//! Extends are authorised by the empty password and no HMAC session: a PCR is public and its authorisation is empty, so
//! a session would protect nothing against someone who can talk to the TPM, and would cost a round trip an extend.
//!
//! Source: TCG TPM 2.0 Library, parts 2 (structures) and 3 (commands).

use std::{fmt, io, time::Duration};

use tpm2_protocol::{
    basic::TpmUint16,
    data::TpmSu,
    frame::{TpmGetRandomCommand, TpmShutdownCommand, TpmStartupCommand},
};

mod capability;
mod command;
mod error;
mod hash;
mod key;
mod loaded;
mod name;
mod object;
mod pcr;
mod policy;
mod quote;
mod response;
mod response_code;
mod session;
pub mod template;
#[cfg(test)]
mod tests;

pub use capability::{Clock, Lockout, Properties, Room, Specification};
pub use error::TpmError;
pub use hash::{HASH_AT_ONCE, Hashed};
pub use loaded::{LoadedRecord, Recovered};
pub use name::Name;
pub use object::{Hierarchy, Object, SealedObject, Sealing, UnsealPolicy};
pub use pcr::Bank;
pub use policy::{Difference, PcrPolicy, PolicyError};
pub use quote::{MAX_NONCE, Quote, pcr_digest};
pub use response_code::ResponseCode;
pub use session::AuthValue;

use command::COMMAND_ROOM;
use loaded::Loaded;
use response::MAX_RESPONSE;

/// The port to a TPM.
pub trait Transport: Send {
    /// Sends one whole command and reads one whole response into `response`, whose old content goes.
    ///
    /// # Errors
    /// Whatever keeps the response from arriving whole; what the response says is not the transport's business.
    fn transmit(&mut self, command: &[u8], response: &mut Vec<u8>) -> io::Result<()>;
}

/// A TPM 2.0 that answers.
pub struct Tpm {
    transport: Box<dyn Transport>,
    banks: Vec<Bank>,
    command: Box<[u8; COMMAND_ROOM]>,
    response: Vec<u8>,
    loaded: Loaded,
    /// How to wait: sleeping, except in tests.
    pause: fn(Duration),
}

/// Whether a TPM starts afresh or with the state of its last shutdown, or keeps its state when it shuts down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartupType {
    /// PCRs are reset.
    Clear,
    /// PCRs are those saved by `TPM2_Shutdown(STATE)`.
    State,
}

/// What `TPM2_Startup` did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Started {
    /// The TPM has started now.
    Now,
    /// It had been started before; nothing has changed.
    Already,
}

impl Tpm {
    /// Meets a TPM that firmware or kernel have started: asks it for its PCR banks.
    ///
    /// # Errors
    /// [`TpmError`]; with response code 0x100 when the TPM is not started.
    pub fn new(transport: Box<dyn Transport>) -> Result<Self, TpmError> {
        let mut tpm = Self::unstarted(transport);
        tpm.banks = tpm.allocated_banks()?;
        Ok(tpm)
    }

    /// A TPM that [`startup`](Self::startup) is still to start; until then it has no banks.
    pub fn unstarted(transport: Box<dyn Transport>) -> Self {
        Self {
            transport,
            banks: Vec::new(),
            command: Box::new([0; COMMAND_ROOM]),
            response: Vec::with_capacity(MAX_RESPONSE),
            loaded: Loaded::default(),
            pause: std::thread::sleep,
        }
    }

    /// The banks that have PCRs allocated, in the TPM's order, also those whose algorithm the kernel does not map.
    pub fn banks(&self) -> &[Bank] {
        &self.banks
    }

    /// Starts the TPM, as firmware does, and asks for its PCR banks.
    ///
    /// # Errors
    /// [`TpmError::Refused`] when there is no saved state for [`StartupType::State`].
    pub fn startup(&mut self, kind: StartupType) -> Result<Started, TpmError> {
        let command = TpmStartupCommand { handles: [], startup_type: kind.into() };
        let started = match self.run("TPM2_Startup", &command, &[]) {
            Ok(answer) => {
                answer.end()?;
                Started::Now
            }
            Err(TpmError::Refused { code, .. }) if code == ResponseCode::INITIALIZE => Started::Already,
            Err(error) => return Err(error),
        };
        self.banks = self.allocated_banks()?;
        Ok(started)
    }

    /// Tells the TPM that its power may go, so that it counts as an orderly shutdown.
    ///
    /// # Errors
    /// [`TpmError`] as the TPM answers.
    pub fn shutdown(&mut self, kind: StartupType) -> Result<(), TpmError> {
        let command = TpmShutdownCommand { handles: [], shutdown_type: kind.into() };
        self.run("TPM2_Shutdown", &command, &[])?.end()?;
        Ok(())
    }

    /// `count` random bytes.
    ///
    /// # Errors
    /// [`TpmError::NoRandom`] when the TPM has none left to give.
    pub fn random(&mut self, count: usize) -> Result<Vec<u8>, TpmError> {
        let mut bytes = Vec::with_capacity(count);
        while bytes.len() < count {
            let wanted = count - bytes.len();
            let asked = u16::try_from(wanted).unwrap_or(u16::MAX).min(128);
            let command = TpmGetRandomCommand { handles: [], bytes_requested: TpmUint16::from(asked) };
            let mut reader = self.run("TPM2_GetRandom", &command, &[])?;
            let given = reader.sized("random bytes", usize::from(asked))?;
            reader.end()?;
            if given.is_empty() {
                return Err(TpmError::NoRandom { wanted });
            }
            bytes.extend_from_slice(given);
        }
        Ok(bytes)
    }
}

impl fmt::Debug for Tpm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tpm").field("banks", &self.banks).finish_non_exhaustive()
    }
}

impl From<StartupType> for TpmSu {
    fn from(kind: StartupType) -> Self {
        match kind {
            StartupType::Clear => Self::Clear,
            StartupType::State => Self::State,
        }
    }
}
