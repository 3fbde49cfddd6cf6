//! The machine on a disk in memory: what is stored is found again whatever single byte is damaged and wherever a
//! write is torn; random histories with failing operations and crashes lose nothing that was stored.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use proptest::prelude::*;

use super::*;

const LIMITS: Limits = Limits {
    bytes_max: 1 << 30,
    free_floor: 0,
    batches_max: 1 << 20,
    segment_bytes: 4 << 10,
    group_bytes: 8 << 20,
    keep_sent: 0,
};

/// One file: what is there, and what of it would survive a loss of power.
#[derive(Clone, Debug, Default)]
struct Contents {
    bytes: Vec<u8>,
    synced: Vec<u8>,
}

/// A disk in memory that fails on demand.
#[derive(Clone, Debug, Default)]
struct Disk {
    files: BTreeMap<File, Contents>,
    quarantined: Vec<File>,
    /// Bytes that were read.
    read: u64,
    /// No read of these goes well.
    unreadable: BTreeSet<File>,
    /// Answers to the next operations: how many go well before one fails.
    faults: Vec<u8>,
}

impl Disk {
    fn perform(&mut self, op: &Op) -> OpResult {
        if let Some(left) = self.faults.last_mut() {
            if *left == 0 {
                self.faults.pop();
                return self.fail(op);
            }
            *left -= 1;
        }
        match op {
            Op::Create(file) => {
                assert!(self.files.insert(*file, Contents::default()).is_none(), "{file:?} exists");
            }
            Op::Write { file, offset, parts } => self.write(*file, *offset, &parts.concat()),
            Op::Sync(file) => {
                let contents = self.files.get_mut(file).expect("what is synced exists");
                contents.synced = contents.bytes.clone();
            }
            Op::Read { file, offset, length } => return self.read(*file, *offset, *length),
            Op::Remove(file) => drop(self.files.remove(file)),
            Op::Quarantine(file) => {
                self.files.remove(file);
                self.quarantined.push(*file);
            }
            Op::RemoveDir(dir) if self.files.keys().any(|file| file.dir == *dir) => {
                return OpResult::Failed("ENOTEMPTY".into());
            }
            Op::Space => return OpResult::Space(1 << 40),
            Op::SyncDir(_) | Op::RemoveDir(_) | Op::Close(_) => (),
        }
        OpResult::Done
    }

    /// A write that fails may have written a part; a sync that fails tells nothing.
    fn fail(&mut self, op: &Op) -> OpResult {
        if let Op::Write { file, offset, parts } = op {
            let bytes = parts.concat();
            self.write(*file, *offset, &bytes[..bytes.len() / 2]);
        }
        if matches!(op, Op::Close(_) | Op::Space) { self.perform(op) } else { OpResult::Failed("EIO".into()) }
    }

    fn write(&mut self, file: File, offset: u64, bytes: &[u8]) {
        let contents = self.files.get_mut(&file).expect("what is written to exists");
        let end = offset as usize + bytes.len();
        contents.bytes.resize(contents.bytes.len().max(end), 0);
        contents.bytes[offset as usize..end].copy_from_slice(bytes);
    }

    fn read(&mut self, file: File, offset: u64, length: u64) -> OpResult {
        let contents = self.files.get(&file).filter(|_| !self.unreadable.contains(&file));
        let Some(contents) = contents else { return OpResult::Failed("EIO".into()) };
        let from = (offset as usize).min(contents.bytes.len());
        let to = (from + length as usize).min(contents.bytes.len());
        self.read += (to - from) as u64;
        OpResult::Read(Bytes::copy_from_slice(&contents.bytes[from..to]))
    }

    /// Power is lost: of each file a part of what was not synced is there, as `keep` (0 to 255) has it.
    fn crash(mut self, keep: u8) -> Self {
        for contents in self.files.values_mut() {
            let length = contents.synced.len()
                + (contents.bytes.len() - contents.synced.len()) * usize::from(keep) / 255;
            let mut after = contents.bytes[..length].to_vec();
            after[..contents.synced.len()].copy_from_slice(&contents.synced);
            *contents = Contents { synced: after.clone(), bytes: after };
        }
        self.faults.clear();
        // The next process adopts it all as one directory.
        self.files =
            self.files.into_iter().map(|(file, c)| (File { dir: file.dir + 1, ..file }, c)).collect();
        self
    }

