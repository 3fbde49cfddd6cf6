//! What is to happen in a round, drawn from its seed alone: so that a round that failed can be run again. It
//! starts and kills nothing itself.

use std::time::Duration;

use fastrand::Rng;

use crate::sink::faults::Faults;
use crate::units::{Delay, Span, Window};

/// How much the clients send before a kill.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
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
    /// Nobody listens at all.
    Away,
}

/// What is wrong with the relay's disk, where a file system can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// Nothing.
    None,
    /// Writes fail with EIO.
    WriteFails,
    /// Writes fail with ENOSPC.
    Full,
    /// Syncs fail: what they covered is lost at the next cut, whatever is synced later.
    SyncFails,
    /// One sync fails, which is that file's fate and not the disk's.
    SyncFailsOnce,
    /// Syncs are slow.
    SyncSlow,
    /// Nothing can be changed.
    ReadOnly,
}

const TROUBLES: [Trouble; 7] = [
    Trouble::WriteFails,
    Trouble::Full,
    Trouble::SyncFails,
    Trouble::SyncFailsOnce,
    Trouble::SyncSlow,
    Trouble::ReadOnly,
    Trouble::None,
];

impl Trouble {
    /// What the file system is told; see tests/faultfs.
    pub fn line(self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::WriteFails => Some("fail write EIO"),
            Self::Full => Some("fail write ENOSPC"),
            Self::SyncFails => Some("fail fsync EIO"),
            Self::SyncFailsOnce => Some("fail fsync EIO 1"),
            Self::SyncSlow => Some("delay fsync 100ms"),
            Self::ReadOnly => Some("read-only"),
        }
    }
}

/// What is wrong with the way from the relay to the sink, where there is one to be wrong (see [`super::wire`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Way {
    /// Nothing.
    Good,
    /// Connections are reset, again and again.
    Cut,
    /// Nobody listens.
    Refused,
    /// Connections are taken, and nothing is read from them or written to them.
    Silent,
    /// Those that were open are silent for good, as if the other end had vanished; new ones work.
    HalfOpen,
}

impl Way {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Cut, Self::Refused, Self::Silent, Self::HalfOpen, Self::Good];
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
            Self::Away => Faults { refuse: Some(Window { from: ms(0), to: ms(3_600_000) }), ..slow },
        }
    }
}

/// How a relay dies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Death {
    /// None: it lives on.
    Never,
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
    /// What the disk does in the first half of it.
    pub trouble: Trouble,
    /// What the way to the sink does.
    pub way: Way,
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
    /// Connections that are to have come before it dies; they are waited for as long as [`super::watch`] says.
    pub crowd: u64,
}

/// What may happen in a round.
#[derive(Debug, Clone, Copy)]
pub struct Menu<'a> {
    /// Lives.
    pub kills: usize,
    /// Points at which a relay may die.
    pub points: &'a [String],
    /// Relays behind one another.
    pub chain: usize,
    /// Whether the disk has troubles.
    pub disk_troubles: bool,
    /// Whether the way to the sink has, and nobody dies.
    pub wire_troubles: bool,
    /// Whether nothing is delivered before the last kill, and each life lasts long enough to fill a disk.
    pub fills_disk: bool,
    /// Whether nothing is delivered before the last kill.
    pub is_away: bool,
    /// See [`Life::crowd`].
    pub crowd: u64,
}

/// The lives of a round.
pub fn lives(seed: u64, menu: Menu<'_>) -> Vec<Life> {
    let mut random = Rng::with_seed(seed);
    let first = random.usize(..Phase::ALL.len());
    (0..menu.kills)
        .map(|number| {
            let phase = Phase::ALL[(first + number) % Phase::ALL.len()];
            let life = life(&mut random, phase, menu.points, menu.chain);
            troubled(&mut random, life, menu, number)
        })
        .collect()
}

/// Troubles take turns, so that a round of some length has met all of them, and last long enough to be noticed.
fn troubled(random: &mut Rng, mut life: Life, menu: Menu<'_>, number: usize) -> Life {
    life.crowd = menu.crowd;
    if menu.disk_troubles {
        life.trouble = TROUBLES[number % TROUBLES.len()];
        life.lasts += Duration::from_millis(random.u64(2_000..3_000));
        if life.phase == Phase::Idle {
            life.phase = Phase::Burst;
        }
    }
    if menu.fills_disk {
        life.lasts += Duration::from_millis(random.u64(1_000..2_000));
    }
    if menu.fills_disk || menu.is_away {
        (life.phase, life.weather) = (Phase::Burst, Weather::Away);
    }
    if menu.wire_troubles {
        life.way = Way::ALL[number % Way::ALL.len()];
        life.lasts += Duration::from_millis(random.u64(1_000..3_000));
        (life.death, life.phase, life.weather) = (Death::Never, Phase::Burst, Weather::Calm);
    }
    life
}

