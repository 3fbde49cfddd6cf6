//! What a stream's queue holds: loose lines that wait to be packed, and pieces, each ready to be a call. Pieces
//! are split when a call fails in part and halved when it is refused for its content; whatever happens to them,
//! every event stays tied to the ticket of its batch until it is settled.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use crate::batch::{Fate, Record, Settled, Ticket};
use crate::destination::Encoding;
use crate::encode::{self, CALL_BYTES_MAX, CALL_RECORDS_MAX, Encoder, Gatherer};
use crate::memory::{Charge, Memory};
use crate::metrics::Place;
use crate::spool::keeper::Part;
use crate::stream::Stream;

/// What one call may have at most; one record always goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallMax {
    /// Raw bytes.
    pub bytes: usize,
    /// Records.
    pub records: usize,
}

impl CallMax {
    /// What Firehose takes.
    pub const WHOLE: Self = Self { bytes: CALL_BYTES_MAX, records: CALL_RECORDS_MAX };
}

/// A batch that travels as lines.
#[derive(Debug)]
pub struct Loose {
    ticket: Arc<Ticket>,
    lines: Bytes,
    /// How much of the lines is packed already.
    offset: usize,
    events_left: u64,
    charge: Charge,
    /// When it is packed at the latest: other shards' pieces may come until then.
    pub due: Instant,
    /// Its place in the order in which its stream's queue was given batches.
    pub turn: u64,
}

impl Loose {
    /// All of a batch.
    pub fn new(ticket: Arc<Ticket>, lines: impl Into<Bytes>, charge: Charge, due: Instant) -> Self {
        let events_left = ticket.events;
        Self { ticket, lines: lines.into(), offset: 0, events_left, charge, due, turn: 0 }
    }

    /// Raw bytes not packed yet.
    pub fn bytes(&self) -> usize {
        self.lines.len() - self.offset
    }

    /// Events not packed yet.
    pub fn events(&self) -> u64 {
        self.events_left
    }

    /// When its oldest event was received.
    pub fn oldest(&self) -> Instant {
        self.ticket.oldest
    }

    /// Its lines that are not packed yet. Cloning shares them.
    pub fn lines(&self) -> Bytes {
        self.lines.slice(self.offset..)
    }

    /// Whose events it holds, and how many.
    pub fn shares(&self) -> (Arc<Ticket>, u64) {
        (Arc::clone(&self.ticket), self.events_left)
    }

    /// The memory charged for it.
    pub fn charged(&self) -> u64 {
        self.charge.bytes()
    }

    /// Its youngest event was received before this.
    pub fn newest(&self) -> Instant {
        self.ticket.sealed
    }
}

/// The events of one ticket in one record.
#[derive(Clone, Debug)]
struct Share {
    record: usize,
    ticket: Arc<Ticket>,
    events: u64,
}

/// Whose events a piece holds.
#[derive(Clone, Debug)]
enum Origin {
    /// Those of one batch.
    One(Arc<Ticket>),
    /// Those of several, by record, in the order of the records.
    Many(Vec<Share>),
}

/// Records of one stream that go into one call, whole or not at all.
#[derive(Debug)]
pub struct Piece {
    /// The body up to its last record, and perhaps the tail of an earlier call behind it.
    body: Bytes,
    records: Vec<Record>,
    origin: Origin,
    /// Gives the memory back when the piece is dropped.
    charge: Charge,
    oldest: Instant,
    /// A call with it was made and failed.
    pub is_retry: bool,
    /// A call with it ended without a known outcome.
    pub is_unknown: bool,
    /// An earlier process may have delivered it.
    pub is_doubtful: bool,
    /// It was read back from disk.
    pub is_recalled: bool,
    /// When a call that held its records was first refused for its content.
    pub refused_since: Option<Instant>,
    /// The turn of the first batch in it (see [`Loose::turn`]): whatever fails goes back to its place by that, for
    /// what is written to the spool together is read back as records of its own.
    pub turn: u64,
}

