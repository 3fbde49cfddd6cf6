//! Profiles: named workloads, each one command. A profile is nothing but flags of `loadgen run` and arguments of
//! the relay, so that each run of it can be repeated by hand; flags that the user gives come behind them and
//! win. A profile of several runs compares them.
//!
//! - [`table`]: the profiles, each with its reasons.
//! - [`session`]: runs them, floors and repeats included.
//! - [`idle`], [`cgroup`]: what is no run of the usual kind.
//! - [`figures`], [`summary`]: what was measured; the JSON.
//! - [`compare`], [`html`], [`bars`], [`plot`]: results for people.

pub mod bars;
pub mod cgroup;
pub mod compare;
pub mod figures;
pub mod html;
pub mod idle;
pub mod machine;
pub mod plot;
pub mod session;
pub mod summary;
pub mod table;

use clap::Parser;

use crate::run::Options;
use crate::units::Rate;
use table::{Offered, Profile, Step};

/// A step of a profile with everything decided but a rate that depends on the step before.
#[derive(Debug, Clone)]
pub struct Planned {
    /// Its name in the report.
    pub name: &'static str,
    /// The flags and the relay's arguments that it was made from, as they would be typed.
    pub words: String,
    /// All options.
    pub options: Options,
    /// How the rate is found.
    pub offered: Offered,
    /// Whether the relay is held back by a cgroup.
    pub cpu_limited: bool,
}

/// Options of one run, to be read back from words.
#[derive(Debug, Parser)]
#[command(name = "loadgen run", args_override_self = true)]
struct Words {
    #[command(flatten)]
    options: Options,
}

/// Flags of `run` beside the options of one run.
#[derive(Debug, Clone, clap::Args)]
pub struct Own {
    /// A named workload: flags with good reasons. Flags given beside it win.
    #[arg(long, value_name = "NAME")]
    pub profile: Option<table::Name>,
    /// Measure the floors as well: a bare receiver, memchr and memcpy, and for firehose base64, SHA-256 and
    /// bare requests, on the relay's CPU, before it and after it.
    #[arg(long)]
    pub floor: bool,
    /// Run everything so many times; the run with the median CPU time an event counts.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=99))]
    pub repeat: u32,
    /// Writes the report as JSON; `-` is standard output.
    #[arg(long, value_name = "FILE")]
    pub json: Option<String>,
    /// Writes the report as one HTML page with plots, which needs nothing else.
    #[arg(long, value_name = "FILE")]
    pub html: Option<String>,
    /// Prints each figure of two JSON reports of profiles and the ratio B / A, and runs nothing.
    #[arg(long, num_args = 2, value_names = ["A.json", "B.json"], exclusive = true)]
    pub compare: Option<Vec<String>>,
}

/// All steps of a profile, with what the user typed behind `loadgen run`. `cpus` is how many CPUs there are: with
/// two or more, relay and load are bound to the first and to the second.
///
/// # Errors
///
/// A sentence if the words are no flags of `run`.
pub fn plan(profile: &Profile, typed: &[String], cpus: usize) -> anyhow::Result<Vec<Planned>> {
    profile.steps.iter().map(|step| plan_step(profile, step, typed, cpus)).collect()
}

const PINNED: &str = "--pin-relay 0 --pin-load 1";

fn plan_step(profile: &Profile, step: &Step, typed: &[String], cpus: usize) -> anyhow::Result<Planned> {
    let (flags, relay) = split(typed);
    let flags = without_own(flags);
    let pins = if cpus >= 2 { PINNED } else { "" };
    let own = [table::COMMON, pins, profile.flags, step.flags];
    let own = own.iter().flat_map(|flags| flags.split_whitespace());
    let relay_own = [table::COMMON_RELAY, profile.relay, step.relay].map(words_of);
    let layers = relay_own.iter().map(Vec::as_slice).chain([relay]);
    let relay = layers.fold(Vec::new(), |below, layer| without_overridden(&below, layer));
    let mut words: Vec<&str> = own.chain(flags.iter().map(String::as_str)).collect();
    words.push("--");
    words.extend(relay.iter().map(String::as_str));
    let options = options_of(words.iter().copied())?;
    let given = |flag: &str| flags.iter().any(|word| word == flag || word.starts_with(&format!("{flag}=")));
    // A rate that the user asks for is the rate.
    let offered = if given("--rate") { Offered::AsGiven } else { step.offered };
    Ok(Planned { name: step.name, words: words.join(" "), options, offered, cpu_limited: step.cpu_limited })
}

/// The options of one run, from flags as they would be typed.
///
/// # Errors
///
/// A sentence if the words are no flags of `run`.
pub fn options_of<'a>(words: impl Iterator<Item = &'a str>) -> anyhow::Result<Options> {
    Ok(Words::try_parse_from(std::iter::once("run").chain(words))?.options)
}

/// Flags of [`Own`]: they are of the profile, not of one of its runs.
const OWN_WITH_VALUE: [&str; 4] = ["--profile", "--json", "--html", "--repeat"];
const OWN_WITHOUT_VALUE: &str = "--floor";

