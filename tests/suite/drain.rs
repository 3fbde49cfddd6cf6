//! The way out: nothing that arrived is lost, and what cannot be delivered is counted.

use std::io::Write;
use std::net::TcpListener;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::Signal;

use standpipe::client::Client;

use super::harness::{Ended, Files, Io, Metrics, PATIENCE, Relay, under_both_drivers, wait_for};

under_both_drivers!(
    sigterm_after_a_burst_loses_nothing_not_even_in_the_accept_queue,
    an_endpoint_that_is_down_ends_the_drain_with_3_and_every_event_counted,
    a_second_signal_gives_up_at_once,
    what_a_blocked_connection_had_sent_is_counted_when_its_time_is_over,
    an_idle_connection_does_not_hold_the_drain_up,
    half_a_frame_does_not_hold_the_drain_up_beyond_its_deadline,
    a_connection_that_goes_on_sending_is_read_to_its_end,
    connections_leave_one_after_the_other,
    a_client_that_never_pauses_leaves_a_drain_without_repeating_anything,
    connections_that_are_old_leave_and_nothing_is_lost_or_repeated,
);

const CONNECTIONS: usize = 64;
const EVENTS_EACH: usize = 15_625;
const LATE_CONNECTIONS: usize = 200;
const STREAMS: usize = 16;

fn sigterm_after_a_burst_loses_nothing_not_even_in_the_accept_queue(io: Io) {
    let root = tempfile::tempdir().unwrap();
    let relay = Relay::start(io, &format!("--destination directory:{}", root.path().display()));
    let connections =
        Mutex::new((0..CONNECTIONS).map(|number| (number, relay.connect())).collect::<Vec<_>>());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let Some((number, mut connection)) = { connections.lock().unwrap().pop() } {
                    let mut bytes = Vec::new();
                    for event in 0..EVENTS_EACH {
                        writeln!(bytes, "stream-{:02} {number} {event}", event % STREAMS).unwrap();
                    }
                    connection.write_all(&bytes).unwrap();
                }
            });
        }
    });
    // While the relay stands still, the kernel accepts on its behalf.
    relay.signal(Signal::STOP);
    for late in 0..LATE_CONNECTIONS {
        writeln!(relay.connect(), "late {late}").unwrap();
    }
    relay.signal(Signal::TERM);
    relay.signal(Signal::CONT);
    relay.wait().assert_code(0);
    assert_every_event_is_there(&Files::below(root.path()));
}

fn assert_every_event_is_there(files: &Files) {
    let mut late: Vec<usize> =
        files.lines_of("late").iter().map(|line| number(&line[..line.len() - 1])).collect();
    late.sort_unstable();
    assert!(late.iter().copied().eq(0..LATE_CONNECTIONS), "{} of {LATE_CONNECTIONS} late ones", late.len());
    let mut seen = vec![false; CONNECTIONS * EVENTS_EACH];
    for stream in 0..STREAMS {
        for line in files.of_stream(&format!("stream-{stream:02}")).split_inclusive(|octet| *octet == b'\n') {
            let (connection, event) = line.split_at(line.iter().position(|octet| *octet == b' ').unwrap());
            let event = number(&event[1..event.len() - 1]);
            assert_eq!(event % STREAMS, stream);
            let index = number(connection) * EVENTS_EACH + event;
            assert!(!std::mem::replace(&mut seen[index], true), "an event is there twice");
        }
    }
    let there = seen.iter().filter(|seen| **seen).count();
    assert_eq!(there, seen.len(), "events of the burst");
}

fn number(digits: &[u8]) -> usize {
    digits.iter().fold(0, |number, digit| number * 10 + usize::from(digit - b'0'))
}

/// The arguments that lead to an endpoint which refuses connections.
fn down() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("--destination firehose --endpoint-url http://{}", listener.local_addr().unwrap())
}

