//! How fast one delivery stream is called: what is configured for it, and what its answers have shown. Pure: it is told
//! the time, what starts and what was answered, and says when the next call may start and how large it may be. It is no
//! back-off: that is `lane`'s, for calls of which nothing is accepted.
//!
//! A quota belongs to a delivery stream, and the relays of a fleet share it without knowing of each other. Bytes, records
//! and calls a second may be configured, each as a ceiling. Beside these a rate is learned, in bytes, since they are what
//! binds first (1 to 5 MiB/s against thousands of calls and a hundred thousand records; see docs/capacity.md):
//!
//! - Nothing is learned until something is throttled while something else is accepted. Then the rate is what was accepted
//!   lately. Rather too much than too little: it is cut faster than it grows.
//! - A window with throttling cuts the rate by the share that was throttled: a fleet that offers 3 % too much slows down
//!   by 3 %, not by half, so that it stays near the quota instead of swinging below it.
//! - A window without, in which calls had to wait for their rate, raises it: by the same few KiB for every relay, which
//!   is what evens their shares out, and, once there are several in a row, by a percentage that grows with every one, so
//!   that a quota that was raised is found within a minute.
//! - Calls of which nothing was accepted count where others are accepted soon before and soon after them, and for no more
//!   than those. What accepts nothing for longer is an outage and no quota, and teaches nothing.
//! - Cuts that do not help (see pace/cuts.rs) are taken back: what is throttled however little this relay sends is not its
//!   doing, and to slow down for it would only starve its own events. From then on it is what is throttled beyond that
//!   share that counts. Even then a rate stays: a relay that sends all it can at a quota that is spent leaves nothing to
//!   those that share it, whose cuts are no help then either, and so on until all of them do.
//!
//! (Additive increase and multiplicative decrease converge to equal shares: Chiu and Jain, 1989. A decrease by the share
//! of marked packets rather than by half: DCTCP, RFC 8257.)

mod cuts;

use std::time::{Duration, Instant};

use self::cuts::{Cuts, Judgement, Sample};
use super::piece::CallMax;
use crate::encode::{CALL_BYTES_MAX, CALL_RECORDS_MAX};

/// The rate is looked at once in so long at most: a quota is per second.
const WINDOW: Duration = Duration::from_secs(1);
/// A window with fewer answered records says little, and goes on, but not for longer than [`WINDOW_MAX`].
const WINDOW_RECORDS: u64 = 8;
/// See [`WINDOW_RECORDS`].
const WINDOW_MAX: Duration = Duration::from_secs(4);
/// A first window in which more is throttled than accepted ends after so long: it is spent on calls in vain.
const FIRST_WINDOW: Duration = Duration::from_millis(250);
/// But not with fewer answered records: with fewer, that may be chance.
const FIRST_RECORDS: u64 = 64;
/// What was throttled as a whole counts if something was accepted within this before it, and is within this after it.
const OUTAGE: Duration = Duration::from_secs(2);
/// What a lane did not use within this is not saved up for later.
const BURST: Duration = Duration::from_millis(250);
/// A call has what may be sent in so long at most, so that a slow lane is not throttled for calling by fits and starts. One
/// record always goes.
const CALL_SPAN: Duration = Duration::from_millis(250);
/// The first rate that is learned is at least this, in bytes a second: little that was accepted may be all that came.
const RATE_FIRST_MIN: f64 = 262_144.0;
/// The same for every relay of a fleet, in bytes a second, each second.
const STEP: f64 = 8192.0;
/// So many windows without throttling come between two with it where a fleet is near its quota. A percentage of its own
/// would undo there what [`STEP`] evens out.
const CALM: u32 = 4;
/// The percentage by which the rate grows in the first second after these; in the second by twice that, and so on.
const GROWTH: f64 = 0.01;
/// And at most.
const GROWTH_MAX: f64 = 0.1;
/// A rate for which no call had to wait in so long is forgotten.
const FORGET: Duration = Duration::from_secs(300);
/// What is throttled whatever this relay does is known for so long; twice as long the next time, unless cuts are a help
/// between them.
const BACKGROUND: Duration = Duration::from_secs(60);
/// And at most.
const BACKGROUND_MAX: Duration = Duration::from_secs(3_600);
/// The seconds over which a mean is taken of what is throttled, to see whether that has become less.
const BACKGROUND_MEAN: f64 = 20.0;

