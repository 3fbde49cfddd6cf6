//! The x86-64 kernels: four chains through the SHA extensions, or sixteen in the lanes of AVX-512. Compression as
//! in FIPS 180-4, 6.2.2; instructions as in Intel's "SHA Extensions" and the Intrinsics Guide.
#![allow(unsafe_code, reason = "vector instructions")]

use std::arch::x86_64::*;
use std::sync::OnceLock;

use super::{BLOCK_BYTES, LANES_MAX};

/// The round constants (FIPS 180-4, 4.2.2).
#[rustfmt::skip]
const K: [u32; 64] = [
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
];

/// Below so many chains four at a time through the SHA extensions beat sixteen lanes that are partly idle: four
/// chains run at 3.9 GB/s, sixteen lanes at 5.5 GB/s when full (Zen 5).
const WIDE_FROM: usize = 12;

/// How far ahead of sixteen chains their bytes are asked for: full bodies come from memory, sixteen places at once
/// are more than the processor follows by itself.
const PREFETCH_BYTES: usize = 1024;

/// What this processor can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kernel {
    /// Four chains at a time.
    ShaExtensions,
    /// Sixteen chains at a time.
    Avx512,
    /// Whichever of the two suits the number of chains.
    Both,
}

impl Kernel {
    /// The best kernel here, if there is any.
    pub(super) fn detect() -> Option<Kernel> {
        static DETECTED: OnceLock<Option<Kernel>> = OnceLock::new();
        *DETECTED.get_or_init(|| match (has_sha_extensions(), has_avx512()) {
            (true, true) => Some(Kernel::Both),
            (true, false) => Some(Kernel::ShaExtensions),
            (false, true) => Some(Kernel::Avx512),
            (false, false) => None,
        })
    }

    /// Every kernel that works here.
    #[cfg(test)]
    pub(super) fn all_here() -> Vec<Kernel> {
        let mut kernels = Vec::new();
        kernels.extend(has_sha_extensions().then_some(Kernel::ShaExtensions));
        kernels.extend(has_avx512().then_some(Kernel::Avx512));
        kernels.extend((kernels.len() == 2).then_some(Kernel::Both));
        kernels
    }

    /// Advances each state by `count` blocks of the bytes beside it. At most [`LANES_MAX`] of them.
    pub(super) fn compress(self, states: &mut [[u32; 8]], data: &[&[u8]], count: usize) {
        assert_eq!(states.len(), data.len());
        assert!(states.len() <= LANES_MAX && data.iter().all(|bytes| bytes.len() >= count * BLOCK_BYTES));
        let wide = match self {
            Kernel::ShaExtensions => false,
            Kernel::Avx512 => true,
            Kernel::Both => states.len() >= WIDE_FROM,
        };
        if wide {
            // SAFETY: the processor has AVX-512 F and BW, or `detect` would not have given this kernel; every
            // slice has `count` blocks, as asserted above.
            return unsafe { compress_16(states, data, count) };
        }
        for (states, data) in states.chunks_mut(4).zip(data.chunks(4)) {
            // SAFETY: the processor has the SHA extensions, or `detect` would not have given this kernel; every
            // slice has `count` blocks, as asserted above.
            unsafe {
                match states.len() {
                    1 => compress_n::<1>(states, data, count),
                    2 => compress_n::<2>(states, data, count),
                    3 => compress_n::<3>(states, data, count),
                    _ => compress_n::<4>(states, data, count),
                }
            }
        }
    }
}

fn has_sha_extensions() -> bool {
    is_x86_feature_detected!("sha") && is_x86_feature_detected!("ssse3") && is_x86_feature_detected!("sse4.1")
}

fn has_avx512() -> bool {
    is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw")
}

