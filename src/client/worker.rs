//! The thread of a client: connects, writes what is held, hears answers, and begins anew when a connection is lost.
//! What is held and what an answer means is known to `held`.

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::address::{Address, Socket};
use super::{Shared, broken};
use crate::delivery::retry::Backoff;
use crate::frame::CONTROL_BYTES_MAX;

/// Bytes that are written at once.
const WRITE_BYTES: usize = 64 * 1024;

/// Keeps a connection until the client is stopped.
pub(super) fn run(address: &Address, shared: &Shared) {
    let backoff = Backoff { base: shared.options.retry_base, max: shared.options.retry_max };
    let mut failures = 0;
    while !shared.held().is_stopped {
        let failed = match address.connect(shared.options.connect_timeout) {
            Ok(socket) => {
                let mut link = Link::new(socket, shared);
                let failed = link.serve();
                // Only a relay that has answered ends a row of failures.
                failures = if link.is_greeted { 0 } else { failures };
                failed
            }
            Err(error) => Err(error),
        };
        let Err(error) = failed else { return };
        failures += 1;
        let mut held = shared.held();
        held.report.last_error = Some(format!("the connection to the relay failed: {error}"));
        held.rewind();
        drop(held);
        rest(shared, backoff.delay(failures, fastrand::f64()));
    }
}

/// Waits, unless the client is stopped.
fn rest(shared: &Shared, wait: Duration) {
    let until = Instant::now() + wait;
    while !shared.held().is_stopped && Instant::now() < until {
        let left = until.saturating_duration_since(Instant::now());
        wait_for(&mut [PollFd::new(&shared.bell, PollFlags::IN)], Some(left));
        shared.bell.hear();
    }
}

fn wait_for(descriptors: &mut [PollFd<'_>], timeout: Option<Duration>) {
    let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
    // Interrupted or not: whoever waits looks again.
    let _ = poll(descriptors, timeout.as_ref());
}

/// One connection.
struct Link<'a> {
    shared: &'a Shared,
    socket: Socket,
    greeting_left: &'static [u8],
    is_greeted: bool,
    /// Half an answer.
    answer: Vec<u8>,
    scratch: Vec<u8>,
}

impl<'a> Link<'a> {
    fn new(socket: Socket, shared: &'a Shared) -> Self {
        let greeting_left = b"!hello\n";
        Self { shared, socket, greeting_left, is_greeted: false, answer: Vec::new(), scratch: Vec::new() }
    }

    /// Serves the connection until the client is stopped; an error where the connection is lost.
    fn serve(&mut self) -> io::Result<()> {
        self.shared.held().report.connections += 1;
        loop {
            let mut held = self.shared.held();
            if held.is_stopped {
                return Ok(());
            }
            let due = held.close_if_due(Instant::now(), self.shared.options.sync_interval);
            let has_unwritten = held.has_unwritten() || !self.greeting_left.is_empty();
            drop(held);
            let mut wanted = PollFlags::IN;
            wanted.set(PollFlags::OUT, has_unwritten);
            let mut descriptors =
                [PollFd::new(&self.socket, wanted), PollFd::new(&self.shared.bell, PollFlags::IN)];
            wait_for(&mut descriptors, due);
            let (ready, is_rung) = (descriptors[0].revents(), !descriptors[1].revents().is_empty());
            if is_rung {
                self.shared.bell.hear();
            }
            if ready.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
                self.read()?;
            }
            if ready.contains(PollFlags::OUT)
                && let Err(error) = self.write()
            {
                // What was answered before the connection broke need not be sent again.
                while self.read().is_ok_and(|length| length > 0) {}
                return Err(error);
            }
        }
    }

    fn write(&mut self) -> io::Result<()> {
        if !self.greeting_left.is_empty() {
            let length = tried(self.socket.write(self.greeting_left))?;
            self.greeting_left = &self.greeting_left[length..];
            return Ok(());
        }
        self.scratch.clear();
        self.shared.held().copy_unwritten(&mut self.scratch, WRITE_BYTES);
        let length = tried(self.socket.write(&self.scratch))?;
        self.shared.held().wrote(length);
        Ok(())
    }

    /// Hears what there is: how many bytes that was.
    fn read(&mut self) -> io::Result<usize> {
        let mut bytes = [0; 4096];
        let length = match self.socket.read(&mut bytes) {
            Ok(0) => return Err(broken("the relay has closed it")),
            result => tried(result)?,
        };
        for octet in &bytes[..length] {
            if *octet == b'\n' {
                let line = std::mem::take(&mut self.answer);
                self.hear(&String::from_utf8_lossy(&line))?;
            } else if self.answer.len() < CONTROL_BYTES_MAX {
                self.answer.push(*octet);
            } else {
                return Err(broken("it answers as no relay does"));
            }
        }
        Ok(length)
    }

    fn hear(&mut self, line: &str) -> io::Result<()> {
        let mut words = line.split(' ');
        let (verb, id) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let lost = match verb {
            "!hello" if id == "sync_at=none" => return Err(broken("that relay knows no sync")),
            "!hello" => {
                self.is_greeted = true;
                return Ok(());
            }
            "!synced" => Some(0),
            "!lost" => words.next().and_then(|count| count.parse().ok()),
            _ => None,
        };
        let is_expected = match (id.parse(), lost) {
            (Ok(id), Some(lost)) => self.shared.held().answer(id, lost),
            _ => false,
        };
        if !is_expected {
            return Err(broken(format!("the answer {line:?} was not expected")));
        }
        self.shared.answered.notify_all();
        Ok(())
    }
}

/// What would have blocked did nothing.
fn tried(result: io::Result<usize>) -> io::Result<usize> {
    match result {
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(0),
        result => result,
    }
}
