//! What happens to the bytes of one shard: connection → frame → stream buffer → sealed batch. The driver calls
//! it with bytes; what it wants done to the driver it notes down, and `apply` does it.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant, SystemTime};

use crate::batch::BatchId;
use crate::buffer::{Append, Buffer};
use crate::config::{Config, OnFull};
use crate::connection::{Connection, Cut, Taken, Taker};
use crate::failpoint::{self, Point};
use crate::frame::{self, Frame, Reject, STREAM_NAME_BYTES_MAX};
use crate::linger::Wheel;
use crate::metrics::{Drop, Place, ShardCounters};
use crate::net::{Driver, End, Handler, Key, Reading};
use crate::queue::Returns;
use crate::rarely::Rarely;

use super::leaving;
use super::placing::Arrival;
use super::reading::Pressure;
use super::rejects::{Allowance, HEAD_BYTES_MAX, Sample};
use super::roster::Roster;
use super::sync::Syncs;
use super::window::Window;
use super::{Orders, Phase, Shared};

/// A blocked connection goes on once there is this much room, so that it does not go on for a single event.
const RESUME_BYTES: usize = 16 * 1024;
/// A stream that received nothing for so long gives its place on the shard up.
const IDLE_STREAM: Duration = Duration::from_secs(3600);

/// One connection of the shard.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) connection: Connection,
    pub(super) listener: usize,
    /// What the driver was last told.
    pub(super) reading: Reading,
    /// Bytes charged to the partial share.
    pub(super) charged: usize,
    pub(super) last_data: Instant,
    pub(super) blocked_on: Option<Block>,
    /// What it is to be told of its syncs, from its first control frame on.
    pub(super) syncs: Option<Box<Syncs>>,
    /// Bytes charged to the partial share for its syncs.
    pub(super) charged_syncs: usize,
    /// Its frames that were rejected or dropped since its last sync.
    pub(super) lost: u64,
    /// The events that the shard had lost when it was accepted.
    pub(super) lost_before: u64,
    /// Whether it has sent an event.
    pub(super) has_events: bool,
    /// Nothing is written to it any more.
    pub(super) is_shut: bool,
    /// It is not read any more, and closed once its syncs are answered.
    pub(super) is_answered_only: bool,
    /// When it is to be told to leave, where it ever is.
    pub(super) leaves_at: Option<Instant>,
    /// It was told to leave.
    pub(super) is_leaving: bool,
    /// It leaves as soon as it syncs, with all that comes behind that unread.
    pub(super) leaves_behind_sync: bool,
    /// All that it will be told is said; what still comes is thrown away until it closes its side.
    pub(super) is_parting: bool,
    pub(super) has_ended: bool,
    pub(super) answers_bytes: usize,
    pub(super) has_sent: bool,
}

/// What a blocked connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Block {
    /// Memory for a stream, and how much.
    Memory { stream: u32, bytes: usize },
    /// The peer to read its answers.
    Answers,
    /// One of its syncs to be answered.
    Syncs,
    /// Nothing: it leaves, and what it sent behind its last sync is not taken.
    Leaving,
}

/// What is to be done to the driver.
#[derive(Debug)]
pub(super) enum Action {
    Read(Key, Reading),
    Answer(Key, Vec<u8>),
    /// Keep what was rejected, with its sender's address.
    Keep(Key, Reject, Box<Sample>),
    ShutDownWriting(Key),
    Close(Key),
}

/// See the module.
#[derive(Debug)]
pub(super) struct Intake {
    shared: Arc<Shared>,
    /// The settings that this shard goes by.
    pub(super) config: Arc<Config>,
    shard: usize,
    now: Instant,
    /// What had come before this was read.
    pub(super) caught_up: Instant,
    pub(super) peers: Vec<Option<Peer>>,
    peers_open: usize,
    pub(super) streams: Roster,
    pub(super) wheel: Wheel,
    /// The batches that are not safe, and who waits for them.
    pub(super) window: Window,
    /// Events of batches of this shard that were lost.
    pub(super) lost_in_all: u64,
    /// Connections that are only kept to be answered.
    pub(super) answered_only: usize,
    /// Connections that were told to leave; some of them are gone.
    pub(super) leaving: Vec<Key>,
    /// When those that leave are looked at, or those that may be too old.
    pub(super) look_at: Option<Instant>,
    /// When it is looked at who is too old.
    pub(super) ages_at: Option<Instant>,
    pub(super) is_draining: bool,
    /// Scratch of `answering`.
    pub(super) woken: Vec<Key>,
    pub(super) actions: Vec<Action>,
    pub(super) pressure: Pressure,
    /// Connections that are blocked.
    blocked: Vec<Key>,
    /// Time is over: what finds no room now is dropped.
    pub(super) closing: bool,
    /// How many rejected frames may be kept now.
    pub(super) allowance: Allowance,
    /// The start of the line that was last found too long.
    too_long: Vec<u8>,
    /// The events that were looked at and not taken: the place of each and the octets of its payload.
    ahead: Vec<(u32, usize)>,
    pub(super) logged: Logged,
}

