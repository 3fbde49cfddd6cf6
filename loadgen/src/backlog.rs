//! A full spool at start: a relay whose endpoint is down fills its spool, ends, and is started again, once after an
//! orderly end and once after a kill. Measured is how long it takes until it accepts a connection, says that it is
//! ready, and has taken over what lies there; then the endpoint comes back, and all of it must arrive.
//!
//! Before each start the spool's files are taken out of the page cache, as after a reboot.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::fs::{Advice, fadvise};
use serde::Serialize;

use crate::report::{grouped, table};
use crate::run::metrics::Metrics;
use crate::run::relay::Relay;
use crate::run::verify::{self, Allowed, RelayCounts};
use crate::run::{SECRET, relay_path, shelter};
use crate::send::{Load, Plan, Progress, Sent, Target, send};
use crate::sink::faults::Faults;
use crate::sink::ledger::Check;
use crate::sink::{Settings, Sink};
use crate::units::{Rate, Sizes, Window, parse_duration, parse_number};

/// The options of `backlog`.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// The relay's binary [default: `standpipe` beside this one].
    #[arg(long, value_name = "PATH")]
    pub relay: Option<PathBuf>,
    /// How much is spooled.
    #[arg(long, default_value = "5GiB", value_name = "BYTES", value_parser = parse_number)]
    pub bytes: u64,
    /// Where the spool lies: on the disk that is meant [default: the temporary directory].
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// The relay's memory.
    #[arg(long, default_value = "64MiB", value_name = "SIZE")]
    pub memory: String,
    /// How long the relay may take for anything.
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = parse_duration)]
    pub patience: Duration,
    /// Fails where a start took longer than a second, which on a busy machine means nothing.
    #[arg(long)]
    pub judge_times: bool,
    /// Writes the figures as JSON; `-` is standard output.
    #[arg(long, value_name = "FILE")]
    pub json: Option<String>,
    /// More arguments for the relay.
    #[arg(last = true, value_name = "RELAY ARGUMENTS")]
    pub relay_arguments: Vec<String>,
}

/// Bytes of one event.
const EVENT_BYTES: usize = 1_000;
/// The longest that a start may take.
const START_MAX: Duration = Duration::from_secs(1);
/// Between two looks at a relay that starts, and at one that delivers.
const LOOK_PAUSE: Duration = Duration::from_millis(1);
const SETTLE_PAUSE: Duration = Duration::from_millis(50);
/// What a run draws from.
const SEED: u64 = 1;

/// How one start went, in seconds since the process was made.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Started {
    /// Until a connection was accepted.
    pub accepts: f64,
    /// Until `/readyz` said so.
    pub ready: f64,
    /// Until all that was spooled was known.
    pub adopted: f64,
}

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub struct Figures {
    /// Events sent.
    pub events: u64,
    /// Bytes of the spool's files.
    pub spool_bytes: u64,
    /// How long it took to fill.
    pub filled_seconds: f64,
    /// The start after an orderly end.
    pub after_end: Started,
    /// The start after a kill.
    pub after_kill: Started,
    /// From the endpoint's return until nothing was held.
    pub delivered_seconds: f64,
    /// Events lost.
    pub lost: u64,
    /// Events delivered again, and how many the relay counted as possible.
    pub duplicates: [u64; 2],
}

