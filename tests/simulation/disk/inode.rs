//! One file of the modelled disk: what a process sees of it, and what of that would survive a loss of power.

use std::collections::BTreeSet;

use bytes::Bytes;
use fastrand::Rng;

use super::token_of;

/// What a disk writes whole or not at all, in bytes.
const SECTOR: usize = 512;

/// Where the batch with a token stands in a file.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    pub token: u64,
    pub start: usize,
    pub lines: usize,
}

#[derive(Clone, Debug, Default)]
pub struct Inode {
    pub cached: Vec<u8>,
    pub durable: Vec<u8>,
    /// Writes since the last fsync.
    pending: Vec<(usize, Vec<u8>)>,
    pub extents: Vec<Extent>,
    pub flips: BTreeSet<usize>,
}

impl Inode {
    /// Writes the first `limit` bytes of the parts.
    pub fn write(&mut self, offset: usize, parts: &[Bytes], limit: usize) {
        let mut at = offset;
        for part in parts {
            if let Some(token) = token_of(part) {
                self.extents.push(Extent { token, start: at, lines: part.len() });
            }
            at += part.len();
        }
        let mut bytes = parts.concat();
        bytes.truncate(limit);
        let end = offset + bytes.len();
        self.cached.resize(self.cached.len().max(end), 0);
        self.cached[offset..end].copy_from_slice(&bytes);
        self.flips.retain(|flip| !(offset..end).contains(flip));
        self.pending.push((offset, bytes));
    }

    /// Cuts it to nothing, which is not synced.
    pub fn cut(&mut self) {
        *self = Self { durable: std::mem::take(&mut self.durable), ..Self::default() };
    }

    /// The events that stand in it.
    pub fn tokens(&self) -> BTreeSet<u64> {
        self.extents.iter().flat_map(|extent| self.tokens_of(*extent)).collect()
    }

    /// The events of the batch whose lines stand just there, if there is one.
    pub fn tokens_at(&self, start: usize, length: usize) -> Option<BTreeSet<u64>> {
        let extent = self.extents.iter().find(|extent| (extent.start, extent.lines) == (start, length))?;
        Some(self.tokens_of(*extent))
    }

    /// The events of a batch, as far as it is still what it was.
    fn tokens_of(&self, extent: Extent) -> BTreeSet<u64> {
        let end = (extent.start + extent.lines).min(self.cached.len());
        let lines = self.cached.get(extent.start..end).unwrap_or_default();
        lines.split_inclusive(|octet| *octet == b'\n').filter_map(token_of).collect()
    }

    pub fn sync(&mut self, mut is_written: impl FnMut() -> bool) {
        let touched = self.pending.drain(..).flat_map(|(offset, bytes)| sectors(offset, bytes.len()));
        let touched: BTreeSet<usize> = touched.collect();
        if is_written() {
            self.durable.resize(self.cached.len(), 0);
        }
        for sector in touched.into_iter().filter(|_| is_written()) {
            let (from, to) = (sector * SECTOR, ((sector + 1) * SECTOR).min(self.cached.len()));
            let to = to.min(self.durable.len());
            if from < to {
                self.durable[from..to].copy_from_slice(&self.cached[from..to]);
            }
        }
    }

    pub fn lose_power(&mut self, often: u32, rng: &mut Rng) {
        let length = if rng.bool() { self.cached.len() } else { rng.usize(..=self.cached.len()) };
        if rng.u32(..100) < often && length > self.durable.len() {
            self.durable.resize(length, 0);
        }
        let mut ended = BTreeSet::new();
        for (offset, bytes) in std::mem::take(&mut self.pending) {
            for sector in sectors(offset, bytes.len()) {
                if ended.contains(&sector) || rng.u32(..100) >= often {
                    ended.insert(sector);
                    continue;
                }
                let from = offset.max(sector * SECTOR);
                let to = (offset + bytes.len()).min((sector + 1) * SECTOR).min(self.durable.len());
                if from < to {
                    self.durable[from..to].copy_from_slice(&bytes[from - offset..to - offset]);
                }
            }
        }
        self.cached = self.durable.clone();
    }
}

fn sectors(offset: usize, length: usize) -> std::ops::Range<usize> {
    offset / SECTOR..(offset + length).div_ceil(SECTOR)
}
