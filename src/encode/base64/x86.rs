//! The x86-64 kernel: forty-eight bytes to sixty-four digits in three instructions of AVX-512 VBMI, as in Muła and
//! Lemire, "Base64 encoding and decoding at almost the speed of a memory copy" (2019). It reads and writes nothing
//! beside its two slices: what is left at their end goes through masked loads and stores.
#![allow(unsafe_code, reason = "vector instructions")]

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::length;

/// Raw bytes of a vector's worth of digits.
const BLOCK_BYTES: usize = 48;
const BLOCK_DIGITS: usize = 64;

/// The digits (RFC 4648, table 1).
const ALPHABET: &[u8; BLOCK_DIGITS] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Which raw bytes each group of four digits is cut from: of the bytes 0, 1, 2 the word 1, 0, 2, 1, so that no
/// digit's six bits straddle the end of a word.
const SPREAD: [u8; BLOCK_DIGITS] = spread();

const fn spread() -> [u8; BLOCK_DIGITS] {
    let mut order = [0; BLOCK_DIGITS];
    let mut place = 0;
    while place < BLOCK_DIGITS {
        order[place] = (place / 4 * 3) as u8 + [1, 0, 2, 1][place % 4];
        place += 1;
    }
    order
}

/// Where in each eight spread bytes the six bits of each digit begin: the lowest byte is the first digit.
const SIX_BITS: i64 = 0x3036_242a_1016_040a;

/// Proof that this processor has AVX-512 F, BW and VBMI.
#[derive(Clone, Copy, Debug)]
pub(super) struct Vbmi(());

impl Vbmi {
    /// The kernel, if it runs here. The standard library asks the processor once and remembers the answer.
    #[inline]
    pub(super) fn detect() -> Option<Self> {
        let here = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vbmi");
        here.then_some(Self(()))
    }

    /// Appends the base64 of `bytes`.
    pub(super) fn append(self, bytes: &[u8], text: &mut Vec<u8>) {
        let digits = length(bytes.len());
        text.reserve(digits);
        self.encode(bytes, &mut text.spare_capacity_mut()[..digits]);
        // SAFETY: there is capacity for so many more, as reserved above, and `encode` has written all of them.
        unsafe { text.set_len(text.len() + digits) };
    }

    /// Fills `text` with the base64 of `bytes`; it is as long as that.
    fn encode(self, bytes: &[u8], text: &mut [MaybeUninit<u8>]) {
        assert_eq!(text.len(), length(bytes.len()), "text has room for exactly these digits");
        // SAFETY: the processor has the instructions, or `detect` would not have given this value.
        unsafe { encode(bytes, text) }
    }
}

/// Every block, then what is left. `text` has exactly the length of the base64.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn encode(bytes: &[u8], text: &mut [MaybeUninit<u8>]) {
    let (blocks, rest) = bytes.as_chunks::<BLOCK_BYTES>();
    let (whole, end) = text.split_at_mut(blocks.len() * BLOCK_DIGITS);
    for (block, text) in blocks.iter().zip(whole.as_chunks_mut::<BLOCK_DIGITS>().0) {
        // SAFETY: the mask ends where the block does.
        let raw = unsafe { _mm512_maskz_loadu_epi8(first(BLOCK_BYTES), block.as_ptr().cast()) };
        // SAFETY: sixty-four bytes are a whole vector.
        unsafe { _mm512_storeu_si512(text.as_mut_ptr().cast(), digits(raw)) };
    }
    if !rest.is_empty() {
        encode_rest(rest, end);
    }
}

/// Less than a block, but something, and its padding. `text` has exactly the length of the base64.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn encode_rest(bytes: &[u8], text: &mut [MaybeUninit<u8>]) {
    // SAFETY: the mask ends where the bytes do; what it leaves out is read as zero bits.
    let raw = unsafe { _mm512_maskz_loadu_epi8(first(bytes.len()), bytes.as_ptr().cast()) };
    let unpadded = first((bytes.len() * 4).div_ceil(3));
    let padding = _mm512_set1_epi8(b'='.cast_signed());
    let padded = _mm512_mask_mov_epi8(padding, unpadded, digits(raw));
    // SAFETY: the mask ends where the text does.
    unsafe { _mm512_mask_storeu_epi8(text.as_mut_ptr().cast(), first(text.len()), padded) };
}

