//! What systemd is told and what it gives: that the relay is ready, that it stops, that it lives (sd_notify(3)), and
//! listening sockets that were opened before it (sd_listen_fds(3)). Without systemd nothing here does anything.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sd_notify::NotifyState;
use socket2::SockRef;
use tokio::sync::{mpsc, oneshot};
use tracing::{error, warn};

use crate::config::ListenAddress;
use crate::delivery::Command;
use crate::handover::Sockets;
use crate::rarely::Rarely;
use crate::shard::Shared;

/// The name of the admin server's socket (`FileDescriptorName=`); sockets of other names are for clients.
const ADMIN: &str = "admin";
/// What ending may take beside the delays and deadlines that are configured.
const ENDING_MAX: Duration = Duration::from_secs(10);

/// The sockets that systemd has opened for this process. Once they were asked for they are owned; ask once.
///
/// # Errors
/// Where a descriptor is no listening stream socket of a kind that the relay serves, with a sentence.
pub fn sockets() -> io::Result<Sockets> {
    let mut sockets = Sockets { clients: Vec::new(), admin: None };
    for (descriptor, name) in sd_notify::listen_fds_with_names()? {
        // SAFETY: systemd has left this descriptor open for this very process (LISTEN_PID), and nobody else in it
        // takes what it was given.
        #[allow(unsafe_code, reason = "taking a descriptor that the supervisor has opened")]
        let socket = unsafe { OwnedFd::from_raw_fd(descriptor) };
        let about = |error: io::Error| {
            io::Error::new(
                error.kind(),
                format!(
                    "descriptor {descriptor} (\"{name}\"), passed by systemd, is no listening socket: {error}"
                ),
            )
        };
        rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC)
            .map_err(|error| about(error.into()))?;
        let address = address_of(&socket).map_err(about)?;
        match address {
            ListenAddress::Tcp(address) if name == ADMIN => sockets.admin = Some((address, socket)),
            address => sockets.push(address, socket, false),
        }
    }
    Ok(sockets)
}

fn address_of(socket: &OwnedFd) -> io::Result<ListenAddress> {
    let socket = SockRef::from(socket);
    if !socket.is_listener()? || socket.r#type()? != socket2::Type::STREAM {
        return Err(io::Error::other("it is a socket that accepts no streams"));
    }
    let address = socket.local_addr()?;
    match (address.as_socket(), address.as_pathname()) {
        (Some(address), _) => Ok(ListenAddress::Tcp(address)),
        (None, Some(path)) => Ok(ListenAddress::Unix(path.to_owned())),
        (None, None) => Err(io::Error::other("it has neither a port nor a path")),
    }
}

/// Connections are accepted. This process is the main one now, where it took over from another of the same unit.
pub fn ready() {
    notify(&[NotifyState::MainPid(std::process::id()), NotifyState::Ready], &mut Rarely::default());
}

/// The configuration is read again. [`ready`] says that this is over.
pub fn reloading() {
    let mut states = vec![NotifyState::Reloading];
    // Type=notify-reload wants to know when; a clock that cannot be read is none of this process's worries.
    states.extend(NotifyState::monotonic_usec_now());
    notify(&states, &mut Rarely::default());
}

/// The end has begun, and may take so long, and a little more.
pub fn stopping(at_most: Duration) {
    let microseconds = u32::try_from((at_most + ENDING_MAX).as_micros()).unwrap_or(u32::MAX);
    notify(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(microseconds)], &mut Rarely::default());
}

fn notify(states: &[NotifyState<'_>], cause: &mut Rarely) {
    if let Err(error) = sd_notify::notify(states)
        && let Some(more) = cause.say(Instant::now())
    {
        warn!("systemd cannot be told how the relay does: {error}{more}");
    }
}

/// Says that the relay lives, as often as systemd wants it (`WatchdogSec=`), as long as every shard and delivery
/// answer. Where one of them hangs nothing is said any more, and systemd ends the process.
pub async fn watch(shared: Arc<Shared>, delivery: mpsc::Sender<Command>) {
    let Some(most) = sd_notify::watchdog_enabled().filter(|most| !most.is_zero()) else { return };
    let mut interval = tokio::time::interval(most / 3);
    let (mut untold, mut hanging) = (Rarely::default(), Rarely::default());
    loop {
        interval.tick().await;
        if tokio::time::timeout(most / 3, lives(&shared, &delivery)).await.is_ok() {
            notify(&[NotifyState::Watchdog], &mut untold);
        } else if let Some(more) = hanging.say(Instant::now()) {
            error!("a shard or delivery has not answered for {:?}{more}", most / 3);
        }
    }
}

async fn lives(shared: &Shared, delivery: &mpsc::Sender<Command>) {
    shared.orders.call_the_roll(&shared.returns).await;
    let (answer, answered) = oneshot::channel();
    if delivery.send(Command::Look(answer)).await.is_ok() {
        let _ = answered.await;
    }
}