    fn listed(&self, dir: u32) -> Vec<Listed> {
        let of = self.files.iter().filter(|(file, _)| file.dir == dir);
        of.map(|(file, contents)| Listed {
            number: file.number,
            kind: file.kind,
            length: contents.bytes.len() as u64,
            modified: 0,
        })
        .collect()
    }
}

/// A machine, its disk and what it said.
#[derive(Debug)]
struct Rig {
    spool: Spool,
    disk: Disk,
    now: u64,
    stored: BTreeSet<u64>,
    refused: BTreeSet<u64>,
    unreadable: BTreeSet<u64>,
    loaded: Vec<(u64, Vec<u8>)>,
    /// How many of what was loaded may have been delivered before.
    doubtful: usize,
    damaged: Vec<BatchHeader>,
    /// How many of those had been asked for.
    damaged_asked: usize,
    recovered: HashMap<String, (u64, u64)>,
    notices: Vec<Notice>,
}

impl Rig {
    fn new(disk: Disk, limits: Limits) -> Self {
        Self {
            spool: Spool::new(limits, 7),
            disk,
            now: 1_000_000,
            stored: BTreeSet::new(),
            refused: BTreeSet::new(),
            unreadable: BTreeSet::new(),
            loaded: Vec::new(),
            doubtful: 0,
            damaged: Vec::new(),
            damaged_asked: 0,
            recovered: HashMap::new(),
            notices: Vec::new(),
        }
    }

    /// A machine that takes over what another left on its disk.
    fn adopting(disk: Disk, limits: Limits) -> Self {
        let mut rig = Self::new(disk, limits);
        let dirs: BTreeSet<u32> = rig.disk.files.keys().map(|file| file.dir).collect();
        for dir in dirs {
            rig.spool.adopt(dir, &rig.disk.listed(dir), true);
        }
        rig.run();
        rig
    }

    fn append(&mut self, id: u64, lines: &[u8]) {
        let batch = NewBatch {
            stream: "clicks".into(),
            lines: Bytes::copy_from_slice(lines).into(),
            events: lines.iter().filter(|octet| **octet == b'\n').count() as u32,
            oldest: id,
            is_unknown: false,
        };
        self.spool.append(id, batch, self.now);
    }

    fn step(&mut self) -> bool {
        let Some((id, op)) = self.spool.next_op(self.now) else { return false };
        let result = self.disk.perform(&op);
        self.spool.completed(id, result, self.now);
        self.hear();
        true
    }

    fn hear(&mut self) {
        while let Some(event) = self.spool.next_event() {
            match event {
                Event::Stored(id) => assert!(self.stored.insert(id), "{id} is stored twice"),
                Event::Refused(id, _) => drop(self.refused.insert(id)),
                Event::Loaded { id, lines, is_doubtful, .. } => {
                    self.doubtful += usize::from(is_doubtful);
                    self.loaded.push((id, lines.to_vec()));
                }
                Event::Damaged { header, was_asked, .. } => {
                    self.damaged_asked += usize::from(was_asked);
                    self.damaged.push(header);
                }
                Event::Recovered { stream, batches, events, .. } => {
                    self.recovered.insert(stream.to_string(), (batches, events));
                }
                Event::Notice(notice) => self.notices.push(notice),
                Event::Unreadable(id) => {
                    assert!(self.unreadable.insert(id), "{id} is said to be unreadable twice");
                }
                Event::Left(_) | Event::Nothing(_) => (),
            }
        }
    }

    /// Runs until nothing more is asked for now.
    fn run(&mut self) {
        while self.step() {}
        self.hear();
    }

    /// Lets time pass for whatever waits for it.
    fn settle(&mut self) {
        for _ in 0..20 {
            self.now += 1_000;
            self.run();
        }
    }

    /// Reads everything back and settles it; gives the lines.
    fn drain(&mut self) -> BTreeSet<Vec<u8>> {
        let mut all = BTreeSet::new();
        while self.spool.fetch("clicks").is_some() {
            self.run();
            for (id, lines) in std::mem::take(&mut self.loaded) {
                all.insert(lines);
                self.spool.done(id, self.now);
            }
        }
        self.settle();
        all
    }
}

