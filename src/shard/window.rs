//! The batches of one shard that are not safe yet, in the order in which they were opened, and which connection
//! waits for which of them. Pure: it is told what was opened and what became of it, and sees no bytes.
//!
//! Batches become safe out of order, since a call that failed is made again, so one mark to which all is safe
//! would not do: a batch that is stuck must not delay a sync that does not cover it.
//!
//! Invariants: sequences grow; whoever waits, waits for one batch that is not safe; what is kept is bounded by
//! twice the batches that are not safe, each of which is charged to memory.

use std::collections::VecDeque;

use crate::net::Key;

/// Instead of the index of a stream: any of them.
pub(super) const ANY_STREAM: u32 = u32::MAX;
/// Instead of the index of a stream: the batch is safe, and its entry waits to be taken out.
const SAFE: u32 = u32::MAX;
/// Instead of a key: nobody.
const NOBODY: Key = Key::MAX;
/// Fewer entries than this are not worth tidying.
const ENTRIES_TIDIED_FROM: usize = 64;

/// Batches of one stream, or of any, from one sequence to another, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    /// The index of the stream on its shard, or [`ANY_STREAM`].
    pub(super) stream: u32,
    pub(super) first: u64,
    pub(super) last: u64,
}

impl Range {
    /// Whether it takes in this batch.
    pub(super) fn holds(&self, stream: u32, sequence: u64) -> bool {
        (self.stream == stream || self.stream == ANY_STREAM) && (self.first..=self.last).contains(&sequence)
    }
}

#[derive(Debug)]
struct Entry {
    sequence: u64,
    /// The index of its stream, or [`SAFE`].
    stream: u32,
    first_waiter: Key,
}

/// A connection's place among those that wait for the same batch.
#[derive(Clone, Copy, Debug)]
struct Link {
    sequence: u64,
    is_waiting: bool,
    previous: Key,
    next: Key,
}

const UNLINKED: Link = Link { sequence: 0, is_waiting: false, previous: NOBODY, next: NOBODY };

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Window {
    next: u64,
    /// By sequence; some may be safe already.
    entries: VecDeque<Entry>,
    safe_entries: usize,
    /// The sequences that are not safe, by stream.
    streams: Vec<VecDeque<u64>>,
    /// By connection.
    links: Vec<Link>,
    waiting: usize,
}

impl Window {
    /// A batch of a stream is opened: its sequence.
    pub(super) fn open(&mut self, stream: u32) -> u64 {
        let sequence = self.next;
        self.next += 1;
        self.entries.push_back(Entry { sequence, stream, first_waiter: NOBODY });
        let index = stream as usize;
        if self.streams.len() <= index {
            self.streams.resize_with(index + 1, VecDeque::new);
        }
        self.streams[index].push_back(sequence);
        sequence
    }

    /// A batch is safe: its stream, and into `woken` the connections that waited for it. Nothing where it is not
    /// known, or was safe before.
    pub(super) fn settle(&mut self, sequence: u64, woken: &mut Vec<Key>) -> Option<u32> {
        let index = self.position(sequence)?;
        let entry = &mut self.entries[index];
        let stream = std::mem::replace(&mut entry.stream, SAFE);
        if stream == SAFE {
            return None;
        }
        let mut waiter = std::mem::replace(&mut entry.first_waiter, NOBODY);
        while waiter != NOBODY {
            woken.push(waiter);
            self.waiting -= 1;
            waiter = std::mem::replace(&mut self.links[waiter as usize], UNLINKED).next;
        }
        let of_stream = &mut self.streams[stream as usize];
        if let Ok(place) = of_stream.binary_search(&sequence) {
            of_stream.remove(place);
        }
        self.safe_entries += 1;
        self.tidy();
        Some(stream)
    }

    /// The newest batch in a range that is not safe.
    pub(super) fn newest_unsafe(&self, range: Range) -> Option<u64> {
        if range.stream == ANY_STREAM {
            let end = self.entries.partition_point(|entry| entry.sequence <= range.last);
            let unsafe_entry = self.entries.range(..end).rev().find(|entry| entry.stream != SAFE)?;
            return Some(unsafe_entry.sequence).filter(|sequence| *sequence >= range.first);
        }
        let of_stream = self.streams.get(range.stream as usize)?;
        let end = of_stream.partition_point(|sequence| *sequence <= range.last);
        let newest = *of_stream.get(end.checked_sub(1)?)?;
        Some(newest).filter(|sequence| *sequence >= range.first)
    }

    /// Everything that was opened so far.
    pub(super) fn all(&self) -> Range {
        Range { stream: ANY_STREAM, first: 0, last: self.next.saturating_sub(1) }
    }

