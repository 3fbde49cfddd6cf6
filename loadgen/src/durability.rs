//! What it costs to have everything on disk first: the same load flat out into a relay without a spool and into one
//! in `always`, beside what the disk itself can do with that pattern: groups written one behind the other, each
//! synced before the next.
//!
//! The aim is half of the events a second, or what the disk can do, whichever is lower. All three figures are shown.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde::Serialize;

use crate::profile;
use crate::report::{grouped, table};
use crate::run::{Options as RunOptions, run_with};
use crate::units::{Delay, parse_duration, parse_number};

/// The options of `durability`.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// The relay's binary [default: `standpipe` beside this one].
    #[arg(long, value_name = "PATH")]
    pub relay: Option<PathBuf>,
    /// Where the spool and the disk's own test lie [default: the temporary directory].
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// How long each of the two runs is, of which the first quarter is not measured.
    #[arg(long, default_value = "12s", value_name = "DURATION", value_parser = parse_duration)]
    pub duration: Duration,
    /// Bytes of one event.
    #[arg(long, default_value_t = 250, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(57..=1_023_999))]
    pub size: u64,
    /// The relay's memory.
    #[arg(long, default_value = "512MiB", value_name = "SIZE")]
    pub memory: String,
    /// Time between a call and its answer: what is delivered sooner than it is written is not written at all, and
    /// nothing is compared then.
    #[arg(long, default_value = "20ms", value_name = "MIN-MAX")]
    pub latency: Delay,
    /// How long the disk itself is measured.
    #[arg(long, default_value = "5s", value_name = "DURATION", value_parser = parse_duration)]
    pub disk_for: Duration,
    /// Bytes of one group of the disk's own test.
    #[arg(long, default_value = "8MiB", value_name = "BYTES", value_parser = parse_number)]
    pub group: u64,
    /// Fails where the aim is missed, which on a busy machine means nothing.
    #[arg(long)]
    pub judge_times: bool,
    /// Writes the figures as JSON; `-` is standard output.
    #[arg(long, value_name = "FILE")]
    pub json: Option<String>,
    /// More arguments for the relay.
    #[arg(last = true, value_name = "RELAY ARGUMENTS")]
    pub relay_arguments: Vec<String>,
}

/// A new file after so many bytes, as the spool has segments.
const SEGMENT_BYTES: u64 = 64 << 20;
/// How often it is looked how much the relay has written.
const LOOK_PAUSE: Duration = Duration::from_millis(50);

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub struct Figures {
    /// Events a second without a spool.
    pub off_per_second: f64,
    /// The same in `always`.
    pub always_per_second: f64,
    /// Bytes that the relay gave to the disk for each payload byte: below 1 where what was delivered first was not
    /// written at all.
    pub written_per_payload: f64,
    /// Bytes a second of groups, each synced before the next.
    pub disk_bytes_per_second: f64,
    /// How many events a second those are.
    pub disk_per_second: f64,
}

impl Figures {
    /// What `always` is to reach, in events a second.
    pub fn aim(&self) -> f64 {
        (self.off_per_second / 2.0).min(self.disk_per_second)
    }

    fn text(&self) -> String {
        let whole = |number: f64| grouped(number as u64);
        let rows = [
            ("events/s without a spool", whole(self.off_per_second)),
            ("events/s in `always`", whole(self.always_per_second)),
            ("  over that without", format!("{:.2}", self.always_per_second / self.off_per_second)),
            ("  bytes written / payload", format!("{:.2}", self.written_per_payload)),
            ("the disk, MB/s in synced groups", format!("{:.0}", self.disk_bytes_per_second / 1e6)),
            ("the disk's limit, events/s", whole(self.disk_per_second)),
            (
                "`always` over the lower of half and the disk",
                format!("{:.2}", self.always_per_second / self.aim()),
            ),
        ];
        table(&rows).to_string()
    }
}

