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

use imara_format::hash::{Digest, HashAlgorithm};
use tpm2_protocol::{
    TpmWriter,
    basic::{TpmBuffer, TpmHandle, TpmUint16, TpmUint32},
    data::{
        TpmAlgId, TpmCap, TpmSt, TpmSu, TpmlDigestValues, TpmlPcrSelection, TpmsAuthCommand, TpmsPcrSelect,
        TpmsPcrSelection, TpmtHa, TpmuHa,
    },
    frame::{
        TpmFrame, TpmGetCapabilityCommand, TpmGetRandomCommand, TpmPcrExtendCommand, TpmPcrReadCommand,
        TpmShutdownCommand, TpmStartupCommand, tpm_marshal_command,
    },
};

mod response;

pub use response::ResponseCode;
use response::{MAX_RESPONSE, Reader, parameters, response_code};

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
    /// How to wait: sleeping, except in tests.
    pause: fn(Duration),
}

/// A PCR bank that has PCRs allocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bank {
    /// The TPM's identifier of the bank's hash algorithm.
    pub tpm_id: u16,
    /// The algorithm, where the kernel maps the identifier.
    pub algorithm: Option<HashAlgorithm>,
    /// The size of the bank's digests in bytes; 0 where neither the kernel nor the codec knows the identifier.
    pub digest_size: usize,
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

/// What a TPM says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Properties {
    /// The manufacturer's registered letters, e.g. `IBM`, `INTC`.
    pub manufacturer: String,
    /// The vendor's strings, joined, e.g. `SW   TPM`.
    pub vendor: String,
    /// The firmware's version, high and low half.
    pub firmware: (u32, u32),
}

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
    #[error("a PCR cannot be extended with a {0} digest: the TPM has no identifier for that algorithm")]
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