fn assert_all_dropped(ended: &Ended, streams: &[(&str, u64)]) {
    ended.assert_code(3);
    for (stream, events) in streams {
        let line = format!(
            "stream {stream}: received {events} + recovered 0 = delivered 0 + dropped {events} + held 0"
        );
        assert_eq!(ended.lines_with(&line), 1, "{line} is not in\n{}", ended.log.join("\n"));
    }
    let events: u64 = streams.iter().map(|(_, events)| events).sum();
    assert_eq!(
        ended.lines_with(&format!("events left when the drain ended: {events};")),
        1,
        "{}",
        ended.log.join("\n")
    );
}

fn an_endpoint_that_is_down_ends_the_drain_with_3_and_every_event_counted(io: Io) {
    let relay = Relay::start(io, &format!("{} --drain-deadline 1s", down()));
    relay.send(&b"clicks 1\n".repeat(10_000));
    relay.send(&b"views 1\n".repeat(123));
    relay.until("all is received", |metrics| metrics.total("standpipe_events_received_total") == 10_123);
    assert_all_dropped(&relay.terminate(), &[("clicks", 10_000), ("views", 123)]);
}

fn a_second_signal_gives_up_at_once(io: Io) {
    let relay = Relay::start(io, &format!("{} --drain-deadline 1h", down()));
    relay.send(&b"clicks 1\n".repeat(1_000));
    relay.until("all is received", |metrics| metrics.received("clicks") == 1_000);
    relay.signal(Signal::TERM);
    relay.process().wait_for_line(|line| line.contains("draining").then_some(())).unwrap();
    relay.signal(Signal::INT);
    assert_all_dropped(&relay.wait(), &[("clicks", 1_000)]);
}

/// It waits for memory with whole frames read and not received yet: they are lost with it, but not silently.
fn what_a_blocked_connection_had_sent_is_counted_when_its_time_is_over(io: Io) {
    let line = [&b"clicks "[..], &[b'x'; 992], b"\n"].concat();
    let relay = Relay::start(io, &format!("{} --memory 64MiB --drain-deadline 1s", down()));
    let mut connection = relay.connect();
    connection.set_write_timeout(Some(std::time::Duration::from_millis(200))).unwrap();
    while connection.write_all(&line.repeat(64)).is_ok() {}
    let read = |metrics: &Metrics| metrics.total("standpipe_received_bytes_total");
    let before = std::cell::Cell::new(0);
    let paused = relay.until("it is paused and nothing is read any more", |metrics| {
        let rests = before.replace(read(metrics)) == read(metrics);
        rests && metrics.total("standpipe_paused_connections") == 1
    });
    let whole = read(&paused) / line.len() as u64;
    assert!(paused.received("clicks") < whole, "it has frames that wait");
    assert_all_dropped(&relay.terminate(), &[("clicks", whole)]);
}

fn an_idle_connection_does_not_hold_the_drain_up(io: Io) {
    let relay = Relay::start(io, "--destination null --drain-deadline 1h");
    let silent = relay.connect();
    let mut idle = relay.connect();
    idle.write_all(b"clicks 1\n").unwrap();
    relay.until_settled(1);
    relay.until("both are open", |metrics| metrics.total("standpipe_connections") == 2);
    relay.terminate().assert_code(0);
    drop((silent, idle));
}

fn half_a_frame_does_not_hold_the_drain_up_beyond_its_deadline(io: Io) {
    let relay = Relay::start(io, "--destination null --drain-deadline 1s");
    let mut connection = relay.connect();
    connection.write_all(b"clicks 1\nclicks ha").unwrap();
    relay.until_settled(1);
    relay.terminate().assert_code(0);
    drop(connection);
}