/// Runs it, prints what was measured, and says whether all is well.
///
/// # Errors
///
/// A sentence if something could not be started, or the disk cannot be written.
pub fn run_durability(options: &Options) -> anyhow::Result<bool> {
    let scratch = match &options.dir {
        Some(dir) => tempfile::tempdir_in(dir),
        None => tempfile::tempdir(),
    };
    let scratch = scratch.context("no directory to write in")?;
    let disk = disk_bytes_per_second(scratch.path(), options.group, options.disk_for)?;
    let off = options.measure(None)?;
    let always = options.measure(Some(&scratch.path().join("spool")))?;
    let figures = Figures {
        off_per_second: off.per_second,
        always_per_second: always.per_second,
        written_per_payload: always.written as f64 / always.payload as f64,
        disk_bytes_per_second: disk,
        disk_per_second: disk / (options.size + 1) as f64,
    };
    eprintln!("{}", figures.text());
    if let Some(path) = &options.json {
        crate::write_json(path, &figures)?;
    }
    let is_reached = figures.always_per_second >= figures.aim();
    if !is_reached {
        eprintln!("durability: missed: `always` reached less than half of `off`, and less than the disk");
    }
    Ok(off.is_whole && always.is_whole && (is_reached || !options.judge_times))
}

/// What one run reached.
struct Reached {
    per_second: f64,
    payload: u64,
    written: u64,
    is_whole: bool,
}

impl Options {
    fn measure(&self, spool: Option<&Path>) -> anyhow::Result<Reached> {
        let seconds = self.duration.as_secs_f64();
        let (size, warm_up) = (self.size, seconds / 4.0);
        let flags =
            format!("--check light --size {size} --rate max --duration {seconds} --warm-up {warm_up}");
        let flags = format!("{flags} --latency {}", self.latency);
        let relay = match spool {
            None => String::new(),
            Some(spool) => format!("--spool {} --spool-mode always --spool-free-floor 0", spool.display()),
        };
        let words = format!("{flags} -- --memory {} {relay}", self.memory);
        let words = words.split_whitespace().chain(self.relay_arguments.iter().map(String::as_str));
        let run = RunOptions { relay: self.relay.clone(), ..profile::options_of(words)? };
        let (tell, told) = mpsc::channel();
        let report = run_with(run, |relay| {
            let process = relay.id();
            std::thread::spawn(move || tell.send(written_until_it_ends(process)));
            Ok(())
        })?;
        report.checks.iter().filter(|check| !check.ok).for_each(|check| {
            eprintln!("durability: WRONG: {}: {}", check.name, check.detail);
        });
        let window = report.window.as_ref().context("the run was not seen")?;
        Ok(Reached {
            per_second: window.events() as f64 / window.seconds,
            payload: report.sent.payload_bytes,
            written: told.recv().context("what the relay wrote was not seen")?,
            is_whole: report.ok,
        })
    }
}

/// Bytes that a process has given to disks, by the last look before it ended; see proc_pid_io(5).
fn written_until_it_ends(process: u32) -> u64 {
    let mut written = 0;
    while let Ok(text) = std::fs::read_to_string(format!("/proc/{process}/io")) {
        let value = text.lines().find_map(|line| line.strip_prefix("write_bytes: ")?.parse().ok());
        // A process that is gone and not yet waited for has an empty file.
        let Some(value) = value else { break };
        written = value;
        std::thread::sleep(LOOK_PAUSE);
    }
    written
}

/// What the disk does with groups of so many bytes, each written behind the last and synced before the next.
fn disk_bytes_per_second(folder: &Path, group: u64, within: Duration) -> anyhow::Result<f64> {
    let bytes: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(group as usize).collect();
    let (began, mut written, mut files) = (Instant::now(), 0, 0);
    while began.elapsed() < within {
        let path = folder.join(format!("disk-{files}"));
        let file = File::create_new(&path).with_context(|| format!("{} cannot be made", path.display()))?;
        let mut offset = 0;
        while offset < SEGMENT_BYTES && began.elapsed() < within {
            file.write_all_at(&bytes, offset).and_then(|()| file.sync_data()).context("the disk fails")?;
            offset += group;
        }
        written += offset;
        files += 1;
        std::fs::remove_file(&path).context("the disk fails")?;
    }
    Ok(written as f64 / began.elapsed().as_secs_f64())
}
