//! The report of a profile as one HTML page: figures, plots, machine. It asks nothing of the network and runs no
//! script, and follows the reader's choice of light or dark.

use std::time::{Duration, UNIX_EPOCH};

use super::bars::bars;
use super::figures::{Key, accepted_by_second};
use super::plot::{Plot, Series, escape, step};
use super::summary::{StepSummary, Summary, rows};
use crate::run::samples::Sample;

const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1c2127; --paper: #fff; --faint: #d9dee4; --soft: #5b6670; --bad: #b42318;
  --s0: #1f6feb; --s1: #d1600f; --s2: #16803c; --s3: #8a3ffc; --s4: #b3261e; --s5: #0f7f86; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --paper: #14181d; --faint: #343b44; --soft: #9aa5b1;
  --bad: #ff8a80; --s0: #6cb0ff; --s1: #ffa657; --s2: #5fd38d; --s3: #c4a2ff; --s4: #ff8a80; --s5: #56d4dd; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto;
  max-width: 60rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
p.reason, .soft { color: var(--soft); margin-top: 0; }
.bad { color: var(--bad); font-weight: 600; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .8rem .2rem 0; text-align: right; border-bottom: 1px solid var(--faint); white-space: pre; }
th { white-space: normal; max-width: 9rem; vertical-align: bottom; } th:first-child, td:first-child { text-align: left; }
figure { margin: 1.5rem 0; } figcaption { font-weight: 600; }
svg { width: 100%; height: auto; } svg text { fill: var(--soft); font-size: 12px; }
svg .grid { stroke: var(--faint); stroke-width: 1; } svg .end { text-anchor: end; }
svg .middle { text-anchor: middle; } svg polyline { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.legend { margin: 0; font-size: 13px; } .legend span { margin-right: 1.2rem; }
.legend i { display: inline-block; width: 1.2rem; height: .2rem; margin-right: .4rem; vertical-align: middle; }
tr.group td { font-weight: 600; padding-top: 1rem; }
.bars { margin: .4rem 0; display: grid; grid-template-columns: max-content 1fr; gap: .2rem .8rem; align-items: center; }
.bars > :nth-child(2n) { display: flex; } .bars i { height: 1.1rem; }
code { font-size: 13px; overflow-wrap: anywhere; }
polyline.s0 { stroke: var(--s0); } i.s0 { background: var(--s0); }
polyline.s1 { stroke: var(--s1); } i.s1 { background: var(--s1); }
polyline.s2 { stroke: var(--s2); } i.s2 { background: var(--s2); }
polyline.s3 { stroke: var(--s3); } i.s3 { background: var(--s3); }
polyline.s4 { stroke: var(--s4); } i.s4 { background: var(--s4); }
polyline.s5 { stroke: var(--s5); } i.s5 { background: var(--s5); }
";

/// The whole page.
pub fn page(summary: &Summary) -> String {
    let run: Vec<&StepSummary> = summary.steps.iter().filter(|step| step.left_out.is_none()).collect();
    let title = format!("loadgen: {}", escape(&summary.profile));
    let plots = [latency_plot(&run), throughput_plot(&run), resident_plot(&run)];
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>{title}</title><style>{STYLE}</style></head>\n\
         <body><h1>{title}</h1>\n<p class=\"reason\">{}</p>\n<p class=\"soft\">{}</p>\n{}{}{}{}<h2>Figures</h2>\n{}{}<h2>How it was run</h2>\n{}{}\
         </body></html>\n",
        escape(&summary.reason),
        escape(&when_and_where(summary)),
        verdict(summary),
        ratios(summary),
        bars(&run),
        plots.map(|plot| plot.svg()).concat(),
        figures(&run),
        spreads(&run) + &floors(&run),
        commands(summary),
        machine(summary),
    )
}

