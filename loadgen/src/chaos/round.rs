//! One round: a mode and a meaning of `!synced`, a number of kills, and the judgement at the end.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;

use super::behind::Behind;
use super::client::{Client, Told};
use super::faultfs::{FaultFs, SmallDisk};
use super::loris::Loris;
use super::schedule::{Life, Menu, Phase, Way, Weather, lives, sweep};
use super::sender::Sender;
use super::station::{Clock, Counted, Disk, Station};
use super::wire::Wire;
use super::world::World;
use super::{Destination, Mode, Options, SyncAt};
use crate::event::Builder;
use crate::run::{SECRET, directory, relay_path};
use crate::sink::ledger::{Check, Ledger};
use crate::sink::{Settings, Sink};

/// See the module.
pub struct Round<'a> {
    /// The options of all rounds.
    pub options: &'a Options,
    /// What the relay does with its spool.
    pub mode: Mode,
    /// What `!synced` means.
    pub sync_at: SyncAt,
    /// Everything is drawn from it.
    pub seed: u64,
}

/// What came of a round.
pub struct Ended {
    /// What the relay did with its spool.
    pub mode: Mode,
    /// What `!synced` meant.
    pub sync_at: SyncAt,
    /// The seed.
    pub seed: u64,
    /// Events sent, each counted once.
    pub sent: u64,
    /// Events answered `!synced`.
    pub synced: u64,
    /// Events answered `!lost`.
    pub lost: u64,
    /// Events sent again.
    pub resent: u64,
    /// Events delivered again.
    pub duplicates: u64,
    /// How many of those there may be.
    pub bound: u64,
    /// What the relays counted.
    pub counted: Counted,
    /// What must not be, in sentences.
    pub wrong: Vec<String>,
}

/// The relay's own arguments: little memory, so that it fills; short waits, so that much happens.
const ARGUMENTS: &str = "--memory 64MiB --linger 20ms --shards 2 --retry-base 10ms --retry-max 200ms \
                         --call-timeout 2s --drain-deadline 3s";

