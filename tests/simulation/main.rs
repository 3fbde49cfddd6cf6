//! The relay's pure parts under a manual clock and a seeded schedule of faults. A failing seed is printed;
//! `STANDPIPE_SIM_SEED=N` runs it alone, `STANDPIPE_SIM_SEEDS=N` runs so many (500 else), from 0 on.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod client;
mod disk;
mod endpoint;
mod fleet;
mod host;
mod ledger;
mod letters;
mod machine;
mod relay;

use std::panic::{AssertUnwindSafe, catch_unwind};

use fleet::{EVENT_BYTES, Fleet, Second};
use machine::{Plan, Tally};
use standpipe::config::DeliveryStreamSettings;
#[cfg(debug_assertions)]
use standpipe::failpoint::Flaw;

/// How many seeds run where nothing else is said.
const SEEDS: u64 = 500;

fn number(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}={value:?} should be a number")))
}

/// Runs every seed that is asked for; names the first that fails.
fn run_seeds<T: std::ops::AddAssign + Default>(run: impl Fn(u64) -> T) -> (u64, T) {
    let seeds = match number("STANDPIPE_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("STANDPIPE_SIM_SEEDS").unwrap_or(SEEDS),
    };
    let (count, mut total) = (seeds.end - seeds.start, T::default());
    for seed in seeds {
        match catch_unwind(AssertUnwindSafe(|| run(seed))) {
            Ok(tally) => total += tally,
            Err(_) => panic!("seed {seed} fails: replay it alone with STANDPIPE_SIM_SEED={seed}"),
        }
    }
    (count, total)
}

/// Whether a mutation is caught by one of the first seeds.
fn catches(run: impl Fn(u64)) -> bool {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    let is_caught = (0..SEEDS).any(|seed| catch_unwind(AssertUnwindSafe(|| run(seed))).is_err());
    std::panic::set_hook(hook);
    is_caught
}

fn plan(seed: u64) -> Plan {
    Plan {
        is_always: seed % 2 == 1,
        has_faults: seed % 4 >= 2,
        has_bad_reads: !seed.is_multiple_of(3),
        has_flips: seed % 8 >= 6,
        steps: 600,
        ..Plan::default()
    }
}

#[test]
fn what_is_stored_survives_every_fault_of_the_disk() {
    let (count, tally): (u64, Tally) = run_seeds(|seed| machine::run(seed, plan(seed)));
    println!("{count} seeds: {tally:?}");
}

fn relay_plan(seed: u64) -> relay::Plan {
    relay::Plan {
        steps: 300,
        has_outcomes: !seed.is_multiple_of(8),
        has_disk_faults: seed % 4 >= 2,
        has_crashes: seed % 2 == 1,
        has_poison: seed % 8 >= 5,
        ..relay::Plan::default()
    }
}

#[test]
fn the_relay_keeps_its_promises_whatever_fails() {
    let (count, tally): (u64, relay::Tally) = run_seeds(|seed| relay::run(seed, relay_plan(seed)));
    println!("{count} seeds: {tally:?}");
    if count >= SEEDS {
        // What nothing comes to is not tested.
        let reached = tally.reached();
        assert!(reached.iter().all(|count| *count > 0), "{tally:?}");
    }
}

#[test]
fn a_seed_is_a_history() {
    for seed in 0..40 {
        assert_eq!(relay::run(seed, relay_plan(seed)), relay::run(seed, relay_plan(seed)), "seed {seed}");
    }
}

// Tests of the test: each mutation breaks one promise. What is mutated is the disk, the caller of the spool's machine,
// or the relay's own code.

fn is_caught_in_the_relay(mutate: impl Fn(relay::Plan) -> relay::Plan) -> bool {
    catches(|seed| {
        let whole =
            relay::Plan { steps: 300, has_outcomes: true, has_crashes: true, ..relay::Plan::default() };
        relay::run(seed, mutate(whole));
    })
}

#[test]
fn without_a_mutation_nothing_is_caught_in_the_relay() {
    assert!(!is_caught_in_the_relay(|plan| plan));
}

#[test]
fn a_skipped_fsync_is_caught_in_the_relay() {
    assert!(is_caught_in_the_relay(|plan| relay::Plan { skips_syncs: true, ..plan }));
}

#[cfg(debug_assertions)]
#[test]
fn the_relay_is_caught_settling_before_the_answer() {
    assert!(is_caught_in_the_relay(|plan| relay::Plan { flaw: Some(Flaw::SettlesEarly), ..plan }));
}

