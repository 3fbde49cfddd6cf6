//! The sum of everything that takes memory, made once at start from the configuration and the machine. It
//! decides nothing at run time.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::RangeInclusive;

use crate::config::{Config, DestinationChoice};

/// The process with nothing connected: code, allocator, runtime, TLS and SDK tables. Measured at 9–13 MiB with
/// the Firehose destination on x86-64; rounded up.
const BASE_BYTES: u64 = 14 * MIB;
/// Stack pages that a thread touches. Measured below 100 KiB for shards and workers alike.
const STACK_BYTES: u64 = 128 * KIB;
/// Threads beside the shards: main, delivery workers, the allocator's and the directory's.
const OTHER_THREADS: u64 = 6;
/// One idle connection in user space: its slot in the driver and in the shard. Measured by the `fanin` profile.
const CONNECTION_BYTES: u64 = 512;
/// One label of one stream: its cells, one a shard, and the rest once.
const LABEL_BYTES: u64 = 768;
/// A region, role or endpoint beside the relay's own: its client of STS, its sample of a request. Measured at 26 KiB.
const TARGET_BYTES: u64 = 32 * KIB;
/// What the spool writes before one fsync, at most and at least.
const SPOOL_GROUP_BYTES: RangeInclusive<u64> = 256 * KIB..=8 * MIB;
/// Events may not have less than this: a few full records in different stages of their way.
const EVENTS_BYTES_MIN: u64 = 8 * MIB;

const KIB: u64 = 1024;
const MIB: u64 = 1024 * 1024;

/// Where the memory goes, each figure in bytes; `total` is their sum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The limit.
    pub total: u64,
    /// The process with nothing connected.
    pub base: u64,
    /// Receive buffers and rings of all shards.
    pub rings: u64,
    /// Stacks of all threads.
    pub stacks: u64,
    /// Connections, at most `max_connections` of them.
    pub connections: u64,
    /// Names and counters of streams.
    pub labels: u64,
    /// What the allocator loses to fragments and keeps before it gives it back.
    pub slack: u64,
    /// Half-received frames, and what paused connections had already sent.
    pub partial: u64,
    /// The spool's thread: its stack, what it puts together for one write, and what it reads back to write anew.
    pub spool: u64,
    /// Events: open, queued and in flight.
    pub events: u64,
    /// How many shards.
    pub shards: usize,
    /// Connections accepted at most: as configured, or fewer where files or memory allow fewer.
    pub connections_max: usize,
    /// Bytes of receive buffers a shard.
    pub receive_bytes: u64,
    /// Bytes that the spool writes before one fsync.
    pub spool_group: u64,
}

/// A limit that is too small to work with.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "memory = {} is too small: {} are taken before the first event arrives, and events need at least {}; \
     set memory to {} or more",
    Size(*total), Size(*fixed), Size(EVENTS_BYTES_MIN), Size(*needed)
)]
pub struct PlanError {
    total: u64,
    fixed: u64,
    needed: u64,
}

/// What the machine allows.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// The smaller of the memory installed and the control group's limit, in bytes.
    pub memory: u64,
    /// CPUs that this process may run on.
    pub cpus: usize,
    /// Files that this process may have open.
    pub files: u64,
}

impl Plan {
    /// The sum for a configuration on a machine.
    ///
    /// # Errors
    /// Where the memory limit leaves too little for events.
    pub fn new(config: &Config, machine: Machine) -> Result<Self, PlanError> {
        let total = config.memory.unwrap_or(machine.memory / 4);
        let shards = config.shards.unwrap_or_else(|| machine.cpus.saturating_sub(1).max(1));
        let shard_count = shards as u64;
        let connections_max = connections_max(config, machine, total);
        let receive_bytes = (total / 32 / shard_count).clamp(512 * KIB, 4 * MIB).next_power_of_two() / 2;
        let receive_bytes = receive_bytes.max(512 * KIB);
        let labels = (config.max_stream_labels as u64) * (LABEL_BYTES + 64 * shard_count);
        let spool_group = (total / 128).clamp(*SPOOL_GROUP_BYTES.start(), *SPOOL_GROUP_BYTES.end());
        let fixed = [
            BASE_BYTES + targets(config) * TARGET_BYTES,
            shard_count * (receive_bytes + 2 * MIB),
            (shard_count + OTHER_THREADS) * STACK_BYTES,
            connections_max as u64 * CONNECTION_BYTES,
            labels,
            total / 16 + 2 * MIB,
            if config.spool.is_some() { STACK_BYTES + 2 * spool_group } else { 0 },
        ];
        let partial = total / 8;
        let spent: u64 = fixed.iter().sum::<u64>() + partial;
        let events = total.saturating_sub(spent);
        if events < EVENTS_BYTES_MIN {
            let missing = EVENTS_BYTES_MIN + spent.saturating_sub(total) - events;
            // Partial frames and slack grow with the total, so what is missing counts for a little more.
            let needed = (total + missing * 2).next_multiple_of(4 * MIB);
            return Err(PlanError { total, fixed: spent, needed });
        }
        let [base, rings, stacks, connections, labels, slack, spool] = fixed;
        Ok(Self {
            total,
            base,
            rings,
            stacks,
            connections,
            labels,
            slack,
            partial,
            spool,
            events,
            shards,
            connections_max,
            receive_bytes,
            spool_group,
        })
    }

