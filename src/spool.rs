//! The spool: sealed batches on disk. This file and those beside it named `format`, `segment`, `index`, `writer`,
//! `marks` and `recovery` are a pure state machine: it asks for file operations ([`Spool::next_op`]), is told what
//! became of them ([`Spool::completed`]), and says what it has learned ([`Spool::next_event`]). It reads no clock
//! (milliseconds are passed in), touches no file and holds no lock, so that a simulation can drive it over a disk
//! that loses, tears, reorders and flips. `executor` runs it on real files, `keeper` is what delivery talks to.
//!
//! # What it promises
//!
//! - A batch for which [`Event::Stored`] was said is on disk: written whole, its file's bytes fsynced
//!   (`fdatasync`), and its file's name fsynced (the directory, once a file) before the first batch of it counts.
//! - Whatever is on disk and not marked done is found again by whoever adopts the directory, and delivered. What
//!   cannot be read is counted by its events, and never stops what stands around it.
//! - Doubt repeats and never loses: a done mark that is lost or damaged delivers its batch once more.
//! - No error of the disk ends the process. A batch that is not taken stays with the caller
//!   ([`Event::Refused`]), whose memory policy decides; each later batch tries anew once [`RETRY_AFTER`] has
//!   passed.
//!
//! # Files
//!
//! `DIR/INSTANCE/` belongs to one process, which holds a lock (flock) on it; `DIR/INSTANCE/00000001.seg` is a
//! segment of batches, `00000001.done` its done marks. `DIR/quarantine/INSTANCE-00000001.seg` is a segment in which
//! something could not be read, put aside once everything else in it was delivered. A process always starts with
//! an empty directory of its own and adopts every other whose lock is free, at start and every few seconds: a
//! restart, a crash and a rolling replacement are the same case. Nobody appends to an adopted segment; its done
//! marks are appended to its own file. A directory without segments is removed.
//!
//! # Format (version 1, little endian)
//!
//! A file starts with two equal copies of its header: magic, version, kind, a random salt, CRC32C. The meaning of
//! those 32 bytes never changes, so an older relay knows a newer file: it leaves that directory alone and says so.
//! A batch is a header of 128 bytes, its lines, and the header again as a trailer: magic, version, encoding,
//! flags, events, sequence, time of the oldest event, length and CRC32C of the lines, the file's salt, its own
//! offset, the stream's name, up to where the segment was synced, and a CRC32C of all that. Lines are the one encoding: any destination can be fed from
//! them, and which delivery stream a stream is mapped to is decided when a call is made. A sealed segment ends with
//! an index (offset, length, events, CRC, sequence, time, stream of every batch), its CRC, and a tail that is found
//! from the file's end. A done mark is 16 bytes: magic, offset of the batch, half of its sequence, CRC32C seeded with
//! the salt. Only the bytes that a CRC covers are believed; the salt keeps what a payload contains from passing
//! for a header.
//!
//! # A segment's life
//!
//! *Open*: appended to, by groups: while one fsync runs, the next group gathers (group commit). *Sealed*: at
//! [`Limits::segment_bytes`] the index is appended and fsynced. *Done*: every batch is settled; it is removed, or
//! first kept for `keep_sent`: segment first, then fsync of the directory, then its marks, so that marks never go
//! before what they mark. *Quarantined* instead, where a batch of it was damaged.
//!
//! *Poisoned*: an fsync failed. What the disk holds is unknown, and a second fsync would not tell (the kernel
//! reports an error once), so that descriptor is closed and never synced again. The group is written into a new
//! segment from memory; earlier batches of the poisoned one, whose memory is gone, are read back, checked and
//! written anew under the same sequence. Then it is removed. After a crash in between, the later copy counts and
//! the earlier one stands by should the later be damaged. A batch that cannot be read to be moved is damaged, unless
//! the caller has it in memory: then it stays, and the caller is told ([`Event::Unreadable`]). A failed *write* needs
//! less: what was synced before stays good, and the next group goes to a new segment.
//!
//! # Recovery
//!
//! For a sealed segment the tail, the index and the marks are read: time and memory depend on the number of batches
//! and not on their bytes. Where there is no good index (the last segment of a killed process, or a damaged
//! one), headers are walked from one to the next; a damaged one is replaced by its trailer, or the next good
//! header is searched for by its magic. A batch that reaches beyond the end of its file was never synced and is
//! passed over; one that is all there and fails its CRC when it is read is damaged. Every batch says up to where
//! its segment was synced when it was written. What is missing before the last such place is damage: the segment is
//! put aside. What is missing behind it was torn when power went, or damaged since, which nothing can tell: a batch
//! of it that is known is counted as one that cannot be read, and the end is mentioned in the log.
//!
//! # Limits
//!
//! Bytes on disk (`bytes_max`), bytes left free on the file system (`free_floor`), batches (`batches_max`, since each
//! takes about [`BATCH_MEMORY_BYTES`] of memory), bytes a group (`group_bytes`): what is put together to be written, and
//! what is read back to be moved, is the memory that the spool takes beside what its caller holds.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;

