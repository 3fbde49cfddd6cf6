//! Whether it helps to call a delivery stream more slowly: what was throttled before its rate was cut, held against what is
//! throttled since. Pure, and no policy: what follows from it is for the pace to say.
//!
//! Both sides know some dozens of records at best, and those of one call share their fate, so that chance has a large say.
//! Hence two sequential tests (Page's CUSUM): of "a quarter is throttled now of what was" and of "four times as much",
//! each against "as much", where "what was" is taken to be as far off as the number of records allows. A fleet that cuts
//! too much settles this within a second or two, since next to nothing is throttled then.

use std::time::{Duration, Instant};

/// No rate is cut below this, in bytes a second.
const RATE_MIN: f64 = 16_384.0;
/// Cuts down to this part of a rate should show.
const LOW: f64 = 0.6;
/// A rate below this can hardly be cut, and shows nothing.
const JUDGED_MIN: f64 = 4.0 * RATE_MIN;
/// None goes further than to this part of it before it is known whether they do: too few records would be left to tell.
const CUT_MOST: f64 = 1.0 / 8.0;
/// The relays of a fleet cut one after the other, so that what the first sees is the others' doing still.
const LONG_ENOUGH: Duration = Duration::from_secs(10);
/// So much less, or more, is what is looked for.
const CHANGE: f64 = 4.0;
/// And found, where that is likelier than no change by this, as a natural logarithm.
const SURE: f64 = 20.0;
/// There is no change where that is likelier, and so many records should have been throttled meanwhile.
const EXPECTED_MIN: f64 = 12.0;
/// So many where a share below [`SHARE_SMALL`] is: in a fleet that is near its quota some always are, whatever one of its
/// relays does.
const EXPECTED_MIN_SMALL: f64 = 48.0;
/// See [`EXPECTED_MIN_SMALL`].
const SHARE_SMALL: f64 = 0.2;
/// The records of a call count as so many at most: they share its fate.
const CALL_RECORDS: u64 = 4;

/// Records, weighed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sample {
    /// Those that were accepted.
    pub accepted: f64,
    /// Those that were not.
    pub throttled: f64,
}

/// What is known by now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Judgement {
    /// Nothing yet.
    Open,
    /// They help.
    Help,
    /// More is throttled than before: something else has changed, too.
    Worse,
    /// They do not help: this share is throttled however little is sent.
    Vain(f64),
}

/// A rate that was cut, once or many times.
#[derive(Clone, Copy, Debug)]
pub struct Cuts {
    since: Instant,
    /// What it was before, in bytes a second.
    rate: f64,
    /// Whether it was cut down to [`LOW`] of that.
    is_low: bool,
    before: Sample,
    after: Sample,
    /// How much likelier less is throttled than as much.
    help: f64,
    /// How much likelier more is.
    worse: f64,
}

impl Sample {
    /// Of a call with so many records, so much of which, in bytes, was accepted.
    pub fn of_call(records: u64, accepted: u64, throttled: u64) -> Self {
        let weight = records.min(CALL_RECORDS) as f64 / (accepted + throttled).max(1) as f64;
        Self { accepted: weight * accepted as f64, throttled: weight * throttled as f64 }
    }

    /// Adds others.
    pub fn add(&mut self, other: Self) {
        self.accepted += other.accepted;
        self.throttled += other.throttled;
    }

    /// How many they are.
    pub fn records(&self) -> f64 {
        self.accepted + self.throttled
    }

    /// What is throttled of them.
    pub fn share(&self) -> f64 {
        self.throttled / self.records().max(f64::MIN_POSITIVE)
    }

    /// Records throttled for each that is accepted, if chance had added so many to the throttled ones.
    fn odds(&self, by_chance: f64) -> f64 {
        (self.throttled - by_chance).max(0.0) / (self.accepted + by_chance).max(1.0)
    }
}

impl Cuts {
    /// A rate that is about to be cut, for what was answered at it.
    pub fn new(rate: f64, before: Sample, now: Instant) -> Self {
        let after = Sample::default();
        Self { since: now, rate, is_low: false, before, after, help: 0.0, worse: 0.0 }
    }

    /// What it was before, in bytes a second.
    pub fn rate(&self) -> f64 {
        self.rate
    }

