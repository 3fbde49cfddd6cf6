//! Handing the listening sockets to the process that comes next (`--takeover`), so that no connection is refused while
//! one relay is replaced by another: the sockets never close, and what waits in their queues is accepted by the new one.
//!
//! The running relay listens on an abstract Unix socket, whose name goes away with the process and is seen in its
//! network namespace alone, as its ports are. The new one asks, gets descriptors of every socket (SCM_RIGHTS, unix(7)),
//! serves them beside the old one, says so, and only then the old one stops accepting and drains. Whoever fails before
//! that leaves the other as it was. Both sides ask the kernel whether the other is of the same user (SO_PEERCRED).
//!
//! Messages are JSON, one a packet. `Message::Ask` and `Message::Refused` stay as they are in every version.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::net::{
    self, AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, sockopt,
};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::config::ListenAddress;
use crate::net::listen::Inherited;
use crate::rarely::Rarely;

/// The version of the messages.
const PROTOCOL: u32 = 1;
/// Descriptors in one message; the kernel takes 253 (SCM_MAX_FD).
const DESCRIPTORS_MAX: usize = 64;
/// The longest message: so many addresses, as JSON.
const MESSAGE_BYTES_MAX: usize = 32 * 1024;
/// How long the other side may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// How long a new process may take to start, with a spool to be looked at.
const START_MAX: Duration = Duration::from_secs(600);

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Message {
    /// The new process: I want your sockets.
    Ask { protocol: u32, version: String },
    /// The old one: I give you nothing.
    Refused { reason: String },
    /// The old one: as many descriptors as names come with this.
    Sockets { names: Vec<Name>, more: bool },
    /// The new one: I serve these.
    Serving { names: Vec<Name> },
    /// The old one: I accept nothing any more by those.
    Released,
}

/// What a socket is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Name {
    Clients(String),
    Admin(SocketAddr),
}

/// Why nothing was handed over.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The other one said no.
    #[error("the running relay does not hand over: {0}")]
    Refused(String),
    /// The other one is not ours.
    #[error(
        "the process that offers to hand over is of user {theirs}, and this one is of {ours}: \
         both must be the same"
    )]
    Stranger {
        /// The user ID of the other one.
        theirs: u32,
        /// Our own.
        ours: u32,
    },
    /// It is no relay, or it failed on the way.
    #[error("handing over failed, and the running relay goes on as it was: {0}")]
    Broken(#[from] io::Error),
}

impl From<rustix::io::Errno> for Error {
    fn from(error: rustix::io::Errno) -> Self {
        Self::Broken(error.into())
    }
}

/// What can be handed over.
#[derive(Debug)]
pub struct Sockets {
    /// Where clients connect.
    pub clients: Vec<Inherited>,
    /// The admin server's socket, where it has one.
    pub admin: Option<(SocketAddr, OwnedFd)>,
}

/// What was got from the running relay, which goes on serving until [`Link::serving`].
#[derive(Debug)]
pub struct Taken {
    /// The sockets.
    pub sockets: Sockets,
    /// The process ID of the running relay.
    pub pid: i32,
    /// The way back to it.
    pub link: Link,
}

/// Asks the relay of this name for its sockets. `None` where no relay of this name hands over.
///
/// # Errors
/// Where it refuses, is another user's, or fails.
pub fn take(name: &str) -> Result<Option<Taken>, Error> {
    let link = socket()?;
    match net::connect(&link, &address(name)?) {
        Err(rustix::io::Errno::CONNREFUSED) => return Ok(None),
        result => result?,
    }
    let pid = same_user(&link)?;
    answer_within(&link, ANSWER_MAX)?;
    say(&link, &Message::Ask { protocol: PROTOCOL, version: env!("CARGO_PKG_VERSION").to_owned() }, &[])?;
    let mut sockets = Sockets { clients: Vec::new(), admin: None };
    loop {
        match hear(&link)? {
            (Message::Sockets { names, more }, descriptors) if names.len() == descriptors.len() => {
                names.into_iter().zip(descriptors).try_for_each(|(name, fd)| sockets.add(name, fd))?;
                if !more {
                    return Ok(Some(Taken { sockets, pid, link: Link(link) }));
                }
            }
            (Message::Refused { reason }, _) => return Err(Error::Refused(reason)),
            (other, _) => return Err(unexpected(&other).into()),
        }
    }
}

/// The way back to the old relay.
#[derive(Debug)]
pub struct Link(OwnedFd);

impl Link {
    /// Says that these addresses are served here, and waits until the old relay accepts nothing by them any more.
    ///
    /// # Errors
    /// Where it did not confirm that: it has ended, or hangs.
    pub fn serving(self, addresses: &[ListenAddress], admin: Option<SocketAddr>) -> io::Result<()> {
        let clients = addresses.iter().map(|address| Name::Clients(address.to_string()));
        let names = clients.chain(admin.map(Name::Admin)).collect();
        say(&self.0, &Message::Serving { names }, &[])?;
        match hear(&self.0)? {
            (Message::Released, _) => Ok(()),
            (other, _) => Err(unexpected(&other)),
        }
    }
}