impl Piece {
    /// All of an encoded batch.
    pub fn from_encoded(ticket: Arc<Ticket>, json: Vec<u8>, records: Vec<Record>, charge: Charge) -> Self {
        let oldest = ticket.oldest;
        Self::new(Bytes::from(json), records, Origin::One(ticket), charge, oldest)
    }

    fn new(body: Bytes, records: Vec<Record>, origin: Origin, charge: Charge, oldest: Instant) -> Self {
        Self {
            body,
            records,
            origin,
            charge,
            oldest,
            is_retry: false,
            is_unknown: false,
            is_doubtful: false,
            is_recalled: false,
            refused_since: None,
            turn: 0,
        }
    }

    /// Its stream.
    pub fn stream(&self) -> &Arc<Stream> {
        match &self.origin {
            Origin::One(ticket) => &ticket.stream,
            Origin::Many(shares) => &shares[0].ticket.stream,
        }
    }

    /// Its records.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// Its events.
    pub fn events(&self) -> u64 {
        self.records.iter().map(|record| u64::from(record.events)).sum()
    }

    /// Its raw bytes.
    pub fn bytes(&self) -> usize {
        self.records.iter().map(|record| record.bytes as usize).sum()
    }

    /// When its oldest event was received.
    pub fn oldest(&self) -> Instant {
        self.oldest
    }

    /// Its youngest event was received before this: nothing is received for a batch once that is sealed.
    pub fn newest(&self) -> Instant {
        match &self.origin {
            Origin::One(ticket) => ticket.sealed,
            Origin::Many(shares) => {
                shares.iter().map(|share| share.ticket.sealed).max().unwrap_or(self.oldest)
            }
        }
    }

    /// Whether all of it was received before `limit`.
    pub fn is_before(&self, limit: Instant) -> bool {
        self.oldest < limit && self.newest() < limit
    }

    /// Its events as the spool and the dead letters take them. Nothing is copied but the table of records.
    pub fn part(&self, encoding: Encoding) -> Part {
        match encoding {
            Encoding::Records => Part::Records(self.body(), self.records.clone()),
            Encoding::Lines => Part::Lines(self.body()),
        }
    }

    /// Where its events wait while no call with it is under way.
    pub fn place(&self) -> Place {
        if self.is_retry { Place::Retry } else { Place::Queued }
    }

    /// The body that its records stand in. Cloning shares it.
    pub fn body(&self) -> Bytes {
        self.body.clone()
    }

    /// The memory charged for it.
    pub fn charged(&self) -> u64 {
        self.charge.bytes()
    }

    /// Whose events it holds, and how many of each.
    pub fn tickets(&self) -> Vec<(Arc<Ticket>, u64)> {
        let mut tickets: Vec<(Arc<Ticket>, u64)> = Vec::new();
        for share in self.shares() {
            match tickets.last_mut().filter(|(ticket, _)| Arc::ptr_eq(ticket, &share.ticket)) {
                Some((_, events)) => *events += share.events,
                None => tickets.push((share.ticket, share.events)),
            }
        }
        tickets
    }

    /// The whole body of a call to `delivery_stream`. Nothing is copied unless somebody still reads the last.
    pub fn close(&mut self, encoding: Encoding, delivery_stream: &str) -> Bytes {
        if encoding == Encoding::Records {
            let end = self.records.last().map_or(0, |record| record.end as usize);
            let mut body = Vec::from(std::mem::take(&mut self.body));
            body.truncate(end);
            encode::close_body(&mut body, delivery_stream);
            self.body = Bytes::from(body);
        }
        self.body.clone()
    }

