//! Where the relay is: an address as the user wrote it, resolved anew for each connection, so that a fleet behind a
//! name is followed when it changes and its connections spread.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use thiserror::Error;

/// A peer that is gone without a word is noticed after this time without traffic, and a few probes.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// Why there can be no client.
#[derive(Debug, Error)]
pub enum AddressError {
    /// The address is not of a known form.
    #[error("{0:?} is not a relay's address; write HOST:PORT or unix:PATH")]
    Malformed(String),
    /// The system gave no thread or no event descriptor.
    #[error("the system refuses what a client needs: {0}")]
    System(io::Error),
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Address {
    /// `HOST:PORT`.
    Tcp(String),
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let malformed = || AddressError::Malformed(text.to_owned());
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() { Err(malformed()) } else { Ok(Self::Unix(path.into())) };
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(malformed)?;
        let is_good = !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0);
        if is_good { Ok(Self::Tcp(text.to_owned())) } else { Err(malformed()) }
    }
}

impl Address {
    /// A connection that does not block. The addresses of a name are tried in random order.
    pub(super) fn connect(&self, timeout: Duration) -> io::Result<Socket> {
        match self {
            Address::Unix(path) => {
                let socket = UnixStream::connect(path)?;
                socket.set_nonblocking(true)?;
                Ok(Socket::Unix(socket))
            }
            Address::Tcp(name) => {
                let mut addresses: Vec<_> = name.to_socket_addrs()?.collect();
                fastrand::shuffle(&mut addresses);
                let mut failed = io::Error::other("the name has no address");
                for address in addresses {
                    match TcpStream::connect_timeout(&address, timeout) {
                        Ok(socket) => return prepare(socket),
                        Err(error) => failed = error,
                    }
                }
                Err(failed)
            }
        }
    }
}

fn prepare(socket: TcpStream) -> io::Result<Socket> {
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 3).with_retries(3);
    SockRef::from(&socket).set_tcp_keepalive(&keepalive)?;
    socket.set_nodelay(true)?;
    socket.set_nonblocking(true)?;
    Ok(Socket::Tcp(socket))
}

/// One connection to a relay.
#[derive(Debug)]
pub(super) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Read for Socket {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(socket) => socket.read(bytes),
            Socket::Unix(socket) => socket.read(bytes),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(socket) => socket.write(bytes),
            Socket::Unix(socket) => socket.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Socket::Tcp(socket) => socket.as_fd(),
            Socket::Unix(socket) => socket.as_fd(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_a_host_with_a_port_or_a_path() {
        for good in ["127.0.0.1:15555", "relay.example:1", "[::1]:15555", "unix:/run/standpipe.sock"] {
            assert!(good.parse::<Address>().is_ok(), "{good}");
        }
        for bad in ["", "relay", ":1", "relay:", "relay:0", "relay:65536", "relay:x", "unix:"] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
    }
}
