//! The sockets that a relay starts with: those that systemd has opened, those that a running relay hands over
//! (`--takeover`), and those that it opens itself. It knows where each came from, and tells the running relay when its
//! sockets are served here.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tracing::{info, warn};

use crate::config::{Config, ListenAddress};
use crate::handover::{self, Link, Offer, Sockets};
use crate::net::listen::{Listening, listen};
use crate::supervisor;

/// How often it is tried whether the admin port of the relay before is free.
const ADMIN_RETRY: Duration = Duration::from_millis(100);

/// See the module.
#[derive(Debug)]
pub struct Inheritance {
    sockets: Sockets,
    /// The process ID of the running relay, and the way back to it.
    predecessor: Option<(i32, Link)>,
    admin_from_predecessor: Option<SocketAddr>,
    opens: Option<oneshot::Sender<()>>,
    /// Whether systemd has opened the sockets, and keeps them open when this process ends.
    pub are_kept: bool,
}

impl Inheritance {
    /// Takes what there is.
    ///
    /// # Errors
    /// Where systemd has passed what is no listening socket, or a running relay refuses to hand over.
    pub fn claim(config: &Config) -> anyhow::Result<Self> {
        let sockets = supervisor::sockets()?;
        let are_kept = !sockets.clients.is_empty();
        let opens = None;
        let mut claimed = Self { sockets, predecessor: None, admin_from_predecessor: None, opens, are_kept };
        if config.takeover && !are_kept && !config.handover.is_empty() {
            match handover::take(&name(config, config.admin))? {
                None => info!("no relay hands over under the name \"{}\"", name(config, config.admin)),
                Some(taken) => claimed.add(taken, config.admin),
            }
        }
        Ok(claimed)
    }

    fn add(&mut self, taken: handover::Taken, admin: SocketAddr) {
        self.predecessor = Some((taken.pid, taken.link));
        self.sockets.clients = taken.sockets.clients;
        if let Some((address, socket)) = taken.sockets.admin.filter(|(address, _)| *address == admin) {
            self.admin_from_predecessor = Some(address);
            self.sockets.admin = Some((address, socket));
        }
    }

    /// The listeners of the shards. Where systemd has opened sockets for clients, they are the ones.
    ///
    /// # Errors
    /// Where an address cannot be bound.
    pub fn listen(&mut self, config: &Config, shards: usize) -> io::Result<Listening> {
        let inherited = std::mem::take(&mut self.sockets.clients);
        let theirs: Vec<ListenAddress>;
        let addresses = match self.are_kept {
            false => &config.listen,
            true => {
                theirs = inherited.iter().map(|inherited| inherited.address.clone()).collect();
                &theirs
            }
        };
        // Who listens and does not hand over is shared with; beside one who does, an address must be free.
        let shares = config.takeover && self.predecessor.is_none();
        listen(addresses, shards, shares, config.tcp_keepalive, inherited)
    }

    /// The admin server's socket.
    ///
    /// # Errors
    /// Where the address is taken, unless the relay that has it is to be taken over.
    pub async fn admin(&mut self, config: &Config) -> anyhow::Result<Door> {
        if let Some((_, socket)) = self.sockets.admin.take() {
            let listener = std::net::TcpListener::from(socket);
            listener.set_nonblocking(true)?;
            let (opens, is_open) = oneshot::channel();
            if self.admin_from_predecessor.is_some() {
                self.opens = Some(opens);
            }
            return Ok(Door::Inherited(TcpListener::from_std(listener)?, is_open));
        }
        match TcpListener::bind(config.admin).await {
            Ok(listener) => Ok(Door::Bound(listener)),
            Err(error) if config.takeover && error.kind() == io::ErrorKind::AddrInUse => {
                info!("another process has the admin port {} and is waited for", config.admin);
                Ok(Door::Taken(config.admin))
            }
            Err(error) => Err(error).with_context(|| {
                let address = config.admin;
                format!(
                    "cannot serve the admin endpoints on {address}; set --admin to an address that is free"
                )
            }),
        }
    }

    /// Clients are served here now: the relay before may drain. Waits until it accepts nothing any more.
    pub fn served(&mut self, addresses: &[ListenAddress]) {
        if let Some((pid, link)) = self.predecessor.take() {
            match link.serving(addresses, self.admin_from_predecessor) {
                Ok(()) => info!("process {pid} has handed over, and drains"),
                Err(error) => warn!(
                    "process {pid} has not confirmed that it accepts no more ({error}); if it still runs, stop it"
                ),
            }
        }
        self.opens.take();
    }
}

/// The admin server's way in.
#[derive(Debug)]
pub enum Door {
    /// Its own socket.
    Bound(TcpListener),
    /// One that another process has opened. It is served once the other end of the channel is gone.
    Inherited(TcpListener, oneshot::Receiver<()>),
    /// Another process has the port still.
    Taken(SocketAddr),
}

impl Door {
    /// The address, with the port that was given for port 0.
    ///
    /// # Errors
    /// The system's.
    pub fn address(&self) -> io::Result<SocketAddr> {
        match self {
            Door::Bound(listener) | Door::Inherited(listener, _) => listener.local_addr(),
            Door::Taken(address) => Ok(*address),
        }
    }

    /// A further descriptor of the socket, where there is one.
    ///
    /// # Errors
    /// Where the system gives none.
    pub fn copy(&self) -> io::Result<Option<(SocketAddr, OwnedFd)>> {
        let (Door::Bound(listener) | Door::Inherited(listener, _)) = self else { return Ok(None) };
        Ok(Some((listener.local_addr()?, listener.as_fd().try_clone_to_owned()?)))
    }

    /// Serves the admin endpoints for ever.
    pub async fn serve(self, router: Router) -> io::Result<()> {
        let listener = match self {
            Door::Bound(listener) => listener,
            Door::Inherited(listener, is_open) => {
                let _ = is_open.await;
                listener
            }
            Door::Taken(address) => loop {
                match TcpListener::bind(address).await {
                    Ok(listener) => break listener,
                    Err(_) => tokio::time::sleep(ADMIN_RETRY).await,
                }
            },
        };
        // `/tail` wants to know who asks.
        axum::serve(listener, router.into_make_service_with_connect_info::<SocketAddr>()).await
    }
}

/// Offers the sockets to the relay that comes next. A relay whom nobody can take over is better than none.
pub fn offer(config: &Config, admin: SocketAddr, sockets: Sockets) -> Option<Offer> {
    if config.handover.is_empty() {
        return None;
    }
    let name = name(config, admin);
    match Offer::start(&name, sockets) {
        Ok(offer) => Some(offer),
        Err(error) => {
            warn!("nobody can take over from this relay: the name \"{name}\" cannot be had ({error})");
            None
        }
    }
}

/// The name under which relays find each other.
fn name(config: &Config, admin: SocketAddr) -> String {
    match config.handover.as_str() {
        "auto" => admin.to_string(),
        name => name.to_owned(),
    }
}
