//! One sending connection: what it has built, what the kernel has taken, and the bytes in between. It decides
//! nothing about when; the driver does.
//!
//! Invariant: `rest` holds whole lines, so that what is given up can still be read and taken out of the tally.

use memchr::{memchr, memchr_iter, memrchr};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{SendFlags, Shutdown, send, shutdown};

use super::Plan;
use crate::event::{self, Event};
use crate::schedule::Schedule;

/// A connection's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Sends.
    Open,
    /// Writes the end of the line it has begun, and no more.
    Ending,
    /// Has shut down its writing side and waits for the peer.
    HalfClosed,
    /// Over, well or badly.
    Closed,
}

/// What a turn of writing led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// There is more to write now.
    More,
    /// All that is due was written.
    Idle,
    /// The kernel takes no more; epoll will tell.
    Blocked,
    /// The peer is gone.
    Failed(Errno),
}

/// Counts shared by the connections of a thread.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) check_sums: Vec<u64>,
    pub(super) payload_bytes: u64,
    pub(super) line_bytes: u64,
    pub(super) writes: u64,
    pub(super) behind_ns_max: u64,
}

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) socket: OwnedFd,
    pub(super) number: u32,
    pub(super) phase: Phase,
    /// Events built so far.
    pub(super) built: u64,
    /// Events that the kernel has taken to their last byte.
    pub(super) sent: u64,
    /// Whole lines of which the kernel has taken the bytes before `rest_at`.
    rest: Vec<u8>,
    rest_at: usize,
    pub(super) blocked: bool,
    pub(super) queued: bool,
    /// Whether its failure was noted.
    pub(super) failed: bool,
    /// Whether the peer has shut down its writing side.
    pub(super) peer_closed: bool,
}

impl Connection {
    pub(super) fn new(number: u32, socket: OwnedFd) -> Self {
        Self {
            socket,
            number,
            phase: Phase::Open,
            built: 0,
            sent: 0,
            rest: Vec::new(),
            rest_at: 0,
            blocked: false,
            queued: false,
            failed: false,
            peer_closed: false,
        }
    }

    /// Writes what is left over, or else one write's worth of what is due: events up to number `due`.
    pub(super) fn write(
        &mut self,
        plan: &Plan,
        schedule: &Schedule,
        now_ns: u64,
        due: u64,
        scratch: &mut Vec<u8>,
        tally: &mut Tally,
    ) -> Turn {
        if !self.rest.is_empty() {
            return self.write_rest(due, tally);
        }
        scratch.clear();
        self.build(plan, schedule, now_ns, due, scratch, tally);
        if scratch.is_empty() {
            return Turn::Idle;
        }
        match put(&self.socket, scratch) {
            Ok(taken) if taken == scratch.len() => {
                tally.writes += 1;
                self.sent = self.built;
                self.more_or_idle(due)
            }
            Ok(taken) => {
                tally.writes += u64::from(taken > 0);
                self.keep(scratch, taken);
                Turn::Blocked
            }
            Err(error) => Turn::Failed(error),
        }
    }

    fn more_or_idle(&self, due: u64) -> Turn {
        if self.built < due { Turn::More } else { Turn::Idle }
    }

    fn build(
        &mut self,
        plan: &Plan,
        schedule: &Schedule,
        now_ns: u64,
        due: u64,
        out: &mut Vec<u8>,
        tally: &mut Tally,
    ) {
        if !schedule.flat_out() && self.built < due {
            let oldest = schedule.planned_ns(schedule.event(self.number, self.built));
            tally.behind_ns_max = tally.behind_ns_max.max(now_ns.saturating_sub(oldest));
        }
        let write = plan.load.write as usize;
        while self.built < due {
            let (stream, sequence) = plan.assignment.place(plan.streams.len(), self.number, self.built);
            let target = &plan.streams[stream];
            let line = target.name.len() + 1 + plan.builder.size(self.number, self.built) + 1;
            if !out.is_empty() && out.len() + line > write {
                break;
            }
            let planned_ns = match schedule.flat_out() {
                true => now_ns,
                false => schedule.planned_ns(schedule.event(self.number, self.built)),
            };
            out.extend_from_slice(target.name.as_bytes());
            out.push(b' ');
            let event = Event { connection: self.number, sequence, planned_ns, check: 0 };
            let check = plan.builder.append(out, target.seed, self.built, &event);
            out.push(b'\n');
            self.built += 1;
            tally.check_sums[stream] = tally.check_sums[stream].wrapping_add(u64::from(check));
            tally.line_bytes += line as u64;
            tally.payload_bytes += (line - target.name.len() - 1) as u64;
        }
    }

