//! The PCR values that the commands on measurements work with: of `--pcrs`, else of the kernel, else of the TPM.
//!
//! The TPM is the machine's, unless the environment has IBM's TSS's words for another, as ima-evm-utils' tests do:
//!
//! | variable | meaning |
//! |---|---|
//! | `TPM_INTERFACE_TYPE` | `socsim`: a TPM behind a TCP socket; `dev`: a device |
//! | `TPM_SERVER_NAME`, `TPM_COMMAND_PORT`, `TPM_SERVER_TYPE` | where the socket is; `raw`, as swtpm speaks, is taken alone |
//! | `TPM_DEVICE` | the device |

use super::{Evmctl, tell};
use imara_engine::tpm::{Tpm, Transport};
use imara_format::hash::{Digest, HashAlgorithm, from_hex};
use imara_format::pcr::PcrValues;
use imara_linux::tpm_device::DeviceTransport;
use imara_linux::tpm_socket::{SocketAddress, SocketTransport};
use std::env;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The banks that evmctl knows.
pub const BANKS: [HashAlgorithm; 2] = [HashAlgorithm::Sha1, HashAlgorithm::Sha256];

/// Where the kernel shows the PCRs of a TPM 1.2.
const TPM_1_2: [&str; 2] = ["/sys/class/tpm/tpm0/device/pcrs", "/sys/class/misc/tpm0/device/pcrs"];

/// PCR values; what cannot be read is told and left out.
pub fn read_pcrs(evmctl: &Evmctl) -> PcrValues {
    let mut values = PcrValues::new();
    for source in &evmctl.options.pcrs {
        let (bank, path) = match source.as_bytes().iter().position(|byte| *byte == b',') {
            Some(at) => {
                let (name, path) = source.as_bytes().split_at(at);
                let name = String::from_utf8_lossy(name).into_owned();
                let Some(bank) = BANKS.iter().find(|bank| bank.name() == name) else {
                    tell(format_args!("Unknown algorithm '{name}'\n"));
                    continue;
                };
                (*bank, OsStr::from_bytes(&path[1..]))
            }
            None => (HashAlgorithm::Sha1, source.as_os_str()),
        };
        match std::fs::read(Path::new(path)) {
            Ok(text) => read_text(&mut values, &String::from_utf8_lossy(&text), bank),
            Err(_) => tell(format_args!("Could not stat '{}'\n", path.display())),
        }
    }
    if !evmctl.options.pcrs.is_empty() {
        return values;
    }
    for path in TPM_1_2 {
        if let Ok(text) = std::fs::read_to_string(path) {
            read_text(&mut values, &text, HashAlgorithm::Sha1);
            return values;
        }
    }
    for bank in BANKS {
        for pcr in 0..24 {
            let path = format!("/sys/class/tpm/tpm0/pcr-{bank}/{pcr}");
            let value = std::fs::read_to_string(path).ok().and_then(|text| from_hex(text.trim()).ok());
            if let Some(digest) = value.and_then(|value| Digest::new(bank, &value).ok()) {
                // Each is read once.
                let _ = values.insert(pcr, digest);
            }
        }
    }
    if values.is_empty() {
        read_tpm(&mut values);
    }
    values
}

/// The PCRs that the TPM itself gives; kernels before 5.12 do not show them.
fn read_tpm(values: &mut PcrValues) {
    let read = transport().and_then(|transport| {
        let Some(transport) = transport else { return Ok(()) };
        let mut tpm = Tpm::new(transport).map_err(|error| error.to_string())?;
        for bank in BANKS {
            if !tpm.banks().iter().any(|held| held.algorithm == Some(bank)) {
                continue;
            }
            for pcr in 0..24 {
                let digest = tpm.pcr_read(bank, pcr).map_err(|error| error.to_string())?;
                // Each is read once.
                let _ = values.insert(pcr, digest);
            }
        }
        Ok(())
    });
    if let Err(reason) = read {
        tell(format_args!("reason: {reason}\n"));
    }
}

/// The way to the TPM; none where the machine has none and the environment names none.
fn transport() -> Result<Option<Box<dyn Transport>>, String> {
    let variable = |name| env::var(name).ok().filter(|value| !value.is_empty());
    if variable("TPM_INTERFACE_TYPE").as_deref() == Some("socsim") {
        match variable("TPM_SERVER_TYPE").as_deref() {
            Some("raw" | "rawsingle") => {}
            kind => {
                return Err(format!(
                    "TPM_SERVER_TYPE is {}, and only raw, what swtpm speaks, is known here",
                    kind.unwrap_or("mssim")
                ));
            }
        }
        let port = variable("TPM_COMMAND_PORT").unwrap_or("2321".to_owned());
        let port = port.parse().map_err(|_| format!("TPM_COMMAND_PORT={port} is no port"))?;
        let server = variable("TPM_SERVER_NAME").unwrap_or("localhost".to_owned());
        return Ok(Some(Box::new(SocketTransport::new(SocketAddress::Tcp(server, port)))));
    }
    let devices =
        variable("TPM_DEVICE").map_or(vec!["/dev/tpmrm0".to_owned(), "/dev/tpm0".to_owned()], |one| vec![one]);
    match devices.iter().map(Path::new).find(|device| device.exists()) {
        Some(device) => match DeviceTransport::open(device) {
            Ok(transport) => Ok(Some(Box::new(transport))),
            Err(error) => Err(error.to_string()),
        },
        None => Ok(None),
    }
}

/// Lines `PCR-NN: HEX`, blanks between the bytes or none; other lines are left alone, and a PCR without a line is zero.
fn read_text(values: &mut PcrValues, text: &str, bank: HashAlgorithm) {
    let mut found = std::collections::BTreeMap::new();
    for line in text.lines() {
        let Some((number, hex)) = line.strip_prefix("PCR-").and_then(|rest| rest.split_once(':')) else { continue };
        let hex = hex.split_whitespace().collect::<String>();
        if let (Ok(number), Ok(value)) = (number.trim().parse::<u32>(), from_hex(&hex))
            && let Ok(digest) = Digest::new(bank, &value)
        {
            found.insert(number, digest);
        }
    }
    for pcr in 0..24 {
        let _ = values.insert(pcr, found.get(&pcr).copied().unwrap_or_else(|| Digest::zeros(bank)));
    }
}
