//! What a TPM says of itself.

use tpm2_protocol::{
    basic::TpmUint32,
    data::TpmCap,
    frame::{TpmGetCapabilityCommand, TpmReadClockCommand},
};

use imara_format::tpm::Reader;

use super::{Tpm, TpmError};

/// How a TPM stands with failed authorisations (dictionary attack protection), and what is set in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lockout {
    /// Whether it refuses whatever such failures count for.
    pub locked: bool,
    /// Failures counted now.
    pub counter: u32,
    /// Failures that lock it.
    pub max_tries: u32,
    /// Seconds after which one failure is forgotten; 0 for never.
    pub interval: u32,
    /// Seconds after which a failed authorisation of the lockout hierarchy is forgiven.
    pub recovery: u32,
    /// Whether the owner hierarchy has an authorisation value.
    pub owner_auth_set: bool,
    /// Whether the endorsement hierarchy has one.
    pub endorsement_auth_set: bool,
    /// Whether the lockout hierarchy has one.
    pub lockout_auth_set: bool,
}

/// A TPM's clock and counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clock {
    /// Milliseconds that it has run.
    pub clock: u64,
    /// How often it was reset.
    pub reset_count: u32,
    /// How often it was restarted or resumed since.
    pub restart_count: u32,
    /// Whether the clock has certainly not gone back.
    pub safe: bool,
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

/// The edition of the TCG's Library that a TPM is made to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Specification {
    /// The revision times 100, e.g. 138, 159.
    pub revision: u32,
    /// The year of its errata.
    pub year: u32,
}

/// What else can be loaded or kept in a TPM. Through a resource manager it is what one user of that can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Objects that can be loaded besides those that are; an estimate.
    pub objects: u32,
    /// Sessions that can be loaded besides those that are; an estimate.
    pub sessions: u32,
    /// Sessions that can be begun besides those that are loaded or saved.
    pub active_sessions: u32,
    /// Objects that can be kept besides those that are; an estimate.
    pub persistent: u32,
}

impl Tpm {
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

    /// What it is made to.
    ///
    /// # Errors
    /// [`TpmError`] as the TPM answers.
    pub fn specification(&mut self) -> Result<Specification, TpmError> {
        Ok(Specification { revision: self.property(REVISION)?, year: self.property(YEAR)? })
    }

    /// What else there is room for.
    ///
    /// # Errors
    /// [`TpmError`] as the TPM answers.
    pub fn room(&mut self) -> Result<Room, TpmError> {
        Ok(Room {
            objects: self.property(TRANSIENT_AVAILABLE)?,
            sessions: self.property(LOADED_AVAILABLE)?,
            active_sessions: self.property(ACTIVE_AVAILABLE)?,
            persistent: self.property(PERSISTENT_AVAILABLE)?,
        })
    }

    /// The NV indices that are defined.
    ///
    /// # Errors
    /// [`TpmError`] as the TPM answers.
    pub fn nv_indices(&mut self) -> Result<Vec<u32>, TpmError> {
        self.handles(NV_INDICES)
    }

    /// Its clock and counters.
    ///
    /// # Errors
    /// [`TpmError`] as the TPM answers.
    pub fn clock(&mut self) -> Result<Clock, TpmError> {
        let mut reader = self.run("TPM2_ReadClock", &TpmReadClockCommand { handles: [] }, &[])?;
        reader.u64("time")?;
        let clock = reader.u64("clock")?;
        let (reset_count, restart_count) = (reader.u32("number of resets")?, reader.u32("number of restarts")?);
        let safe = reader.u8("whether the clock is safe")? == 1;
        reader.end()?;
        Ok(Clock { clock, reset_count, restart_count, safe })
    }

