//! The relay's CPU an event as bars and, where they were measured, the floors of the same work below each: one scale
//! for all, in the colours of the plots.

use super::figures::Key;
use super::plot::{COLOURS, escape};
use super::summary::StepSummary;
use crate::report::grouped;

/// One bar: its name and what it is made of, in nanoseconds.
struct Bar<'a> {
    name: String,
    parts: Vec<(&'a str, f64)>,
}

/// How much of the room the longest bar takes; its figure stands behind it.
const LONGEST_PERCENT: f64 = 80.0;

impl<'a> Bar<'a> {
    fn relay(step: &'a StepSummary) -> Self {
        let of = |key| step.figures.get(&key).copied().unwrap_or(0.0);
        let parts = vec![("own code", of(Key::CpuUserNsPerEvent)), ("kernel", of(Key::CpuSystemNsPerEvent))];
        Self { name: step.name.clone(), parts }
    }

    fn floors(step: &'a StepSummary) -> Self {
        let parts = step.floors.iter().map(|(name, cost)| (name.as_str(), *cost)).collect();
        Self { name: format!("floors of {}", step.name), parts }
    }

    fn sum(&self) -> f64 {
        self.parts.iter().map(|(_, cost)| cost).sum()
    }

    fn drawn(&self, longest: f64) -> String {
        let part = |(index, (name, cost)): (usize, &(&str, f64))| {
            let (colour, width) = (index % COLOURS, LONGEST_PERCENT * cost / longest);
            let title = format!("{}: {cost:.1} ns", escape(name));
            format!("<i class=\"s{colour}\" style=\"width:{width:.1}%\" title=\"{title}\"></i>")
        };
        let parts: String = self.parts.iter().enumerate().map(part).collect();
        let sum = grouped(self.sum().round() as u64);
        format!("<span>{}</span><span>{parts}&nbsp;{sum}</span>\n", escape(&self.name))
    }

    fn legend(&self, what: &str) -> String {
        let entry = |(index, (name, _)): (usize, &(&str, f64))| {
            format!("<span><i class=\"s{}\"></i>{}</span> ", index % COLOURS, escape(name))
        };
        let entries: String = self.parts.iter().enumerate().map(entry).collect();
        format!("<p class=\"legend\">{what}: {entries}</p>\n")
    }
}

/// The figure; nothing where no CPU an event was measured.
pub fn bars(run: &[&StepSummary]) -> String {
    let (mut all, mut legends) = (Vec::new(), String::new());
    for step in run {
        let relay = Bar::relay(step);
        if all.is_empty() {
            legends += &relay.legend("relay");
        }
        all.push(relay);
        if !step.floors.is_empty() {
            let floors = Bar::floors(step);
            // One legend a set of floors: steps may differ in what they cannot do without.
            let legend = floors.legend("floors");
            if !legends.contains(&legend) {
                legends += &legend;
            }
            all.push(floors);
        }
    }
    let longest = all.iter().map(Bar::sum).fold(0.0, f64::max);
    if longest == 0.0 {
        return String::new();
    }
    let drawn: String = all.iter().map(|bar| bar.drawn(longest)).collect();
    format!(
        "<figure><figcaption>CPU of the relay, ns/event</figcaption>\n<div class=\"bars\">{drawn}</div>\n{legends}</figure>\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::figures::Figures;

    #[test]
    fn bars_share_a_scale_and_name_their_parts() {
        let step = StepSummary {
            name: "a < b".to_owned(),
            figures: Figures::from([(Key::CpuUserNsPerEvent, 150.0), (Key::CpuSystemNsPerEvent, 50.0)]),
            floors: vec![("receive".to_owned(), 100.0)],
            ..StepSummary::default()
        };
        let drawn = bars(&[&step]);
        for part in ["a &lt; b", "width:60.0%", "width:20.0%", "width:40.0%", "receive: 100.0 ns", ">kernel<"]
        {
            assert!(drawn.contains(part), "{part} in {drawn}");
        }
        assert_eq!(bars(&[&StepSummary::default()]), "");
    }
}
