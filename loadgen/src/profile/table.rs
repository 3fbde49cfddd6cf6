//! The profiles: flags, and why just these. What is common to all stands in [`COMMON`].

use super::figures::Key;

/// The light check costs the sink little, so that it does not limit the relay; 12 s with 4 s of warm-up leave
/// 8 s at a steady pace: the relay's linger (1 s) has passed, and the backlog that a flat-out sender builds up in
/// front of the sink has come to its size.
pub const COMMON: &str = "--check light --duration 12s --warm-up 4s";

/// 3 GiB, the same on every machine, and enough that the limit is not what is measured: a flat-out sender is
/// faster than the sink beside it, and a relay whose memory is short seals small batches early, which costs a
/// quarter more CPU an event (measured with 512 MiB).
pub const COMMON_RELAY: &str = "--memory 3GiB";

/// The name of a profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Name {
    /// 8 connections, 64 KiB writes, 250-byte events, flat out.
    Bulk,
    /// 200 connections, one line a write, flat out.
    Lines,
    /// 200 connections, one line a write, 100,000 lines a second.
    Paced,
    /// 10,000 connections, a line a second each.
    Fanin,
    /// 16 streams against 10,000 streams, flat out in bulk.
    Streams,
    /// 1,000 streams at one event a second each: 1 shard against 2, with two lingers.
    Lowrate,
    /// Events of 64, 250, 1,000 and 16,000 bytes in turn.
    Sizes,
    /// Half of the highest rate, which a short run finds first.
    Latency,
    /// Capacity (which the sink's quota sets) against twice that; then a cgroup CPU limit on the relay.
    Overload,
    /// 10,000 idle connections: resident memory over none.
    Idle,
    /// 1 shard against 2 at the same offered rate.
    Shards,
}

/// How the rate of a step is found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Offered {
    /// By `--rate`.
    AsGiven,
    /// What the step before reached, times this.
    OfPrevious(f64),
    /// What the sink's quota lets through over all streams, times this.
    OfCapacity(f64),
}

/// One run of a profile.
#[derive(Debug)]
pub struct Step {
    /// Its name in the report.
    pub name: &'static str,
    /// Flags of `loadgen run`.
    pub flags: &'static str,
    /// Arguments of the relay: flags with one value each.
    pub relay: &'static str,
    /// How its rate is found.
    pub offered: Offered,
    /// Whether the relay is held back by a cgroup.
    pub cpu_limited: bool,
}

/// One figure of one step over that of another.
#[derive(Debug)]
pub struct RatioOf {
    /// The figure.
    pub key: Key,
    /// The step on top, by its place.
    pub over: usize,
    /// The step below.
    pub under: usize,
}

/// A named workload.
#[derive(Debug)]
pub struct Profile {
    /// Its name.
    pub name: &'static str,
    /// What it stands for.
    pub reason: &'static str,
    /// Flags of all steps.
    pub flags: &'static str,
    /// The relay's arguments in all steps.
    pub relay: &'static str,
    /// The steps, in order.
    pub steps: &'static [Step],
    /// What is compared.
    pub ratios: &'static [RatioOf],
}

/// A step that differs by nothing but these words.
const fn step(name: &'static str, flags: &'static str, relay: &'static str) -> Step {
    Step { name, flags, relay, offered: Offered::AsGiven, cpu_limited: false }
}

const fn over(key: Key, over: usize, under: usize) -> RatioOf {
    RatioOf { key, over, under }
}

impl Name {
    /// All names.
    pub fn all() -> &'static [Self] {
        use clap::ValueEnum;
        Self::value_variants()
    }

    /// The profile of this name.
    pub fn profile(self) -> &'static Profile {
        match self {
            Self::Bulk => &BULK,
            Self::Lines => &LINES,
            Self::Paced => &PACED,
            Self::Fanin => &FANIN,
            Self::Streams => &STREAMS,
            Self::Lowrate => &LOWRATE,
            Self::Sizes => &SIZES,
            Self::Latency => &LATENCY,
            Self::Overload => &OVERLOAD,
            Self::Idle => &IDLE,
            Self::Shards => &SHARDS,
        }
    }
}

static BULK: Profile = Profile {
    name: "bulk",
    reason: "Forwarders that write large blocks: per-byte and per-event cost with the least kernel work per event.",
    flags: "--connections 8 --write 64KiB --size 250 --rate max",
    relay: "",
    steps: &[step("bulk", "", "")],
    ratios: &[],
};

static LINES: Profile = Profile {
    name: "lines",
    reason: "Programs that write each line as it comes: the kernel's work per packet rules, and coalescing is \
             what a relay can do about it.",
    flags: "--connections 200 --write 0 --size 250 --rate max",
    relay: "",
    steps: &[step("lines", "", "")],
    ratios: &[],
};

static PACED: Profile = Profile {
    name: "paced",
    reason: "What a fleet really sees: many writers, none in a hurry, so that almost every read finds one line. \
             Latency counts beside CPU.",
    flags: "--connections 200 --write 0 --size 250 --rate 100k",
    relay: "",
    steps: &[step("paced", "", "")],
    ratios: &[],
};

