//! What is inside a generated event: who sent it, which one it is, when it was planned, and a check sum. It is
//! not the frame around it: the stream name is outside, but the check sum covers it, so an event delivered to
//! the wrong stream shows as corrupted.
//!
//! An event is readable ASCII, a JSON object, with a header of fixed width:
//!
//! ```text
//! {"e":"0000070000000001.18a1b2c3d4e5f607.1234abcd","p":"seeded filler…"}
//!       │     │          │                └ check sum: CRC32C over the stream name and all bytes but these 8
//!       │     │          └ planned send time, ns since the Unix epoch
//!       │     └ sequence within (connection, stream), 40 bits
//!       └ connection, 24 bits
//! ```
//!
//! Invariants: an event holds no LF; it is at least [`MIN_SIZE`] bytes; equal (seed, connection, index) give
//! the same size and filler whatever the timing. Nothing is formatted on the hot path: digits come from bit
//! operations, filler from a block made once.

use crate::units::Sizes;

/// The smallest event, in bytes: header and tail without filler.
pub const MIN_SIZE: usize = FILLER_AT + TAIL.len();

/// The largest event, in bytes: the relay's default `frame_max`, which with its LF fills one Firehose record.
pub const MAX_SIZE: usize = 1_023_999;

/// Sequences are below this (40 bits).
pub const MAX_SEQUENCE: u64 = 1 << SEQUENCE_BITS;

/// Connections are below this (24 bits).
pub const MAX_CONNECTIONS: u32 = 1 << 24;

const SEQUENCE_BITS: u32 = 40;
const HEAD: &[u8] = br#"{"e":""#;
const FILLER_HEAD: &[u8] = br#"","p":""#;
const TAIL: &[u8] = br#""}"#;
const IDENTITY_AT: usize = HEAD.len();
const PLANNED_AT: usize = IDENTITY_AT + 16 + 1;
const CHECK_AT: usize = PLANNED_AT + 16 + 1;
const CHECK_END: usize = CHECK_AT + 8;
const FILLER_AT: usize = CHECK_END + FILLER_HEAD.len();

/// Fillers of consecutive events start at different places of one block; this many places keep it in the L1 cache.
const FILLER_STARTS: usize = 4096;

const FILLER_ALPHABET: &[u8] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 -_.,:;/";

/// The header of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// The sender's number for its connection, below [`MAX_CONNECTIONS`].
    pub connection: u32,
    /// Counts from 0 within (connection, stream), without gaps.
    pub sequence: u64,
    /// When the schedule wanted it sent, in ns since the Unix epoch.
    pub planned_ns: u64,
    /// CRC32C over the stream name and the event without these digits.
    pub check: u32,
}

/// The check sum's state after the name of a stream: kept per stream, continued per event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamSeed(u32);

impl StreamSeed {
    /// The state after this name, as it stands in the frame.
    pub fn new(stream: &str) -> Self {
        Self(crc32c::crc32c(stream.as_bytes()))
    }
}

/// Builds events of one run.
#[derive(Debug)]
pub struct Builder {
    seed: u64,
    sizes: Sizes,
    filler: Vec<u8>,
}

impl Builder {
    /// A builder of events whose sizes lie in `sizes`.
    ///
    /// # Errors
    ///
    /// A sentence if the sizes leave [`MIN_SIZE`]..=[`MAX_SIZE`].
    pub fn new(seed: u64, sizes: Sizes) -> anyhow::Result<Self> {
        anyhow::ensure!(
            sizes.min >= MIN_SIZE && sizes.max <= MAX_SIZE,
            "events can have from {MIN_SIZE} to {MAX_SIZE} bytes, but {sizes} was asked for"
        );
        let mut random = fastrand::Rng::with_seed(seed);
        let len = sizes.max - MIN_SIZE + FILLER_STARTS;
        let filler = (0..len).map(|_| FILLER_ALPHABET[random.usize(..FILLER_ALPHABET.len())]).collect();
        Ok(Self { seed, sizes, filler })
    }

    /// The size in bytes of the event with this index (counted over all streams) on this connection.
    #[inline]
    pub fn size(&self, connection: u32, index: u64) -> usize {
        let span = self.sizes.max - self.sizes.min;
        if span == 0 {
            return self.sizes.min;
        }
        let random = mix(self.seed, connection, index) >> 32;
        self.sizes.min + (random % (span as u64 + 1)) as usize
    }

