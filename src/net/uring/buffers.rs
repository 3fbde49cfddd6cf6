//! The ring of receive buffers that the kernel fills and this thread empties. Buffers are emptied in the order
//! in which the kernel filled them and go straight back: nothing ever keeps one.
#![allow(unsafe_code, reason = "memory that is shared with the kernel")]

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::Submitter;
use io_uring::types::BufRingEntry;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// `IOU_PBUF_RING_INC`: a buffer is filled by several reads until it is full (Linux 6.12,
/// io_uring_register_buf_ring(3)).
const INCREMENTAL: u16 = 2;
/// Size of one buffer that is filled by several reads: large, so that bulk writers are read in few steps.
const INCREMENTAL_BYTES: usize = 256 * 1024;
/// Size of one buffer that is used up by one read, however small.
const PLAIN_BYTES: usize = 16 * 1024;

/// See the module.
pub(super) struct Buffers {
    ring: NonNull<BufRingEntry>,
    memory: NonNull<u8>,
    count: u16,
    buffer_bytes: usize,
    tail: u16,
    /// How far each buffer was emptied.
    consumed: Vec<usize>,
}

impl Buffers {
    /// Registers `total_bytes` of buffers, rounded down to a power of two of them, as `group`.
    pub(super) fn new(
        submitter: &Submitter<'_>,
        group: u16,
        total_bytes: usize,
        incremental: bool,
    ) -> io::Result<Self> {
        let buffer_bytes = if incremental { INCREMENTAL_BYTES } else { PLAIN_BYTES };
        let count = (total_bytes / buffer_bytes).clamp(2, 1024);
        let count = 1u16 << count.ilog2();
        let ring = map(usize::from(count) * size_of::<BufRingEntry>())?.cast::<BufRingEntry>();
        let memory = map(usize::from(count) * buffer_bytes)?;
        let mut buffers =
            Self { ring, memory, count, buffer_bytes, tail: 0, consumed: vec![0; usize::from(count)] };
        let flags = if incremental { INCREMENTAL } else { 0 };
        // SAFETY: the ring was mapped for `count` entries, is aligned to a page, and lives as long as `buffers`,
        // which outlives the io_uring (fields of `Uring` are dropped in order, the ring first).
        unsafe { submitter.register_buf_ring_with_flags(ring.as_ptr() as u64, count, group, flags)? };
        (0..count).for_each(|buffer| buffers.give_back(buffer));
        buffers.publish();
        Ok(buffers)
    }

    /// The next `length` bytes that the kernel has written to `buffer`.
    pub(super) fn filled(&self, buffer: u16, length: usize) -> &[u8] {
        let start = self.consumed[usize::from(buffer)];
        assert!(start + length <= self.buffer_bytes, "the kernel stays inside the buffer");
        // SAFETY: the range lies inside the mapping; the kernel wrote it before it posted the completion, and
        // writes behind it only, until the buffer is given back.
        unsafe {
            let first = self.memory.as_ptr().add(usize::from(buffer) * self.buffer_bytes + start);
            std::slice::from_raw_parts(first, length)
        }
    }

    /// Notes that `length` bytes were emptied; gives the buffer back unless the kernel still fills it.
    pub(super) fn consume(&mut self, buffer: u16, length: usize, more_to_come: bool) {
        if more_to_come {
            self.consumed[usize::from(buffer)] += length;
        } else {
            self.consumed[usize::from(buffer)] = 0;
            self.give_back(buffer);
        }
    }

    fn give_back(&mut self, buffer: u16) {
        let place = usize::from(self.tail & (self.count - 1));
        // SAFETY: `place` is below `count`; entries between head and tail belong to the kernel, and with at
        // most `count` buffers given out the entry at the tail is not among them.
        unsafe {
            let entry = &mut *self.ring.as_ptr().add(place);
            entry.set_addr(self.memory.as_ptr() as u64 + (usize::from(buffer) * self.buffer_bytes) as u64);
            entry.set_len(self.buffer_bytes as u32);
            entry.set_bid(buffer);
        }
        self.tail = self.tail.wrapping_add(1);
    }

    /// Lets the kernel see what was given back.
    pub(super) fn publish(&self) {
        // SAFETY: the tail lies in the first entry of the ring, which is mapped; the kernel reads it with acquire
        // semantics (io_uring_buf_ring_advance(3)).
        unsafe {
            let tail = BufRingEntry::tail(self.ring.as_ptr()).cast::<AtomicU16>();
            (*tail).store(self.tail, Ordering::Release);
        }
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        // SAFETY: both were mapped by `map` with these lengths, and the io_uring that knew them is gone.
        unsafe {
            let _ = munmap(self.ring.as_ptr().cast(), usize::from(self.count) * size_of::<BufRingEntry>());
            let _ = munmap(self.memory.as_ptr().cast(), usize::from(self.count) * self.buffer_bytes);
        }
    }
}

fn map(length: usize) -> io::Result<NonNull<u8>> {
    // SAFETY: an anonymous mapping at an address of the kernel's choice touches no memory of ours.
    let address = unsafe {
        mmap_anonymous(std::ptr::null_mut(), length, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)?
    };
    Ok(NonNull::new(address.cast()).expect("the kernel maps nothing at address 0"))
}