impl Sockets {
    /// The sockets of a relay that listens: those of each address, and the admin server's.
    pub fn new(
        addresses: &[ListenAddress],
        sockets: Vec<Vec<OwnedFd>>,
        admin: Option<(SocketAddr, OwnedFd)>,
    ) -> Self {
        let of_address = |(address, sockets): (&ListenAddress, _)| {
            let address = address.clone();
            Inherited { address, sockets, may_grow: true }
        };
        Self { clients: addresses.iter().zip(sockets).map(of_address).collect(), admin }
    }

    /// Puts a socket to those of its address.
    pub fn push(&mut self, address: ListenAddress, socket: OwnedFd, may_grow: bool) {
        match self.clients.iter_mut().find(|inherited| inherited.address == address) {
            Some(inherited) => inherited.sockets.push(socket),
            None => self.clients.push(Inherited { address, sockets: vec![socket], may_grow }),
        }
    }

    fn add(&mut self, name: Name, socket: OwnedFd) -> io::Result<()> {
        match name {
            Name::Admin(address) => self.admin = Some((address, socket)),
            Name::Clients(address) => self.push(address.parse().map_err(io::Error::other)?, socket, true),
        }
        Ok(())
    }

    fn named(&self) -> Vec<(Name, BorrowedFd<'_>)> {
        let of_address = |inherited: &'_ Inherited| Name::Clients(inherited.address.to_string());
        let clients = self.clients.iter().flat_map(|inherited| {
            inherited.sockets.iter().map(move |socket| (of_address(inherited), socket.as_fd()))
        });
        let admin = self.admin.as_ref().map(|(address, socket)| (Name::Admin(*address), socket.as_fd()));
        clients.chain(admin).collect()
    }
}

/// The running relay's side: it waits, on a thread of its own, for somebody to take over.
#[derive(Debug)]
pub struct Offer {
    shelf: Arc<Shelf>,
    listener: OwnedFd,
    taken: mpsc::Receiver<TakenOver>,
}

/// What is offered.
#[derive(Debug)]
struct Shelf {
    /// The sockets, as long as they are offered.
    sockets: Mutex<Option<Sockets>>,
    /// Whether somebody has got them, and may come to serve them.
    is_given: AtomicBool,
}

/// Somebody serves our sockets. He waits until this is dropped: then nothing may be accepted by them any more.
#[derive(Debug)]
pub struct TakenOver {
    clients: Vec<String>,
    /// Whether the admin server's socket is among them.
    pub admin: bool,
    _confirm: mpsc::Sender<()>,
}

impl TakenOver {
    /// Whether this address is served by the other one now.
    pub fn has(&self, address: &ListenAddress) -> bool {
        self.clients.contains(&address.to_string())
    }
}

impl Offer {
    /// Offers the sockets under a name.
    ///
    /// # Errors
    /// Where another process has the name, or the system gives no thread.
    pub fn start(name: &str, sockets: Sockets) -> Result<Self, Error> {
        let listener = socket()?;
        net::bind(&listener, &address(name)?)?;
        net::listen(&listener, 1)?;
        let shelf = Arc::new(Shelf { sockets: Mutex::new(Some(sockets)), is_given: AtomicBool::new(false) });
        let (tell, taken) = mpsc::channel(1);
        let offer = Self { shelf: Arc::clone(&shelf), listener: listener.try_clone()?, taken };
        std::thread::Builder::new().name("handover".into()).spawn(move || run(listener, &shelf, &tell))?;
        Ok(offer)
    }

    /// Whether somebody has got the sockets and may come to serve them.
    pub fn is_given(&self) -> bool {
        self.shelf.is_given.load(Ordering::Acquire)
    }

    /// Resolves when somebody has taken over.
    pub async fn taken(&mut self) -> TakenOver {
        match self.taken.recv().await {
            Some(taken) => taken,
            None => std::future::pending().await,
        }
    }
}

impl Drop for Offer {
    /// Ends the offer. The descriptors have to go, or the sockets would go on listening with nobody to accept.
    fn drop(&mut self) {
        self.shelf.sockets.lock().unwrap_or_else(PoisonError::into_inner).take();
        // Wakes the thread, which gives the name up.
        let _ = net::shutdown(&self.listener, net::Shutdown::Both);
    }
}

