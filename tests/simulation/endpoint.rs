//! The destination of the simulated relay: it takes calls, keeps them for a while, and ends each in one of the ways
//! in which Firehose, or another relay, may. What it accepts goes into the ledger.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use fastrand::Rng;
use standpipe::config::Config;
use standpipe::delivery::bare::Flight;
use standpipe::destination::{Call, Encoding, Outcome, RecordOutcome, Refusal};

use crate::ledger::{Ledger, STREAMS};

/// A call that does not answer ends after so long.
const TIME_OUT: Duration = Duration::from_secs(10);
/// What one call may have.
const RECORDS_MAX: usize = 500;

/// How a delivery stream behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    Works,
    /// Accepts a part of each call.
    Partly,
    Refuses(Refusal),
    /// Nobody can know what it accepted.
    Breaks,
    /// Accepts all and loses some, as a relay behind it may.
    Loses,
    /// Does not answer.
    Stalls,
    /// Any of the others.
    Mixed,
}

/// A call under way.
#[derive(Debug)]
struct Open {
    flight: Flight,
    call: Call,
    /// The streams that could come when it started.
    streams: BTreeSet<String>,
    mood: Mood,
    ends_at: Instant,
    /// Whether its lane was failing when it started.
    pub was_failing: bool,
}

#[derive(Debug)]
pub struct Endpoint {
    encoding: Encoding,
    moods: BTreeMap<&'static str, Mood>,
    /// The streams that may come to each delivery stream now.
    mapped: BTreeMap<String, BTreeSet<String>>,
    calls: Vec<Open>,
    /// Whether anything ever fails here.
    has_faults: bool,
    takes_poison: bool,
    /// The bytes of the largest body that any call had.
    largest: u64,
}

impl Endpoint {
    pub fn new(encoding: Encoding, has_faults: bool) -> Self {
        let lanes = STREAMS.iter().flat_map(|(_, lanes)| lanes.iter());
        let moods = lanes.map(|lane| (*lane, Mood::Works)).collect();
        Self {
            encoding,
            moods,
            mapped: BTreeMap::new(),
            calls: Vec::new(),
            has_faults,
            takes_poison: false,
            largest: 0,
        }
    }

    /// From now on streams may come as they are mapped here, and no longer as before.
    pub fn map(&mut self, config: &Config) {
        self.mapped.clear();
        self.map_too(config);
    }

    /// From now on streams may come as they are mapped here, too.
    pub fn map_too(&mut self, config: &Config) {
        for (name, stream) in &config.streams {
            for lane in &stream.delivery_streams {
                self.mapped.entry(lane.clone()).or_default().insert(name.clone());
            }
        }
    }

    /// One delivery stream changes its behaviour.
    pub fn change(&mut self, rng: &mut Rng) {
        if !self.has_faults {
            return;
        }
        let moods = [
            Mood::Works,
            Mood::Works,
            Mood::Partly,
            Mood::Partly,
            Mood::Refuses(Refusal::Throttled),
            Mood::Refuses(Refusal::Transient),
            Mood::Refuses(Refusal::Credentials),
            Mood::Refuses(Refusal::Key),
            Mood::Refuses(Refusal::Permanent),
            Mood::Breaks,
            Mood::Loses,
            Mood::Stalls,
            Mood::Mixed,
            Mood::Mixed,
        ];
        let lanes: Vec<&'static str> = self.moods.keys().copied().collect();
        let lane = lanes[rng.usize(..lanes.len())];
        self.moods.insert(lane, moods[rng.usize(..moods.len())]);
    }

    /// From now on everything works, and everything is taken.
    pub fn heal(&mut self) {
        self.takes_poison = true;
        self.moods.values_mut().for_each(|mood| *mood = Mood::Works);
    }

    /// A call starts.
    pub fn start(&mut self, call: Call, flight: Flight, was_failing: bool, now: Instant, rng: &mut Rng) {
        assert!(call.records <= RECORDS_MAX, "a call has {} records", call.records);
        self.largest = self.largest.max(call.body.len() as u64);
        let mood = match self.moods[&*call.delivery_stream] {
            Mood::Mixed => {
                let any =
                    [Mood::Works, Mood::Partly, Mood::Refuses(Refusal::Throttled), Mood::Breaks, Mood::Loses];
                any[rng.usize(..any.len())]
            }
            mood => mood,
        };
        // Only lines can be lost behind the destination: that is another relay.
        let mood =
            if mood == Mood::Loses && self.encoding == Encoding::Records { Mood::Partly } else { mood };
        let millis = [1, 5, 30, 400][rng.usize(..4)];
        let takes = if mood == Mood::Stalls { TIME_OUT } else { Duration::from_millis(rng.u64(..=millis)) };
        let streams = self.mapped.get(&*call.delivery_stream).cloned().unwrap_or_default();
        self.calls.push(Open { flight, call, streams, mood, ends_at: now + takes, was_failing });
    }

    /// Calls in flight that started while their lane was failing.
    pub fn failing(&self) -> usize {
        self.calls.iter().filter(|open| open.was_failing).count()
    }

    /// Calls in flight.
    pub fn len(&self) -> usize {
        self.calls.len()
    }

    /// The bytes of the largest body that any call had.
    pub fn largest(&self) -> u64 {
        self.largest
    }

