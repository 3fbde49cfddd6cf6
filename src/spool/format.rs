//! The bytes of the spool's files, both ways: file headers, batch headers, the index at a segment's end and done
//! marks. Little endian, each part under a CRC32C of its own. Pure functions over slices: whatever bytes they are
//! given, they give a value or nothing, and never panic.
//!
//! A segment is `file header ×2, (batch header, lines, batch trailer)*, [index, tail]`; a file of done marks is
//! `file header ×2, mark*`. The first [`FILE_HEADER_BYTES`] of a file keep their meaning in every version, so
//! that an older relay can tell a newer file from a damaged one.

use std::sync::Arc;

use bytes::Bytes;

/// The version that this relay writes, and the newest that it reads.
pub const VERSION: u16 = 1;
/// One copy of a file's header; there are two, so that no single damaged byte hides a segment.
pub const FILE_HEADER_BYTES: usize = 32;
/// Where the contents of a file begin.
pub const CONTENT_START: u32 = 2 * FILE_HEADER_BYTES as u32;
/// A batch's header, and its trailer.
pub const BATCH_HEADER_BYTES: usize = 128;
/// What a batch takes beside its lines.
pub const BATCH_OVERHEAD: u32 = 2 * BATCH_HEADER_BYTES as u32;
/// What stands at the very end of a sealed segment.
pub const TAIL_BYTES: usize = 32;
/// One done mark.
pub const MARK_BYTES: usize = 16;
/// One batch in the index.
const ENTRY_BYTES: usize = 40;
/// The longest name of a stream (docs/protocol.md).
const NAME_BYTES_MAX: usize = 64;
/// Where a batch's header says up to where its segment was synced.
const SYNCED_AT: usize = 48 + NAME_BYTES_MAX;

const FILE_MAGIC: &[u8; 8] = b"\x89STPSPL\n";
const HEADER_MAGIC: &[u8; 8] = b"\xc5\x1eBATCH\x01";
const TRAILER_MAGIC: &[u8; 8] = b"\xc5\x1eBATCH\x02";
const TAIL_MAGIC: &[u8; 8] = b"\xc5\x1eINDEX\x01";
const MARK_MAGIC: u32 = 0x9d0e_5bd1;

/// The only encoding so far: raw lines, each event followed by one LF.
pub const ENCODING_LINES: u8 = 1;
/// Some of the batch's events may have been delivered already: a call with them ended with an unknown outcome.
const FLAG_UNKNOWN: u8 = 1;

/// What a file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Batches.
    Segment = 1,
    /// Done marks of the segment with the same number.
    Done = 2,
}

/// What stands at the head of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileHeader {
    /// What the file is for.
    pub kind: Kind,
    /// Drawn at random for a segment and its marks: nothing from another file, nor from a payload, passes for a
    /// part of this one.
    pub salt: u32,
}

/// Why a file's head gives no [`FileHeader`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadHeader {
    /// Written by a newer relay, in this version of the format.
    Newer(u16),
    /// Neither copy is whole.
    Damaged,
}

/// What is known of a batch without its lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    /// Its stream.
    pub stream: Arc<str>,
    /// Which batch of its instance; kept when the batch is written anew elsewhere.
    pub sequence: u64,
    /// Its events.
    pub events: u32,
    /// When its oldest event was received, in milliseconds since 1970.
    pub oldest: u64,
    /// Whether some of its events may have been delivered already.
    pub is_unknown: bool,
    /// The bytes of its lines.
    pub length: u32,
    /// The CRC32C of its lines.
    pub crc: u32,
}

impl BatchHeader {
    /// What the batch takes in its segment.
    pub fn span(&self) -> u64 {
        u64::from(self.length) + u64::from(BATCH_OVERHEAD)
    }
}

/// Both copies of a file's header.
pub fn file_header(header: FileHeader) -> Vec<u8> {
    let mut copy = Vec::with_capacity(FILE_HEADER_BYTES);
    copy.extend_from_slice(FILE_MAGIC);
    copy.extend_from_slice(&VERSION.to_le_bytes());
    copy.extend_from_slice(&(header.kind as u16).to_le_bytes());
    copy.extend_from_slice(&header.salt.to_le_bytes());
    copy.resize(FILE_HEADER_BYTES - 4, 0);
    let crc = crc32c::crc32c(&copy);
    copy.extend_from_slice(&crc.to_le_bytes());
    copy.repeat(2)
}

/// Reads a file's header from its first [`CONTENT_START`] bytes.
///
/// # Errors
/// Where neither copy is whole, or a newer relay wrote it.
pub fn read_file_header(bytes: &[u8], kind: Kind) -> Result<FileHeader, BadHeader> {
    let whole = |copy: &&[u8]| {
        copy.starts_with(FILE_MAGIC) && crc32c::crc32c(&copy[..FILE_HEADER_BYTES - 4]) == u32_at(copy, 28)
    };
    let copy = bytes.chunks_exact(FILE_HEADER_BYTES).take(2).find(whole).ok_or(BadHeader::Damaged)?;
    let version = u16_at(copy, 8);
    if version > VERSION {
        return Err(BadHeader::Newer(version));
    }
    if u16_at(copy, 10) != kind as u16 {
        return Err(BadHeader::Damaged);
    }
    Ok(FileHeader { kind, salt: u32_at(copy, 12) })
}