/// What a shard logs, by its cause: none of it may come a line an event or a connection.
#[derive(Debug, Default)]
pub(super) struct Logged {
    accept_failed: Rarely,
    refused: Rarely,
    dropped: Rarely,
    paused: Rarely,
    pub(super) paused_unread: Rarely,
    pub(super) paused_syncing: Rarely,
    pub(super) partial: Rarely,
    pub(super) stalled: Rarely,
}

impl Intake {
    pub(super) fn new(shard: usize, shared: Arc<Shared>) -> Self {
        let now = Instant::now();
        let config = shared.config.load_full();
        Self {
            look_at: leaving::next_look_at_ages(&config, now),
            ages_at: leaving::next_look_at_ages(&config, now),
            leaving: Vec::new(),
            is_draining: false,
            allowance: Allowance::new(config.rejected_samples),
            wheel: Wheel::new(shared.metrics.epoch, config.linger),
            config,
            shared,
            shard,
            now,
            caught_up: now,
            peers: Vec::new(),
            peers_open: 0,
            streams: Roster::default(),
            window: Window::default(),
            lost_in_all: 0,
            answered_only: 0,
            woken: Vec::new(),
            actions: Vec::new(),
            pressure: Pressure::default(),
            blocked: Vec::new(),
            closing: false,
            too_long: Vec::new(),
            ahead: Vec::new(),
            logged: Logged::default(),
        }
    }

    pub(super) fn counters(&self) -> &ShardCounters {
        &self.shared.metrics.shards[self.shard]
    }

    pub(super) fn orders(&self) -> &Orders {
        &self.shared.orders
    }

    pub(super) fn returns(&self) -> &Returns {
        &self.shared.returns[self.shard]
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }

    pub(super) fn shared_again(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    pub(super) fn now(&self) -> Instant {
        self.now
    }

    /// When the next stream is to be sealed.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.wheel.next_due()
    }

    /// Whether connections wait for memory.
    pub(super) fn has_waiting(&self) -> bool {
        !self.blocked.is_empty() || self.pressure.is_on()
    }

    /// Whether no connection is read any more.
    pub(super) fn is_done(&self) -> bool {
        self.peers_open == self.answered_only
    }

    /// Takes the connections that other shards have accepted for this one.
    pub(super) fn welcome(&mut self, driver: &mut Driver) {
        while let Some(Arrival { socket, address }) = self.shared.places.arrival(self.shard) {
            driver.adopt(socket, address, self);
        }
    }

    /// Whether connections may still be on their way from other shards: these pass none on once they have stopped.
    pub(super) fn may_have_arrivals(&self) -> bool {
        let Shared { orders, returns, places, .. } = &*self.shared;
        orders.stopped.get() < returns.len() || places.has_arrivals(self.shard)
    }

    /// Everything that is done once after each wait: seal what is due, let blocked connections go on.
    pub(super) fn turn(&mut self) {
        let mut due = Vec::new();
        self.wheel.take_due(self.now, |index| due.push(index));
        for index in due {
            self.seal(index);
        }
        self.hear_outcomes();
        self.resume_blocked();
        self.relieve();
    }

    /// Does to the driver what was noted down.
    pub(super) fn apply(&mut self, driver: &mut Driver) {
        let Self { actions, shared, shard, .. } = self;
        for action in actions.drain(..) {
            match action {
                Action::Read(key, reading) => driver.set_reading(key, reading),
                Action::Answer(key, answer) => driver.send(key, &answer),
                Action::Keep(key, reason, sample) => {
                    shared.rejects[*shard].keep(reason, Sample { peer: driver.peer(key), ..*sample });
                }
                Action::ShutDownWriting(key) => driver.shut_down_writing(key),
                Action::Close(key) => driver.close(key),
            }
        }
    }

