//! Which TPM a command talks to, and that nothing of it stays loaded there.

use crate::output::{Failure, Outcome, tell, warn};
use imara_engine::tpm::{ResponseCode, Tpm, TpmError, Transport};
use imara_linux::tpm_address::{OpenError, TpmAddress};
use imara_linux::tpm_device::DeviceError;
use imara_linux::tpm_record::RecordFile;
use std::io;

/// Which TPM.
#[derive(clap::Args)]
pub struct Target {
    /// The TPM: a device (/dev/tpmrm0, /dev/tpm0), a software TPM's socket (its path), tcp:HOST:PORT, or as tpm2-tools
    /// have it (device:/dev/tpmrm0, swtpm:path=/path/to/socket, swtpm:host=HOST,port=PORT)
    #[arg(long, value_name = "TPM", default_value = Self::DEFAULT)]
    pub tpm: TpmAddress,
}

impl Target {
    /// The TPM where none is named.
    pub const DEFAULT: &str = "/dev/tpmrm0";

    /// Meets the TPM. Without the kernel's resource manager, what an earlier run that was killed has left loaded is flushed
    /// first, and no other imara uses the TPM until this one is done.
    ///
    /// # Errors
    /// There is none, or it does not answer.
    pub fn connect(&self) -> Result<Tpm, Failure> {
        let record = match self.tpm.has_resource_manager() {
            true => None,
            false => RecordFile::lock(&self.tpm).map_err(|error| Failure::lacking(format!("{}: {error}", self.tpm)))?,
        };
        let transport = self.tpm.open(None).map_err(|error| unopened(&error))?;
        tell(format_args!("asks the TPM {}", self.tpm));
        let mut tpm = Tpm::new(Box::new(Told(transport)))?;
        if let Some(record) = record {
            let recovered = tpm.record_loaded(Box::new(record))?;
            if !recovered.flushed.is_empty() {
                let handles = handles(&recovered.flushed);
                warn(format_args!("flushed what an imara that was killed had left loaded in the TPM: {handles}"));
            }
            if !recovered.doubtful.is_empty() {
                let handles = handles(&recovered.doubtful);
                warn(format_args!(
                    "an imara was killed while it loaded something; this may be it, or another program's, and stays: \
                     {handles} (`tpm2_flushcontext` flushes it)"
                ));
            }
        }
        Ok(tpm)
    }

    /// Does some work with the TPM and leaves nothing loaded, also when the work fails.
    ///
    /// # Errors
    /// As [`connect`](Self::connect), and what the work could not do.
    pub fn with<T>(&self, work: impl FnOnce(&mut Tpm) -> Result<T, Failure>) -> Result<T, Failure> {
        self.connect()?.leaving_nothing(work)
    }
}

/// A way to a TPM that tells what goes over it, by its numbers alone: what commands carry may be secret.
struct Told(Box<dyn Transport>);

impl Transport for Told {
    fn transmit(&mut self, command: &[u8], response: &mut Vec<u8>) -> io::Result<()> {
        let answered = self.0.transmit(command, response);
        let number =
            |bytes: &[u8]| bytes.get(6..10).and_then(|code| code.try_into().ok()).map_or(0, u32::from_be_bytes);
        let (code, size) = (number(command), command.len());
        match &answered {
            Ok(()) => match ResponseCode(number(response)) {
                ResponseCode::SUCCESS => tell(format_args!("TPM command {code:#x} of {size} bytes: done")),
                refused => tell(format_args!("TPM command {code:#x} of {size} bytes: {refused}")),
            },
            Err(error) => tell(format_args!("TPM command {code:#x} of {size} bytes: {error}")),
        }
        answered
    }
}

/// Handles as people write them.
pub fn handles(handles: &[u32]) -> String {
    handles.iter().map(|handle| format!("{handle:#010x}")).collect::<Vec<_>>().join(", ")
}

fn unopened(error: &OpenError) -> Failure {
    let failure = match error {
        OpenError::LocalityOfDevice(_) => Failure::usage(error),
        OpenError::Device(_) | OpenError::Locality { .. } => Failure::lacking(error),
    };
    match error {
        OpenError::Device(DeviceError::Absent(_)) => match kernel_knows_tpm_1_2() {
            true => failure.next("the machine's TPM is a TPM 1.2; some firmware can switch it to 2.0"),
            false => failure.next("name another TPM with --tpm"),
        },
        _ => failure,
    }
}

fn kernel_knows_tpm_1_2() -> bool {
    std::fs::read_to_string("/sys/class/tpm/tpm0/tpm_version_major").is_ok_and(|version| version.trim() == "1")
}

/// What to tell of an error of the TPM.
impl From<TpmError> for Failure {
    fn from(error: TpmError) -> Self {
        let outcome = if tpm_lacks(&error) { Outcome::Lacking } else { Outcome::Failed };
        let next = match &error {
            TpmError::Transport { .. } => {
                "look whether the TPM is there and free; `dmesg` has what the kernel says of it"
            }
            TpmError::NoBank { .. } => {
                "other banks are switched on in the firmware's settings or by `tpm2_pcrallocate`, from the next boot on"
            }
            _ => "",
        };
        Self { outcome, what: error.to_string(), next: next.to_owned() }
    }
}

/// Whether it is the TPM that lacks something, and not what was asked of it that is wrong.
fn tpm_lacks(error: &TpmError) -> bool {
    match error {
        TpmError::Refused { code, .. } => {
            /// A TPM 1.2's answer, and one that implements less.
            const BAD_TAG: u32 = 0x1e;
            const COMMAND_CODE: u32 = 0x143;
            matches!(*code, ResponseCode::INITIALIZE | ResponseCode::FAILURE)
                || matches!(code.0 & 0xfff, BAD_TAG | COMMAND_CODE)
        }
        TpmError::Transport { .. }
        | TpmError::Busy { .. }
        | TpmError::NoBank { .. }
        | TpmError::NotAllocated { .. }
        | TpmError::NoProperty(_)
        | TpmError::NoRandom { .. }
        | TpmError::Record(_) => true,
        TpmError::Malformed { .. }
        | TpmError::Forged { .. }
        | TpmError::CannotSalt { .. }
        | TpmError::UnknownNameAlgorithm(_)
        | TpmError::NonceTooLong(_)
        | TpmError::Crypto(_)
        | TpmError::NoPcr(_)
        | TpmError::Unsettled(_)
        | TpmError::NoIdentifier(_)
        | TpmError::DigestCount(_) => false,
    }
}
