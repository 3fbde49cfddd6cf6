//! Delivery's side of the spool: what is written to disk and when, what is read back and when, and how the fate of
//! a batch on disk finds the tickets of those whose events it holds. It knows no file.
//!
//! A batch that goes to disk gets an id, and a ticket of its own ([`SPOOL`] stands for its shard): whatever calls
//! are made with it later settle that one, and with it, here, the tickets that it stands for. In `overflow` a
//! stream over its share writes its oldest queued batches, and their memory goes home once they are synced; in
//! `always` every batch is written while it goes its way, and where memory is short its copy in memory is simply
//! let go of. What is on disk comes back oldest first, with at most an eighth of memory and half of a lane's calls.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::piece::{self, Loose, Piece};
use super::queues::{Item, StreamQueue};
use super::{Delivery, Parts};
use crate::batch::{BatchId, Fate, SPOOL, Settled, Ticket};
use crate::config::SpoolMode;
use crate::destination::{Encoding, Outcome};
use crate::encode::CALL_BYTES_MAX;
use crate::memory::{Account, Charge};
use crate::metrics::{Drop, Place};
use crate::queue::Returns;
use crate::spool::format::BatchHeader;
use crate::spool::keeper::{Command, Keeper, Part};
use crate::spool::{BATCH_MEMORY_BYTES, Event};
use crate::stream::Stream;

/// How often all streams are looked at, whatever happens.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// The same, where nothing is on disk.
const LOOK_IDLE: Duration = Duration::from_secs(1);
/// After a batch was refused nothing is spilled for so long: the memory policy decides meanwhile.
const REFUSED_PAUSE: Duration = Duration::from_millis(500);
/// Smaller batches of a stream go to disk together, up to this many bytes.
const TOGETHER_BYTES: usize = 1 << 20;

/// One batch that is on disk or on its way to it.
#[derive(Debug)]
struct Spilled {
    stream: Arc<Stream>,
    /// Whose events it holds.
    origins: Vec<(Arc<Ticket>, u64)>,
    events: u64,
    bytes: u64,
    is_stored: bool,
    /// Whether the spool has not said yet what became of it.
    is_pending: bool,
    /// What is in memory until it is stored; empty where a queue holds it, or nobody.
    items: Vec<Item>,
}

/// What waits on disk of one stream.
#[derive(Debug)]
struct Waiting {
    stream: Arc<Stream>,
    batches: u64,
    bytes: u64,
    /// Batches asked for, and batches in memory again.
    asked: usize,
    here: usize,
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
    paused_until: Option<Instant>,
    look_at: Option<Instant>,
    leaving: Option<Leaving>,
}

/// The last part of a drain.
#[derive(Debug)]
struct Leaving {
    cut_at: Instant,
    was_cut: bool,
    /// Something was refused: it stays in its queue, to be dropped.
    is_full: bool,
    done: Option<oneshot::Sender<()>>,
}

/// What the spool has to say next; never where there is none.
pub(super) async fn next_event(spill: &mut Option<Spill>) -> Event {
    match spill {
        Some(spill) => {
            let pause = tokio::time::sleep(if spill.is_resting() { LOOK_IDLE } else { 5 * LOOK_EVERY });
            tokio::select! {
                Some(event) = spill.keeper.events.recv() => event,
                // A look at all streams is due: that no event came is as good as one about no batch.
                () = pause => Event::Stored(u64::MAX),
            }
        }
        None => std::future::pending().await,
    }
}

/// What a call is told that is cut off at the end.
pub(super) fn cut_off() -> Outcome {
    Outcome::Unknown { message: "The process ends, and the call was cut off.".to_owned() }
}

/// Whether no more calls are made.
pub(super) fn is_leaving(spill: &Option<Spill>) -> bool {
    spill.as_ref().is_some_and(|spill| spill.leaving.is_some())
}

/// The ticket under which a sealed batch goes its way: in `always`, that of the batch on disk.
pub(super) fn wrap(spill: &mut Option<Spill>, ticket: Arc<Ticket>) -> Arc<Ticket> {
    match spill {
        Some(spill) if spill.mode == SpoolMode::Always => spill.wrap(ticket),
        _ => ticket,
    }
}