/// Room for the largest command that is sent here: an extend of eight banks has 559 bytes.
const COMMAND_ROOM: usize = 1024;
/// Banks in one command, the codec's limit.
const MAX_BANKS: usize = 8;
/// PCRs in a selection of three bytes, the size that every PC Client TPM takes.
const MAX_PCRS: u32 = 24;
/// How long a TPM may ask for the same command again: a self-test of all algorithms takes a slow chip two seconds.
const PATIENCE: Duration = Duration::from_secs(5);
/// Times that one consistent reading is begun anew.
const READINGS: u32 = 10;

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
        self.run("TPM2_Shutdown", &command, &[])?.end()
    }

    /// The value of one PCR.
    ///
    /// # Errors
    /// [`TpmError::NoBank`] and [`TpmError::NotAllocated`] when the TPM has no such value.
    pub fn pcr_read(&mut self, bank: HashAlgorithm, index: u32) -> Result<Digest, TpmError> {
        if !self.banks.iter().any(|allocated| allocated.algorithm == Some(bank)) {
            return Err(TpmError::NoBank { bank, allocated: self.banks.clone() });
        }
        let values = self.read_consistently(&[bank], &[index])?;
        values.first().map(|(_, _, value)| *value).ok_or(TpmError::NotAllocated { bank, index })
    }

    /// The values of these PCRs in every bank that the kernel maps, of one moment: in the banks' order, PCRs ascending.
    ///
    /// # Errors
    /// [`TpmError::NotAllocated`] when a bank lacks one of them, [`TpmError::Unsettled`] when others kept extending.
    pub fn pcr_read_many(&mut self, indices: &[u32]) -> Result<Vec<(HashAlgorithm, u32, Digest)>, TpmError> {
        let banks: Vec<_> = self.banks.iter().filter_map(|bank| bank.algorithm).take(MAX_BANKS).collect();
        self.read_consistently(&banks, indices)
    }

    /// Extends a PCR in the banks of `digests`, in one command. Other banks keep their value.
    ///
    /// # Errors
    /// [`TpmError::NoIdentifier`], [`TpmError::DigestCount`] and [`TpmError::NoPcr`] before anything is sent.
    pub fn pcr_extend(&mut self, index: u32, digests: &[Digest]) -> Result<(), TpmError> {
        self.extend(index, digests, None)
    }

    /// Extends a PCR in the banks of `digests`, and in those that the kernel does not map with `rest`, cut or filled up
    /// with zeros to the bank's size, all in one command. A bank that is left out could be extended later with
    /// whatever suits a forged list; the kernel's IMA does the same with its SHA-1 digest. A bank whose digest size is
    /// not known stays as it is.
    ///
    /// # Errors
    /// As [`pcr_extend`](Self::pcr_extend).
    ///
    /// Source: `ima_calc_field_array_hash`, security/integrity/ima/ima_crypto.c.
    pub fn pcr_extend_every_bank(&mut self, index: u32, digests: &[Digest], rest: &[u8]) -> Result<(), TpmError> {
        self.extend(index, digests, Some(rest))
    }

    /// What the TPM says about itself.
    ///
    /// # Errors
    /// [`TpmError`] as the TPM answers.
    pub fn properties(&mut self) -> Result<Properties, TpmError> {
        let mut properties = Properties { manufacturer: String::new(), vendor: String::new(), firmware: (0, 0) };
        // A TPM may return fewer than asked; each round brings one at least, or is the last.
        let (mut next, last) = (MANUFACTURER, FIRMWARE_VERSION_2);
        while next <= last {
            let found = self.tagged_properties(next, last - next + 1)?;
            let Some((end, _)) = found.last().copied().filter(|(end, _)| *end >= next) else { break };
            for (property, value) in found {
                match property {
                    MANUFACTURER => properties.manufacturer = letters(value),
                    VENDOR_STRING_1..=VENDOR_STRING_4 => properties.vendor.push_str(&letters(value)),
                    FIRMWARE_VERSION_1 => properties.firmware.0 = value,
                    FIRMWARE_VERSION_2 => properties.firmware.1 = value,
                    _ => {}
                }
            }
            next = end.saturating_add(1);
        }
        properties.manufacturer = properties.manufacturer.trim().to_owned();
        properties.vendor = properties.vendor.trim().to_owned();
        Ok(properties)
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

    fn extend(&mut self, index: u32, digests: &[Digest], rest: Option<&[u8]>) -> Result<(), TpmError> {
        pcr_bit(index)?;
        let unmapped =
            self.banks.iter().filter(|bank| rest.is_some() && bank.algorithm.is_none() && bank.digest_size != 0);
        let unmapped = unmapped.filter_map(|bank| Some((TpmAlgId::try_from(bank.tpm_id).ok()?, bank.digest_size)));
        let count = digests.len() + unmapped.clone().count();
        if count == 0 {
            return Err(TpmError::DigestCount(count));
        }
        let mut values = TpmlDigestValues::default();
        for digest in digests {
            values.try_push(tagged_digest(digest)?).map_err(|_| TpmError::DigestCount(count))?;
        }
        for (hash_alg, size) in unmapped {
            let mut padded = [0; MAX_DIGEST];
            padded.iter_mut().zip(rest.unwrap_or_default()).for_each(|(byte, of)| *byte = *of);
            let Some(Ok(bytes)) = padded.get(..size).map(TpmBuffer::try_from) else { continue };
            let value = TpmtHa { hash_alg, digest: TpmuHa::Digest(bytes) };
            values.try_push(value).map_err(|_| TpmError::DigestCount(count))?;
        }
        let command = TpmPcrExtendCommand { handles: [TpmHandle::new(index)], digests: values };
        self.run("TPM2_PCR_Extend", &command, &[empty_password()])?.end()
    }

    /// `TPM_CAP_PCRS`: the standard has all banks in one answer.
    fn allocated_banks(&mut self) -> Result<Vec<Bank>, TpmError> {
        let mut reader = self.capability(TpmCap::Pcrs, 0, 1)?;
        let selections = reader.selections()?;
        reader.end()?;
        let mut banks: Vec<Bank> = Vec::new();
        for selection in selections.iter().filter(|selection| selection.pcrs != 0) {
            if banks.iter().any(|bank| bank.tpm_id == selection.tpm_id) {
                continue;
            }
            let algorithm = HashAlgorithm::from_tpm_id(selection.tpm_id);
            let digest_size = match algorithm {
                Some(algorithm) => algorithm.digest_size(),
                // The kernel asks the TPM in the same way.
                None => self.unmapped_digest_size(selection.tpm_id, selection.pcrs)?,
            };
            banks.push(Bank { tpm_id: selection.tpm_id, algorithm, digest_size });
        }
        Ok(banks)
    }

    /// The digest size of a bank that the kernel does not map: that of its first PCR.
    fn unmapped_digest_size(&mut self, tpm_id: u16, pcrs: u32) -> Result<usize, TpmError> {
        let Ok(hash) = TpmAlgId::try_from(tpm_id) else { return Ok(0) };
        let mut reader = match self.send_pcr_read(&[(hash, pcrs & pcrs.wrapping_neg())]) {
            Err(TpmError::Refused { .. }) => return Ok(0),
            answer => answer?,
        };
        reader.u32("PCR update counter")?;
        reader.selections()?;
        let count = reader.u32("number of digests")?;
        if count == 0 { Ok(0) } else { Ok(reader.sized("digest", MAX_DIGEST)?.len()) }
    }

    /// Properties from `first` on, as the TPM returns them.
    fn tagged_properties(&mut self, first: u32, count: u32) -> Result<Vec<(u32, u32)>, TpmError> {
        let mut reader = self.capability(TpmCap::TpmProperties, first, count)?;
        let found = reader.u32("number of properties")?;
        let mut properties = Vec::new();
        for _ in 0..found {
            properties.push((reader.u32("property")?, reader.u32("property's value")?));
        }
        reader.end()?;
        Ok(properties)
    }

    /// `TPM2_GetCapability`, up to where the capability's own data begin.
    fn capability(&mut self, cap: TpmCap, property: u32, count: u32) -> Result<Reader<'_>, TpmError> {
        let command = TpmGetCapabilityCommand {
            handles: [],
            cap,
            property: TpmUint32::from(property),
            property_count: TpmUint32::from(count),
        };
        let mut reader = self.run("TPM2_GetCapability", &command, &[])?;
        reader.u8("more data")?;
        reader.expect("capability", cap.value())?;
        Ok(reader)
    }

    /// Reads until all is there, and anew while the update counter says that the parts are of different moments.
    fn read_consistently(
        &mut self,
        banks: &[HashAlgorithm],
        indices: &[u32],
    ) -> Result<Vec<(HashAlgorithm, u32, Digest)>, TpmError> {
        let mut wanted = 0;
        for index in indices {
            wanted |= pcr_bit(*index)?;
        }
        'readings: for _ in 0..READINGS {
            let mut values = Vec::new();
            let mut counter = None;
            let mut missing: Vec<_> = banks.iter().map(|bank| (*bank, wanted)).collect();
            missing.retain(|(_, pcrs)| *pcrs != 0);
            while let Some((bank, pcrs)) = missing.first().copied() {
                let before = values.len();
                let now = self.read_part(&mut missing, &mut values)?;
                if values.len() == before {
                    return Err(TpmError::NotAllocated { bank, index: pcrs.trailing_zeros() });
                }
                if *counter.get_or_insert(now) != now {
                    continue 'readings;
                }
            }
            let place = |bank: &HashAlgorithm| banks.iter().position(|other| other == bank);
            values.sort_by_key(|(bank, index, _)| (place(bank), *index));
            return Ok(values);
        }
        Err(TpmError::Unsettled(READINGS))
    }

    /// One `TPM2_PCR_Read` of what is missing: moves what came from `missing` to `values`; returns the update counter.
    ///
    /// A TPM returns eight digests at most, and says in the returned selection which; a bank that is not allocated
    /// comes back with an empty map. So the returned selection counts, not the one asked for.
    fn read_part(
        &mut self,
        missing: &mut Vec<(HashAlgorithm, u32)>,
        values: &mut Vec<(HashAlgorithm, u32, Digest)>,
    ) -> Result<u32, TpmError> {
        let mut asked = Vec::with_capacity(missing.len());
        for (bank, pcrs) in missing.iter() {
            let id = bank.tpm_id().and_then(|id| TpmAlgId::try_from(id).ok()).ok_or(TpmError::NoIdentifier(*bank))?;
            asked.push((id, *pcrs));
        }
        let mut reader = self.send_pcr_read(&asked)?;
        let counter = reader.u32("PCR update counter")?;
        let at = reader.offset;
        let selections = reader.selections()?;
        let found: u32 = selections.iter().map(|selection| selection.pcrs.count_ones()).sum();
        reader.expect("number of digests", found)?;
        for selection in selections {
            if selection.pcrs == 0 {
                continue;
            }
            let bank = missing.iter_mut().find(|(bank, _)| bank.tpm_id() == Some(selection.tpm_id));
            let Some((bank, pcrs)) = bank.filter(|(_, pcrs)| *pcrs & selection.pcrs == selection.pcrs) else {
                return Err(reader.malformed("selection of PCRs nobody asked for", at, selection.pcrs.into(), 0));
            };
            for index in (0..u32::BITS).filter(|index| selection.pcrs & 1 << index != 0) {
                let at = reader.offset;
                let bytes = reader.sized("digest", MAX_DIGEST)?;
                let value = Digest::new(*bank, bytes)
                    .map_err(|error| reader.malformed("digest's size", at, error.found as u64, error.needed as u64))?;
                values.push((*bank, index, value));
            }
            *pcrs &= !selection.pcrs;
        }
        reader.end()?;
        missing.retain(|(_, pcrs)| *pcrs != 0);
        Ok(counter)
    }

    /// Sends `TPM2_PCR_Read` for these PCRs of these banks.
    fn send_pcr_read(&mut self, selections: &[(TpmAlgId, u32)]) -> Result<Reader<'_>, TpmError> {
        let mut list = TpmlPcrSelection::default();
        for (hash, pcrs) in selections.iter().take(MAX_BANKS) {
            let [_, high, middle, low] = pcrs.to_be_bytes();
            let pcr_select = TpmsPcrSelect::try_from([low, middle, high].as_slice())
                .expect("three bytes fit the codec's selection of four");
            list.try_push(TpmsPcrSelection { hash: *hash, pcr_select }).expect("as many as the codec's list takes");
        }
        self.run("TPM2_PCR_Read", &TpmPcrReadCommand { handles: [], pcr_selection_in: list }, &[])
    }

    /// Sends a command, again while the TPM asks for that, and hands out the response's parameters.
    fn run<C: TpmFrame>(
        &mut self,
        name: &'static str,
        command: &C,
        authorisations: &[TpmsAuthCommand],
    ) -> Result<Reader<'_>, TpmError> {
        let tag = if authorisations.is_empty() { TpmSt::NoSessions } else { TpmSt::Sessions };
        let mut writer = TpmWriter::new(self.command.as_mut_slice());
        tpm_marshal_command(command, tag, authorisations, &mut writer).expect("every command here fits its room");
        let length = writer.len();
        let (mut waited, mut pause) = (Duration::ZERO, Duration::from_millis(1));
        loop {
            self.response.clear();
            self.transport
                .transmit(&self.command[..length], &mut self.response)
                .map_err(|source| TpmError::Transport { command: name, source })?;
            let code = response_code(name, &self.response)?;
            if code == ResponseCode::SUCCESS {
                break;
            }
            if !code.asks_to_resubmit() {
                return Err(TpmError::Refused { command: name, code });
            }
            if waited >= PATIENCE {
                return Err(TpmError::Busy { command: name, code, waited });
            }
            (self.pause)(pause);
            waited += pause;
            pause = (pause * 2).min(Duration::from_millis(100));
        }
        parameters(name, tag, &self.response)
    }
}