/// Lives that visit every point in every phase, one after the other; with `spills`, the sink is away where that is
/// what brings batches to disk, and something is left there for lives that bring nothing.
pub fn sweep(seed: u64, points: &[String], spills: bool) -> Vec<Life> {
    let mut random = Rng::with_seed(seed);
    let mut lives = Vec::new();
    for (point, phase) in points.iter().flat_map(|point| Phase::ALL.map(|phase| (point, phase))) {
        let needs_outage = spills && ["append.", "fsync."].iter().any(|start| point.starts_with(start));
        let drawn = Life { drains: Duration::from_secs(6), ..life(&mut random, phase, &[], 1) };
        let weather = if needs_outage && phase != Phase::Idle { Weather::Away } else { Weather::Calm };
        if needs_outage && phase == Phase::Idle {
            let (phase, weather, lasts) = (Phase::Burst, Weather::Away, Duration::from_millis(1_500));
            lives.push(Life { phase, weather, lasts, death: Death::Signal, ..drawn.clone() });
        }
        let lasts = Duration::from_millis(if phase == Phase::Drain { 300 } else { 6_000 });
        let death = Death::Point(point.clone(), random.u64(1..4));
        lives.push(Life { weather, death, lasts, ..drawn });
    }
    lives
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
        trouble: Trouble::None,
        way: Way::Good,
        death,
        lasts: Duration::from_micros(random.u64(5_000..400_000)),
        drains: Duration::from_micros(random.u64(..80_000)),
        tear: random.bool().then(|| random.u64(..)),
        jump_seconds: random.i64(-JUMP_SECONDS_MAX..=JUMP_SECONDS_MAX),
        victim: random.usize(..chain),
        crowd: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MENU: Menu<'_> = Menu {
        kills: 0,
        points: &[],
        chain: 1,
        disk_troubles: false,
        wire_troubles: false,
        fills_disk: false,
        is_away: false,
        crowd: 0,
    };

    #[test]
    fn a_seed_gives_the_same_lives_and_all_that_can_happen_happens() {
        let points = ["call.before".to_owned()];
        let menu = Menu { kills: 200, points: &points, chain: 2, ..MENU };
        let lives = |seed| lives(seed, menu);
        assert_eq!(format!("{:?}", lives(5)), format!("{:?}", lives(5)));
        let all = lives(6);
        assert!(Phase::ALL.iter().all(|phase| all.iter().any(|life| life.phase == *phase)));
        assert!(WEATHER.iter().all(|weather| all.iter().any(|life| life.weather == *weather)));
        assert!(
            all.iter().any(|life| life.death == Death::Signal) && all.iter().any(|life| life.victim == 1)
        );
        assert!(WEATHER.iter().all(|weather| weather.faults().validate().is_ok()));
    }

    #[test]
    fn troubles_take_turns_and_a_sweep_visits_every_point_in_every_phase() {
        let points = ["seal".to_owned(), "append.after".to_owned()];
        let menu = Menu { kills: 14, points: &points, disk_troubles: true, ..MENU };
        let troubles = lives(1, menu);
        assert!(TROUBLES.iter().all(|trouble| troubles.iter().any(|life| life.trouble == *trouble)));
        let menu = Menu { disk_troubles: false, wire_troubles: true, ..menu };
        let ways = lives(1, menu);
        assert!(Way::ALL.iter().all(|way| ways.iter().any(|life| life.way == *way)));
        assert!(ways.iter().all(|life| life.death == Death::Never));
        let swept = sweep(1, &points, true);
        for (point, phase) in points.iter().flat_map(|point| Phase::ALL.map(|phase| (point, phase))) {
            let is_there = |life: &Life| {
                life.phase == phase && matches!(&life.death, Death::Point(name, _) if name == point)
            };
            assert!(swept.iter().any(is_there), "{point} {phase:?}");
        }
    }
}