static FANIN: Profile = Profile {
    name: "fanin",
    reason: "A large fleet of quiet hosts: cost per connection and per wake-up.",
    flags: "--connections 10000 --write 0 --size 250 --rate 10k",
    relay: "",
    steps: &[step("fanin", "", "")],
    ratios: &[],
};

static STREAMS: Profile = Profile {
    name: "streams",
    reason: "Every event goes to another stream than the one before: the worst for whatever is cached per stream, \
             and 10,000 buffers instead of 16.",
    flags: "--connections 8 --write 64KiB --size 250 --rate max",
    relay: "",
    steps: &[step("16 streams", "--streams 16", ""), step("10,000 streams", "--streams 10000", "")],
    ratios: &[
        over(Key::EventsPerSecond, 1, 0),
        over(Key::CpuNsPerEvent, 1, 0),
        over(Key::ResidentPeakBytes, 1, 0),
    ],
};

static LOWRATE: Profile = Profile {
    name: "lowrate",
    reason: "Streams that never fill a record: each record is billed as 5 KiB and each call costs the same, so \
             shards must not multiply them. One connection more than streams: event i goes to stream i mod 1,000, \
             each time by another connection, so every shard is fed with every stream. With a linger of 5 s a \
             stream has 5 events to gather from all shards; with 1 s only one.",
    flags: "--connections 1001 --streams 1000 --write 0 --size 250 --rate 1000 --duration 20s --warm-up 6s",
    relay: "",
    steps: &[
        step("1 shard", "", "--shards 1"),
        step("2 shards", "", "--shards 2"),
        step("1 shard, linger 5 s", "", "--shards 1 --linger 5s"),
        step("2 shards, linger 5 s", "", "--shards 2 --linger 5s"),
    ],
    ratios: &[
        over(Key::Calls, 1, 0),
        over(Key::BilledBytes, 1, 0),
        over(Key::CpuNsPerEvent, 1, 0),
        over(Key::Calls, 3, 2),
        over(Key::BilledBytes, 3, 2),
        over(Key::CpuNsPerEvent, 3, 2),
    ],
};

static SIZES: Profile = Profile {
    name: "sizes",
    reason: "Where cost per event turns into cost per byte.",
    flags: "--connections 8 --write 64KiB --rate max",
    relay: "",
    steps: &[
        step("64 B", "--size 64", ""),
        step("250 B", "--size 250", ""),
        step("1,000 B", "--size 1000", ""),
        step("16,000 B", "--size 16000", ""),
    ],
    ratios: &[over(Key::CpuNsPerEvent, 0, 1), over(Key::CpuNsPerEvent, 2, 1), over(Key::CpuNsPerEvent, 3, 1)],
};

static LATENCY: Profile = Profile {
    name: "latency",
    reason: "Latency at a load that leaves room: flat out every queue is full, and latency only says how long the \
             queues are.",
    flags: "--connections 8 --write 64KiB --size 250",
    relay: "",
    steps: &[
        step("highest rate", "--rate max --duration 8s --warm-up 4s", ""),
        Step { offered: Offered::OfPrevious(0.5), ..step("half of it", "", "") },
    ],
    ratios: &[over(Key::EventsPerSecond, 1, 0), over(Key::CpuNsPerEvent, 1, 0)],
};

static OVERLOAD: Profile = Profile {
    name: "overload",
    reason: "More comes than can go: goodput must not fall and memory must not grow. The quota (4 streams of \
             8 MiB/s) is far below what the relay can do, so that nothing else is the limit; 256 MiB are full \
             after some seconds. The warm-up passes the second's worth of burst that a quota allows.",
    flags: "--connections 8 --streams 4 --write 64KiB --size 250 --duration 20s --warm-up 8s",
    relay: "--memory 256MiB",
    steps: &[
        Step { offered: Offered::OfCapacity(1.0), ..step("capacity", "--quota 8MiB", "") },
        Step { offered: Offered::OfCapacity(2.0), ..step("twice the capacity", "--quota 8MiB", "") },
        Step { cpu_limited: true, ..step("a quarter of a CPU, flat out", "--rate max", "") },
        Step {
            cpu_limited: true,
            offered: Offered::OfPrevious(2.0),
            ..step("a quarter of a CPU, twice that", "", "")
        },
    ],
    ratios: &[over(Key::GoodputPerSecond, 1, 0), over(Key::GoodputPerSecond, 3, 2)],
};

static IDLE: Profile = Profile {
    name: "idle",
    reason: "What a connection costs that says nothing.",
    flags: "--connections 10000 --destination null",
    relay: "",
    steps: &[step("idle", "", "")],
    ratios: &[],
};

static SHARDS: Profile = Profile {
    name: "shards",
    reason: "What a second shard costs at the same work. Both share the relay's one CPU: the price of sharing is \
             seen, not the gain, which needs more cores than two.",
    flags: "--connections 64 --write 64KiB --size 250 --rate 500k",
    relay: "",
    steps: &[step("1 shard", "", "--shards 1"), step("2 shards", "", "--shards 2")],
    ratios: &[over(Key::CpuNsPerEvent, 1, 0)],
};
