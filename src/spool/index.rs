//! Which batches there are, where each stands, and which of a stream's is next to be read back: the oldest that
//! nobody holds in memory.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::format::BatchHeader;

/// Reads of a batch that fail before it counts as damaged.
const READS_MAX: u8 = 5;

/// Where a batch stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Where {
    /// In memory, to be written.
    Queued,
    /// In a group that is not synced yet.
    Writing,
    /// On disk.
    Stored { dir: u32, number: u32, offset: u32 },
}

#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) header: BatchHeader,
    pub(super) place: Where,
    /// Whether the caller has it in memory, or it is on its way there.
    pub(super) is_held: bool,
    pub(super) is_done: bool,
    pub(super) is_doubtful: bool,
    /// A call with it ended without a known outcome, which its header on disk does not say.
    pub(super) is_unknown_since: bool,
    /// Reads of it that failed.
    pub(super) failed_reads: u8,
}

impl Entry {
    pub(super) fn queued(header: BatchHeader) -> Self {
        Self {
            header,
            place: Where::Queued,
            is_held: true,
            is_done: false,
            is_doubtful: false,
            is_unknown_since: false,
            failed_reads: 0,
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Index {
    entries: HashMap<u64, Entry, foldhash::fast::RandomState>,
    /// Of each stream: the age and the id of every batch that waits on disk.
    waiting: HashMap<Arc<str>, BTreeSet<(u64, u64)>, foldhash::fast::RandomState>,
    /// Other places of batches that were found twice, and whether each could not be read.
    copies: HashMap<u64, Vec<(Where, bool)>>,
}

impl Index {
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn get(&self, id: u64) -> Option<&Entry> {
        self.entries.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: u64) -> Option<&mut Entry> {
        self.entries.get_mut(&id)
    }

    pub(super) fn insert(&mut self, id: u64, entry: Entry) {
        if !entry.is_held {
            self.wait(&entry.header, id);
        }
        self.entries.insert(id, entry);
    }

    fn wait(&mut self, header: &BatchHeader, id: u64) {
        self.waiting.entry(Arc::clone(&header.stream)).or_default().insert((header.oldest, id));
    }

    fn unwait(&mut self, header: &BatchHeader, id: u64) {
        if let Some(waiting) = self.waiting.get_mut(&header.stream) {
            waiting.remove(&(header.oldest, id));
            if waiting.is_empty() {
                self.waiting.remove(&header.stream);
            }
        }
    }

    pub(super) fn remove(&mut self, id: u64) -> Option<Entry> {
        let entry = self.entries.remove(&id)?;
        self.unwait(&entry.header, id);
        self.copies.remove(&id);
        Some(entry)
    }

    /// The oldest batch of a stream that nobody holds.
    pub(super) fn oldest(&self, stream: &str) -> Option<u64> {
        self.waiting.get(stream)?.first().map(|(_, id)| *id)
    }

    /// When the oldest event of what nobody holds was received, by stream.
    pub(super) fn oldest_of_all(&self) -> HashMap<Arc<str>, u64> {
        let first = |(stream, waiting): (&Arc<str>, &BTreeSet<(u64, u64)>)| {
            Some((Arc::clone(stream), waiting.first()?.0))
        };
        self.waiting.iter().filter_map(first).collect()
    }

    /// Takes the oldest batch of a stream: it no longer waits.
    pub(super) fn take_oldest(&mut self, stream: &str) -> Option<u64> {
        let id = self.oldest(stream)?;
        let header = self.entries.get(&id)?.header.clone();
        self.unwait(&header, id);
        Some(id)
    }

    /// The caller has it in memory.
    pub(super) fn hold(&mut self, id: u64) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.is_held = true;
        }
    }

    /// The caller has it no longer.
    pub(super) fn release(&mut self, id: u64, is_unknown: bool) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        entry.is_held = false;
        entry.is_unknown_since |= is_unknown && !entry.header.is_unknown;
        entry.header.is_unknown |= is_unknown;
        let header = entry.header.clone();
        self.wait(&header, id);
    }

    /// Whether it waits on disk, and was not asked for.
    pub(super) fn is_waiting(&self, id: u64) -> bool {
        let key = |entry: &Entry| (Arc::clone(&entry.header.stream), (entry.header.oldest, id));
        let waits = |(stream, key)| self.waiting.get(&stream).is_some_and(|waiting| waiting.contains(&key));
        self.entries.get(&id).map(key).is_some_and(waits)
    }

    /// Whether a read that failed is tried again; counts it.
    pub(super) fn may_read_again(&mut self, id: u64) -> bool {
        let Some(entry) = self.entries.get_mut(&id) else { return false };
        entry.failed_reads += 1;
        entry.failed_reads < READS_MAX
    }

    /// Whether more may have been delivered of a directory than its headers say.
    pub(super) fn is_doubtful(&self, dir: u32) -> bool {
        let stands_there = |entry: &Entry| matches!(entry.place, Where::Stored { dir: of, .. } if of == dir);
        self.entries.values().any(|entry| entry.is_unknown_since && stands_there(entry))
    }

    /// Notes another place of a batch.
    pub(super) fn add_copy(&mut self, id: u64, place: Where) {
        self.copies.entry(id).or_default().push((place, false));
    }

    /// Every place of a batch.
    pub(super) fn places(&self, id: u64) -> Vec<Where> {
        let copies = self.copies.get(&id).into_iter().flatten().map(|(place, _)| place);
        self.entries.get(&id).map(|entry| entry.place).into_iter().chain(copies.copied()).collect()
    }

    /// Goes over to the next place of a batch that cannot be read where it was looked for; false where there is
    /// none. Both are marked when it is settled, and neither before: a mark speaks for every copy.
    pub(super) fn use_copy(&mut self, id: u64) -> bool {
        let copies = self.copies.get_mut(&id).into_iter().flatten();
        let Some(copy) = copies.rev().find(|(_, is_bad)| !is_bad) else { return false };
        let Some(entry) = self.entries.get_mut(&id) else { return false };
        copy.0 = std::mem::replace(&mut entry.place, copy.0);
        copy.1 = true;
        entry.failed_reads = 0;
        true
    }
}