fn lines(id: u64) -> Vec<u8> {
    format!("event {id} of many\nand another {id}\n").into_bytes()
}

/// A disk with a sealed segment, an open one, and marks for the first two batches.
fn small_spool() -> (Disk, BTreeSet<Vec<u8>>) {
    let limits = Limits { segment_bytes: 1_200, ..LIMITS };
    let mut rig = Rig::new(Disk::default(), limits);
    for id in 0..7 {
        rig.append(id, &lines(id));
        rig.run();
    }
    assert_eq!(rig.stored.len(), 7);
    rig.spool.done(0, rig.now);
    rig.spool.done(1, rig.now);
    rig.settle();
    (rig.disk.crash(255), (2..7).map(lines).collect())
}

#[test]
fn the_age_of_what_waits_is_that_of_the_oldest_that_is_not_in_memory() {
    let mut rig = Rig::new(Disk::default(), LIMITS);
    for id in [7, 3, 5] {
        rig.append(id, &lines(id));
    }
    rig.run();
    assert_eq!(rig.spool.oldest().len(), 0, "all is held in memory, too");
    for id in [7, 3, 5] {
        rig.spool.release(id, false);
    }
    let oldest = |rig: &Rig| rig.spool.oldest().get("clicks").copied();
    assert_eq!(oldest(&rig), Some(3));
    assert!(rig.spool.fetch("clicks").is_some());
    assert_eq!(oldest(&rig), Some(5));
}

#[test]
fn what_was_stored_is_found_again_and_what_was_done_is_not() {
    let (disk, expected) = small_spool();
    assert!(disk.files.len() >= 3, "{:?}", disk.files.keys());
    let mut rig = Rig::adopting(disk, LIMITS);
    assert_eq!(rig.recovered["clicks"], (5, 10));
    assert_eq!(rig.drain(), expected);
    assert_eq!((rig.spool.batches(), rig.disk.files.len(), rig.spool.bytes()), (0, 0, 0));
}

#[test]
fn every_single_damaged_byte_loses_at_most_its_batch_and_that_is_counted() {
    let (disk, expected) = small_spool();
    let (mut whole, mut one_lost) = (0, 0);
    for (file, contents) in &disk.files {
        for at in 0..contents.bytes.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut damaged = disk.clone();
                damaged.files.get_mut(file).expect("it is there").bytes[at] ^= flip;
                let mut rig = Rig::adopting(damaged, LIMITS);
                let recovered = rig.recovered["clicks"].0;
                let found = rig.drain();
                let lost: Vec<_> = expected.difference(&found).collect();
                assert_eq!(lost.len(), rig.damaged.len(), "{file:?} byte {at}: {lost:?}");
                assert!(lost.len() <= 1, "{file:?} byte {at} costs {}", lost.len());
                // What a damaged mark repeats comes on top; nothing else does.
                let extra: Vec<_> = found.difference(&expected).collect();
                assert!(extra.len() <= 2, "{file:?} byte {at} invents {extra:?}");
                assert_eq!(recovered as usize, found.len() + lost.len());
                if let Some(header) = rig.damaged.first() {
                    assert_eq!(header.events, 2);
                    // Of the group that was written last nothing says that it was ever synced.
                    let is_last = header.sequence == 6;
                    let damaged = (rig.spool.damaged_segments(), rig.disk.quarantined.len());
                    assert_eq!(damaged, if is_last { (0, 0) } else { (1, 1) }, "{file:?} byte {at}");
                }
                assert_eq!(rig.spool.batches(), 0);
                (whole, one_lost) = (whole + usize::from(lost.is_empty()), one_lost + lost.len());
            }
        }
    }
    println!("{whole} damages cost nothing, {one_lost} a batch each");
    assert!(one_lost > 0 && whole > one_lost);
}

/// A machine that has stored a batch, and written two more that are not synced.
fn two_written_and_not_synced() -> Rig {
    let mut rig = Rig::new(Disk::default(), LIMITS);
    rig.append(0, &lines(0));
    rig.run();
    rig.append(1, &lines(1));
    rig.append(2, &lines(2));
    while !matches!(&rig.spool.writer, Writer::Ready(_, writer::Step::Sync(_))) {
        assert!(rig.step());
    }
    rig
}

