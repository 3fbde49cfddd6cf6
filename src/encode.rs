//! Packs lines into records and records into the body of a PutRecordBatch call, in one pass: the raw bytes of
//! the open record are staged and turned into base64 a block at a time; long lines are not even staged. It knows
//! Firehose's limits and nothing else of Firehose: no names, no lanes, no memory accounts.
//!
//! The body is `{"Records":[{"Data":"…"},…],"DeliveryStreamName":"…"}`. The name stands last, so that a body is
//! whole but for its tail before anyone has chosen a delivery stream. (JSON objects have no order: RFC 8259 §4.)

use memchr::memchr_iter;

use crate::batch::Record;
use crate::config::{Packing, PackingMode};

pub mod base64;

/// Records a PutRecordBatch call may have (API reference of PutRecordBatch).
pub const CALL_RECORDS_MAX: usize = 500;
/// Raw bytes a call may have: 4 MiB (API reference of PutRecordBatch: "up to 4 MB for the entire request"),
/// counted before base64: four records of 1 MB each are accepted (kolide/fleet#2022).
pub const CALL_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Raw bytes a record may have: 1,000 KiB, counted before base64 (API reference of PutRecordBatch).
pub const RECORD_BYTES_MAX: usize = 1_024_000;
/// Amazon bills every record rounded up to this many raw bytes (Amazon Data Firehose pricing).
pub const BILLING_STEP_BYTES: u64 = 5 * 1024;

const BODY_OPEN: &[u8] = br#"{"Records":["#;
const RECORD_OPEN: &[u8] = br#"{"Data":""#;
const RECORD_CLOSE: &[u8] = br#""}"#;
const TAIL_OPEN: &[u8] = br#"],"DeliveryStreamName":""#;
const TAIL_CLOSE: &[u8] = br#""}"#;

/// Delivery stream names have at most 64 characters (API reference of CreateDeliveryStream); a body keeps room
/// for the longest, so that closing it never moves it.
const TAIL_BYTES_MAX: usize = TAIL_OPEN.len() + 64 + TAIL_CLOSE.len();
/// What one record costs beside its base64: its brackets, a comma, and padding at its end.
const RECORD_OVERHEAD: usize = RECORD_OPEN.len() + RECORD_CLOSE.len() + 1 + 4;

/// Raw bytes staged before they are encoded: large enough for the vector kernel, small enough for the first
/// level cache. A multiple of 3, so that no padding arises in the middle of a record.
pub const STAGING_BYTES: usize = 12 * 1024;
/// Lines from so many bytes on are encoded where they are. For shorter ones it is cheaper to be copied first than to
/// start and to stop a kernel each; at 1,000 bytes it depends on the number of streams which way is the cheaper.
const DIRECT_FROM: usize = 2 * 1024;

/// The open body of one stream.
#[derive(Debug)]
pub struct Encoder {
    json: Vec<u8>,
    records: Vec<Record>,
    /// Raw bytes of the open record that are not in `json` yet.
    staging: Vec<u8>,
    open_bytes: usize,
    open_events: u32,
    bytes: usize,
    events: u64,
    packing: Packing,
    bytes_max: usize,
}

impl Encoder {
    /// An empty body that takes at most `bytes_max` raw bytes (and never more than a call may have).
    pub fn new(packing: Packing, bytes_max: usize) -> Self {
        Self {
            json: Vec::new(),
            records: Vec::new(),
            staging: Vec::new(),
            open_bytes: 0,
            open_events: 0,
            bytes: 0,
            events: 0,
            packing,
            bytes_max: bytes_max.min(CALL_BYTES_MAX),
        }
    }

    /// Events taken so far.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// Raw bytes taken so far.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether a line of `length` bytes still fits. The first line always does.
    pub fn fits(&self, length: usize) -> bool {
        if self.events == 0 {
            return true;
        }
        let records = self.records.len() + 1 + usize::from(self.needs_new_record(length));
        self.bytes + length <= self.bytes_max && records <= CALL_RECORDS_MAX
    }

