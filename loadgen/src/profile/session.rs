//! Runs a profile: each step as often as asked, its floors before it, and picks the median. Repetitions go round
//! the steps, so that a machine that grows slower or faster meanwhile treats all steps alike.

use super::cgroup::CpuLimit;
use super::figures::{self, Figures, Key};
use super::machine::Machine;
use super::summary::{Ratio, Spread, StepSummary, Summary, VERSION};
use super::table::{Name, Profile};
use super::{Own, Planned, idle, plan, rate};
use crate::floor::{self, Floors};
use crate::run::report::Report;
use crate::run::samples::Sample;
use crate::run::{Options, relay_path, run, run_with};
use crate::schedule::unix_ns;

/// What one repetition of one step gave.
#[derive(Debug, Default)]
struct Outcome {
    command: String,
    figures: Figures,
    samples: Vec<Sample>,
    latency_curve: Vec<(f64, f64)>,
    failed_checks: Vec<String>,
    floors: Vec<(String, f64)>,
    left_out: Option<String>,
}

/// Runs a profile; `typed` is what the user typed behind `loadgen run`.
///
/// # Errors
///
/// A sentence if the words are no flags, or something cannot be started.
pub fn run_profile(name: Name, own: &Own, typed: &[String]) -> anyhow::Result<Summary> {
    let profile = name.profile();
    let planned = plan(profile, typed, super::machine::cpus())?;
    let relay = relay_path(planned[0].options.relay.as_deref())?;
    let machine = Machine::look(Some(&relay));
    let started_unix_seconds = unix_ns() / 1_000_000_000;
    let mut outcomes: Vec<Vec<Outcome>> = planned.iter().map(|_| Vec::new()).collect();
    for repetition in 0..own.repeat {
        let mut reached = None;
        for (step, outcomes) in planned.iter().zip(&mut outcomes) {
            eprintln!("{}: {} ({} of {})", profile.name, step.name, repetition + 1, own.repeat);
            let outcome = one(name, step, own.floor, reached)?;
            reached = outcome.figures.get(&Key::EventsPerSecond).copied();
            outcomes.push(outcome);
        }
    }
    let steps: Vec<_> = planned.iter().zip(outcomes).map(|(step, outcomes)| median(step, outcomes)).collect();
    Ok(Summary {
        version: VERSION,
        profile: profile.name.to_owned(),
        reason: profile.reason.to_owned(),
        ok: steps.iter().all(|step| step.failed_checks.is_empty()),
        started_unix_seconds,
        repeat: own.repeat,
        machine,
        ratios: ratios(profile, &steps),
        steps,
    })
}

/// The summary of a run without a profile.
pub fn of_run(report: &Report, floors: Option<&Floors>, options: &Options, typed: &[String]) -> Summary {
    let relay = relay_path(options.relay.as_deref()).ok();
    let outcome = Outcome { command: typed.join(" "), ..of_report(report, floors) };
    let step = StepSummary {
        name: "run".to_owned(),
        command: outcome.command,
        failed_checks: outcome.failed_checks,
        figures: outcome.figures,
        floors: outcome.floors,
        samples: outcome.samples,
        latency_curve: outcome.latency_curve,
        ..StepSummary::default()
    };
    Summary {
        version: VERSION,
        profile: "run".to_owned(),
        reason: "a run of its own".to_owned(),
        ok: report.ok,
        started_unix_seconds: unix_ns() / 1_000_000_000,
        repeat: 1,
        machine: Machine::look(relay.as_deref()),
        steps: vec![step],
        ratios: Vec::new(),
    }
}

/// One repetition of one step, its floors first.
fn one(name: Name, step: &Planned, with_floor: bool, reached: Option<f64>) -> anyhow::Result<Outcome> {
    let mut step = step.clone();
    if let Some(rate) = rate(&step, reached) {
        step.options.load.rate = rate;
        step.words += &format!(" (with --rate {rate})");
    }
    if name == Name::Idle {
        return idle_outcome(&step);
    }
    let limit = match step.cpu_limited.then(CpuLimit::new).transpose() {
        Ok(limit) => limit,
        Err(error) => {
            return Ok(not_run(&step, &format!("the relay's CPU cannot be limited here: {error:#}")));
        }
    };
    let mut floors = with_floor.then(|| floor::measure(&step.options)).transpose()?;
    let report = match &limit {
        None => run(step.options.clone())?,
        Some(limit) => run_with(step.options.clone(), |relay| limit.add(relay.id()))?,
    };
    if let Some(floors) = &mut floors {
        floors.complete(&step.options, &report)?;
    }
    Ok(Outcome { command: step.words, ..of_report(&report, floors.as_ref()) })
}

fn not_run(step: &Planned, why: &str) -> Outcome {
    eprintln!("NOT RUN: {}: {why}", step.name);
    Outcome { command: step.words.clone(), left_out: Some(why.to_owned()), ..Outcome::default() }
}

