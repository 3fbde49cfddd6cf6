//! What is to happen in a round, drawn from its seed alone: so that a round that failed can be run again. It
//! starts and kills nothing itself.

use std::time::Duration;

use fastrand::Rng;

use crate::sink::faults::Faults;
use crate::units::{Delay, Span, Window};

/// How much the clients send before a kill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// An event now and then.
    Idle,
    /// All that the relay takes.
    Burst,
    /// The same, while the relay has been told to end.
    Drain,
}

impl Phase {
    /// All of them, in turn.
    pub const ALL: [Self; 3] = [Self::Burst, Self::Idle, Self::Drain];
}

/// What is wrong with the sink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weather {
    /// Nothing.
    Calm,
    /// Calls and records are throttled.
    Throttling,
    /// Connections are cut before and after the call was accepted.
    Cutting,
    /// Answers cannot be understood, or contradict themselves.
    Lying,
    /// Calls are accepted and not answered.
    Stalling,
    /// Nobody listens at first.
    Gone,
}

/// A day: beyond it signatures, names of files and ages of events have all changed.
const JUMP_SECONDS_MAX: i64 = 86_400;

const WEATHER: [Weather; 6] =
    [Weather::Calm, Weather::Throttling, Weather::Cutting, Weather::Lying, Weather::Stalling, Weather::Gone];

impl Weather {
    /// The faults of the sink.
    pub fn faults(self) -> Faults {
        let ms = Duration::from_millis;
        let slow = Faults { latency: Some(Delay { min: ms(1), max: ms(20) }), ..Faults::default() };
        match self {
            Self::Calm => slow,
            Self::Throttling => Faults { fail_calls: 0.3, fail_records: 0.3, ..slow },
            Self::Cutting => Faults { cut: 0.1, cut_early: 0.1, error_500: 0.1, ..slow },
            Self::Lying => Faults { garbage: 0.15, miscount: 0.15, ..slow },
            Self::Stalling => Faults { stall: 0.1, stall_for: Span(ms(300)), ..slow },
            Self::Gone => Faults { refuse: Some(Window { from: ms(0), to: ms(150) }), ..slow },
        }
    }
}

/// How a relay dies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Death {
    /// Killed from outside.
    Signal,
    /// Killed by itself, the so many-th time that it comes to a named point.
    Point(String, u64),
}

/// One life of the relay, and its end.
#[derive(Debug, Clone)]
pub struct Life {
    /// What the clients do.
    pub phase: Phase,
    /// What the sink does.
    pub weather: Weather,
    /// How it dies.
    pub death: Death,
    /// From ready to the kill; at a point, how long its coming there is waited for.
    pub lasts: Duration,
    /// With [`Phase::Drain`], from SIGTERM to the kill.
    pub drains: Duration,
    /// What a cut of power leaves of the unsynced: nothing, or what this seed draws.
    pub tear: Option<u64>,
    /// How far the clock on the wall jumps, in seconds, where that can be done.
    pub jump_seconds: i64,
    /// Which relay of a chain dies.
    pub victim: usize,
}

/// The lives of a round.
pub fn lives(seed: u64, kills: usize, points: &[String], chain: usize) -> Vec<Life> {
    let mut random = Rng::with_seed(seed);
    let first = random.usize(..Phase::ALL.len());
    (0..kills)
        .map(|number| life(&mut random, Phase::ALL[(first + number) % Phase::ALL.len()], points, chain))
        .collect()
}

fn life(random: &mut Rng, phase: Phase, points: &[String], chain: usize) -> Life {
    let weather = match random.u8(..3) {
        0 => Weather::Calm,
        _ => WEATHER[random.usize(..WEATHER.len())],
    };
    let death = match points.len() {
        0 => Death::Signal,
        _ if random.bool() => Death::Signal,
        count => Death::Point(points[random.usize(..count)].clone(), random.u64(1..30)),
    };
    Life {
        phase,
        weather,
        death,
        lasts: Duration::from_micros(random.u64(5_000..400_000)),
        drains: Duration::from_micros(random.u64(..80_000)),
        tear: random.bool().then(|| random.u64(..)),
        jump_seconds: random.i64(-JUMP_SECONDS_MAX..=JUMP_SECONDS_MAX),
        victim: random.usize(..chain),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_lives_and_all_that_can_happen_happens() {
        let points = ["call.before".to_owned()];
        let lives = |seed| lives(seed, 200, &points, 2);
        assert_eq!(format!("{:?}", lives(5)), format!("{:?}", lives(5)));
        let all = lives(6);
        assert!(Phase::ALL.iter().all(|phase| all.iter().any(|life| life.phase == *phase)));
        assert!(WEATHER.iter().all(|weather| all.iter().any(|life| life.weather == *weather)));
        assert!(
            all.iter().any(|life| life.death == Death::Signal) && all.iter().any(|life| life.victim == 1)
        );
        assert!(WEATHER.iter().all(|weather| weather.faults().validate().is_ok()));
    }
}
