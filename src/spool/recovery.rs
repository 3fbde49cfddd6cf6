//! Taking over what another process left: which batches stand in each of its segments, and which are done. It reads
//! indexes and marks, and only where there is no good index the headers of batches, never their lines.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use super::format::{
    self, BATCH_HEADER_BYTES, BadHeader, CONTENT_START, FILE_HEADER_BYTES, Found, TAIL_BYTES, Tail,
};
use super::index::{Entry, Where};
use super::segment::{Phase, Segment};
use super::{Event, File, Kind, Listed, Notice, Op, OpResult, RETRY_AFTER, Spool};

/// How much is read at once where headers are walked.
const SCAN_BYTES: u64 = 256 << 10;
/// Reads of one file that fail in a row before it is given up.
const READS_MAX: u8 = 5;

/// What is left to read of one segment.
#[derive(Debug)]
enum Step {
    Head,
    Tail,
    Index(Tail),
    /// Walks headers from this offset on; the window read starts at the second.
    Scan(u64, u64),
    Marks,
    Finished,
}

/// A segment that is being read.
#[derive(Debug)]
struct Reading {
    file: File,
    length: u64,
    /// Length of its marks, and when they were last written.
    marks: Option<(u64, u64)>,
    step: Step,
    salt: Option<u32>,
    found: Vec<Found>,
    done: HashSet<(u32, u32)>,
    is_damaged: bool,
    has_no_index: bool,
    /// Where headers are walked: up to where everything was synced, and from where on something is not whole.
    synced: u64,
    gap: Option<u64>,
}

/// What is under way of an adoption.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum UnderWay {
    Nothing,
    /// Marks without a segment are being removed.
    Orphan,
    /// The first segment, or its marks, is being read.
    Read,
}

/// A directory that is being taken over.
#[derive(Debug)]
pub(super) struct Adoption {
    dir: u32,
    segments: VecDeque<Reading>,
    /// Marks whose segment is gone.
    orphans: Vec<File>,
    under_way: UnderWay,
    /// Reads that failed in a row, and when the next may be tried, in milliseconds.
    failed_reads: u8,
    wait_until: u64,
    /// By sequence: what was found not done, and what was found done.
    seen: HashMap<u64, u64>,
    done: HashSet<u64>,
    /// Of each stream: batches, events and bytes of lines.
    streams: BTreeMap<Arc<str>, (u64, u64, u64)>,
}

impl Adoption {
    pub(super) fn new(dir: u32, files: &[Listed]) -> Self {
        let of = |kind| files.iter().filter(move |file| file.kind == kind);
        let marks: BTreeMap<u32, (u64, u64)> =
            of(Kind::Done).map(|file| (file.number, (file.length, file.modified))).collect();
        let mut segments: Vec<&Listed> = of(Kind::Segment).collect();
        segments.sort_by_key(|file| file.number);
        let numbers: HashSet<u32> = segments.iter().map(|file| file.number).collect();
        let orphans = marks.keys().filter(|number| !numbers.contains(number));
        let orphans = orphans.map(|number| File { dir, number: *number, kind: Kind::Done }).collect();
        let reading = |listed: &Listed| {
            let file = File { dir, number: listed.number, kind: Kind::Segment };
            Reading::new(file, listed.length, marks.get(&listed.number).copied())
        };
        Self {
            dir,
            segments: segments.into_iter().map(reading).collect(),
            orphans,
            under_way: UnderWay::Nothing,
            failed_reads: 0,
            wait_until: 0,
            seen: HashMap::new(),
            done: HashSet::new(),
            streams: BTreeMap::new(),
        }
    }
}

impl Reading {
    fn new(file: File, length: u64, marks: Option<(u64, u64)>) -> Self {
        Self {
            file,
            length,
            marks,
            step: Step::Head,
            salt: None,
            found: Vec::new(),
            done: HashSet::new(),
            is_damaged: false,
            has_no_index: false,
            synced: 0,
            gap: None,
        }
    }