    /// Takes the answers out of what was noted down, where there is no driver; they count as read by the peer. The
    /// rest is forgotten: it can be asked for.
    pub(super) fn take_answers(&mut self) -> Vec<(Key, Vec<u8>)> {
        let answer = |action| match action {
            Action::Answer(key, answer) => Some((key, answer)),
            Action::Read(..) | Action::Keep(..) | Action::ShutDownWriting(_) | Action::Close(_) => None,
        };
        let answers: Vec<(Key, Vec<u8>)> =
            std::mem::take(&mut self.actions).into_iter().filter_map(answer).collect();
        for (key, answer) in &answers {
            self.sent(*key, answer.len());
        }
        answers
    }

    pub(super) fn note_reading(&mut self, key: Key, reading: Reading) {
        self.actions.push(Action::Read(key, reading));
    }

    pub(super) fn seal_all(&mut self) {
        for place in self.streams.places() {
            self.seal(place);
        }
    }

    /// Forgets the streams that were idle for long.
    pub(super) fn sweep(&mut self) {
        let now = self.now;
        let Self { streams, window, .. } = self;
        streams.forget(|place, local| {
            local.buffer.is_empty()
                && window.is_clear(place)
                && (!local.is_listed() || now.saturating_duration_since(local.used_at) > IDLE_STREAM)
        });
    }

    pub(super) fn keys(&self) -> Vec<Key> {
        let open = self.peers.iter().enumerate().filter(|(_, peer)| peer.is_some());
        open.map(|(key, _)| key as Key).collect()
    }

    /// Runs the bytes of one connection through framing.
    pub(super) fn feed(&mut self, key: Key, bytes: Option<&[u8]>) {
        let Some(mut peer) = self.peers[key as usize].take() else { return };
        let was_blocked = peer.blocked_on.is_some();
        if bytes.is_none() {
            peer.blocked_on = None;
        }
        let mut connection = std::mem::replace(&mut peer.connection, Connection::new(0));
        let mut taker = Offer { intake: self, key, peer: &mut peer, last: u32::MAX, repeats: false };
        let taken = match bytes {
            Some(bytes) => connection.feed(bytes, &mut taker),
            None => connection.resume(&mut taker),
        };
        peer.connection = connection;
        if peer.blocked_on == Some(Block::Leaving) {
            self.answer_only(&mut peer);
        } else if taken == Taken::Blocked && !was_blocked {
            self.blocked.push(key);
            self.shared.memory.add_waiting();
        }
        self.peers[key as usize] = Some(peer);
        self.answer_syncs(key);
        self.charge_partial(key);
        self.set_reading(key);
    }

    /// Lets blocked connections go on where there is room now.
    fn resume_blocked(&mut self) {
        for key in std::mem::take(&mut self.blocked) {
            if !self.can_resume(key) {
                self.blocked.push(key);
                continue;
            }
            self.feed(key, None);
            let Some(peer) = self.peers[key as usize].as_ref() else { continue };
            if peer.blocked_on.is_some() {
                self.blocked.push(key);
                continue;
            }
            self.shared.memory.remove_waiting();
            self.close_if_done(key);
        }
    }

    fn can_resume(&self, key: Key) -> bool {
        let Some(peer) = self.peers[key as usize].as_ref() else { return false };
        match peer.blocked_on {
            Some(Block::Memory { stream, bytes }) => self.has_room(stream, bytes),
            Some(Block::Answers) => peer.answers_bytes == 0,
            Some(Block::Syncs) => !peer.has_most_syncs(),
            Some(Block::Leaving) => false,
            None => true,
        }
    }

    fn has_room(&self, stream: u32, bytes: usize) -> bool {
        let Some(local) = self.streams.get(stream) else { return true };
        let may_drop =
            local.stream.parked.load(Relaxed) || local.stream.settings.load().on_full == OnFull::Drop;
        may_drop || self.shared.memory.has_room(&local.stream.account, bytes as u64)
    }

    /// Counts a frame that is not taken. To the next sync of its connection it is lost.
    #[cold]
    fn reject(&mut self, reason: Reject, frame: &[u8], key: Key, peer: &mut Peer) -> Taken {
        self.count_rejected(reason, frame, key);
        peer.lost += 1;
        Taken::Yes
    }

