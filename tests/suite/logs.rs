//! What repeats itself does not flood the log: each cause that a test can bring about many times leaves a bounded
//! number of lines, and the first of them at once.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::time::Instant;

use super::harness::{Io, Relay, Sink, under_both_drivers};

under_both_drivers!(
    refused_connections_are_logged_now_and_then,
    paused_connections_and_dropped_events_are_logged_now_and_then,
    lanes_that_fail_together_are_not_all_logged,
    lanes_that_park_together_are_not_all_logged,
    nothing_is_logged_for_an_event_or_a_health_probe,
);

/// Delivery streams that fail at one time.
const LANES: usize = 60;
/// So many of them are named within half a minute.
const LANES_LOGGED: usize = 10;
/// Half a minute, in which one line of each cause is allowed a shard.
const INTERVAL_SECONDS: u64 = 30;

/// Ends the relay and asserts that `text` stands in at least one line of its log, and in no more than `most` for each
/// interval that has begun since `start`.
fn assert_said(relay: Relay, start: Instant, wanted: &[(&str, usize)]) {
    relay.signal(rustix::process::Signal::TERM);
    relay.signal(rustix::process::Signal::TERM);
    let ended = relay.wait();
    let intervals = 1 + (start.elapsed().as_secs() / INTERVAL_SECONDS) as usize;
    for (text, most) in wanted {
        let lines = ended.lines_with(text);
        assert!((1..=most * intervals).contains(&lines), "{lines} × {text}:\n{}", ended.log.join("\n"));
    }
}

/// An address where nobody listens.
fn closed() -> String {
    let unused = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("--destination firehose --endpoint-url http://{}", unused.local_addr().unwrap())
}

fn frames(repeated: usize) -> String {
    (0..LANES).fold(String::new(), |mut frames, stream| {
        (0..repeated).for_each(|_| writeln!(frames, "stream-{stream} event").unwrap());
        frames
    })
}

fn refused_connections_are_logged_now_and_then(io: Io) {
    let start = Instant::now();
    let relay = Relay::start(io, "--destination null --shards 2 --max-connections 2");
    let kept: Vec<TcpStream> = (0..300).map(|_| relay.connect()).collect();
    relay.until("most are refused", |metrics| metrics.total("standpipe_connections_refused_total") > 200);
    drop(kept);
    assert_said(relay, start, &[("connections are closed at once", 2)]);
}

fn paused_connections_and_dropped_events_are_logged_now_and_then(io: Io) {
    for (on_full, text) in
        [("wait", "connections that bring more for it are paused"), ("drop", "its newest events are dropped")]
    {
        let start = Instant::now();
        let relay = Relay::start(
            io,
            &format!("{} --shards 2 --memory 48MiB --max-connections 1000 --on-full {on_full}", closed()),
        );
        let payload = "x".repeat(10_000);
        let connections: Vec<TcpStream> = (0..20)
            .map(|number| {
                let mut connection = relay.connect();
                connection.set_nonblocking(true).unwrap();
                // 10 MB each: far more than there is memory for. What is not taken at once is left.
                let line = format!("stream-{number} {payload}\n").into_bytes();
                (0..1_000).take_while(|_| connection.write_all(&line).is_ok()).count();
                connection
            })
            .collect();
        relay.until("there is no room", |metrics| {
            metrics.total("standpipe_paused_connections") > 10
                || metrics.total("standpipe_events_dropped_total") > 1_000
        });
        drop(connections);
        assert_said(relay, start, &[(text, 2)]);
    }
}

fn lanes_that_fail_together_are_not_all_logged(io: Io) {
    let start = Instant::now();
    let relay = Relay::start(io, &format!("{} --linger 10ms --retry-base 10ms --retry-max 50ms", closed()));
    relay.send(frames(10).as_bytes());
    relay.until("every lane has failed often", |metrics| {
        metrics.sum("standpipe_calls_total", &[("outcome", "internal")]) > 5 * LANES as u64
    });
    assert_said(relay, start, &[("calls fail", LANES_LOGGED)]);
}

fn lanes_that_park_together_are_not_all_logged(io: Io) {
    let missing: String = (0..LANES).map(|stream| format!(" --missing stream-{stream}")).collect();
    let sink = Sink::start(&missing);
    let start = Instant::now();
    let relay = Relay::start(io, &format!("{} --linger 10ms --park-probe 100ms", sink.destination()));
    relay.send(frames(10).as_bytes());
    relay.until("every lane is parked", |metrics| metrics.total("standpipe_lane_state") == 2 * LANES as u64);
    sink.set_faults("{}");
    relay.until_settled(10 * LANES as u64);
    assert_said(relay, start, &[(": parked, its events", LANES_LOGGED), ("no longer parked", LANES_LOGGED)]);
}

fn nothing_is_logged_for_an_event_or_a_health_probe(io: Io) {
    let relay = Relay::start(io, "--destination null --linger 10ms");
    (0..100).for_each(|_| drop(relay.connect()));
    relay.until("the probes are counted", |metrics| metrics.total("standpipe_health_probes_total") == 100);
    let before = relay.process().log().len();
    relay.send(&[&b"no-payload\n"[..], &b"clicks 1\n".repeat(1_000)].concat());
    relay.until_settled(1_000);
    assert_eq!((before, relay.process().log().len()), (1, 1), "{:?}", relay.process().log());
}