/// `N` chains, interleaved so that one works while the others wait for their last instruction.
///
/// # Safety
/// The processor has SHA, SSSE3 and SSE4.1; there are `N` states and `N` slices of at least `count` blocks.
#[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
unsafe fn compress_n<const N: usize>(states: &mut [[u32; 8]], data: &[&[u8]], count: usize) {
    let big_endian = _mm_set_epi64x(0x0c0d_0e0f_0809_0a0b, 0x0405_0607_0001_0203);
    let mut abef = [_mm_setzero_si128(); N];
    let mut cdgh = [_mm_setzero_si128(); N];
    for lane in 0..N {
        // SAFETY: a state is 32 bytes.
        let (dcba, hgfe) = unsafe {
            let state = states[lane].as_ptr().cast::<__m128i>();
            (_mm_loadu_si128(state), _mm_loadu_si128(state.add(1)))
        };
        let (cdab, efgh) = (_mm_shuffle_epi32(dcba, 0xb1), _mm_shuffle_epi32(hgfe, 0x1b));
        abef[lane] = _mm_alignr_epi8(cdab, efgh, 8);
        cdgh[lane] = _mm_blend_epi16(efgh, cdab, 0xf0);
    }
    for block in 0..count {
        let (abef_before, cdgh_before) = (abef, cdgh);
        let mut words = [[_mm_setzero_si128(); 4]; N];
        for lane in 0..N {
            for (part, word) in words[lane].iter_mut().enumerate() {
                // SAFETY: the slice has `count` blocks of four such parts.
                let bytes = unsafe {
                    let first = data[lane].as_ptr().add(block * BLOCK_BYTES);
                    _mm_loadu_si128(first.cast::<__m128i>().add(part))
                };
                *word = _mm_shuffle_epi8(bytes, big_endian);
            }
        }
        for step in 0..16 {
            // SAFETY: there are sixteen groups of four constants.
            let constants = unsafe { _mm_loadu_si128(K.as_ptr().cast::<__m128i>().add(step)) };
            let mut sums = [_mm_setzero_si128(); N];
            for lane in 0..N {
                let w = &mut words[lane];
                if step >= 4 {
                    let (w0, w1, w2, w3) =
                        (w[step % 4], w[(step + 1) % 4], w[(step + 2) % 4], w[(step + 3) % 4]);
                    let partial = _mm_add_epi32(_mm_sha256msg1_epu32(w0, w1), _mm_alignr_epi8(w3, w2, 4));
                    w[step % 4] = _mm_sha256msg2_epu32(partial, w3);
                }
                sums[lane] = _mm_add_epi32(w[step % 4], constants);
                cdgh[lane] = _mm_sha256rnds2_epu32(cdgh[lane], abef[lane], sums[lane]);
            }
            for lane in 0..N {
                abef[lane] =
                    _mm_sha256rnds2_epu32(abef[lane], cdgh[lane], _mm_shuffle_epi32(sums[lane], 0x0e));
            }
        }
        for lane in 0..N {
            abef[lane] = _mm_add_epi32(abef[lane], abef_before[lane]);
            cdgh[lane] = _mm_add_epi32(cdgh[lane], cdgh_before[lane]);
        }
    }
    for lane in 0..N {
        let (feba, dchg) = (_mm_shuffle_epi32(abef[lane], 0x1b), _mm_shuffle_epi32(cdgh[lane], 0xb1));
        // SAFETY: a state is 32 bytes.
        unsafe {
            let state = states[lane].as_mut_ptr().cast::<__m128i>();
            _mm_storeu_si128(state, _mm_blend_epi16(feba, dchg, 0xf0));
            _mm_storeu_si128(state.add(1), _mm_alignr_epi8(dchg, feba, 8));
        }
    }
}

/// Up to sixteen chains, one in each 32-bit lane.
///
/// # Safety
/// The processor has AVX-512 F and BW; there are at most sixteen states, as many slices, at least one, and each
/// slice has at least `count` blocks.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn compress_16(states: &mut [[u32; 8]], data: &[&[u8]], count: usize) {
    // Idle lanes read what the first reads; what they compute is never looked at.
    let first: [*const u8; LANES_MAX] =
        std::array::from_fn(|lane| data.get(lane).map_or(data[0].as_ptr(), |bytes| bytes.as_ptr()));
    let mut columns = [[0u32; LANES_MAX]; 8];
    for (lane, state) in states.iter().enumerate() {
        for (column, word) in columns.iter_mut().zip(state) {
            column[lane] = *word;
        }
    }
    // SAFETY: a column is 64 bytes.
    let mut state: [__m512i; 8] =
        std::array::from_fn(|word| unsafe { _mm512_loadu_si512(columns[word].as_ptr().cast()) });
    for block in 0..count {
        for start in &first {
            // Past the end it asks for what nobody reads: prefetching never faults.
            let ahead = start.wrapping_add(block * BLOCK_BYTES + PREFETCH_BYTES);
            _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
        }
        // SAFETY: every slice has `count` blocks.
        let mut words: [__m512i; 16] = std::array::from_fn(|lane| unsafe {
            _mm512_loadu_si512(first[lane].add(block * BLOCK_BYTES).cast())
        });
        to_big_endian(&mut words);
        transpose(&mut words);
        state = compress_block(state, words);
    }
    for (column, word) in columns.iter_mut().zip(state) {
        // SAFETY: a column is 64 bytes.
        unsafe { _mm512_storeu_si512(column.as_mut_ptr().cast(), word) };
    }
    for (lane, state) in states.iter_mut().enumerate() {
        *state = std::array::from_fn(|word| columns[word][lane]);
    }
}

/// Turns the bytes of every 32-bit word around.
#[target_feature(enable = "avx512f,avx512bw")]
fn to_big_endian(words: &mut [__m512i; 16]) {
    let order = _mm512_broadcast_i32x4(_mm_set_epi64x(0x0c0d_0e0f_0809_0a0b, 0x0405_0607_0001_0203));
    for word in words {
        *word = _mm512_shuffle_epi8(*word, order);
    }
}

