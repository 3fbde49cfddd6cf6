//! What a profile found: the JSON, and the tables for people. The JSON is read back for comparisons.

use comfy_table::presets::UTF8_BORDERS_ONLY;
use comfy_table::{CellAlignment, Table};
use serde::{Deserialize, Serialize};

use super::figures::{Figures, Key};
use super::machine::Machine;
use crate::report;
use crate::run::samples::Sample;

/// The version of the JSON; it rises when a field changes its meaning or goes.
pub const VERSION: u32 = 1;

/// What others may use of the machine before a run counts as disturbed. A quiet system needs a few hundredths.
const OTHER_CPUS_MAX: f64 = 0.2;

/// Everything about one profile.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Summary {
    /// [`VERSION`].
    pub version: u32,
    /// The profile's name; `run` for a run without one.
    pub profile: String,
    /// What it stands for.
    pub reason: String,
    /// Whether every check of every run holds; a step that was left out does not count.
    pub ok: bool,
    /// When it began, in seconds since the Unix epoch.
    pub started_unix_seconds: u64,
    /// How often everything was run.
    pub repeat: u32,
    /// Where and with what.
    pub machine: Machine,
    /// Its steps, in order.
    pub steps: Vec<StepSummary>,
    /// What is compared between steps.
    pub ratios: Vec<Ratio>,
}

/// One step: the run with the median CPU time an event, of all its repetitions.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct StepSummary {
    /// Its name.
    pub name: String,
    /// Flags of `loadgen run` and arguments of the relay, as they can be typed; a rate found by the profile is last.
    pub command: String,
    /// Why it was not run, where it was not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left_out: Option<String>,
    /// Checks that did not hold in any of the repetitions, with their figures.
    pub failed_checks: Vec<String>,
    /// The figures.
    pub figures: Figures,
    /// The floors that the sum of floors holds, where they were measured: names, and nanoseconds of CPU an event.
    #[serde(default)]
    pub floors: Vec<(String, f64)>,
    /// CPU time an event over all repetitions, where there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spread: Option<Spread>,
    /// How the run went.
    pub samples: Vec<Sample>,
    /// Latency by quantile: pairs of a quantile below 1 and milliseconds.
    pub latency_curve: Vec<(f64, f64)>,
}

/// The relay's CPU time an event over all repetitions, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The least.
    pub min: f64,
    /// The one in the middle (of an even number the lower one).
    pub median: f64,
    /// The most.
    pub max: f64,
    /// How many there were.
    pub runs: u32,
}

/// A figure of one step over that of another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ratio {
    /// The figure.
    pub figure: Key,
    /// The step on top.
    pub over: String,
    /// The step below.
    pub under: String,
    /// The ratio.
    pub ratio: f64,
}

impl Summary {
    /// The tables: a column a step, then ratios, then what was wrong or left out.
    pub fn text(&self) -> String {
        let mut text = format!("{}: {}\n{}\n", self.profile, self.reason, self.figures());
        for step in &self.steps {
            if let Some(spread) = &step.spread {
                text += &format!(
                    "{}: CPU ns/event min {:.1}, median {:.1}, max {:.1} of {} runs\n",
                    step.name, spread.min, spread.median, spread.max, spread.runs
                );
            }
        }
        for step in &self.steps {
            if !step.floors.is_empty() {
                text += &format!("{}: floors {}\n", step.name, step.floors_in_words());
            }
        }
        for ratio in &self.ratios {
            let (title, name) = (ratio.figure.title().trim(), &ratio.over);
            text += &format!("{title}: {name} / {} = {:.3}\n", ratio.under, ratio.ratio);
        }
        self.company().iter().for_each(|company| text += &format!("{company}\n"));
        for step in &self.steps {
            if let Some(why) = &step.left_out {
                text += &format!("NOT RUN: {}: {why}\n", step.name);
            }
            step.failed_checks.iter().for_each(|check| text += &format!("FAIL {}: {check}\n", step.name));
        }
        text + if self.ok { "ok: every check of every run holds\n" } else { "FAIL: see above\n" }
    }

    /// A sentence for each step that did not have the machine for itself.
    pub fn company(&self) -> Vec<String> {
        let sentence = |step: &StepSummary| {
            let others = step.figures.get(&Key::OtherCpus).filter(|others| **others > OTHER_CPUS_MAX)?;
            Some(format!(
                "NOT ALONE: {}: others used {others:.1} CPUs meanwhile; rates and latencies tell little",
                step.name
            ))
        };
        self.steps.iter().filter_map(sentence).collect()
    }