    pub(super) fn count_rejected(&mut self, reason: Reject, frame: &[u8], key: Key) {
        self.counters().rejected[reason as usize].add(1);
        if self.allowance.take(reason, self.now) {
            let sample = Sample::new(SystemTime::now(), None, frame);
            self.actions.push(Action::Keep(key, reason, Box::new(sample)));
        }
    }

    /// The place of a stream that the roster guessed wrong.
    #[cold]
    fn place_of(&mut self, name: &[u8]) -> Result<u32, Reject> {
        self.streams.find(name).map_or_else(|| self.meet(name), Ok)
    }

    /// The place of a stream that this shard sees for the first time.
    #[cold]
    fn meet(&mut self, name: &[u8]) -> Result<u32, Reject> {
        let stream = self.shared.registry.resolve(name)?;
        let buffer = Buffer::new(self.shared.shape, &self.shared.memory, &stream);
        Ok(self.streams.add(stream, buffer, self.shard, self.now))
    }

    /// Appends an event to its stream's buffer, sealing it first where it is full.
    #[inline]
    fn gather(&mut self, index: u32, payload: &[u8], peer: &mut Peer) -> Taken {
        // Two turns at most: a buffer that was sealed is empty, and an empty one takes the line or has no memory.
        for _ in 0..2 {
            let local = self.streams.get_mut(index).expect("a known name has a stream");
            let was_empty = local.buffer.is_empty();
            match local.buffer.append(payload, self.now, &self.shared.memory) {
                Append::Done => {
                    let cell = &local.cell;
                    cell.open.add(1);
                    cell.received.add(1);
                    let mut batch = local.batch;
                    if was_empty {
                        batch = self.opened_buffer(index);
                    }
                    match peer.syncs.as_deref_mut() {
                        Some(syncs) => syncs.note(index, batch, &self.window),
                        None => peer.has_events = true,
                    }
                    return Taken::Yes;
                }
                // What is open can go home only once it is sealed.
                Append::Full if was_empty => break,
                Append::SealFirst | Append::Full => self.seal(index),
            }
        }
        self.full(index, payload.len(), peer)
    }

    /// The first event of a batch was appended: its sequence.
    fn opened_buffer(&mut self, index: u32) -> u64 {
        let since = self.now.saturating_duration_since(self.shared.metrics.epoch).as_nanos();
        let local = self.streams.get_mut(index).expect("a known name has a stream");
        local.used_at = self.now;
        local.stream.open_since[self.shard].set(u64::try_from(since).unwrap_or(u64::MAX).max(1));
        self.wheel.add(local.stream.phase, index);
        local.batch = self.window.open(index);
        local.batch
    }

    /// A stream is at its cap: drop the event, or have its connection wait.
    #[cold]
    fn full(&mut self, index: u32, bytes: usize, peer: &mut Peer) -> Taken {
        let local = self.streams.get(index).expect("a known name has a stream");
        let reason = match local.stream.settings.load().on_full {
            _ if local.stream.parked.load(Relaxed) => Drop::Parked,
            // The connection is being closed with this event already read: it cannot wait any more.
            _ if self.closing => Drop::DrainDeadline,
            OnFull::Drop if self.shared.metrics.spool.is_full.load(Relaxed) => Drop::SpoolFull,
            OnFull::Drop => Drop::Memory,
            OnFull::Wait => {
                peer.blocked_on = Some(Block::Memory { stream: index, bytes: bytes.max(RESUME_BYTES) });
                if let Some(more) = self.logged.paused.say(self.now) {
                    let name = &local.stream.name;
                    tracing::warn!(
                        "stream {name} holds all the memory it may: connections that bring more for it are paused{more}"
                    );
                }
                return Taken::Blocked;
            }
        };
        local.stream.label.dropped(1, reason);
        local.cell.received.add(1);
        peer.lost += 1;
        if let Some(more) = self.logged.dropped.say(self.now) {
            let (name, reason) = (&local.stream.name, reason.label());
            tracing::warn!(
                "stream {name} holds all the memory it may: its newest events are dropped ({reason}){more}"
            );
        }
        Taken::Yes
    }

    pub(super) fn seal(&mut self, index: u32) {
        let Some(local) = self.streams.get_mut(index) else { return };
        let id = BatchId { shard: self.shard as u16, sequence: local.batch };
        let Some(batch) = local.buffer.seal(id, self.now) else { return };
        let events = batch.ticket.events;
        local.stream.label.enter(events, Place::Queued);
        local.cell.open.sub(events);
        local.stream.open_since[self.shard].set(0);
        failpoint::pass(Point::Seal);
        self.shared.handoff.push(batch);
    }