    /// Whether every batch of a stream is safe.
    pub(super) fn is_clear(&self, stream: u32) -> bool {
        self.streams.get(stream as usize).is_none_or(VecDeque::is_empty)
    }

    /// Has a connection wait for a batch that is not safe, and for no other.
    pub(super) fn wait(&mut self, key: Key, sequence: u64) {
        self.stop_waiting(key);
        let index = self.position(sequence).expect("only a batch that is not safe is waited for");
        if self.links.len() <= key as usize {
            self.links.resize(key as usize + 1, UNLINKED);
        }
        let next = std::mem::replace(&mut self.entries[index].first_waiter, key);
        if next != NOBODY {
            self.links[next as usize].previous = key;
        }
        self.links[key as usize] = Link { sequence, is_waiting: true, previous: NOBODY, next };
        self.waiting += 1;
    }

    /// A connection waits no more: it is gone.
    pub(super) fn stop_waiting(&mut self, key: Key) {
        let Some(link) = self.links.get_mut(key as usize).filter(|link| link.is_waiting) else { return };
        let Link { sequence, previous, next, .. } = std::mem::replace(link, UNLINKED);
        self.waiting -= 1;
        if next != NOBODY {
            self.links[next as usize].previous = previous;
        }
        if previous != NOBODY {
            self.links[previous as usize].next = next;
        } else if let Some(index) = self.position(sequence) {
            self.entries[index].first_waiter = next;
        }
    }

    /// Whether a connection waits for a batch.
    pub(super) fn is_waiting(&self, key: Key) -> bool {
        self.links.get(key as usize).is_some_and(|link| link.is_waiting)
    }

    /// Whether any connection waits for a batch.
    pub(super) fn has_waiting(&self) -> bool {
        self.waiting > 0
    }

    fn position(&self, sequence: u64) -> Option<usize> {
        let first = self.entries.front()?.sequence;
        let guess = usize::try_from(sequence.checked_sub(first)?).ok()?;
        // Right as long as nothing was taken out of the middle.
        if self.entries.get(guess).is_some_and(|entry| entry.sequence == sequence) {
            return Some(guess);
        }
        self.entries.binary_search_by_key(&sequence, |entry| entry.sequence).ok()
    }

    /// Takes out what is safe: always at the front, and behind it once it is more than half.
    fn tidy(&mut self) {
        while self.entries.front().is_some_and(|entry| entry.stream == SAFE) {
            self.entries.pop_front();
            self.safe_entries -= 1;
        }
        if self.entries.len() >= ENTRIES_TIDIED_FROM && self.safe_entries > self.entries.len() / 2 {
            self.entries.retain(|entry| entry.stream != SAFE);
            self.safe_entries = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settle(window: &mut Window, sequence: u64) -> Vec<Key> {
        let mut woken = Vec::new();
        assert!(window.settle(sequence, &mut woken).is_some());
        woken.sort_unstable();
        woken
    }

    #[test]
    fn batches_that_settle_out_of_order_leave_the_others() {
        let mut window = Window::default();
        for sequence in 0..1_000 {
            assert_eq!(window.open((sequence % 2) as u32), sequence);
        }
        let of = |stream| Range { stream, first: 0, last: 999 };
        for sequence in (1..999).rev() {
            settle(&mut window, sequence);
            assert_eq!(window.settle(sequence, &mut Vec::new()), None, "it is safe already");
        }
        assert!(window.entries.len() < 2 * ENTRIES_TIDIED_FROM, "what is safe is taken out");
        assert_eq!((window.newest_unsafe(of(0)), window.newest_unsafe(of(1))), (Some(0), Some(999)));
        assert_eq!(window.newest_unsafe(Range { first: 1, last: 998, ..of(ANY_STREAM) }), None);
        assert_eq!(window.newest_unsafe(Range { last: 998, ..window.all() }), Some(0));
        settle(&mut window, 0);
        assert!(window.is_clear(0) && !window.is_clear(1) && window.is_clear(7));
    }

    #[test]
    fn whoever_waits_is_woken_once_and_whoever_left_is_not() {
        let mut window = Window::default();
        let (one, other) = (window.open(0), window.open(0));
        (0..5).for_each(|key| window.wait(key, one));
        window.wait(3, other);
        [0, 2].into_iter().for_each(|key| window.stop_waiting(key));
        window.stop_waiting(2);
        window.stop_waiting(77);
        assert_eq!((settle(&mut window, one), window.has_waiting()), (vec![1, 4], true));
        assert!(window.is_waiting(3) && !window.is_waiting(4));
        assert_eq!((settle(&mut window, other), window.has_waiting()), (vec![3], false));
    }
}