/// Writes a batch to disk that was wrapped, while it goes its way.
pub(super) fn write_through(spill: &mut Option<Spill>, ticket: &Ticket, item: &Item, encoding: Encoding) {
    if let Some(spill) = spill.as_mut().filter(|_| ticket.id.shard == SPOOL) {
        let part = item.part(encoding);
        if let Some(spilled) = spill.batches.get_mut(&ticket.id.sequence) {
            spilled.bytes = item.bytes() as u64;
        }
        spill.append(ticket.id.sequence, &ticket.stream, vec![part], ticket.events, ticket.oldest, false);
    }
}

/// Counts what is on its way to disk as dropped: nobody waits for it any more.
pub(super) fn abandon(spill: &mut Option<Spill>) {
    let Some(spill) = spill else { return };
    for spilled in spill.batches.values_mut().filter(|spilled| !spilled.items.is_empty()) {
        spilled.items.clear();
        spilled.stream.label.leave(spilled.events, Place::Spool);
        spilled.stream.label.dropped(spilled.events, Drop::DrainDeadline);
    }
}

impl Item {
    fn part(&self, encoding: Encoding) -> Part {
        match self {
            Item::Loose(loose) => Part::Lines(loose.lines()),
            Item::Piece(piece) if encoding == Encoding::Records => {
                Part::Records(piece.body(), piece.records().to_vec())
            }
            Item::Piece(piece) => Part::Lines(piece.body()),
        }
    }

    fn tickets(&self) -> Vec<(Arc<Ticket>, u64)> {
        match self {
            Item::Loose(loose) => vec![loose.shares()],
            Item::Piece(piece) => piece.tickets(),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Item::Loose(loose) => loose.bytes(),
            Item::Piece(piece) => piece.bytes(),
        }
    }

    fn charged(&self) -> u64 {
        match self {
            Item::Loose(loose) => loose.charged(),
            Item::Piece(piece) => piece.charged(),
        }
    }

    fn events(&self) -> u64 {
        match self {
            Item::Loose(loose) => loose.events(),
            Item::Piece(piece) => piece.events(),
        }
    }

    fn oldest(&self) -> Instant {
        match self {
            Item::Loose(loose) => loose.oldest(),
            Item::Piece(piece) => piece.oldest(),
        }
    }

    fn is_unknown(&self) -> bool {
        matches!(self, Item::Piece(piece) if piece.is_unknown || piece.is_doubtful)
    }

    fn place(&self) -> Place {
        match self {
            Item::Loose(_) => Place::Queued,
            Item::Piece(piece) => piece.place(),
        }
    }
}

