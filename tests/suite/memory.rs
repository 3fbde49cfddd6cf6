//! The limit on memory: half frames that block nobody, an outage that loses nothing or is counted, and memory
//! that comes home.

use std::io::Write;
use std::sync::mpsc::{Sender, channel};
use std::thread::Scope;

use super::harness::{Io, Relay, Run, Sink, run, send, under_both_drivers};

under_both_drivers!(
    half_frames_do_not_keep_a_small_connection_from_being_served,
    an_outage_loses_nothing_where_connections_wait,
    an_outage_is_counted_exactly_where_events_are_dropped,
    memory_returns_when_everything_is_delivered,
    a_frame_larger_than_a_streams_share_is_still_taken,
);

/// Asserts that no memory is held for events and half frames any more.
fn assert_memory_returns(relay: &Relay) {
    relay.until("memory has returned", |metrics| {
        metrics.memory("events") == 0 && metrics.memory("partial") == 0
    });
}

const HOLDERS: u64 = 64;
/// With its LF a frame of 1,000 KiB.
const PAYLOAD_BYTES: usize = 1_023_999;

fn half_frames_do_not_keep_a_small_connection_from_being_served(io: Io) {
    let sink = Sink::start("");
    let relay = Relay::start(io, &format!("{} --memory 64MiB --linger 100ms", sink.destination()));
    let line = [&b"big "[..], &vec![b'x'; PAYLOAD_BYTES], b"\n"].concat();
    let (first, second) = line.split_at(line.len() / 2);
    std::thread::scope(|scope| {
        let holders: Vec<_> = (0..HOLDERS).map(|_| hold(scope, &relay, first, second)).collect();
        relay
            .until("the share of half frames is spent", |metrics| metrics.memory("partial") > (64 << 20) / 8);
        relay.send(&b"small 1\n".repeat(1_000));
        let metrics =
            relay.until("the small connection is served", |metrics| metrics.delivered("small") == 1_000);
        assert_eq!(metrics.received("big"), 0);
        drop(holders);
    });
    let metrics = relay.until_settled(HOLDERS + 1_000);
    assert_eq!((metrics.delivered("big"), metrics.total("standpipe_frames_rejected_total")), (HOLDERS, 0));
    assert_eq!(metrics.total("standpipe_connections_stalled_total"), 0);
    assert_memory_returns(&relay);
    relay.terminate().assert_code(0);
}

/// A connection that stops in the middle of a frame until what is returned is dropped. It may stop earlier: the
/// relay does not read whoever holds much.
fn hold<'scope>(
    scope: &'scope Scope<'scope, '_>,
    relay: &'scope Relay,
    first: &'scope [u8],
    second: &'scope [u8],
) -> Sender<()> {
    let (holder, held) = channel();
    scope.spawn(move || {
        let mut connection = relay.connect();
        connection.write_all(first).unwrap();
        let _ = held.recv();
        connection.write_all(second).unwrap();
    });
    holder
}

/// 60 MB against an endpoint that answers 503 for three seconds.
fn outage(io: Io, arguments: &str, on_full: &str) -> Run {
    let load = "--events 60000 --size 1000 --connections 8 --streams 4 --down 0-3";
    run(io, &format!("{load} {arguments}"), &format!("--memory 64MiB --retry-max 1s --on-full {on_full}"))
}

fn an_outage_loses_nothing_where_connections_wait(io: Io) {
    let run = outage(io, "", "wait");
    run.assert_good();
    assert_eq!((run.number("/metrics/delivered"), run.number("/metrics/dropped")), (60_000, 0));
}

fn an_outage_is_counted_exactly_where_events_are_dropped(io: Io) {
    let run = outage(io, "--allow-drops", "drop");
    run.assert_good();
    let dropped = run.number("/metrics/dropped");
    assert!(dropped > 0, "{}", run.text);
    assert_eq!(run.number("/metrics/dropped_by_reason/memory"), dropped);
    assert_eq!(run.number("/metrics/received"), 60_000);
    assert_eq!(run.number("/ledger/totals/events_accepted") + dropped, 60_000);
}

fn memory_returns_when_everything_is_delivered(io: Io) {
    let faults = "--fail-records 0.3 --fail-calls 0.1 --cut 0.05 --garbage 0.05 --latency 1ms-10ms";
    let sink = Sink::start(faults);
    let relay =
        Relay::start(io, &format!("{} --memory 64MiB --retry-base 10ms --retry-max 1s", sink.destination()));
    send(relay.address(), "--events 50000 --size 57-2000 --connections 16 --streams 50")
        .wait()
        .assert_code(0);
    relay.until_settled(50_000);
    assert_memory_returns(&relay);
    let mut half = relay.connect();
    half.write_all(&[b'x'; 100_000]).unwrap();
    relay.until("half a frame is charged", |metrics| metrics.memory("partial") >= 100_000);
    drop(half);
    assert_memory_returns(&relay);
}

fn a_frame_larger_than_a_streams_share_is_still_taken(io: Io) {
    let sink = Sink::start("");
    let relay = Relay::start(
        io,
        &format!("{} --memory 40MiB --max-connections 100 --linger 100ms", sink.destination()),
    );
    let line = [&b"big "[..], &vec![b'x'; PAYLOAD_BYTES], b"\n"].concat();
    (0..20).for_each(|_| relay.send(&line));
    let metrics = relay.until_settled(20);
    assert_eq!(metrics.delivered("big"), 20);
    assert_memory_returns(&relay);
}
