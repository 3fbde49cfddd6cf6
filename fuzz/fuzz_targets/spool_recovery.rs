//! Taking over a directory of the spool in which anything may stand: segments and marks of any bytes, and those of a
//! real spool with bytes changed, cut off and forged with good checksums. It never panics, comes to its end, reads no
//! more than there is, reports no more than there is, and gives or counts everything that it reports.

#![no_main]

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use standpipe::spool::format::{self, BatchHeader, FileHeader, Position};
use standpipe::spool::{Event, File, Kind, Limits, Listed, NewBatch, Op, OpResult, Spool};

const LIMITS: Limits = Limits {
    bytes_max: 1 << 30,
    free_floor: 0,
    batches_max: 1 << 20,
    segment_bytes: 700,
    group_bytes: 8 << 20,
    keep_sent: 0,
};
/// What is read at once where headers are walked: more than a small file has.
const SCAN_BYTES: u64 = 256 << 10;
/// The directory that is taken over.
const LEFT: u32 = 1;

type Files = BTreeMap<File, Vec<u8>>;

/// A sealed segment, an open one, and marks for the first two batches.
static SMALL: LazyLock<Files> = LazyLock::new(|| {
    let mut rig = Rig::new(Files::new());
    for id in 0..6u64 {
        let lines = format!("event {id}\nand another {id}\n").into_bytes().into();
        let batch = NewBatch { stream: Arc::from("clicks"), lines, events: 2, oldest: id, is_unknown: false };
        rig.spool.append(id, batch, rig.now);
        rig.run();
    }
    (0..2).for_each(|id| rig.spool.done(id, rig.now));
    (0..5).for_each(|_| rig.run());
    rig.files.into_iter().map(|(file, bytes)| (File { dir: LEFT, ..file }, bytes)).collect()
});

/// A machine over files in memory.
struct Rig {
    spool: Spool,
    files: Files,
    now: u64,
    recovered: (u64, u64, u64),
    given: (u64, u64, u64),
}

impl Rig {
    fn new(files: Files) -> Self {
        Self { spool: Spool::new(LIMITS, 7), files, now: 1_000_000, recovered: (0, 0, 0), given: (0, 0, 0) }
    }

    /// Runs until nothing is left to do for now; then time passes.
    fn run(&mut self) {
        for _ in 0..10_000 {
            let Some((id, op)) = self.spool.next_op(self.now) else {
                self.now += 1_000;
                return self.hear();
            };
            let result = self.perform(&op);
            self.spool.completed(id, result, self.now);
            self.hear();
        }
        panic!("it never comes to rest");
    }

    fn perform(&mut self, op: &Op) -> OpResult {
        match op {
            Op::Create(file) => drop(self.files.insert(*file, Vec::new())),
            Op::Write { file, offset, parts } => {
                let (start, bytes) = (*offset as usize, parts.concat());
                let contents = self.files.get_mut(file).expect("what is written to exists");
                contents.resize(contents.len().max(start + bytes.len()), 0);
                contents[start..start + bytes.len()].copy_from_slice(&bytes);
            }
            Op::Read { file, offset, length } => {
                let Some(contents) = self.files.get(file) else { return OpResult::Failed("ENOENT".into()) };
                assert!(*length <= SCAN_BYTES.max(contents.len() as u64), "{length} bytes are read at once");
                let from = (*offset as usize).min(contents.len());
                let to = (from + *length as usize).min(contents.len());
                return OpResult::Read(contents[from..to].to_vec().into());
            }
            Op::Remove(file) | Op::Quarantine(file) => drop(self.files.remove(file)),
            Op::Space => return OpResult::Space(1 << 40),
            Op::Sync(_) | Op::SyncDir(_) | Op::Close(_) | Op::RemoveDir(_) => (),
        }
        OpResult::Done
    }

    fn hear(&mut self) {
        while let Some(event) = self.spool.next_event() {
            match event {
                Event::Recovered { batches, events, bytes, .. } => {
                    add(&mut self.recovered, batches, events, bytes)
                }
                Event::Loaded { id, header, lines, .. } => {
                    assert_eq!(lines.len(), header.length as usize);
                    add(&mut self.given, 1, header.events.into(), header.length.into());
                    self.spool.done(id, self.now);
                }
                Event::Damaged { header, .. } => {
                    add(&mut self.given, 1, header.events.into(), header.length.into());
                }
                Event::Notice(notice) => drop(notice.to_string()),
                _ => (),
            }
        }
    }
}

fn add(sum: &mut (u64, u64, u64), batches: u64, events: u64, bytes: u64) {
    *sum = (sum.0 + batches, sum.1 + events, sum.2 + bytes);
}

/// The fuzzer's bytes, one after the other.
struct Draw<'a>(&'a [u8]);