    /// The memory held, in bytes.
    pub fn capacity(&self) -> usize {
        self.json.capacity() + self.staging.capacity() + self.records.capacity() * size_of::<Record>()
    }

    /// How much more memory must be held before a line of `length` bytes is pushed; 0 where there is enough.
    pub fn growth_for(&self, length: usize) -> usize {
        let json = self.wanted_json(length).saturating_sub(self.json.capacity());
        let staging = STAGING_BYTES.saturating_sub(self.staging.capacity());
        let records = (self.wanted_records() - self.records.capacity()) * size_of::<Record>();
        json + staging + records
    }

    /// Takes the memory that [`Encoder::growth_for`] named.
    pub fn grow_for(&mut self, length: usize) {
        self.json.reserve_exact(self.wanted_json(length) - self.json.len());
        self.staging.reserve_exact(STAGING_BYTES - self.staging.len());
        self.records.reserve_exact(self.wanted_records() - self.records.len());
    }

    /// Starts with room for a body of `capacity` bytes instead of growing into it.
    pub fn reserve(&mut self, capacity: usize) {
        self.json.reserve_exact(capacity.saturating_sub(self.json.len()));
    }

    /// The same for the body that so many events of so many raw bytes in all need, as far as one call may have them.
    pub fn reserve_for(&mut self, bytes: usize, events: u64) {
        let events = usize::try_from(events).unwrap_or(usize::MAX);
        let records = match self.packing.mode {
            PackingMode::Single => events,
            // What closes a record for its bytes is that the next line does not fit: two of them exceed the most.
            PackingMode::Full => {
                2 * bytes / self.packing.record_bytes_max as usize
                    + events / self.packing.record_events_max as usize
                    + 1
            }
        };
        self.reserve(body_bytes(bytes.min(self.bytes_max), records.min(CALL_RECORDS_MAX)));
    }

    /// Appends one line, LF included, that [`fits`](Encoder::fits).
    pub fn push(&mut self, line: &[u8]) {
        if self.open_events > 0 && self.needs_new_record(line.len()) {
            self.close_record();
        }
        self.open_events += 1;
        self.events += 1;
        self.stage(line);
    }

    /// Appends as many of `lines` as fit and returns how many bytes of them that were.
    pub fn push_lines(&mut self, lines: &[u8], events: u32) -> usize {
        if self.takes_whole(lines.len(), events) {
            self.open_events += events;
            self.events += u64::from(events);
            self.stage(lines);
            return lines.len();
        }
        let mut start = 0;
        for end in memchr_iter(b'\n', lines) {
            let line = &lines[start..=end];
            if !self.fits(line.len()) {
                break;
            }
            self.push(line);
            start = end + 1;
        }
        start
    }

    /// Closes the last record and gives the body, open at its end, with the table of its records.
    pub fn finish(mut self) -> (Vec<u8>, Vec<Record>) {
        if self.open_events > 0 {
            self.close_record();
        }
        (self.json, self.records)
    }

    /// Whether lines can join the open record unseen, with no limit in between.
    fn takes_whole(&self, bytes: usize, events: u32) -> bool {
        self.packing.mode == PackingMode::Full
            && self.open_bytes + bytes <= self.packing.record_bytes_max as usize
            && self.open_events.saturating_add(events) <= self.packing.record_events_max
            && self.bytes + bytes <= self.bytes_max
            && self.records.len() < CALL_RECORDS_MAX
    }

    fn needs_new_record(&self, length: usize) -> bool {
        match self.packing.mode {
            PackingMode::Single => true,
            PackingMode::Full => {
                self.open_bytes + length > self.packing.record_bytes_max as usize
                    || self.open_events >= self.packing.record_events_max
            }
        }
    }

    /// The capacity to have before `length` more raw bytes: what they need at worst, or twice what there is.
    fn wanted_json(&self, length: usize) -> usize {
        let staged = self.staging.len() + length;
        let needed =
            self.json.len() + BODY_OPEN.len() + base64::length(staged) + 2 * RECORD_OVERHEAD + TAIL_BYTES_MAX;
        if needed <= self.json.capacity() {
            return self.json.capacity();
        }
        needed.max((2 * self.json.capacity()).min(body_bytes_max(self.bytes_max)))
    }