/// What is configured for a delivery stream, a second; `None`: as much as it takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ceilings {
    /// Raw bytes.
    pub bytes: Option<u64>,
    /// Records.
    pub records: Option<u64>,
    /// Calls.
    pub calls: Option<u64>,
}

/// What became of a call, as far as its lane's pace is concerned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answered {
    /// Raw bytes of all its records.
    pub sent: u64,
    /// Raw bytes of the records that were accepted.
    pub accepted: u64,
    /// Raw bytes of those that were over the quota.
    pub throttled: u64,
    /// Records that were accepted or over the quota.
    pub records: u64,
}

/// The pace of one delivery stream.
#[derive(Debug, Default)]
pub struct Pace {
    ceilings: Ceilings,
    bytes: Debt,
    records: Debt,
    calls: Debt,
    /// Bytes a second that the answers have shown.
    learned: Option<f64>,
    window: Option<Window>,
    /// Bytes a second that were accepted in the last window that ended.
    accepted_rate: f64,
    /// When something was last accepted.
    accepted_at: Option<Instant>,
    /// What was throttled as a whole since something was accepted, and since when.
    refused: Option<(Instant, Answered, Sample)>,
    /// Windows without throttling in a row, while calls had to wait for their rate.
    calm: u32,
    cuts: Option<Cuts>,
    /// When a call last had to wait for the learned rate.
    held_at: Option<Instant>,
    background: Option<Background>,
}

/// What is owed at a rate: a call may start once nothing is.
#[derive(Debug, Default)]
struct Debt {
    amount: f64,
    at: Option<Instant>,
}

/// Answers to calls that started within it.
#[derive(Clone, Copy, Debug)]
struct Window {
    since: Instant,
    answered: Answered,
    sample: Sample,
    is_held: bool,
}

/// What is throttled whatever this relay does.
#[derive(Clone, Copy, Debug)]
struct Background {
    /// From 0 to 1; 0 once it is no longer known.
    share: f64,
    /// What was throttled lately, as a mean.
    mean: f64,
    until: Instant,
    lasts: Duration,
}

impl Answered {
    fn add(&mut self, other: Self) {
        self.sent += other.sent;
        self.accepted += other.accepted;
        self.throttled += other.throttled;
        self.records += other.records;
    }
}

impl Background {
    /// What is throttled beyond it, in a window in which `share` was.
    fn excess(&mut self, share: f64, records: f64, elapsed: Duration, now: Instant) -> f64 {
        self.mean += (share - self.mean) * (elapsed.as_secs_f64() / BACKGROUND_MEAN).min(1.0);
        self.share = if now < self.until { self.share.min(self.mean) } else { 0.0 };
        // A standard deviation more may be chance.
        let chance = (self.share * (1.0 - self.share) / records.max(1.0)).sqrt();
        ((share - self.share - chance) / (1.0 - self.share)).max(0.0)
    }
}

impl Debt {
    /// What is owed at `now`, or, where that is negative, may be had at once.
    fn owed(&self, rate: f64, now: Instant) -> f64 {
        let paid = self.at.map_or(0.0, |at| now.saturating_duration_since(at).as_secs_f64() * rate);
        (self.amount - paid).max(-rate * BURST.as_secs_f64())
    }

    fn charge(&mut self, amount: u64, rate: Option<f64>, now: Instant) {
        let Some(rate) = rate else { return *self = Self::default() };
        self.amount = self.owed(rate, now) + amount as f64;
        self.at = Some(now);
    }

    /// How long until nothing is owed.
    fn wait(&self, rate: Option<f64>, now: Instant) -> Duration {
        let Some(rate) = rate else { return Duration::ZERO };
        Duration::try_from_secs_f64((self.owed(rate, now) / rate).max(0.0)).unwrap_or(Duration::MAX)
    }
}