    /// What one stream may hold at most, in bytes: an eighth of the limit.
    pub fn stream_bytes_max(&self) -> u64 {
        self.total / 8
    }
}

/// Connections are bounded by the configuration, by open files (some are kept for everything else), and by an
/// eighth of the memory.
fn connections_max(config: &Config, machine: Machine, total: u64) -> usize {
    let by_files = machine.files.saturating_sub(512).max(16);
    let by_memory = total / 8 / CONNECTION_BYTES;
    let bound = usize::try_from(by_files.min(by_memory)).unwrap_or(usize::MAX);
    config.max_connections.min(bound)
}

/// The ways to AWS that tables of delivery streams have beside the relay's own.
fn targets(config: &Config) -> u64 {
    if config.destination != DestinationChoice::Firehose {
        return 0;
    }
    let tables = config.delivery_streams.iter().map(|(_, settings)| settings);
    let ways: BTreeSet<_> = std::iter::once(&config.delivery_stream_defaults)
        .chain(tables)
        .map(|settings| (&settings.region, &settings.role_arn, &settings.external_id, &settings.endpoint_url))
        .collect();
    ways.len() as u64 - 1
}

impl fmt::Display for Plan {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = [
            ("memory", self.total, "the limit, the sum of:"),
            ("  base", self.base, "the process with nothing connected"),
            ("  rings", self.rings, "receive buffers and rings of all shards"),
            ("  stacks", self.stacks, "of all threads"),
            ("  connections", self.connections, "their slots"),
            ("  labels", self.labels, "names and counters of streams"),
            ("  slack", self.slack, "what the allocator keeps and loses"),
            ("  partial", self.partial, "half-received frames and paused connections"),
            ("  spool", self.spool, "what it puts together to be written"),
            ("  events", self.events, "open, queued and in flight"),
        ];
        for (name, bytes, what) in rows {
            writeln!(out, "{name:<14} {:>12}   {what}", Size(bytes).to_string())?;
        }
        writeln!(
            out,
            "{:<14} {:>12}   an eighth of the limit",
            "a stream",
            Size(self.stream_bytes_max()).to_string()
        )?;
        writeln!(out, "{:<14} {:>12}", "shards", self.shards)?;
        write!(out, "{:<14} {:>12}   accepted at most", "connections", self.connections_max)
    }
}

/// Bytes for people.
struct Size(u64);

impl fmt::Display for Size {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            bytes if bytes >= 10 * 1024 * MIB => write!(out, "{:.1} GiB", bytes as f64 / (1024 * MIB) as f64),
            bytes if bytes >= MIB => write!(out, "{:.1} MiB", bytes as f64 / MIB as f64),
            bytes => write!(out, "{} KiB", bytes.div_ceil(KIB)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::DeliveryStreamSettings;

    #[test]
    fn every_way_to_aws_is_counted_once() {
        let mut config = Config { destination: DestinationChoice::Firehose, ..Config::default() };
        let role = |arn: &str| DeliveryStreamSettings { role_arn: Some(arn.into()), ..Default::default() };
        let fast = DeliveryStreamSettings { max_calls_per_second: Some(1), ..Default::default() };
        for (name, settings) in [("a", role("one")), ("b", role("one")), ("c", role("two")), ("d", fast)] {
            config.delivery_streams.insert(name.into(), settings);
        }
        assert_eq!(targets(&config), 2, "rates make no difference");
        config.destination = DestinationChoice::Null;
        assert_eq!(targets(&config), 0);
    }
}