    /// Settles every event of the records that `chosen` picks; `told` hears of each batch that this completes.
    pub fn settle(&self, fate: Fate, chosen: impl Fn(usize) -> bool, mut told: impl FnMut(&Ticket, Settled)) {
        let mut settle = |ticket: &Ticket, events: u64| {
            if let Some(settled) = ticket.settle(events, fate) {
                told(ticket, settled);
            }
        };
        match &self.origin {
            Origin::One(ticket) => {
                let picked = self.records.iter().enumerate().filter(|(index, _)| chosen(*index));
                let events = picked.map(|(_, record)| u64::from(record.events)).sum();
                if events > 0 {
                    settle(ticket, events);
                }
            }
            Origin::Many(shares) => {
                for share in shares.iter().filter(|share| chosen(share.record)) {
                    settle(&share.ticket, share.events);
                }
            }
        }
    }

    /// Settles every event, of which `lost` were lost, nobody knows whose: each batch is told of as many as it may
    /// have lost at most. `told` hears of each batch that this completes.
    pub fn settle_with_loss(&self, lost: u64, mut told: impl FnMut(&Ticket, Settled)) {
        for Share { ticket, events, .. } in self.shares() {
            let lost = lost.min(events);
            for (events, fate) in [(lost, Fate::Lost), (events - lost, Fate::Delivered)] {
                if events > 0
                    && let Some(settled) = ticket.settle(events, fate)
                {
                    told(&ticket, settled);
                }
            }
        }
    }

    /// A piece of the records that `chosen` picks, copied out so that the memory of the rest can go.
    pub fn only(&self, memory: &Arc<Memory>, chosen: impl Fn(usize) -> bool) -> Piece {
        let picked: Vec<usize> = (0..self.records.len()).filter(|index| chosen(*index)).collect();
        let length =
            picked.iter().map(|index| (self.records[*index].end - self.records[*index].start) as usize);
        let mut gatherer = Gatherer::with_capacity(length.sum(), picked.len());
        for index in &picked {
            gatherer.push(&self.body, self.records[*index]);
        }
        let (json, records) = gatherer.finish();
        let place_of = |record: usize| picked.binary_search(&record).ok();
        let origin = match &self.origin {
            Origin::One(ticket) => Origin::One(Arc::clone(ticket)),
            Origin::Many(shares) => Origin::Many(
                shares
                    .iter()
                    .filter_map(|share| {
                        place_of(share.record).map(|record| Share { record, ..share.clone() })
                    })
                    .collect(),
            ),
        };
        let charge = Charge::forced(memory, &self.stream().account, json.capacity() as u64);
        let piece = Piece::new(Bytes::from(json), records, origin, charge, self.oldest);
        Piece {
            is_retry: self.is_retry,
            is_unknown: self.is_unknown,
            is_doubtful: self.is_doubtful,
            is_recalled: self.is_recalled,
            refused_since: self.refused_since,
            turn: self.turn,
            ..piece
        }
    }

    /// The two halves of its records, to find the one that is refused.
    pub fn halves(&self, memory: &Arc<Memory>) -> [Piece; 2] {
        self.split_at(memory, self.records.len() / 2)
    }

    /// As many of the first records as one call may have, and the others; nothing where there are no others.
    pub fn split(&self, memory: &Arc<Memory>, max: CallMax) -> Option<[Piece; 2]> {
        let mut bytes = 0;
        let exceeds = |(index, record): (usize, &Record)| {
            bytes += record.bytes as usize;
            index >= max.records || bytes > max.bytes
        };
        let fit = self.records.iter().enumerate().position(exceeds)?.max(1);
        (fit < self.records.len()).then(|| self.split_at(memory, fit))
    }

    fn split_at(&self, memory: &Arc<Memory>, middle: usize) -> [Piece; 2] {
        [self.only(memory, |index| index < middle), self.only(memory, |index| index >= middle)]
    }
}

/// Whether `next` may share a call with `first`. Suspects stay alone, or bisecting would never end; what may
/// have been accepted stays apart from what was not, so that possible duplicates are counted exactly.
fn may_join(first: &Piece, next: &Piece) -> bool {
    first.refused_since.is_none()
        && next.refused_since.is_none()
        && first.is_retry == next.is_retry
        && first.is_unknown == next.is_unknown
        && first.is_doubtful == next.is_doubtful
}

