//! What systemd is told, and asks for: `NOTIFY_SOCKET` and `WATCHDOG_USEC`.
//!
//! A datagram of lines `NAME=VALUE` to a Unix socket, by path or, where the first byte is `@`, by abstract name.
//!
//! Source: sd_notify(3), systemd.service(5).

use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::OnceLock;

/// Tells it, where there is one that wants to know. Never waits: a service manager that does not listen is not worth it.
pub fn tell(state: &str) {
    static SOCKET: OnceLock<Option<(UnixDatagram, SocketAddr)>> = OnceLock::new();
    if let Some((socket, address)) = SOCKET.get_or_init(open) {
        let _ = socket.send_to_addr(state.as_bytes(), address);
    }
}

fn open() -> Option<(UnixDatagram, SocketAddr)> {
    let name = std::env::var_os("NOTIFY_SOCKET")?;
    let address = match name.as_bytes().split_first()? {
        (b'@', name) => SocketAddr::from_abstract_name(name),
        _ => SocketAddr::from_pathname(&name),
    };
    let socket = UnixDatagram::unbound().ok()?;
    socket.set_nonblocking(true).ok()?;
    Some((socket, address.ok()?))
}
