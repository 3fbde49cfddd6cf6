//! One sending thread: a queue of connections that have something to write, and epoll for those that the
//! kernel blocks. It neither spins nor sleeps past what is due.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::Context;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::fd::OwnedFd;

use super::connection::{Connection, Phase, Tally, Turn};
use super::{Done, ERRORS_MAX, Plan, Progress};
use crate::schedule::{Clock, Schedule};

/// Turns between two looks at epoll while there is always something to write.
const TURNS_PER_LOOK: usize = 64;
/// The shortest wait for the next event due: what comes due meanwhile is sent in one go.
const WAIT_MIN: Duration = Duration::from_micros(100);
/// The longest wait, so that deadlines are noticed.
const WAIT_MAX: Duration = Duration::from_millis(100);

/// The share of the connections that one thread drives.
#[derive(Debug)]
pub(super) struct Share<'a> {
    plan: &'a Plan,
    schedule: Schedule,
    clock: Clock,
    thread: usize,
    epoll: Option<OwnedFd>,
    connections: Vec<Connection>,
    /// Connections with something to write, by index.
    queue: VecDeque<usize>,
    /// Connections that are not `Closed`.
    alive: usize,
    /// Connections whose writing side is open.
    sending: usize,
    /// Events, over all connections, whose turn was given to their connection.
    announced: u64,
    stopping: bool,
    tally: Tally,
    done: Done,
}

impl<'a> Share<'a> {
    pub(super) fn new(plan: &'a Plan, schedule: Schedule, clock: Clock, thread: usize) -> Self {
        let tally = Tally { check_sums: vec![0; plan.streams.len()], ..Tally::default() };
        Self {
            plan,
            schedule,
            clock,
            thread,
            epoll: None,
            connections: Vec::new(),
            queue: VecDeque::new(),
            alive: 0,
            sending: 0,
            announced: 0,
            stopping: false,
            tally,
            done: Done::default(),
        }
    }

    /// Takes a connection over. Numbers must come as `thread`, `thread + threads`, …
    pub(super) fn add(&mut self, number: u32, socket: OwnedFd) -> anyhow::Result<()> {
        if self.epoll.is_none() {
            self.epoll = Some(epoll::create(CreateFlags::CLOEXEC).context("epoll is not available")?);
        }
        let epoll = self.epoll.as_ref().expect("was just created");
        // Edge-triggered: the kernel tells once that a blocked socket takes bytes again, or that its peer closed.
        let interest = EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        epoll::add(epoll, &socket, EventData::new_u64(self.connections.len() as u64), interest)
            .context("a connection could not be watched")?;
        self.connections.push(Connection::new(number, socket));
        self.alive += 1;
        self.sending += 1;
        Ok(())
    }

    /// Sends until all is sent or time is over, then half-closes and waits for the peer, within the time-out.
    pub(super) fn run(mut self, progress: &Progress) -> anyhow::Result<Done> {
        let Some(epoll) = self.epoll.take() else { return Ok(self.finish()) };
        let mut scratch = Vec::new();
        let mut ready = Vec::with_capacity(1024);
        let mut deadline_ns = u64::MAX;
        while self.alive > 0 {
            let now_ns = self.clock.now_ns();
            if !self.stopping && (self.schedule.is_over(now_ns) || self.is_stuck(now_ns)) {
                self.stop();
            }
            if deadline_ns == u64::MAX && (self.stopping || self.sending == 0) {
                deadline_ns = now_ns.saturating_add(self.plan.load.close_timeout.as_nanos() as u64);
            }
            if now_ns >= deadline_ns {
                break;
            }
            self.announce(now_ns);
            self.turns(now_ns, &mut scratch, progress);
            self.look(&epoll, &mut ready)?;
        }
        Ok(self.finish())
    }

    /// Whether nothing was taken for the stuck time-out although something waits to be written; notes it.
    fn is_stuck(&mut self, now_ns: u64) -> bool {
        let quiet_ns = now_ns.saturating_sub(self.done.last_write_ns.max(self.schedule.start_ns()));
        if !self.queue.is_empty() || quiet_ns < self.plan.load.stuck_timeout.as_nanos() as u64 {
            return false;
        }
        let blocked: Vec<_> =
            (0..self.connections.len()).filter(|index| self.connections[*index].blocked).collect();
        let why = format!("no connection took a byte for {:?}", self.plan.load.stuck_timeout);
        blocked.iter().for_each(|index| self.note(*index, &why));
        !blocked.is_empty()
    }

    /// Time is over: lines begun are finished, and nothing else.
    fn stop(&mut self) {
        self.stopping = true;
        for index in 0..self.connections.len() {
            self.end(index);
        }
    }

    fn end(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        if connection.phase == Phase::Open {
            connection.end_after_line(self.plan, &mut self.tally);
            if !connection.has_rest() {
                self.half_close(index);
            }
        }
    }

    /// Queues the connections whose events came due.
    fn announce(&mut self, now_ns: u64) {
        if self.stopping {
            return;
        }
        let due = self.schedule.due(now_ns);
        let all = self.plan.load.connections as u64;
        let first = if due - self.announced >= all { due.saturating_sub(all) } else { self.announced };
        for event in first..due {
            let number = self.schedule.connection(event) as usize;
            if number % self.plan.load.threads == self.thread {
                self.enqueue(number / self.plan.load.threads);
            }
        }
        // A connection without a single event has nothing to wait for.
        if self.announced == 0 && self.schedule.total().is_some_and(|total| total < all) {
            (0..self.connections.len()).for_each(|index| self.enqueue(index));
        }
        self.announced = due;
    }

    fn enqueue(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        let writes = matches!(connection.phase, Phase::Open | Phase::Ending);
        if writes && !connection.queued && !connection.blocked {
            connection.queued = true;
            self.queue.push_back(index);
        }
    }