    fn op(&self) -> Option<Op> {
        let (file, offset, length) = match &self.step {
            Step::Head => (self.file, 0, u64::from(CONTENT_START)),
            Step::Tail => (self.file, self.length.saturating_sub(TAIL_BYTES as u64), TAIL_BYTES as u64),
            Step::Index(tail) => (self.file, u64::from(tail.end), u64::from(tail.length)),
            Step::Scan(_, from) => (self.file, *from, SCAN_BYTES),
            Step::Marks => (File { kind: Kind::Done, ..self.file }, 0, self.marks?.0),
            Step::Finished => return None,
        };
        Some(Op::Read { file, offset, length })
    }

    /// Takes what was read.
    fn feed(&mut self, bytes: &[u8]) -> Result<(), u16> {
        match std::mem::replace(&mut self.step, Step::Finished) {
            Step::Head => {
                match format::read_file_header(bytes, Kind::Segment) {
                    Ok(header) => self.salt = Some(header.salt),
                    Err(BadHeader::Newer(version)) => return Err(version),
                    Err(BadHeader::Damaged) => (),
                }
                // A file whose first write never came to the disk as a whole is too short, or begins with zeros.
                let is_blank = bytes.iter().all(|byte| *byte == 0);
                if self.length > 0 && (is_blank || self.length < FILE_HEADER_BYTES as u64) {
                    self.note_gap(0);
                }
                if !is_blank || self.length > u64::from(CONTENT_START) {
                    self.step = Step::Tail;
                }
            }
            Step::Tail => {
                let tail = format::read_tail(bytes, self.length);
                self.salt = self.salt.or(tail.map(|tail| tail.salt));
                self.step = match tail.filter(|tail| self.salt == Some(tail.salt)) {
                    Some(tail) => Step::Index(tail),
                    None => self.scan(),
                };
            }
            Step::Index(tail) => match format::read_index(bytes, &tail) {
                Some(found) => {
                    self.found = found;
                    self.gap = None;
                    self.step = Step::Marks;
                }
                None => self.step = self.scan(),
            },
            Step::Scan(at, from) => self.step = self.walk(at, from, bytes),
            Step::Marks => self.read_marks(bytes),
            Step::Finished => (),
        }
        if matches!(self.step, Step::Marks) && self.marks.is_none_or(|(length, _)| length == 0) {
            self.step = Step::Finished;
        }
        Ok(())
    }

    fn scan(&mut self) -> Step {
        self.has_no_index = true;
        if self.salt.is_some() {
            return Step::Scan(u64::from(CONTENT_START), u64::from(CONTENT_START));
        }
        // Nothing in it can be told from anything else.
        self.is_damaged = self.gap.is_none();
        Step::Finished
    }

    /// From here on something is not whole.
    fn note_gap(&mut self, from: u64) {
        self.gap = Some(self.gap.map_or(from, |gap| gap.min(from)));
    }

    /// No header is behind `at`.
    fn end_walk(&mut self, at: u64) -> Step {
        if at < self.length {
            self.note_gap(at);
        }
        self.is_damaged = self.gap.is_some_and(|gap| gap < self.synced);
        Step::Marks
    }

    fn read_marks(&mut self, bytes: &[u8]) {
        if let (Some(salt), Some(contents)) = (self.salt, bytes.get(CONTENT_START as usize..)) {
            self.done = format::read_marks(contents, salt).collect();
        }
    }

    /// Walks headers through a window that starts at `from`; the next is expected at `at`.
    fn walk(&mut self, mut at: u64, from: u64, window: &[u8]) -> Step {
        let salt = self.salt.expect("nothing is walked without a salt");
        let window_end = from + window.len() as u64;
        // Where to look for the next header, should the one at `at` be bad.
        let mut look = at.max(from);
        loop {
            if look + BATCH_HEADER_BYTES as u64 > window_end {
                let is_end = (window.len() as u64) < SCAN_BYTES || window_end >= self.length;
                return if is_end { self.end_walk(at) } else { Step::Scan(at, look) };
            }
            let bytes = &window[(look - from) as usize..];
            let found = format::read_batch_header(bytes, salt);
            match found {
                Some(found) if u64::from(found.offset) == look => {
                    let end = look + found.header.span();
                    if look > at {
                        self.note_gap(at);
                    }
                    self.synced = self.synced.max(u64::from(found.synced));
                    if end > self.length {
                        return self.end_walk(look);
                    }
                    self.found.push(found);
                    (at, look) = (end, end);
                }
                Some(found) if is_trailer_of(&found, look, at) => {
                    if u64::from(found.offset) > at {
                        self.note_gap(at);
                    }
                    self.synced = self.synced.max(u64::from(found.synced));
                    at = look + BATCH_HEADER_BYTES as u64;
                    look = at;
                    self.found.push(found);
                }
                _ => {
                    let next = format::find_magic(bytes, 1).map(|next| look + next as u64);
                    look = next.unwrap_or_else(|| (window_end - 7).max(look + 1));
                }
            }
        }
    }
}