/// What a reader has to know before any figure.
fn when_and_where(summary: &Summary) -> String {
    let started = UNIX_EPOCH + Duration::from_secs(summary.started_unix_seconds);
    let times = if summary.repeat == 1 { "once".to_owned() } else { format!("{} times", summary.repeat) };
    let machine = &summary.machine;
    format!(
        "{}, each step {times}, on {} × {}, Linux {}; load averages before: {}",
        humantime::format_rfc3339_seconds(started),
        machine.cpus,
        machine.cpu,
        machine.kernel,
        machine.load_averages
    )
}

/// What failed or was left out; or that all is well.
fn verdict(summary: &Summary) -> String {
    let mut lines = String::new();
    for step in &summary.steps {
        let name = escape(&step.name);
        if let Some(why) = &step.left_out {
            lines += &format!("<p class=\"bad\">Not run: {name}: {}</p>\n", escape(why));
        }
        for check in &step.failed_checks {
            lines += &format!("<p class=\"bad\">Failed: {name}: {}</p>\n", escape(check));
        }
    }
    for company in summary.company() {
        lines += &format!("<p class=\"bad\">{}</p>\n", escape(&company));
    }
    if summary.ok { lines + "<p>Every check of every run holds.</p>\n" } else { lines }
}

fn ratios(summary: &Summary) -> String {
    let row = |ratio: &super::summary::Ratio| {
        let (title, over, under) = (ratio.figure.title().trim(), escape(&ratio.over), escape(&ratio.under));
        format!("<tr><td>{}: {over} / {under}</td><td>{:.3}</td></tr>\n", escape(title), ratio.ratio)
    };
    let rows: String = summary.ratios.iter().map(row).collect();
    if rows.is_empty() { rows } else { format!("<h2>Ratios</h2>\n<table>{rows}</table>\n") }
}

fn figures(run: &[&StepSummary]) -> String {
    let cells = |tag: &str, cells: &[String]| -> String {
        cells.iter().map(|cell| format!("<{tag}>{}</{tag}>", escape(cell))).collect()
    };
    let names: Vec<String> = run.iter().map(|step| step.name.clone()).collect();
    let group = |key: Key| match key.begins() {
        Some(heading) => {
            format!("<tr class=\"group\"><td colspan=\"{}\">{heading}</td></tr>\n", run.len() + 1)
        }
        None => String::new(),
    };
    let row = |(key, values): (Key, Vec<String>)| {
        format!("{}<tr><td>{}</td>{}</tr>\n", group(key), escape(key.title()), cells("td", &values))
    };
    let rows: String = rows(run).into_iter().map(row).collect();
    format!("<div class=\"scroll\"><table><tr><th></th>{}</tr>\n{rows}</table></div>\n", cells("th", &names))
}

fn spreads(run: &[&StepSummary]) -> String {
    let line = |step: &&StepSummary| {
        let spread = step.spread?;
        Some(format!(
            "<p class=\"soft\">{}: relay CPU ns/event min {:.1}, median {:.1}, max {:.1} of {} runs; the median run is shown</p>\n",
            escape(&step.name),
            spread.min,
            spread.median,
            spread.max,
            spread.runs
        ))
    };
    run.iter().filter_map(line).collect()
}

/// Which floors the sums hold.
fn floors(run: &[&StepSummary]) -> String {
    let has_any = |step: &&&StepSummary| !step.floors.is_empty();
    let in_words = |step: &&StepSummary| {
        let (name, floors) = (escape(&step.name), escape(&step.floors_in_words()));
        format!("<p class=\"soft\">{name}: floors {floors}</p>\n")
    };
    run.iter().filter(has_any).map(in_words).collect()
}

fn commands(summary: &Summary) -> String {
    let line = |step: &StepSummary| {
        format!("<p>{}: <code>loadgen run {}</code></p>\n", escape(&step.name), escape(&step.command))
    };
    summary.steps.iter().map(line).collect()
}

fn machine(summary: &Summary) -> String {
    let rows = summary.machine.rows();
    let row =
        |(name, value): &(&str, String)| format!("<tr><td>{name}</td><td>{}</td></tr>\n", escape(value));
    format!("<h2>Machine</h2>\n<table>{}</table>\n", rows.iter().map(row).collect::<String>())
}

