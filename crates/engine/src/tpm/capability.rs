//! What a TPM says of itself.

use tpm2_protocol::{basic::TpmUint32, data::TpmCap, frame::TpmGetCapabilityCommand};

use super::{Tpm, TpmError, response::Reader};

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

pub(super) const MANUFACTURER: u32 = 0x105;
pub(super) const VENDOR_STRING_1: u32 = 0x106;
pub(super) const VENDOR_STRING_4: u32 = 0x109;
pub(super) const FIRMWARE_VERSION_1: u32 = 0x10b;
pub(super) const FIRMWARE_VERSION_2: u32 = 0x10c;

/// Four letters packed into a property; those that do not print are left out.
pub(super) fn letters(value: u32) -> String {
    value.to_be_bytes().into_iter().map(char::from).filter(|letter| matches!(letter, ' '..='~')).collect()
}
