//! The way from the relay to the sink, as a stretch that can be cut: a listener of its own that passes bytes on in
//! both directions, or does not. It knows nothing of what it carries.

use std::net::{SocketAddr, TcpListener as Listener};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::schedule::Way;

/// Between two cuts of [`Way::Cut`].
const CUT_EVERY: Duration = Duration::from_millis(50);

/// See the module. Dropping it closes everything.
pub struct Wire {
    address: SocketAddr,
    way: watch::Sender<Option<Way>>,
    thread: Option<JoinHandle<()>>,
}

impl Wire {
    /// Starts on a port of its own, and passes everything on to `to`.
    ///
    /// # Errors
    ///
    /// A sentence if there is no port or no thread.
    pub fn start(to: SocketAddr) -> anyhow::Result<Self> {
        let listener = Listener::bind("127.0.0.1:0").context("no port is free")?;
        listener.set_nonblocking(true).context("the port cannot be used")?;
        let address = listener.local_addr().context("the port has no address")?;
        let (way, changes) = watch::channel(Some(Way::Good));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("no runtime for the wire could be started")?;
        let thread = std::thread::Builder::new()
            .name("wire".to_owned())
            .spawn(move || runtime.block_on(serve(address, listener, to, changes)))
            .context("no thread for the wire could be started")?;
        Ok(Self { address, way, thread: Some(thread) })
    }

    /// Where the relay connects to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Makes it as it is to be now.
    pub fn set(&self, way: Way) {
        self.way.send_replace(Some(way));
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.way.send_replace(None);
        if let Some(thread) = self.thread.take() {
            // It has nothing to say, were it to panic.
            let _ = thread.join();
        }
    }
}

async fn serve(at: SocketAddr, listener: Listener, to: SocketAddr, mut way: watch::Receiver<Option<Way>>) {
    let mut listener = TcpListener::from_std(listener).ok();
    loop {
        let Some(now) = now(&mut way) else { return };
        match (now, &listener) {
            (Way::Refused, _) => listener = None,
            (_, None) => listener = TcpListener::bind(at).await.ok(),
            _ => {}
        }
        tokio::select! {
            changed = way.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(CUT_EVERY) => {}
            connection = accept(listener.as_ref()) => {
                if let Some(connection) = connection {
                    tokio::spawn(carry(connection, to, way.clone()));
                }
            }
        }
    }
}

fn now(way: &mut watch::Receiver<Option<Way>>) -> Option<Way> {
    *way.borrow_and_update()
}

async fn accept(listener: Option<&TcpListener>) -> Option<TcpStream> {
    match listener {
        None => std::future::pending().await,
        Some(listener) => listener.accept().await.ok().map(|(connection, _)| connection),
    }
}

/// Carries one connection until an end closes it or the way changes: what was on its way just then is lost, so that
/// nothing more may follow it.
async fn carry(mut near: TcpStream, to: SocketAddr, mut way: watch::Receiver<Option<Way>>) {
    let Ok(mut far) = TcpStream::connect(to).await else { return };
    match now(&mut way) {
        Some(Way::Good | Way::HalfOpen) => tokio::select! {
            _ = copy_bidirectional(&mut near, &mut far) => return,
            _ = way.changed() => {}
        },
        Some(Way::Cut) => {
            // That the time is over is what it is for.
            let _ = tokio::time::timeout(CUT_EVERY, copy_bidirectional(&mut near, &mut far)).await;
            return;
        }
        Some(Way::Silent) => {}
        Some(Way::Refused) | None => return,
    }
    // Only when both ends are dropped do they hear of it. An error means that the wire is gone.
    let _ = way.wait_for(|now| !matches!(now, Some(Way::Silent | Way::HalfOpen))).await;
}
