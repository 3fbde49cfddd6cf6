//! The listening sockets: opened here, or inherited from the process before or from a supervisor, and dealt out to
//! the shards. Nothing is accepted here.
//!
//! Every shard has a TCP socket of its own where it can be, since the kernel then spreads connections over them
//! (SO_REUSEPORT). A socket that was inherited is served, whatever the number of shards: closing it would reset the
//! connections in its queue.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use crate::config::ListenAddress;

/// Connections that may wait to be accepted, a listener. The kernel bounds it by net.core.somaxconn.
const BACKLOG: i32 = 4096;
/// How long an address may be in use still: a relay that was killed keeps it until the kernel has taken its rings
/// apart, which it does a moment after the process is gone.
const IN_USE_MAX: Duration = Duration::from_secs(1);
/// A peer that gives no answer is asked so often, over as long as it was silent before.
const KEEPALIVE_PROBES: u32 = 4;

/// A listening socket of a shard.
#[derive(Debug)]
pub struct Listener {
    /// The socket, which does not block.
    pub socket: OwnedFd,
    /// The index of its address among those that are listened on.
    pub address: usize,
}

/// Listening sockets of one address that another process has opened.
#[derive(Debug)]
pub struct Inherited {
    /// The address, as it is.
    pub address: ListenAddress,
    /// Its sockets; at least one.
    pub sockets: Vec<OwnedFd>,
    /// Whether more may be opened beside them, one a shard. Where the others stay open when this process ends, what
    /// waits in the queue of a further one would be reset then.
    pub may_grow: bool,
}

/// What is listened on.
#[derive(Debug)]
pub struct Listening {
    /// The listeners of each shard.
    pub by_shard: Vec<Vec<Listener>>,
    /// The addresses as they are, with the port that was given for port 0.
    pub addresses: Vec<ListenAddress>,
    /// A further descriptor of every socket, by address: for the process that comes next. As long as one is open, its
    /// socket goes on listening.
    pub copies: Vec<Vec<OwnedFd>>,
}

/// Opens what is to be listened on, or takes it from `inherited`, for so many shards.
///
/// A TCP address is first bound alone, so that a second relay by accident fails instead of silently taking half
/// of the connections; `takeover` leaves that out. A connection that is silent for `keepalive` is asked whether its
/// peer still lives, and given up after as long again; zero leaves that to the system.
///
/// # Errors
/// Where an address cannot be bound, with a sentence that names it.
pub fn listen(
    addresses: &[ListenAddress],
    shards: usize,
    takeover: bool,
    keepalive: Duration,
    mut inherited: Vec<Inherited>,
) -> io::Result<Listening> {
    let by_shard = (0..shards).map(|_| Vec::new()).collect();
    let mut listening = Listening { by_shard, addresses: Vec::new(), copies: Vec::new() };
    for address in addresses {
        let place = inherited.iter().position(|inherited| inherited.address == *address);
        let opened = match (place.map(|place| inherited.swap_remove(place)), address) {
            (Some(Inherited { address, sockets, may_grow: true }), ListenAddress::Tcp(tcp)) => {
                Ok((for_each_shard(sockets, *tcp, shards), address))
            }
            (Some(Inherited { address, sockets, .. }), _) => Ok((sockets, address)),
            (None, ListenAddress::Tcp(tcp)) => patiently(|| listen_tcp(*tcp, shards, takeover))
                .map(|(sockets, real)| (sockets, ListenAddress::Tcp(real))),
            (None, ListenAddress::Unix(path)) => {
                patiently(|| listen_unix(path)).map(|socket| (vec![socket], address.clone()))
            }
        };
        let (sockets, address) = opened.map_err(|error| explain(address, &error))?;
        listening.deal(address, sockets, keepalive)?;
    }
    Ok(listening)
}

fn explain(address: &ListenAddress, error: &io::Error) -> io::Error {
    let hint = match error.kind() {
        io::ErrorKind::AddrInUse => {
            "; another process listens there: choose another address, or take over from a relay on purpose with --takeover"
        }
        io::ErrorKind::PermissionDenied => {
            "; this user may not: choose a port from 1024 on, or let it (CAP_NET_BIND_SERVICE)"
        }
        _ => "",
    };
    io::Error::new(error.kind(), format!("cannot listen on {address}: {error}{hint}"))
}

impl Listening {
    /// Gives every shard a socket of the address at least, and every socket a shard.
    fn deal(&mut self, address: ListenAddress, sockets: Vec<OwnedFd>, keepalive: Duration) -> io::Result<()> {
        let index = self.addresses.len();
        let shards = self.by_shard.len();
        for turn in 0..sockets.len().max(shards) {
            let socket = sockets[turn % sockets.len()].try_clone()?;
            rustix::io::ioctl_fionbio(&socket, true)?;
            if matches!(address, ListenAddress::Tcp(_)) {
                keep_alive(&SockRef::from(&socket), keepalive)?;
            }
            self.by_shard[turn % shards].push(Listener { socket, address: index });
        }
        self.addresses.push(address);
        self.copies.push(sockets);
        Ok(())
    }
}

