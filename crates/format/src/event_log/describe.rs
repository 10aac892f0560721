//! What an event is, in words: from its data, as far as that has a known form.
//!
//! Nothing of it is proven but by the digest: the data of some events is what was measured, of others only a name for it.
//!
//! Source: TCG PC Client Platform Firmware Profile, chapter 10; UEFI specification, chapters 3 (load options), 5 (GPT) and 10
//! (device paths).

use super::{Event, EventType};
use crate::hash::to_hex;

impl Event {
    /// What it is, on one line without control characters.
    pub fn description(&self) -> String {
        let data = self.data.as_slice();
        let known = match self.kind {
            EventType::NO_ACTION => no_action(data),
            EventType::SEPARATOR => separator(data),
            EventType::EVENT_TAG => tagged(data),
            EventType::S_CRTM_VERSION => {
                Some(format!("version of the firmware's root of trust: {}", text_or_size(data)))
            }
            EventType::EFI_VARIABLE_DRIVER_CONFIG
            | EventType::EFI_VARIABLE_BOOT
            | EventType::EFI_VARIABLE_BOOT2
            | EventType::EFI_VARIABLE_AUTHORITY => variable(data),
            EventType::EFI_BOOT_SERVICES_APPLICATION => image("program", data),
            EventType::EFI_BOOT_SERVICES_DRIVER | EventType::EFI_RUNTIME_SERVICES_DRIVER => image("driver", data),
            EventType::EFI_PLATFORM_FIRMWARE_BLOB => firmware(data),
            EventType::EFI_PLATFORM_FIRMWARE_BLOB2 | EventType::POST_CODE2 => named_firmware(data),
            EventType::POST_CODE => match data.len() {
                16 if text(data).is_none() => firmware(data),
                _ => None,
            },
            EventType::EFI_GPT_EVENT | EventType::EFI_GPT_EVENT2 => partition_table(data),
            EventType::EFI_HCRTM_EVENT => Some("the hardware's root of trust".to_owned()),
            _ => None,
        };
        known.unwrap_or_else(|| text_or_size(data))
    }
}

impl Event {
    /// The value of the variable that the event is about; none of other events.
    pub fn variable_value(&self) -> Option<&[u8]> {
        let is_variable = matches!(
            self.kind,
            EventType::EFI_VARIABLE_DRIVER_CONFIG
                | EventType::EFI_VARIABLE_BOOT
                | EventType::EFI_VARIABLE_BOOT2
                | EventType::EFI_VARIABLE_AUTHORITY
        );
        let data = self.data.as_slice();
        let value = |size: u64| {
            let name = usize::try_from(number(data, 16, 8)?).ok()?.checked_mul(2)?;
            data.get(32..)?.get(name..)?.get(..usize::try_from(size).ok()?)
        };
        if is_variable { number(data, 24, 8).and_then(value) } else { None }
    }
}