fn a_connection_that_goes_on_sending_is_read_to_its_end(io: Io) {
    let root = tempfile::tempdir().unwrap();
    let relay =
        Relay::start(io, &format!("--destination directory:{} --drain-deadline 1h", root.path().display()));
    let mut connection = relay.connect();
    connection.write_all(b"clicks ha").unwrap();
    relay.until("it is open", |metrics| metrics.total("standpipe_received_bytes_total") == 9);
    relay.signal(Signal::TERM);
    // The relay says that it drains by shutting its side down, and still reads.
    assert_eq!(std::io::Read::read(&mut connection, &mut [0; 1]).unwrap(), 0);
    connection.write_all(b"lf\n").unwrap();
    connection.write_all(&b"clicks 1\n".repeat(10_000)).unwrap();
    drop(connection);
    relay.wait().assert_code(0);
    assert_eq!(Files::below(root.path()).lines_of("clicks").len(), 10_001);
}

fn connections_leave_one_after_the_other(io: Io) {
    let relay = Relay::start(io, "--destination null --drain-deadline 1h --drain-close-rate 1");
    let connections: Vec<_> = (0..30).map(|_| relay.connect()).collect();
    for mut connection in &connections {
        connection.write_all(b"clicks 1\n").unwrap();
        connection.set_nonblocking(true).unwrap();
    }
    relay.until_settled(30);
    relay.signal(Signal::TERM);
    let told = || connections.iter().filter(|connection| connection.peek(&mut [0; 1]).is_ok()).count();
    let first = wait_for("one of them is told", || Some(told()).filter(|told| *told > 0));
    assert!(first < connections.len() / 2, "{first} are told at the same time");
    relay.terminate().assert_code(0);
}

/// Sends until `stop` says so, and waits until all is synced. Gives the number of events.
fn send_until(client: Client, stop: impl Fn() -> bool) -> u64 {
    let mut sent = 0;
    while !stop() {
        for _ in 0..100 {
            client.send("clicks", format!("{sent}").as_bytes()).unwrap();
            sent += 1;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let report = client.close(PATIENCE).unwrap();
    assert_eq!((report.synced, report.lost, report.unsynced), (sent, 0, 0), "{report:?}");
    sent
}

fn a_client_that_never_pauses_leaves_a_drain_without_repeating_anything(io: Io) {
    let root = tempfile::tempdir().unwrap();
    let arguments = |listen: &str| {
        let root = root.path().display();
        format!("--destination directory:{root} --linger 20ms --drain-deadline 1h --listen {listen}")
    };
    let old = Relay::start(io, &arguments("127.0.0.1:0"));
    let client = Client::connect(&old.address().to_string()).unwrap();
    let address = old.address().to_string();
    let ended = &AtomicBool::new(false);
    let sent = std::thread::scope(|scope| {
        let sender = scope.spawn(move || send_until(client, || ended.load(Ordering::Acquire)));
        old.until("it receives", |metrics| metrics.received("clicks") > 10_000);
        // Ends long before its deadline, although nobody stops sending.
        old.terminate().assert_code(0);
        let new = Relay::start(io, &arguments(&address));
        ended.store(true, Ordering::Release);
        let sent = sender.join().unwrap();
        new.terminate().assert_code(0);
        sent
    });
    let lines = Files::below(root.path()).lines_of("clicks");
    let mut numbers: Vec<usize> = lines.iter().map(|line| number(&line[..line.len() - 1])).collect();
    numbers.sort_unstable();
    assert!(numbers.into_iter().eq(0..usize::try_from(sent).unwrap()), "each of {sent} is there, and once");
}

fn connections_that_are_old_leave_and_nothing_is_lost_or_repeated(io: Io) {
    let relay = Relay::start(io, "--destination null --max-connection-age 1s --linger 20ms");
    let mut idle = relay.connect();
    idle.write_all(b"clicks 1\n").unwrap();
    let client = Client::connect(&relay.address().to_string()).unwrap();
    let aged = || relay.metrics().total("standpipe_connections_aged_total");
    let sent = send_until(client, || aged() >= 3);
    relay.until_settled(sent + 1);
    // A sender that pauses is told, and closed.
    assert_eq!(std::io::Read::read(&mut idle, &mut [0; 1]).unwrap(), 0);
    relay.until("none is left", |metrics| metrics.total("standpipe_connections") == 0);
}