/// Where a batch stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Of its file.
    pub salt: u32,
    /// Where it starts.
    pub offset: u32,
    /// Everything before this offset was synced when the batch was written: where something is missing before it, that
    /// is damage, and behind it perhaps only the end of a process that was writing.
    pub synced: u32,
}

/// A batch's header or, behind its lines, its trailer.
pub fn batch_header(header: &BatchHeader, position: Position, is_trailer: bool) -> Bytes {
    let mut out = Vec::with_capacity(BATCH_HEADER_BYTES);
    out.extend_from_slice(if is_trailer { TRAILER_MAGIC } else { HEADER_MAGIC });
    out.push(VERSION as u8);
    out.push(ENCODING_LINES);
    out.push(if header.is_unknown { FLAG_UNKNOWN } else { 0 });
    out.push(header.stream.len() as u8);
    out.extend_from_slice(&header.events.to_le_bytes());
    out.extend_from_slice(&header.sequence.to_le_bytes());
    out.extend_from_slice(&header.oldest.to_le_bytes());
    out.extend_from_slice(&header.length.to_le_bytes());
    out.extend_from_slice(&header.crc.to_le_bytes());
    out.extend_from_slice(&position.salt.to_le_bytes());
    out.extend_from_slice(&position.offset.to_le_bytes());
    out.extend_from_slice(header.stream.as_bytes());
    out.resize(SYNCED_AT, 0);
    out.extend_from_slice(&position.synced.to_le_bytes());
    out.resize(BATCH_HEADER_BYTES - 4, 0);
    let crc = crc32c::crc32c(&out);
    out.extend_from_slice(&crc.to_le_bytes());
    Bytes::from(out)
}

/// A batch's header or trailer that was found, and where its batch starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// What it says.
    pub header: BatchHeader,
    /// Where the batch starts in its segment.
    pub offset: u32,
    /// What [`Position`] says of it; 0 where that is not known.
    pub synced: u32,
}

/// Reads a batch's header, or its trailer, from the start of `bytes`.
pub fn read_batch_header(bytes: &[u8], salt: u32) -> Option<Found> {
    let bytes = bytes.get(..BATCH_HEADER_BYTES)?;
    let is_magic = bytes.starts_with(HEADER_MAGIC) || bytes.starts_with(TRAILER_MAGIC);
    if !is_magic || crc32c::crc32c(&bytes[..BATCH_HEADER_BYTES - 4]) != u32_at(bytes, BATCH_HEADER_BYTES - 4)
    {
        return None;
    }
    let name_length = usize::from(bytes[11]);
    if bytes[9] != ENCODING_LINES || name_length > NAME_BYTES_MAX || u32_at(bytes, 40) != salt {
        return None;
    }
    let stream = std::str::from_utf8(&bytes[48..48 + name_length]).ok()?;
    let header = BatchHeader {
        stream: stream.into(),
        sequence: u64_at(bytes, 16),
        events: u32_at(bytes, 12),
        oldest: u64_at(bytes, 24),
        is_unknown: bytes[10] & FLAG_UNKNOWN != 0,
        length: u32_at(bytes, 32),
        crc: u32_at(bytes, 36),
    };
    is_possible(&header).then(|| Found {
        header,
        offset: u32_at(bytes, 44),
        synced: u32_at(bytes, SYNCED_AT),
    })
}

/// Whether a batch can be so: every event takes a byte at least.
fn is_possible(header: &BatchHeader) -> bool {
    header.events <= header.length
}

/// The next place in `bytes`, from `from` on, that may be a batch's header or trailer.
pub fn find_magic(bytes: &[u8], from: usize) -> Option<usize> {
    let common = &HEADER_MAGIC[..7];
    memchr::memmem::find(bytes.get(from..)?, common).map(|at| at + from)
}

/// The index of a segment whose batches end at `end`, and its tail.
pub fn index<'a>(
    entries: impl Iterator<Item = (u32, &'a BatchHeader)>,
    salt: u32,
    end: u64,
    now: u64,
) -> Vec<u8> {
    let mut out = Vec::new();
    let mut names: Vec<Arc<str>> = Vec::new();
    let mut name_of: std::collections::HashMap<Arc<str>, u32> = std::collections::HashMap::new();
    for (offset, header) in entries {
        let name = *name_of.entry(Arc::clone(&header.stream)).or_insert_with(|| {
            names.push(Arc::clone(&header.stream));
            names.len() as u32 - 1
        });
        out.extend_from_slice(&offset.to_le_bytes());
        out.extend_from_slice(&header.length.to_le_bytes());
        out.extend_from_slice(&header.events.to_le_bytes());
        out.extend_from_slice(&header.crc.to_le_bytes());
        out.extend_from_slice(&header.sequence.to_le_bytes());
        out.extend_from_slice(&header.oldest.to_le_bytes());
        out.extend_from_slice(&name.to_le_bytes());
        out.extend_from_slice(&u32::from(header.is_unknown).to_le_bytes());
    }
    let entries = (out.len() / ENTRY_BYTES) as u32;
    for name in names {
        out.push(name.len() as u8);
        out.extend_from_slice(name.as_bytes());
    }
    out.extend_from_slice(&now.to_le_bytes());
    let (length, crc) = (out.len() as u32, crc32c::crc32c(&out));
    let start = out.len();
    out.extend_from_slice(TAIL_MAGIC);
    for value in [entries, length, crc, salt, end as u32] {
        out.extend_from_slice(&value.to_le_bytes());
    }
    let crc = crc32c::crc32c(&out[start..]);
    out.extend_from_slice(&crc.to_le_bytes());
    out
}