impl Round<'_> {
    /// Runs it.
    ///
    /// # Errors
    ///
    /// A sentence if something could not be started.
    pub fn run(&self) -> anyhow::Result<Ended> {
        let scratch =
            tempfile::Builder::new().prefix("chaos-").tempdir().context("no temporary directory")?;
        let sink = Arc::new(self.sink()?);
        let wire = self.options.wire_troubles.then(|| Wire::start(sink.address())).transpose()?;
        let endpoint = wire.as_ref().map_or(sink.address(), Wire::address);
        let mut stations = self.stations(scratch.path(), endpoint)?;
        let lives = self.lives(stations.len());
        let longest: std::time::Duration = lives.iter().map(|life| life.lasts + life.drains).sum();
        // Starting again takes longer than living, on a machine with much else to do.
        let deadline = Instant::now() + longest * 2 + self.options.settle * 2;
        let streams = (0..self.options.streams).map(|number| format!("chaos-{number}")).collect();
        // Files can only be read back when nobody writes to them.
        let is_checked =
            self.sync_at == SyncAt::Delivered && self.options.destination != Destination::Directory;
        let checked = is_checked.then(|| Arc::clone(&sink));
        let world = World::new(streams, stations[0].address(), deadline, checked);
        let builder = Builder::new(self.seed, self.options.size)?;
        let _loris = Loris::start(self.options.slow_loris, self.options.flood, world.address());
        let (told, wrong) = std::thread::scope(|scope| {
            let clients: Vec<_> = (0..self.options.clients)
                .map(|number| Client::new(&world, number, &builder, self.seed))
                .map(|client| scope.spawn(|| client.run()))
                .collect();
            let senders: Vec<_> = self
                .senders(&world, &builder)?
                .into_iter()
                .map(|sender| scope.spawn(|| sender.run()))
                .collect();
            let killed = self.kill(&mut stations, &lives, &world, &sink, wire.as_ref());
            world.end();
            let all = clients.into_iter().chain(senders);
            let told: Vec<Told> = all.map(|client| client.join().expect("a client does not panic")).collect();
            killed.map(|()| (told, self.settle(&mut stations)))
        })?;
        match self.options.destination {
            Destination::Directory => {
                let ledger = directory::read(&data_folder(scratch.path()), self.seed)?;
                Ok(self.judge(&world, &ledger, &stations, &told, wrong))
            }
            _ => Ok(sink.with_ledger(|ledger| self.judge(&world, ledger, &stations, &told, wrong))),
        }
    }

    fn lives(&self, chain: usize) -> Vec<Life> {
        let options = self.options;
        match options.sweep {
            true => sweep(self.seed, &options.points, self.mode == Mode::Overflow),
            false => lives(
                self.seed,
                Menu {
                    kills: options.kills,
                    points: &options.points,
                    chain,
                    disk_troubles: options.disk_troubles,
                    wire_troubles: options.wire_troubles,
                    fills_disk: options.small_disk.is_some(),
                    is_away: options.away,
                    crowd: self.crowd(),
                },
            ),
        }
    }

    /// Half of the slow connections: others come between them, and go.
    fn crowd(&self) -> u64 {
        self.options.slow_loris as u64 / 2
    }

    /// Their numbers follow those of the clients.
    fn senders<'a>(&self, world: &'a World, builder: &'a Builder) -> anyhow::Result<Vec<Sender<'a>>> {
        let program = relay_path(self.options.relay.as_deref())?;
        let numbers = self.options.clients..self.options.clients + self.options.senders;
        numbers.map(|number| Sender::start(&program, world, number, builder)).collect()
    }

    fn sink(&self) -> anyhow::Result<Sink> {
        let settings = Settings {
            check: Check::Full,
            verify_signature: Some(false),
            secret: Some(SECRET.to_owned()),
            map: Vec::new(),
            timeline: false,
            faults: Weather::Calm.faults(),
        };
        Sink::start(([127, 0, 0, 1], 0).into(), self.seed, settings, None)
    }

    /// The relays, the one that clients talk to first; the last delivers to the sink.
    fn stations(&self, scratch: &Path, endpoint: SocketAddr) -> anyhow::Result<Vec<Station>> {
        let program = relay_path(self.options.relay.as_deref())?;
        let mut stations: Vec<Station> = Vec::new();
        for number in 0..usize::from(self.options.chain) {
            let destination = match stations.first() {
                None => self.destination(scratch, endpoint),
                Some(next) => vec![format!("relay:{}", next.address())],
            };
            let mut arguments = vec!["--destination".to_owned()];
            arguments.extend(destination);
            arguments.extend(ARGUMENTS.split_whitespace().map(str::to_owned));
            let delivers_here = number == 0 && self.options.destination == Destination::Directory;
            let disk = match delivers_here {
                true => Some(self.mount(&data_folder(scratch))?),
                false => self.spool(&scratch.join(format!("spool-{number}")), &mut arguments)?,
            };
            arguments.extend(self.options.relay_arguments.iter().cloned());
            let clock = self.options.faketime.as_ref().map(|library| Clock {
                library: library.clone(),
                file: scratch.join(format!("clock-{number}")),
            });
            stations.insert(0, Station::new(&program, arguments, scratch, disk, clock)?);
        }
        Ok(stations)
    }

    /// What follows `--destination` where events leave the last relay.
    fn destination(&self, scratch: &Path, endpoint: SocketAddr) -> Vec<String> {
        match self.options.destination {
            Destination::Firehose => {
                ["firehose", "--endpoint-url", &format!("http://{endpoint}")].map(str::to_owned).into()
            }
            Destination::Directory => vec![format!("directory:{}", data_folder(scratch).display())],
            Destination::Null => vec!["null".to_owned()],
        }
    }

    fn mount(&self, folder: &Path) -> anyhow::Result<Disk> {
        std::fs::create_dir(folder).with_context(|| format!("{} cannot be made", folder.display()))?;
        let mut faultfs =
            self.options.faultfs.as_ref().map(|path| FaultFs::mount(path, folder)).transpose()?;
        if let Some(faultfs) = &mut faultfs {
            self.options.faultfs_line.iter().try_for_each(|line| faultfs.tell(line).map(drop))?;
        }
        let small = self.options.small_disk.map(|bytes| SmallDisk::mount(bytes, folder)).transpose()?;
        Ok(Disk {
            folder: folder.to_owned(),
            faultfs,
            _small: small,
            is_deleted: self.options.delete_spool,
            is_spool: self.options.destination != Destination::Directory,
        })
    }

    fn spool(&self, folder: &Path, arguments: &mut Vec<String>) -> anyhow::Result<Option<Disk>> {
        let mode = match self.mode {
            Mode::Off | Mode::All => return Ok(None),
            Mode::Overflow => "overflow",
            Mode::Always => "always",
        };
        arguments.extend(["--spool".to_owned(), folder.display().to_string()]);
        arguments.extend(["--spool-mode".to_owned(), mode.to_owned()]);
        arguments.extend(["--spool-free-floor".to_owned(), "0".to_owned()]);
        let sync_at = if self.sync_at == SyncAt::Stored { "stored" } else { "delivered" };
        arguments.extend(["--sync-at".to_owned(), sync_at.to_owned()]);
        self.mount(folder).map(Some)
    }

    fn kill(
        &self,
        stations: &mut [Station],
        lives: &[Life],
        world: &World,
        sink: &Sink,
        wire: Option<&Wire>,
    ) -> anyhow::Result<()> {
        let weather = |weather: Weather| sink.set_faults(weather.faults()).map_err(anyhow::Error::msg);
        let first = lives.first();
        let sink = (self.options.destination == Destination::Firehose).then_some(sink);
        // From the last to the first, since each stands behind the one before.
        for number in (0..stations.len()).rev() {
            let (station, behind) = with_behind(stations, number, sink);
            station.start(first.filter(|life| life.victim == number).map(|life| &life.death), behind)?;
        }
        for (number, life) in lives.iter().enumerate() {
            world.set_phase(life.phase);
            weather(life.weather)?;
            if let Some(wire) = wire {
                wire.set(life.way);
            }
            let (station, behind) = with_behind(stations, life.victim, sink);
            station.live_and_die(life, behind)?;
            // A named point is for the next life of the same relay; where another dies next, it is killed as it is.
            let next = lives.get(number + 1).filter(|next| next.victim == life.victim);
            station.start(next.map(|next| &next.death), behind)?;
        }
        // A point that was met while starting leaves nobody there.
        weather(Weather::Calm)?;
        if let Some(wire) = wire {
            wire.set(Way::Good);
        }
        world.set_phase(Phase::Burst);
        Ok(())
    }

    /// Waits until nothing is held anywhere, and ends the relays; what was wrong with that.
    fn settle(&self, stations: &mut [Station]) -> Vec<String> {
        let mut wrong = Vec::new();
        for station in stations {
            match station.settle(self.options.settle) {
                Ok(()) => match station.stop() {
                    Ok(said) => wrong.extend(said),
                    Err(error) => wrong.push(format!("{error:#}")),
                },
                Err(error) => wrong.push(format!("{error:#}; its last lines:\n{}", station.log())),
            }
        }
        wrong
    }

    /// What was to happen and did not: a test in which it never does cannot fail.
    fn unmet(&self, station: &Station, counted: Counted) -> Vec<String> {
        let mut unmet = Vec::new();
        if self.options.sweep {
            let pairs = self.options.points.iter().flat_map(|point| Phase::ALL.map(|phase| (point, phase)));
            let missed = pairs.filter(|(point, phase)| station.deaths(point, *phase) == 0);
            unmet.extend(missed.map(|(point, phase)| format!("{point} was never reached in {phase:?}")));
        }
        if self.options.disk_troubles && (counted.failing == 0 || counted.healed == 0) {
            let Counted { failing, healed, .. } = counted;
            unmet.push(format!(
                "the spool was said to fail in {failing} lives, and to work again in {healed}"
            ));
        }
        if counted.crowd < self.crowd() {
            let (wanted, came) = (self.options.slow_loris, counted.crowd);
            unmet.push(format!("{wanted} slow connections were to come, and no more than {came} were open"));
        }
        if let Some(room) = self.options.small_disk.filter(|room| counted.fullest < room / 2) {
            unmet.push(format!(
                "the disk has room for {room} bytes, and no more than {} were in use",
                counted.fullest
            ));
        }
        unmet
    }

    fn judge(
        &self,
        world: &World,
        ledger: &Ledger,
        stations: &[Station],
        told: &[Told],
        mut wrong: Vec<String>,
    ) -> Ended {
        let totals = ledger.totals();
        let sum = |of: fn(&Told) -> u64| told.iter().map(of).sum::<u64>();
        let sent: u64 = told.iter().flat_map(|told| &told.sent).sum();
        let (synced, lost, resent) =
            (sum(|told| told.synced), sum(|told| told.lost), sum(|told| told.resent));
        let of = |(number, name): (usize, &String)| {
            let sent = told.iter().enumerate().map(|(client, told)| (client as u32, told.sent[number]));
            ledger.accepted_of(name, sent)
        };
        let known: u64 = world.streams.iter().enumerate().map(of).sum();
        let mut counted = Counted::default();
        stations.iter().for_each(|station| counted.add(station.counted()));
        let counts = &totals.totals;
        let bound = resent + counted.possible + counted.unseen;
        told.iter().for_each(|told| wrong.extend(told.wrong.iter().cloned()));
        stations.iter().for_each(|station| wrong.extend_from_slice(station.wrong()));
        wrong.extend(self.unmet(&stations[0], counted));
        let mut must = |holds: bool, otherwise: String| {
            if !holds {
                wrong.push(otherwise);
            }
        };
        must(
            sent == synced + lost,
            format!("{sent} events were sent, but only {synced} synced and {lost} lost in time"),
        );
        must(
            sent - known <= lost,
            format!("{} events are missing, but only {lost} were said to be lost", sent - known),
        );
        let unsent = counts.events_accepted - known;
        must(unsent == 0, format!("{unsent} events were delivered that nobody sent"));
        must(counts.corrupted_events == 0, format!("{} events are damaged", counts.corrupted_events));
        must(counts.foreign_events == 0, format!("{} lines are no events", counts.foreign_events));
        must(counts.unterminated_records == 0, format!("{} records do not end", counts.unterminated_records));
        must(
            counts.duplicate_events <= bound,
            format!("{} duplicates, but at most {bound} are explained", counts.duplicate_events),
        );
        let violations = totals.violations.total;
        must(
            violations == 0,
            format!("{violations} calls broke the API: {:?}", totals.violations.samples.first()),
        );
        let duplicates = counts.duplicate_events;
        Ended {
            mode: self.mode,
            sync_at: self.sync_at,
            seed: self.seed,
            sent,
            synced,
            lost,
            resent,
            duplicates,
            bound,
            counted,
            wrong,
        }
    }
}

/// One relay of a chain, and what stands behind it.
fn with_behind<'a>(
    stations: &'a mut [Station],
    number: usize,
    sink: Option<&'a Sink>,
) -> (&'a mut Station, Behind<'a>) {
    let (station, next) = stations[number..].split_first_mut().expect("there is a relay of each number");
    (station, Behind::new(next, sink))
}

fn data_folder(scratch: &Path) -> std::path::PathBuf {
    scratch.join("data")
}
