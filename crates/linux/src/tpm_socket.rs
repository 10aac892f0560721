//! A TPM behind a socket: the software TPM `swtpm`, by a Unix or a TCP socket, and its control channel.
//!
//! The socket takes raw commands and gives raw responses. It serves one client at a time and has no resource manager; others
//! wait. The control channel, where `swtpm` was given one, takes commands of its own; the only one used here:
//!
//! | offset | size | meaning |
//! |---|---|---|
//! | 0 | 4 | 5: set the locality of the commands that follow |
//! | 4 | 1 | the locality |
//!
//! Its answer is a TPM's response code in four bytes. Who can open it can also reset the PCRs.
//!
//! Source: swtpm_ioctls(3).

use std::{
    fmt,
    io::{self, Read, Write},
    net::{TcpStream, ToSocketAddrs},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    local_socket,
    tpm_device::{read_response, retried},
};
use imara_engine::tpm::{ResponseCode, Transport};

/// Where a TPM's socket is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SocketAddress {
    /// A Unix socket.
    Unix(PathBuf),
    /// A TCP port: a host's name or address, and the port.
    Tcp(String, u16),
}

/// A connection to a TPM's socket, made at the first command, and again after an error.
///
/// After an error nobody knows whether the command has been done, or will be: one that waited behind another client is
/// done when that client leaves, even if its sender has gone. After a failed extend, read the PCR.
#[derive(Debug)]
pub struct SocketTransport {
    address: SocketAddress,
    stream: Option<Stream>,
    answered: bool,
    patience: Duration,
}

/// How long a socket may take to connect, and to give an answer; if it is the first, another is likely to use it.
const ANSWER: Duration = Duration::from_secs(5);
/// How long it may take where it is to make keys: an RSA key takes a software TPM seconds, on a busy machine many.
const PATIENT_ANSWER: Duration = Duration::from_secs(60);
/// Set the locality.
const SET_LOCALITY: u32 = 5;

#[derive(Debug)]
enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl SocketAddress {
    /// The usual place of the control channel: `.ctrl` behind a path, the next TCP port.
    #[must_use]
    pub fn control(&self) -> Self {
        match self {
            Self::Unix(path) => {
                let mut control = path.as_os_str().to_owned();
                control.push(".ctrl");
                Self::Unix(control.into())
            }
            Self::Tcp(host, port) => Self::Tcp(host.clone(), port.wrapping_add(1)),
        }
    }

    fn connect(&self) -> io::Result<Stream> {
        let stream = match self {
            Self::Unix(path) => Stream::Unix(local_socket::connect(path, ANSWER)?),
            Self::Tcp(host, port) => {
                let mut result = Err(io::Error::new(io::ErrorKind::NotFound, format!("no address of host {host}")));
                for address in (host.as_str(), *port).to_socket_addrs()? {
                    result = TcpStream::connect_timeout(&address, ANSWER);
                    if result.is_ok() {
                        break;
                    }
                }
                let stream = result?;
                // Commands are short, and each waits for its answer.
                stream.set_nodelay(true)?;
                stream.set_write_timeout(Some(ANSWER))?;
                Stream::Tcp(stream)
            }
        };
        stream.set_patience(ANSWER)?;
        Ok(stream)
    }
}

impl fmt::Display for SocketAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "{}", path.display()),
            Self::Tcp(host, port) => write!(f, "tcp:{host}:{port}"),
        }
    }
}

impl Stream {
    fn set_patience(&self, limit: Duration) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.set_read_timeout(Some(limit)),
            Self::Tcp(stream) => stream.set_read_timeout(Some(limit)),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.read(room),
            Self::Tcp(stream) => stream.read(room),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.write(bytes),
            Self::Tcp(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.flush(),
            Self::Tcp(stream) => stream.flush(),
        }
    }
}

/// Has a software TPM take the commands that follow as from a locality, by its control channel.
///
/// # Errors
/// Where there is no such channel, or the TPM refuses.
pub fn set_locality(control: &SocketAddress, locality: u8) -> io::Result<()> {
    let place = |error: io::Error| io::Error::new(error.kind(), format!("the control channel {control}: {error}"));
    let mut stream = control.connect().map_err(place)?;
    let command = [&SET_LOCALITY.to_be_bytes()[..], &[locality]].concat();
    let mut answer = [0; 4];
    stream.write_all(&command).and_then(|()| stream.read_exact(&mut answer)).map_err(place)?;
    match ResponseCode(u32::from_be_bytes(answer)) {
        ResponseCode::SUCCESS => Ok(()),
        code => Err(io::Error::other(format!("the control channel {control} refused locality {locality} with {code}"))),
    }
}

impl SocketTransport {
    /// A way to the TPM that listens at `path`.
    pub fn unix(path: PathBuf) -> Self {
        Self::new(SocketAddress::Unix(path))
    }

    /// A way to the TPM that listens there.
    pub fn new(address: SocketAddress) -> Self {
        Self { address, stream: None, answered: false, patience: ANSWER }
    }

    /// The same for someone who makes keys, and waits longer for it.
    #[must_use]
    pub fn patient(self) -> Self {
        Self { patience: PATIENT_ANSWER, ..self }
    }

    /// Whether `path` is a socket.
    pub fn is_socket(path: &Path) -> bool {
        use std::os::unix::fs::FileTypeExt;
        path.metadata().is_ok_and(|metadata| metadata.file_type().is_socket())
    }
}

impl Transport for SocketTransport {
    fn transmit(&mut self, command: &[u8], response: &mut Vec<u8>) -> io::Result<()> {
        // Taken out until the answer is whole: after an error a late answer must not pass for the next command's.
        let connected = match self.stream.take() {
            Some(stream) => Ok(stream),
            None => {
                self.answered = false;
                self.address.connect()
            }
        };
        let exchanged = connected.and_then(|mut stream| {
            stream.write_all(command)?;
            read_response(response, |room| retried(|| stream.read(room)))?;
            if !self.answered {
                stream.set_patience(self.patience)?;
            }
            Ok(stream)
        });
        match exchanged {
            Ok(stream) => {
                self.answered = true;
                self.stream = Some(stream);
                Ok(())
            }
            Err(error) => {
                let address = &self.address;
                let (kind, said) = match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                        let limit = if self.answered { self.patience } else { ANSWER }.as_secs();
                        let reason = match self.answered {
                            true => "it hangs",
                            false => "another program uses it, or it hangs",
                        };
                        (io::ErrorKind::TimedOut, format!("{address}: no answer within {limit} s; {reason}"))
                    }
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                        (error.kind(), format!("{address}: no software TPM is running there"))
                    }
                    kind => (kind, format!("{address}: {error}")),
                };
                Err(io::Error::new(kind, said))
            }
        }
    }
}