fn idle_outcome(step: &Planned) -> anyhow::Result<Outcome> {
    let idle = idle::measure(&step.options)?;
    let failed = "the relay did not accept all connections, or did not end well".to_owned();
    Ok(Outcome {
        command: step.words.clone(),
        figures: idle.figures,
        samples: idle.samples,
        failed_checks: if idle.ok { Vec::new() } else { vec![failed] },
        ..Outcome::default()
    })
}

fn of_report(report: &Report, floors: Option<&Floors>) -> Outcome {
    let failed = report.checks.iter().filter(|check| !check.ok);
    let needed = floors.map(|floors| floors.needed(report.destination)).unwrap_or_default();
    Outcome {
        figures: figures::of(report, floors),
        floors: needed.into_iter().map(|(name, cost)| (name.to_owned(), cost)).collect(),
        samples: report.samples.clone(),
        latency_curve: report.latency_curve.clone(),
        failed_checks: failed.map(|check| format!("{}: {}", check.name, check.detail)).collect(),
        ..Outcome::default()
    }
}

/// The figure that repetitions are ranked by: CPU time an event or, where there are no events, memory.
fn rank(figures: &Figures) -> f64 {
    let keys = [Key::CpuNsPerEvent, Key::ResidentOverIdleBytes];
    keys.iter().find_map(|key| figures.get(key)).copied().unwrap_or(0.0)
}

fn median(step: &Planned, mut outcomes: Vec<Outcome>) -> StepSummary {
    outcomes.sort_by(|a, b| rank(&a.figures).total_cmp(&rank(&b.figures)));
    let failed_checks = outcomes.iter_mut().flat_map(|outcome| std::mem::take(&mut outcome.failed_checks));
    let failed_checks = failed_checks.collect();
    let spread = spread(&outcomes);
    let middle = (outcomes.len() - 1) / 2;
    let outcome = outcomes.swap_remove(middle);
    StepSummary {
        name: step.name.to_owned(),
        command: outcome.command,
        left_out: outcome.left_out,
        failed_checks,
        figures: outcome.figures,
        floors: outcome.floors,
        spread,
        samples: outcome.samples,
        latency_curve: outcome.latency_curve,
    }
}

/// Of outcomes in order of their CPU time.
fn spread(outcomes: &[Outcome]) -> Option<Spread> {
    let cpu: Vec<f64> =
        outcomes.iter().filter_map(|outcome| outcome.figures.get(&Key::CpuNsPerEvent)).copied().collect();
    (cpu.len() > 1).then(|| Spread {
        min: cpu[0],
        median: cpu[(cpu.len() - 1) / 2],
        max: cpu[cpu.len() - 1],
        runs: cpu.len() as u32,
    })
}

fn ratios(profile: &Profile, steps: &[StepSummary]) -> Vec<Ratio> {
    let of = |index: usize, key: Key| steps[index].figures.get(&key).copied();
    let ratio = |wanted: &super::table::RatioOf| {
        let under = of(wanted.under, wanted.key).filter(|under| *under != 0.0)?;
        Some(Ratio {
            figure: wanted.key,
            over: steps[wanted.over].name.clone(),
            under: steps[wanted.under].name.clone(),
            ratio: of(wanted.over, wanted.key)? / under,
        })
    };
    profile.ratios.iter().filter_map(ratio).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(cpu: f64, failed: &[&str]) -> Outcome {
        Outcome {
            figures: Figures::from([(Key::CpuNsPerEvent, cpu), (Key::EventsPerSecond, 10.0 * cpu)]),
            failed_checks: failed.iter().map(|check| (*check).to_owned()).collect(),
            ..Outcome::default()
        }
    }

    fn planned(name: Name) -> Vec<Planned> {
        plan(name.profile(), &[], 1).unwrap()
    }

    #[test]
    fn the_median_counts_and_every_failure_stays() {
        let step = &planned(Name::Bulk)[0];
        let summary = median(step, vec![outcome(9.0, &["a"]), outcome(1.0, &[]), outcome(5.0, &["b"])]);
        assert_eq!(summary.figures[&Key::CpuNsPerEvent], 5.0);
        assert_eq!(summary.spread, Some(Spread { min: 1.0, median: 5.0, max: 9.0, runs: 3 }));
        assert_eq!(summary.failed_checks, ["b", "a"]);
        let even = median(step, vec![outcome(2.0, &[]), outcome(1.0, &[])]);
        assert_eq!(even.figures[&Key::CpuNsPerEvent], 1.0);
        assert_eq!(median(step, vec![outcome(2.0, &[])]).spread, None);
    }

    #[test]
    fn ratios_need_both_figures() {
        let steps: Vec<_> = planned(Name::Streams)
            .iter()
            .zip([4.0, 6.0])
            .map(|(step, cpu)| median(step, vec![outcome(cpu, &[])]))
            .collect();
        let ratios = ratios(Name::Streams.profile(), &steps);
        let found: Vec<_> = ratios.iter().map(|ratio| (ratio.figure, ratio.ratio)).collect();
        assert_eq!(found, [(Key::EventsPerSecond, 1.5), (Key::CpuNsPerEvent, 1.5)]);
    }
}