/// The digits of forty-eight bytes.
#[target_feature(enable = "avx512f,avx512vbmi")]
#[inline]
fn digits(raw: __m512i) -> __m512i {
    // SAFETY: both tables are sixty-four bytes.
    let (order, alphabet) =
        unsafe { (_mm512_loadu_si512(SPREAD.as_ptr().cast()), _mm512_loadu_si512(ALPHABET.as_ptr().cast())) };
    let words = _mm512_permutexvar_epi8(order, raw);
    // Each byte's upper two bits belong to its neighbours; the lookup ignores them.
    let values = _mm512_multishift_epi64_epi8(_mm512_set1_epi64(SIX_BITS), words);
    _mm512_permutexvar_epi8(values, alphabet)
}

/// A mask of the first `count` bytes of a vector, 1 to 64.
#[inline]
fn first(count: usize) -> __mmask64 {
    u64::MAX >> (u64::BITS as usize - count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};

    const LENGTH_MAX: usize = 400;

    fn pattern() -> Vec<u8> {
        (0..LENGTH_MAX + BLOCK_DIGITS).map(|index| (index * 167 % 256) as u8).collect()
    }

    fn written(text: &mut [u8]) -> &mut [MaybeUninit<u8>] {
        // SAFETY: `encode` writes nothing but initialized bytes.
        unsafe { &mut *(std::ptr::from_mut(text) as *mut [MaybeUninit<u8>]) }
    }

    #[test]
    fn every_length_at_every_alignment_is_right_and_nothing_beside_it_is_written() {
        let Some(kernel) = Vbmi::detect() else { return };
        let bytes = pattern();
        let mut text = [0; 2 * LENGTH_MAX];
        for count in 0..=LENGTH_MAX {
            for offset in 0..BLOCK_DIGITS {
                let bytes = &bytes[offset..][..count];
                let wanted = aws_smithy_types::base64::encode(bytes);
                // Backwards through the alignments, so that the two do not go together.
                let (start, end) = (BLOCK_DIGITS - offset, BLOCK_DIGITS - offset + wanted.len());
                text.fill(b'!');
                kernel.encode(bytes, written(&mut text[start..end]));
                assert_eq!(&text[start..end], wanted.as_bytes(), "{count} bytes at {offset}");
                let beside = text[..start].iter().chain(&text[end..]);
                assert!(beside.copied().all(|octet| octet == b'!'), "{count} bytes at {offset}");
            }
        }
    }

    /// Two pages: one to use, and one behind it whose touch is a fault.
    struct Guarded(*mut u8);

    impl Guarded {
        const PAGE_BYTES: usize = 4096;

        fn new() -> Self {
            let (size, flags) = (2 * Self::PAGE_BYTES, ProtFlags::READ | ProtFlags::WRITE);
            // SAFETY: new pages where the kernel likes, nothing is replaced; then the second of them is shut.
            let pages = unsafe {
                let pages =
                    mmap_anonymous(std::ptr::null_mut(), size, flags, MapFlags::PRIVATE).expect("two pages");
                mprotect(pages.byte_add(Self::PAGE_BYTES), Self::PAGE_BYTES, MprotectFlags::empty())
                    .expect("ours");
                pages
            };
            Self(pages.cast())
        }

        /// The last `count` bytes before the fault.
        fn last(&mut self, count: usize) -> &mut [u8] {
            assert!(count <= Self::PAGE_BYTES);
            // SAFETY: the first page is readable, writable and ours alone for as long as we are borrowed.
            unsafe { std::slice::from_raw_parts_mut(self.0.add(Self::PAGE_BYTES - count), count) }
        }
    }

    impl Drop for Guarded {
        fn drop(&mut self) {
            // SAFETY: these are the pages that `new` made, and nobody borrows them any more.
            unsafe { munmap(self.0.cast(), 2 * Self::PAGE_BYTES).expect("ours") };
        }
    }

    #[test]
    fn nothing_behind_the_end_is_touched() {
        let Some(kernel) = Vbmi::detect() else { return };
        let (mut bytes, mut text) = (Guarded::new(), Guarded::new());
        for count in 0..=LENGTH_MAX {
            bytes.last(count).copy_from_slice(&pattern()[..count]);
            let wanted = aws_smithy_types::base64::encode(&pattern()[..count]);
            kernel.encode(bytes.last(count), written(text.last(wanted.len())));
            assert_eq!(text.last(wanted.len()), wanted.as_bytes(), "{count} bytes");
        }
    }
}