fn without_own(flags: &[String]) -> Vec<String> {
    let (mut kept, mut words) = (Vec::new(), flags.iter());
    while let Some(word) = words.next() {
        match word.split_once('=').map_or(word.as_str(), |(flag, _)| flag) {
            flag if OWN_WITH_VALUE.contains(&flag) => {
                // `--json=FILE` holds its value, `--json FILE` does not.
                if !word.contains('=') {
                    words.next();
                }
            }
            OWN_WITHOUT_VALUE => {}
            _ => kept.push(word.clone()),
        }
    }
    kept
}

/// Flags before `--`, arguments of the relay behind it.
fn split(typed: &[String]) -> (&[String], &[String]) {
    match typed.iter().position(|word| word == "--") {
        Some(at) => (&typed[..at], &typed[at + 1..]),
        None => (typed, &[]),
    }
}

fn words_of(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// The relay takes no flag twice: of `below`, each flag with one value, what `above` gives anew is left out.
fn without_overridden(below: &[String], above: &[String]) -> Vec<String> {
    let is_given = |flag: &str| above.iter().any(|word| word.split('=').next() == Some(flag));
    let kept = below.chunks(2).filter(|pair| !is_given(&pair[0])).flatten();
    kept.chain(above).cloned().collect()
}

/// The rate of a step, given what the one before reached in events a second.
pub fn rate(planned: &Planned, reached: Option<f64>) -> Option<Rate> {
    let load = &planned.options.load;
    match planned.offered {
        Offered::AsGiven => None,
        Offered::OfPrevious(factor) => reached.map(|reached| Rate::PerSecond((reached * factor).max(1.0))),
        Offered::OfCapacity(factor) => {
            let quota = planned.options.settings.faults.quota? as f64;
            let streams = if load.stream.is_empty() { load.streams as usize } else { load.stream.len() };
            let event_bytes = (load.size.min + load.size.max) as f64 / 2.0 + 1.0;
            Some(Rate::PerSecond((quota * streams as f64 / event_bytes * factor).max(1.0)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::table::Name;
    use super::*;
    use crate::schedule::Assignment;

    #[test]
    fn what_the_user_gives_wins() {
        let bulk = Name::Bulk.profile();
        let plain = &plan(bulk, &words_of("--profile bulk"), 2).unwrap()[0];
        let options = &plain.options;
        assert_eq!((options.load.connections, options.load.write), (8, 65_536));
        assert_eq!((options.pin_relay, options.pin_load), (Some(0), Some(1)));
        let text = "--profile bulk --connections 3 --pin-relay=4 --check full -- --memory 1GiB --shards=2";
        let planned = &plan(bulk, &words_of(text), 2).unwrap()[0];
        assert_eq!((planned.options.load.connections, planned.options.pin_relay), (3, Some(4)));
        assert_eq!(planned.options.relay_arguments, words_of("--memory 1GiB --shards=2"));
        assert!(planned.words.ends_with("--pin-relay=4 --check full -- --memory 1GiB --shards=2"));
        assert_eq!(plan(bulk, &[], 1).unwrap()[0].options.pin_relay, None);
        let own = words_of("--floor --json=x --rate 5 --html y --profile bulk --repeat 3 --size 90");
        assert_eq!(without_own(&own), words_of("--rate 5 --size 90"));
        assert!(plan(bulk, &words_of("--connection 3"), 1).is_err());
    }

    #[test]
    fn all_profiles_can_be_planned() {
        for name in Name::all() {
            let planned = plan(name.profile(), &[], 2).unwrap();
            let mut names: Vec<_> = planned.iter().map(|step| step.name).collect();
            for ratio in name.profile().ratios {
                assert!(ratio.over < planned.len() && ratio.under < planned.len(), "{name:?}");
            }
            names.dedup();
            assert_eq!(names.len(), planned.len(), "{name:?}: names differ");
            for step in &planned {
                assert!(crate::send::Plan::new(step.options.load.clone()).is_ok(), "{name:?}");
                let mut flags: Vec<_> = step.options.relay_arguments.chunks(2).map(|pair| &pair[0]).collect();
                flags.sort();
                assert!(flags.windows(2).all(|pair| pair[0] != pair[1]), "{name:?}: {flags:?}");
            }
        }
    }

    #[test]
    fn low_rates_reach_every_stream_by_many_connections() {
        let load = &plan(Name::Lowrate.profile(), &[], 1).unwrap()[0].options.load;
        let (connections, streams) = (load.connections as u64, u64::from(load.streams));
        for event in 0..5 * streams {
            let (connection, index) = ((event % connections) as u32, event / connections);
            let (stream, _) = Assignment::RoundRobin.place(streams as usize, connection, index);
            assert_eq!(stream as u64, event % streams);
        }
    }

    #[test]
    fn rates_follow_the_quota_or_the_step_before() {
        let overload = plan(Name::Overload.profile(), &words_of("--quota 2510 --streams 2"), 1).unwrap();
        assert_eq!(rate(&overload[0], None), Some(Rate::PerSecond(20.0)));
        assert_eq!(rate(&overload[1], None), Some(Rate::PerSecond(40.0)));
        let latency = plan(Name::Latency.profile(), &[], 1).unwrap();
        assert_eq!(rate(&latency[0], None), None);
        assert_eq!(rate(&latency[1], Some(500.0)), Some(Rate::PerSecond(250.0)));
        let given = plan(Name::Latency.profile(), &words_of("--rate 7"), 1).unwrap();
        assert_eq!(rate(&given[1], Some(500.0)), None);
    }
}