mod executor;
pub mod format;
mod host;
mod index;
pub mod keeper;
mod lines;
mod marks;
mod notice;
mod op;
mod reader;
mod recovery;
mod segment;
#[cfg(test)]
mod tests;
mod writer;

use self::format::BatchHeader;
pub use self::format::Kind;
use self::index::{Entry, Index, Where};
pub use self::lines::Lines;
use self::marks::Chore;
pub use self::notice::Notice;
pub use self::op::{File, Listed, Op, OpId, OpResult};
use self::recovery::Adoption;
use self::segment::{Phase, Segment};
use self::writer::{Job, Writer};

/// After an error of the disk nothing is tried for so long, in milliseconds.
pub const RETRY_AFTER: u64 = 1_000;
/// What a batch on disk takes in memory, about, in bytes.
pub const BATCH_MEMORY_BYTES: u64 = 256;
/// Done marks are gathered for so long before they are written, in milliseconds.
const MARKS_EVERY: u64 = 100;
/// An open segment whose batches are all done is given up after so long without a new one, in milliseconds.
const IDLE_SEGMENT: u64 = 5_000;
/// How old a figure of the free space may be, in milliseconds.
const SPACE_EVERY: u64 = 1_000;
/// The directory of this process; adopted ones count on from here.
pub const OWN: u32 = 0;
/// Set in the ids that the spool gives to batches that it found.
const FOUND_ID: u64 = 1 << 63;

/// The bounds of a spool.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of all files, adopted ones too.
    pub bytes_max: u64,
    /// Bytes that are left free on the file system.
    pub free_floor: u64,
    /// Batches on disk.
    pub batches_max: usize,
    /// A segment is sealed when it has grown to this, in bytes.
    pub segment_bytes: u64,
    /// Bytes that are written before one fsync, and as many that are read back to be moved; a larger batch goes alone.
    pub group_bytes: u64,
    /// How long a segment is kept once everything in it is delivered, in milliseconds.
    pub keep_sent: u64,
}

/// What the machine has learned.
#[derive(Clone, Debug)]
pub enum Event {
    /// The batch is safe on disk; its memory may go.
    Stored(u64),
    /// The batch is not on disk: it stays with the caller.
    Refused(u64, Refusal),
    /// A stored batch that the caller has in memory could not be read to be moved elsewhere. It stays where it stands,
    /// and may be readable for whoever comes next; the caller should not let go of it before it has stored it anew.
    Unreadable(u64),
    /// A batch that was asked for.
    Loaded {
        /// Which.
        id: u64,
        /// What is known of it.
        header: BatchHeader,
        /// Its lines.
        lines: Bytes,
        /// Whether an earlier process that ended without order may have delivered it.
        is_doubtful: bool,
    },
    /// A batch that cannot be read; it is settled.
    Damaged {
        /// Which.
        id: u64,
        /// What is known of it.
        header: BatchHeader,
        /// Whether it was asked for; else it waited on disk, and was found out by the way.
        was_asked: bool,
    },
    /// A batch of this stream was asked for, and none waits: what did was found to be damaged meanwhile.
    Nothing(Arc<str>),
    /// Batches of a stream that an earlier process left.
    Recovered {
        /// The stream.
        stream: Arc<str>,
        /// How many batches.
        batches: u64,
        /// Their events.
        events: u64,
        /// The bytes of their lines.
        bytes: u64,
    },
    /// Something that an operator should read.
    Notice(Notice),
    /// An adopted directory is left alone: its lock should be given up.
    Left(u32),
}

/// Why a batch is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// `bytes_max` is reached.
    Limit,
    /// `free_floor` is reached.
    Floor,
    /// `batches_max` is reached.
    Batches,
    /// The disk failed a moment ago.
    Failing,
}