/// What the tail of a sealed segment says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tail {
    /// Batches in the index.
    pub entries: u32,
    /// The bytes of the index, which stands right before the tail.
    pub length: u32,
    crc: u32,
    /// The segment's salt.
    pub salt: u32,
    /// Where its batches end and its index begins.
    pub end: u32,
}

/// Reads the tail from the last [`TAIL_BYTES`] of a file of `file_length` bytes.
pub fn read_tail(bytes: &[u8], file_length: u64) -> Option<Tail> {
    let bytes = bytes.get(..TAIL_BYTES)?;
    if !bytes.starts_with(TAIL_MAGIC)
        || crc32c::crc32c(&bytes[..TAIL_BYTES - 4]) != u32_at(bytes, TAIL_BYTES - 4)
    {
        return None;
    }
    let tail = Tail {
        entries: u32_at(bytes, 8),
        length: u32_at(bytes, 12),
        crc: u32_at(bytes, 16),
        salt: u32_at(bytes, 20),
        end: u32_at(bytes, 24),
    };
    let adds_up = u64::from(tail.end) + u64::from(tail.length) + TAIL_BYTES as u64 == file_length;
    (adds_up && tail.end >= CONTENT_START).then_some(tail)
}

/// Reads an index: where each batch starts, and its header.
pub fn read_index(bytes: &[u8], tail: &Tail) -> Option<Vec<Found>> {
    if bytes.len() != tail.length as usize || crc32c::crc32c(bytes) != tail.crc {
        return None;
    }
    let table = bytes.get(..(tail.entries as usize).checked_mul(ENTRY_BYTES)?)?;
    let mut names: Vec<Arc<str>> = Vec::new();
    let mut rest = bytes.get(table.len()..bytes.len().checked_sub(8)?)?;
    while let Some((length, behind)) = rest.split_first() {
        let name = behind.get(..usize::from(*length))?;
        names.push(std::str::from_utf8(name).ok()?.into());
        rest = &behind[name.len()..];
    }
    let entry = |bytes: &[u8]| {
        let header = BatchHeader {
            stream: Arc::clone(names.get(u32_at(bytes, 32) as usize)?),
            length: u32_at(bytes, 4),
            events: u32_at(bytes, 8),
            crc: u32_at(bytes, 12),
            sequence: u64_at(bytes, 16),
            oldest: u64_at(bytes, 24),
            is_unknown: u32_at(bytes, 36) != 0,
        };
        Some(Found { header, offset: u32_at(bytes, 0), synced: 0 })
    };
    // Batches stand behind each other: none is in another, and none beyond the end.
    let mut end = u64::from(CONTENT_START);
    let mut stands_behind = |found: &Found| {
        let stands = u64::from(found.offset) >= end && is_possible(&found.header);
        end = u64::from(found.offset) + found.header.span();
        stands && end <= u64::from(tail.end)
    };
    table.chunks_exact(ENTRY_BYTES).map(|bytes| entry(bytes).filter(&mut stands_behind)).collect()
}

/// The mark that the batch at `offset` is done.
pub fn mark(offset: u32, sequence: u64, salt: u32) -> [u8; MARK_BYTES] {
    let mut mark = [0; MARK_BYTES];
    mark[..4].copy_from_slice(&MARK_MAGIC.to_le_bytes());
    mark[4..8].copy_from_slice(&offset.to_le_bytes());
    mark[8..12].copy_from_slice(&(sequence as u32).to_le_bytes());
    let crc = mark_crc(&mark, salt);
    mark[12..].copy_from_slice(&crc.to_le_bytes());
    mark
}

fn mark_crc(mark: &[u8], salt: u32) -> u32 {
    crc32c::crc32c_append(salt, &mark[..12])
}

/// Reads every whole mark of the contents of a file of marks: (offset, low half of the sequence). What is
/// damaged is passed over: its batch is delivered again.
pub fn read_marks(contents: &[u8], salt: u32) -> impl Iterator<Item = (u32, u32)> + '_ {
    let whole = move |mark: &&[u8]| u32_at(mark, 0) == MARK_MAGIC && u32_at(mark, 12) == mark_crc(mark, salt);
    contents.chunks_exact(MARK_BYTES).filter(whole).map(|mark| (u32_at(mark, 4), u32_at(mark, 8)))
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
