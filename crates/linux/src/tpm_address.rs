//! Where a TPM is, as people write it.
//!
//! | text | what |
//! |---|---|
//! | `/dev/tpmrm0` | a device; the kernel's resource manager keeps users apart |
//! | `/dev/tpm0` | a device for one user at a time, without resource manager |
//! | `/path/to/socket`, `swtpm:path=/path/to/socket` | a software TPM's Unix socket |
//! | `tcp:HOST:PORT`, `swtpm:host=HOST,port=PORT` | a software TPM's TCP socket |
//! | `device:/dev/tpmrm0` | a device, as tpm2-tools have it |

use std::{
    fmt, io,
    path::{Path, PathBuf},
    str::FromStr,
};

use imara_engine::tpm::Transport;

use crate::{
    tpm_device::{DeviceError, DeviceTransport},
    tpm_socket::{SocketAddress, SocketTransport, set_locality},
};

/// Where a TPM is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TpmAddress {
    /// A character device.
    Device(PathBuf),
    /// A socket.
    Socket(SocketAddress),
}

/// Text that says of no TPM where it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no TPM; a form like /dev/tpmrm0, a socket's path, tcp:HOST:PORT or swtpm:path=/path/to/socket is needed"
)]
pub struct AddressError(String);

/// A TPM that cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Its device does not open.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The locality cannot be had.
    #[error("locality {locality}: {source}")]
    Locality {
        /// The locality.
        locality: u8,
        /// Why.
        source: io::Error,
    },
    /// A device has the locality that the kernel gives it.
    #[error("locality {0} cannot be had at a device: the kernel sends everybody's commands from locality 0")]
    LocalityOfDevice(u8),
}

impl FromStr for TpmAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let none = || AddressError(text.chars().take(200).collect());
        let tcp = |host: &str, port: &str| {
            let port = port.parse().ok().filter(|port| *port > 0);
            let host = Some(host).filter(|host| !host.is_empty());
            Some(Self::Socket(SocketAddress::Tcp(host?.to_owned(), port?)))
        };
        let path = |path: &str| path.starts_with(['/', '.']).then(|| PathBuf::from(path));
        if let Some(rest) = text.strip_prefix("tcp:") {
            return rest.rsplit_once(':').and_then(|(host, port)| tcp(host, port)).ok_or_else(none);
        }
        if let Some(rest) = text.strip_prefix("device:") {
            return path(rest).map(Self::Device).ok_or_else(none);
        }
        if let Some(rest) = text.strip_prefix("swtpm:") {
            let option = |name: &str| rest.split(',').find_map(|part| part.strip_prefix(name)?.strip_prefix('='));
            return match (option("path"), option("host"), option("port")) {
                (Some(socket), None, None) => path(socket).map(|path| Self::Socket(SocketAddress::Unix(path))),
                (None, host, Some(port)) => tcp(host.unwrap_or("localhost"), port),
                _ => None,
            }
            .ok_or_else(none);
        }
        let path = path(text).ok_or_else(none)?;
        Ok(if SocketTransport::is_socket(&path) { Self::Socket(SocketAddress::Unix(path)) } else { Self::Device(path) })
    }
}

impl fmt::Display for TpmAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device(path) => write!(f, "{}", path.display()),
            Self::Socket(address) => address.fmt(f),
        }
    }
}

impl TpmAddress {
    /// A way to the TPM, whose commands come from this locality; from 0 where none is asked for.
    ///
    /// # Errors
    /// [`OpenError`]. A socket is connected to only at the first command.
    pub fn open(&self, locality: Option<u8>) -> Result<Box<dyn Transport>, OpenError> {
        match self {
            Self::Device(path) => match locality {
                Some(locality) if locality != 0 => Err(OpenError::LocalityOfDevice(locality)),
                Some(_) | None => Ok(Box::new(DeviceTransport::open(path)?)),
            },
            Self::Socket(address) => {
                if let Some(locality) = locality {
                    set_locality(&address.control(), locality)
                        .map_err(|source| OpenError::Locality { locality, source })?;
                }
                Ok(Box::new(SocketTransport::new(address.clone()).patient()))
            }
        }
    }

    /// Whether a resource manager flushes what a process leaves loaded when it ends.
    pub fn has_resource_manager(&self) -> bool {
        match self {
            Self::Device(path) => {
                let name = path.canonicalize().unwrap_or_else(|_| path.clone());
                name.file_name().is_some_and(|name| name.to_string_lossy().starts_with("tpmrm"))
            }
            Self::Socket(_) => false,
        }
    }

    /// A name for files about this TPM: the same for each way of writing its path.
    pub(crate) fn file_name(&self) -> String {
        let canonical = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned()).display().to_string();
        let name = match self {
            Self::Device(path) => canonical(path),
            Self::Socket(SocketAddress::Unix(path)) => canonical(path),
            Self::Socket(address @ SocketAddress::Tcp(..)) => address.to_string(),
        };
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
        let escaped = name.bytes().map(|byte| match plain(byte) {
            true => char::from(byte).to_string(),
            false => format!("%{byte:02x}"),
        });
        escaped.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_in_every_form() {
        let unix = |path: &str| TpmAddress::Socket(SocketAddress::Unix(path.into()));
        let tcp = |host: &str, port| TpmAddress::Socket(SocketAddress::Tcp(host.to_owned(), port));
        for (text, expected) in [
            ("/dev/tpmrm0", TpmAddress::Device("/dev/tpmrm0".into())),
            ("device:/dev/tpm0", TpmAddress::Device("/dev/tpm0".into())),
            ("swtpm:path=/run/x/sock", unix("/run/x/sock")),
            ("tcp:localhost:2321", tcp("localhost", 2321)),
            ("tcp:::1:2321", tcp("::1", 2321)),
            ("swtpm:host=127.0.0.1,port=2321", tcp("127.0.0.1", 2321)),
            ("swtpm:port=2321", tcp("localhost", 2321)),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
        for text in ["", "tpm0", "tcp:2321", "tcp:host:0", "tcp::2321", "swtpm:", "swtpm:path=x", "mssim:port=1"] {
            assert_eq!(text.parse::<TpmAddress>(), Err(AddressError(text.to_owned())));
        }
    }

    #[test]
    fn only_the_kernels_resource_manager_is_one() {
        for (text, expected) in [("/dev/tpmrm0", true), ("/dev/tpm0", false), ("tcp:localhost:1", false)] {
            assert_eq!(text.parse::<TpmAddress>().unwrap().has_resource_manager(), expected, "{text}");
        }
    }

    #[test]
    fn the_control_channel_is_beside_the_socket() {
        assert_eq!(SocketAddress::Unix("/x/s".into()).control(), SocketAddress::Unix("/x/s.ctrl".into()));
        let tcp = SocketAddress::Tcp("h".to_owned(), 2321);
        assert_eq!(tcp.control(), SocketAddress::Tcp("h".to_owned(), 2322));
    }
}