/// What an operation under way is for.
#[derive(Clone, Debug)]
enum Purpose {
    Writer,
    /// With where the batch stood when it was asked for.
    Fetch(u64, Where),
    Move(u64),
    Chore(Chore),
    Adopt,
    Space,
    Close,
}

/// The state machine.
#[derive(Debug)]
pub struct Spool {
    limits: Limits,
    /// Of a generator of salts: numbers that no payload can foresee where the seed is random.
    seed: u64,
    index: Index,
    segments: BTreeMap<(u32, u32), Segment>,
    next_number: u32,
    next_sequence: u64,
    next_found: u64,
    writer: Writer,
    /// Batches to write, in order.
    queue: VecDeque<Job>,
    queue_bytes: u64,
    /// Bytes of the group that is being written, which no segment counts yet.
    group_bytes: u64,
    /// Batches in poisoned segments, to be read back and written anew.
    moves: VecDeque<u64>,
    is_moving: bool,
    /// Bytes of those that were read back and are not written yet.
    moving_bytes: u64,
    /// A read for a move failed; not before this instant again, in milliseconds.
    moves_at: u64,
    adoptions: VecDeque<Adoption>,
    /// How many segments of each adopted directory are not gone yet, and whether it may be removed then.
    dirs: BTreeMap<u32, Dir>,
    fetches: VecDeque<u64>,
    /// Reads that failed, to be tried again: when, in milliseconds, and which batch.
    rereads: VecDeque<(u64, u64)>,
    chores: VecDeque<Chore>,
    marks_due: u64,
    ops: HashMap<OpId, Purpose>,
    next_op: u64,
    events: VecDeque<Event>,
    is_failing: bool,
    /// Fsyncs that failed in a row.
    sync_failures: u32,
    retry_at: u64,
    free: Option<u64>,
    free_at: Option<u64>,
    asking_space: bool,
    quarantined_bytes: u64,
    damaged_segments: u64,
    appended_at: u64,
    is_stopping: bool,
    closes: VecDeque<File>,
}

/// An adopted directory.
#[derive(Clone, Copy, Debug, Default)]
struct Dir {
    is_adopted: bool,
    is_kept: bool,
    is_removing: bool,
    is_doubtful: bool,
}

impl Spool {
    /// Other bounds from now on, as in [`Limits`]. What is on disk beyond them stays, and nothing joins it meanwhile.
    pub fn limit(&mut self, bytes_max: u64, free_floor: u64, keep_sent: u64) {
        self.limits = Limits { bytes_max, free_floor, keep_sent, ..self.limits };
    }

    /// An empty spool. `seed` must be random, since salts are drawn from it; a simulation gives its own.
    pub fn new(limits: Limits, seed: u64) -> Self {
        Self {
            limits,
            seed,
            index: Index::default(),
            segments: BTreeMap::new(),
            next_number: 1,
            next_sequence: 0,
            next_found: FOUND_ID,
            writer: Writer::Idle,
            queue: VecDeque::new(),
            queue_bytes: 0,
            group_bytes: 0,
            moves: VecDeque::new(),
            is_moving: false,
            moving_bytes: 0,
            moves_at: 0,
            adoptions: VecDeque::new(),
            dirs: BTreeMap::new(),
            fetches: VecDeque::new(),
            rereads: VecDeque::new(),
            chores: VecDeque::new(),
            marks_due: 0,
            ops: HashMap::new(),
            next_op: 0,
            events: VecDeque::new(),
            is_failing: false,
            sync_failures: 0,
            retry_at: 0,
            free: None,
            free_at: None,
            asking_space: false,
            quarantined_bytes: 0,
            damaged_segments: 0,
            appended_at: 0,
            is_stopping: false,
            closes: VecDeque::new(),
        }
    }

    /// Gives a batch to be stored: [`Event::Stored`] or [`Event::Refused`] follows. `id` is the caller's, below
    /// 2⁶³ and not used before. The caller holds the batch until it lets go of it with [`Spool::release`] or
    /// settles it with [`Spool::done`].
    pub fn append(&mut self, id: u64, batch: NewBatch, now: u64) {
        let header = BatchHeader {
            stream: batch.stream,
            sequence: self.next_sequence,
            events: batch.events,
            oldest: batch.oldest,
            is_unknown: batch.is_unknown,
            length: u32::try_from(batch.lines.bytes()).unwrap_or(u32::MAX),
            // Known once they are put together, to be written.
            crc: 0,
        };
        if let Some(refusal) = self.refusal(header.span(), now) {
            self.events.push_back(Event::Refused(id, refusal));
            return;
        }
        self.next_sequence += 1;
        self.queue_bytes += header.span();
        self.index.insert(id, Entry::queued(header));
        self.queue.push_back(Job { id, lines: batch.lines, is_move: false });
    }