/// Runs it, prints what was measured, and says whether all is well.
///
/// # Errors
///
/// A sentence if something could not be started, or took too long.
pub fn run_backlog(options: &Options) -> anyhow::Result<bool> {
    let mut scratch = tempfile::Builder::new();
    let scratch = scratch.prefix("backlog-");
    let scratch = match &options.dir {
        Some(dir) => scratch.tempdir_in(dir),
        None => scratch.tempdir(),
    };
    let scratch = scratch.context("no directory for the spool")?;
    let sink = closed_sink()?;
    let place = Place::new(options, scratch.path(), &sink)?;
    let (sent, spool_bytes, filled) = fill(options, &place)?;
    eprintln!("backlog: {:.2} GB spooled, started again", spool_bytes as f64 / 1e9);
    let (mut relay, after_end) = place.start(sent.events_sent)?;
    relay.kill()?;
    let (mut relay, after_kill) = place.start(sent.events_sent)?;
    sink.set_faults(Faults::default()).map_err(anyhow::Error::msg)?;
    let began = Instant::now();
    let counts = settle(&mut relay, options.patience)?;
    let delivered_seconds = began.elapsed().as_secs_f64();
    let status = relay.stop(options.patience)?;
    let checks = sink.with_ledger(|ledger| {
        let totals = ledger.totals();
        let fate = verify::fate(&sent, ledger, &totals.totals, Check::Full, &counts);
        let allowed = Allowed { drops: false, unseen_calls: true };
        (verify::of_fate(&fate, &sent, &totals.totals, &counts, allowed), fate)
    });
    let (checks, fate) = checks;
    let figures = Figures {
        events: sent.events_sent,
        spool_bytes,
        filled_seconds: filled.as_secs_f64(),
        after_end,
        after_kill,
        delivered_seconds,
        lost: fate.lost,
        duplicates: [fate.duplicates, counts.possible_duplicates],
    };
    eprintln!("{}", figures.text());
    let wrong: Vec<_> = checks.iter().filter(|check| !check.ok).collect();
    wrong.iter().for_each(|check| eprintln!("backlog: WRONG: {}: {}", check.name, check.detail));
    let ended_well = status.is_some_and(|status| status.success());
    if !ended_well {
        eprintln!("backlog: WRONG: the relay did not end well");
    }
    let in_time = figures.is_in_time();
    if !in_time {
        eprintln!("backlog: missed: a start took longer than {START_MAX:?}");
    }
    if let Some(path) = &options.json {
        crate::write_json(path, &figures)?;
    }
    Ok(wrong.is_empty() && ended_well && (in_time || !options.judge_times))
}

impl Figures {
    fn is_in_time(&self) -> bool {
        let starts = [self.after_end, self.after_kill];
        starts.iter().all(|start| start.accepts.max(start.ready) <= START_MAX.as_secs_f64())
    }

    fn text(&self) -> String {
        let rate =
            |seconds: f64| format!("{seconds:.1} s, {:.0} MB/s", self.spool_bytes as f64 / 1e6 / seconds);
        let start = |started: &Started| {
            format!("{:.3}  {:.3}  {:.3}", started.accepts, started.ready, started.adopted)
        };
        let rows = [
            ("events", grouped(self.events)),
            ("bytes of the spool", grouped(self.spool_bytes)),
            ("filled in", rate(self.filled_seconds)),
            ("after an end: accepts, ready, taken over, s", start(&self.after_end)),
            ("after a kill: accepts, ready, taken over, s", start(&self.after_kill)),
            ("delivered in", rate(self.delivered_seconds)),
            ("lost", grouped(self.lost)),
            ("duplicates (possible)", format!("{} ({})", self.duplicates[0], self.duplicates[1])),
        ];
        table(&rows).to_string()
    }
}

/// A sink that refuses connections until it is told otherwise.
fn closed_sink() -> anyhow::Result<Sink> {
    let refuse = Some(Window { from: Duration::ZERO, to: Duration::from_secs(86_400) });
    let settings = Settings {
        check: Check::Full,
        verify_signature: Some(false),
        secret: None,
        map: Vec::new(),
        timeline: false,
        faults: Faults { refuse, ..Faults::default() },
    };
    Sink::start(([127, 0, 0, 1], 0).into(), SEED, settings, None)
}

/// Where the relay is started, again and again.
struct Place {
    program: PathBuf,
    arguments: Vec<String>,
    spool: PathBuf,
    listen: SocketAddr,
    patience: Duration,
}