    fn turns(&mut self, now_ns: u64, scratch: &mut Vec<u8>, progress: &Progress) {
        let mut now_ns = now_ns;
        for turn in 0..TURNS_PER_LOOK {
            let Some(index) = self.queue.pop_front() else { return };
            if turn > 0 {
                now_ns = self.clock.now_ns();
            }
            self.connections[index].queued = false;
            self.turn(index, now_ns, scratch, progress);
        }
    }

    fn turn(&mut self, index: usize, now_ns: u64, scratch: &mut Vec<u8>, progress: &Progress) {
        let connection = &mut self.connections[index];
        let share = |events| self.schedule.share(events, connection.number);
        let due = match connection.phase {
            Phase::Open => share(self.schedule.due(now_ns)),
            Phase::Ending => 0,
            Phase::HalfClosed | Phase::Closed => return,
        };
        let quota = share(self.schedule.total().unwrap_or(u64::MAX));
        let before = connection.sent;
        let turn = connection.write(self.plan, &self.schedule, now_ns, due, scratch, &mut self.tally);
        if connection.sent > before {
            progress.add(connection.sent - before);
            self.done.last_write_ns = self.clock.now_ns();
        }
        match turn {
            Turn::More => self.enqueue(index),
            Turn::Blocked => connection.blocked = true,
            Turn::Idle if connection.phase == Phase::Ending || connection.sent >= quota => {
                self.half_close(index);
            }
            Turn::Idle => {}
            Turn::Failed(errno) => self.fail(index, &format!("{errno}")),
        }
    }

    /// Takes what epoll has to tell; waits for it, or for the next event due, if nothing can be written now.
    fn look(&mut self, epoll: &OwnedFd, ready: &mut Vec<epoll::Event>) -> anyhow::Result<()> {
        let wait = if self.queue.is_empty() { self.wait() } else { Duration::ZERO };
        let timeout = Timespec { tv_sec: 0, tv_nsec: wait.as_nanos() as _ };
        ready.clear();
        match epoll::wait(epoll, rustix::buffer::spare_capacity(ready), Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("epoll failed"),
        }
        for event in ready.iter() {
            let (flags, data) = (event.flags, event.data);
            self.hear(data.u64() as usize, flags);
        }
        Ok(())
    }

    /// How long until something is due: nothing more is, once all events were announced.
    fn wait(&self) -> Duration {
        let announced_all = self.schedule.total().is_some_and(|total| self.announced >= total);
        if self.stopping || self.schedule.flat_out() || announced_all {
            return WAIT_MAX;
        }
        let next_ns = self.schedule.planned_ns(self.announced);
        Duration::from_nanos(next_ns.saturating_sub(self.clock.now_ns())).clamp(WAIT_MIN, WAIT_MAX)
    }

    fn hear(&mut self, index: usize, flags: EventFlags) {
        if flags.intersects(EventFlags::HUP | EventFlags::ERR) {
            return self.gone(index);
        }
        if flags.contains(EventFlags::RDHUP) {
            return self.peer_closed(index);
        }
        if flags.contains(EventFlags::OUT) && self.connections[index].blocked {
            self.connections[index].blocked = false;
            self.enqueue(index);
        }
    }

    /// Neither side can send any more.
    fn gone(&mut self, index: usize) {
        match self.connections[index].phase {
            Phase::Closed => {}
            Phase::HalfClosed => self.close(index),
            Phase::Open | Phase::Ending => self.fail(index, "the peer closed it"),
        }
    }

    /// The peer shut down its writing side: a relay that drains, and still reads the line begun.
    fn peer_closed(&mut self, index: usize) {
        self.connections[index].peer_closed = true;
        match self.connections[index].phase {
            Phase::Closed | Phase::Ending => {}
            Phase::HalfClosed => self.close(index),
            Phase::Open => {
                self.note(index, "the peer closed it before all was sent");
                self.end(index);
                if self.connections[index].phase == Phase::Ending {
                    self.connections[index].blocked = false;
                    self.enqueue(index);
                }
            }
        }
    }

    fn half_close(&mut self, index: usize) {
        self.connections[index].half_close();
        self.sending -= 1;
        if self.connections[index].peer_closed {
            self.close(index);
        }
    }

    fn close(&mut self, index: usize) {
        self.connections[index].phase = Phase::Closed;
        self.alive -= 1;
    }

    fn fail(&mut self, index: usize, why: &str) {
        self.note(index, why);
        self.connections[index].abandon(self.plan, &mut self.tally);
        self.alive -= 1;
        self.sending -= 1;
    }

    fn note(&mut self, index: usize, why: &str) {
        let connection = &mut self.connections[index];
        if connection.failed {
            return;
        }
        connection.failed = true;
        self.done.connections_failed += 1;
        if self.done.errors.len() < ERRORS_MAX {
            let (number, sent) = (connection.number, connection.sent);
            self.done.errors.push(format!("connection {number} failed after {sent} events: {why}"));
        }
    }

    fn finish(mut self) -> Done {
        for index in 0..self.connections.len() {
            match self.connections[index].phase {
                Phase::Closed => {}
                Phase::HalfClosed => self.done.connections_not_closed += 1,
                Phase::Open | Phase::Ending => {
                    self.connections[index].abandon(self.plan, &mut self.tally);
                    self.done.connections_not_closed += 1;
                }
            }
        }
        let tally = self.tally;
        Done {
            events: self.connections.iter().map(|c| (c.number, c.sent)).collect(),
            check_sums: tally.check_sums,
            payload_bytes: tally.payload_bytes,
            line_bytes: tally.line_bytes,
            writes: tally.writes,
            behind_ns_max: tally.behind_ns_max,
            ..self.done
        }
    }
}