    /// Keeps what the kernel did not take of `lines`.
    fn keep(&mut self, lines: &[u8], taken: usize) {
        self.sent += memchr_iter(b'\n', &lines[..taken]).count() as u64;
        let begun_at = memrchr(b'\n', &lines[..taken]).map_or(0, |end| end + 1);
        self.rest.extend_from_slice(&lines[begun_at..]);
        self.rest_at = taken - begun_at;
    }

    fn write_rest(&mut self, due: u64, tally: &mut Tally) -> Turn {
        let left = &self.rest[self.rest_at..];
        match put(&self.socket, left) {
            Ok(0) => Turn::Blocked,
            Ok(taken) => {
                tally.writes += 1;
                self.sent += memchr_iter(b'\n', &left[..taken]).count() as u64;
                self.rest_at += taken;
                if self.rest_at < self.rest.len() {
                    return Turn::Blocked;
                }
                self.clear_rest();
                self.more_or_idle(due)
            }
            Err(error) => Turn::Failed(error),
        }
    }

    /// Where the line starts that the peer has part of; `rest_at` if it has whole lines only.
    fn begun_at(&self) -> usize {
        memrchr(b'\n', &self.rest[..self.rest_at]).map_or(0, |end| end + 1)
    }

    /// Gives up all but the rest of the line that the peer has the start of.
    pub(super) fn end_after_line(&mut self, plan: &Plan, tally: &mut Tally) {
        self.phase = Phase::Ending;
        let whole_lines_only = self.begun_at() == self.rest_at;
        if whole_lines_only {
            return self.discard(self.rest_at, self.sent, plan, tally);
        }
        let end = memchr(b'\n', &self.rest[self.rest_at..]).expect("`rest` ends with a line");
        self.discard(self.rest_at + end + 1, self.sent + 1, plan, tally);
    }

    /// Gives up everything that was not sent, the line half written as well.
    pub(super) fn abandon(&mut self, plan: &Plan, tally: &mut Tally) {
        self.phase = Phase::Closed;
        self.discard(self.begun_at(), self.sent, plan, tally);
    }

    /// Drops the lines from here on, the first of which is event `index` of this connection, and takes them out
    /// of the tally.
    fn discard(&mut self, from: usize, mut index: u64, plan: &Plan, tally: &mut Tally) {
        for line in self.rest[from..].split_inclusive(|byte| *byte == b'\n') {
            let name = memchr(b' ', line).expect("a line built here has a space");
            let payload = &line[name + 1..line.len() - 1];
            let (stream, _) = plan.assignment.place(plan.streams.len(), self.number, index);
            let check = event::parse(payload).expect("a line built here parses").check;
            tally.check_sums[stream] = tally.check_sums[stream].wrapping_sub(u64::from(check));
            tally.line_bytes -= line.len() as u64;
            tally.payload_bytes -= payload.len() as u64 + 1;
            index += 1;
        }
        self.rest.truncate(from);
        if self.rest.len() <= self.rest_at {
            self.clear_rest();
        }
    }

    fn clear_rest(&mut self) {
        self.rest = Vec::new();
        self.rest_at = 0;
    }

    /// Shuts down the writing side.
    pub(super) fn half_close(&mut self) {
        // A peer that is gone already makes this fail, and epoll tells of it as well.
        let _ = shutdown(&self.socket, Shutdown::Write);
        self.phase = Phase::HalfClosed;
    }

    pub(super) fn has_rest(&self) -> bool {
        !self.rest.is_empty()
    }
}

/// Bytes taken; 0 where the kernel takes none now.
fn put(socket: &OwnedFd, bytes: &[u8]) -> Result<usize, Errno> {
    match send(socket, bytes, SendFlags::NOSIGNAL) {
        Err(Errno::AGAIN | Errno::INTR) => Ok(0),
        result => result,
    }
}
