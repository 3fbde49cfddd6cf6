//! A relay that is killed and started again in the same place: the same port, the same spool, another process. What
//! one life counted of itself is noted before it ends.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::process::Signal;

use super::behind::Behind;
use super::faultfs::{FaultFs, SmallDisk};
use super::leftovers::Leftovers;
use super::schedule::{Death, Life, Phase, Trouble};
use super::watch::Watch;
use crate::run::metrics::Metrics;
use crate::run::relay::Relay;
use crate::run::{SECRET, shelter};

/// How long a relay may take to start.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks at the metrics of a relay that is about to die.
pub const LOOK_PAUSE: Duration = Duration::from_millis(5);

/// What the lives of a relay have counted.
#[derive(Debug, Default, Clone, Copy)]
pub struct Counted {
    /// Events that may have been duplicated, by the relay's own count.
    pub possible: u64,
    /// Events that came behind it after it was last asked and before it was dead: it may have counted them.
    pub unseen: u64,
    /// Events read back from a spool.
    pub recovered: u64,
    /// Events that it says it has dropped.
    pub dropped: u64,
    /// Deaths from outside, and at named points.
    pub killed: u64,
    /// Deaths at named points.
    pub at_points: u64,
    /// Lives in which the spool was said to fail, and lives in which it worked again after that.
    pub failing: u64,
    /// See `failing`.
    pub healed: u64,
    /// The most bytes that were seen in the spool.
    pub fullest: u64,
    /// The most connections that were seen.
    pub crowd: u64,
}

impl Counted {
    /// The sum.
    pub fn add(&mut self, other: Self) {
        self.possible += other.possible;
        self.unseen += other.unseen;
        self.recovered += other.recovered;
        self.dropped += other.dropped;
        self.killed += other.killed;
        self.at_points += other.at_points;
        self.failing += other.failing;
        self.healed += other.healed;
        self.fullest = self.fullest.max(other.fullest);
        self.crowd = self.crowd.max(other.crowd);
    }

    /// What a relay says of itself.
    pub fn of(metrics: &Metrics) -> Self {
        Self {
            possible: metrics.sum("standpipe_possible_duplicate_events_total"),
            recovered: metrics.sum("standpipe_events_recovered_total"),
            dropped: metrics.sum("standpipe_events_dropped_total"),
            fullest: metrics.sum("standpipe_spool_bytes"),
            crowd: metrics.sum("standpipe_connections"),
            ..Self::default()
        }
    }
}

/// Where a relay keeps what must outlive it.
pub struct Disk {
    /// The spool's folder, or that of the directory destination.
    pub folder: PathBuf,
    /// What is mounted there, if it is to forget.
    pub faultfs: Option<FaultFs>,
    /// What is mounted there, if it is to be full.
    pub _small: Option<SmallDisk>,
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
    /// In front of the disk, so that it is dropped first: nothing is unmounted under a relay that lives.
    relay: Option<Relay>,
    disk: Option<Disk>,
    clock: Option<Clock>,
    /// What had come behind it before its relay was started.
    came: u64,
    /// What those before it have left in its spool.
    leftovers: Leftovers,
    counted: Counted,
    /// Deaths by point and phase.
    deaths: BTreeMap<(String, Phase), u64>,
    /// What must not be, in sentences.
    wrong: Vec<String>,
    /// Whether its disk was told to do wrong.
    is_troubled: bool,
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
            came: 0,
            leftovers: Leftovers::default(),
            counted: Counted::default(),
            deaths: BTreeMap::new(),
            wrong: Vec::new(),
            is_troubled: false,
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

    /// How often it died at a point in a phase.
    pub fn deaths(&self, point: &str, phase: Phase) -> u64 {
        self.deaths.get(&(point.to_owned(), phase)).copied().unwrap_or(0)
    }

    /// A metric of its relay, summed up; nothing where none runs.
    pub fn asked(&self, metric: &str) -> Option<u64> {
        let relay = self.relay.as_ref()?;
        Some(Metrics::scrape(relay.ready().admin).ok()?.sum(metric))
    }

    /// What was wrong with its lives.
    pub fn wrong(&self) -> &[String] {
        &self.wrong
    }