/// Takes the first piece, and with it as many that follow as one call may have.
pub fn merge(
    pieces: &mut std::collections::VecDeque<Piece>,
    encoding: Encoding,
    memory: &Arc<Memory>,
    max: CallMax,
) -> Option<Piece> {
    let first = pieces.pop_front()?;
    let (mut records, mut bytes) = (first.records.len(), first.bytes());
    let mut group = vec![first];
    while encoding == Encoding::Records
        && let Some(next) = pieces.front().filter(|next| may_join(&group[0], next))
    {
        records += next.records.len();
        bytes += next.bytes();
        if records > max.records || bytes > max.bytes {
            break;
        }
        group.extend(pieces.pop_front());
    }
    if group.len() == 1 {
        return group.pop();
    }
    Some(join(&group, memory))
}

fn join(group: &[Piece], memory: &Arc<Memory>) -> Piece {
    let length = |piece: &Piece| {
        piece.records.iter().map(|record| (record.end - record.start) as usize).sum::<usize>()
    };
    let records = group.iter().map(|piece| piece.records.len()).sum();
    let mut gatherer = Gatherer::with_capacity(group.iter().map(length).sum(), records);
    let mut shares = Vec::new();
    let mut first_record = 0;
    for piece in group {
        for record in &piece.records {
            gatherer.push(&piece.body, *record);
        }
        shares.extend(piece.shares().map(|share| Share { record: share.record + first_record, ..share }));
        first_record += piece.records.len();
    }
    let (json, records) = gatherer.finish();
    let charge = Charge::forced(memory, &group[0].stream().account, json.capacity() as u64);
    let oldest = group.iter().map(|piece| piece.oldest).min().expect("a group has a piece");
    let piece = Piece::new(Bytes::from(json), records, Origin::Many(shares), charge, oldest);
    let first = &group[0];
    Piece {
        is_retry: first.is_retry,
        is_unknown: first.is_unknown,
        is_doubtful: first.is_doubtful,
        is_recalled: first.is_recalled,
        turn: first.turn,
        ..piece
    }
}

impl Piece {
    fn shares(&self) -> impl Iterator<Item = Share> + '_ {
        let (one, many) = match &self.origin {
            Origin::One(ticket) => (Some(ticket), &[][..]),
            Origin::Many(shares) => (None, &shares[..]),
        };
        let of_one = one.into_iter().flat_map(|ticket| {
            self.records.iter().enumerate().map(|(record, held)| Share {
                record,
                ticket: Arc::clone(ticket),
                events: u64::from(held.events),
            })
        });
        of_one.chain(many.iter().cloned())
    }
}

/// Packs loose lines, as many as fit into one call.
pub fn pack(
    loose: &mut std::collections::VecDeque<Loose>,
    encoding: Encoding,
    memory: &Arc<Memory>,
) -> Option<Piece> {
    match encoding {
        Encoding::Records => pack_records(loose, memory),
        Encoding::Lines => pack_lines(loose, memory),
    }
}

fn pack_records(loose: &mut std::collections::VecDeque<Loose>, memory: &Arc<Memory>) -> Option<Piece> {
    let stream = Arc::clone(&loose.front()?.ticket.stream);
    let (oldest, turn) = (loose.front()?.oldest(), loose.front()?.turn);
    let mut encoder = Encoder::new(stream.settings.load().packing, CALL_BYTES_MAX);
    encoder.reserve_for(loose.iter().map(Loose::bytes).sum(), loose.iter().map(Loose::events).sum());
    let mut parts = Vec::new();
    while let Some(front) = loose.front_mut() {
        let before = encoder.events();
        let events = u32::try_from(front.events_left).unwrap_or(u32::MAX);
        front.offset += encoder.push_lines(&front.lines[front.offset..], events);
        let taken = encoder.events() - before;
        front.events_left -= taken;
        if taken > 0 {
            parts.push((Arc::clone(&front.ticket), taken));
        }
        if front.bytes() > 0 {
            break;
        }
        loose.pop_front();
    }
    let (json, records) = encoder.finish();
    let charge = Charge::forced(memory, &stream.account, json.capacity() as u64);
    let origin = origin_of(&records, parts);
    Some(Piece { turn, ..Piece::new(Bytes::from(json), records, origin, charge, oldest) })
}

