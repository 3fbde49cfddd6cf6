//! The relay's pure parts under a manual clock and a seeded schedule of faults. A failing seed is printed;
//! `STANDPIPE_SIM_SEED=N` runs it alone, `STANDPIPE_SIM_SEEDS=N` runs so many (500 else), from 0 on.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod client;
mod disk;
mod endpoint;
mod host;
mod ledger;
mod machine;
mod relay;

use std::panic::{AssertUnwindSafe, catch_unwind};

use machine::{Plan, Tally};
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
        let reached = [
            tally.repeats,
            tally.dropped,
            tally.recovered,
            tally.spooled,
            tally.losses,
            tally.pauses,
            tally.probes,
            tally.crashes,
            tally.restarts,
            tally.reloads,
        ];
        assert!(reached.iter().all(|count| *count > 0), "{tally:?}");
    }
}

#[test]
fn a_seed_is_a_history() {
    for seed in 0..8 {
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