    /// Why `bytes` more cannot be taken now.
    fn refusal(&mut self, bytes: u64, now: u64) -> Option<Refusal> {
        if self.is_failing && now < self.retry_at {
            return Some(Refusal::Failing);
        }
        if self.index.len() >= self.limits.batches_max {
            return Some(Refusal::Batches);
        }
        let wanted = self.queue_bytes + self.group_bytes + self.poisoned_bytes() + bytes;
        if self.free.is_some_and(|free| free < self.limits.free_floor.saturating_add(wanted)) {
            self.forget_kept(now);
            return Some(Refusal::Floor);
        }
        let after = self.bytes() + wanted;
        // Kept segments go a little early: what is being removed takes its room until it is gone.
        if after > self.limits.bytes_max / 8 * 7 {
            self.forget_kept(now);
        }
        (after > self.limits.bytes_max).then_some(Refusal::Limit)
    }

    /// What is to be written anew while it still takes its room in a poisoned segment.
    fn poisoned_bytes(&self) -> u64 {
        let is_poisoned = |segment: &&Segment| segment.phase == Phase::Poisoned && !segment.live.is_empty();
        self.segments.values().filter(is_poisoned).map(|segment| segment.length).sum()
    }

    /// The caller drops a stored batch from memory, to fetch it later. `is_unknown`: a call with it ended without a
    /// known outcome.
    pub fn release(&mut self, id: u64, is_unknown: bool) {
        self.index.release(id, is_unknown);
    }

    /// The batch is settled: delivered, or dropped and counted.
    pub fn done(&mut self, id: u64, now: u64) {
        let Some(entry) = self.index.get_mut(id) else { return };
        entry.is_done = true;
        match entry.place {
            // What is still queued is not written at all, and what is being written is marked when it is stored.
            Where::Queued => self.unqueue(id),
            Where::Writing => (),
            Where::Stored { .. } => self.settle(id, now),
        }
    }

    fn unqueue(&mut self, id: u64) {
        if let Some(at) = self.queue.iter().position(|job| job.id == id && !job.is_move) {
            self.queue.remove(at);
            if let Some(entry) = self.index.remove(id) {
                self.queue_bytes -= entry.header.span();
            }
        }
    }

    /// Takes over a directory whose lock is held, under a number that was not used before. `is_doubtful`: whoever
    /// had it ended without order, so that what is found in it may have been delivered.
    pub fn adopt(&mut self, dir: u32, files: &[Listed], is_doubtful: bool) {
        self.dirs.insert(dir, Dir { is_doubtful, ..Dir::default() });
        self.adoptions.push_back(Adoption::new(dir, files));
    }

    /// Seals, marks and syncs everything; [`Spool::is_idle`] tells when that is done.
    pub fn stop(&mut self) {
        self.is_stopping = true;
    }

    /// Whether nothing is under way, and nothing is left to write.
    pub fn is_idle(&self) -> bool {
        let nothing_to_write = self.queue.is_empty()
            && matches!(self.writer, Writer::Idle)
            && (self.moves.is_empty() || self.is_failing)
            && self.fetches.is_empty()
            && self.rereads.is_empty();
        // What failed once is not waited for.
        let has_failed = |segment: &Segment| self.is_failing || segment.wait_until > 0;
        let is_settled = |segment: &Segment| segment.marks.is_settled() || has_failed(segment);
        let is_sealed = |segment: &Segment| segment.phase != Phase::Open || has_failed(segment);
        let is_gone =
            |segment: &Segment| !segment.is_over() || self.limits.keep_sent > 0 || has_failed(segment);
        nothing_to_write
            && self.ops.is_empty()
            && self.events.is_empty()
            && self.closes.is_empty()
            && self.chores.is_empty()
            && self
                .segments
                .values()
                .all(|segment| is_settled(segment) && is_sealed(segment) && is_gone(segment))
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        let adopting = self.adoptions.iter().map(Adoption::bytes).sum::<u64>();
        self.segments.values().map(Segment::bytes).sum::<u64>() + adopting + self.quarantined_bytes
    }

