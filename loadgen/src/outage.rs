//! An outage of the endpoint under a steady load: what the spool holds meanwhile, how long the backlog takes
//! afterwards, and how late fresh events are beside it. It is a run (see [`crate::run`]) whose sink refuses
//! connections for a while, behind a short run flat out that measures what is the most the relay delivers here.
//!
//! Everything is seen from outside: when events were planned and when the sink accepted them. The *backlog* is what
//! was planned and not accepted when the first call came through again; it is *drained* when the last of it is
//! accepted; *fresh* is what was planned in between. Events must not be lost, whatever the times are.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use serde::Serialize;

use crate::profile;
use crate::report::{grouped, table};
use crate::run::report::Report;
use crate::run::{Options as RunOptions, run};
use crate::sink::timeline::Timeline;
use crate::units::{parse_duration, parse_number};

/// The options of `outage`.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// The relay's binary [default: `standpipe` beside this one].
    #[arg(long, value_name = "PATH")]
    pub relay: Option<PathBuf>,
    /// How long the endpoint refuses connections.
    #[arg(long, default_value = "30s", value_name = "DURATION", value_parser = parse_duration)]
    pub outage: Duration,
    /// Events a second, all the time.
    #[arg(long, default_value = "50000", value_name = "R", value_parser = parse_number)]
    pub rate: u64,
    /// Bytes of one event.
    #[arg(long, default_value_t = 250, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(57..=1_023_999))]
    pub size: u64,
    /// Streams.
    #[arg(long, default_value_t = 16, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub streams: u32,
    /// The relay's memory.
    #[arg(long, default_value = "64MiB", value_name = "SIZE")]
    pub memory: String,
    /// Load before the outage, of which all but the first and the last three seconds are measured: at least 7 s.
    #[arg(long, default_value = "10s", value_name = "DURATION", value_parser = parse_duration)]
    pub before: Duration,
    /// Fails where the backlog took longer than twice its bytes over the peak, or fresh events were more than twice
    /// as late as before: times, which on a busy machine mean nothing.
    #[arg(long)]
    pub judge_times: bool,
    /// Writes the figures as JSON; `-` is standard output.
    #[arg(long, value_name = "FILE")]
    pub json: Option<String>,
    /// More arguments for the relay.
    #[arg(last = true, value_name = "RELAY ARGUMENTS")]
    pub relay_arguments: Vec<String>,
}

/// What is left out at both ends of the time before: start-up, and what meets the outage.
const EDGE: Duration = Duration::from_secs(3);
/// How long the peak is measured, start-up apart.
const PEAK: &str = "--rate max --duration 6s --warm-up 2s";
/// Behind the outage the load goes on as long as the backlog may take, and this, so that fresh events are seen.
const AFTER: Duration = Duration::from_secs(8);

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub struct Figures {
    /// Payload bytes a second that the relay delivers at most, measured before.
    pub peak_bytes_per_second: f64,
    /// From the end of the outage, as planned, to the first call that came through.
    pub noticed_seconds: f64,
    /// Payload bytes not accepted when that call came through.
    pub backlog_bytes: f64,
    /// From that call to the last event of the backlog.
    pub drain_seconds: f64,
    /// What is allowed for that: twice the backlog over the peak.
    pub drain_allowed_seconds: f64,
    /// Nearly the longest time from planned to accepted, before the outage, in milliseconds.
    pub p99_before_ms: f64,
    /// The same of fresh events while the backlog drained.
    pub p99_fresh_ms: f64,
    /// The most resident memory of the relay.
    pub resident_peak_bytes: u64,
    /// Events lost.
    pub lost: u64,
    /// Events sent.
    pub events: u64,
}

impl Figures {
    /// What is not as it is meant to be, in sentences.
    pub fn missed(&self) -> Vec<String> {
        let mut missed = Vec::new();
        if self.drain_seconds > self.drain_allowed_seconds {
            let (took, allowed) = (self.drain_seconds, self.drain_allowed_seconds);
            missed.push(format!("the backlog took {took:.1} s, and {allowed:.1} s are allowed"));
        }
        if self.p99_fresh_ms > 2.0 * self.p99_before_ms {
            let (fresh, before) = (self.p99_fresh_ms, self.p99_before_ms);
            missed.push(format!(
                "the p99 of fresh events was {fresh:.0} ms beside it, and {before:.0} ms before"
            ));
        }
        missed
    }

    fn text(&self) -> String {
        let megabytes = |bytes: f64| format!("{:.1}", bytes / 1e6);
        let rows = [
            ("events sent", grouped(self.events)),
            ("lost", grouped(self.lost)),
            ("peak, MB/s of payload", megabytes(self.peak_bytes_per_second)),
            ("noticed that it was over after, s", format!("{:.1}", self.noticed_seconds)),
            ("backlog, MB", megabytes(self.backlog_bytes)),
            ("drained in, s", format!("{:.1}", self.drain_seconds)),
            ("  allowed: 2 x backlog / peak, s", format!("{:.1}", self.drain_allowed_seconds)),
            ("p99 before, ms", format!("{:.0}", self.p99_before_ms)),
            ("p99 of fresh events meanwhile, ms", format!("{:.0}", self.p99_fresh_ms)),
            ("  over that before", format!("{:.2}", self.p99_fresh_ms / self.p99_before_ms)),
            ("relay peak resident MB", megabytes(self.resident_peak_bytes as f64)),
        ];
        table(&rows).to_string()
    }
}