#[cfg(debug_assertions)]
#[test]
fn the_relay_is_caught_resending_a_whole_call_after_a_partial_failure() {
    assert!(is_caught_in_the_relay(|plan| relay::Plan { flaw: Some(Flaw::ResendsWhole), ..plan }));
}

fn with_letters(plan: relay::Plan) -> relay::Plan {
    relay::Plan { has_disk_faults: true, has_poison: true, ..plan }
}

#[cfg(debug_assertions)]
#[test]
fn the_relay_is_caught_counting_dead_letters_that_could_not_be_written() {
    let trusts = |plan| relay::Plan { flaw: Some(Flaw::TrustsLetters), ..with_letters(plan) };
    assert!(is_caught_in_the_relay(trusts));
}

#[test]
fn dead_letters_that_are_said_to_be_written_and_are_not_are_missed() {
    assert!(is_caught_in_the_relay(|plan| relay::Plan { loses_letters: true, ..with_letters(plan) }));
}

fn is_caught(mutate: impl Fn(Plan) -> Plan) -> bool {
    catches(|seed| {
        let whole = Plan { is_always: seed % 2 == 1, steps: 600, ..Plan::default() };
        machine::run(seed, mutate(whole));
    })
}

#[test]
fn without_a_mutation_nothing_is_caught() {
    assert!(!is_caught(|plan| plan));
}

#[test]
fn a_skipped_fsync_is_caught() {
    assert!(is_caught(|plan| Plan { skips_syncs: true, ..plan }));
}

#[test]
fn settling_before_the_answer_is_caught() {
    assert!(is_caught(|plan| Plan { settles_early: true, ..plan }));
}

#[test]
fn resending_a_whole_batch_after_a_partial_failure_is_caught() {
    assert!(is_caught(|plan| Plan { resends_whole: true, ..plan }));
}

// A fleet and its quotas.

const MIB: u64 = 1 << 20;

/// How evenly relays share, from 1 / n to 1 (Jain's index).
fn fairness(seconds: &[Second], relays: usize) -> f64 {
    let shares: Vec<f64> =
        (0..relays).map(|relay| seconds.iter().map(|second| second.accepted[relay] as f64).sum()).collect();
    let (sum, squares) = (shares.iter().sum::<f64>(), shares.iter().map(|share| share * share).sum::<f64>());
    sum * sum / (relays as f64 * squares)
}

/// What is accepted a second, over five seconds each: means of so many, the least and the most of them.
fn spread(seconds: &[Second]) -> (f64, f64, f64) {
    let means: Vec<f64> =
        seconds.chunks(5).map(|five| five.iter().map(Second::sum).sum::<f64>() / five.len() as f64).collect();
    let mean = means.iter().sum::<f64>() / means.len() as f64;
    (mean, means.iter().copied().fold(f64::MAX, f64::min), means.iter().copied().fold(0.0, f64::max))
}

fn throttled(seconds: &[Second]) -> f64 {
    let (throttled, accepted) = seconds.iter().fold((0.0, 0.0), |(throttled, accepted), second| {
        (throttled + second.throttled as f64, accepted + second.sum())
    });
    throttled / (throttled + accepted)
}

/// The quota is used, evenly, and no five seconds are far from that.
fn check_settled(what: &str, seconds: &[Second], relays: usize, quota: u64) {
    let quota = quota as f64;
    let (mean, least, most) = spread(seconds);
    let (even, throttled) = (fairness(seconds, relays), throttled(seconds));
    println!(
        "{what}: {:.3} of the quota ({:.3} to {:.3}), evenness {even:.3}, throttled {throttled:.3}",
        mean / quota,
        least / quota,
        most / quota
    );
    assert!(mean >= 0.9 * quota && least >= 0.85 * quota, "{what}: the quota is not used");
    assert!(most - least <= 0.15 * quota, "{what}: it swings");
    assert!(even >= 0.9, "{what}: not even");
    assert!(throttled <= 0.15, "{what}: most of what is sent is sent in vain");
}

/// A fleet that is offered twice what its quota takes, once it has settled.
fn settled_fleet(seed: u64, relays: usize, quota: u64) -> Fleet {
    let mut fleet = Fleet::new(seed, relays, 2 * quota / relays as u64, &[("clicks", quota)]);
    fleet.run(30);
    fleet
}

#[test]
fn a_fleet_of_eight_shares_a_quota() {
    for (seed, quota) in [(0, 5 * MIB), (1, 5 * MIB), (2, MIB), (3, 20 * MIB)] {
        let mut fleet = settled_fleet(seed, 8, quota);
        check_settled(&format!("seed {seed}, {} MiB/s", quota / MIB), &fleet.run(60), 8, quota);
        fleet.check_sums();
    }
}