    /// How it stands with failed authorisations.
    ///
    /// # Errors
    /// [`TpmError`] as the TPM answers.
    pub fn lockout(&mut self) -> Result<Lockout, TpmError> {
        let permanent = self.property(PERMANENT)?;
        Ok(Lockout {
            locked: permanent & 1 << 9 != 0,
            owner_auth_set: permanent & 1 != 0,
            endorsement_auth_set: permanent & 1 << 1 != 0,
            lockout_auth_set: permanent & 1 << 2 != 0,
            counter: self.property(LOCKOUT_COUNTER)?,
            max_tries: self.property(MAX_AUTH_FAIL)?,
            interval: self.property(LOCKOUT_INTERVAL)?,
            recovery: self.property(LOCKOUT_RECOVERY)?,
        })
    }

    fn property(&mut self, property: u32) -> Result<u32, TpmError> {
        let found = self.tagged_properties(property, 1)?;
        let value = found.into_iter().find(|(tag, _)| *tag == property);
        value.map(|(_, value)| value).ok_or(TpmError::NoProperty(property))
    }

    /// The handles of one kind that are in use, from the kind's first on.
    pub(super) fn handles(&mut self, first: u32) -> Result<Vec<u32>, TpmError> {
        let mut handles: Vec<u32> = Vec::new();
        let mut next = first;
        loop {
            let command = TpmGetCapabilityCommand {
                handles: [],
                cap: TpmCap::Handles,
                property: TpmUint32::from(next),
                property_count: TpmUint32::from(HANDLES_AT_ONCE),
            };
            let mut reader = self.run("TPM2_GetCapability", &command, &[])?;
            let more = reader.u8("more data")? == 1;
            reader.expect("capability", TpmCap::Handles.value())?;
            let count = reader.u32("number of handles")?;
            for _ in 0..count {
                handles.push(reader.u32("handle")?);
            }
            reader.end()?;
            // Only ever forwards, so that no TPM keeps this going.
            match handles.last().and_then(|last| last.checked_add(1)) {
                Some(after) if more && after > next && after & KIND == first & KIND => next = after,
                _ => return Ok(handles),
            }
        }
    }

    /// Properties from `first` on, as the TPM returns them.
    pub(super) fn tagged_properties(&mut self, first: u32, count: u32) -> Result<Vec<(u32, u32)>, TpmError> {
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
    pub(super) fn capability(&mut self, cap: TpmCap, property: u32, count: u32) -> Result<Reader<'_>, TpmError> {
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
}

/// `TPM_PT_PERMANENT`: bits of what is set for good or until it is cleared.
const PERMANENT: u32 = 0x200;
const LOCKOUT_COUNTER: u32 = 0x20e;
const MAX_AUTH_FAIL: u32 = 0x20f;
const LOCKOUT_INTERVAL: u32 = 0x210;
const LOCKOUT_RECOVERY: u32 = 0x211;
const REVISION: u32 = 0x102;
const YEAR: u32 = 0x104;
const LOADED_AVAILABLE: u32 = 0x204;
const ACTIVE_AVAILABLE: u32 = 0x206;
const TRANSIENT_AVAILABLE: u32 = 0x207;
const PERSISTENT_AVAILABLE: u32 = 0x209;
/// Where the handles of NV indices begin.
const NV_INDICES: u32 = 0x0100_0000;
const HANDLES_AT_ONCE: u32 = 64;
/// The bits of a handle that say what kind it is.
const KIND: u32 = 0xff00_0000;
pub(super) const MANUFACTURER: u32 = 0x105;
pub(super) const VENDOR_STRING_1: u32 = 0x106;
pub(super) const VENDOR_STRING_4: u32 = 0x109;
pub(super) const FIRMWARE_VERSION_1: u32 = 0x10b;
pub(super) const FIRMWARE_VERSION_2: u32 = 0x10c;

/// Four letters packed into a property; those that do not print are left out.
pub(super) fn letters(value: u32) -> String {
    value.to_be_bytes().into_iter().map(char::from).filter(|letter| matches!(letter, ' '..='~')).collect()
}