#[test]
fn a_write_torn_at_any_length_costs_nothing_that_was_stored() {
    let rig = two_written_and_not_synced();
    for keep in 0..=255 {
        let mut after = Rig::adopting(rig.disk.clone().crash(keep), LIMITS);
        let found = after.drain();
        assert!(found.contains(&lines(0)));
        assert!(after.damaged.is_empty() && after.disk.quarantined.is_empty(), "{keep}");
        assert_eq!(after.disk.files.len(), 0);
    }
}

#[test]
fn a_newer_format_is_left_alone_with_a_sentence() {
    let (mut disk, _) = small_spool();
    for (file, contents) in &mut disk.files {
        let mut copy = contents.bytes[..28].to_vec();
        copy[8] = 2;
        let crc = crc32c::crc32c(&copy).to_le_bytes();
        copy.extend_from_slice(&crc);
        contents.bytes[..64].copy_from_slice(&copy.repeat(2));
        assert_eq!(format::read_file_header(&contents.bytes, file.kind), Err(format::BadHeader::Newer(2)));
    }
    let before = disk.files.len();
    let mut rig = Rig::adopting(disk, LIMITS);
    rig.settle();
    assert_eq!((rig.disk.files.len(), rig.spool.batches()), (before, 0));
    let sentence = rig.notices[0].to_string();
    assert!(sentence.contains("format 2 of the spool, and this relay reads up to 1"), "{sentence}");
}

#[test]
fn a_failed_fsync_moves_everything_unsettled_to_a_new_segment() {
    let mut rig = Rig::new(Disk::default(), LIMITS);
    rig.append(0, &lines(0));
    rig.run();
    rig.append(1, &lines(1));
    // The write goes well, the sync fails.
    rig.disk.faults = vec![1];
    rig.run();
    rig.settle();
    assert_eq!(rig.stored, BTreeSet::from([0, 1]));
    let segments: Vec<u32> = rig.disk.files.keys().map(|file| file.number).collect();
    assert_eq!(segments, [2], "the poisoned segment is gone");
    let mut after = Rig::adopting(rig.disk.crash(0), LIMITS);
    assert_eq!(after.drain(), (0..2).map(lines).collect());
}

