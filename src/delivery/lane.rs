//! The policy of one delivery stream: how many calls at once, how fast, how long to wait after a failure, when to park.
//! Pure: it is told the time and what became of calls, and says when the next may start. It sees no bytes.

use std::time::{Duration, Instant};

use super::pace::{Answered, Ceilings, Pace};
use super::retry::Backoff;
use crate::config::Config;

/// Of what a call had accepted, so much counts for how well the lane is doing: the last dozen calls or so.
const SUCCESS_WEIGHT: f64 = 0.125;
/// A lane that fails is still tried now and then.
const SUCCESS_MIN: f64 = 0.05;

/// Settings that all lanes share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneLimits {
    /// Calls in flight at most.
    pub calls_max: usize,
    /// The wait after failures.
    pub backoff: Backoff,
    /// How often a parked lane is tried.
    pub park_probe: Duration,
}

/// No lane has less of a stream than this, relative to the best of the stream's lanes.
const WEIGHT_MIN: f64 = 0.001;
impl LaneLimits {
    /// Those of a configuration.
    pub fn of(config: &Config) -> Self {
        Self {
            calls_max: config.max_lane_calls,
            backoff: Backoff { base: config.retry_base, max: config.retry_max },
            park_probe: config.park_probe,
        }
    }
}

/// What a call meant for its lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Something was accepted. What was throttled beside it is the pace's business.
    Progress,
    /// Nothing was accepted: wait, longer each time.
    Failed,
    /// The same, or it is not known, for a reason that lies with the endpoint or the way there and says nothing of
    /// this delivery stream: once another is answered there, this one need not wait any longer.
    Unreached,
    /// The delivery stream refuses calls for good: only probe it.
    Parked,
    /// The call was refused for its content, which says nothing of the lane.
    Neutral,
}

/// Whether a call may start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// Now.
    Now,
    /// Not before this instant.
    At(Instant),
    /// Not before a call in flight has ended.
    Busy,
}

/// What `/status` and `lane_state` say of a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaneState {
    /// Calls are made as work comes.
    Active = 0,
    /// The last call failed; one call at a time.
    BackingOff = 1,
    /// Refused for good; probed from time to time.
    Parked = 2,
}

/// The state of one lane's policy.
#[derive(Debug, Default)]
pub struct Lane {
    pace: Pace,
    /// The share of what was sent lately that was not accepted, from 0 to 1.
    failure: f64,
    in_flight: usize,
    /// Failures in a row. Calls that were under way together fail together and count once.
    streak: u32,
    failed_at: Option<Instant>,
    resume_at: Option<Instant>,
    parked: bool,
    /// Whether the last failure was of the endpoint.
    is_unreached: bool,
    accepted_at: Option<Instant>,
}

impl Lane {
    /// A lane of which nothing is known but its ceilings.
    pub fn new(ceilings: Ceilings) -> Self {
        Self { pace: Pace::new(ceilings), ..Self::default() }
    }

    /// Keeps to these ceilings from now on; says whether they are others than before.
    pub fn set_ceilings(&mut self, ceilings: Ceilings) -> bool {
        self.pace.set_ceilings(ceilings)
    }

    /// Whether and when the next call may start, which is taken to be wanted.
    pub fn readiness(&mut self, now: Instant, limits: &LaneLimits) -> Readiness {
        let calls_max = if self.is_failing() { 1 } else { limits.calls_max };
        if self.in_flight >= calls_max {
            return Readiness::Busy;
        }
        let resume_at = self.resume_at.filter(|at| *at > now);
        resume_at.max(self.pace.ready_at(now)).map_or(Readiness::Now, Readiness::At)
    }

    /// A call was started.
    pub fn started(&mut self, bytes: u64, records: u64, now: Instant) {
        self.in_flight += 1;
        self.pace.started(bytes, records, now);
    }

    /// A call that started at `started` has ended. `fraction`, from 0 to 1, is the jitter.
    pub fn finished(
        &mut self,
        verdict: Verdict,
        answered: Answered,
        started: Instant,
        now: Instant,
        limits: &LaneLimits,
        fraction: f64,
    ) {
        self.in_flight -= 1;
        self.pace.answered(answered, started, now);
        if verdict != Verdict::Neutral {
            let failure = 1.0 - answered.accepted as f64 / answered.sent.max(1) as f64;
            self.failure += (failure - self.failure) * SUCCESS_WEIGHT;
        }
        match verdict {
            Verdict::Progress => self.recover(now),
            Verdict::Failed | Verdict::Unreached if self.failed_at.is_some_and(|at| started < at) => (),
            Verdict::Failed => self.fail(now, limits, fraction),
            Verdict::Unreached => {
                self.fail(now, limits, fraction);
                self.is_unreached = true;
            }
            Verdict::Parked => {
                self.parked = true;
                self.is_unreached = false;
                self.resume_at = Some(now + limits.park_probe);
            }
            Verdict::Neutral => (),
        }
    }