    /// Closes a connection and gives back all that it held.
    pub(super) fn close(&mut self, key: Key) {
        let Some(peer) = self.peers[key as usize].take() else { return };
        let blocked = self.blocked.len();
        self.blocked.retain(|blocked| *blocked != key);
        if self.blocked.len() < blocked {
            self.shared.memory.remove_waiting();
        }
        // What stands behind the last sync of one that leaves was never taken.
        if peer.connection.keeps_half() && peer.blocked_on != Some(Block::Leaving) {
            self.count_rejected(Reject::Truncated, peer.connection.kept(), key);
        }
        self.forget_syncs(key, &peer);
        self.shared.memory.move_partial((peer.charged + peer.charged_syncs) as u64, 0);
        if peer.reading == Reading::Paused {
            self.counters().paused.sub(1);
        }
        self.pressure.forget(key);
        self.shared.metrics.connections[peer.listener][self.shard].sub(1);
        self.shared.connections.fetch_sub(1, Relaxed);
        self.shared.places.leave(self.shard);
        self.peers_open -= 1;
        self.answered_only -= usize::from(peer.is_answered_only);
        self.actions.push(Action::Close(key));
    }
}

/// One connection's lines on their way into the buffers.
struct Offer<'a> {
    intake: &'a mut Intake,
    key: Key,
    peer: &'a mut Peer,
    /// The place of the last line's stream.
    last: u32,
    /// The line before that was for the same.
    repeats: bool,
}

/// What a look at a line found.
#[derive(Clone, Copy)]
enum Seen {
    /// An event for the stream at this place, or most likely for it; its payload starts so many octets into the line.
    Event {
        stream: u32,
        payload: u8,
        is_guess: bool,
    },
    Control,
    Reject(Reject),
}

impl Default for Seen {
    fn default() -> Self {
        Seen::Reject(Reject::NoSpace)
    }
}

impl Taker for Offer<'_> {
    type Seen = Seen;

    #[inline]
    fn look(&mut self, cut: &Cut<'_>) -> Seen {
        let Cut::Line(line) = cut else { return Seen::Reject(Reject::TooLong) };
        let (name, payload) = match frame::parse(line, self.intake.config.frame_bytes_max) {
            Ok(Frame::Event { stream, payload }) => (stream, payload),
            Ok(Frame::Control(_)) => return Seen::Control,
            Err(reason) => return Seen::Reject(reason),
        };
        let offset = (name.len() + 1) as u8;
        // A connection often repeats a name, and then its buffer is at hand, too. After one line the entry may still be on
        // its way.
        if self.repeats && self.intake.streams.is_at(self.last, name) {
            return Seen::Event { stream: self.last, payload: offset, is_guess: false };
        }
        match self.intake.streams.guess(name).map_or_else(|| self.intake.meet(name), Ok) {
            Err(reason) => Seen::Reject(reason),
            Ok(stream) => {
                self.intake.ahead.push((stream, payload.len()));
                self.repeats = stream == self.last;
                self.last = stream;
                Seen::Event { stream, payload: offset, is_guess: true }
            }
        }
    }

    /// The entries of the streams have come, so it is known where the lines go to. All of these places are asked for at
    /// once: looking them up in the page tables takes long, too, and the processor does several of that side by side.
    #[inline]
    fn looked(&mut self) {
        let Intake { ahead, streams, .. } = &mut *self.intake;
        for (stream, length) in ahead.drain(..) {
            if let Some(local) = streams.get(stream) {
                local.prefetch(length);
            }
        }
    }

    #[cold]
    fn too_long(&mut self, start: &[u8]) {
        let too_long = &mut self.intake.too_long;
        too_long.clear();
        too_long.extend_from_slice(&start[..start.len().min(HEAD_BYTES_MAX + 1)]);
    }

    #[inline]
    fn take(&mut self, cut: Cut<'_>, seen: Seen) -> Taken {
        match (seen, cut) {
            (Seen::Event { mut stream, payload, is_guess }, Cut::Line(line)) => {
                let (name, payload) = line.split_at(usize::from(payload));
                let name = &name[..name.len() - 1];
                if is_guess && !self.intake.streams.is_at(stream, name) {
                    match self.intake.place_of(name) {
                        Ok(place) => stream = place,
                        Err(reason) => return self.intake.reject(reason, line, self.key, self.peer),
                    }
                }
                self.intake.gather(stream, payload, self.peer)
            }
            (Seen::Control, Cut::Line(line)) => {
                self.intake.control(self.key, self.peer, &line[1..line.len() - 1])
            }
            (Seen::Reject(reason), Cut::Line(line)) => self.intake.reject(reason, line, self.key, self.peer),
            (_, Cut::TooLong) => {
                let start = std::mem::take(&mut self.intake.too_long);
                self.intake.reject(Reject::TooLong, &start, self.key, self.peer)
            }
        }
    }
}