    /// Appends the event with this index on this connection, and returns its check sum.
    #[inline]
    pub fn append(&self, out: &mut Vec<u8>, stream: StreamSeed, index: u64, event: &Event) -> u32 {
        let size = self.size(event.connection, index);
        let mut header = *b"{\"e\":\"0000000000000000.0000000000000000.00000000\",\"p\":\"";
        let identity = u64::from(event.connection) << SEQUENCE_BITS | (event.sequence & (MAX_SEQUENCE - 1));
        header[IDENTITY_AT..][..16].copy_from_slice(&hex16(identity));
        header[PLANNED_AT..][..16].copy_from_slice(&hex16(event.planned_ns));
        let filler_start = (mix(self.seed, event.connection, index) % FILLER_STARTS as u64) as usize;
        let start = out.len();
        out.extend_from_slice(&header);
        out.extend_from_slice(&self.filler[filler_start..][..size - MIN_SIZE]);
        out.extend_from_slice(TAIL);
        let check = check_sum(stream, &out[start..]);
        out[start + CHECK_AT..][..8].copy_from_slice(&hex8(check));
        check
    }
}

/// Reads the header. `None` if this payload was not built here, or its header is damaged.
#[inline]
pub fn parse(payload: &[u8]) -> Option<Event> {
    if payload.len() < MIN_SIZE || !looks_generated(payload) {
        return None;
    }
    let identity = unhex16(payload[IDENTITY_AT..][..16].try_into().expect("16 bytes were taken"))?;
    let planned_ns = unhex16(payload[PLANNED_AT..][..16].try_into().expect("16 bytes were taken"))?;
    let check = unhex8(payload[CHECK_AT..][..8].try_into().expect("8 bytes were taken"))?;
    let connection = (identity >> SEQUENCE_BITS) as u32;
    Some(Event { connection, sequence: identity & (MAX_SEQUENCE - 1), planned_ns, check })
}

/// Whether the payload starts as a generated event does: then a header that does not parse is damage, and
/// otherwise the payload is somebody else's.
pub fn looks_generated(payload: &[u8]) -> bool {
    payload.starts_with(HEAD)
}

/// Whether the whole payload is as it was built for this stream; `event` is its parsed header.
#[inline]
pub fn verify(stream: StreamSeed, payload: &[u8], event: &Event) -> bool {
    payload.len() >= MIN_SIZE && check_sum(stream, payload) == event.check
}

#[inline]
fn check_sum(stream: StreamSeed, payload: &[u8]) -> u32 {
    let before = crc32c::crc32c_append(stream.0, &payload[..CHECK_AT]);
    crc32c::crc32c_append(before, &payload[CHECK_END..])
}