    fn wanted_records(&self) -> usize {
        let needed = self.records.len() + 2;
        if needed <= self.records.capacity() { self.records.capacity() } else { (2 * needed).max(8) }
    }

    /// Adds raw bytes to the open record.
    fn stage(&mut self, mut bytes: &[u8]) {
        self.open_bytes += bytes.len();
        self.bytes += bytes.len();
        if bytes.len() >= DIRECT_FROM {
            return self.encode_directly(bytes);
        }
        while self.staging.len() + bytes.len() > STAGING_BYTES {
            let (head, rest) = bytes.split_at(STAGING_BYTES - self.staging.len());
            self.staging.extend_from_slice(head);
            self.encode_staged();
            bytes = rest;
        }
        self.staging.extend_from_slice(bytes);
    }

    /// Encodes what is staged, filled up to a multiple of 3, and `bytes` after it, but for one or two at their end.
    fn encode_directly(&mut self, bytes: &[u8]) {
        let missing = self.staging.len().next_multiple_of(3) - self.staging.len();
        let (head, rest) = bytes.split_at(missing);
        self.staging.extend_from_slice(head);
        self.encode_staged();
        let (whole, tail) = rest.split_at(rest.len() / 3 * 3);
        base64::append(whole, &mut self.json);
        self.staging.extend_from_slice(tail);
    }

    fn encode_staged(&mut self) {
        self.open_json();
        base64::append(&self.staging, &mut self.json);
        self.staging.clear();
    }

    /// Writes what must stand before the open record's base64, once.
    fn open_json(&mut self) {
        let opened = self.records.last().map_or(0, |record| record.end as usize);
        if self.json.len() > opened {
            return;
        }
        let before: &[u8] = if opened == 0 { BODY_OPEN } else { b"," };
        self.json.extend_from_slice(before);
        self.json.extend_from_slice(RECORD_OPEN);
    }

    fn close_record(&mut self) {
        let after = self.records.last().map_or(BODY_OPEN.len(), |record| record.end as usize + 1);
        self.encode_staged();
        self.json.extend_from_slice(RECORD_CLOSE);
        self.records.push(Record {
            start: as_u32(after),
            end: as_u32(self.json.len()),
            bytes: as_u32(self.open_bytes),
            events: self.open_events,
        });
        self.open_bytes = 0;
        self.open_events = 0;
    }
}

/// Closes a body for a delivery stream. `json` ends with a record.
pub fn close_body(json: &mut Vec<u8>, delivery_stream: &str) {
    json.extend_from_slice(TAIL_OPEN);
    json.extend_from_slice(delivery_stream.as_bytes());
    json.extend_from_slice(TAIL_CLOSE);
}

/// Gathers records out of bodies that hold them into one new body, open at its end.
pub struct Gatherer {
    json: Vec<u8>,
    records: Vec<Record>,
}

impl Gatherer {
    /// A body with room for `bytes` bytes of records.
    pub fn with_capacity(bytes: usize, records: usize) -> Self {
        let mut json = Vec::with_capacity(BODY_OPEN.len() + bytes + records + TAIL_BYTES_MAX);
        json.extend_from_slice(BODY_OPEN);
        Self { json, records: Vec::with_capacity(records) }
    }

    /// Copies one record.
    pub fn push(&mut self, body: &[u8], record: Record) {
        if !self.records.is_empty() {
            self.json.push(b',');
        }
        let start = self.json.len();
        self.json.extend_from_slice(&body[record.start as usize..record.end as usize]);
        self.records.push(Record { start: as_u32(start), end: as_u32(self.json.len()), ..record });
    }

    /// The body and its table.
    pub fn finish(self) -> (Vec<u8>, Vec<Record>) {
        (self.json, self.records)
    }
}