/// Latency over the percentile, whose axis is logarithmic in what is left above: each nine takes the same room.
fn latency_plot(run: &[&StepSummary]) -> Plot {
    let place = |quantile: f64| -(1.0 - quantile).log10();
    let series: Vec<Series> =
        series(run, |step| step.latency_curve.iter().map(|(quantile, ms)| (place(*quantile), *ms)).collect());
    let last = series.iter().flat_map(|series| &series.points).map(|(x, _)| *x).fold(1.0, f64::max);
    let nines = (1..=last.ceil() as usize).map(|nines| (nines as f64, percent(nines)));
    let x_ticks = std::iter::once((0.0, "0 %".to_owned())).chain(nines).collect();
    Plot { title: "Latency from the planned time, ms", x_label: "percentile", x_ticks, series }
}

/// So many nines, as a percentage.
fn percent(nines: usize) -> String {
    match nines {
        1 => "90 %".to_owned(),
        2 => "99 %".to_owned(),
        nines => format!("99.{} %", "9".repeat(nines - 2)),
    }
}

/// Events a second, over steps of a second: those accepted or, where that cannot be seen, those sent.
fn throughput_plot(run: &[&StepSummary]) -> Plot {
    let series = series(run, |step| {
        let sent_only = step.samples.iter().all(|sample| sample.accepted == 0);
        let of = |sample: &Sample| Sample {
            accepted: if sent_only { sample.sent } else { sample.accepted },
            ..*sample
        };
        let samples: Vec<Sample> = step.samples.iter().map(of).collect();
        accepted_by_second(&samples)
    });
    let silent = series.iter().flat_map(|series| &series.points).all(|(_, rate)| *rate == 0.0);
    let series = if silent { Vec::new() } else { series };
    over_time("Events a second (accepted; for null and directory, sent)", series)
}

fn resident_plot(run: &[&StepSummary]) -> Plot {
    let megabytes = |sample: &Sample| (sample.seconds, sample.resident_bytes as f64 / 1e6);
    let series = series(run, |step| step.samples.iter().map(megabytes).collect());
    over_time("Resident memory of the relay, MB", series)
}

fn series(run: &[&StepSummary], points: impl Fn(&StepSummary) -> Vec<(f64, f64)>) -> Vec<Series> {
    run.iter().map(|step| Series { name: step.name.clone(), points: points(step) }).collect()
}

fn over_time(title: &'static str, series: Vec<Series>) -> Plot {
    let last = series.iter().flat_map(|series| &series.points).map(|(x, _)| *x).fold(1.0, f64::max);
    let step = step(last * 0.6);
    let x_ticks = (0..=(last / step).ceil() as u32).map(|tick| f64::from(tick) * step);
    let x_ticks = x_ticks.map(|at| (at, super::plot::short(at))).collect();
    Plot { title, x_label: "seconds since the first event", x_ticks, series }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::summary::tests::example;

    #[test]
    fn the_page_stands_alone_and_holds_everything() {
        let page = page(&example());
        for outside in ["http://", "https://", "<script", "src=", "href=", "url("] {
            assert!(!page.contains(outside), "{outside}");
        }
        assert_eq!(page.matches("<svg").count(), 3);
        for part in
            ["one &lt;step&gt;", "Not run: two", "Failed: one", "prefers-color-scheme", "99.9 %", "1.500"]
        {
            assert!(page.contains(part), "{part}");
        }
        assert!(!page.contains("NaN") && !page.contains("inf"));
    }

    #[test]
    fn a_plot_without_points_is_left_out() {
        let mut summary = example();
        summary.steps[0].latency_curve.clear();
        summary.steps[0].samples.iter_mut().for_each(|sample| (sample.sent, sample.accepted) = (0, 0));
        assert_eq!(page(&summary).matches("<svg").count(), 1);
    }
}