impl fmt::Debug for Tpm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tpm").field("banks", &self.banks).finish_non_exhaustive()
    }
}

impl fmt::Display for Bank {
    /// The kernel's name, else the TPM's identifier.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.algorithm {
            Some(algorithm) => algorithm.fmt(f),
            None => write!(f, "{:#06x}", self.tpm_id),
        }
    }
}

/// Banks by name, for a message.
struct Names<'a>(&'a [Bank]);

impl fmt::Display for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, bank) in self.0.iter().enumerate() {
            write!(f, "{}{bank}", if place == 0 { "" } else { ", " })?;
        }
        if self.0.is_empty() { f.write_str("none") } else { Ok(()) }
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

const MANUFACTURER: u32 = 0x105;
const VENDOR_STRING_1: u32 = 0x106;
const VENDOR_STRING_4: u32 = 0x109;
const FIRMWARE_VERSION_1: u32 = 0x10b;
const FIRMWARE_VERSION_2: u32 = 0x10c;

/// The largest digest that a response may carry.
const MAX_DIGEST: usize = imara_format::hash::MAX_DIGEST_SIZE;

/// The bit of a PCR in a selection.
fn pcr_bit(index: u32) -> Result<u32, TpmError> {
    if index < MAX_PCRS { Ok(1 << index) } else { Err(TpmError::NoPcr(index)) }
}