impl Pace {
    /// A pace with nothing learned yet.
    pub fn new(ceilings: Ceilings) -> Self {
        Self { ceilings, ..Self::default() }
    }

    /// Sets other ceilings; what was learned stays. Says whether they are others than before.
    pub fn set_ceilings(&mut self, ceilings: Ceilings) -> bool {
        std::mem::replace(&mut self.ceilings, ceilings) != ceilings
    }

    /// Raw bytes a second, where there is a limit to them.
    pub fn rate(&self) -> Option<f64> {
        let ceiling = self.ceilings.bytes.map(|bytes| bytes as f64);
        match (ceiling, self.learned) {
            (Some(ceiling), Some(learned)) => Some(ceiling.min(learned)),
            (ceiling, learned) => ceiling.or(learned),
        }
    }

    /// Raw bytes a second that answers have shown to be as much as is taken.
    pub fn learned(&self) -> Option<f64> {
        self.learned
    }

    /// When the next call may start, if not now. It is taken to be wanted.
    pub fn ready_at(&mut self, now: Instant) -> Option<Instant> {
        let ceiling = |ceiling: Option<u64>| ceiling.map(|ceiling| ceiling as f64);
        let of_bytes = self.bytes.wait(self.rate(), now);
        let of_records = self.records.wait(ceiling(self.ceilings.records), now);
        let wait = of_bytes.max(of_records).max(self.calls.wait(ceiling(self.ceilings.calls), now));
        // Where a ceiling is lower, it says nothing of what else would be taken.
        let is_bound = self.learned.is_some_and(|learned| self.rate() == Some(learned));
        if is_bound && !of_bytes.is_zero() {
            self.held_at = Some(now);
            self.window.iter_mut().for_each(|window| window.is_held = true);
        }
        (!wait.is_zero()).then(|| now.checked_add(wait)).flatten()
    }

    /// What the next call should have at most.
    pub fn call_max(&self) -> CallMax {
        // Saturating: what is larger than a call becomes a call.
        let of_span =
            |rate: Option<f64>| rate.map_or(usize::MAX, |rate| (rate * CALL_SPAN.as_secs_f64()) as usize);
        let records = self.ceilings.records.map(|ceiling| ceiling as f64);
        CallMax {
            bytes: of_span(self.rate()).clamp(1, CALL_BYTES_MAX),
            records: of_span(records).clamp(1, CALL_RECORDS_MAX),
        }
    }

    /// A call starts.
    pub fn started(&mut self, bytes: u64, records: u64, now: Instant) {
        if self.held_at.is_none_or(|at| now.saturating_duration_since(at) > FORGET) {
            self.learned = None;
        }
        let ceilings = self.ceilings;
        self.bytes.charge(bytes, self.rate(), now);
        self.records.charge(records, ceilings.records.map(|ceiling| ceiling as f64), now);
        self.calls.charge(1, ceilings.calls.map(|ceiling| ceiling as f64), now);
        let is_stale = |window: &Window| now.saturating_duration_since(window.since) > 2 * WINDOW_MAX;
        if self.window.as_ref().is_none_or(is_stale) {
            let (answered, sample) = Default::default();
            self.window = Some(Window { since: now, answered, sample, is_held: false });
        }
    }