impl Place {
    fn new(options: &Options, scratch: &Path, sink: &Sink) -> anyhow::Result<Self> {
        let free = TcpListener::bind("127.0.0.1:0").context("no port is free")?;
        let listen = free.local_addr().context("the port has no address")?;
        let spool = scratch.join("spool");
        let text = format!(
            "--listen {listen} --admin 127.0.0.1:0 --destination firehose --endpoint-url http://{} --memory {} \
             --spool {} --spool-mode overflow --spool-limit {} --spool-free-floor 0 --drain-deadline 10s",
            sink.address(),
            options.memory,
            spool.display(),
            2 * options.bytes + (1 << 30),
        );
        let arguments =
            text.split_whitespace().map(str::to_owned).chain(options.relay_arguments.iter().cloned());
        let program = relay_path(options.relay.as_deref())?;
        Ok(Self { program, arguments: arguments.collect(), spool, listen, patience: options.patience })
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments);
        shelter(&mut command, SECRET);
        command
    }

    /// Starts a relay on a cold spool of so many events, and tells how that went.
    fn start(&self, events: u64) -> anyhow::Result<(Relay, Started)> {
        forget_cached(&self.spool)?;
        let (listen, patience, began) = (self.listen, self.patience, Instant::now());
        let connecting = std::thread::spawn(move || first_accepted(listen, began, patience));
        let mut relay = Relay::start(self.command(), self.patience, None)?;
        let admin = relay.ready().admin;
        while began.elapsed() < self.patience && !crate::run::metrics::is_ready(admin) {
            std::thread::sleep(LOOK_PAUSE);
        }
        let ready = began.elapsed().as_secs_f64();
        while relay.metrics()?.sum("standpipe_events_recovered_total") < events {
            anyhow::ensure!(began.elapsed() < self.patience, "the spool was not taken over in time");
            std::thread::sleep(LOOK_PAUSE);
        }
        let adopted = began.elapsed().as_secs_f64();
        let accepts = connecting.join().expect("connecting does not panic").context("nobody accepts")?;
        Ok((relay, Started { accepts, ready, adopted }))
    }
}

/// The seconds until somebody accepts a connection there.
fn first_accepted(listen: SocketAddr, began: Instant, patience: Duration) -> Option<f64> {
    while began.elapsed() < patience {
        if TcpStream::connect(listen).is_ok() {
            return Some(began.elapsed().as_secs_f64());
        }
        std::thread::sleep(LOOK_PAUSE);
    }
    None
}

/// Sends until the spool holds what it is to hold, and ends the relay in good order.
fn fill(options: &Options, place: &Place) -> anyhow::Result<(Sent, u64, Duration)> {
    let began = Instant::now();
    let mut relay = Relay::start(place.command(), options.patience, None)?;
    let load = Load {
        connections: 8,
        streams: 16,
        stream_prefix: "stream-".to_owned(),
        stream: Vec::new(),
        one_stream_per_connection: false,
        rate: Rate::Max,
        events: Some(options.bytes / (EVENT_BYTES as u64 + 1)),
        duration: None,
        size: Sizes { min: EVENT_BYTES, max: EVENT_BYTES },
        seed: SEED,
        write: 65_536,
        threads: 1,
        close_timeout: options.patience,
        stuck_timeout: options.patience,
    };
    let plan = Plan::new(load)?;
    let sent = send(&plan, &Target::Tcp(relay.ready().listen), &Progress::default(), None)?;
    let status = relay.stop(options.patience)?;
    anyhow::ensure!(
        status.is_some_and(|status| status.success()),
        "the relay did not spool everything:\n{}",
        relay.log()
    );
    Ok((sent, bytes_below(&place.spool)?, began.elapsed()))
}

fn settle(relay: &mut Relay, within: Duration) -> anyhow::Result<RelayCounts> {
    let deadline = Instant::now() + within;
    loop {
        let metrics: Metrics = relay.metrics()?;
        let counts = RelayCounts::of(&metrics);
        if counts.held == 0 {
            return Ok(counts);
        }
        anyhow::ensure!(Instant::now() < deadline, "the relay still holds {} events", counts.held);
        std::thread::sleep(SETTLE_PAUSE);
    }
}

/// Every file of every instance.
fn files_below(spool: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for instance in std::fs::read_dir(spool).context("there is no spool")?.flatten() {
        let Ok(entries) = std::fs::read_dir(instance.path()) else { continue };
        files.extend(entries.flatten().map(|entry| entry.path()));
    }
    Ok(files)
}

fn bytes_below(spool: &Path) -> anyhow::Result<u64> {
    Ok(files_below(spool)?.iter().filter_map(|file| file.metadata().ok()).map(|data| data.len()).sum())
}

fn forget_cached(spool: &Path) -> anyhow::Result<()> {
    for path in files_below(spool)? {
        let file =
            std::fs::File::open(&path).with_context(|| format!("{} cannot be read", path.display()))?;
        file.sync_all()
            .and_then(|()| Ok(fadvise(&file, 0, None, Advice::DontNeed)?))
            .context("the cache stays")?;
    }
    Ok(())
}
