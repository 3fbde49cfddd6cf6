//! What a scrape shows: every family with its name in full, its type and its help, once. It reads the cells and
//! a [`Live`] view of what is not counted but looked at; it changes nothing.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram as HistogramProto, LabelPair, Metric, MetricFamily, MetricType,
};
use prometheus::{Encoder, TextEncoder};

use super::process::Usage;
use super::{Ages, Cause, Drop, Histogram, Metrics, Outcome, Reject};
use crate::lifecycle::Stage;

/// The lanes of one label.
#[derive(Clone, Copy, Debug, Default)]
pub struct LaneFigures {
    /// 0 active, 1 backing off, 2 parked.
    pub state: u8,
    /// Calls in flight.
    pub in_flight: usize,
    /// Raw bytes a second that it sends at most, where there is a limit.
    pub rate: Option<f64>,
}

/// What is looked at when a scrape comes.
#[derive(Clone, Debug)]
pub struct Live {
    /// Bytes held by events, by half-received frames, and resident in all.
    pub memory: [(&'static str, u64); 3],
    /// The limit of the plan, in bytes.
    pub memory_limit: u64,
    /// The part of it that events may hold, in bytes.
    pub memory_events_limit: u64,
    /// `uring` or `epoll`.
    pub driver: &'static str,
    /// The lanes by label.
    pub lanes: BTreeMap<String, LaneFigures>,
    /// How old the oldest event is that is held, by stream label.
    pub ages: Ages,
    /// When the first of the credentials in use expire, where any do.
    pub credentials_expiry: Option<SystemTime>,
    /// Share of each shard's time spent working, since the last look.
    pub busy_ratios: Vec<f64>,
    /// The part of its life that the process is in.
    pub stage: Stage,
    /// What the system says of the process.
    pub process: Usage,
}

/// The values of the label `place` of `events_held`, in the order in which an event passes.
const PLACES: [&str; 5] = ["open", "queued", "in_flight", "retry", "spool"];

/// The exposition in Prometheus' text format 0.0.4.
pub fn text(metrics: &Metrics, live: &Live) -> String {
    let families: Vec<MetricFamily> =
        families(metrics, live).into_iter().filter(|family| !family.get_metric().is_empty()).collect();
    let mut text = Vec::new();
    TextEncoder::new()
        .encode(&families, &mut text)
        .expect("every family left has a metric, and memory takes bytes");
    String::from_utf8(text).expect("names and labels are text")
}

fn families(metrics: &Metrics, live: &Live) -> Vec<MetricFamily> {
    let mut all = stream_families(metrics, live);
    all.extend(shard_families(metrics, live));
    all.extend(lane_families(metrics, live));
    all.extend(process_families(metrics, live));
    all.extend(usage_families(&live.process));
    all
}

fn stream_families(metrics: &Metrics, live: &Live) -> Vec<MetricFamily> {
    let mut received = counter("standpipe_events_received_total", "Events of good frames.");
    let mut delivered = counter("standpipe_events_delivered_total", "Events accepted by the destination.");
    let mut dropped = counter("standpipe_events_dropped_total", "Events dropped, by reason.");
    let mut recovered = counter(
        "standpipe_events_recovered_total",
        "Events found in the spool that an earlier process had left.",
    );
    let mut held = gauge("standpipe_events_held", "Events that are here, by place.");
    let mut payload = counter(
        "standpipe_payload_bytes_delivered_total",
        "Raw bytes accepted by the destination, each event's LF included.",
    );
    let mut billed =
        counter("standpipe_billed_bytes_total", "Raw bytes accepted, each record rounded up to 5 KiB.");
    let mut duplicates = counter(
        "standpipe_possible_duplicate_events_total",
        "Events sent again although an earlier call may have delivered them, by cause.",
    );
    let mut oldest =
        gauge("standpipe_oldest_held_event_age_seconds", "Age of the oldest event that is still here.");
    for label in metrics.labels() {
        let totals = label.totals();
        let stream = ("stream", totals.stream.as_str());
        add(&mut received, &[stream], totals.received as f64);
        add(&mut delivered, &[stream], totals.delivered as f64);
        add(&mut recovered, &[stream], totals.recovered as f64);
        for (reason, count) in Drop::ALL.iter().zip(totals.dropped) {
            add(&mut dropped, &[stream, ("reason", reason.label())], count as f64);
        }
        let places = [totals.open, totals.queued, totals.in_flight, totals.retry, totals.spool];
        for (place, count) in PLACES.into_iter().zip(places) {
            add(&mut held, &[stream, ("place", place)], count as f64);
        }
        add(&mut payload, &[stream], label.payload_bytes.load(Relaxed) as f64);
        add(&mut billed, &[stream], label.billed_bytes.load(Relaxed) as f64);
        for cause in Cause::ALL {
            let count = label.duplicates[cause as usize].load(Relaxed);
            add(&mut duplicates, &[stream, ("cause", cause.label())], count as f64);
        }
        add(&mut oldest, &[stream], live.ages.of(&totals.stream).as_secs_f64());
    }
    vec![received, delivered, dropped, recovered, held, payload, billed, duplicates, oldest]
}

fn shard_families(metrics: &Metrics, live: &Live) -> Vec<MetricFamily> {
    let mut rejected = counter("standpipe_frames_rejected_total", "Frames that were not taken, by reason.");
    for reason in Reject::ALL {
        let count: u64 = metrics.shards.iter().map(|shard| shard.rejected[reason as usize].get()).sum();
        add(&mut rejected, &[("reason", reason.label())], count as f64);
    }
    let mut bytes = counter("standpipe_received_bytes_total", "Bytes read from sockets.");
    let mut busy = gauge("standpipe_shard_busy_ratio", "Share of a shard's time spent working.");
    for (index, shard) in metrics.shards.iter().enumerate() {
        let index = index.to_string();
        let label = [("shard", index.as_str())];
        add(&mut bytes, &label, shard.received_bytes.get() as f64);
    }
    for (index, ratio) in live.busy_ratios.iter().enumerate() {
        add(&mut busy, &[("shard", &index.to_string())], *ratio);
    }
    let mut connections = gauge("standpipe_connections", "Connections open now, by listener.");
    for (listener, cells) in metrics.listeners.iter().zip(&metrics.connections) {
        let open: u64 = cells.iter().fold(0, |sum: u64, cell| sum.wrapping_add(cell.get()));
        add(&mut connections, &[("listener", listener)], open as f64);
    }
    let mut syncs =
        counter("standpipe_syncs_total", "Syncs answered, by whether anything they covered was lost.");
    for (outcome, pick) in [("synced", false), ("lost", true)] {
        let cells =
            metrics.shards.iter().map(|shard| if pick { shard.lost.get() } else { shard.synced.get() });
        add(&mut syncs, &[("outcome", outcome)], cells.sum::<u64>() as f64);
    }
    let sum = |pick: fn(&super::ShardCounters) -> u64| metrics.shards.iter().map(pick).sum::<u64>() as f64;
    vec![
        rejected,
        bytes,
        busy,
        connections,
        one(
            counter("standpipe_connections_opened_total", "Connections accepted."),
            sum(|shard| shard.opened.get()),
        ),
        one(
            counter(
                "standpipe_connections_refused_total",
                "Connections closed at once because max_connections were open.",
            ),
            sum(|shard| shard.refused.get()),
        ),
        one(
            counter(
                "standpipe_connections_failed_total",
                "Connections that were reset by the peer or failed.",
            ),
            sum(|shard| shard.failed.get()),
        ),
        one(
            counter(
                "standpipe_connections_stalled_total",
                "Connections closed because they held half a frame, gave no byte, and memory was short.",
            ),
            sum(|shard| shard.stalled.get()),
        ),
        one(
            counter(
                "standpipe_connections_aged_total",
                "Connections told to leave because they had reached max_connection_age.",
            ),
            sum(|shard| shard.aged.get()),
        ),
        one(
            counter(
                "standpipe_connections_moved_total",
                "Connections given to a shard with less to do than the one that accepted them.",
            ),
            sum(|shard| shard.moved.get()),
        ),
        one(
            counter("standpipe_health_probes_total", "Connections that ended without a byte."),
            sum(|shard| shard.health_probes.get()),
        ),
        one(
            gauge("standpipe_paused_connections", "Connections that are not read, for lack of memory."),
            sum(|shard| shard.paused.get()),
        ),
        syncs,
        one(
            gauge("standpipe_syncs_pending", "Syncs that wait for their answer."),
            sum(|shard| shard.syncs_pending.get()),
        ),
    ]
}

fn lane_families(metrics: &Metrics, live: &Live) -> Vec<MetricFamily> {
    let mut calls = counter("standpipe_calls_total", "Calls made, by outcome.");
    let mut records = counter("standpipe_records_total", "Records in answered and failed calls, by outcome.");
    for lane in metrics.lanes.read().unwrap_or_else(std::sync::PoisonError::into_inner).values() {
        for outcome in Outcome::ALL {
            let labels = [("delivery_stream", lane.name.as_str()), ("outcome", outcome.label())];
            add(&mut calls, &labels, lane.calls[outcome as usize].load(Relaxed) as f64);
            add(&mut records, &labels, lane.records[outcome as usize].load(Relaxed) as f64);
        }
    }
    let mut state =
        gauge("standpipe_lane_state", "State of a lane: 0 active, 1 backing off, 2 parked by a refusal.");
    let mut in_flight = gauge("standpipe_calls_in_flight", "Calls that have no answer yet.");
    let mut rate = gauge(
        "standpipe_lane_rate_limit_bytes_per_second",
        "Raw bytes a second that a lane sends at most, configured or learned; absent where there is no limit.",
    );
    for (name, lane) in &live.lanes {
        let label = [("delivery_stream", name.as_str())];
        add(&mut state, &label, f64::from(lane.state));
        add(&mut in_flight, &label, lane.in_flight as f64);
        lane.rate.into_iter().for_each(|limit| add(&mut rate, &label, limit));
    }
    vec![calls, records, state, in_flight, rate]
}

fn process_families(metrics: &Metrics, live: &Live) -> Vec<MetricFamily> {
    let mut memory =
        gauge("standpipe_memory_bytes", "Memory: charged to events, to half-received frames, and resident.");
    for (state, bytes) in &live.memory {
        if !state.is_empty() {
            add(&mut memory, &[("state", state)], *bytes as f64);
        }
    }
    let mut expiry = gauge(
        "standpipe_credentials_expiry_timestamp_seconds",
        "When the first of the credentials in use expire, as seconds since 1970; absent where none do.",
    );
    if let Some(at) = live.credentials_expiry.and_then(|at| at.duration_since(UNIX_EPOCH).ok()) {
        expiry = one(expiry, at.as_secs_f64());
    }
    let mut stage =
        gauge("standpipe_stage", "1 for the part of its life that the process is in, 0 for others.");
    for other in Stage::ALL {
        add(&mut stage, &[("stage", other.label())], f64::from(u8::from(other == live.stage)));
    }
    let mut driver = gauge("standpipe_io_driver_info", "Which driver reads the sockets.");
    add(&mut driver, &[("driver", live.driver)], 1.0);
    let mut build = gauge("standpipe_build_info", "Which build this is.");
    let commit = env!("BUILD_COMMIT");
    add(&mut build, &[("version", env!("CARGO_PKG_VERSION")), ("commit", commit)], 1.0);
    let figure = |figure: &std::sync::atomic::AtomicU64| figure.load(Relaxed) as f64;
    let mut reloads =
        counter("standpipe_config_reloads_total", "Times that the configuration was read again, by result.");
    add(&mut reloads, &[("result", "done")], figure(&metrics.reloads.done));
    add(&mut reloads, &[("result", "refused")], figure(&metrics.reloads.refused));
    vec![
        memory,
        one(gauge("standpipe_memory_limit_bytes", "The memory limit of the plan."), live.memory_limit as f64),
        one(
            gauge(
                "standpipe_memory_events_limit_bytes",
                "The part of the memory limit that events may hold.",
            ),
            live.memory_events_limit as f64,
        ),
        one(gauge("standpipe_spool_bytes", "Bytes of the spool's files."), figure(&metrics.spool.bytes)),
        one(
            gauge("standpipe_spool_limit_bytes", "The limit of the spool; 0 where there is none."),
            figure(&metrics.spool.limit),
        ),
        one(
            gauge(
                "standpipe_spool_failing",
                "1 while the spool's disk refuses what is written, and events stay in memory.",
            ),
            figure(&metrics.spool.failing),
        ),
        one(
            counter(
                "standpipe_spool_damaged_segments_total",
                "Segments of the spool in which something could not be read, and which were put aside.",
            ),
            figure(&metrics.spool.damaged_segments),
        ),
        one(
            gauge(
                "standpipe_dead_letter_bytes",
                "Bytes of the files of dead letters; 0 where there are none.",
            ),
            figure(&metrics.dead_letter_bytes),
        ),
        histogram(
            "standpipe_call_duration_seconds",
            "How long calls took until their answer.",
            &metrics.call_duration,
        ),
        histogram(
            "standpipe_delivery_latency_seconds",
            "From receiving a batch's oldest event until it was accepted, weighted by events.",
            &metrics.delivery_latency,
        ),
        histogram(
            "standpipe_fsync_duration_seconds",
            "How long syncing to disk took.",
            &metrics.fsync_duration,
        ),
        expiry,
        reloads,
        one(
            gauge(
                "standpipe_config_last_reload_successful",
                "1 while the configuration that was read last, at start or later, is the one that holds.",
            ),
            f64::from(u8::from(metrics.reloads.is_current.load(Relaxed))),
        ),
        one(
            gauge(
                "standpipe_config_last_reload_success_timestamp_seconds",
                "When the configuration that holds was read, in seconds since 1970.",
            ),
            figure(&metrics.reloads.current_since),
        ),
        stage,
        driver,
        build,
    ]
}

/// What every client library of Prometheus says of its process, under the names that they share.
fn usage_families(usage: &Usage) -> Vec<MetricFamily> {
    let whole = |value: Option<u64>| value.map(|value| value as f64);
    let families = [
        (
            counter("process_cpu_seconds_total", "Processor time of all threads, user and system."),
            usage.cpu_seconds,
        ),
        (
            gauge("process_start_time_seconds", "When the process started, in seconds since 1970."),
            usage.start_time_seconds,
        ),
        (gauge("process_resident_memory_bytes", "Memory resident in all."), whole(usage.resident_bytes)),
        (gauge("process_virtual_memory_bytes", "The address space in all."), whole(usage.virtual_bytes)),
        (gauge("process_open_fds", "Files and sockets that are open."), whole(usage.open_fds)),
        (gauge("process_max_fds", "The most files and sockets that may be open."), whole(usage.max_fds)),
        (gauge("process_threads", "Threads of the process."), whole(usage.threads)),
    ];
    families.into_iter().filter_map(|(family, value)| Some(one(family, value?))).collect()
}

fn family(name: &str, help: &str, kind: MetricType) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family
}

fn counter(name: &str, help: &str) -> MetricFamily {
    family(name, help, MetricType::COUNTER)
}

fn gauge(name: &str, help: &str) -> MetricFamily {
    family(name, help, MetricType::GAUGE)
}

/// Adds one value to a family of counters or gauges.
fn add(family: &mut MetricFamily, labels: &[(&str, &str)], value: f64) {
    let pair = |(name, value): &(&str, &str)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    };
    let mut metric = Metric::from_label(labels.iter().map(pair).collect());
    if family.get_field_type() == MetricType::COUNTER {
        let mut counter = Counter::default();
        counter.set_value(value);
        metric.set_counter(counter);
    } else {
        let mut gauge = Gauge::default();
        gauge.set_value(value);
        metric.set_gauge(gauge);
    }
    family.mut_metric().push(metric);
}

fn one(mut family: MetricFamily, value: f64) -> MetricFamily {
    add(&mut family, &[], value);
    family
}

fn histogram(name: &str, help: &str, source: &Histogram) -> MetricFamily {
    let (buckets, count, sum) = source.cumulative();
    let bucket = |(bound, count)| {
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(bound);
        bucket.set_cumulative_count(count);
        bucket
    };
    let mut proto = HistogramProto::default();
    proto.set_bucket(buckets.into_iter().map(bucket).collect());
    proto.set_sample_count(count);
    proto.set_sample_sum(sum);
    let mut metric = Metric::from_label(Vec::new());
    metric.set_histogram(proto);
    let mut family = family(name, help, MetricType::HISTOGRAM);
    family.mut_metric().push(metric);
    family
}
