//! Streams beside each other: one that is refused, throttled or poisoned does no harm to the rest.

use std::fmt::Write as _;

use super::harness::{Io, Metrics, Relay, Sink, assert_identity, send, under_both_drivers, wait_for};

under_both_drivers!(
    a_missing_delivery_stream_drops_only_its_own_events_and_comes_back,
    a_throttled_stream_drops_nothing_and_holds_nobody_up,
    a_poisoned_record_is_dropped_alone,
    a_stream_of_two_delivery_streams_goes_where_it_can,
    streams_that_share_a_delivery_stream_are_all_served,
    a_quota_is_found_and_kept,
);

const STREAMS: u64 = 16;
const EVENTS_EACH: u64 = 1_536;
const BAD: &str = "stream-07";

fn names() -> impl Iterator<Item = String> {
    (0..STREAMS).map(|number| format!("stream-{number:02}"))
}

fn good_names() -> impl Iterator<Item = String> {
    names().filter(|name| name != BAD)
}

fn lane_state(metrics: &Metrics, delivery_stream: &str) -> u64 {
    metrics.sum("standpipe_lane_state", &[("delivery_stream", delivery_stream)])
}

fn accepted(sink: &Sink, delivery_stream: &str) -> u64 {
    let ledger = sink.ledger();
    let stream = &ledger["streams"][delivery_stream];
    assert_eq!(ledger["totals"]["duplicate_events"], 0);
    stream["events_accepted"].as_u64().unwrap_or(0) + stream["foreign_events"].as_u64().unwrap_or(0)
}

/// Events of 4,000 bytes: 6 MB a stream, beyond the cap of a stream at this limit.
const LOAD: &str = "--events 24576 --streams 16 --size 4000";
const MEMORY: &str =
    "--memory 48MiB --max-connections 1000 --park-probe 200ms --retry-base 10ms --retry-max 200ms";

fn a_missing_delivery_stream_drops_only_its_own_events_and_comes_back(io: Io) {
    let sink = Sink::start(&format!("--missing {BAD}"));
    let relay = Relay::start(io, &format!("{} {MEMORY}", sink.destination()));
    let sender = send(relay.address(), &format!("{LOAD} --connections 8"));
    let metrics = relay.until("all but the missing is delivered", |metrics| {
        good_names().all(|name| metrics.delivered(&name) == EVENTS_EACH)
            && metrics.received(BAD) == EVENTS_EACH
    });
    sender.wait().assert_code(0);
    assert_identity(&metrics);
    let (dropped, held) = (metrics.dropped(BAD, "parked"), metrics.held(BAD));
    assert_eq!((metrics.delivered(BAD), dropped + held), (0, EVENTS_EACH));
    assert!(dropped > 0 && held > 0, "{dropped} dropped, {held} held");
    assert_eq!(metrics.total("standpipe_events_dropped_total"), dropped, "no other reason, no other stream");
    assert_eq!(lane_state(&metrics, BAD), 2);
    sink.set_faults("{}");
    let metrics = relay.until("the rest is delivered", |metrics| metrics.total("standpipe_events_held") == 0);
    assert_identity(&metrics);
    assert_eq!((metrics.delivered(BAD), metrics.dropped(BAD, "parked")), (held, dropped));
    assert_eq!((accepted(&sink, BAD), lane_state(&metrics, BAD)), (held, 0));
    good_names().for_each(|name| assert_eq!(accepted(&sink, &name), EVENTS_EACH));
    let ended = relay.terminate();
    ended.assert_code(0);
    assert_eq!(ended.lines_with(&format!("lane {BAD}: parked")), 1, "{}", ended.log.join("\n"));
    assert_eq!(ended.lines_with(&format!("lane {BAD}: accepted again")), 1);
}

fn a_throttled_stream_drops_nothing_and_holds_nobody_up(io: Io) {
    let sink = Sink::start(&format!("--throttle-stream {BAD}"));
    let relay = Relay::start(io, &format!("{} {MEMORY} --on-full wait", sink.destination()));
    let sender = send(relay.address(), &format!("{LOAD} --connections 16 --one-stream-per-connection"));
    let metrics = relay.until("all but the throttled is delivered", |metrics| {
        good_names().all(|name| metrics.delivered(&name) == EVENTS_EACH)
            && metrics.total("standpipe_paused_connections") == 1
    });
    assert_eq!((metrics.delivered(BAD), lane_state(&metrics, BAD)), (0, 1));
    assert!(metrics.received(BAD) < EVENTS_EACH, "its connection waits");
    assert_eq!(metrics.total("standpipe_events_dropped_total"), 0);
    sink.set_faults("{}");
    sender.wait().assert_code(0);
    let metrics = relay.until_settled(STREAMS * EVENTS_EACH);
    assert_eq!(metrics.total("standpipe_events_dropped_total"), 0);
    names().for_each(|name| assert_eq!(accepted(&sink, &name), EVENTS_EACH));
    relay.terminate().assert_code(0);
}

