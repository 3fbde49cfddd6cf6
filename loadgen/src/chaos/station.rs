//! A relay that is killed and started again in the same place: the same port, the same spool, another process. What
//! one life counted of itself is noted before it ends.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context;

use super::faultfs::FaultFs;
use super::schedule::{Death, Life, Phase};
use crate::run::metrics::Metrics;
use crate::run::relay::Relay;
use crate::run::{SECRET, shelter};

/// How long a relay may take to start.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks at the metrics of a relay that is about to die.
const LOOK_PAUSE: Duration = Duration::from_millis(5);
/// How much longer than its time a relay lives that was to come to a named point and does not.
const POINT_PATIENCE: Duration = Duration::from_millis(300);

/// What the lives of a relay have counted.
#[derive(Debug, Default, Clone, Copy)]
pub struct Counted {
    /// Events that may have been duplicated, by the relay's own count.
    pub possible: u64,
    /// Events in calls that were not settled when it died.
    pub in_flight: u64,
    /// Events read back from a spool.
    pub recovered: u64,
    /// Events that it says it has dropped.
    pub dropped: u64,
    /// Deaths from outside, and at named points.
    pub killed: u64,
    /// Deaths at named points.
    pub at_points: u64,
}

impl Counted {
    /// The sum.
    pub fn add(&mut self, other: Self) {
        self.possible += other.possible;
        self.in_flight += other.in_flight;
        self.recovered += other.recovered;
        self.dropped += other.dropped;
        self.killed += other.killed;
        self.at_points += other.at_points;
    }

    fn of(metrics: &Metrics) -> Self {
        let held = metrics.sum_by("standpipe_events_held", "place");
        let place = |name: &str| held.get(name).copied().unwrap_or(0);
        Self {
            possible: metrics.sum("standpipe_possible_duplicate_events_total"),
            in_flight: place("in_flight") + place("retry"),
            recovered: metrics.sum("standpipe_events_recovered_total"),
            dropped: metrics.sum("standpipe_events_dropped_total"),
            killed: 0,
            at_points: 0,
        }
    }
}

/// Where a relay keeps what must outlive it.
pub struct Disk {
    /// The spool's folder, or that of the directory destination.
    pub folder: PathBuf,
    /// What is mounted there, if it is to forget.
    pub faultfs: Option<FaultFs>,
    /// Whether the folder is emptied at each death.
    pub is_deleted: bool,
    /// Whether it is a spool: a folder for each relay, in which some of what was not synced may survive a cut.
    pub is_spool: bool,
}

/// A clock on the wall that jumps; the one that only counts does not. See faketime(1).
pub struct Clock {
    /// libfaketime.
    pub library: PathBuf,
    /// Where it reads how far off the clock is.
    pub file: PathBuf,
}

impl Clock {
    fn set(&self, seconds: i64) -> anyhow::Result<()> {
        std::fs::write(&self.file, format!("{seconds:+}")).context("the clock cannot be set")
    }

    fn give_to(&self, command: &mut Command) {
        command.env("LD_PRELOAD", &self.library).env("FAKETIME_TIMESTAMP_FILE", &self.file);
        command.env("FAKETIME_NO_CACHE", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    }
}

/// See the module.
pub struct Station {
    program: PathBuf,
    arguments: Vec<String>,
    scratch: PathBuf,
    listen: SocketAddr,
    disk: Option<Disk>,
    clock: Option<Clock>,
    relay: Option<Relay>,
    counted: Counted,
}

impl Station {
    /// A place for a relay, on a port of its own; nothing runs there yet.
    ///
    /// # Errors
    ///
    /// A sentence if no port is free.
    pub fn new(
        program: &Path,
        arguments: Vec<String>,
        scratch: &Path,
        disk: Option<Disk>,
        clock: Option<Clock>,
    ) -> anyhow::Result<Self> {
        let free = TcpListener::bind("127.0.0.1:0").context("no port is free")?;
        let listen = free.local_addr().context("the port has no address")?;
        if let Some(clock) = &clock {
            clock.set(0)?;
        }
        Ok(Self {
            program: program.to_owned(),
            arguments,
            scratch: scratch.to_owned(),
            listen,
            disk,
            clock,
            relay: None,
            counted: Counted::default(),
        })
    }

    /// Where clients connect, in all lives.
    pub fn address(&self) -> SocketAddr {
        self.listen
    }

    /// What its lives have counted.
    pub fn counted(&self) -> Counted {
        self.counted
    }

