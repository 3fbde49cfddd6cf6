//! Delivery's side of the spool: what is written to disk and when, what is read back and when, and how the fate of
//! a batch on disk finds the tickets of those whose events it holds. It knows no file.
//!
//! A batch that goes to disk gets an id, and a ticket of its own ([`SPOOL`] stands for its shard): whatever calls
//! are made with it later settle that one, and with it, here, the tickets that it stands for. In `overflow` a
//! stream over its share writes its oldest queued batches, and their memory goes home once they are synced; in
//! `always` every batch is written while it goes its way, and where memory is short its copy in memory is simply
//! let go of. What is on disk comes back oldest first, with at most an eighth of memory and half of a lane's calls.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::piece::Piece;
use super::queues::Item;
use super::{Delivery, Parts};
use crate::batch::{Fate, SPOOL, Settled, Ticket};
use crate::config::{Config, SpoolMode};
use crate::memory::{Account, Charge};
use crate::metrics::{Ages, Place, SpoolGauges};
use crate::queue::Returns;
use crate::spool::keeper::{Command, Keeper};
use crate::spool::{BATCH_MEMORY_BYTES, Event};
use crate::stream::Stream;

mod leave;
mod recall;
mod write;

use self::leave::Leaving;
pub(super) use self::leave::{cut_off, is_leaving};
use self::recall::Waiting;
pub(super) use self::write::{wrap, write_through};

/// How often all streams are looked at, whatever happens.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// The same, where nothing is on disk.
const LOOK_IDLE: Duration = Duration::from_secs(1);
/// How soon more may be read back once a call with what was read back has ended.
const RECALL_EVERY: Duration = Duration::from_millis(1);

/// One batch that is on disk or on its way to it.
#[derive(Debug)]
struct Spilled {
    stream: Arc<Stream>,
    /// Whose events it holds.
    origins: Vec<(Arc<Ticket>, u64)>,
    events: u64,
    bytes: u64,
    is_stored: bool,
    /// Whether it could not be read where it stands: what is in memory of it is worth more.
    is_unreadable: bool,
    /// Whether the spool has not said yet what became of it.
    is_pending: bool,
    /// What is in memory until it is stored; empty where a queue holds it, or nobody.
    items: Vec<Item>,
}

impl Spilled {
    /// Whether it is on disk, and can be read from there as far as is known.
    fn is_readable(&self) -> bool {
        self.is_stored && !self.is_unreadable
    }
}

/// The state of delivery's side of the spool.
#[derive(Debug)]
pub(super) struct Spill {
    keeper: Keeper,
    mode: SpoolMode,
    next_id: u64,
    batches: HashMap<u64, Spilled, foldhash::fast::RandomState>,
    waiting: HashMap<Arc<str>, Waiting, foldhash::fast::RandomState>,
    /// The streams in `waiting`, in the order in which they are asked for.
    turns: VecDeque<Arc<str>>,
    /// Bytes on their way to disk, by stream and in all.
    writing: HashMap<u64, u64, foldhash::fast::RandomState>,
    writing_bytes: u64,
    /// Bytes of batches that were asked for or are back in memory, by id once they are.
    recalled: HashMap<u64, u64, foldhash::fast::RandomState>,
    recalled_bytes: u64,
    asked_bytes: u64,
    /// The memory that the index takes.
    index: Charge,
    /// The youngest event of a batch on disk was received so much after the oldest, at most.
    apart_max: Duration,
    /// The same moment on both clocks, the second in milliseconds since 1970: from here on only the one that never
    /// jumps counts.
    pub(super) epoch: (Instant, u64),
    paused_until: Option<Instant>,
    look_at: Option<Instant>,
    /// When something was last looked for to read back, and whether there is room for more since.
    recalled_at: Option<Instant>,
    has_room: bool,
    leaving: Option<Leaving>,
}

