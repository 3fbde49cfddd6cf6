//! A hostile crowd: connections that send a byte a second and never come to the end of a line, and others that come,
//! send half a line and go. A thread of its own keeps on, whatever becomes of the relay, until it is dropped.

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
    /// Starts with so many slow connections, and so many a second that come and go; without any it does nothing.
    pub fn start(slow: usize, flood: usize, to: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&stop);
        let thread = (slow + flood > 0).then(|| {
            // With fewer files than that there are fewer connections.
            let _ = crate::send::raise_file_limit(slow + 1_000);
            std::thread::spawn(move || run(slow, flood, to, &asked))
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

fn run(slow: usize, flood: usize, to: SocketAddr, stop: &AtomicBool) {
    let mut open: Vec<TcpStream> = Vec::new();
    while !stop.load(Relaxed) {
        let began = Instant::now();
        open.retain_mut(|socket| socket.write_all(b"x").is_ok());
        while open.len() < slow && !stop.load(Relaxed) && began.elapsed() < PAUSE {
            let Ok(socket) = TcpStream::connect_timeout(&to, PAUSE) else { break };
            open.push(socket);
        }
        for _ in 0..flood {
            let socket = TcpStream::connect_timeout(&to, PAUSE);
            // It may be refused, reset or taken: none of that may matter to anybody else.
            let _ = socket.and_then(|mut socket| socket.write_all(b"half a"));
            if began.elapsed() >= PAUSE || stop.load(Relaxed) {
                break;
            }
        }
        while began.elapsed() < PAUSE && !stop.load(Relaxed) {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