impl Handler for Intake {
    fn woke(&mut self, now: Instant) {
        self.now = now;
    }

    fn accepted(&mut self, socket: OwnedFd, address: usize) -> Option<OwnedFd> {
        let Shared { places, returns, .. } = &*self.shared;
        // Once a shard drains it has no connection passed to it any more: see `may_have_arrivals`.
        if self.shared.orders.phase() > Phase::Serve {
            places.enter(self.shard);
            return Some(socket);
        }
        let shard = places.choose(self.shard);
        if shard == self.shard {
            return Some(socket);
        }
        places.send(shard, Arrival { socket, address });
        returns[shard].bell.ring();
        self.counters().moved.add(1);
        None
    }

    fn opened(&mut self, key: Key, listener: usize) {
        let index = key as usize;
        if self.peers.len() <= index {
            self.peers.resize_with(index + 1, || None);
        }
        self.counters().opened.add(1);
        if self.shared.connections.load(Relaxed) >= self.shared.connections_max {
            self.counters().refused.add(1);
            self.shared.places.leave(self.shard);
            self.actions.push(Action::Close(key));
            if let Some(more) = self.logged.refused.say(self.now) {
                let most = self.shared.connections_max;
                tracing::warn!(
                    "connections are closed at once: the most that may be open, {most}, are{more}"
                );
            }
            return;
        }
        self.shared.connections.fetch_add(1, Relaxed);
        self.shared.metrics.connections[listener][self.shard].add(1);
        self.peers_open += 1;
        // A line is a name, a space, a payload and its LF.
        let line_bytes_max = STREAM_NAME_BYTES_MAX + 1 + self.config.frame_bytes_max + 1;
        self.peers[index] = Some(Peer {
            connection: Connection::new(line_bytes_max),
            listener,
            reading: Reading::Full,
            charged: 0,
            last_data: self.now,
            blocked_on: None,
            syncs: None,
            charged_syncs: 0,
            lost: 0,
            lost_before: self.lost_in_all,
            has_events: false,
            is_shut: false,
            is_answered_only: false,
            leaves_at: self.leaves_at(),
            is_leaving: false,
            leaves_behind_sync: false,
            is_parting: false,
            has_ended: false,
            answers_bytes: 0,
            has_sent: false,
        });
        self.set_reading(key);
    }

    fn data(&mut self, key: Key, bytes: &[u8]) {
        self.counters().received_bytes.add(bytes.len() as u64);
        if let Some(peer) = self.peers[key as usize].as_mut() {
            peer.has_sent = true;
            peer.last_data = self.now;
            if !peer.is_parting {
                self.feed(key, Some(bytes));
            }
        }
    }

    fn ended(&mut self, key: Key, end: End) {
        let Some(peer) = self.peers[key as usize].as_mut() else { return };
        peer.has_ended = true;
        let has_sent = peer.has_sent;
        if end == End::Failed {
            self.give_answers_up(key);
        }
        match (has_sent, end) {
            // Health checks end with a reset as well as with a close.
            (false, _) => self.counters().health_probes.add(1),
            (true, End::Failed) => self.counters().failed.add(1),
            (true, End::Closed) => (),
        }
        self.close_if_done(key);
    }

    fn sent(&mut self, key: Key, bytes: usize) {
        let Some(peer) = self.peers[key as usize].as_mut() else { return };
        peer.answers_bytes = peer.answers_bytes.saturating_sub(bytes);
        if bytes == usize::MAX {
            self.give_answers_up(key);
        }
        self.close_if_done(key);
    }

    fn accept_failed(&mut self, error: &io::Error) {
        if let Some(more) = self.logged.accept_failed.say(self.now) {
            tracing::warn!(
                "connections cannot be accepted, which is tried again ten times a second: {error}{more}"
            );
        }
    }
}