/// What the spool has to say next, or nothing where all streams are to be looked at; never where there is no spool.
pub(super) async fn next_event(spill: &mut Option<Spill>) -> Option<Event> {
    match spill {
        Some(spill) => {
            let pause = tokio::time::sleep(if spill.is_resting() { LOOK_IDLE } else { 5 * LOOK_EVERY });
            tokio::select! {
                Some(event) = spill.keeper.events.recv() => Some(event),
                () = pause => None,
            }
        }
        None => std::future::pending().await,
    }
}

impl Spill {
    pub(super) fn new(keeper: Keeper, parts: &Parts) -> Self {
        let account: Arc<Account> = Arc::default();
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            keeper,
            mode: parts.config.spool_mode,
            next_id: 0,
            batches: HashMap::default(),
            waiting: HashMap::default(),
            turns: VecDeque::new(),
            writing: HashMap::default(),
            writing_bytes: 0,
            recalled: HashMap::default(),
            recalled_bytes: 0,
            asked_bytes: 0,
            index: Charge::none(&parts.memory, &account),
            apart_max: parts.config.linger + write::APART_MAX,
            epoch: (Instant::now(), u64::try_from(since.as_millis()).unwrap_or(u64::MAX)),
            paused_until: None,
            look_at: None,
            recalled_at: None,
            has_room: false,
            leaving: None,
        }
    }

    /// Goes by other settings from now on.
    pub(super) fn reload(&mut self, config: &Config) {
        // What was gathered before is on disk still.
        self.apart_max = self.apart_max.max(config.linger + write::APART_MAX);
        self.command(Command::Limit {
            bytes_max: config.spool_limit,
            free_floor: config.spool_free_floor,
            keep_sent: config.spool_keep_sent,
        });
    }

    /// Whether nothing waits on disk, or is on its way there or back.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.writing_bytes == 0
    }

    /// Notes how old the oldest event of each stream is that is on disk alone, or on its way there.
    pub(super) fn note_ages(&self, ages: &mut Ages, gauges: &SpoolGauges, now: Instant) {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let oldest = gauges.oldest.lock().unwrap_or_else(PoisonError::into_inner);
        for waiting in self.waiting.values().filter(|waiting| waiting.batches > 0) {
            if let Some(millis) = oldest.get(&waiting.stream.name) {
                let age = since.saturating_sub(Duration::from_millis(*millis));
                ages.note(waiting.stream.label.name(), age);
            }
        }
        if self.writing_bytes > 0 {
            for spilled in self.batches.values() {
                if let Some(at) = spilled.items.iter().map(Item::oldest).min() {
                    ages.note(spilled.stream.label.name(), now.saturating_duration_since(at));
                }
            }
        }
    }

    fn is_resting(&self) -> bool {
        self.is_empty() && self.batches.is_empty() && self.leaving.is_none()
    }

    /// Says whether memory came free.
    fn charge_index(&mut self) -> bool {
        let on_disk: u64 = self.waiting.values().map(|waiting| waiting.batches).sum();
        let before = self.index.bytes();
        self.index.set((self.batches.len() as u64).max(on_disk) * BATCH_MEMORY_BYTES);
        self.index.bytes() < before
    }

    fn command(&self, command: Command) {
        // The thread is gone only when the process is about to end.
        let _ = self.keeper.commands.send(command);
    }

    /// Every event of a batch on disk is settled: so are those whose events they were.
    fn settled(&mut self, settled: Settled, returns: &[Returns]) {
        let mut ended = vec![settled];
        while let Some(settled) = ended.pop() {
            if settled.id.shard != SPOOL {
                returns[usize::from(settled.id.shard)].push(settled);
                continue;
            }
            let id = settled.id.sequence;
            self.forget_recalled(id);
            self.command(Command::Done(id));
            let Some(spilled) = self.batches.remove(&id) else { continue };
            self.drop_empty(&spilled.stream.name);
            for (ticket, events) in spilled.origins {
                if spilled.is_stored {
                    ticket.unstore(events);
                }
                // Which of them were lost is not known: for each origin the bound is all of it.
                let lost = settled.lost.min(events);
                ended.extend((lost > 0).then(|| ticket.settle(lost, Fate::Lost)).flatten());
                ended
                    .extend((events > lost).then(|| ticket.settle(events - lost, Fate::Delivered)).flatten());
            }
        }
    }
}