/// Appends the raw bytes of one record, `{"Data":"…"}`, to `lines`. The record must be of our own making.
pub fn decode_record(json: &[u8], lines: &mut Vec<u8>) {
    let base64 = &json[RECORD_OPEN.len()..json.len() - RECORD_CLOSE.len()];
    base64_simd::STANDARD.decode_append(base64, lines).expect("a record that was encoded here is base64");
}

/// The same for the first `bytes_max` raw bytes of it at most, or one or two less.
pub fn decode_record_start(json: &[u8], bytes_max: usize, lines: &mut Vec<u8>) {
    let base64 = &json[RECORD_OPEN.len()..json.len() - RECORD_CLOSE.len()];
    let digits = base64.len().min(bytes_max / 3 * 4);
    let start = &base64[..digits];
    base64_simd::STANDARD.decode_append(start, lines).expect("four digits are three bytes, whatever follows");
}

/// The largest body of `bytes` raw bytes, its tail included.
pub fn body_bytes_max(bytes: usize) -> usize {
    body_bytes(bytes, CALL_RECORDS_MAX.min(bytes / 2 + 1))
}

fn body_bytes(bytes: usize, records: usize) -> usize {
    BODY_OPEN.len() + base64::length(bytes) + records * RECORD_OVERHEAD + TAIL_BYTES_MAX
}