    /// A call that started at `started` was answered. Calls that were under way before the last change of the rate say
    /// nothing about it.
    pub fn answered(&mut self, answered: Answered, started: Instant, now: Instant) {
        let Some(window) = self.window.as_mut().filter(|window| started >= window.since) else { return };
        let is_recent = |at: Instant| now.saturating_duration_since(at) <= OUTAGE;
        let sample = Sample::of_call(answered.records, answered.accepted, answered.throttled);
        if answered.accepted == 0 {
            if answered.throttled > 0 && self.accepted_at.is_some_and(is_recent) {
                let (_, refused, samples) =
                    self.refused.get_or_insert((now, Answered::default(), Sample::default()));
                refused.add(answered);
                samples.add(sample);
            }
            return;
        }
        self.accepted_at = Some(now);
        if let Some((_, refused, samples)) = self.refused.take().filter(|(since, ..)| is_recent(*since)) {
            // One piece is refused again and again.
            let throttled = refused.throttled.min(answered.accepted);
            window.answered.add(Answered { throttled, ..refused });
            window.sample.add(samples);
        }
        window.answered.add(answered);
        window.sample.add(sample);
        let (window, elapsed) = (*window, now.saturating_duration_since(window.since));
        let is_whole = elapsed >= WINDOW && window.answered.records >= WINDOW_RECORDS;
        let is_in_vain = self.learned.is_none()
            && window.answered.throttled > window.answered.accepted
            && window.answered.records >= FIRST_RECORDS;
        if is_whole || (is_in_vain && elapsed >= FIRST_WINDOW) || elapsed >= WINDOW_MAX {
            self.window = None;
            self.conclude(&window, elapsed, now);
        }
    }

    /// Ends every wait.
    pub fn cut_wait_short(&mut self) {
        (self.bytes, self.records, self.calls) = Default::default();
    }

    fn conclude(&mut self, window: &Window, elapsed: Duration, now: Instant) {
        let Answered { accepted, throttled, records, .. } = window.answered;
        // What a quota has saved up for a burst is no rate: it counts as if it were a second's.
        let rate = accepted as f64 / elapsed.max(WINDOW).as_secs_f64();
        let earlier_rate = std::mem::replace(&mut self.accepted_rate, rate);
        let share = throttled as f64 / (accepted + throttled) as f64;
        let sample = window.sample;
        let Some(learned) = self.learned else {
            if throttled > 0 {
                let rate = rate.max(earlier_rate).max(RATE_FIRST_MIN);
                (self.learned, self.held_at, self.calm) = (Some(rate), Some(now), 0);
                self.cuts = Some(Cuts::new(rate, sample, now));
            }
            return;
        };
        match self.cuts.as_mut().map_or(Judgement::Open, |cuts| cuts.judge(sample, now)) {
            Judgement::Open => {}
            Judgement::Help => (self.cuts, self.background) = (None, None),
            Judgement::Worse => self.cuts = None,
            Judgement::Vain(share) => return self.take_back(share, now),
        }
        let excess = match &mut self.background {
            Some(background) => background.excess(share, sample.records(), elapsed, now),
            None => share,
        };
        if excess == 0.0 {
            return self.raise(learned, window.is_held, elapsed);
        }
        // Of a few records, chance has too large a say.
        let excess = if records < WINDOW_RECORDS { excess.min(0.5) } else { excess };
        let earlier = self.cuts.filter(|cuts| learned <= cuts.rate());
        let mut cuts = earlier.unwrap_or_else(|| Cuts::new(learned, sample, now));
        self.learned = Some(cuts.cut_to(learned * (1.0 - excess)).min(learned));
        (self.cuts, self.held_at, self.calm) = (Some(cuts), Some(now), 0);
    }

    fn raise(&mut self, learned: f64, is_held: bool, elapsed: Duration) {
        if is_held {
            self.calm += 1;
            let growth = (f64::from(self.calm.saturating_sub(CALM)) * GROWTH).min(GROWTH_MAX);
            let raise = (STEP + learned * growth) * elapsed.min(WINDOW_MAX).as_secs_f64();
            self.learned = Some(learned + raise);
        }
    }