/// A little-endian number at an offset.
fn number(data: &[u8], offset: usize, size: usize) -> Option<u64> {
    let field = data.get(offset..offset.checked_add(size)?)?;
    Some(field.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

fn text_or_size(data: &[u8]) -> String {
    match text(data) {
        Some(text) => format!("\"{text}\""),
        None if data.is_empty() => "no data".to_owned(),
        None if data.len() <= SHOWN => to_hex(data),
        None => format!("{} bytes", data.len()),
    }
}

/// Bytes that are short enough to be shown as they are.
const SHOWN: usize = 8;
/// The longest text that is shown.
const LONGEST: usize = 300;

/// Text in ASCII, UTF-8 or UTF-16 with NULs behind it; `None` when it is not that.
fn text(data: &[u8]) -> Option<String> {
    let narrow = || {
        let end = data.iter().rposition(|byte| *byte != 0)?.checked_add(1)?;
        let text = std::str::from_utf8(data.get(..end)?).ok()?;
        printable(text)
    };
    let wide = || {
        let units: Vec<u16> = data
            .chunks_exact(2)
            .map(|pair| pair.iter().rev().fold(0, |unit, byte| unit << 8 | u16::from(*byte)))
            .collect();
        let end = units.iter().rposition(|unit| *unit != 0)?.checked_add(1)?;
        printable(&String::from_utf16(units.get(..end)?).ok()?)
    };
    narrow().or_else(|| if data.len() & 1 == 0 { wide() } else { None })
}

fn printable(text: &str) -> Option<String> {
    let visible = |letter: char| !letter.is_control() || matches!(letter, '\n' | '\t' | '\r');
    if text.is_empty() || !text.chars().all(visible) {
        return None;
    }
    let shown: String =
        text.chars().take(LONGEST).map(|letter| if letter.is_control() { ' ' } else { letter }).collect();
    Some(if text.chars().count() > LONGEST { format!("{shown}...") } else { shown })
}

fn no_action(data: &[u8]) -> Option<String> {
    if data.starts_with(super::SPEC_ID) {
        return Some("what the log is: crypto-agile, of TPM 2.0".to_owned());
    }
    if data.starts_with(b"Spec ID Event00\0") {
        return Some("what the log is: of TPM 1.2, with SHA-1 alone".to_owned());
    }
    match data.strip_prefix(b"StartupLocality\0") {
        Some([locality]) => {
            Some(format!("the machine started at locality {locality}, so PCR 0 began with that number"))
        }
        _ => None,
    }
}

fn separator(data: &[u8]) -> Option<String> {
    match number(data, 0, 4).filter(|_| data.len() == 4)? {
        0 | 0xffff_ffff => Some("the firmware has measured all of its own into this PCR".to_owned()),
        1 => Some("an ERROR of the firmware: from here on this PCR cannot be relied on".to_owned()),
        _ => None,
    }
}

/// Tags of PC Clients of TPM 1.2, and of Linux's EFI stub; the tag, u32 its size, its data.
fn tagged(data: &[u8]) -> Option<String> {
    let (tag, size) = (number(data, 0, 4)?, number(data, 4, 4)?);
    let rest = data.get(8..)?.get(..usize::try_from(size).ok()?)?;
    let name = match tag {
        1 => "SMBIOS structure",
        2 => "BIS certificate",
        3 => "POST strings of the BIOS",
        4 => "ESCD",
        5 => "CMOS settings",
        6 => "settings in NVRAM",
        7 => "option ROM, executed",
        8 => "option ROM's configuration",
        10 => "option ROM's microcode",
        11 => "version of the BIOS's root of trust",
        12 => "contents of the BIOS's root of trust",
        13 => "contents of the POST",
        14 => "table of devices",
        0x8f3b_22ec => "initial RAM disk, by Linux",
        0x8f3b_22ed => "the kernel's command line, by Linux",
        _ => return Some(format!("tag {tag:#x}: {}", text_or_size(rest))),
    };
    Some(format!("{name}: {}", text_or_size(rest)))
}

/// UEFI_VARIABLE_DATA: GUID, u64 characters of the name, u64 bytes of the data, the name in UTF-16, the data.
fn variable(data: &[u8]) -> Option<String> {
    let guid = guid(data.get(..16)?)?;
    let characters = usize::try_from(number(data, 16, 8)?).ok()?;
    let size = usize::try_from(number(data, 24, 8)?).ok()?;
    let name = data.get(32..)?.get(..characters.checked_mul(2)?)?;
    let value = data.get(32..)?.get(name.len()..)?.get(..size)?;
    let name = text(name).or_else(|| if name.is_empty() { Some(String::new()) } else { None })?;
    let owner = match guid.as_str() {
        "8be4df61-93ca-11d2-aa0d-00e098032b8c" => String::new(),
        "d719b2cb-3d3a-4596-a3bc-dad00e67656f" => " (image security)".to_owned(),
        "605dab50-e046-4300-abb6-3dd810dd8b23" => " (shim)".to_owned(),
        _ => format!(" ({guid})"),
    };
    let content = match (name.as_str(), value) {
        (_, []) => "is not set".to_owned(),
        ("SecureBoot" | "SetupMode" | "AuditMode" | "DeployedMode" | "MokSBState", [0]) => "is off".to_owned(),
        ("SecureBoot" | "SetupMode" | "AuditMode" | "DeployedMode" | "MokSBState", [1]) => "is on".to_owned(),
        ("BootOrder", order) => {
            let order = order.chunks_exact(2).filter_map(|entry| Some(format!("{:04X}", number(entry, 0, 2)?)));
            format!("= {}", order.collect::<Vec<_>>().join(","))
        }
        (name, option) if name.starts_with("Boot") && name.len() == 8 => {
            load_option(option).unwrap_or_else(|| format!("= {} bytes", option.len()))
        }
        (_, value) => format!("= {}", text_or_size(value)),
    };
    Some(format!("variable {name}{owner} {content}"))
}

/// EFI_LOAD_OPTION: u32 attributes, u16 size of the device path, the description in UTF-16 with its NUL, the path.
fn load_option(option: &[u8]) -> Option<String> {
    let path = usize::try_from(number(option, 4, 2)?).ok()?;
    let rest = option.get(6..)?;
    let end = rest.chunks_exact(2).position(|unit| unit == [0, 0])?.checked_mul(2)?;
    let (description, rest) = rest.split_at_checked(end)?;
    let files = rest.get(2..)?.get(..path).map(device_path).unwrap_or_default();
    Some(format!("= \"{}\"{}", text(description)?, if files.is_empty() { files } else { format!(", {files}") }))
}

/// UEFI_IMAGE_LOAD_EVENT: u64 address, length, link address, length of the device path; the path.
fn image(what: &str, data: &[u8]) -> Option<String> {
    let (address, length) = (number(data, 0, 8)?, number(data, 8, 8)?);
    let path = usize::try_from(number(data, 24, 8)?).ok()?;
    let path = device_path(data.get(32..)?.get(..path)?);
    Some(match path.as_str() {
        "" => format!("{what} of {length} bytes at {address:#x}"),
        path => format!("{what} {path}, {length} bytes"),
    })
}

/// What people know of a device path: partition, firmware volume's file, file.
fn device_path(mut path: &[u8]) -> String {
    let mut parts = Vec::new();
    while let Some(([kind, sub, low, high], _)) = path.split_first_chunk() {
        let length = usize::from(u16::from_le_bytes([*low, *high]));
        // A node has its own header; a shorter one would keep this going for ever.
        if length < 4 {
            break;
        }
        let Some((node, rest)) = path.split_at_checked(length) else { break };
        let body = node.get(4..).unwrap_or_default();
        match (*kind, *sub) {
            (0x7f, _) => break,
            // HD(partition, size, signature)
            (4, 1) => {
                let signature = body.get(20..36).and_then(guid);
                parts.extend(number(body, 0, 4).map(|partition| match signature {
                    Some(signature) => format!("partition {partition} ({signature})"),
                    None => format!("partition {partition}"),
                }));
            }
            (4, 4) => parts.extend(text(body)),
            (4, 6) => parts.extend(guid(body).map(|file| format!("firmware file {file}"))),
            _ => {}
        }
        path = rest;
    }
    parts.join(" ")
}

/// UEFI_PLATFORM_FIRMWARE_BLOB: u64 address and length.
fn firmware(data: &[u8]) -> Option<String> {
    let (base, length) = (number(data, 0, 8)?, number(data, 8, 8)?);
    (data.len() == 16).then(|| format!("firmware of {length} bytes at {base:#x}"))
}

/// UEFI_PLATFORM_FIRMWARE_BLOB2: u8 size of a description, that, and as above.
fn named_firmware(data: &[u8]) -> Option<String> {
    let (size, rest) = data.split_first()?;
    let (name, rest) = rest.split_at_checked(usize::from(*size))?;
    Some(format!("{}: {}", text_or_size(name), firmware(rest)?))
}

/// UEFI_GPT_DATA: the header, u64 number of partitions, and an entry of 128 bytes each.
fn partition_table(data: &[u8]) -> Option<String> {
    let disk = guid(data.get(56..72)?)?;
    let count = number(data, 92, 8)?;
    let names = data.get(100..)?.chunks_exact(128).filter_map(|entry| text(entry.get(56..)?));
    let names: Vec<String> = names.take(32).map(|name| format!("\"{name}\"")).collect();
    Some(format!("partition table of disk {disk}, {count} partitions: {}", names.join(", ")))
}

/// A GUID, whose first three fields are little endian.
fn guid(bytes: &[u8]) -> Option<String> {
    let bytes: &[u8; 16] = bytes.get(..16)?.try_into().ok()?;
    let [a, b, c, d, e, f, g, h, rest @ ..] = bytes;
    let (tail, node) = rest.split_at_checked(2)?;
    Some(format!(
        "{}-{}-{}-{}-{}",
        to_hex(&[*d, *c, *b, *a]),
        to_hex(&[*f, *e]),
        to_hex(&[*h, *g]),
        to_hex(tail),
        to_hex(node)
    ))
}

#[cfg(test)]
mod tests {
    use super::super::{
        EventLog,
        tests::{OVMF, SEABIOS, TPM12},
    };

    #[test]
    fn events_are_named() {
        for (name, log, place, expected) in [
            ("SeaBIOS", SEABIOS, 0, "what the log is: crypto-agile, of TPM 2.0"),
            ("SeaBIOS", SEABIOS, 2, "\"Start Option ROM Scan\""),
            ("SeaBIOS", SEABIOS, 3, "option ROM, executed: 24 bytes"),
            ("SeaBIOS", SEABIOS, 5, "\"Calling INT 19h\""),
            ("SeaBIOS", SEABIOS, 6, "the firmware has measured all of its own into this PCR"),
            ("TPM 1.2", TPM12, 1, "\"Start Option ROM Scan\""),
            ("OVMF", OVMF, 1, "version of the firmware's root of trust: 0000"),
            ("OVMF", OVMF, 2, "firmware of 917504 bytes at 0x820000"),
            ("OVMF", OVMF, 4, "variable SecureBoot is off"),
            ("OVMF", OVMF, 7, "variable db (image security) is not set"),
            ("OVMF", OVMF, 10, "program kernel, 12085184 bytes"),
            ("OVMF", OVMF, 11, "variable BootOrder = 0000"),
            ("OVMF", OVMF, 12, "variable Boot0000 = \"UiApp\", firmware file 462caa21-7614-4503-836e-8ab6f4662331"),
            ("OVMF", OVMF, 21, "the kernel's command line, by Linux: \"LOADED_IMAGE::LoadOptions\""),
            ("OVMF", OVMF, 22, "initial RAM disk, by Linux: \"Linux initrd\""),
            ("OVMF", OVMF, 23, "\"Exit Boot Services Invocation\""),
        ] {
            let log = EventLog::parse(log).unwrap();
            assert_eq!(log.events[place].description(), expected, "{name} {place}");
        }
    }
}