/// Writes a configuration file and gives the flag that reads it, with the directory to keep.
fn config(text: &str) -> (tempfile::TempDir, String) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("standpipe.toml");
    std::fs::write(&path, text).unwrap();
    let flag = format!("--config {}", path.display());
    (directory, flag)
}

fn a_poisoned_record_is_dropped_alone(io: Io) {
    let sink = Sink::start("--poison POISON");
    let (_directory, config) = config("[streams.mixed]\npacking = \"single\"\n");
    let relay =
        Relay::start(io, &format!("{} {config} --linger 100ms --park-probe 100ms", sink.destination()));
    let mut frames = String::new();
    for number in 0..1_200 {
        let poison = if [3, 700, 701].contains(&number) { "POISON" } else { "fine" };
        writeln!(frames, "mixed {number} {poison}\ngood {number}").unwrap();
    }
    relay.send(frames.as_bytes());
    let metrics = relay.until_settled(2_400);
    assert_eq!((metrics.dropped("mixed", "rejected"), metrics.delivered("mixed")), (3, 1_197));
    assert_eq!((metrics.total("standpipe_events_dropped_total"), metrics.delivered("good")), (3, 1_200));
    assert_eq!((accepted(&sink, "mixed"), accepted(&sink, "good")), (1_197, 1_200));
    assert_eq!(metrics.total("standpipe_calls_total"), sink.ledger()["calls"]["total"].as_u64().unwrap());
}

fn a_stream_of_two_delivery_streams_goes_where_it_can(io: Io) {
    let sink = Sink::start("--missing first");
    let (_directory, config) = config("[streams.clicks]\ndelivery_streams = [\"first\", \"second\"]\n");
    let relay =
        Relay::start(io, &format!("{} {config} --linger 50ms --park-probe 100ms", sink.destination()));
    for number in 1..=10 {
        relay.send(&b"clicks 1\n".repeat(1_000));
        relay.until_settled(number * 1_000);
    }
    assert_eq!((accepted(&sink, "first"), accepted(&sink, "second")), (0, 10_000));
    sink.set_faults("{}");
    let sent = std::cell::Cell::new(10_000);
    wait_for("the first is used again", || {
        relay.send(&b"clicks 1\n".repeat(1_000));
        sent.set(sent.get() + 1_000);
        relay.until_settled(sent.get());
        (accepted(&sink, "first") > 0).then_some(())
    });
    assert_eq!(accepted(&sink, "first") + accepted(&sink, "second"), sent.get());
}

fn streams_that_share_a_delivery_stream_are_all_served(io: Io) {
    let sink = Sink::start("--fail-records 0.2 --latency 1ms-5ms");
    let relay = Relay::start(
        io,
        &format!("{} --delivery-stream all --linger 50ms --retry-base 10ms", sink.destination()),
    );
    let frames: String = names().map(|name| format!("{name} x\n").repeat(1_000)).collect();
    relay.send(frames.as_bytes());
    let metrics = relay.until_settled(STREAMS * 1_000);
    names().for_each(|name| assert_eq!(metrics.delivered(&name), 1_000));
    assert_eq!(accepted(&sink, "all"), STREAMS * 1_000);
}

fn a_quota_is_found_and_kept(io: Io) {
    const RECORDS: u64 = 4_000;
    let sink = Sink::start("--quota 1000000");
    let relay = Relay::start(io, &format!("{} --packing single --linger 50ms", sink.destination()));
    relay.send(&format!("clicks {:0999}\n", 0).repeat(RECORDS as usize).into_bytes());
    let rate = |metrics: &Metrics| {
        metrics.sum("standpipe_lane_rate_limit_bytes_per_second", &[("delivery_stream", "clicks")])
    };
    let metrics = relay.until("a rate is learned", |metrics| rate(metrics) > 0);
    assert!((250_000..2_000_000).contains(&rate(&metrics)), "{}", rate(&metrics));
    let metrics = relay.until_settled(RECORDS);
    let throttled = metrics.sum("standpipe_records_total", &[("outcome", "throttled")]);
    // The first calls were under way together. Whoever has no pace sends each record in vain a dozen times.
    assert!(throttled < 2 * RECORDS, "{throttled} of {RECORDS} records were throttled");
    assert_eq!((metrics.delivered("clicks"), accepted(&sink, "clicks")), (RECORDS, RECORDS));
    assert!(relay.get("/status").body.contains("\"rate_limit_bytes_per_second\":"));
    relay.terminate().assert_code(0);
}