    /// Ends every wait: the process drains and tries everything once more.
    pub fn cut_wait_short(&mut self) {
        self.resume_at = None;
        self.streak = self.streak.min(1);
        self.pace.cut_wait_short();
    }

    /// Its pace.
    pub fn pace(&self) -> &Pace {
        &self.pace
    }

    /// How well calls go, from nearly 0 to 1.
    pub fn success(&self) -> f64 {
        (1.0 - self.failure).max(SUCCESS_MIN)
    }

    /// Whether the last calls failed, and not for this delivery stream's sake.
    pub fn is_unreached(&self) -> bool {
        self.is_unreached
    }

    /// Another delivery stream was answered where this one was not: the wait ends as if this were its first. When, if
    /// that is sooner.
    pub fn hurry(&mut self, now: Instant, limits: &LaneLimits, fraction: f64) -> Option<Instant> {
        let soon = now + limits.backoff.delay(1, fraction);
        let is_sooner = self.is_unreached && self.resume_at.is_some_and(|at| at > soon);
        is_sooner.then(|| *self.resume_at.insert(soon))
    }

    /// The limits are others now: a wait ends when it would under these. When, if that is sooner.
    pub fn shorten(&mut self, now: Instant, limits: &LaneLimits, fraction: f64) -> Option<Instant> {
        let soon = now + self.wait(limits, fraction);
        self.resume_at.is_some_and(|at| at > soon).then(|| *self.resume_at.insert(soon))
    }

    /// Whether the last calls failed.
    pub fn is_failing(&self) -> bool {
        self.parked || self.streak > 0
    }

    /// When a call was last accepted, in part at least.
    pub fn accepted_at(&self) -> Option<Instant> {
        self.accepted_at
    }

    /// Calls in flight.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// What to show.
    pub fn state(&self) -> LaneState {
        match (self.parked, self.streak) {
            (true, _) => LaneState::Parked,
            (false, 0) => LaneState::Active,
            (false, _) => LaneState::BackingOff,
        }
    }

    fn recover(&mut self, now: Instant) {
        self.parked = false;
        self.is_unreached = false;
        self.streak = 0;
        self.resume_at = None;
        self.accepted_at = Some(now);
    }

    fn fail(&mut self, now: Instant, limits: &LaneLimits, fraction: f64) {
        self.streak = self.streak.saturating_add(1);
        self.is_unreached = false;
        self.failed_at = Some(now);
        self.resume_at = Some(now + self.wait(limits, fraction));
    }

    /// How long it waits after a failure. A parked lane keeps its slow pace until something is accepted.
    fn wait(&self, limits: &LaneLimits, fraction: f64) -> Duration {
        if self.parked { limits.park_probe } else { limits.backoff.delay(self.streak, fraction) }
    }
}