/// One that took its cuts for no help sent all it could, the cuts of others were no help from then on, and so on: in the
/// end 97 % of what 24 relays sent was throttled.
#[test]
fn a_relay_whose_cuts_do_not_help_drags_no_others_along() {
    let mut fleet = settled_fleet(9, 24, MIB);
    fleet.run(60);
    let seconds = fleet.run(60);
    let (even, throttled) = (fairness(&seconds, 24), throttled(&seconds));
    println!("24 relays, 1 MiB/s: evenness {even:.3}, throttled {throttled:.3}");
    assert!(even >= 0.7 && throttled <= 0.6, "evenness {even}, throttled {throttled}");
}

#[test]
fn a_fleet_finds_a_quota_that_was_changed() {
    let mut fleet = settled_fleet(4, 8, 5 * MIB);
    fleet.set_quota("clicks", MIB);
    fleet.run(30);
    check_settled("a fifth of the quota", &fleet.run(40), 8, MIB);
    fleet.set_quota("clicks", 5 * MIB);
    fleet.run(45);
    check_settled("all of it again", &fleet.run(40), 8, 5 * MIB);
}

#[test]
fn relays_that_come_and_go_leave_no_gap() {
    let mut fleet = settled_fleet(5, 8, 5 * MIB);
    fleet.offered *= 2.0;
    fleet.set_up(4);
    fleet.run(45);
    check_settled("four of eight", &fleet.run(40), 4, 5 * MIB);
    fleet.set_up(8);
    fleet.run(60);
    check_settled("all eight", &fleet.run(40), 8, 5 * MIB);
}

#[test]
fn an_outage_does_not_teach_a_rate() {
    let mut fleet = settled_fleet(6, 8, 5 * MIB);
    fleet.is_down = true;
    fleet.run(120);
    fleet.is_down = false;
    fleet.run(45);
    check_settled("after an outage", &fleet.run(30), 8, 5 * MIB);
}

#[test]
fn cuts_that_do_not_help_are_taken_back() {
    let mut fleet = Fleet::new(7, 1, 4 * MIB, &[("clicks", 100 * MIB)]);
    fleet.noise = 0.3;
    fleet.run(60);
    let seconds = fleet.run(60);
    let mean = spread(&seconds).0;
    println!("of 4 MiB/s, a third throttled whatever is sent: {:.2}", mean / (4.0 * MIB as f64));
    assert!(mean > 3.0 * MIB as f64, "it starves for what is not its doing: {mean}");
}

#[test]
fn a_stream_goes_where_there_is_room() {
    let quotas = [("one", MIB), ("four", 4 * MIB)];
    let mut fleet = Fleet::new(8, 4, 5 * MIB * 9 / 10 / 4, &quotas);
    fleet.run(60);
    let seconds = fleet.run(60);
    let of = |name: &str| seconds.iter().map(|second| second.by_delivery_stream[name] as f64).sum::<f64>();
    let (ratio, throttled) = (of("four") / of("one"), throttled(&seconds));
    println!("four times the quota has {ratio:.2} times the bytes, throttled {throttled:.3}");
    assert!((2.5..6.0).contains(&ratio) && throttled < 0.1, "{ratio}, {throttled}");
    assert!(spread(&seconds).0 > 0.95 * 0.9 * 5.0 * MIB as f64, "all that comes goes out");
}

#[test]
fn configured_ceilings_are_kept() {
    let of_bytes = DeliveryStreamSettings { max_bytes_per_second: Some(MIB), ..Default::default() };
    let of_records = DeliveryStreamSettings { max_records_per_second: Some(300), ..Default::default() };
    let of_calls = DeliveryStreamSettings { max_calls_per_second: Some(2), ..Default::default() };
    let limited = |settings| {
        let mut fleet = Fleet::configured(9, 1, 4 * MIB, &[("clicks", 100 * MIB)], settings);
        fleet.run(5);
        fleet.run(30)
    };
    for (settings, aim) in [(of_bytes, MIB as f64), (of_records, 300.0 * EVENT_BYTES as f64)] {
        let (mean, least, most) = spread(&limited(settings));
        println!("{:.3} of what is configured ({:.3} to {:.3})", mean / aim, least / aim, most / aim);
        assert!(least > 0.9 * aim && most < 1.05 * aim, "{least} {most}");
    }
    let calls: Vec<u64> = limited(of_calls).iter().map(|second| second.calls).collect();
    assert!(calls.iter().all(|calls| (1..=3).contains(calls)), "{calls:?}");
}