    fn take_back(&mut self, share: f64, now: Instant) {
        if let Some(cuts) = self.cuts.take() {
            self.learned = self.learned.map(|learned| learned.max(cuts.rate()));
        }
        let lasts = self.background.map_or(BACKGROUND, |last| (last.lasts * 2).min(BACKGROUND_MAX));
        let until = now + lasts;
        self.background = Some(Background { share, mean: share, until, lasts });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: f64 = 1_048_576.0;

    fn at(start: Instant, millis: u64) -> Instant {
        start + Duration::from_millis(millis)
    }

    fn answer(accepted: u64, throttled: u64) -> Answered {
        Answered { sent: accepted + throttled, accepted, throttled, records: 100 }
    }

    /// Sends what the pace allows for a second, of which so much is accepted; gives the bytes sent.
    fn second(pace: &mut Pace, start: Instant, accepts: impl Fn(u64) -> u64) -> u64 {
        let mut sent = 0;
        for step in 0..=100 {
            let now = at(start, step * 10);
            while pace.ready_at(now).is_none() && sent < 100 << 20 {
                let bytes = pace.call_max().bytes as u64;
                pace.started(bytes, 100, now);
                let accepted = accepts(bytes);
                pace.answered(answer(accepted, bytes - accepted), now, now);
                sent += bytes;
            }
        }
        sent
    }

    #[test]
    fn nothing_is_limited_before_something_is_throttled() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        pace.started(4 << 20, 500, start);
        pace.answered(answer(4 << 20, 0), start, at(start, 2_000));
        assert_eq!((pace.rate(), pace.ready_at(at(start, 2_000))), (None, None));
        assert_eq!(pace.call_max(), CallMax::WHOLE);
    }