/// Whether what stands at `look` is the trailer of a batch that starts at `at` or behind it.
fn is_trailer_of(found: &Found, look: u64, at: u64) -> bool {
    let end = u64::from(found.offset) + found.header.span();
    end == look + BATCH_HEADER_BYTES as u64 && u64::from(found.offset) >= at
}

impl Spool {
    pub(super) fn next_adoption(&mut self, now: u64) -> Option<Op> {
        loop {
            let adoption = self.adoptions.front_mut()?;
            if adoption.under_way != UnderWay::Nothing || now < adoption.wait_until {
                return None;
            }
            if let Some(file) = adoption.orphans.pop() {
                adoption.under_way = UnderWay::Orphan;
                return Some(Op::Remove(file));
            }
            match adoption.segments.front().map(Reading::op) {
                Some(Some(op)) => {
                    adoption.under_way = UnderWay::Read;
                    return Some(op);
                }
                Some(None) => {
                    let reading = adoption.segments.pop_front()?;
                    self.take_segment(reading);
                }
                None => {
                    let adoption = self.adoptions.pop_front()?;
                    self.finish_adoption(adoption);
                }
            }
        }
    }

    pub(super) fn adopted(&mut self, result: OpResult, now: u64) {
        let Some(adoption) = self.adoptions.front_mut() else { return };
        // Marks without a segment say nothing: where they cannot be removed, whoever comes next tries again.
        if std::mem::replace(&mut adoption.under_way, UnderWay::Nothing) == UnderWay::Orphan {
            return;
        }
        let dir = adoption.dir;
        let Some(reading) = adoption.segments.front_mut() else { return };
        match result {
            OpResult::Read(bytes) => {
                adoption.failed_reads = 0;
                if let Err(version) = reading.feed(&bytes) {
                    self.leave(dir, Notice::Newer(dir, version));
                }
            }
            OpResult::Failed(error) => {
                adoption.failed_reads += 1;
                if adoption.failed_reads < READS_MAX {
                    adoption.wait_until = now + RETRY_AFTER;
                } else {
                    self.pass_over(error);
                }
            }
            _ => (),
        }
    }

    /// What cannot be read of the first segment is passed over. Marks that cannot be read repeat; a segment that
    /// cannot be read stays. Either may say that a batch is done that stands elsewhere, too: so whatever is found
    /// in this directory may have been delivered.
    fn pass_over(&mut self, error: String) {
        let Some(adoption) = self.adoptions.front_mut() else { return };
        adoption.failed_reads = 0;
        let dir = self.dirs.entry(adoption.dir).or_default();
        dir.is_doubtful = true;
        let Some(reading) = adoption.segments.front_mut() else { return };
        let file = if matches!(reading.step, Step::Marks) {
            reading.step = Step::Finished;
            File { kind: Kind::Done, ..reading.file }
        } else {
            dir.is_kept = true;
            let file = reading.file;
            adoption.segments.pop_front();
            file
        };
        self.events.push_back(Event::Notice(Notice::Unreadable(file, error)));
    }

    /// Nothing more of this directory is read, and nothing of it removed.
    fn leave(&mut self, dir: u32, notice: Notice) {
        self.adoptions.pop_front();
        self.events.push_back(Event::Notice(notice));
        self.events.push_back(Event::Left(dir));
        self.dirs.entry(dir).and_modify(|dir| dir.is_kept = true);
    }

