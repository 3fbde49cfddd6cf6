//! What is seen of one life of a relay while it lasts: what it counts, whether its time has come, and what it may have
//! repeated since it was last asked.

use std::time::{Duration, Instant};

use super::behind::Behind;
use super::schedule::{Death, Life, Phase, Trouble};
use super::station::{Counted, LOOK_PAUSE};
use crate::run::metrics::Metrics;
use crate::run::relay::Relay;

/// How much longer than its time a relay lives that was to come to a named point and does not.
const POINT_PATIENCE: Duration = Duration::from_millis(300);
/// How long a crowd may take to come.
const CROWD_PATIENCE: Duration = Duration::from_secs(10);
/// A life began so many seconds, at most, before it was watched.
const STARTED_EARLIER: u64 = 30;

/// What is seen of one life while it lasts.
pub struct Watch {
    began: Instant,
    lives: Duration,
    lasts: Duration,
    drains: Duration,
    is_to_drain: bool,
    crowd: u64,
    /// Whether it was told to end.
    pub was_told: bool,
    is_second_half: bool,
    is_troubled: bool,
    /// Whether it is to die at a named point, or has.
    pub at_point: bool,
    /// Whether it has ended by itself.
    pub has_ended: bool,
    /// What it counted when it was last asked.
    pub last: Counted,
    /// What had come to what stands behind it before it was last asked.
    came: u64,
    /// The ages of all events delivered, added up, and what that can be at most since the life began.
    pub latency_seconds: u64,
    /// See `latency_seconds`.
    pub latency_seconds_max: u64,
}

impl Watch {
    /// Of a life that begins; `came` is what had come behind the relay before it was started.
    pub fn new(life: &Life, came: u64) -> Self {
        let at_point = matches!(life.death, Death::Point(..));
        Self {
            began: Instant::now(),
            lives: life.lasts,
            lasts: life.lasts + if at_point { POINT_PATIENCE } else { Duration::ZERO },
            drains: life.drains,
            is_to_drain: life.phase == Phase::Drain,
            crowd: life.crowd,
            was_told: false,
            is_second_half: false,
            is_troubled: life.trouble != Trouble::None,
            at_point,
            has_ended: false,
            last: Counted::default(),
            came,
            latency_seconds: 0,
            latency_seconds_max: 0,
        }
    }

    /// How long it has still to live, but for the crowd.
    fn left(&self) -> Duration {
        self.lasts.saturating_sub(self.began.elapsed())
    }

    /// Until something may have come of it.
    pub fn pause(&self) -> Duration {
        if self.waits_for_crowd() { LOOK_PAUSE } else { self.left().min(LOOK_PAUSE) }
    }

    /// Whether those have yet to come that must be there before it dies.
    fn waits_for_crowd(&self) -> bool {
        self.last.crowd < self.crowd && self.began.elapsed() < CROWD_PATIENCE
    }

    /// Whether its time has come.
    pub fn is_over(&self) -> bool {
        self.was_told == self.is_to_drain && self.left().is_zero() && !self.waits_for_crowd()
    }

    /// Whether it is to be told to end, which is so once.
    pub fn is_to_be_told(&mut self) -> bool {
        let is_time = self.began.elapsed() >= self.lives && !self.waits_for_crowd();
        let is_due = self.is_to_drain && !self.was_told && is_time;
        if is_due {
            self.was_told = true;
            self.lasts = self.lasts.max(self.began.elapsed()) + self.drains;
        }
        is_due
    }

    /// Whether its clock is to jump back and its disk to work again, which is so once, at half-time.
    pub fn is_half_over(&mut self) -> bool {
        let is_due = !self.is_second_half && self.began.elapsed() >= self.lives / 2;
        self.is_second_half |= is_due;
        is_due
    }

    /// Only what is seen last counts, and a look costs the relay time.
    pub fn look(&mut self, relay: &Relay, behind: Behind<'_>) {
        let waits_for_disk = self.is_troubled && (self.last.failing == 0 || self.is_second_half);
        let waits = waits_for_disk || self.waits_for_crowd();
        if self.at_point || self.was_told || self.left() <= LOOK_PAUSE || waits {
            self.scrape(relay, behind);
        }
    }