    #[test]
    fn the_first_throttling_teaches_what_was_accepted() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        pace.started(4 << 20, 500, start);
        pace.answered(answer(1_000, 1 << 20), start, at(start, 50));
        assert_eq!(pace.learned(), None, "what comes back first may be the least of it");
        pace.answered(answer((1 << 20) - 1_000, 2 << 20), start, at(start, 1_000));
        assert_eq!(pace.learned(), Some(MIB));
        assert_eq!(pace.call_max(), CallMax { bytes: 1 << 18, ..CallMax::WHOLE });
    }

    #[test]
    fn where_most_is_throttled_a_rate_is_learned_at_once() {
        for (throttled, learned) in [(1, None), (2, Some(MIB))] {
            let (mut pace, start) = (Pace::default(), Instant::now());
            pace.started(4 << 20, 500, start);
            pace.answered(answer(1 << 20, throttled << 20), start, at(start, 250));
            assert_eq!(pace.learned(), learned);
        }
    }

    #[test]
    fn a_rate_is_cut_by_the_share_that_is_throttled_and_grows_where_it_is_in_the_way() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        pace.started(2 << 20, 500, start);
        pace.answered(answer(1 << 20, 1 << 20), start, at(start, 1_000));
        for turn in 2..30 {
            second(&mut pace, at(start, turn * 1_000), |bytes| bytes);
        }
        let grown = pace.learned().expect("a rate is learned");
        assert!(grown > 4.0 * MIB, "{grown}");
        for turn in 30..32 {
            second(&mut pace, at(start, turn * 1_000), |bytes| bytes * 9 / 10);
        }
        let cut = pace.learned().expect("still") / grown;
        assert!((0.75..0.97).contains(&cut), "{cut}");
        assert_eq!(pace.calm, 0);
    }

    #[test]
    fn what_waits_for_a_ceiling_raises_no_rate() {
        let start = Instant::now();
        let mut pace = Pace::new(Ceilings { bytes: Some(1 << 20), ..Ceilings::default() });
        pace.started(4 << 20, 500, start);
        pace.answered(answer(2 << 20, 2 << 20), start, at(start, 1_000));
        for turn in 2..20 {
            second(&mut pace, at(start, turn * 1_000), |bytes| bytes);
        }
        assert_eq!((pace.learned(), pace.rate()), (Some(2.0 * MIB), Some(MIB)));
    }

    #[test]
    fn a_rate_that_is_in_nobodys_way_is_forgotten() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        pace.started(2 << 20, 500, start);
        pace.answered(answer(1 << 20, 1 << 20), start, at(start, 1_000));
        for minute in 1..=6 {
            assert!(pace.learned().is_some() || minute > 5, "after {minute} minutes");
            pace.started(1_000, 1, at(start, minute * 60_000));
        }
        assert_eq!(pace.learned(), None);
    }

    #[test]
    fn an_outage_teaches_nothing_and_single_calls_that_are_throttled_do() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        let mut call = |millis: u64, accepted: u64, throttled: u64| {
            pace.started(4 << 20, 500, at(start, millis));
            pace.answered(answer(accepted, throttled), at(start, millis), at(start, millis));
            pace.learned()
        };
        assert_eq!(call(0, 4 << 20, 0), None);
        for turn in 1..100 {
            assert_eq!(call(turn * 500, 0, 4 << 20), None);
        }
        assert_eq!(call(50_000, 4 << 20, 0), None, "an outage is over");
        assert_eq!(call(50_500, 0, 4 << 20), None, "another may have begun");
        assert_eq!(call(51_000, 4 << 20, 0), None, "it has not, but a second is not over");
        assert_eq!(call(51_500, 4 << 20, 0), Some(8.0 * MIB), "it was the quota");
    }

    #[test]
    fn cuts_that_do_not_help_are_taken_back() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        pace.started(2 << 20, 500, start);
        pace.answered(answer(1 << 20, 1 << 20), start, at(start, 1_000));
        let mut rates = Vec::new();
        for turn in 1..=60 {
            second(&mut pace, at(start, turn * 1_000), |bytes| bytes / 2);
            rates.push(pace.learned().expect("a rate is learned"));
        }
        let (least, last) = (rates.iter().copied().fold(f64::MAX, f64::min), rates[rates.len() - 1]);
        println!("{least} at least, {last} after a minute: {rates:?}");
        assert!(least < 0.5 * MIB, "half of what is sent is throttled: it is cut");
        assert!(last >= 2.0 * MIB, "however little is sent, and then as much as ever is");
    }

    /// A few records in every window, so that by chance nothing is throttled in many of them.
    #[test]
    fn few_records_throttled_at_random_do_not_slow_a_lane_for_long() {
        const RECORD: u64 = 100_000;
        const MOMENTS: u64 = 18_000;
        const SEEDS: u64 = 20;
        let sent = |chance: f64, seed: u64| {
            let (mut pace, start, mut rng) =
                (Pace::default(), Instant::now(), fastrand::Rng::with_seed(seed));
            let mut sends = |moment: u64| {
                let now = at(start, moment * 100);
                let is_ready = pace.ready_at(now).is_none();
                if is_ready {
                    let throttled = u64::from(rng.f64() < chance) * RECORD;
                    pace.started(RECORD, 1, now);
                    let answered = Answered { records: 1, ..answer(RECORD - throttled, throttled) };
                    pace.answered(answered, now, now);
                }
                is_ready
            };
            (0..MOMENTS).filter(|moment| sends(*moment)).count() as u64
        };
        for chance in [0.1, 0.3, 0.6] {
            let counts: Vec<u64> = (0..SEEDS).map(|seed| sent(chance, seed)).collect();
            let mean = counts.iter().sum::<u64>() / SEEDS;
            println!("{chance}: sends in {mean} of {MOMENTS} moments: {counts:?}");
            assert!(mean > MOMENTS / 2, "{chance}: sends in {mean} of {MOMENTS} moments");
        }
    }

    #[test]
    fn every_ceiling_is_kept_and_nothing_is_saved_up() {
        let start = Instant::now();
        for (ceilings, bytes, records, most) in [
            (Ceilings { bytes: Some(1_000), ..Ceilings::default() }, 100, 1, 10),
            (Ceilings { records: Some(50), ..Ceilings::default() }, 1, 5, 10),
            (Ceilings { calls: Some(10), ..Ceilings::default() }, 1, 1, 10),
        ] {
            let mut pace = Pace::new(ceilings);
            let mut calls = 0;
            // A minute of silence before is worth a quarter of a second, and a call may start before it is paid.
            for millis in 60_000..61_000 {
                let now = at(start, millis);
                if pace.ready_at(now).is_none() {
                    pace.started(bytes, records, now);
                    calls += 1;
                }
            }
            assert!((most..=most + 4).contains(&calls), "{ceilings:?}: {calls}");
        }
    }
}