/// How much of a stream each of its lanes should have, relative to the best of them, in the order of `lanes`: by the
/// rate that it can take, where that is known, and by how well its calls go.
pub fn weights<'a>(lanes: impl Iterator<Item = &'a Lane> + Clone) -> Vec<f64> {
    let best = lanes.clone().filter_map(|lane| lane.pace.rate()).fold(0.0, f64::max);
    let of_rate = |lane: &Lane| lane.pace.rate().filter(|_| best > 0.0).map_or(1.0, |rate| rate / best);
    lanes.map(|lane| (of_rate(lane) * lane.success()).max(WEIGHT_MIN)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: LaneLimits = LaneLimits {
        calls_max: 4,
        backoff: Backoff { base: Duration::from_millis(100), max: Duration::from_secs(30) },
        park_probe: Duration::from_secs(30),
    };

    fn finish(lane: &mut Lane, verdict: Verdict, started: Instant, now: Instant) {
        let accepted = if verdict == Verdict::Progress { 100 } else { 0 };
        let answered = Answered { sent: 100, accepted, throttled: 0, records: 1 };
        lane.finished(verdict, answered, started, now, &LIMITS, 1.0);
    }

    fn start(lane: &mut Lane, now: Instant) {
        lane.started(100, 1, now);
    }

    #[test]
    fn a_failing_lane_has_one_call_in_flight_and_waits_longer_each_time() {
        let t0 = Instant::now();
        let at = |millis| t0 + Duration::from_millis(millis);
        let mut lane = Lane::default();
        start(&mut lane, t0);
        assert_eq!(lane.readiness(t0, &LIMITS), Readiness::Now);
        finish(&mut lane, Verdict::Failed, t0, at(10));
        assert_eq!(lane.readiness(at(10), &LIMITS), Readiness::At(at(110)));
        assert_eq!(lane.readiness(at(110), &LIMITS), Readiness::Now);
        start(&mut lane, t0);
        assert_eq!(lane.readiness(at(110), &LIMITS), Readiness::Busy);
        finish(&mut lane, Verdict::Failed, at(110), at(120));
        assert_eq!(lane.readiness(at(120), &LIMITS), Readiness::At(at(320)));
        start(&mut lane, t0);
        finish(&mut lane, Verdict::Progress, at(320), at(330));
        assert_eq!((lane.readiness(at(330), &LIMITS), lane.state()), (Readiness::Now, LaneState::Active));
    }

    #[test]
    fn calls_that_failed_together_count_once() {
        let t0 = Instant::now();
        let mut lane = Lane::default();
        for _ in 0..4 {
            start(&mut lane, t0);
        }
        for call in 1..=4 {
            finish(&mut lane, Verdict::Failed, t0, t0 + Duration::from_millis(call));
        }
        assert_eq!(lane.streak, 1);
    }

    #[test]
    fn what_failed_for_the_endpoint_is_tried_soon_once_another_is_answered() {
        let t0 = Instant::now();
        let mut lane = Lane::default();
        for verdict in [Verdict::Unreached; 9] {
            start(&mut lane, t0);
            finish(&mut lane, verdict, t0, t0);
        }
        assert!(lane.is_unreached() && lane.readiness(t0 + LIMITS.backoff.base, &LIMITS) != Readiness::Now);
        let soon = t0 + LIMITS.backoff.base;
        assert_eq!(lane.hurry(t0, &LIMITS, 1.0), Some(soon));
        assert_eq!((lane.readiness(t0, &LIMITS), lane.hurry(t0, &LIMITS, 1.0)), (Readiness::At(soon), None));
        start(&mut lane, t0);
        finish(&mut lane, Verdict::Failed, soon, soon);
        assert_eq!(lane.hurry(soon, &LIMITS, 1.0), None, "now it failed for its own sake");
    }

    #[test]
    fn a_parked_lane_is_probed_and_freed_by_the_first_acceptance() {
        let t0 = Instant::now();
        let mut lane = Lane::default();
        start(&mut lane, t0);
        finish(&mut lane, Verdict::Parked, t0, t0);
        assert_eq!(lane.readiness(t0, &LIMITS), Readiness::At(t0 + LIMITS.park_probe));
        assert_eq!(lane.state(), LaneState::Parked);
        lane.cut_wait_short();
        assert_eq!(lane.readiness(t0, &LIMITS), Readiness::Now);
        start(&mut lane, t0);
        finish(&mut lane, Verdict::Progress, t0, t0);
        assert_eq!(lane.state(), LaneState::Active);
    }

    #[test]
    fn a_wait_is_no_longer_than_it_would_be_under_limits_that_have_changed() {
        let t0 = Instant::now();
        let at = |millis| t0 + Duration::from_millis(millis);
        let mut parked = Lane::default();
        start(&mut parked, t0);
        finish(&mut parked, Verdict::Parked, t0, t0);
        let mut failing = Lane::default();
        start(&mut failing, t0);
        finish(&mut failing, Verdict::Failed, t0, t0);
        let faster = LaneLimits {
            backoff: Backoff { base: Duration::from_millis(10), max: Duration::from_millis(10) },
            park_probe: Duration::from_millis(50),
            ..LIMITS
        };
        assert_eq!(parked.shorten(at(1), &faster, 1.0), Some(at(51)));
        assert_eq!(failing.shorten(at(1), &faster, 1.0), Some(at(11)));
        assert_eq!(
            failing.shorten(at(1), &LIMITS, 1.0),
            None,
            "a longer wait counts from the next failure on"
        );
        assert_eq!(Lane::default().shorten(at(1), &faster, 1.0), None);
    }

    #[test]
    fn what_is_throttled_in_part_slows_a_lane_down_and_does_not_make_it_fail() {
        let t0 = Instant::now();
        let mut lane = Lane::default();
        lane.started(1_000_000, 10, t0);
        let answered = Answered { sent: 1_000_000, accepted: 600_000, throttled: 400_000, records: 10 };
        let t1 = t0 + Duration::from_secs(1);
        lane.finished(Verdict::Progress, answered, t0, t1, &LIMITS, 1.0);
        assert_eq!((lane.state(), lane.readiness(t1, &LIMITS)), (LaneState::Active, Readiness::Now));
        lane.started(300_000, 3, t1);
        let ready = lane.readiness(t1, &LIMITS);
        assert!(matches!(ready, Readiness::At(at) if at > t1), "{ready:?}");
    }
}
