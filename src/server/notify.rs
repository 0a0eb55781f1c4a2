//! Telling systemd: one datagram to `$NOTIFY_SOCKET` (sd_notify(3)), without a library.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Sends `state`, such as `READY=1`, if a service manager asked for it.
pub(super) fn notify(state: &str) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(error) = send(socket.as_encoded_bytes(), state) {
        tracing::warn!(%error, state, "cannot tell the service manager");
    }
}

fn send(socket: &[u8], state: &str) -> io::Result<()> {
    let address = match socket.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => {
            let path = std::str::from_utf8(socket).map_err(io::Error::other)?;
            SocketAddr::from_pathname(path)?
        }
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_socket_get_the_state() {
        let name = format!("basalt-notify-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).expect("short enough");
        let receiver = UnixDatagram::bind_addr(&address).expect("a free name");
        send(format!("@{name}").as_bytes(), "READY=1").expect("sent");
        let mut buf = [0; 16];
        let len = receiver.recv(&mut buf).expect("received");
        assert_eq!(&buf[..len], b"READY=1");

        let path = std::env::temp_dir().join(&name);
        let receiver = UnixDatagram::bind(&path).expect("a free path");
        send(path.as_os_str().as_encoded_bytes(), "STOPPING=1").expect("sent");
        let len = receiver.recv(&mut buf).expect("received");
        assert_eq!(&buf[..len], b"STOPPING=1");
        std::fs::remove_file(&path).expect("ours");
    }
}