    /// The nearest to `rate` that may be cut to; it is taken to be.
    pub fn cut_to(&mut self, rate: f64) -> f64 {
        let rate = rate.max(self.rate * CUT_MOST).max(RATE_MIN);
        self.is_low |= rate <= self.rate * LOW && self.rate >= JUDGED_MIN;
        rate
    }

    /// What is known with what was answered in one more window.
    pub fn judge(&mut self, window: Sample, now: Instant) -> Judgement {
        if !self.is_low {
            self.before.add(window);
            return Judgement::Open;
        }
        self.after.add(window);
        let chance = self.before.throttled.sqrt();
        let least = self.before.odds(chance) * window.accepted;
        let most = self.before.odds(-chance) * window.accepted;
        // Logarithms of the ratios of two Poisson probabilities.
        let (throttled, change) = (window.throttled, CHANGE.ln());
        self.help = (self.help + (1.0 - 1.0 / CHANGE) * least - change * throttled).max(0.0);
        self.worse = (self.worse + change * throttled - (CHANGE - 1.0) * most).max(0.0);
        let share = self.after.share();
        let expected_min = if share < SHARE_SMALL { EXPECTED_MIN_SMALL } else { EXPECTED_MIN };
        let has_lasted = now.saturating_duration_since(self.since) >= LONG_ENOUGH
            && self.before.odds(0.0) * self.after.accepted >= expected_min;
        if self.help >= SURE {
            Judgement::Help
        } else if self.worse >= SURE {
            Judgement::Worse
        } else if has_lasted && self.help < 1.0 {
            Judgement::Vain(share)
        } else {
            Judgement::Open
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is judged within a minute, with so many records a second of which these shares are throttled by chance.
    fn judged(seed: u64, records: u32, before: f64, after: f64) -> (Judgement, u64) {
        let (start, mut rng) = (Instant::now(), fastrand::Rng::with_seed(seed));
        let mut window = |share: f64| {
            let throttled = (0..records).filter(|_| rng.f64() < share).count() as f64;
            Sample { accepted: f64::from(records) - throttled, throttled }
        };
        let mut cuts = Cuts::new(1_000_000.0, window(before), start);
        cuts.cut_to(500_000.0);
        for second in 1..60 {
            let judgement = cuts.judge(window(after), start + Duration::from_secs(second));
            if judgement != Judgement::Open {
                return (judgement, second);
            }
        }
        (Judgement::Open, 60)
    }

    #[test]
    fn what_helps_is_seen_within_seconds_and_what_does_not_is_seldom_taken_for_it() {
        const SEEDS: u64 = 1_000;
        let count = |before: f64, after: f64, is: fn(Judgement) -> bool| {
            let all = (0..SEEDS).map(|seed| judged(seed, 50, before, after));
            let found: Vec<u64> =
                all.filter(|(judgement, _)| is(*judgement)).map(|(_, second)| second).collect();
            let longest = found.iter().max().copied().unwrap_or(0);
            println!("{before} before, {after} after: {} of {SEEDS}, within {longest} s", found.len());
            (found.len() as u64, longest)
        };
        let is_help = |judgement| judgement == Judgement::Help;
        let is_worse = |judgement| judgement == Judgement::Worse;
        let is_vain = |judgement| matches!(judgement, Judgement::Vain(_));
        assert_eq!(count(0.8, 0.05, is_help), (SEEDS, 1));
        assert_eq!(count(0.3, 0.01, is_help).0, SEEDS);
        assert_eq!(count(0.05, 0.8, is_worse).0, SEEDS);
        for share in [0.1, 0.3, 0.6] {
            assert!(count(share, share, is_vain).0 > SEEDS * 9 / 10);
            assert!(count(share, share, is_help).0 < SEEDS / 50);
            assert!(count(share, share, is_worse).0 < SEEDS / 20);
        }
    }

    #[test]
    fn no_cut_goes_further_than_can_be_judged() {
        let mut cuts = Cuts::new(1_000_000.0, Sample::default(), Instant::now());
        assert_eq!([cuts.cut_to(700_000.0), cuts.cut_to(1.0)], [700_000.0, 125_000.0]);
        assert_eq!(Cuts::new(20_000.0, Sample::default(), Instant::now()).cut_to(1.0), RATE_MIN);
    }
}