    fn take_segment(&mut self, reading: Reading) {
        let Some(mut adoption) = self.adoptions.pop_front() else { return };
        let (dir, number) = (reading.file.dir, reading.file.number);
        let mut segment = Segment::new(dir, number, reading.salt.unwrap_or(0), Phase::Sealed);
        segment.length = reading.length;
        segment.is_damaged = reading.is_damaged;
        self.damaged_segments += u64::from(reading.is_damaged);
        if reading.has_no_index {
            segment.torn_from = u32::try_from(reading.synced).ok();
        }
        if let Some(gap) = reading.gap.filter(|_| !reading.is_damaged) {
            self.events.push_back(Event::Notice(Notice::Torn(reading.file, reading.length - gap)));
        }
        if let Some((length, modified)) = reading.marks {
            segment.marks.exists = true;
            segment.marks.length = length;
            segment.done_at = Some(modified);
        }
        self.segments.insert((dir, number), segment);
        for Found { header, offset, .. } in reading.found {
            let is_done = reading.done.contains(&(offset, header.sequence as u32));
            self.take_batch(&mut adoption, Where::Stored { dir, number, offset }, header, is_done);
        }
        self.adoptions.push_front(adoption);
    }

    fn take_batch(
        &mut self,
        adoption: &mut Adoption,
        place: Where,
        header: format::BatchHeader,
        is_done: bool,
    ) {
        let Where::Stored { dir, number, offset } = place else { return };
        let known = adoption.seen.get(&header.sequence).copied();
        if is_done || adoption.done.contains(&header.sequence) {
            adoption.done.insert(header.sequence);
            if let Some(id) = known {
                adoption.seen.remove(&header.sequence);
                adoption.count(&header, -1);
                self.settle(id, 0);
            }
            return;
        }
        let segment = self.segments.get_mut(&(dir, number)).expect("it was just put there");
        segment.done_at = None;
        if let Some(entry) = known.and_then(|id| self.index.get_mut(id)) {
            let id = known.expect("it was just looked up");
            segment.live.insert(offset, id);
            let before = std::mem::replace(&mut entry.place, place);
            self.index.add_copy(id, before);
            return;
        }
        let id = self.next_found;
        self.next_found += 1;
        segment.live.insert(offset, id);
        adoption.seen.insert(header.sequence, id);
        adoption.count(&header, 1);
        // Nobody may fetch it before everything is read: a later segment may say that it is done, and what was not
        // yet told as recovered must not be delivered.
        let entry = Entry {
            header,
            place,
            is_held: true,
            is_done: false,
            is_doubtful: false,
            is_unknown_since: false,
            failed_reads: 0,
        };
        self.index.insert(id, entry);
    }

    fn finish_adoption(&mut self, adoption: Adoption) {
        let is_doubtful = self.dirs.get(&adoption.dir).is_some_and(|dir| dir.is_doubtful);
        for id in adoption.seen.into_values() {
            if let Some(entry) = self.index.get_mut(id) {
                entry.is_doubtful = is_doubtful;
            }
            self.index.release(id, false);
        }
        let (mut batches, mut events) = (0, 0);
        for (stream, (of_batches, of_events, bytes)) in adoption.streams {
            if of_batches > 0 {
                batches += of_batches;
                events += of_events;
                let found = Event::Recovered { stream, batches: of_batches, events: of_events, bytes };
                self.events.push_back(found);
            }
        }
        self.dirs.entry(adoption.dir).and_modify(|dir| dir.is_adopted = true);
        self.events.push_back(Event::Notice(Notice::Adopted { dir: adoption.dir, batches, events }));
    }
}

impl Adoption {
    /// Bytes of the files that are still to be read.
    pub(super) fn bytes(&self) -> u64 {
        let marks = |reading: &Reading| reading.marks.map_or(0, |(length, _)| length);
        self.segments.iter().map(|reading| reading.length + marks(reading)).sum()
    }

    fn count(&mut self, header: &format::BatchHeader, by: i64) {
        let (batches, events, bytes) = self.streams.entry(Arc::clone(&header.stream)).or_default();
        *batches = batches.saturating_add_signed(by);
        *events = events.saturating_add_signed(by * i64::from(header.events));
        *bytes = bytes.saturating_add_signed(by * i64::from(header.length));
    }
}
