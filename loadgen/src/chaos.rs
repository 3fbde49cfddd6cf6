//! Chaos: real relays are killed at random moments and at named points, again and again, under load and while the
//! sink misbehaves; then every event is accounted for by the sink's own books and by what clients were told.
//!
//! What must hold: every event that was answered `!synced` is delivered, and with `delivered` it was so at that
//! very moment; nothing is delivered that was not sent; no payload has changed; and there are no more duplicates
//! than clients sent again, relays counted as possible, and came to the sink after a relay was last asked and before it
//! was dead.
//!
//! A kill alone proves nothing about fsync, since the page cache outlives a process: with `--faultfs` the disk
//! forgets at each kill what was not synced.

mod behind;
mod client;
mod faultfs;
mod leftovers;
mod loris;
mod round;
mod schedule;
mod sender;
mod station;
mod watch;
mod wire;
mod world;

use std::path::PathBuf;
use std::time::Duration;

use comfy_table::Table;
use comfy_table::presets::UTF8_BORDERS_ONLY;

use crate::report::grouped;
use crate::units::{Sizes, parse_duration, parse_number};
use round::{Ended, Round};

/// What a relay does with its spool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// There is none.
    Off,
    /// What memory has no room for goes there.
    Overflow,
    /// Everything goes there.
    Always,
    /// All three, one after the other.
    All,
}

/// What `!synced` means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum SyncAt {
    /// Accepted by the destination.
    Delivered,
    /// Accepted, or synced to the spool.
    Stored,
    /// Both that the mode allows, one after the other.
    All,
}

/// Where the last relay delivers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Destination {
    /// A sink in this process.
    Firehose,
    /// A folder, read back at the end; with `--faultfs` it forgets at each kill what was not synced.
    Directory,
    /// Nowhere: whatever is answered `!synced` is a lie, which must be found out. A test of this test.
    Null,
}

/// What the relay's predecessors promised, or could not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Claim {
    /// FirehoseSender: "no data loss caused by connection problems".
    ConnectionProblems,
    /// kinesis-adapter: "do not terminate an instance with records waiting". Here it may be done: instances are killed
    /// and their disks go with them, while clients and `standpipe send` hold what is not synced.
    InstanceTerminated,
}

/// The options of `chaos`.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// The relay's binary [default: `standpipe` beside this one].
    #[arg(long, value_name = "PATH")]
    pub relay: Option<PathBuf>,
    /// Kills in each round.
    #[arg(long, default_value_t = 10, value_name = "N")]
    pub kills: usize,
    /// What the relay does with its spool; a round for each.
    #[arg(long, default_value = "all")]
    pub mode: Mode,
    /// What `!synced` means; a round for each.
    #[arg(long, default_value = "all")]
    pub sync_at: SyncAt,
    /// Empties the spool at each kill: rounds with `delivered` only, since `stored` cannot outlive that.
    #[arg(long)]
    pub delete_spool: bool,
    /// The binary of the file system that forgets: the spool lies there, or what is delivered to `directory`, and it
    /// is cut at each kill.
    #[arg(long, value_name = "PATH")]
    pub faultfs: Option<PathBuf>,
    /// What the file system is told when it is mounted, such as `delay fsync 50ms`; may be repeated.
    #[arg(long, value_name = "LINE", requires = "faultfs")]
    pub faultfs_line: Vec<String>,
    /// Mounts a file system in memory of this size for the spool, which it fills: the disk is really full.
    #[arg(long, value_name = "BYTES", conflicts_with = "faultfs", value_parser = parse_number)]
    pub small_disk: Option<u64>,
    /// In each life the disk fails in another way, and works again at half-time: needs --faultfs.
    #[arg(long, requires = "faultfs")]
    pub disk_troubles: bool,
    /// The sink is away until the last kill: whatever is synced before is on a disk, and nowhere else.
    #[arg(long)]
    pub away: bool,
    /// The connections to the sink are cut, refused, silent or half-open for seconds, in turn; nobody is killed.
    #[arg(long)]
    pub wire_troubles: bool,
    /// Instead of what is drawn: every point in every phase, each of which must be reached.
    #[arg(long, requires = "points")]
    pub sweep: bool,
    /// Processes of `standpipe send` beside the clients.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub senders: u32,
    /// A claim of one of the predecessors, which sets the options above.
    #[arg(long, value_name = "NAME")]
    pub claim: Option<Claim>,
    /// Where the last relay delivers to.
    #[arg(long, value_name = "KIND", default_value = "firehose")]
    pub destination: Destination,
    /// Relays behind one another, each delivering to the next; any of them is killed.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=3))]
    pub chain: u8,
    /// Seed of the first round; others follow from it [default: drawn, and printed].
    #[arg(long)]
    pub seed: Option<u64>,
    /// Points at which a relay kills itself, for half of the deaths; needs a relay built for debugging.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub points: Vec<String>,
    /// Clients, each on a connection.
    #[arg(long, default_value_t = 4, value_name = "N")]
    pub clients: u32,
    /// Streams.
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u8).range(1..))]
    pub streams: u8,
    /// Bytes of one event.
    #[arg(long, default_value = "57-2000", value_name = "BYTES")]
    pub size: Sizes,
    /// Connections that send a byte a second and never a whole line.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub slow_loris: usize,
    /// Connections a second that come, send half a line and go.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub flood: usize,
    /// The library of libfaketime: the relay's clock on the wall jumps by up to a day in each of its lives.
    #[arg(long, value_name = "PATH")]
    pub faketime: Option<PathBuf>,
    /// How long clients and relays may take to be done after the last kill.
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = parse_duration)]
    pub settle: Duration,
    /// More arguments for the relays.
    #[arg(last = true, value_name = "RELAY ARGUMENTS")]
    pub relay_arguments: Vec<String>,
}