/// Lines need no packing but to be put behind each other; one batch alone is not even copied.
fn pack_lines(loose: &mut std::collections::VecDeque<Loose>, memory: &Arc<Memory>) -> Option<Piece> {
    let mut group = vec![loose.pop_front()?];
    let mut bytes = group[0].bytes();
    while let Some(next) = loose.pop_front_if(|next| bytes + next.bytes() <= CALL_BYTES_MAX) {
        bytes += next.bytes();
        group.push(next);
    }
    let (oldest, turn) = (group[0].oldest(), group[0].turn);
    let parts: Vec<_> = group.iter().map(Loose::shares).collect();
    let events = parts.iter().map(|(_, events)| events).sum::<u64>();
    let (lines, charge) = put_together(group, bytes, memory);
    let length = u32::try_from(lines.len()).expect("a batch is far smaller than 4 GiB");
    let events = u32::try_from(events).expect("a call has fewer events than bytes");
    let records = vec![Record { start: 0, end: length, bytes: length, events }];
    let origin = origin_of(&records, parts);
    Some(Piece { turn, ..Piece::new(lines, records, origin, charge, oldest) })
}

/// The lines of a group behind each other, and what they are charged.
fn put_together(mut group: Vec<Loose>, bytes: usize, memory: &Arc<Memory>) -> (Bytes, Charge) {
    if group.len() == 1 {
        let alone = group.swap_remove(0);
        return (alone.lines(), alone.charge);
    }
    let mut lines = Vec::with_capacity(bytes);
    group.iter().for_each(|loose| lines.extend_from_slice(&loose.lines[loose.offset..]));
    let charge = Charge::forced(memory, &group[0].ticket.stream.account, lines.capacity() as u64);
    (Bytes::from(lines), charge)
}