impl Draw<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn number(&mut self) -> Option<usize> {
        Some(usize::from(self.byte()?) | usize::from(self.byte()?) << 8)
    }

    fn bytes(&mut self, count: usize) -> &[u8] {
        let (bytes, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        bytes
    }
}

fn salt_of(files: &Files, number: u32) -> u32 {
    let segment = files.get(&File { dir: LEFT, number, kind: Kind::Segment });
    let header = segment.and_then(|bytes| format::read_file_header(bytes, Kind::Segment).ok());
    header.map_or(0, |header: FileHeader| header.salt)
}

fn header_of(draw: &mut Draw<'_>, contents: &[u8], offset: usize) -> Option<BatchHeader> {
    let (length, events, sequence) = (draw.number()?, draw.byte()?, draw.byte()?);
    let start = offset + format::BATCH_HEADER_BYTES;
    let lines = contents.get(start..start + length).unwrap_or_default();
    Some(BatchHeader {
        stream: Arc::from(["clicks", "views"][usize::from(events % 2)]),
        sequence: sequence.into(),
        events: events.into(),
        oldest: 0,
        is_unknown: false,
        length: length as u32,
        crc: crc32c(lines),
    })
}

/// The checksum of lines, as a spool of one batch has it.
fn crc32c(lines: &[u8]) -> u32 {
    let mut crc = !0u32;
    for byte in lines {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0x82f6_3b78 & 0u32.wrapping_sub(crc & 1));
        }
    }
    !crc
}

/// Changes one file as the fuzzer wants.
fn edit(files: &mut Files, draw: &mut Draw<'_>) -> Option<()> {
    let choice = draw.byte()?;
    let number = u32::from(choice >> 4) % 4 + 1;
    let kind = if choice & 8 == 0 { Kind::Segment } else { Kind::Done };
    let salt = salt_of(files, number);
    let contents = files.entry(File { dir: LEFT, number, kind }).or_default();
    match choice % 8 {
        0 => {
            let count = draw.number()?;
            *contents = draw.bytes(count).to_vec();
        }
        1 | 2 => {
            let (at, count) = (draw.number()?, draw.byte()?);
            for (place, byte) in contents.iter_mut().skip(at).zip(draw.bytes(count.into())) {
                *place ^= byte;
            }
        }
        3 => contents.resize(draw.number()? % 4_096, 0),
        4 | 5 => {
            let at = draw.number()?;
            let offset = if choice % 8 == 4 { at } else { draw.number()? };
            let header = header_of(draw, contents, offset)?;
            let position = Position { salt, offset: offset as u32, synced: u32::from(draw.byte()?) };
            let forged = format::batch_header(&header, position, choice % 8 == 5);
            contents.resize(contents.len().max((at + forged.len()).min(8_192)), 0);
            contents.iter_mut().skip(at).zip(&forged).for_each(|(place, byte)| *place = *byte);
        }
        6 => contents.extend(format::mark(draw.number()? as u32, draw.byte()?.into(), salt)),
        _ => {
            let mut entries = Vec::new();
            for _ in 0..draw.byte()? % 8 {
                let offset = draw.number()?;
                entries.push((offset as u32, header_of(draw, contents, offset)?));
            }
            let entries = entries.iter().map(|(offset, header)| (*offset, header));
            let index = format::index(entries, salt, contents.len() as u64, 0);
            contents.extend(index);
        }
    }
    Some(())
}

fuzz_target!(|input: &[u8]| {
    let mut draw = Draw(input);
    let is_real = draw.byte().is_some_and(|byte| byte % 4 > 0);
    let mut files = if is_real { SMALL.clone() } else { Files::new() };
    while edit(&mut files, &mut draw).is_some() {}
    let listed = |(file, bytes): (&File, &Vec<u8>)| Listed {
        number: file.number,
        kind: file.kind,
        length: bytes.len() as u64,
        modified: 0,
    };
    let (files_listed, there): (Vec<Listed>, u64) =
        (files.iter().map(listed).collect(), files.values().map(|bytes| bytes.len() as u64).sum());
    let mut rig = Rig::new(files);
    rig.spool.adopt(LEFT, &files_listed, true);
    rig.run();
    let (batches, events, bytes) = rig.recovered;
    assert!(bytes + batches * u64::from(format::BATCH_OVERHEAD) <= there, "more is reported than is there");
    assert!(events <= bytes, "more events are reported than there are bytes");
    for stream in ["clicks", "views"] {
        while rig.spool.fetch(stream).is_some() {
            rig.run();
        }
    }
    (0..10).for_each(|_| rig.run());
    assert_eq!(rig.given, rig.recovered, "what is reported is given, or counted as damaged");
    assert_eq!(rig.spool.batches(), 0);
});