impl Spill {
    pub(super) fn new(keeper: Keeper, parts: &Parts) -> Self {
        let account: Arc<Account> = Arc::default();
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
            paused_until: None,
            look_at: None,
            leaving: None,
        }
    }

    /// Whether nothing waits on disk, or is on its way there or back.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.writing_bytes == 0
    }

    fn is_resting(&self) -> bool {
        self.is_empty() && self.batches.is_empty() && self.leaving.is_none()
    }

    fn command(&self, command: Command) {
        // The thread is gone only when the process is about to end.
        let _ = self.keeper.commands.send(command);
    }

    fn wrap(&mut self, ticket: Arc<Ticket>) -> Arc<Ticket> {
        let id = BatchId { shard: SPOOL, sequence: self.next_id };
        self.next_id += 1;
        let stream = Arc::clone(&ticket.stream);
        let (events, oldest, sealed) = (ticket.events, ticket.oldest, ticket.sealed);
        let spilled = Spilled {
            stream: Arc::clone(&stream),
            origins: vec![(ticket, events)],
            events,
            bytes: 0,
            is_stored: false,
            is_pending: true,
            items: Vec::new(),
        };
        self.batches.insert(id.sequence, spilled);
        Arc::new(Ticket::new(id, stream, events, oldest, sealed))
    }

    fn append(
        &self,
        id: u64,
        stream: &Stream,
        parts: Vec<Part>,
        events: u64,
        oldest: Instant,
        is_unknown: bool,
    ) {
        let stream = Arc::clone(&stream.name);
        self.command(Command::Append { id, stream, parts, events, oldest, is_unknown });
    }

    /// Brings an item to disk: lets go of it where it is there already; else gives it back, to be written.
    fn let_go(&mut self, item: Item) -> Option<Item> {
        let tickets = item.tickets();
        // The next process is to know that it may have been delivered: so it is written anew, with that.
        if self.leaving.is_some() && matches!(&item, Item::Piece(piece) if piece.is_unknown) {
            return Some(item);
        }
        let is_on_disk = |(ticket, events): &(Arc<Ticket>, u64)| {
            ticket.id.shard == SPOOL
                && *events == ticket.events
                && ticket.unsettled() == ticket.events
                && self.batches.get(&ticket.id.sequence).is_some_and(|spilled| spilled.is_stored)
        };
        if !tickets.iter().all(is_on_disk) {
            return Some(item);
        }
        for (ticket, events) in &tickets {
            self.command(Command::Release(ticket.id.sequence, item.is_unknown()));
            let bytes = self.batches.get(&ticket.id.sequence).map_or(0, |spilled| spilled.bytes);
            self.forget_recalled(ticket.id.sequence);
            self.add_waiting(&ticket.stream, 1, bytes);
            ticket.stream.label.enter(*events, Place::Spool);
        }
        let stream = &tickets[0].0.stream;
        stream.label.leave(item.events(), item.place());
        None
    }

    /// Whether an item waits for its batch to be stored, and must not be written once more.
    fn is_being_stored(&self, item: &Item) -> bool {
        item.tickets().iter().any(|(ticket, _)| {
            let spilled = self.batches.get(&ticket.id.sequence);
            ticket.id.shard == SPOOL && spilled.is_some_and(|spilled| spilled.is_pending)
        })
    }

    /// Writes items of one stream as one batch.
    fn write(&mut self, items: Vec<Item>, encoding: Encoding) {
        let Some(oldest) = items.iter().map(Item::oldest).min() else { return };
        let id = self.next_id;
        self.next_id += 1;
        let origins: Vec<(Arc<Ticket>, u64)> = items.iter().flat_map(Item::tickets).collect();
        let stream = Arc::clone(&origins[0].0.stream);
        let events = items.iter().map(Item::events).sum();
        let charged: u64 = items.iter().map(Item::charged).sum();
        for item in &items {
            stream.label.enter(item.events(), Place::Spool);
            stream.label.leave(item.events(), item.place());
        }
        let parts = items.iter().map(|item| item.part(encoding)).collect();
        let is_unknown = items.iter().any(Item::is_unknown);
        self.append(id, &stream, parts, events, oldest, is_unknown);
        *self.writing.entry(stream.id).or_default() += charged;
        self.writing_bytes += charged;
        let bytes = items.iter().map(|item| item.bytes() as u64).sum();
        let (is_stored, is_pending) = (false, true);
        self.batches.insert(id, Spilled { stream, origins, events, bytes, is_stored, is_pending, items });
    }

    fn add_waiting(&mut self, stream: &Arc<Stream>, batches: u64, bytes: u64) -> &mut Waiting {
        let waiting = self.waiting.entry(Arc::clone(&stream.name)).or_insert_with(|| {
            self.turns.push_back(Arc::clone(&stream.name));
            Waiting { stream: Arc::clone(stream), batches: 0, bytes: 0, asked: 0, here: 0 }
        });
        waiting.batches += batches;
        waiting.bytes += bytes;
        waiting
    }

    /// A batch is no longer in memory, or no longer anywhere.
    fn forget_recalled(&mut self, id: u64) {
        let Some(bytes) = self.recalled.remove(&id) else { return };
        self.recalled_bytes -= bytes;
        if let Some(spilled) = self.batches.get(&id)
            && let Some(waiting) = self.waiting.get_mut(&spilled.stream.name)
        {
            waiting.here = waiting.here.saturating_sub(1);
        }
    }

    fn charge_index(&mut self) {
        let on_disk: u64 = self.waiting.values().map(|waiting| waiting.batches).sum();
        self.index.set((self.batches.len() as u64).max(on_disk) * BATCH_MEMORY_BYTES);
    }

    /// What an item being written holds in memory is no longer on its way.
    fn no_longer_writing(&mut self, stream: u64, items: &[Item]) {
        let charged: u64 = items.iter().map(Item::charged).sum();
        self.writing_bytes -= charged;
        if let Some(bytes) = self.writing.get_mut(&stream) {
            *bytes -= charged;
            if *bytes == 0 {
                self.writing.remove(&stream);
            }
        }
    }

    /// A batch is synced: its memory goes, and whoever waits hears of it.
    fn stored(&mut self, id: u64, returns: &[Returns]) {
        let Some(spilled) = self.batches.get_mut(&id) else { return };
        spilled.is_stored = true;
        spilled.is_pending = false;
        for (ticket, events) in &spilled.origins {
            ticket.store(*events);
            tell_stored(ticket, returns);
        }
        // What is left of an older batch stands in newer ones: read back, it would be delivered a second time.
        let is_replaced = |(ticket, _): &&(Arc<Ticket>, u64)| ticket.id.shard == SPOOL && ticket.is_stored();
        let replaced: Vec<u64> =
            spilled.origins.iter().filter(is_replaced).map(|(ticket, _)| ticket.id.sequence).collect();
        let items = std::mem::take(&mut spilled.items);
        let (stream, bytes) = (Arc::clone(&spilled.stream), spilled.bytes);
        if !items.is_empty() {
            self.no_longer_writing(stream.id, &items);
            self.add_waiting(&stream, 1, bytes);
            self.command(Command::Release(id, false));
        }
        replaced.into_iter().for_each(|id| self.command(Command::Done(id)));
    }

    /// A batch is not on disk: what it held goes back to where it was.
    fn refused(&mut self, id: u64, now: Instant) -> Vec<Item> {
        self.paused_until = Some(now + REFUSED_PAUSE);
        if let Some(leaving) = &mut self.leaving {
            leaving.is_full = true;
        }
        let Some(spilled) = self.batches.get_mut(&id) else { return Vec::new() };
        if std::mem::take(&mut spilled.is_stored) {
            spilled.origins.iter().for_each(|(ticket, events)| ticket.unstore(*events));
        }
        spilled.is_pending = false;
        let items = std::mem::take(&mut spilled.items);
        if items.is_empty() {
            // A queue holds it, under the ticket of a batch that is on no disk: that changes nothing for it.
            return items;
        }
        let spilled = self.batches.remove(&id).expect("it was just there");
        self.no_longer_writing(spilled.stream.id, &items);
        for item in &items {
            spilled.stream.label.enter(item.events(), item.place());
            spilled.stream.label.leave(item.events(), Place::Spool);
        }
        items
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

    fn drop_empty(&mut self, stream: &Arc<str>) {
        let is_over = |waiting: &Waiting| waiting.batches == 0 && waiting.asked == 0 && waiting.here == 0;
        if self.waiting.get(stream).is_some_and(is_over) {
            self.waiting.remove(stream);
            self.turns.retain(|name| name != stream);
        }
    }

    /// A batch of a stream that was asked for has come, or cannot.
    fn answered(&mut self, stream: &Arc<str>, bytes: u64) {
        if let Some(waiting) = self.waiting.get_mut(stream) {
            waiting.asked = waiting.asked.saturating_sub(1);
        }
        self.asked_bytes = self.asked_bytes.saturating_sub(bytes);
        if self.waiting.values().all(|waiting| waiting.asked == 0) {
            self.asked_bytes = 0;
        }
    }

    /// A batch cannot be read: its events are lost, and counted.
    fn damaged(&mut self, id: u64, header: Option<BatchHeader>, parts: &Parts) {
        if let Some(header) = &header {
            self.answered(&header.stream, u64::from(header.length));
        }
        let (stream, events) = match (self.batches.get(&id), &header) {
            (Some(spilled), _) => (Arc::clone(&spilled.stream), spilled.events),
            (None, Some(header)) => {
                (parts.registry.resolve_spooled(&header.stream), u64::from(header.events))
            }
            (None, None) => return,
        };
        stream.label.leave(events, Place::Spool);
        stream.label.dropped(events, Drop::SpoolDamaged);
        self.settled(Settled { id: BatchId { shard: SPOOL, sequence: id }, lost: events }, &parts.returns);
        self.drop_empty(&stream.name);
    }

    /// Asks for batches of the streams that are ready for them.
    fn recall(&mut self, room: u64, is_ready: impl Fn(&Waiting) -> bool) {
        for _ in 0..self.turns.len() {
            let here = self.recalled_bytes + self.asked_bytes;
            if here >= room && here > 0 {
                return;
            }
            let Some(name) = self.turns.pop_front() else { return };
            self.turns.push_back(Arc::clone(&name));
            let Some(waiting) = self.waiting.get_mut(&name) else { continue };
            if waiting.batches == 0 || waiting.asked + waiting.here >= 8 || !is_ready(waiting) {
                continue;
            }
            let bytes = waiting.bytes / waiting.batches;
            waiting.batches -= 1;
            waiting.bytes -= bytes;
            waiting.asked += 1;
            self.asked_bytes += bytes;
            self.command(Command::Fetch(name));
        }
    }

    /// A batch is back in memory: the pieces that it makes.
    fn loaded(
        &mut self,
        id: u64,
        header: &BatchHeader,
        lines: Bytes,
        parts: &Parts,
        encoding: Encoding,
    ) -> VecDeque<Piece> {
        let memory = &parts.memory;
        let average = u64::from(header.length);
        self.answered(&header.stream, average);
        // Damage elsewhere may have had its stream forgotten: the batch is here all the same.
        let stream = parts.registry.resolve_spooled(&header.stream);
        let stream = self.batches.get(&id).map_or(stream, |spilled| Arc::clone(&spilled.stream));
        self.add_waiting(&stream, 0, 0).here += 1;
        let (now, events) = (Instant::now(), u64::from(header.events));
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let age = since.saturating_sub(Duration::from_millis(header.oldest));
        let oldest = now.checked_sub(age).unwrap_or(now);
        self.recalled.insert(id, u64::from(header.length));
        self.recalled_bytes += u64::from(header.length);
        self.batches.entry(id).or_insert_with(|| Spilled {
            stream: Arc::clone(&stream),
            origins: Vec::new(),
            events,
            bytes: u64::from(header.length),
            is_stored: true,
            is_pending: false,
            items: Vec::new(),
        });
        let charge = Charge::forced(memory, &stream.account, lines.len() as u64);
        let ticket = Ticket::new(BatchId { shard: SPOOL, sequence: id }, stream, events, oldest, now);
        let mut loose = VecDeque::from([Loose::new(Arc::new(ticket), lines, charge, now)]);
        let mut pieces = VecDeque::new();
        while let Some(piece) = piece::pack(&mut loose, encoding, memory) {
            pieces.push_back(piece);
        }
        pieces
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
                self.released = true;
            }
            Event::Refused(id, _) => self.take_back(id, now),
            Event::Loaded { id, header, lines, is_doubtful } => {
                let pieces = spill.loaded(id, &header, lines, &self.parts, self.encoding);
                self.take_recalled(pieces, &header, is_doubtful, now);
            }
            Event::Damaged(id, header) => spill.damaged(id, Some(header), &self.parts),
            Event::Gone(id) => spill.damaged(id, None, &self.parts),
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

    fn take_recalled(
        &mut self,
        pieces: VecDeque<Piece>,
        header: &BatchHeader,
        is_doubtful: bool,
        now: Instant,
    ) {
        let Some(stream) = pieces.front().map(|piece| Arc::clone(piece.stream())) else { return };
        stream.label.enter(u64::from(header.events), Place::Queued);
        stream.label.leave(u64::from(header.events), Place::Spool);
        let id = self.open_queue(&stream, now);
        let queue = self.streams.get_mut(&id).expect("it was opened");
        queue.used_at = now;
        for mut piece in pieces {
            (piece.is_recalled, piece.is_unknown, piece.is_doubtful) = (true, header.is_unknown, is_doubtful);
            queue.push_recalled(piece);
        }
        self.offer(id, now);
    }

    /// Offers what was read back to the lanes again: one of them may take more of it now.
    pub(super) fn offer_recalled(&mut self, now: Instant) {
        let Some(spill) = &self.spill else { return };
        let here = spill.waiting.values().filter(|waiting| waiting.here > 0);
        let streams: HashSet<u64> = here.map(|waiting| waiting.stream.id).collect();
        streams.into_iter().for_each(|stream| self.offer(stream, now));
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
            return;
        }
        spill.look_at = Some(now + LOOK_EVERY);
        spill.charge_index();
        if spill.paused_until.is_none_or(|until| now >= until) {
            self.spill_over();
        }
        self.recall();
    }

    /// Writes the oldest of every stream that is over its share, and of the largest where memory as a whole is.
    fn spill_over(&mut self) {
        let memory = Arc::clone(&self.parts.memory);
        let Some(spill) = &self.spill else { return };
        let mut beyond = memory.beyond_limit().saturating_sub(spill.writing_bytes);
        let mut wanted: Vec<(u64, u64)> = Vec::new();
        for (id, queue) in &self.streams {
            let writing = spill.writing.get(id).copied().unwrap_or(0);
            let over = memory.beyond_share(&queue.stream.account).saturating_sub(writing);
            if over > 0 {
                wanted.push((*id, over));
                beyond = beyond.saturating_sub(over);
            }
        }
        if beyond > 0 {
            let largest = self.streams.iter().max_by_key(|(_, queue)| queue.fresh_bytes());
            wanted.extend(largest.map(|(id, _)| (*id, beyond)));
        }
        for (id, bytes) in wanted {
            self.spill_stream(id, bytes);
        }
    }

    /// Brings about so many bytes of a stream to disk, the oldest first.
    fn spill_stream(&mut self, id: u64, bytes: u64) {
        let (Some(queue), Some(spill)) = (self.streams.get_mut(&id), &mut self.spill) else { return };
        let (mut left, mut together, mut size) = (bytes, Vec::new(), 0);
        let mut kept = Vec::new();
        while left > 0
            && let Some(item) = queue.take_oldest()
        {
            left = left.saturating_sub(item.charged().max(1));
            if spill.is_being_stored(&item) {
                kept.push(item);
                continue;
            }
            let Some(item) = spill.let_go(item) else {
                self.released = true;
                continue;
            };
            if size > 0 && size + item.bytes() > TOGETHER_BYTES.min(CALL_BYTES_MAX) {
                spill.write(std::mem::take(&mut together), self.encoding);
                size = 0;
            }
            size += item.bytes();
            together.push(item);
        }
        spill.write(together, self.encoding);
        kept.into_iter().rev().for_each(|item| queue.put_back(item));
    }

    /// Reads back from disk what there is room for.
    fn recall(&mut self) {
        let memory = &self.parts.memory;
        let room = if memory.beyond_limit() > 0 { 0 } else { memory.limit() / 8 };
        let (streams, lanes) = (&self.streams, &self.lanes);
        let is_ready = |waiting: &Waiting| {
            let stream = &waiting.stream;
            // What comes back must leave room for what arrives. Encoded it is larger by a third.
            let asked = waiting.bytes / waiting.batches.max(1) * (waiting.asked as u64 + 1);
            let is_first = waiting.asked + waiting.here == 0;
            if !is_first && !memory.may_read_back(&stream.account, asked + asked / 3) {
                return false;
            }
            let Some(queue) = streams.get(&stream.id) else { return true };
            let works = queue
                .links
                .iter()
                .any(|link| lanes[link.lane].as_ref().is_some_and(|entry| !entry.policy.is_failing()));
            // Where nothing else tries whether a failing lane works again, this must.
            works || (queue.is_empty() && queue.in_flight.is_empty())
        };
        if let Some(spill) = &mut self.spill {
            spill.recall(room, is_ready);
        }
    }

    /// Makes no more calls and brings everything to disk; calls in flight are cut at `cut_at`.
    pub(super) fn leave(&mut self, cut_at: Instant, done: oneshot::Sender<()>) {
        let Some(spill) = &mut self.spill else {
            let _ = done.send(());
            return;
        };
        spill.leaving = Some(Leaving { cut_at, was_cut: false, is_full: false, done: Some(done) });
    }

    fn leave_further(&mut self, now: Instant) {
        let Some(spill) = &mut self.spill else { return };
        let Some(leaving) = &mut spill.leaving else { return };
        if now >= leaving.cut_at && !std::mem::replace(&mut leaving.was_cut, true) {
            self.cut.send_replace(true);
        }
        let is_full = leaving.is_full;
        if !is_full {
            self.spill_everything();
        }
        let Some(spill) = &mut self.spill else { return };
        let is_settled = self.in_flight == 0
            && spill.writing_bytes == 0
            && (is_full || self.streams.values().all(StreamQueue::is_empty));
        if is_settled && let Some(done) = spill.leaving.as_mut().and_then(|leaving| leaving.done.take()) {
            spill.command(Command::Stop(done));
        }
    }

    fn spill_everything(&mut self) {
        let streams: Vec<u64> = self.streams.keys().copied().collect();
        for id in streams {
            self.spill_stream(id, u64::MAX);
            let (Some(queue), Some(spill)) = (self.streams.get_mut(&id), &mut self.spill) else { continue };
            while let Some(item) = queue.take_recalled() {
                if let Some(item) = spill.let_go(item) {
                    spill.write(vec![item], self.encoding);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