/// The password authorisation with an empty password.
fn empty_password() -> TpmsAuthCommand {
    const TPM_RS_PW: u32 = 0x4000_0009;
    TpmsAuthCommand { session_handle: TpmHandle::new(TPM_RS_PW), ..TpmsAuthCommand::default() }
}

/// A digest as an extend carries it.
fn tagged_digest(digest: &Digest) -> Result<TpmtHa, TpmError> {
    let algorithm = digest.algorithm();
    let hash_alg =
        algorithm.tpm_id().and_then(|id| TpmAlgId::try_from(id).ok()).ok_or(TpmError::NoIdentifier(algorithm))?;
    let bytes = TpmBuffer::try_from(digest.as_bytes()).map_err(|_| TpmError::NoIdentifier(algorithm))?;
    Ok(TpmtHa { hash_alg, digest: TpmuHa::Digest(bytes) })
}

/// Four letters packed into a property; those that do not print are left out.
fn letters(value: u32) -> String {
    value.to_be_bytes().into_iter().map(char::from).filter(|letter| matches!(letter, ' '..='~')).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use imara_format::hash::{from_hex, to_hex};
    use proptest::prelude::*;

    use super::{
        response::{NO_SESSIONS, SESSIONS},
        *,
    };

    use HashAlgorithm::{Sha1, Sha256};

    /// Answers each command as noted, and stands for no other.
    struct Script(VecDeque<(String, String)>);

    impl Transport for Script {
        fn transmit(&mut self, command: &[u8], response: &mut Vec<u8>) -> io::Result<()> {
            let (expected, answer) = self.0.pop_front().ok_or(io::ErrorKind::UnexpectedEof)?;
            assert_eq!(to_hex(command), expected);
            *response = from_hex(&answer).unwrap();
            Ok(())
        }
    }

    /// Answers every command with the same bytes.
    struct Always(Vec<u8>);

    impl Transport for Always {
        fn transmit(&mut self, _: &[u8], response: &mut Vec<u8>) -> io::Result<()> {
            response.clone_from(&self.0);
            Ok(())
        }
    }

    fn transcript() -> Vec<(String, String)> {
        let text = include_str!("../../../tests/vectors/tpm/transcript/transcript.json");
        let entries: Vec<serde_json::Value> = serde_json::from_str(text).unwrap();
        let text = |entry: &serde_json::Value, key: &str| entry[key].as_str().unwrap().to_owned();
        entries.iter().map(|entry| (text(entry, "cmd"), text(entry, "rsp"))).collect()
    }

    const GET_BANKS: &str = "8001000000160000017a000000050000000000000001";
    const EXTENDED: &str = "80020000001300000000000000000000010000";

    fn scripted(exchanges: &[(&str, &str)]) -> Tpm {
        let script = exchanges.iter().map(|(command, answer)| ((*command).to_owned(), (*answer).to_owned())).collect();
        unhurried(Tpm::unstarted(Box::new(Script(script))))
    }

    fn unhurried(mut tpm: Tpm) -> Tpm {
        tpm.pause = |_| {};
        tpm
    }

    fn bank(algorithm: HashAlgorithm) -> Bank {
        Bank { tpm_id: algorithm.tpm_id().unwrap(), algorithm: Some(algorithm), digest_size: algorithm.digest_size() }
    }

    /// A TPM with the two banks of the transcript, which has these entries before it.
    fn at(entries: &[usize]) -> Tpm {
        let transcript = transcript();
        let script = entries.iter().map(|entry| transcript[*entry].clone()).collect();
        let mut tpm = unhurried(Tpm::unstarted(Box::new(Script(script))));
        tpm.banks = vec![bank(Sha1), bank(Sha256)];
        tpm
    }

    fn digest(algorithm: HashAlgorithm, hex: &str) -> Digest {
        Digest::new(algorithm, &from_hex(hex).unwrap()).unwrap()
    }

    /// A response without authorisations.
    fn response(code: u32, parameters: &str) -> String {
        format!("8001{:08x}{code:08x}{parameters}", 10 + parameters.len() / 2)
    }

    #[test]
    fn banks_are_those_with_pcrs_allocated() {
        let script = VecDeque::from([transcript()[1].clone()]);
        assert_eq!(Tpm::new(Box::new(Script(script))).unwrap().banks(), [bank(Sha1), bank(Sha256)]);
    }

    #[test]
    fn banks_that_the_kernel_does_not_map_are_kept() {
        // SHA3-256, which the codec knows: its first PCR tells the size. 0x7fff, which nobody knows.
        let all = response(0, &"000000000500000003 002703feffff 7fff03ffffff 000b03ffffff".replace(' ', ""));
        let size = response(0, &format!("0000000100000001002703020000000000010020{}", "00".repeat(32)));
        let read = "8001000000140000017e00000001002703020000";
        let mut tpm = scripted(&[(GET_BANKS, &all), (read, &size)]);
        let unmapped = |tpm_id, digest_size| Bank { tpm_id, algorithm: None, digest_size };
        let banks = tpm.allocated_banks().unwrap();
        assert_eq!(banks, [unmapped(0x27, 32), unmapped(0x7fff, 0), bank(Sha256)]);
        assert_eq!(Names(&banks).to_string(), "0x0027, 0x7fff, sha256");

        let padded = format!("0027{}{}", "ab".repeat(20), "00".repeat(12));
        let extend = format!(
            "80020000006300000182 0000000a 00000009 400000090000000000 00000002 000b{}{padded}",
            "cd".repeat(32)
        );
        let mut tpm = scripted(&[(&extend.replace(' ', ""), EXTENDED)]);
        tpm.banks = banks;
        tpm.pcr_extend_every_bank(10, &[digest(Sha256, &"cd".repeat(32))], &[0xab; 20]).unwrap();
    }

    #[test]
    fn extends_and_reads_are_the_transcripts_bytes() {
        let mut tpm = at(&[14, 15, 16, 17, 18, 19, 20]);
        for (sha1, sha256) in [
            (
                "55e19427c290674f58ab9ae99e79735ce1ce7be7",
                "8ddc42ec20980c6f43d667249252ed61ff26df5a07fcf08c0afad80c8fbe0df9",
            ),
            (
                "a5ed77f86fc83f95c78e05140d009d31acb93275",
                "36e0c39f58677473589b09293670eef7222b065362490fd3ccfc464a15102a38",
            ),
            (
                "5f18d6e62444c8688bbdcd6117ac295a7e0bd383",
                "9abb765c4a2e7c5ff6dc364f41e71df3f31c9fa580c897afdbcfdd7f8a80a9c4",
            ),
            (&"ff".repeat(20), &"ff".repeat(32)),
            (
                "bee6cd9c1cfcfeb0aa4689657f5827a7561788a5",
                "566b8c6bd021dbd941e24a7d91a0bf1c63d73a03b53fbc04de5b99872e5852f4",
            ),
            (
                "e2b242c18e99321cae09e9fbd8e6773fa330f94a",
                "66a67844add13db4e88d304bccdb2bade0313c161f1765866f4d68256ba596fa",
            ),
        ] {
            tpm.pcr_extend(10, &[digest(Sha1, sha1), digest(Sha256, sha256)]).unwrap();
        }
        let sha1 = digest(Sha1, "6181029bb71129c76f17aeb8ea75b5bb3ef2e722");
        let sha256 = digest(Sha256, "910337fe49f4e2902d4702d0bf66f40bf17f3b7e2eeac41d7a4badb55c423c22");
        assert_eq!(tpm.pcr_read_many(&[10]).unwrap(), [(Sha1, 10, sha1), (Sha256, 10, sha256)]);
        at(&[53]).pcr_extend(23, &[Digest::zeros(Sha256)]).unwrap();
    }

    #[test]
    fn properties_and_random_bytes_are_the_transcripts() {
        let found = at(&[0]).tagged_properties(MANUFACTURER, 3).unwrap();
        assert_eq!(found.iter().map(|(_, value)| letters(*value)).collect::<Vec<_>>(), ["IBM", "SW  ", " TPM"]);
        let bytes = at(&[2]).random(32).unwrap();
        assert!(transcript()[2].1.ends_with(&to_hex(&bytes)));
        // 128 asked, 64 given: the rest is asked for.
        let (command, first) = transcript()[3].clone();
        let second = response(0, &format!("0040{}", "5a".repeat(64)));
        let bytes = scripted(&[(&command, &first), ("80010000000c0000017b0040", &second)]).random(128).unwrap();
        assert_eq!((bytes.len(), &bytes[..2], &bytes[127..]), (128, [0x1d, 0x18].as_slice(), [0x5a].as_slice()));
        let error = scripted(&[("80010000000c0000017b0001", &response(0, "0000"))]).random(1).unwrap_err();
        assert!(matches!(error, TpmError::NoRandom { wanted: 1 }));
    }

    #[test]
    fn properties_that_come_in_parts_are_put_together() {
        let mut tpm = scripted(&[
            ("8001000000160000017a000000060000010500000008", &transcript()[0].1),
            (
                "8001000000160000017a000000060000010800000005",
                &response(0, "0100000006000000020000010b201910230000010c00163636"),
            ),
        ]);
        let expected = Properties {
            manufacturer: "IBM".to_owned(),
            vendor: "SW   TPM".to_owned(),
            firmware: (0x2019_1023, 0x0016_3636),
        };
        assert_eq!(tpm.properties().unwrap(), expected);
    }

    #[test]
    fn a_reading_goes_on_until_every_pcr_is_there() {
        // sha256 of PCRs 0 and 1: the TPM gives one at a time.
        let value = |byte: &str| byte.repeat(32);
        let first = response(0, &format!("0000000500000001000b03010000000000010020{}", value("aa")));
        let second = response(0, &format!("0000000500000001000b03020000000000010020{}", value("bb")));
        let other = response(0, &format!("0000000600000001000b03020000000000010020{}", value("cc")));
        let (both, rest) = ("8001000000140000017e00000001000b03030000", "8001000000140000017e00000001000b03020000");
        let expected = |one: &str, two: &str| {
            vec![(Sha256, 0, digest(Sha256, &value(one))), (Sha256, 1, digest(Sha256, &value(two)))]
        };
        let mut tpm = scripted(&[(both, &first), (rest, &second)]);
        tpm.banks = vec![bank(Sha256)];
        assert_eq!(tpm.pcr_read_many(&[1, 0]).unwrap(), expected("aa", "bb"));
        // The update counter moved in between: all anew.
        let mut tpm = scripted(&[(both, &first), (rest, &other), (both, &first), (rest, &second)]);
        tpm.banks = vec![bank(Sha256)];
        assert_eq!(tpm.pcr_read_many(&[0, 1]).unwrap(), expected("aa", "bb"));
        // It moves each time.
        let mut tpm = scripted(&[(both, first.as_str()), (rest, &other)].repeat(READINGS as usize));
        tpm.banks = vec![bank(Sha256)];
        assert!(matches!(tpm.pcr_read_many(&[0, 1]), Err(TpmError::Unsettled(READINGS))));
    }

    #[test]
    fn the_returned_selection_counts() {
        let read = "8001000000140000017e00000001000b03000400";
        for (parameters, reason) in [
            ("0000000100000001000b0300000000000000", "the TPM returned no value for PCR 10 of bank sha256"),
            ("000000010000000000000000", "the TPM returned no value for PCR 10 of bank sha256"),
            (&format!("0000000100000001000b0300080000000001 0020{}", "00".repeat(32)), "nobody asked for"),
            (&format!("00000001000000010004030004000000000100 14{}", "00".repeat(20)), "nobody asked for"),
            (
                &format!("0000000100000001000b0300040000000001 0014{}", "00".repeat(20)),
                "digest's size is 20, 32 needed",
            ),
            ("0000000100000001000b0300040000000000", "number of digests is 0, 1 needed"),
        ] {
            let mut tpm = scripted(&[(read, &response(0, &parameters.replace(' ', "")))]);
            tpm.banks = vec![bank(Sha256)];
            let error = tpm.pcr_read(Sha256, 10).unwrap_err().to_string();
            assert!(error.contains(reason), "{parameters}: {error}");
        }
    }

    #[test]
    fn what_cannot_be_asked_is_refused_before_anything_is_sent() {
        let mut tpm = scripted(&[]);
        tpm.banks = vec![bank(Sha1), bank(Sha256)];
        let zeros = Digest::zeros(Sha256);
        for (error, reason) in [
            (
                tpm.pcr_read(HashAlgorithm::Sha384, 0).unwrap_err(),
                "the TPM has no sha384 PCR bank; it has sha1, sha256",
            ),
            (tpm.pcr_read(Sha256, 24).unwrap_err(), "there is no PCR 24; a TPM has PCRs 0 to 23"),
            (tpm.pcr_read_many(&[0, 32]).unwrap_err(), "there is no PCR 32; a TPM has PCRs 0 to 23"),
            (tpm.pcr_extend(24, &[zeros]).unwrap_err(), "there is no PCR 24; a TPM has PCRs 0 to 23"),
            (tpm.pcr_extend(10, &[]).unwrap_err(), "a PCR extend takes 1 to 8 digests, 0 given"),
            (tpm.pcr_extend(10, &[zeros; 9]).unwrap_err(), "a PCR extend takes 1 to 8 digests, 9 given"),
            (
                tpm.pcr_extend(10, &[Digest::zeros(HashAlgorithm::Md5)]).unwrap_err(),
                "a PCR cannot be extended with a md5 digest: the TPM has no identifier for that algorithm",
            ),
        ] {
            assert_eq!(error.to_string(), reason);
        }
        assert_eq!(tpm.pcr_read_many(&[]).unwrap(), []);
    }

    #[test]
    fn a_command_is_sent_again_while_the_tpm_asks_for_it() {
        let command = transcript()[53].0.clone();
        for code in [0x922, 0x90a, 0x908] {
            let busy = response(code, "");
            let mut tpm = scripted(&[(&command, &busy), (&command, &busy), (&command, EXTENDED)]);
            tpm.pcr_extend(23, &[Digest::zeros(Sha256)]).unwrap();
        }
        let busy = from_hex(&response(0x922, "")).unwrap();
        let mut tpm = unhurried(Tpm::unstarted(Box::new(Always(busy))));
        let error = tpm.pcr_extend(23, &[Digest::zeros(Sha256)]).unwrap_err();
        assert!(matches!(error, TpmError::Busy { waited, .. } if waited >= PATIENCE), "{error}");
        // Other warnings are answers.
        let mut tpm = scripted(&[(&command, &response(0x921, ""))]);
        assert!(matches!(
            tpm.pcr_extend(23, &[Digest::zeros(Sha256)]),
            Err(TpmError::Refused { code: ResponseCode::LOCKOUT, .. })
        ));
    }

    #[test]
    fn starting_tells_a_tpm_that_had_been_started() {
        let (clear, state) = ("80010000000c000001440000", "80010000000c000001440001");
        let banks = transcript()[1].1.clone();
        for (answer, started) in [(response(0, ""), Started::Now), (response(0x100, ""), Started::Already)] {
            let mut tpm = scripted(&[(clear, &answer), (GET_BANKS, &banks)]);
            assert_eq!(tpm.startup(StartupType::Clear).unwrap(), started);
            assert_eq!(tpm.banks().len(), 2);
        }
        let error = scripted(&[(state, &response(0x1c4, ""))]).startup(StartupType::State).unwrap_err();
        assert!(matches!(error, TpmError::Refused { code: ResponseCode(0x1c4), .. }));
        scripted(&[("80010000000c000001450001", &response(0, ""))]).shutdown(StartupType::State).unwrap();
    }

    #[test]
    fn a_response_that_is_no_answer_is_refused_with_the_place() {
        for (answer, reason) in [
            ("", "at byte 0: tag is 0, 2 needed"),
            ("80010000000a0000", "at byte 6: response code is 2, 4 needed"),
            ("80010000000b00000000", "at byte 2: size is 11, 10 needed"),
            ("12340000000a00000000", "at byte 0: tag is 4660, 32769 needed"),
            // Success, but without the authorisation's answer.
            ("80010000000a00000000", "at byte 0: tag is 32769, 32770 needed"),
            ("80020000000a00000000", "at byte 10: size of the parameters is 0, 4 needed"),
            ("80020000000e00000000ffffffff", "at byte 14: parameters is 0, 4294967295 needed"),
            ("80020000000f000000000000000100", "at byte 14: bytes after the end is 1, 0 needed"),
        ] {
            let mut tpm = Tpm::unstarted(Box::new(Always(from_hex(answer).unwrap())));
            let error = tpm.pcr_extend(10, &[Digest::zeros(Sha1)]).unwrap_err().to_string();
            assert!(error.ends_with(reason), "{answer}: {error}");
        }
        // A TPM 1.2 answers with a tag of its own.
        let mut tpm = Tpm::unstarted(Box::new(Always(from_hex("00c40000000a0000001e").unwrap())));
        let error = tpm.random(1).unwrap_err().to_string();
        assert!(error.contains("a TPM 1.2 cannot be used"), "{error}");
    }

    /// Every operation, on a TPM that answers each command so.
    fn exercise(answer: &[u8]) {
        let mut tpm = unhurried(Tpm::unstarted(Box::new(Always(answer.to_vec()))));
        tpm.banks = vec![bank(Sha1), bank(Sha256)];
        let _ = tpm.pcr_read(Sha256, 10);
        let _ = tpm.pcr_read_many(&[0, 10, 23]);
        let _ = tpm.pcr_extend(10, &[Digest::zeros(Sha1)]);
        let _ = tpm.properties();
        let _ = tpm.random(32);
        let _ = tpm.shutdown(StartupType::State);
        let _ = tpm.startup(StartupType::Clear);
        let _ = tpm.banks().iter().map(ToString::to_string).collect::<Vec<_>>();
    }

    proptest! {
        #[test]
        fn no_response_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            exercise(&bytes);
        }

        #[test]
        fn no_response_with_a_sound_header_panics(
            tag in prop_oneof![Just(NO_SESSIONS), Just(SESSIONS)],
            code in prop_oneof![4 => Just(0), 1 => any::<u32>()],
            body in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let size = 10 + body.len() as u32;
            let header = [tag.to_be_bytes().as_slice(), &size.to_be_bytes(), &code.to_be_bytes()].concat();
            exercise(&[header, body].concat());
        }

        #[test]
        fn no_cut_or_changed_response_panics(
            entry in prop::sample::select(vec![0usize, 1, 2, 3, 13, 14, 20]),
            change in any::<(prop::sample::Index, u8)>(),
            cut in any::<Option<prop::sample::Index>>(),
        ) {
            let mut answer = from_hex(&transcript()[entry].1).unwrap();
            let place = change.0.index(answer.len());
            answer[place] = change.1;
            if let Some(cut) = cut {
                answer.truncate(cut.index(answer.len()));
                let size = answer.len() as u32;
                if let Some(field) = answer.get_mut(2..6) {
                    field.copy_from_slice(&size.to_be_bytes());
                }
            }
            exercise(&answer);
        }
    }
}