    fn figures(&self) -> Table {
        let mut table = Table::new();
        table.load_style(UTF8_BORDERS_ONLY);
        let run: Vec<&StepSummary> = self.steps.iter().filter(|step| step.left_out.is_none()).collect();
        table.set_header(std::iter::once("").chain(run.iter().map(|step| step.name.as_str())));
        for (key, cells) in rows(&run) {
            table.add_row(std::iter::once(key.title().to_owned()).chain(cells));
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table
    }
}

impl StepSummary {
    /// The floors' sum, written out.
    pub fn floors_in_words(&self) -> String {
        let parts: Vec<String> = self.floors.iter().map(|(name, cost)| format!("{cost:.1} {name}")).collect();
        let sum: f64 = self.floors.iter().map(|(_, cost)| cost).sum();
        format!("{} = {sum:.1} ns/event", parts.join(" + "))
    }
}

/// The name and the values of each figure that any of these steps has.
pub fn rows(steps: &[&StepSummary]) -> Vec<(Key, Vec<String>)> {
    let keys = Key::all().filter(|key| steps.iter().any(|step| step.figures.contains_key(key)));
    let cell = |step: &StepSummary, key: Key| {
        step.figures.get(&key).map_or("-".to_owned(), |value| key.show(*value))
    };
    keys.map(|key| (key, steps.iter().map(|step| cell(step, key)).collect())).collect()
}

/// A ratio for the tables of people; `-` where it means nothing.
pub fn show_ratio(over: f64, under: f64) -> String {
    if under == 0.0 { report::ratio(0, 0) } else { format!("{:.3}", over / under) }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A summary with one step that ran, failed in something, and one that was left out.
    pub fn example() -> Summary {
        let sample = |seconds: f64| Sample {
            seconds,
            resident_bytes: 1_000_000,
            sent: (seconds * 100.0) as u64,
            accepted: (seconds * 90.0) as u64,
        };
        let ran = StepSummary {
            name: "one <step>".to_owned(),
            command: "--rate 5 -- --shards 1".to_owned(),
            failed_checks: vec!["nothing lost: 1 of 2".to_owned()],
            figures: Figures::from([
                (Key::CpuNsPerEvent, 250.0),
                (Key::EventsPerSecond, 1_000.0),
                (Key::OtherCpus, 0.7),
            ]),
            floors: vec![("receive".to_owned(), 40.0), ("send".to_owned(), 80.5)],
            spread: Some(Spread { min: 240.0, median: 250.0, max: 260.0, runs: 3 }),
            samples: (0..30).map(|tenth| sample(f64::from(tenth) / 10.0)).collect(),
            latency_curve: vec![(0.0, 1.0), (0.5, 2.0), (0.9, 4.0), (0.999, 30.0)],
            ..StepSummary::default()
        };
        let left_out = Some("no cgroups here".to_owned());
        let out = StepSummary { name: "two".to_owned(), left_out, ..StepSummary::default() };
        Summary {
            version: VERSION,
            profile: "example".to_owned(),
            reason: "to be seen".to_owned(),
            ok: false,
            started_unix_seconds: 0,
            repeat: 3,
            machine: Machine::look(None),
            steps: vec![ran, out],
            ratios: vec![Ratio {
                figure: Key::CpuNsPerEvent,
                over: "one <step>".to_owned(),
                under: "two".to_owned(),
                ratio: 1.5,
            }],
        }
    }

    #[test]
    fn the_text_tells_all_that_matters() {
        let text = example().text();
        for part in [
            "relay CPU ns/event",
            "min 240.0, median 250.0, max 260.0 of 3 runs",
            "one <step> / two = 1.500",
            "floors 40.0 receive + 80.5 send = 120.5 ns/event",
            "NOT ALONE: one <step>: others used 0.7 CPUs",
            "NOT RUN: two: no cgroups here",
            "FAIL one <step>: nothing lost",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn the_json_is_read_back() {
        let text = serde_json::to_string(&example()).unwrap();
        let back: Summary = serde_json::from_str(&text).unwrap();
        assert_eq!((back.version, back.steps[0].figures.clone()), (1, example().steps[0].figures.clone()));
        assert_eq!(back.ratios, example().ratios);
    }
}