/// Runs every round, prints a table, and says whether all is well.
///
/// # Errors
///
/// A sentence if a round could not be run.
pub fn run(options: &Options) -> anyhow::Result<bool> {
    let options = &options.clone().claimed();
    let first = options.seed.unwrap_or_else(|| fastrand::u64(..1 << 32));
    let mut ended = Vec::new();
    for (seed, (mode, sync_at)) in (first..).zip(rounds(options)?) {
        eprintln!("chaos: {} kills, mode {mode:?}, sync_at {sync_at:?}, --seed {seed}", options.kills);
        let round = Round { options, mode, sync_at, seed }.run()?;
        round.wrong.iter().for_each(|wrong| eprintln!("chaos: WRONG: {wrong}"));
        ended.push(round);
    }
    eprintln!("{}", table(&ended));
    Ok(ended.iter().all(|round| round.wrong.is_empty()))
}

impl Options {
    /// With what a claim needs.
    fn claimed(mut self) -> Self {
        match self.claim {
            None => {}
            Some(Claim::ConnectionProblems) => self.wire_troubles = true,
            Some(Claim::InstanceTerminated) => {
                self.delete_spool = true;
                self.senders = self.senders.max(2);
            }
        }
        self
    }
}

fn rounds(options: &Options) -> anyhow::Result<Vec<(Mode, SyncAt)>> {
    let modes = match options.mode {
        Mode::All => vec![Mode::Off, Mode::Overflow, Mode::Always],
        mode => vec![mode],
    };
    let allowed = |mode: Mode| match (options.sync_at, mode) {
        // Without a spool nothing is ever stored, and one that is deleted does not outlive a kill.
        (SyncAt::All, Mode::Off) => vec![SyncAt::Delivered],
        (SyncAt::All, _) if options.delete_spool => vec![SyncAt::Delivered],
        (SyncAt::All, _) => vec![SyncAt::Delivered, SyncAt::Stored],
        (sync_at, _) => vec![sync_at],
    };
    anyhow::ensure!(
        !(options.delete_spool && options.sync_at == SyncAt::Stored),
        "what is only stored cannot outlive --delete-spool: use --sync-at delivered"
    );
    Ok(modes.into_iter().flat_map(|mode| allowed(mode).into_iter().map(move |at| (mode, at))).collect())
}

fn table(rounds: &[Ended]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_BORDERS_ONLY);
    let heads = [
        "mode",
        "sync_at",
        "seed",
        "kills",
        "at points",
        "events",
        "synced",
        "lost",
        "resent",
        "duplicates",
        "bound",
        "recovered",
        "disk failed",
        "healed",
        "wrong",
    ];
    table.set_header(heads);
    for round in rounds {
        let counted = round.counted;
        table.add_row([
            format!("{:?}", round.mode).to_lowercase(),
            format!("{:?}", round.sync_at).to_lowercase(),
            round.seed.to_string(),
            (counted.killed + counted.at_points).to_string(),
            counted.at_points.to_string(),
            grouped(round.sent),
            grouped(round.synced),
            grouped(round.lost),
            grouped(round.resent),
            grouped(round.duplicates),
            grouped(round.bound),
            grouped(counted.recovered),
            counted.failing.to_string(),
            counted.healed.to_string(),
            round.wrong.len().to_string(),
        ]);
    }
    table
}