    /// Starts it, to die as it is told if that is at a named point.
    ///
    /// # Errors
    ///
    /// A sentence if it does not start.
    pub fn start(&mut self, death: Option<&Death>, behind: Behind<'_>) -> anyhow::Result<()> {
        if self.relay.is_some() {
            return Ok(());
        }
        self.came = behind.came();
        if let Some(disk) = self.disk.as_ref().filter(|disk| disk.is_spool) {
            self.leftovers = Leftovers::of(&disk.folder)?;
        }
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
    /// A sentence if it cannot be killed, or the disk cannot be told.
    pub fn live_and_die(&mut self, life: &Life, behind: Behind<'_>) -> anyhow::Result<()> {
        if let Some(clock) = &self.clock {
            clock.set(life.jump_seconds)?;
        }
        self.trouble(life.trouble)?;
        let mut watch = Watch::new(life, self.came);
        while let Some(relay) = self.relay.as_mut() {
            if let Some(status) = relay.ended()? {
                watch.has_ended = true;
                // A relay that was told to end may have done that, and have come to its point never.
                watch.at_point &= status.signal() == Some(Signal::KILL.as_raw());
                break;
            }
            if watch.is_over() {
                break;
            }
            if watch.is_to_be_told() {
                relay.tell_to_stop()?;
            }
            if watch.is_half_over() {
                if let Some(clock) = &self.clock {
                    clock.set(-life.jump_seconds)?;
                }
                self.trouble(Trouble::None)?;
            }
            if let Some(relay) = &self.relay {
                watch.look(relay, behind);
            }
            std::thread::sleep(watch.pause());
        }
        watch.has_ended |= self.relay.is_none();
        self.end(life, watch, behind)
    }

    fn end(&mut self, life: &Life, mut watch: Watch, behind: Behind<'_>) -> anyhow::Result<()> {
        if let Some(relay) = self.relay.as_mut().filter(|_| !watch.has_ended) {
            watch.scrape(relay, behind);
            if life.death == Death::Never {
                self.counted.add(Counted { possible: 0, recovered: 0, dropped: 0, ..watch.last });
                return Ok(());
            }
            relay.kill()?;
        }
        watch.note_unseen(behind);
        if watch.has_ended && !watch.at_point && !watch.was_told {
            self.wrong.push(format!("a relay ended by itself; its last lines:\n{}", self.log()));
        }
        // What is read back from a spool is as old as the clock on the wall says.
        if self.clock.is_some() && self.disk.is_none() && watch.latency_seconds > watch.latency_seconds_max {
            let (sum, most) = (watch.latency_seconds, watch.latency_seconds_max);
            self.wrong
                .push(format!("events were {sum} s old in sum, and cannot have been more than {most} s"));
        }
        self.relay = None;
        watch.last.at_points = u64::from(watch.has_ended && watch.at_point);
        watch.last.killed = 1 - watch.last.at_points;
        if let (Death::Point(point, _), 1) = (&life.death, watch.last.at_points) {
            *self.deaths.entry((point.clone(), life.phase)).or_default() += 1;
        }
        self.counted.add(watch.last);
        self.trouble(Trouble::None)?;
        self.forget(life)
    }

    fn trouble(&mut self, trouble: Trouble) -> anyhow::Result<()> {
        let Some(faultfs) = self.disk.as_mut().and_then(|disk| disk.faultfs.as_mut()) else { return Ok(()) };
        if trouble == Trouble::None && !self.is_troubled {
            return Ok(());
        }
        self.is_troubled = trouble != Trouble::None;
        faultfs.tell(trouble.line().unwrap_or("clear")).map(drop)
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

    /// Waits until what those before it left on disk is taken over and delivered, which a relay looks for every few
    /// seconds, and it holds nothing. In this order: what it takes over is counted before the folder is gone.
    ///
    /// # Errors
    ///
    /// A sentence if it has ended, or something is left after `within`.
    pub fn settle(&mut self, within: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + within;
        let spool = self.disk.as_ref().filter(|disk| disk.is_spool).map(|disk| disk.folder.clone());
        let relay = self.relay.as_mut().context("no relay runs here")?;
        loop {
            let folders = spool.as_ref().map_or(0, |spool| self.leftovers.left(spool));
            let metrics = relay.metrics()?;
            let held = metrics.sum("standpipe_events_held");
            if held == 0 && folders == 0 {
                self.counted.add(Counted::of(&metrics));
                return Ok(());
            }
            anyhow::ensure!(
                Instant::now() < deadline,
                "the relay still holds {held} events, and {folders} folders of dead ones are left in its spool"
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