/// Turns sixteen rows, a block each, into sixteen columns, a word of all blocks each.
#[target_feature(enable = "avx512f")]
fn transpose(rows: &mut [__m512i; 16]) {
    let mut pairs = *rows;
    for group in (0..16).step_by(4) {
        pairs[group] = _mm512_unpacklo_epi32(rows[group], rows[group + 1]);
        pairs[group + 1] = _mm512_unpackhi_epi32(rows[group], rows[group + 1]);
        pairs[group + 2] = _mm512_unpacklo_epi32(rows[group + 2], rows[group + 3]);
        pairs[group + 3] = _mm512_unpackhi_epi32(rows[group + 2], rows[group + 3]);
    }
    let mut fours = pairs;
    for group in (0..16).step_by(4) {
        fours[group] = _mm512_unpacklo_epi64(pairs[group], pairs[group + 2]);
        fours[group + 1] = _mm512_unpackhi_epi64(pairs[group], pairs[group + 2]);
        fours[group + 2] = _mm512_unpacklo_epi64(pairs[group + 1], pairs[group + 3]);
        fours[group + 3] = _mm512_unpackhi_epi64(pairs[group + 1], pairs[group + 3]);
    }
    for word in 0..4 {
        let (a, b, c, d) = (fours[word], fours[4 + word], fours[8 + word], fours[12 + word]);
        let (ab_even, ab_odd) = (_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xdd));
        let (cd_even, cd_odd) = (_mm512_shuffle_i32x4(c, d, 0x88), _mm512_shuffle_i32x4(c, d, 0xdd));
        rows[word] = _mm512_shuffle_i32x4(ab_even, cd_even, 0x88);
        rows[4 + word] = _mm512_shuffle_i32x4(ab_odd, cd_odd, 0x88);
        rows[8 + word] = _mm512_shuffle_i32x4(ab_even, cd_even, 0xdd);
        rows[12 + word] = _mm512_shuffle_i32x4(ab_odd, cd_odd, 0xdd);
    }
}

/// The sixty-four rounds, sixteen chains at once.
#[target_feature(enable = "avx512f")]
fn compress_block(before: [__m512i; 8], mut words: [__m512i; 16]) -> [__m512i; 8] {
    let mut state = before;
    for sixteen in 0..4 {
        // Unrolled by the compiler: the indices into `words` are constants then.
        for place in 0..16 {
            state = round(state, words[place], K[16 * sixteen + place]);
            if sixteen < 3 {
                words[place] = schedule(
                    words[place],
                    words[(place + 1) % 16],
                    words[(place + 9) % 16],
                    words[(place + 14) % 16],
                );
            }
        }
    }
    std::array::from_fn(|word| _mm512_add_epi32(state[word], before[word]))
}

/// One round (FIPS 180-4, 6.2.2, step 3). The names are the standard's.
#[target_feature(enable = "avx512f")]
#[inline]
fn round([a, b, c, d, e, f, g, h]: [__m512i; 8], word: __m512i, constant: u32) -> [__m512i; 8] {
    let sum_1 = xor3(_mm512_ror_epi32(e, 6), _mm512_ror_epi32(e, 11), _mm512_ror_epi32(e, 25));
    let choose = _mm512_ternarylogic_epi32(e, f, g, 0xca);
    let input = _mm512_add_epi32(word, _mm512_set1_epi32(constant.cast_signed()));
    let t1 = _mm512_add_epi32(_mm512_add_epi32(h, sum_1), _mm512_add_epi32(choose, input));
    let sum_0 = xor3(_mm512_ror_epi32(a, 2), _mm512_ror_epi32(a, 13), _mm512_ror_epi32(a, 22));
    let majority = _mm512_ternarylogic_epi32(a, b, c, 0xe8);
    let t2 = _mm512_add_epi32(sum_0, majority);
    [_mm512_add_epi32(t1, t2), a, b, c, _mm512_add_epi32(d, t1), e, f, g]
}

/// The word sixteen places on in the message schedule (FIPS 180-4, 6.2.2, step 1).
#[target_feature(enable = "avx512f")]
#[inline]
fn schedule(w0: __m512i, w1: __m512i, w9: __m512i, w14: __m512i) -> __m512i {
    let sigma_0 = xor3(_mm512_ror_epi32(w1, 7), _mm512_ror_epi32(w1, 18), _mm512_srli_epi32(w1, 3));
    let sigma_1 = xor3(_mm512_ror_epi32(w14, 17), _mm512_ror_epi32(w14, 19), _mm512_srli_epi32(w14, 10));
    _mm512_add_epi32(_mm512_add_epi32(w0, sigma_0), _mm512_add_epi32(w9, sigma_1))
}

#[target_feature(enable = "avx512f")]
#[inline]
fn xor3(a: __m512i, b: __m512i, c: __m512i) -> __m512i {
    _mm512_ternarylogic_epi32(a, b, c, 0x96)
}