    /// Asks it what it has counted.
    pub fn scrape(&mut self, relay: &Relay, behind: Behind<'_>) {
        let came = behind.came();
        let Ok(metrics) = Metrics::scrape(relay.ready().admin) else { return };
        let is_failing = metrics.sum("standpipe_spool_failing") > 0;
        let failing = self.last.failing.max(u64::from(is_failing));
        let healed = u64::from(failing > 0 && !is_failing);
        let counted = Counted::of(&metrics);
        let crowd = counted.crowd.max(self.last.crowd);
        self.came = came;
        self.last = Counted { failing, healed, crowd, ..counted };
        self.latency_seconds = metrics.sum("standpipe_delivery_latency_seconds_sum");
        let events = metrics.sum("standpipe_delivery_latency_seconds_count");
        self.latency_seconds_max = events.saturating_mul(self.began.elapsed().as_secs() + STARTED_EARLIER);
    }

    /// It is dead: what has come behind it since it was last asked, it may have counted, which nobody has seen.
    pub fn note_unseen(&mut self, behind: Behind<'_>) {
        behind.wait_until_quiet();
        self.last.unseen = behind.came().saturating_sub(self.came);
    }
}

#[cfg(test)]
mod tests {
    use super::super::schedule::{Weather, sweep};
    use super::*;
    use crate::event::{Builder, Event, StreamSeed};
    use crate::sink::ledger::Check;
    use crate::sink::{Settings, Sink};
    use crate::units::Sizes;

    const SEED: u64 = 1;

    fn accept(sink: &Sink, sequence: u64) {
        let builder = Builder::new(SEED, Sizes { min: 100, max: 100 }).unwrap();
        let event = Event { connection: 0, sequence, planned_ns: 0, check: 0 };
        let mut line = Vec::new();
        builder.append(&mut line, StreamSeed::new("clicks"), sequence, &event);
        line.push(b'\n');
        sink.with_ledger(|ledger| ledger.accept("clicks", std::iter::once(&line[..]), None));
    }

    #[test]
    fn a_relay_does_not_die_before_the_crowd_is_there() {
        let swept = sweep(SEED, &["seal".to_owned()], false);
        let drained = swept.iter().find(|life| life.phase == Phase::Drain).unwrap();
        for phase in [Phase::Burst, Phase::Drain] {
            let life =
                Life { phase, lasts: Duration::ZERO, death: Death::Signal, crowd: 500, ..drained.clone() };
            let mut watch = Watch::new(&life, 0);
            watch.last.crowd = 499;
            assert!(!watch.is_over() && !watch.is_to_be_told());
            assert_eq!(watch.pause(), LOOK_PAUSE);
            watch.last.crowd = 500;
            assert_eq!(
                (watch.is_to_be_told(), watch.is_over()),
                (phase == Phase::Drain, phase == Phase::Burst)
            );
        }
    }

    #[test]
    fn what_a_relay_repeats_after_it_was_last_asked_is_explained() {
        let settings = Settings {
            check: Check::Full,
            verify_signature: Some(false),
            secret: None,
            map: Vec::new(),
            timeline: false,
            faults: Weather::Calm.faults(),
        };
        let sink = Sink::start(([127, 0, 0, 1], 0).into(), SEED, settings, None).unwrap();
        let behind = Behind::Sink(&sink);
        [1, 2, 1].into_iter().for_each(|sequence| accept(&sink, sequence));
        let life = &sweep(SEED, &["seal".to_owned()], false)[0];
        // Nobody could ask this one before it was dead.
        let mut watch = Watch::new(life, behind.came());
        [2, 1, 3].into_iter().for_each(|sequence| accept(&sink, sequence));
        watch.note_unseen(behind);
        assert_eq!(watch.last.unseen, 2);
    }
}
