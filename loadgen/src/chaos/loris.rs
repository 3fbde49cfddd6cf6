//! Connections that send a byte a second and never come to the end of a line. A thread of its own keeps as many as
//! it can open, whatever becomes of the relay, until it is dropped.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Between two bytes of one connection.
const PAUSE: Duration = Duration::from_secs(1);

/// See the module.
pub struct Loris {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Loris {
    /// Starts with so many connections; with none it does nothing.
    pub fn start(connections: usize, to: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&stop);
        let thread = (connections > 0).then(|| {
            // With fewer files than that there are fewer connections.
            let _ = crate::send::raise_file_limit(connections + 1_000);
            std::thread::spawn(move || run(connections, to, &asked))
        });
        Self { stop, thread }
    }
}

impl Drop for Loris {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            // It has nothing to say, were it to panic.
            let _ = thread.join();
        }
    }
}

fn run(connections: usize, to: SocketAddr, stop: &AtomicBool) {
    let mut open: Vec<TcpStream> = Vec::new();
    while !stop.load(Relaxed) {
        let began = Instant::now();
        open.retain_mut(|socket| socket.write_all(b"x").is_ok());
        while open.len() < connections && !stop.load(Relaxed) && began.elapsed() < PAUSE {
            let Ok(socket) = TcpStream::connect_timeout(&to, PAUSE) else { break };
            open.push(socket);
        }
        while began.elapsed() < PAUSE && !stop.load(Relaxed) {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