    /// Ends one of the calls whose time has come, drawn at random: its outcome, and the events that the relay now
    /// knows to be accepted.
    pub fn end_one(
        &mut self,
        now: Instant,
        ledger: &mut Ledger,
        rng: &mut Rng,
    ) -> Option<(Flight, Outcome, Vec<u64>)> {
        let due: Vec<usize> =
            self.calls.iter().enumerate().filter(|(_, open)| open.ends_at <= now).map(|(at, _)| at).collect();
        let open = self.calls.swap_remove(rng.choice(due)?);
        let records = self.tokens(&open, ledger);
        let (outcome, known) = self.answer(open.mood, &records, ledger, rng);
        Some((open.flight, outcome, known))
    }

    /// Cuts every call: nobody knows what was accepted.
    pub fn cut(&mut self, ledger: &mut Ledger, rng: &mut Rng) -> Vec<Flight> {
        let calls = std::mem::take(&mut self.calls);
        let cut = |open: Open| {
            let records = self.tokens(&open, ledger);
            break_off(&records, ledger, rng);
            open.flight
        };
        calls.into_iter().map(cut).collect()
    }

    /// What becomes of a call: the outcome, and the events that are now known to be accepted.
    fn answer(
        &self,
        mood: Mood,
        records: &[Vec<u64>],
        ledger: &mut Ledger,
        rng: &mut Rng,
    ) -> (Outcome, Vec<u64>) {
        let refused = |kind| (Outcome::Refused { kind, message: "refused".to_owned() }, Vec::new());
        let all: Vec<u64> = records.concat();
        let works = matches!(mood, Mood::Works | Mood::Partly | Mood::Loses);
        if works && !self.takes_poison && all.iter().any(|token| ledger.is_poison(*token)) {
            if records.len() == 1 {
                all.iter().for_each(|token| ledger.get_mut(*token).was_refused = true);
            }
            return refused(Refusal::Content);
        }
        match mood {
            Mood::Works | Mood::Mixed => {
                all.iter().for_each(|token| ledger.arrive(*token));
                (Outcome::Accepted, all)
            }
            Mood::Partly => answer_in_part(records, ledger, rng),
            Mood::Refuses(kind) => refused(kind),
            Mood::Breaks | Mood::Stalls => {
                break_off(records, ledger, rng);
                (Outcome::Unknown { message: "nobody knows".to_owned() }, Vec::new())
            }
            Mood::Loses => {
                let lost = rng.usize(..=all.len().min(3));
                all[..lost].iter().for_each(|token| ledger.get_mut(*token).was_lost = true);
                all[lost..].iter().for_each(|token| ledger.arrive(*token));
                // The bound may be above what the call held.
                let events = if lost == all.len() { lost as u64 + 5 } else { lost as u64 };
                (Outcome::Lost { events }, all[lost..].to_vec())
            }
        }
    }

    /// The events of each record.
    fn tokens(&self, Open { call, streams, .. }: &Open, ledger: &Ledger) -> Vec<Vec<u64>> {
        let records = match self.encoding {
            Encoding::Lines => vec![call.body.to_vec()],
            Encoding::Records => {
                let tail = format!("\"DeliveryStreamName\":\"{}\"}}", call.delivery_stream);
                let is_body =
                    call.body.starts_with(b"{\"Records\":[{") && call.body.ends_with(tail.as_bytes());
                assert!(is_body, "{:?} is no body", call.body);
                decode(&call.body)
            }
        };
        assert_eq!(records.len(), call.records, "the body has as many records as its call says");
        let is_mapped = |token: &u64| {
            let (name, _) = STREAMS[ledger.get(*token).stream];
            assert!(streams.contains(name), "{name} is delivered to {}", call.delivery_stream);
        };
        let events = |record: &Vec<u8>| -> Vec<u64> {
            let lines = record.split_inclusive(|octet| *octet == b'\n');
            lines.map(|line| ledger.recognize(line)).inspect(is_mapped).collect()
        };
        records.iter().map(events).collect()
    }
}

/// What the records of a PutRecordBatch body hold, or of a part of one.
pub fn decode(body: &[u8]) -> Vec<Vec<u8>> {
    let text = std::str::from_utf8(body).expect("JSON is text");
    let data = text.split("\"Data\":\"").skip(1);
    let base64 = data.map(|rest| rest.split('"').next().expect("a string has an end"));
    base64.map(|base64| base64_simd::STANDARD.decode_to_vec(base64).expect("it is base64")).collect()
}

fn answer_in_part(records: &[Vec<u64>], ledger: &mut Ledger, rng: &mut Rng) -> (Outcome, Vec<u64>) {
    let draw = |rng: &mut Rng| match rng.u32(..6) {
        0..3 => RecordOutcome::Accepted,
        3..5 => RecordOutcome::Throttled,
        _ => RecordOutcome::Internal,
    };
    let answers: Vec<RecordOutcome> = records.iter().map(|_| draw(rng)).collect();
    let mut known = Vec::new();
    for (events, _) in records.iter().zip(&answers).filter(|(_, answer)| **answer == RecordOutcome::Accepted)
    {
        events.iter().for_each(|token| ledger.arrive(*token));
        known.extend(events);
    }
    if answers.iter().all(|answer| *answer == RecordOutcome::Accepted) {
        return (Outcome::Accepted, known);
    }
    (Outcome::Partial(answers), known)
}

/// Some records arrive and some do not, and nobody is told which.
fn break_off(records: &[Vec<u64>], ledger: &mut Ledger, rng: &mut Rng) {
    for events in records {
        if rng.bool() {
            events.iter().for_each(|token| ledger.arrive(*token));
        }
        events.iter().for_each(|token| ledger.doubt(*token));
    }
}