/// A disk on which batch 0 stands in a poisoned segment and, moved, in the next.
fn moved_and_not_removed() -> Disk {
    let mut rig = Rig::new(Disk::default(), LIMITS);
    rig.append(0, &lines(0));
    rig.run();
    rig.append(1, &lines(1));
    rig.disk.faults = vec![1];
    let is_moved = |disk: &Disk| {
        let synced = |number| disk.files.get(&File { dir: OWN, number, kind: Kind::Segment });
        let moved = synced(2).is_some_and(|contents| find(&contents.synced, b"event 0 of").is_some());
        moved && synced(1).is_some()
    };
    while !is_moved(&rig.disk) {
        assert!(rig.step(), "it is moved before the poisoned segment is removed");
    }
    rig.disk
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

#[test]
fn a_copy_that_cannot_be_read_is_not_marked_done_for_the_others() {
    let mut disk = moved_and_not_removed().crash(255);
    let copy = disk.files.get_mut(&File { dir: 1, number: 2, kind: Kind::Segment }).expect("it is there");
    let at = find(&copy.bytes, b"event 0 of").expect("it was moved");
    copy.bytes[at] ^= 1;
    copy.synced[at] ^= 1;
    // Read, and not delivered before the process dies.
    let mut rig = Rig::adopting(disk, LIMITS);
    while rig.spool.fetch("clicks").is_some() {
        rig.run();
    }
    rig.settle();
    let after = Rig::adopting(rig.disk.crash(255), LIMITS).drain();
    assert!(after.contains(&lines(0)), "the good copy is still there");
}

#[test]
fn what_is_found_is_not_given_before_its_directory_is_read_to_the_end() {
    let (disk, _) = small_spool();
    let mut rig = Rig::new(disk, LIMITS);
    rig.spool.adopt(1, &rig.disk.listed(1), true);
    while rig.recovered.is_empty() {
        assert_eq!(rig.spool.fetch("clicks"), None);
        rig.step();
    }
    assert!(rig.spool.fetch("clicks").is_some());
}

#[test]
fn what_is_being_written_or_taken_over_counts_towards_the_limit() {
    let limits = Limits { bytes_max: 2_000, ..LIMITS };
    let mut rig = Rig::new(Disk::default(), limits);
    for id in 0..20 {
        rig.append(id, &lines(id));
        while !matches!(&rig.spool.writer, Writer::Busy(_, writer::Step::Write(_))) {
            if rig
                .spool
                .next_op(rig.now)
                .map(|(id, op)| rig.spool.completed(id, rig.disk.perform(&op), rig.now))
                .is_none()
            {
                break;
            }
        }
    }
    rig.hear();
    assert!(rig.refused.len() >= 13, "{} of 20 are refused", rig.refused.len());
    let (disk, _) = small_spool();
    let mut rig = Rig::new(disk, limits);
    rig.spool.adopt(1, &rig.disk.listed(1), true);
    assert!(rig.spool.bytes() > 2_000);
    rig.append(100, &lines(100));
    rig.hear();
    assert!(rig.refused.contains(&100));
}

/// A machine on a small disk that has delivered all it took, and keeps it.
fn keeping_what_was_sent() -> Rig {
    let limits = Limits { keep_sent: 60_000, segment_bytes: 600, bytes_max: 3_000, ..LIMITS };
    let mut rig = Rig::new(Disk::default(), limits);
    for id in 0..4 {
        rig.append(id, &lines(id));
        rig.run();
        rig.spool.done(id, rig.now);
    }
    rig.settle();
    rig
}

#[test]
fn kept_segments_are_room_only_once_they_are_gone() {
    let mut rig = keeping_what_was_sent();
    for id in 10..40 {
        rig.append(id, &lines(id));
    }
    assert!(rig.spool.bytes() + rig.spool.queue_bytes <= 3_000);
}

#[test]
fn an_orderly_end_is_not_noted_where_something_may_have_been_delivered_unmarked() {
    let stored = || {
        let mut rig = Rig::new(Disk::default(), LIMITS);
        rig.append(0, &lines(0));
        rig.run();
        assert!(!rig.spool.is_doubtful(OWN));
        rig
    };
    let mut unknown = stored();
    unknown.spool.release(0, true);
    assert!(unknown.spool.is_doubtful(OWN), "a call ended without a known outcome");
    let mut refused = stored();
    refused.append(1, &lines(1));
    refused.disk.faults = vec![0];
    refused.run();
    assert!(refused.refused.contains(&1) && refused.spool.is_doubtful(OWN), "it may be on disk all the same");
    let mut unmarked = stored();
    unmarked.append(1, &lines(1));
    unmarked.run();
    unmarked.spool.done(1, unmarked.now);
    assert!(unmarked.spool.is_doubtful(OWN), "its mark is not written");
    unmarked.settle();
    assert!(!unmarked.spool.is_doubtful(OWN));
    // An index that cannot be synced poisons its segment, which then cannot be removed.
    let mut moved = stored();
    moved.spool.stop();
    moved.disk.faults = vec![1];
    for _ in 0..5 {
        moved.now += 1_000;
        while let Some((id, op)) = moved.spool.next_op(moved.now) {
            let is_removal = matches!(op, Op::Remove(_));
            let result = if is_removal { OpResult::Failed("EROFS".into()) } else { moved.disk.perform(&op) };
            moved.spool.completed(id, result, moved.now);
        }
    }
    assert_eq!(moved.disk.files.len(), 2, "{:?}", moved.disk.files.keys());
    assert!(moved.spool.is_doubtful(OWN), "what was moved from it is marked elsewhere");
    let mut adopted = Rig::adopting(small_spool().0, LIMITS);
    adopted.settle();
    assert!(adopted.spool.is_doubtful(1), "whoever had it before ended without order");
}

#[test]
fn a_read_that_fails_is_tried_again_before_its_batch_counts_as_damaged() {
    let (disk, expected) = small_spool();
    let mut rig = Rig::adopting(disk, LIMITS);
    rig.spool.fetch("clicks");
    rig.disk.faults = vec![0, 0];
    rig.run();
    assert!(rig.loaded.is_empty() && rig.damaged.is_empty());
    rig.settle();
    assert!(rig.damaged.is_empty() && expected.contains(&rig.loaded[0].1));
}

/// A machine that takes over what an orderly process left, where nothing can be read of one file.
fn adopting_beside_unreadable(disk: Disk, unreadable: File) -> Rig {
    let mut rig = Rig::new(Disk { unreadable: BTreeSet::from([unreadable]), ..disk }, LIMITS);
    rig.spool.adopt(1, &rig.disk.listed(1), false);
    rig.settle();
    rig
}

#[test]
fn what_stands_beside_something_unreadable_may_have_been_delivered() {
    let (disk, expected) = small_spool();
    let marks = File { dir: 1, number: 1, kind: Kind::Done };
    let mut rig = adopting_beside_unreadable(disk.clone(), marks);
    assert!(matches!(&rig.notices[0], Notice::Unreadable(file, _) if *file == marks), "{:?}", rig.notices);
    assert!(rig.drain().is_superset(&expected));
    assert_eq!(rig.doubtful, 7, "which of them are done is not known");
    let segment = File { dir: 1, number: 1, kind: Kind::Segment };
    let mut rig = adopting_beside_unreadable(disk, segment);
    let found = rig.drain();
    assert!(found.len() < expected.len() && rig.doubtful == found.len());
    assert!(rig.disk.files.contains_key(&segment), "what cannot be read stays");
    assert!(rig.spool.is_doubtful(1), "whoever reads it next may repeat what was delivered now");
}

#[test]
fn a_read_that_fails_while_taking_over_is_tried_again() {
    let (disk, expected) = small_spool();
    let mut rig = Rig::new(Disk { faults: vec![0, 0, 2], ..disk }, LIMITS);
    rig.spool.adopt(1, &rig.disk.listed(1), false);
    rig.settle();
    assert_eq!((rig.drain(), rig.doubtful), (expected, 0));
}

#[test]
fn marks_that_cannot_be_removed_keep_nothing_from_being_read() {
    let (mut disk, expected) = small_spool();
    let orphan = File { dir: 1, number: 9, kind: Kind::Done };
    disk.files.insert(orphan, Contents::default());
    disk.faults = vec![0];
    let mut rig = Rig::adopting(disk, LIMITS);
    assert_eq!(rig.drain(), expected);
    assert!(rig.disk.files.keys().eq([&orphan]), "whoever comes next removes it");
}

#[test]
fn what_is_found_to_be_damaged_by_the_way_was_not_asked_for() {
    let mut rig = Rig::new(Disk::default(), LIMITS);
    for id in 0..2 {
        rig.append(id, &lines(id));
        rig.run();
        rig.spool.release(id, false);
    }
    let segment = File { dir: OWN, number: 1, kind: Kind::Segment };
    let bytes = &mut rig.disk.files.get_mut(&segment).expect("it is there").bytes;
    let at = find(bytes, b"event 0 of").expect("it was written");
    bytes[at] ^= 1;
    // A sync fails: what stands in the segment is read back to be moved.
    rig.append(2, &lines(2));
    rig.disk.faults = vec![1];
    rig.settle();
    assert_eq!((rig.damaged.len(), rig.damaged_asked), (1, 0));
    assert!(rig.spool.fetch("clicks").is_some() && rig.spool.fetch("clicks").is_none());
}

/// A batch that is stored and held in memory, in a segment that fails and of which nothing can be read.
fn stored_and_unreadable() -> Rig {
    let mut rig = Rig::new(Disk::default(), LIMITS);
    rig.append(0, &lines(0));
    rig.run();
    rig.disk.unreadable.insert(File { dir: OWN, number: 1, kind: Kind::Segment });
    rig.append(1, &lines(1));
    // A sync fails: what stands in the segment is to be moved.
    rig.disk.faults = vec![1];
    rig.settle();
    assert_eq!(rig.stored, BTreeSet::from([0, 1]));
    rig
}

#[test]
fn a_stored_batch_that_cannot_be_moved_is_there_for_whoever_comes_next() {
    let mut rig = stored_and_unreadable();
    assert_eq!(rig.unreadable, BTreeSet::from([0]));
    assert!(rig.refused.is_empty() && rig.damaged.is_empty(), "it was answered as stored");
    let mut heir = Rig::adopting(Disk { unreadable: BTreeSet::new(), ..rig.disk.clone().crash(0) }, LIMITS);
    assert_eq!(heir.drain(), BTreeSet::from([lines(0), lines(1)]));
    // What is delivered from memory is not found again, and the segment is put aside.
    rig.spool.done(0, rig.now);
    rig.settle();
    assert_eq!(rig.disk.quarantined.len(), 1);
    assert_eq!(Rig::adopting(rig.disk.crash(0), LIMITS).drain(), BTreeSet::from([lines(1)]));
}

#[test]
fn what_cannot_be_read_once_memory_has_let_go_of_it_is_counted() {
    let mut rig = stored_and_unreadable();
    rig.spool.release(0, false);
    rig.spool.fetch("clicks");
    rig.settle();
    assert_eq!((rig.damaged.len(), rig.damaged_asked), (1, 1));
}

#[test]
fn what_is_gone_holds_nothing_up_that_was_asked_for_behind_it() {
    let (disk, _) = small_spool();
    let mut rig = Rig::adopting(disk, LIMITS);
    let (first, _) = rig.spool.fetch("clicks").expect("some are left");
    let (second, _) = rig.spool.fetch("clicks").expect("some are left");
    rig.spool.done(first, rig.now);
    assert!(rig.step(), "the second is read at once");
    assert_eq!(rig.loaded[0].0, second);
}

#[test]
fn no_more_is_read_to_be_moved_than_the_writer_takes() {
    let limits = Limits { segment_bytes: 64 << 20, ..LIMITS };
    let mut rig = Rig::new(Disk::default(), limits);
    let large = vec![b'x'; 3 << 20];
    for id in 0..6 {
        rig.append(id, &large);
        rig.run();
    }
    rig.append(6, &lines(6));
    rig.disk.faults = vec![1];
    // The writer stands still from the failed sync on.
    while rig.spool.sync_failures == 0 {
        assert!(rig.step());
    }
    let read_before = rig.disk.read;
    while let Some((id, op)) = rig.spool.next_op(rig.now) {
        if matches!(op, Op::Read { .. }) {
            let result = rig.disk.perform(&op);
            rig.spool.completed(id, result, rig.now);
        }
    }
    assert_eq!((rig.disk.read - read_before) / large.len() as u64, 3, "a group's worth, and no more");
}

#[test]
fn what_a_failed_group_left_behind_counts_towards_the_limit() {
    let mut rig = Rig::new(Disk::default(), LIMITS);
    rig.append(0, &lines(0));
    rig.run();
    let before = rig.spool.bytes();
    rig.append(1, &lines(1));
    rig.disk.faults = vec![1];
    while rig.spool.sync_failures == 0 {
        assert!(rig.step());
    }
    assert!(rig.spool.bytes() > before && rig.spool.poisoned_bytes() > 0);
}

#[test]
fn an_end_that_was_torn_is_mentioned_and_is_no_damage() {
    let rig = two_written_and_not_synced();
    // Power goes: of the group only its end is on disk.
    let mut disk = rig.disk.crash(255);
    let segment = disk.files.values_mut().next().expect("a segment");
    let from = find(&segment.bytes, b"event 1 of").expect("it was written");
    segment.bytes[from - 128..from + 128].fill(0);
    let mut after = Rig::adopting(disk, LIMITS);
    assert!(after.notices.iter().any(|notice| matches!(notice, Notice::Torn(..))), "{:?}", after.notices);
    assert!(after.drain().contains(&lines(0)));
    assert_eq!((after.spool.damaged_segments(), after.disk.quarantined.len()), (0, 0));
}

#[test]
fn a_disk_that_fails_is_said_once_and_used_again_when_it_works() {
    let mut rig = Rig::new(Disk::default(), LIMITS);
    rig.disk.faults = vec![0, 0, 0];
    for id in 0..3 {
        rig.append(id, &lines(id));
        rig.run();
        rig.now += RETRY_AFTER;
    }
    rig.append(3, &lines(3));
    rig.run();
    rig.settle();
    assert!(rig.stored.contains(&3));
    let failing = rig.notices.iter().filter(|notice| matches!(notice, Notice::Failing(_))).count();
    assert_eq!((failing, rig.notices.contains(&Notice::Works)), (1, true));
    assert!(!rig.refused.is_empty() && rig.spool.batches() == rig.stored.len());
}

#[test]
fn limits_refuse_and_room_is_made_by_what_is_done() {
    let limits = Limits { bytes_max: 2_000, segment_bytes: 600, ..LIMITS };
    let mut rig = Rig::new(Disk::default(), limits);
    for id in 0..20 {
        rig.append(id, &lines(id));
        rig.run();
    }
    assert!(rig.spool.bytes() <= 2_000 + 600 && !rig.refused.is_empty());
    for id in rig.stored.clone() {
        rig.spool.done(id, rig.now);
    }
    rig.settle();
    rig.append(100, &lines(100));
    rig.run();
    assert!(rig.stored.contains(&100));
}

#[test]
fn sent_segments_are_kept_for_a_while_and_give_way_to_new_ones() {
    let mut rig = keeping_what_was_sent();
    assert!(rig.disk.files.keys().any(|file| file.kind == Kind::Segment), "kept");
    for id in 10..40 {
        rig.append(id, &lines(id));
        rig.run();
        rig.spool.done(id, rig.now);
        rig.now += 100;
        rig.run();
    }
    assert!(rig.stored.len() > 25, "{} of 34 were taken", rig.stored.len());
    rig.now += 70_000;
    rig.settle();
    assert_eq!(rig.disk.files.len(), 0);
}

#[test]
fn starting_reads_indexes_and_not_lines() {
    let limits = Limits { segment_bytes: 1 << 20, ..LIMITS };
    let mut rig = Rig::new(Disk::default(), limits);
    for id in 0..64 {
        rig.append(id, &[b'x'; 64 << 10].map(|octet| octet));
        rig.run();
    }
    rig.spool.stop();
    rig.settle();
    let disk = rig.disk.crash(255);
    let bytes: usize = disk.files.values().map(|contents| contents.bytes.len()).sum();
    let rig = Rig::adopting(disk, limits);
    assert_eq!(rig.spool.batches(), 64);
    assert!(bytes > 4 << 20 && rig.disk.read < 16 << 10, "{} of {bytes} bytes were read", rig.disk.read);
}

/// Where even that failed, it was asked again at once, for ever: a spool in a folder that this user may not write to took
/// a whole CPU.
#[test]
fn free_space_that_cannot_be_told_is_not_asked_for_again_at_once() {
    let mut spool = Spool::new(LIMITS, 7);
    let start = 1_000_000_000;
    let (id, op) = spool.next_op(start).expect("the free space is asked for first");
    assert!(matches!(op, Op::Space), "{op:?}");
    spool.completed(id, OpResult::Failed("Permission denied".to_owned()), start);
    assert!(spool.next_op(start).is_none() && spool.next_op(start + SPACE_EVERY - 1).is_none());
    assert!(matches!(spool.next_op(start + SPACE_EVERY), Some((_, Op::Space))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever fails and whenever power is lost: what was stored and not settled is found again, whole.
    #[test]
    fn nothing_stored_is_lost(
        actions in proptest::collection::vec((0u8..8, 0u8..60), 1..120),
        faults in proptest::collection::vec(0u8..30, 0..12),
        keep in any::<u8>(),
    ) {
        let limits = Limits { segment_bytes: 900, ..LIMITS };
        let mut rig = Rig::new(Disk { faults, ..Disk::default() }, limits);
        let (mut next, mut settled) = (0u64, BTreeSet::new());
        for (action, number) in actions {
            match action {
                0..=2 => {
                    rig.append(next, &lines(next));
                    next += 1;
                }
                3..=5 => for _ in 0..number {
                    if !rig.step() { break }
                },
                6 => {
                    let id = u64::from(number);
                    if id < next && !rig.refused.contains(&id) && settled.insert(id) {
                        rig.spool.done(id, rig.now);
                    }
                }
                _ => rig.now += u64::from(number) * 50,
            }
            rig.hear();
        }
        let must: BTreeSet<Vec<u8>> =
            rig.stored.iter().filter(|id| !settled.contains(id) && !rig.refused.contains(id)).map(|id| lines(*id)).collect();
        let mut after = Rig::adopting(rig.disk.clone().crash(keep), limits);
        let found = after.drain();
        prop_assert!(must.is_subset(&found), "lost {:?}", must.difference(&found).collect::<Vec<_>>());
        prop_assert_eq!(after.disk.files.len(), 0);
        // Without a crash everything comes to rest too.
        rig.disk.faults.clear();
        rig.spool.stop();
        rig.settle();
        prop_assert!(rig.spool.is_idle(), "{:?}", rig.spool);
    }
}
