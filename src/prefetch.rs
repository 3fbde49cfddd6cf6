//! A hint to the processor that memory is about to be written. It changes nothing but time, and is nothing where
//! no stable instruction for it exists (aarch64 today).

#![allow(unsafe_code, reason = "the hint is an intrinsic that takes any address")]

/// Octets that one hint covers.
const LINE_BYTES: usize = 64;

/// Hints that `length` octets from `at` on will be written soon. The address need not be valid.
#[inline]
pub fn for_writing(at: *const u8, length: usize) {
    #[cfg(target_arch = "x86_64")]
    for offset in (0..length).step_by(LINE_BYTES) {
        use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
        // SAFETY: prefetching reads nothing and never faults, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_ET0>(at.wrapping_add(offset).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (at, length, LINE_BYTES);
}