fn run(listener: OwnedFd, shelf: &Shelf, tell: &mpsc::Sender<TakenOver>) {
    let (mut asked, mut failed) = (Rarely::default(), Rarely::default());
    while let Ok(link) = accept(&listener) {
        match serve(&link, shelf, &mut asked) {
            Ok(names) => {
                drop(listener);
                let clients = names.iter().filter_map(|name| match name {
                    Name::Clients(address) => Some(address.clone()),
                    Name::Admin(_) => None,
                });
                let (confirm, mut confirmed) = mpsc::channel(1);
                let (clients, admin) =
                    (clients.collect(), names.iter().any(|name| matches!(name, Name::Admin(_))));
                if tell.blocking_send(TakenOver { clients, admin, _confirm: confirm }).is_ok() {
                    let _ = confirmed.blocking_recv();
                }
                let _ = say(&link, &Message::Released, &[]);
                return;
            }
            Err(error) => {
                shelf.is_given.store(false, Ordering::Release);
                if let Some(more) = failed.say(Instant::now()) {
                    warn!("nothing was handed over, and this relay goes on as it was: {error}{more}");
                }
            }
        }
    }
}

fn accept(listener: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    loop {
        match net::accept_with(listener, SocketFlags::CLOEXEC) {
            Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => (),
            result => return result,
        }
    }
}

/// Gives the sockets to whoever asks, and waits until he serves them.
fn serve(link: &OwnedFd, shelf: &Shelf, asked: &mut Rarely) -> Result<Vec<Name>, Error> {
    answer_within(link, ANSWER_MAX)?;
    let pid = match same_user(link) {
        Ok(pid) => pid,
        Err(error) => {
            say(link, &Message::Refused { reason: error.to_string() }, &[])?;
            return Err(error);
        }
    };
    match hear(link)?.0 {
        Message::Ask { protocol: PROTOCOL, version } => {
            if let Some(more) = asked.say(Instant::now()) {
                info!("process {pid} of version {version} asks to take over{more}");
            }
        }
        Message::Ask { protocol, version } => {
            let reason = format!(
                "it is of version {}, which hands over by protocol {PROTOCOL}, and version {version} asks by \
                 protocol {protocol}; stop it first, then start the new one",
                env!("CARGO_PKG_VERSION")
            );
            say(link, &Message::Refused { reason: reason.clone() }, &[])?;
            return Err(Error::Refused(reason));
        }
        other => return Err(unexpected(&other).into()),
    }
    give(link, shelf)?;
    answer_within(link, START_MAX)?;
    match hear(link)?.0 {
        Message::Serving { names } => Ok(names),
        other => Err(unexpected(&other).into()),
    }
}

fn give(link: &OwnedFd, shelf: &Shelf) -> Result<(), Error> {
    let sockets = shelf.sockets.lock().unwrap_or_else(PoisonError::into_inner);
    let named = sockets.as_ref().map(Sockets::named).unwrap_or_default();
    shelf.is_given.store(!named.is_empty(), Ordering::Release);
    let mut left = named.len();
    let mut parts = named.chunks(DESCRIPTORS_MAX);
    loop {
        let part = parts.next().unwrap_or_default();
        let (names, descriptors): (Vec<Name>, Vec<BorrowedFd<'_>>) = part.iter().cloned().unzip();
        left -= part.len();
        say(link, &Message::Sockets { names, more: left > 0 }, &descriptors)?;
        if left == 0 {
            return Ok(());
        }
    }
}

fn socket() -> rustix::io::Result<OwnedFd> {
    net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
}

fn address(name: &str) -> rustix::io::Result<SocketAddrUnix> {
    SocketAddrUnix::new_abstract_name(format!("standpipe/{name}").as_bytes())
}

/// The process ID of the other side, where it is of the same user.
fn same_user(link: &OwnedFd) -> Result<i32, Error> {
    let peer = sockopt::socket_peercred(link)?;
    let (theirs, ours) = (peer.uid.as_raw(), rustix::process::geteuid().as_raw());
    if theirs == ours { Ok(peer.pid.as_raw_pid()) } else { Err(Error::Stranger { theirs, ours }) }
}

fn answer_within(link: &OwnedFd, time: Duration) -> rustix::io::Result<()> {
    sockopt::set_socket_timeout(link, sockopt::Timeout::Recv, Some(time))?;
    sockopt::set_socket_timeout(link, sockopt::Timeout::Send, Some(ANSWER_MAX))
}

fn say(link: &OwnedFd, message: &Message, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let text = serde_json::to_vec(message)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other("too many descriptors for one message"));
    }
    net::sendmsg(link, &[IoSlice::new(&text)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn hear(link: &OwnedFd) -> io::Result<(Message, Vec<OwnedFd>)> {
    let mut text = vec![0; MESSAGE_BYTES_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let heard =
        net::recvmsg(link, &mut [IoSliceMut::new(&mut text)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let rights = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let descriptors = rights.flatten().collect();
    if heard.bytes == 0 {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the other process has ended"));
    }
    Ok((serde_json::from_slice(&text[..heard.bytes])?, descriptors))
}

fn unexpected(message: &Message) -> io::Error {
    io::Error::other(format!("an answer that no relay gives: {message:?}"))
}