/// Runs it, prints what was measured, and says whether all is well.
///
/// # Errors
///
/// A sentence if something could not be started, or nothing came through after the outage.
pub fn run_outage(options: &Options) -> anyhow::Result<bool> {
    eprintln!("outage: the peak, flat out");
    let peak = run(options.of_run(PEAK, &[])?)?;
    let window = peak.window.as_ref().context("the peak was not seen")?;
    let peak_events = window.events_delivered as f64 / window.seconds;
    let after = options.after(peak_events);
    let planned = humantime::format_duration(options.before + options.outage + after);
    eprintln!(
        "outage: {planned} at {} events/s, of which {:?} without an endpoint",
        options.rate, options.outage
    );
    let report = run(options.of_outage(after)?)?;
    for (run, checks) in [("the peak", &peak.checks), ("the outage", &report.checks)] {
        for check in checks.iter().filter(|check| !check.ok) {
            eprintln!("outage: WRONG: {run}: {}: {}", check.name, check.detail);
        }
    }
    let figures = options.figures(&report, peak_events)?;
    eprintln!("{}", figures.text());
    let missed = figures.missed();
    missed.iter().for_each(|sentence| eprintln!("outage: missed: {sentence}"));
    if let Some(path) = &options.json {
        crate::write_json(path, &figures)?;
    }
    Ok(report.ok && peak.ok && (missed.is_empty() || !options.judge_times))
}

impl Options {
    /// How long the load goes on behind the outage.
    fn after(&self, peak_events: f64) -> Duration {
        let backlog = self.rate as f64 * self.outage.as_secs_f64();
        Duration::try_from_secs_f64(2.0 * backlog / peak_events).unwrap_or_default() + AFTER
    }

    fn of_outage(&self, after: Duration) -> anyhow::Result<RunOptions> {
        let (from, to) = (self.before.as_secs_f64(), (self.before + self.outage).as_secs_f64());
        let seconds = (self.before + self.outage + after).as_secs_f64();
        let flags = format!(
            "--rate {} --refuse {from}-{to} --duration {seconds} --timeline --check full --settle 10m",
            self.rate
        );
        let stuck = format!("--stuck-timeout {}s", self.outage.as_secs() + 60);
        self.of_run(&format!("{flags} {stuck}"), &["--spool", "spool", "--spool-mode", "overflow"])
    }

    fn of_run(&self, flags: &str, relay: &[&str]) -> anyhow::Result<RunOptions> {
        let common = format!(
            "--check full --streams {} --size {} {flags} -- --memory {}",
            self.streams, self.size, self.memory
        );
        let words = common.split_whitespace().chain(relay.iter().copied());
        let words = words.chain(self.relay_arguments.iter().map(String::as_str));
        Ok(RunOptions { relay: self.relay.clone(), ..profile::options_of(words)? })
    }

    fn figures(&self, report: &Report, peak_events: f64) -> anyhow::Result<Figures> {
        let timeline = report.timeline.as_ref().context("the sink kept no timeline")?;
        self.figures_of(timeline, peak_events, report).context("nothing came through after the outage")
    }

    fn figures_of(&self, timeline: &Timeline, peak_events: f64, report: &Report) -> Option<Figures> {
        let ns = |duration: Duration| duration.as_nanos() as u64;
        let origin = timeline.origin_ns()?;
        // The sink counts from its own start, a moment before the first event.
        let up = origin + ns(self.before + self.outage);
        let first = timeline.first_arrival(origin + ns(self.before + self.outage / 2))?;
        let planned = self.rate as f64 * (first - origin) as f64 / 1e9;
        let backlog = planned - timeline.arrived_before(first) as f64;
        let drained = timeline.last_of_planned_before(first);
        let bytes = (self.size + 1) as f64;
        let (from, to) = (origin + ns(EDGE), origin + ns(self.before.saturating_sub(EDGE)));
        Some(Figures {
            peak_bytes_per_second: peak_events * bytes,
            noticed_seconds: (first as f64 - up as f64) / 1e9,
            backlog_bytes: backlog * bytes,
            drain_seconds: (drained - first) as f64 / 1e9,
            drain_allowed_seconds: 2.0 * backlog / peak_events,
            p99_before_ms: timeline.latency_ms(from, to, 0.99)?,
            p99_fresh_ms: timeline.latency_ms(first, drained, 0.99)?,
            resident_peak_bytes: report.relay.resident_peak_bytes,
            lost: report.events.lost,
            events: report.sent.events_sent,
        })
    }
}
