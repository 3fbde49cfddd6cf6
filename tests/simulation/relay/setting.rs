//! The settings that a history draws: what is the same for every process of it.

use std::collections::BTreeSet;
use std::time::Duration;

use fastrand::Rng;
use standpipe::config::{
    Config, DestinationChoice, OnFull, Packing, PackingMode, SpoolMode, StreamConfig, SyncAt,
};
use standpipe::destination::Encoding;
use standpipe::spool::Limits;

use crate::ledger::STREAMS;

/// What is the same for every process of a history.
#[derive(Clone, Debug)]
pub struct Setting {
    pub config: Config,
    pub encoding: Encoding,
    /// Of memory in all, and of a stream, in bytes.
    pub limit: u64,
    pub stream_max: u64,
    pub spool: Option<Limits>,
    pub keeps_letters: bool,
}

impl Setting {
    pub fn draw(rng: &mut Rng) -> Self {
        let has_spool = rng.u32(..4) > 0;
        // Where everything may grow too old, little is left of what else is promised.
        let has_age = rng.u32(..4) == 0;
        let mut config = Config {
            destination: DestinationChoice::Firehose,
            shards: Some(rng.usize(1..=2)),
            sync_at: if has_spool && rng.bool() { SyncAt::Stored } else { SyncAt::Delivered },
            spool_mode: if rng.bool() { SpoolMode::Overflow } else { SpoolMode::Always },
            linger: Duration::from_millis([256, 512, 1024][rng.usize(..3)]),
            max_calls: rng.usize(1..=6),
            retry_base: Duration::from_millis(100),
            retry_max: Duration::from_secs(5),
            park_probe: Duration::from_secs(5),
            frame_bytes_max: 40_000,
            packing: draw_packing(rng),
            ..Config::default()
        };
        config.max_lane_calls = rng.usize(1..=config.max_calls.min(3));
        for (name, lanes) in STREAMS {
            let stream = StreamConfig {
                delivery_streams: lanes.iter().map(|lane| (*lane).to_owned()).collect(),
                packing: if rng.bool() { config.packing } else { draw_packing(rng) },
                on_full: if rng.bool() { OnFull::Wait } else { OnFull::Drop },
                max_age: (has_age && rng.bool()).then(|| Duration::from_secs([2, 8, 30][rng.usize(..3)])),
            };
            config.streams.insert(name.to_owned(), stream);
        }
        // One in eight is large enough for batches that are encoded on their shard.
        let stream_max =
            if rng.u32(..8) == 0 { 512 << 10 } else { [24 << 10, 48 << 10, 128 << 10][rng.usize(..3)] };
        let mut setting = Self {
            config,
            encoding: if rng.u32(..3) == 0 { Encoding::Lines } else { Encoding::Records },
            limit: stream_max * rng.u64(2..=6),
            stream_max,
            spool: has_spool.then(|| draw_limits(rng)),
            keeps_letters: rng.u32(..3) > 0,
        };
        if let Some(spool) = &setting.spool {
            // A reload tells the spool what the configuration says.
            let config = &mut setting.config;
            (config.spool_limit, config.spool_free_floor) = (spool.bytes_max, spool.free_floor);
            config.spool_keep_sent = Duration::from_millis(spool.keep_sent);
        }
        setting
    }

    /// Draws anew what a reload may change and a history can do without.
    pub fn change(&mut self, rng: &mut Rng) {
        let lanes: Vec<&str> = STREAMS.iter().flat_map(|(_, lanes)| lanes.iter().copied()).collect();
        self.config.linger = Duration::from_millis([256, 512, 1024][rng.usize(..3)]);
        self.config.retry_max = Duration::from_secs(rng.u64(1..=5));
        self.config.park_probe = Duration::from_secs(rng.u64(1..=5));
        for stream in self.config.streams.values_mut() {
            let count = rng.usize(1..=3);
            let mapped = rng.choose_multiple(lanes.iter(), count);
            // One lane has two streams, and stands there twice.
            let mapped: BTreeSet<&str> = mapped.into_iter().copied().collect();
            stream.delivery_streams = mapped.into_iter().map(str::to_owned).collect();
            stream.packing = draw_packing(rng);
            stream.on_full = if rng.bool() { OnFull::Wait } else { OnFull::Drop };
        }
    }

    /// The age beyond which an event of a stream is no longer delivered.
    pub fn max_age(&self, stream: usize) -> Option<Duration> {
        self.config.streams[STREAMS[stream].0].max_age
    }
}

fn draw_limits(rng: &mut Rng) -> Limits {
    Limits {
        bytes_max: if rng.u32(..4) == 0 { 48 << 10 } else { 16 << 20 },
        free_floor: 0,
        batches_max: if rng.u32(..5) == 0 { 12 } else { 10_000 },
        segment_bytes: [2 << 10, 16 << 10, 128 << 10][rng.usize(..3)],
        group_bytes: [2 << 10, 32 << 10, 8 << 20][rng.usize(..3)],
        keep_sent: if rng.u32(..5) == 0 { 3_000 } else { 0 },
    }
}

fn draw_packing(rng: &mut Rng) -> Packing {
    Packing {
        mode: if rng.u32(..3) == 0 { PackingMode::Single } else { PackingMode::Full },
        record_events_max: [1, 3, 500][rng.usize(..3)],
        record_bytes_max: [200, 1_000, 5_000, 1_024_000][rng.usize(..4)],
    }
}