/// SplitMix64 over what names an event: sizes and fillers do not depend on timing.
#[inline]
fn mix(seed: u64, connection: u32, index: u64) -> u64 {
    let mut z = seed
        ^ (u64::from(connection) << SEQUENCE_BITS).wrapping_add(index).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Eight lower-case hexadecimal digits, computed in the eight bytes of one word: spread the nibbles to a byte
/// each, the most significant first in memory, then add `'0'`, and 39 more where a letter is due.
#[inline]
fn hex8(number: u32) -> [u8; 8] {
    let mut word = u64::from(number.swap_bytes());
    word = (word | word << 16) & 0x0000_ffff_0000_ffff;
    word = (word | word << 8) & 0x00ff_00ff_00ff_00ff;
    word = (word >> 4 & 0x000f_000f_000f_000f) | (word & 0x000f_000f_000f_000f) << 8;
    let letters = (word + 0x0606_0606_0606_0606) >> 4 & 0x0101_0101_0101_0101;
    (word + 0x3030_3030_3030_3030 + letters * 39).to_le_bytes()
}

#[inline]
fn hex16(number: u64) -> [u8; 16] {
    let mut digits = [0; 16];
    digits[..8].copy_from_slice(&hex8((number >> 32) as u32));
    digits[8..].copy_from_slice(&hex8(number as u32));
    digits
}

/// The inverse of [`hex8`]; anything else than its eight digits gives `None`, because it is encoded again and compared.
#[inline]
fn unhex8(digits: [u8; 8]) -> Option<u32> {
    let word = u64::from_le_bytes(digits);
    let letters = word >> 6 & 0x0101_0101_0101_0101;
    let nibbles = (word & 0x0f0f_0f0f_0f0f_0f0f) + letters * 9;
    let mut bytes = (nibbles & 0x000f_000f_000f_000f) << 4 | (nibbles >> 8 & 0x000f_000f_000f_000f);
    bytes = (bytes | bytes >> 8) & 0x0000_ffff_0000_ffff;
    bytes |= bytes >> 16;
    let number = (bytes as u32).swap_bytes();
    (hex8(number) == digits).then_some(number)
}

#[inline]
fn unhex16(digits: [u8; 16]) -> Option<u64> {
    let high = unhex8(digits[..8].try_into().expect("8 of 16 bytes"))?;
    let low = unhex8(digits[8..].try_into().expect("8 of 16 bytes"))?;
    Some(u64::from(high) << 32 | u64::from(low))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(size: usize, stream: &str, index: u64, event: Event) -> Vec<u8> {
        let builder = Builder::new(7, Sizes { min: size, max: size }).unwrap();
        let mut out = Vec::new();
        builder.append(&mut out, StreamSeed::new(stream), index, &event);
        out
    }

    fn event(sequence: u64) -> Event {
        Event { connection: 9_999, sequence, planned_ns: 1_800_000_000_123_456_789, check: 0 }
    }

    #[test]
    fn hexadecimal_digits_are_those_of_the_standard_library() {
        let mut random = fastrand::Rng::with_seed(1);
        for number in [0, 1, 9, 10, 15, 16, u32::MAX].into_iter().chain((0..10_000).map(|_| random.u32(..))) {
            assert_eq!(hex8(number), format!("{number:08x}").as_bytes());
            assert_eq!(unhex8(hex8(number)), Some(number));
        }
        for bad in
            [b"0000000g", b"0000000G", b"0000000A", b"0000000/", b"0000000:", b" 0000000", b"0000\n000"]
        {
            assert_eq!(unhex8(*bad), None, "{}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn events_of_all_sizes_round_trip() {
        for size in (MIN_SIZE..=300).chain([1_000, 16_000, 65_536, MAX_SIZE]) {
            let payload = build(size, "clicks", 3, event(MAX_SEQUENCE - 1));
            assert_eq!(payload.len(), size);
            assert!(payload.is_ascii() && !payload.contains(&b'\n'));
            let parsed = parse(&payload).unwrap();
            assert_eq!(Event { check: 0, ..parsed }, event(MAX_SEQUENCE - 1));
            assert!(verify(StreamSeed::new("clicks"), &payload, &parsed));
            assert!(!verify(StreamSeed::new("click"), &payload, &parsed), "the check sum covers the stream");
        }
    }

    #[test]
    fn an_event_is_json() {
        let payload = build(64, "clicks", 0, event(0));
        let value: serde_json::Value = serde_json::from_slice(&payload).unwrap();
        assert!(value["e"].is_string() && value["p"].is_string());
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let payload = build(100, "clicks", 0, event(5));
        for bit in 0..payload.len() * 8 {
            let mut damaged = payload.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let noticed = parse(&damaged).is_none_or(|e| !verify(StreamSeed::new("clicks"), &damaged, &e));
            assert!(noticed, "bit {bit}");
        }
    }

    #[test]
    fn shortened_and_lengthened_events_are_noticed() {
        let payload = build(100, "clicks", 0, event(5));
        for len in 0..payload.len() {
            let short = &payload[..len];
            assert!(parse(short).is_none_or(|e| !verify(StreamSeed::new("clicks"), short, &e)), "{len}");
        }
        let long = [payload.as_slice(), b"x"].concat();
        assert!(!verify(StreamSeed::new("clicks"), &long, &parse(&long).unwrap()));
    }

    #[test]
    fn sizes_stay_in_their_range_and_do_not_depend_on_the_order_of_building() {
        let builder = Builder::new(1, Sizes { min: 100, max: 200 }).unwrap();
        let sizes: Vec<_> = (0..1_000).map(|index| builder.size(4, index)).collect();
        assert!(sizes.iter().all(|size| (100..=200).contains(size)));
        assert!(sizes.iter().min() < Some(&110) && sizes.iter().max() > Some(&190));
        assert_eq!(builder.size(4, 77), sizes[77]);
    }

    #[test]
    fn sizes_out_of_bounds_are_refused_in_a_sentence() {
        let refused = Builder::new(1, Sizes { min: 10, max: 200 }).unwrap_err();
        assert!(refused.to_string().contains("from 57 to 1023999 bytes"), "{refused}");
    }
}