/// Divides each record's events among the batches they came from: both are in the same order.
fn origin_of(records: &[Record], mut parts: Vec<(Arc<Ticket>, u64)>) -> Origin {
    if parts.len() == 1
        && let Some((ticket, _)) = parts.pop()
    {
        return Origin::One(ticket);
    }
    let mut shares = Vec::with_capacity(records.len() + parts.len());
    let mut parts = parts.into_iter();
    let mut part = parts.next();
    for (index, record) in records.iter().enumerate() {
        let mut left = u64::from(record.events);
        while left > 0 {
            let (ticket, available) = part.as_mut().expect("records hold what the parts gave");
            let events = left.min(*available);
            shares.push(Share { record: index, ticket: Arc::clone(ticket), events });
            left -= events;
            *available -= events;
            if *available == 0 {
                part = parts.next();
            }
        }
    }
    Origin::Many(shares)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use std::collections::{HashMap, VecDeque};

    use super::*;
    use crate::batch::BatchId;
    use crate::config::Config;
    use crate::memory::{Machine, Plan};
    use crate::metrics::Metrics;
    use crate::stream::Registry;

    fn fixture(record_bytes_max: u32) -> (Arc<Memory>, Arc<Stream>) {
        let mut config = Config { memory: Some(256 << 20), ..Config::default() };
        config.packing.record_bytes_max = record_bytes_max;
        let plan =
            Plan::new(&config, Machine { memory: 1 << 30, cpus: 2, files: 1024 }).expect("enough memory");
        let metrics = Metrics::new(Instant::now(), 1, Vec::new(), 10);
        let registry = Registry::new(Arc::new(config), metrics);
        (Memory::new(&plan), registry.resolve(b"clicks").expect("a good name"))
    }

    fn ticket(stream: &Arc<Stream>, sequence: u64, events: u64) -> Arc<Ticket> {
        let now = Instant::now();
        Arc::new(Ticket::new(BatchId { shard: 0, sequence }, Arc::clone(stream), events, now, now))
    }

    fn loose(memory: &Arc<Memory>, stream: &Arc<Stream>, sequence: u64, lines: &[Vec<u8>]) -> Loose {
        let charge = Charge::forced(memory, &stream.account, 1);
        Loose::new(ticket(stream, sequence, lines.len() as u64), lines.concat(), charge, Instant::now())
    }

    fn decode(body: &[u8]) -> Vec<Vec<u8>> {
        let value: serde_json::Value = serde_json::from_slice(body).expect("a call's body is JSON");
        let records = value["Records"].as_array().expect("records").iter();
        records
            .map(|record| {
                aws_smithy_types::base64::decode(record["Data"].as_str().expect("text")).expect("base64")
            })
            .collect()
    }

    /// Plays a destination that accepts, fails, refuses and answers in part, until everything is accepted.
    fn deliver_all(
        loose: &mut VecDeque<Loose>,
        memory: &Arc<Memory>,
        answers: &[u8],
    ) -> (Vec<Vec<u8>>, HashMap<BatchId, u64>) {
        let (mut pieces, mut bodies, mut settled) = (VecDeque::new(), Vec::new(), HashMap::new());
        let mut answers = answers.iter().copied().chain(std::iter::repeat(0));
        while !loose.is_empty() || !pieces.is_empty() {
            let mut piece = merge(&mut pieces, Encoding::Records, memory, CallMax::WHOLE)
                .or_else(|| pack(loose, Encoding::Records, memory))
                .expect("something is left");
            let body = piece.close(Encoding::Records, "name");
            let records = decode(&body);
            assert_eq!(records.len(), piece.records().len());
            assert!(records.len() <= CALL_RECORDS_MAX && piece.bytes() <= CALL_BYTES_MAX);
            drop(body);
            let answer = answers.next().unwrap_or(0);
            let accepted = |index: usize| (answer as usize + index) % 3 != 1;
            match answer % 4 {
                1 if records.len() > 1 => pieces.extend(piece.halves(memory)),
                2 => {
                    piece.is_unknown = answer % 8 == 2;
                    pieces.push_front(piece);
                }
                3 if !(0..records.len()).all(accepted) => {
                    let taken = records.into_iter().enumerate().filter(|(index, _)| accepted(*index));
                    bodies.extend(taken.map(|(_, record)| record));
                    piece.settle(Fate::Delivered, accepted, |ticket, _| {
                        *settled.entry(ticket.id).or_default() += 1;
                    });
                    pieces.push_front(piece.only(memory, |index| !accepted(index)));
                }
                _ => {
                    bodies.extend(records);
                    piece.settle(
                        Fate::Delivered,
                        |_| true,
                        |ticket, _| *settled.entry(ticket.id).or_default() += 1,
                    );
                }
            }
        }
        (bodies, settled)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn whatever_calls_end_in_every_event_is_delivered_once_and_every_batch_settled_once(
            batches in proptest::collection::vec(proptest::collection::vec(1usize..3_000, 1..40), 1..12),
            answers in proptest::collection::vec(any::<u8>(), 0..60),
            record_bytes_max in 1u32..20_000,
        ) {
            let (memory, stream) = fixture(record_bytes_max);
            let mut number = 0u64;
            let mut lines = Vec::new();
            let mut queue = VecDeque::new();
            for (sequence, lengths) in batches.iter().enumerate() {
                let batch: Vec<Vec<u8>> = lengths.iter().map(|length| {
                    number += 1;
                    format!("{number:0width$}\n", width = *length).into_bytes()
                }).collect();
                queue.push_back(loose(&memory, &stream, sequence as u64, &batch));
                lines.extend(batch);
            }
            let (bodies, settled) = deliver_all(&mut queue, &memory, &answers);
            let mut delivered: Vec<Vec<u8>> =
                bodies.concat().split_inclusive(|octet| *octet == b'\n').map(<[u8]>::to_vec).collect();
            delivered.sort();
            lines.sort();
            prop_assert_eq!(delivered, lines);
            prop_assert_eq!(settled.len(), batches.len());
            prop_assert!(settled.values().all(|count| *count == 1));
            prop_assert_eq!(memory.used(), 0);
        }
    }

    #[test]
    fn a_body_goes_out_again_without_a_copy() {
        let (memory, stream) = fixture(1_000);
        let mut queue = VecDeque::from([loose(&memory, &stream, 0, &[b"one\n".to_vec()])]);
        let mut piece = pack(&mut queue, Encoding::Records, &memory).expect("a piece");
        let first = piece.close(Encoding::Records, "first");
        let place = first.as_ptr();
        drop(first);
        let second = piece.close(Encoding::Records, "a-longer-name");
        assert_eq!(second.as_ptr(), place);
        assert_eq!(decode(&second), [b"one\n"]);
    }

    #[test]
    fn lines_are_put_together_and_one_batch_alone_is_not_copied() {
        let (memory, stream) = fixture(1_000);
        let alone = loose(&memory, &stream, 0, &[b"one\n".to_vec()]);
        let place = alone.lines.as_ptr();
        let mut piece = pack(&mut VecDeque::from([alone]), Encoding::Lines, &memory).expect("a piece");
        assert_eq!(piece.close(Encoding::Lines, "name").as_ptr(), place);
        let two =
            [loose(&memory, &stream, 1, &[b"a\n".to_vec()]), loose(&memory, &stream, 2, &[b"b\n".to_vec()])];
        let mut piece = pack(&mut VecDeque::from(two), Encoding::Lines, &memory).expect("a piece");
        assert_eq!((&piece.close(Encoding::Lines, "name")[..], piece.events()), (&b"a\nb\n"[..], 2));
    }

    #[test]
    fn a_piece_is_split_where_a_call_is_full_and_one_record_always_goes() {
        let (memory, stream) = fixture(4);
        let lines: Vec<Vec<u8>> = (0..6).map(|digit| format!("{digit}..\n").into_bytes()).collect();
        let mut queue = VecDeque::from([loose(&memory, &stream, 0, &lines)]);
        let piece = pack(&mut queue, Encoding::Records, &memory).expect("a piece");
        let first =
            |max: CallMax| piece.split(&memory, max).map(|[first, rest]| (first.events(), rest.events()));
        assert_eq!(first(CallMax::WHOLE), None);
        assert_eq!(first(CallMax { bytes: 24, ..CallMax::WHOLE }), None);
        assert_eq!(first(CallMax { bytes: 11, ..CallMax::WHOLE }), Some((2, 4)));
        assert_eq!(first(CallMax { records: 5, ..CallMax::WHOLE }), Some((5, 1)));
        assert_eq!(first(CallMax { bytes: 1, records: 1 }), Some((1, 5)));
    }

    #[test]
    fn suspects_and_possible_duplicates_stay_apart() {
        let (memory, stream) = fixture(1_000);
        let piece = |sequence| {
            let mut queue = VecDeque::from([loose(&memory, &stream, sequence, &[b"x\n".to_vec()])]);
            pack(&mut queue, Encoding::Records, &memory).expect("a piece")
        };
        let suspect = Piece { refused_since: Some(Instant::now()), ..piece(1) };
        let unknown = Piece { is_unknown: true, ..piece(2) };
        let mut pieces = VecDeque::from([piece(0), suspect, unknown, piece(3), piece(4)]);
        let mut sizes = Vec::new();
        while let Some(merged) = merge(&mut pieces, Encoding::Records, &memory, CallMax::WHOLE) {
            sizes.push(merged.records().len());
        }
        assert_eq!(sizes, [1, 1, 1, 2]);
    }
}