fn tell_stored(ticket: &Ticket, returns: &[Returns]) {
    if ticket.id.shard != SPOOL && ticket.becomes_safe() {
        returns[usize::from(ticket.id.shard)].push_stored(ticket.id);
    }
}

impl Delivery {
    /// Hears of batches that are settled with a piece, and tells whom it concerns.
    pub(super) fn settled(&mut self, piece: &Piece, ended: Vec<Settled>) {
        let returns = &self.parts.returns;
        let Some(spill) = &mut self.spill else {
            ended.into_iter().for_each(|settled| returns[usize::from(settled.id.shard)].push(settled));
            return;
        };
        for settled in ended {
            spill.settled(settled, returns);
        }
        // What is left of a batch may all be on disk now.
        for (ticket, _) in piece.tickets() {
            tell_stored(&ticket, returns);
            if ticket.id.shard == SPOOL && ticket.is_stored() {
                spill.command(Command::Done(ticket.id.sequence));
            }
        }
    }

    /// Hears what the spool has to say.
    pub(super) fn hear(&mut self, event: Event, now: Instant) {
        let Some(spill) = &mut self.spill else { return };
        match event {
            Event::Stored(id) => {
                spill.stored(id, &self.parts.returns);
                self.parts.metrics.spool.is_full.store(false, Relaxed);
                self.released = true;
            }
            Event::Refused(id, _) => {
                self.parts.metrics.spool.is_full.store(true, Relaxed);
                self.take_back(id, now);
            }
            Event::Loaded { id, header, lines, is_doubtful } => {
                let pieces = spill.loaded(id, &header, lines, &self.parts, self.encoding, now);
                self.take_recalled(pieces, &header, is_doubtful, now);
            }
            Event::Damaged { id, header, was_asked } => {
                spill.damaged(id, &header, was_asked, &self.parts);
            }
            Event::Unreadable(id) => spill.unreadable(id),
            Event::Nothing(stream) => {
                spill.answered(&stream, 0);
                spill.drop_empty(&stream);
            }
            Event::Recovered { stream, batches, events, bytes } => {
                let stream = self.parts.registry.resolve_spooled(&stream);
                stream.label.recovered(events);
                stream.label.enter(events, Place::Spool);
                let _ = spill.add_waiting(&stream, batches, bytes);
            }
            Event::Notice(_) | Event::Left(_) => (),
        }
    }

    fn take_back(&mut self, id: u64, now: Instant) {
        let Some(spill) = &mut self.spill else { return };
        let items = spill.refused(id, now);
        let Some(stream) = items.first().map(|item| Arc::clone(&item.tickets()[0].0.stream)) else { return };
        let queue = self.open_queue(&stream, now);
        for item in items.into_iter().rev() {
            self.streams.get_mut(&queue).expect("it was opened").put_back(item);
        }
        self.offer(queue, now);
    }

    /// Writes what there is too much of, and reads back what there is room for.
    pub(super) fn spill(&mut self, now: Instant) {
        while let Some(event) = self.spill.as_mut().and_then(|spill| spill.keeper.events.try_recv().ok()) {
            self.hear(event, now);
        }
        let Some(spill) = &mut self.spill else { return };
        if spill.leaving.is_some() {
            return self.leave_further(now);
        }
        if spill.look_at.is_some_and(|at| at > now) {
            if spill.may_recall(now) {
                self.recall(now);
            }
            return;
        }
        spill.look_at = Some(now + LOOK_EVERY);
        self.released |= spill.charge_index();
        if spill.paused_until.is_none_or(|until| now >= until) {
            self.spill_over();
        }
        self.recall(now);
    }
}

#[cfg(test)]
mod tests;
