//! Connecting to a Unix socket without waiting for ever, and who listens there.

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Connects to the socket at `path`. Neither connecting nor a later read or write waits longer than `patience`.
///
/// # Errors
/// `WouldBlock` where nobody has taken up connections for as long; else what connect(2) says.
pub fn connect(path: &Path, patience: Duration) -> io::Result<UnixStream> {
    let socket: OwnedFd =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // The limit on sending is also the limit on connecting, which waits while the queue is full.
    for way in [sockopt::Timeout::Send, sockopt::Timeout::Recv] {
        sockopt::set_socket_timeout(&socket, way, Some(patience))?;
    }
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}

/// The process that listens at the other end.
///
/// # Errors
/// What getsockopt(2) says.
pub fn listener(stream: &UnixStream) -> io::Result<i32> {
    Ok(sockopt::socket_peercred(stream)?.pid.as_raw_nonzero().get())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connecting_to_one_that_takes_no_connections_ends() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let at_once = Duration::from_millis(50);
        assert_eq!(connect(&path, at_once).unwrap_err().kind(), io::ErrorKind::NotFound);
        let listening =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        rustix::net::bind(&listening, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        rustix::net::listen(&listening, 1).unwrap();
        let mut queued = Vec::new();
        let refused = loop {
            match connect(&path, at_once) {
                Ok(stream) => queued.push(stream),
                Err(error) => break error,
            }
            assert!(queued.len() < 100, "the queue has an end");
        };
        assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
        assert_eq!(listener(&queued[0]).unwrap(), std::process::id().cast_signed());
        drop(listening);
        assert_eq!(connect(&path, at_once).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }
}
