//! One segment file: how far it is written, what in it is not done, and its done marks. It knows no batch but by
//! its offset, and does nothing by itself.

use std::collections::BTreeMap;

use super::format::{BatchHeader, CONTENT_START, MARK_BYTES};
use super::{File, Kind};

/// Where a segment stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Appended to.
    Open,
    /// Never appended to again.
    Sealed,
    /// An fsync of it failed: what is not done is written anew elsewhere.
    Poisoned,
}

#[derive(Debug)]
pub(super) struct Segment {
    pub(super) file: File,
    pub(super) salt: u32,
    pub(super) phase: Phase,
    /// Bytes written and synced; more may stand behind them.
    pub(super) length: u64,
    /// Batches that are not done, by offset.
    pub(super) live: BTreeMap<u32, u64>,
    /// Every batch, for the index; only while it is open.
    pub(super) headers: Vec<(u32, BatchHeader)>,
    pub(super) marks: Marks,
    pub(super) is_damaged: bool,
    /// What cannot be read from here on may never have been synced: it was written when the process before ended. Only
    /// where there was no index.
    pub(super) torn_from: Option<u32>,
    /// A write or an fsync failed: so many bytes may stand behind its end, of batches that were refused, and delivered
    /// from memory since.
    pub(super) left_over: u64,
    /// When the last batch was done, in milliseconds.
    pub(super) done_at: Option<u64>,
    /// Whether it is on its way out.
    pub(super) is_leaving: bool,
    /// A chore failed; not before this instant again.
    pub(super) wait_until: u64,
}

/// The done marks of a segment.
#[derive(Debug, Default)]
pub(super) struct Marks {
    /// Whether the file exists.
    pub(super) exists: bool,
    /// Bytes of it that are written.
    pub(super) length: u64,
    /// Marks to write.
    pub(super) pending: Vec<u8>,
    /// Whether it is being written or synced.
    pub(super) is_busy: bool,
    /// Whether bytes were written since the last sync.
    pub(super) is_dirty: bool,
    /// When it is to be synced, in milliseconds.
    pub(super) sync_at: u64,
    /// Whether a sync of it failed: what was written before may be lost.
    pub(super) is_doubtful: bool,
}

impl Marks {
    pub(super) fn is_settled(&self) -> bool {
        self.pending.is_empty() && !self.is_busy && !self.is_dirty
    }

    /// Where the next mark goes: at a multiple of its size, so that half of one hides no other.
    pub(super) fn end(&self) -> u64 {
        let contents = self.length.saturating_sub(u64::from(CONTENT_START));
        u64::from(CONTENT_START) + contents.next_multiple_of(MARK_BYTES as u64)
    }
}

impl Segment {
    pub(super) fn new(dir: u32, number: u32, salt: u32, phase: Phase) -> Self {
        Self {
            file: File { dir, number, kind: Kind::Segment },
            salt,
            phase,
            length: 0,
            live: BTreeMap::new(),
            headers: Vec::new(),
            marks: Marks::default(),
            is_damaged: false,
            torn_from: None,
            left_over: 0,
            done_at: None,
            is_leaving: false,
            wait_until: 0,
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.length + self.left_over + self.marks.length
    }

    pub(super) fn marks_file(&self) -> File {
        File { kind: Kind::Done, ..self.file }
    }

    /// Whether batches in it may have been delivered that have no mark: what was moved elsewhere is marked there.
    pub(super) fn is_doubtful(&self) -> bool {
        self.phase == Phase::Poisoned
            || self.left_over > 0
            || self.marks.is_doubtful
            || !self.marks.is_settled()
    }

    /// Whether everything in it is done and nothing more will come.
    pub(super) fn is_over(&self) -> bool {
        self.phase != Phase::Open && self.live.is_empty()
    }
}
