//! A run: sink, relay and sender together; then every event is accounted for. The relay is a child process that
//! is known by its command line, its start line and its metrics alone.
//!
//! The order: sink, relay, connections, events, half-close, wait until the relay holds nothing, look at its
//! metrics and its CPU time, SIGTERM, and only then judge.

pub(crate) mod directory;
pub mod metrics;
pub mod relay;
pub mod report;
pub mod samples;
pub mod verify;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde::Serialize;

use crate::progress::Follower;
use crate::send::{Load, Plan, Progress, Sent, Target, send};
use crate::sink::ledger::{Check, Ledger};
use crate::sink::totals::Totals;
use crate::sink::{Settings, Sink};
use crate::units::parse_duration;
use metrics::Metrics;
use relay::{Relay, Usage};
use report::{RelayUsage, Report};
use samples::{Edges, Seen, Watched};
use verify::{Allowed, RelayCounts, Verdict};

/// Where the relay delivers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Destination {
    /// A sink in this process.
    Firehose,
    /// A temporary directory, read back at the end.
    Directory,
    /// Nowhere: only the relay's counters are verified.
    Null,
}

/// The options of `run`.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// The relay's binary [default: `standpipe` beside this one].
    #[arg(long, value_name = "PATH")]
    pub relay: Option<PathBuf>,
    /// Where the relay delivers to.
    #[arg(long, value_name = "KIND", default_value = "firehose")]
    pub destination: Destination,
    /// Bind the relay to this CPU.
    #[arg(long, value_name = "CPU")]
    pub pin_relay: Option<usize>,
    /// Bind sender and sink to this CPU.
    #[arg(long, value_name = "CPU")]
    pub pin_load: Option<usize>,
    /// How long the relay may take to start, and again to end.
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = parse_duration)]
    pub patience: Duration,
    /// How long the relay may hold events after the last was sent.
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = parse_duration)]
    pub settle: Duration,
    /// Measure CPU time and rates apart from here, since the first event, to just before the last; needs --duration.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub warm_up: Option<Duration>,
    /// Events may be dropped, if the relay counts them.
    #[arg(long)]
    pub allow_drops: bool,
    /// Keep the relay's log and, for `directory`, what it wrote; says where.
    #[arg(long)]
    pub keep: bool,
    /// What is sent.
    #[command(flatten)]
    pub load: Load,
    /// What the sink does.
    #[command(flatten)]
    pub settings: Settings,
    /// More arguments for the relay.
    #[arg(last = true, value_name = "RELAY ARGUMENTS")]
    pub relay_arguments: Vec<String>,
}

impl Options {
    /// The window that is asked for.
    fn edges(&self) -> Option<Edges> {
        self.warm_up.and_then(|warm_up| Edges::of(warm_up, self.load.duration))
    }
}

/// What was seen by the time that the relay held nothing, or the deadline was over.
struct Settled {
    metrics: Metrics,
    counts: RelayCounts,
    usage: Usage,
    at: Instant,
    in_time: bool,
}

/// Runs it all. What goes wrong with events is in the report; an error means that there is nothing to report.
///
/// # Errors
///
/// A sentence if something cannot be started, or the relay ends in the middle.
pub fn run(options: Options) -> anyhow::Result<Report> {
    run_with(options, |_| Ok(()))
}

/// Runs it all; `started` sees the relay before anything is sent to it.
///
/// # Errors
///
/// Those of [`run`] and of `started`.
pub fn run_with(
    options: Options,
    started: impl FnOnce(&Relay) -> anyhow::Result<()>,
) -> anyhow::Result<Report> {
    let plan = Plan::new(options.load.clone())?;
    let directory =
        tempfile::Builder::new().prefix("loadgen-").tempdir().context("no temporary directory")?;
    let sink = match options.destination {
        Destination::Firehose => Some(start_sink(&options)?),
        Destination::Directory | Destination::Null => None,
    };
    let command = command(&options, sink.as_ref(), directory.path())?;
    let mut relay = Relay::start(command, options.patience, options.pin_relay)?;
    started(&relay)?;
    let result = load_and_stop(&options, &plan, &mut relay, sink.as_ref(), directory.path());
    if options.keep {
        let path = directory.keep();
        std::fs::write(path.join("relay.log"), relay.log()).context("the relay's log could not be kept")?;
        eprintln!("kept in {}", path.display());
    } else if result.as_ref().is_ok_and(|report| !report.ok) {
        eprintln!("the relay's last lines:\n{}", relay.log());
    }
    result
}