    /// Starts it, to die as it is told if that is at a named point.
    ///
    /// # Errors
    ///
    /// A sentence if it does not start.
    pub fn start(&mut self, death: Option<&Death>) -> anyhow::Result<()> {
        let mut command = Command::new(&self.program);
        command.args(["--listen", &self.listen.to_string(), "--admin", "127.0.0.1:0"]);
        command.args(&self.arguments).current_dir(&self.scratch);
        shelter(&mut command, SECRET);
        if let Some(clock) = &self.clock {
            clock.give_to(&mut command);
        }
        if let Some(Death::Point(name, times)) = death {
            command.env("FAILPOINT", format!("{name}:{times}"));
        }
        match Relay::start(command, START_PATIENCE, None) {
            Ok(relay) => self.relay = Some(relay),
            // A point on the way to readiness is as good a place to die as any.
            Err(_) if matches!(death, Some(Death::Point(..))) => self.relay = None,
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Lets it live, kills it as it is to die, and lets its disk forget.
    ///
    /// # Errors
    ///
    /// A sentence if it cannot be killed, or the disk cannot be cut.
    pub fn live_and_die(&mut self, life: &Life) -> anyhow::Result<()> {
        let began = Instant::now();
        if let Some(clock) = &self.clock {
            clock.set(life.jump_seconds)?;
        }
        let mut last = Counted::default();
        let at_point = matches!(life.death, Death::Point(..));
        let mut lasts = life.lasts + if at_point { POINT_PATIENCE } else { Duration::ZERO };
        let mut told = life.phase != Phase::Drain;
        let mut has_ended = self.relay.is_none();
        while let Some(relay) = self.relay.as_mut() {
            if relay.ended()?.is_some() {
                has_ended = true;
                break;
            }
            if began.elapsed() >= lasts && told {
                break;
            }
            if began.elapsed() >= life.lasts && !told {
                told = true;
                lasts = lasts.max(began.elapsed()) + life.drains;
                relay.tell_to_stop()?;
            }
            let left = lasts.saturating_sub(began.elapsed());
            // Only what is seen last counts, and a look costs the relay time.
            if at_point || left <= LOOK_PAUSE {
                last = Metrics::scrape(relay.ready().admin).map_or(last, |metrics| Counted::of(&metrics));
            }
            std::thread::sleep(left.min(LOOK_PAUSE));
        }
        if let Some(relay) = self.relay.as_mut().filter(|_| !has_ended) {
            last = Metrics::scrape(relay.ready().admin).map_or(last, |metrics| Counted::of(&metrics));
            relay.kill()?;
        }
        self.relay = None;
        last.at_points = u64::from(has_ended && at_point);
        last.killed = 1 - last.at_points;
        self.counted.add(last);
        self.forget(life)
    }

    fn forget(&mut self, life: &Life) -> anyhow::Result<()> {
        let Some(disk) = &mut self.disk else { return Ok(()) };
        if let Some(faultfs) = &mut disk.faultfs {
            // Half of a page of a file that people read is no event of theirs.
            let seed = life.tear.filter(|_| disk.is_spool);
            faultfs.tell(&seed.map_or("cut".to_owned(), |seed| format!("cut {seed}")))?;
        }
        if disk.is_deleted {
            empty(&disk.folder)?;
        }
        Ok(())
    }

    /// Waits until the relay holds nothing, and has taken over what those before it left on disk: it looks for that
    /// every few seconds.
    ///
    /// # Errors
    ///
    /// A sentence if it has ended, or holds something still after `within`.
    pub fn settle(&mut self, within: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + within;
        let relay = self.relay.as_mut().context("no relay runs here")?;
        loop {
            let metrics = relay.metrics()?;
            let held = metrics.sum("standpipe_events_held");
            let folders = self.disk.as_ref().filter(|disk| disk.is_spool).map_or(Ok(0), spool_folders)?;
            if held == 0 && folders <= 1 {
                self.counted.add(Counted { in_flight: 0, ..Counted::of(&metrics) });
                return Ok(());
            }
            anyhow::ensure!(
                Instant::now() < deadline,
                "the relay still holds {held} events, and {folders} folders of its spool are left"
            );
            std::thread::sleep(LOOK_PAUSE);
        }
    }

    /// Ends it in good order; the sentence says what was wrong with that.
    ///
    /// # Errors
    ///
    /// A sentence if it cannot be told to end.
    pub fn stop(&mut self) -> anyhow::Result<Option<String>> {
        let Some(mut relay) = self.relay.take() else { return Ok(None) };
        let status = relay.stop(START_PATIENCE)?;
        let ended = status.map_or("had to be killed".to_owned(), |status| format!("ended with {status}"));
        Ok((!status.is_some_and(|status| status.success())).then(|| format!("a relay {ended}")))
    }

    /// Its last lines of log.
    pub fn log(&self) -> String {
        self.relay.as_ref().map_or_else(String::new, Relay::log)
    }
}

/// How many relays have a folder in a spool; what was damaged stays put aside in one of its own.
fn spool_folders(disk: &Disk) -> anyhow::Result<usize> {
    let entries = std::fs::read_dir(&disk.folder)
        .with_context(|| format!("{} cannot be read", disk.folder.display()))?;
    Ok(entries.flatten().filter(|entry| entry.file_name() != "quarantine").count())
}

/// Removes everything in a folder, but not the folder.
fn empty(folder: &Path) -> anyhow::Result<()> {
    let context = || format!("{} cannot be emptied", folder.display());
    for entry in std::fs::read_dir(folder).with_context(context)? {
        let entry = entry.with_context(context)?;
        let removed = match entry.file_type().with_context(context)?.is_dir() {
            true => std::fs::remove_dir_all(entry.path()),
            false => std::fs::remove_file(entry.path()),
        };
        removed.with_context(context)?;
    }
    Ok(())
}