/// What a connection has from the listener that it came by (tcp(7)).
fn keep_alive(socket: &SockRef<'_>, silent: Duration) -> io::Result<()> {
    if silent.is_zero() {
        return Ok(());
    }
    let asking = Duration::from_secs(silent.as_secs().div_ceil(u64::from(KEEPALIVE_PROBES)).max(1));
    let keepalive = TcpKeepalive::new()
        .with_time(silent.max(Duration::from_secs(1)))
        .with_interval(asking)
        .with_retries(KEEPALIVE_PROBES);
    socket.set_tcp_keepalive(&keepalive)?;
    // The same bound for answers that nobody acknowledges; without it they are sent again for a quarter of an hour.
    socket.set_tcp_user_timeout(Some(silent * 2))
}

/// Tries again for a moment where an address is in use.
fn patiently<T>(mut listen: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let deadline = Instant::now() + IN_USE_MAX;
    loop {
        match listen() {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                std::thread::sleep(IN_USE_MAX / 20);
            }
            result => return result,
        }
    }
}

fn listen_tcp(address: SocketAddr, shards: usize, takeover: bool) -> io::Result<(Vec<OwnedFd>, SocketAddr)> {
    let mut address = address;
    if !takeover {
        let alone = open_tcp(address, false)?;
        address = alone.local_addr()?.as_socket().unwrap_or(address);
    }
    let mut sockets = Vec::with_capacity(shards);
    for _ in 0..shards {
        let socket = open_tcp(address, true)?;
        address = socket.local_addr()?.as_socket().unwrap_or(address);
        sockets.push(socket.into());
    }
    Ok((sockets, address))
}

/// Adds sockets until every shard has one; where that is refused, shards share.
fn for_each_shard(mut sockets: Vec<OwnedFd>, address: SocketAddr, shards: usize) -> Vec<OwnedFd> {
    while sockets.len() < shards
        && let Ok(socket) = open_tcp(address, true)
    {
        sockets.push(socket.into());
    }
    sockets
}

fn open_tcp(address: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// A Unix socket. A socket file that nobody listens on any more is replaced; one that somebody does is not.
fn listen_unix(path: &Path) -> io::Result<OwnedFd> {
    use std::os::unix::fs::FileTypeExt;
    use std::os::unix::net::{UnixListener, UnixStream};
    if let Ok(existing) = std::fs::symlink_metadata(path)
        && existing.file_type().is_socket()
    {
        if UnixStream::connect(path).is_ok() {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        std::fs::remove_file(path)?;
    }
    Ok(UnixListener::bind(path)?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn anywhere() -> ListenAddress {
        ListenAddress::Tcp(([127, 0, 0, 1], 0).into())
    }

    #[test]
    fn connections_have_what_their_listener_has() {
        let listening =
            listen(&[anywhere()], 1, false, Duration::from_secs(60), Vec::new()).expect("a free port");
        let ListenAddress::Tcp(address) = listening.addresses[0] else { panic!("it is a TCP address") };
        let _client = std::net::TcpStream::connect(address).expect("it listens");
        let listener = &listening.by_shard[0][0].socket;
        let accepted = loop {
            match rustix::net::accept(listener) {
                Err(rustix::io::Errno::AGAIN) => std::thread::yield_now(),
                accepted => break accepted.expect("a connection waits"),
            }
        };
        let accepted = SockRef::from(&accepted);
        assert!(accepted.keepalive().expect("a socket"));
        assert_eq!(accepted.tcp_keepalive_time().expect("a socket"), Duration::from_secs(60));
        assert_eq!(accepted.tcp_keepalive_interval().expect("a socket"), Duration::from_secs(15));
        assert_eq!(accepted.tcp_keepalive_retries().expect("a socket"), 4);
        assert_eq!(accepted.tcp_user_timeout().expect("a socket"), Some(Duration::from_secs(120)));
    }

    #[test]
    fn every_shard_gets_a_socket_and_every_inherited_socket_a_shard() {
        let first = listen(&[anywhere()], 3, false, Duration::ZERO, Vec::new()).expect("a free port");
        let count =
            |listening: &Listening| -> Vec<usize> { listening.by_shard.iter().map(Vec::len).collect() };
        assert_eq!((count(&first), first.copies[0].len()), (vec![1, 1, 1], 3));
        let Listening { addresses, mut copies, .. } = first;
        let inherit = |sockets| vec![Inherited { address: addresses[0].clone(), sockets, may_grow: true }];
        let fewer =
            listen(&addresses, 2, false, Duration::ZERO, inherit(copies.remove(0))).expect("they are there");
        assert_eq!((count(&fewer), fewer.copies[0].len()), (vec![2, 1], 3));
        let Listening { mut copies, .. } = fewer;
        let more =
            listen(&addresses, 5, false, Duration::ZERO, inherit(copies.remove(0))).expect("they are there");
        assert_eq!((count(&more), more.copies[0].len()), (vec![1; 5], 5));
    }
}