    /// Segments in which something could not be read, since the start.
    pub fn damaged_segments(&self) -> u64 {
        self.damaged_segments
    }

    /// When the oldest event of each stream was received of what nobody holds in memory, in milliseconds since 1970.
    pub fn oldest(&self) -> HashMap<Arc<str>, u64> {
        self.index.oldest_of_all()
    }

    /// Whether the last write or fsync failed.
    pub fn is_failing(&self) -> bool {
        self.is_failing
    }

    /// Batches on disk or on their way to it.
    pub fn batches(&self) -> usize {
        self.index.len()
    }

    /// Whether any segment, of this process or adopted, is left in the directory.
    pub fn has_files(&self, dir: u32) -> bool {
        self.segments.keys().any(|(of, _)| *of == dir)
    }

    /// Whether something in the directory may have been delivered although neither its mark nor its header says so:
    /// a disk that failed, a call that ended without a known outcome, or an earlier process that ended without
    /// order. An orderly end must not be noted then.
    pub fn is_doubtful(&self, dir: u32) -> bool {
        self.dirs.get(&dir).is_some_and(|dir| dir.is_doubtful)
            || self.index.is_doubtful(dir)
            || self.segments.iter().any(|((of, _), segment)| *of == dir && segment.is_doubtful())
    }

    /// When [`Spool::next_op`] may have something although nothing has happened, in milliseconds from now.
    pub fn wakes_after(&self) -> u64 {
        let waits_soon = self.segments.values().any(|segment| !segment.marks.is_settled());
        if waits_soon { MARKS_EVERY } else { SPACE_EVERY }
    }

    /// The next operation to start, if there is one. Any number may be under way; their results may come in any
    /// order.
    pub fn next_op(&mut self, now: u64) -> Option<(OpId, Op)> {
        let (op, purpose) = self.next_purpose(now)?;
        let id = OpId(self.next_op);
        self.next_op += 1;
        self.ops.insert(id, purpose);
        Some((id, op))
    }

    fn next_purpose(&mut self, now: u64) -> Option<(Op, Purpose)> {
        if let Some(file) = self.closes.pop_front() {
            return Some((Op::Close(file), Purpose::Close));
        }
        if let Some(op) = self.next_write(now) {
            return Some((op, Purpose::Writer));
        }
        if let Some(id) = self.next_reread(now) {
            self.fetches.push_back(id);
        }
        if let Some(fetch) = self.next_fetch() {
            return Some(fetch);
        }
        if let Some((id, op)) = self.next_move(now) {
            return Some((op, Purpose::Move(id)));
        }
        if let Some((op, chore)) = self.next_chore(now) {
            return Some((op, Purpose::Chore(chore)));
        }
        if let Some(op) = self.next_adoption(now) {
            return Some((op, Purpose::Adopt));
        }
        let is_due = self.free_at.is_none_or(|at| now >= at + SPACE_EVERY);
        if is_due && !self.asking_space && !self.is_stopping {
            self.asking_space = true;
            return Some((Op::Space, Purpose::Space));
        }
        None
    }

    /// What became of an operation.
    pub fn completed(&mut self, id: OpId, result: OpResult, now: u64) {
        let Some(purpose) = self.ops.remove(&id) else { return };
        match purpose {
            Purpose::Writer => self.wrote(result, now),
            Purpose::Fetch(id, place) => self.fetched(id, place, result, now),
            Purpose::Move(id) => self.read_to_move(id, result, now),
            Purpose::Chore(chore) => self.chore_done(chore, &result, now),
            Purpose::Adopt => self.adopted(result, now),
            Purpose::Close => (),
            Purpose::Space => {
                self.asking_space = false;
                self.free_at = Some(now);
                if let OpResult::Space(free) = result {
                    self.free = Some(free);
                }
            }
        }
    }

    /// What was learned since the last time.
    pub fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    fn salt(&mut self) -> u32 {
        // SplitMix64: every seed gives a different sequence.
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.seed ^ (self.seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed >> 32) as u32
    }
}

/// A batch to be stored.
#[derive(Clone, Debug)]
pub struct NewBatch {
    /// Its stream: at most 64 octets, as the protocol has it.
    pub stream: Arc<str>,
    /// Its events, each followed by one LF.
    pub lines: Lines,
    /// How many they are.
    pub events: u32,
    /// When the oldest was received, in milliseconds since 1970.
    pub oldest: u64,
    /// Whether some may have been delivered already.
    pub is_unknown: bool,
}