fn as_u32(length: usize) -> u32 {
    u32::try_from(length).expect("a body is far smaller than 4 GiB")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FULL: Packing = Packing {
        mode: PackingMode::Full,
        record_events_max: u32::MAX,
        record_bytes_max: RECORD_BYTES_MAX as u32,
    };

    /// Reads a body back with an independent JSON and base64 reader.
    fn records_of(json: &[u8]) -> Vec<Vec<u8>> {
        let mut whole = json.to_vec();
        close_body(&mut whole, "name");
        let value: serde_json::Value = serde_json::from_slice(&whole).expect("the body is JSON");
        assert_eq!(value["DeliveryStreamName"], "name");
        let records = value["Records"].as_array().expect("records are an array");
        let decode = |record: &serde_json::Value| {
            aws_smithy_types::base64::decode(record["Data"].as_str().expect("data is text")).expect("base64")
        };
        records.iter().map(decode).collect()
    }

    fn pack(lines: &[Vec<u8>], packing: Packing) -> (Vec<Vec<u8>>, Vec<Record>, usize) {
        let mut encoder = Encoder::new(packing, CALL_BYTES_MAX);
        let mut taken = 0;
        for line in lines {
            if !encoder.fits(line.len()) {
                break;
            }
            encoder.grow_for(line.len());
            assert_eq!(encoder.growth_for(line.len()), 0);
            let before = encoder.capacity();
            encoder.push(line);
            assert_eq!(encoder.capacity(), before, "nothing grows without being asked for first");
            taken += 1;
        }
        let (mut json, records) = encoder.finish();
        let capacity = json.capacity();
        let bodies = records_of(&json);
        close_body(&mut json, &"n".repeat(64));
        assert_eq!(json.capacity(), capacity, "the tail has its room");
        (bodies, records, taken)
    }

    #[test]
    fn a_record_is_filled_to_the_last_byte_and_not_one_more() {
        let line = |length: usize| [vec![b'x'; length - 1], vec![b'\n']].concat();
        let (bodies, records, _) = pack(&[line(1_000_000), line(24_000), line(1)], FULL);
        assert_eq!(bodies.iter().map(Vec::len).collect::<Vec<_>>(), [1_024_000, 1]);
        assert_eq!(records.iter().map(|record| record.events).collect::<Vec<_>>(), [2, 1]);
    }

    #[test]
    fn a_call_is_filled_to_4_mib_and_not_one_byte_more() {
        let line = |length: usize| [vec![b'x'; length - 1], vec![b'\n']].concat();
        let mut lines = vec![line(1_024_000); 4];
        lines.extend([line(CALL_BYTES_MAX - 4 * 1_024_000), line(1)]);
        let (bodies, _, taken) = pack(&lines, FULL);
        assert_eq!((bodies.len(), taken), (5, 5));
        assert_eq!(bodies.iter().map(Vec::len).sum::<usize>(), CALL_BYTES_MAX);
    }

    #[test]
    fn a_call_has_at_most_500_records() {
        let lines = vec![b"event\n".to_vec(); 600];
        let single = Packing { mode: PackingMode::Single, ..FULL };
        let (bodies, _, taken) = pack(&lines, single);
        assert_eq!((bodies.len(), taken), (500, 500));
        let by_events = Packing { record_events_max: 1, ..FULL };
        assert_eq!(pack(&lines, by_events).2, 500);
    }

    #[test]
    fn an_event_longer_than_the_record_wished_for_travels_alone() {
        let small = Packing { record_bytes_max: 10, ..FULL };
        let lines = [b"abc\n".to_vec(), vec![b'x'; 50], b"d\n".to_vec(), b"e\n".to_vec()];
        assert_eq!(pack(&lines, small).0, [&b"abc\n"[..], &[b'x'; 50], b"d\ne\n"]);
    }

    #[test]
    fn gathered_records_are_the_same_bytes() {
        let single = Packing { mode: PackingMode::Single, ..FULL };
        let mut encoder = Encoder::new(single, CALL_BYTES_MAX);
        for line in [&b"one\n"[..], b"two\n", b"three\n"] {
            encoder.push(line);
        }
        let (json, records) = encoder.finish();
        let mut gatherer = Gatherer::with_capacity(64, 2);
        gatherer.push(&json, records[2]);
        gatherer.push(&json, records[0]);
        let (gathered, table) = gatherer.finish();
        assert_eq!(records_of(&gathered), [&b"three\n"[..], b"one\n"]);
        assert_eq!(table.iter().map(|record| record.bytes).collect::<Vec<_>>(), [6, 4]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn packing_keeps_every_byte_in_order_and_every_limit(
            lengths in proptest::collection::vec(prop_oneof![1usize..300, 1usize..40_000], 1..200),
            record_events_max in prop_oneof![Just(u32::MAX), 1u32..20],
            record_bytes_max in prop_oneof![Just(RECORD_BYTES_MAX as u32), 1u32..5_000],
            single: bool,
            at_once: bool,
        ) {
            let mode = if single { PackingMode::Single } else { PackingMode::Full };
            let packing = Packing { mode, record_events_max, record_bytes_max };
            let line = |(index, length): (usize, &usize)| {
                let mut line = vec![b'a' + (index % 26) as u8; *length];
                line[length - 1] = b'\n';
                line
            };
            let lines: Vec<Vec<u8>> = lengths.iter().enumerate().map(line).collect();
            let whole = lines.concat();
            let (bodies, records) = if at_once {
                let mut encoder = Encoder::new(packing, CALL_BYTES_MAX);
                let taken = encoder.push_lines(&whole, lines.len() as u32);
                let events = whole[..taken].iter().filter(|octet| **octet == b'\n').count();
                prop_assert_eq!(encoder.events(), events as u64);
                prop_assert_eq!(encoder.bytes(), taken);
                let (json, records) = encoder.finish();
                (records_of(&json), records)
            } else {
                let (bodies, records, _) = pack(&lines, packing);
                (bodies, records)
            };
            let joined = bodies.concat();
            prop_assert!(whole.starts_with(&joined));
            prop_assert!(joined.len() == whole.len() || bodies.len() == CALL_RECORDS_MAX
                || joined.len() + 40_000 > CALL_BYTES_MAX);
            for (body, record) in bodies.iter().zip(&records) {
                let events = body.iter().filter(|octet| **octet == b'\n').count();
                prop_assert_eq!(record.events as usize, events);
                prop_assert_eq!(record.bytes as usize, body.len());
                prop_assert!(body.len() <= record_bytes_max as usize || events == 1);
                prop_assert!(events <= record_events_max as usize);
                prop_assert!(!single || events == 1);
            }
        }
    }
}