fn start_sink(options: &Options) -> anyhow::Result<Sink> {
    let anywhere = ([127, 0, 0, 1], 0).into();
    let mut settings = options.settings.clone();
    settings.secret.get_or_insert_with(|| SECRET.to_owned());
    Sink::start(anywhere, options.load.seed, settings, options.pin_load)
}

/// The secret access key that the relay signs with, and the sink verifies with.
pub(crate) const SECRET: &str = "loadgen";

/// The relay's command line.
pub(crate) fn command(options: &Options, sink: Option<&Sink>, directory: &Path) -> anyhow::Result<Command> {
    let mut command = Command::new(relay_path(options.relay.as_deref())?);
    command.args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--destination"]);
    match sink {
        Some(sink) => command.args(["firehose", "--endpoint-url", &format!("http://{}", sink.address())]),
        None if options.destination == Destination::Null => command.arg("null"),
        None => command.arg(format!("directory:{}", data_path(directory).display())),
    };
    command.args(&options.relay_arguments);
    shelter(&mut command, options.settings.secret.as_deref().unwrap_or(SECRET));
    command.current_dir(directory);
    Ok(command)
}

/// Gives a relay credentials that mean nothing, and no profile of this machine's.
pub(crate) fn shelter(command: &mut Command, secret: &str) {
    for (name, value) in [
        ("AWS_ACCESS_KEY_ID", "loadgen"),
        ("AWS_SECRET_ACCESS_KEY", secret),
        ("AWS_REGION", "us-east-1"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
        ("AWS_CONFIG_FILE", "/dev/null"),
        ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null"),
        ("NO_COLOR", "1"),
    ] {
        command.env(name, value);
    }
    for name in ["AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_FIREHOSE"] {
        command.env_remove(name);
    }
}

pub(crate) fn relay_path(given: Option<&Path>) -> anyhow::Result<PathBuf> {
    let path = match given {
        Some(path) => path.to_owned(),
        None => std::env::current_exe()
            .context("this binary does not know where it is")?
            .with_file_name("standpipe"),
    };
    path.canonicalize().with_context(|| {
        format!("there is no relay at `{}`; build it, or tell where it is with --relay", path.display())
    })
}

fn data_path(directory: &Path) -> PathBuf {
    directory.join("data")
}

fn load_and_stop(
    options: &Options,
    plan: &Plan,
    relay: &mut Relay,
    sink: Option<&Sink>,
    directory: &Path,
) -> anyhow::Result<Report> {
    let before = relay.usage()?;
    let load_before = Usage::of("self")?;
    let (sent, seen) = send_all(options, plan, relay, sink)?;
    let settled = settle(relay, sent.events_sent, options.settle)?;
    let load_after = Usage::of("self")?;
    let status = relay.stop(options.patience)?;
    let ledger = match (sink, options.destination) {
        (None, Destination::Directory) => Some(directory::read(&data_path(directory), options.load.seed)?),
        _ => None,
    };
    let mut usage = RelayUsage::between(&before, &settled.usage, sent.events_sent);
    usage.exit_code = status.and_then(|status| status.code());
    let judged = judge(options, &sent, &settled, sink, ledger.as_ref());
    let mut checks = judged.checks;
    if options.edges().is_some() {
        // Without it figures would be of the whole run, and nobody would notice.
        checks.push(Verdict::new("the window was seen to its end", seen.window.is_some(), ""));
    }
    checks.push(Verdict::new("the relay let go of everything in time", settled.in_time, ""));
    let ended = status.map_or("killed, it took too long".to_owned(), |status| status.to_string());
    checks.push(Verdict::new("the relay ended well", status.is_some_and(|status| status.success()), ended));
    let load = RelayUsage::between(&load_before, &load_after, sent.events_sent);
    let last = sink.and_then(|sink| sink.with_ledger(|ledger| ledger.last_accepted())).unwrap_or(settled.at);
    let seconds = last.saturating_duration_since(sent.started).as_secs_f64();
    let each_second = |amount: u64| if seconds > 0.0 { amount as f64 / seconds } else { 0.0 };
    Ok(Report {
        version: 1,
        ok: checks.iter().all(|check| check.ok),
        checks,
        destination: options.destination,
        load: options.load.clone(),
        relay_arguments: options.relay_arguments.clone(),
        pin_relay: options.pin_relay,
        pin_load: options.pin_load,
        seconds,
        events_per_second: each_second(sent.events_sent),
        payload_bytes_per_second: each_second(sent.payload_bytes),
        relay: usage,
        load_cpu_ns_per_event: load.cpu_ns_per_event,
        events: judged.fate,
        metrics: settled.counts,
        latency_ms: sink.and(judged.totals.as_ref()).map(|totals| totals.latency_ms),
        billed_per_payload: sink.and(judged.totals.as_ref()).and_then(billed_per_payload),
        sent,
        window: seen.window,
        samples: seen.samples,
        latency_curve: sink.map_or_else(Vec::new, |sink| sink.with_ledger(|ledger| ledger.latency_curve())),
        ledger: judged.totals,
        timeline: sink.and_then(|sink| sink.with_ledger(|ledger| ledger.timeline().cloned())),
    })
}

fn billed_per_payload(totals: &Totals) -> Option<f64> {
    let counts = &totals.totals;
    (counts.raw_bytes > 0).then(|| counts.billed_bytes as f64 / counts.raw_bytes as f64)
}

/// Sends while another thread watches.
fn send_all(
    options: &Options,
    plan: &Plan,
    relay: &Relay,
    sink: Option<&Sink>,
) -> anyhow::Result<(Sent, Seen)> {
    let progress = Progress::default();
    let _follower = Follower::new(progress.clone(), plan.events());
    let watched = Watched { relay: relay.id(), admin: relay.ready().admin, progress: &progress, sink };
    let edges = options.edges();
    let (stop, stopped) = mpsc::channel();
    std::thread::scope(|scope| {
        let watching = scope.spawn(move || {
            crate::pin_to(options.pin_load);
            samples::watch(watched, edges, &stopped)
        });
        let sent = send(plan, &Target::Tcp(relay.ready().listen), &progress, options.pin_load);
        drop(stop);
        let seen = watching.join().expect("watching does not panic");
        // A relay that is gone is told of with its own words, by whoever asks it next.
        let seen = seen.unwrap_or_else(|error| {
            eprintln!("the relay could not be watched: {error:#}");
            Seen::default()
        });
        Ok((sent?, seen))
    })
}

/// Pauses between two looks at the metrics grow: a short wait is seen exactly, a long one costs the relay little.
const POLL_MIN: Duration = Duration::from_millis(2);
const POLL_MAX: Duration = Duration::from_millis(250);

/// Waits until the relay has received all and holds nothing, by its own metrics.
fn settle(relay: &mut Relay, sent: u64, within: Duration) -> anyhow::Result<Settled> {
    let deadline = Instant::now() + within;
    let mut pause = POLL_MIN;
    loop {
        let metrics = relay.metrics()?;
        let (at, usage) = (Instant::now(), relay.usage()?);
        let counts = RelayCounts::of(&metrics);
        let in_time = counts.is_settled(sent);
        if in_time || at >= deadline {
            return Ok(Settled { metrics, counts, usage, at, in_time });
        }
        std::thread::sleep(pause);
        pause = (pause * 3 / 2).min(POLL_MAX);
    }
}

struct Judged {
    checks: Vec<Verdict>,
    fate: verify::Fate,
    totals: Option<Totals>,
}

fn judge(
    options: &Options,
    sent: &Sent,
    settled: &Settled,
    sink: Option<&Sink>,
    files: Option<&Ledger>,
) -> Judged {
    let allowed =
        Allowed { drops: options.allow_drops, unseen_calls: options.settings.faults.refuse.is_some() };
    let look = |ledger: &Ledger, check: Check| {
        let totals = ledger.totals();
        let fate = verify::fate(sent, ledger, &totals.totals, check, &settled.counts);
        let mut checks = verify::of_fate(&fate, sent, &totals.totals, &settled.counts, allowed);
        checks.extend(verify::of_metrics(&settled.metrics, sent));
        if check == Check::Light && fate.duplicates == 0 && fate.dropped == 0 {
            checks.push(verify::of_check_sums(sent, ledger));
        }
        Judged { checks, fate, totals: Some(totals) }
    };
    match (sink, files) {
        (Some(sink), _) => {
            let mut judged = sink.with_ledger(|ledger| look(ledger, options.settings.check));
            let totals = judged.totals.as_ref().expect("they were just made");
            judged.checks.push(verify::of_calls(totals.calls["total"], &settled.counts, allowed));
            let violations = format!("{} {}", totals.violations.total, totals.violations.samples.join("; "));
            let kept = Verdict::new("every rule of the API kept", totals.violations.total == 0, violations);
            judged.checks.push(kept);
            judged
        }
        (None, Some(files)) => look(files, Check::Full),
        (None, None) => {
            let judged = look(&Ledger::new(Check::None, options.load.seed, HashMap::new()), Check::None);
            Judged { totals: None, ..judged }
        }
    }
}
