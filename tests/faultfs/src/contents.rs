//! The bytes of one file, in two layers. It knows nothing of names.
//!
//! Invariant: outside of the dirty ranges, and of what a failed sync has lost, both layers are equal.

use std::ops::Range;

/// What survives a cut or not does so in pieces of this size, in bytes.
pub const PAGE_BYTES: usize = 4096;

/// One file's bytes.
#[derive(Debug, Default)]
pub struct Contents {
    now: Vec<u8>,
    durable: Vec<u8>,
    /// What was written since the last sync, in the order of writing.
    dirty: Vec<Range<usize>>,
}

impl Contents {
    /// What a reader sees.
    pub fn now(&self) -> &[u8] {
        &self.now
    }

    /// Bytes that a cut would take.
    pub fn unsynced(&self) -> u64 {
        self.dirty.iter().map(|range| range.len() as u64).sum()
    }

    /// Writes; a gap before `offset` reads as zeros.
    pub fn write(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        if offset > self.now.len() {
            self.resize(offset);
        }
        self.now.resize(self.now.len().max(end), 0);
        self.now[offset..end].copy_from_slice(bytes);
        self.note(offset..end);
    }

    /// Cuts off, or lengthens by zeros.
    pub fn resize(&mut self, len: usize) {
        let before = self.now.len();
        self.now.resize(len, 0);
        for range in &mut self.dirty {
            *range = range.start.min(len)..range.end.min(len);
        }
        self.dirty.retain(|range| !range.is_empty());
        if len > before {
            self.note(before..len);
        }
    }

    /// Makes all of it survive a cut.
    pub fn sync(&mut self) {
        self.durable.resize(self.now.len(), 0);
        for range in self.dirty.drain(..) {
            self.durable[range.clone()].copy_from_slice(&self.now[range]);
        }
    }

    /// What a failed sync does: its pages count as clean from now on, and were never written.
    pub fn fail_sync(&mut self) {
        self.dirty.clear();
    }

    /// Takes back what was not synced, but for the pages that `survives` says true of; returns the bytes taken.
    pub fn cut(&mut self, survives: &mut impl FnMut() -> bool) -> u64 {
        let mut taken = 0;
        for range in std::mem::take(&mut self.dirty) {
            for page in pages(range) {
                if !survives() {
                    taken += page.len() as u64;
                    continue;
                }
                if self.durable.len() < page.end {
                    self.durable.resize(page.end, 0);
                }
                self.durable[page.clone()].copy_from_slice(&self.now[page]);
            }
        }
        self.now.clone_from(&self.durable);
        taken
    }

    fn note(&mut self, range: Range<usize>) {
        match self.dirty.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ if range.is_empty() => {}
            _ => self.dirty.push(range),
        }
    }
}

/// The pieces of a range, cut where pages meet.
fn pages(range: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let first = range.start / PAGE_BYTES;
    (first..range.end.div_ceil(PAGE_BYTES))
        .map(move |page| (page * PAGE_BYTES).max(range.start)..((page + 1) * PAGE_BYTES).min(range.end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(contents: &mut Contents) -> u64 {
        contents.cut(&mut || false)
    }

    #[test]
    fn what_was_synced_stays_and_the_rest_goes() {
        let mut contents = Contents::default();
        contents.write(0, b"synced");
        contents.sync();
        contents.write(3, b"other and longer");
        assert_eq!(contents.now(), b"synother and longer");
        assert_eq!(cut(&mut contents), 16);
        assert_eq!(contents.now(), b"synced");
    }

    #[test]
    fn lengths_are_synced_as_well() {
        let mut contents = Contents::default();
        contents.write(0, b"0123456789");
        contents.sync();
        contents.resize(4);
        cut(&mut contents);
        assert_eq!(contents.now(), b"0123456789", "a cut-off that was not synced is undone");
        contents.resize(4);
        contents.resize(6);
        contents.sync();
        cut(&mut contents);
        assert_eq!(contents.now(), b"0123\0\0");
    }

    #[test]
    fn a_failed_sync_is_not_made_good_by_the_next() {
        let mut contents = Contents::default();
        contents.write(0, b"lost");
        contents.fail_sync();
        contents.write(4, b"kept");
        assert_eq!(contents.now(), b"lostkept");
        contents.sync();
        cut(&mut contents);
        assert_eq!(contents.now(), b"\0\0\0\0kept");
    }

    #[test]
    fn pages_survive_one_by_one() {
        let mut contents = Contents::default();
        contents.resize(4 * PAGE_BYTES);
        contents.sync();
        contents.write(100, &[1; 3 * PAGE_BYTES]);
        let mut page = 0;
        let taken = contents.cut(&mut || {
            page += 1;
            page == 2
        });
        assert_eq!((page, taken as usize), (4, 2 * PAGE_BYTES));
        let ones: Vec<usize> = (0..contents.now().len()).filter(|at| contents.now()[*at] == 1).collect();
        assert_eq!((ones[0], ones.len()), (PAGE_BYTES, PAGE_BYTES));
    }
}
