//! A relay on a host before a relay of a fleet: what the one takes, the other delivers, whichever of them ends.

use std::io::{BufRead, BufReader, Write};

use rustix::process::Signal;
use standpipe::client::{Client, Options};

use super::harness::{
    Files, Io, PATIENCE, Process, Relay, Sink, assert_identity, send, under_both_drivers, wait_for,
};

under_both_drivers!(
    every_event_goes_through_both,
    a_fleet_relay_that_is_killed_costs_no_event,
    a_fleet_relay_that_drains_costs_no_event_and_repeats_only_what_is_counted,
    what_the_fleet_loses_is_counted_and_told,
    a_stream_that_is_stuck_in_the_fleet_holds_no_other_up,
    a_fleet_that_is_away_is_tried_until_it_is_there,
    a_fleet_relay_that_hangs_holds_no_call_for_ever,
    a_fleet_relay_that_waits_itself_is_waited_for,
    a_spool_before_a_fleet_that_is_killed_again_and_again_loses_nothing_that_was_synced,
);

fn host(io: Io, fleet: &Relay, arguments: &str) -> Relay {
    let to = fleet.address();
    Relay::start(
        io,
        &format!("--destination relay:{to} --linger 50ms --retry-base 10ms --retry-max 200ms {arguments}"),
    )
}

fn every_event_goes_through_both(io: Io) {
    let sink = Sink::start("--fail-records 0.05 --latency 1ms-10ms --cut 0.05");
    let fleet =
        Relay::start(io, &format!("{} --linger 50ms --retry-base 5ms --shards 2", sink.destination()));
    let host = host(io, &fleet, "--shards 2");
    let sender = send(host.address(), "--events 100000 --streams 16 --size 250 --connections 8");
    sender.wait().assert_code(0);
    let metrics = host.until_settled(100_000);
    // Safe here means safe there: nothing is held behind what the host has settled.
    assert_eq!(metrics.total("standpipe_events_delivered_total"), 100_000);
    fleet.until_settled(100_000);
    let ledger = sink.ledger();
    assert_eq!(ledger["totals"]["missing_events"].as_u64().unwrap_or(0), 0, "{ledger}");
    host.terminate().assert_code(0);
    fleet.terminate().assert_code(0);
}

fn fleet_relay(io: Io, root: &tempfile::TempDir, arguments: &str) -> Relay {
    let arguments =
        format!("{} --destination directory:{} --linger 50ms {arguments}", io.flag(), root.path().display());
    Relay::ready(Process::start(&mut Relay::command(&arguments)))
}

fn numbered(range: std::ops::Range<usize>) -> Vec<u8> {
    range.flat_map(|number| format!("stream-{} {number:06}\n", number % 4).into_bytes()).collect()
}

/// How many different numbers are in the directory, and how many lines.
fn there(root: &tempfile::TempDir) -> (usize, usize) {
    let files = Files::below(root.path());
    let mut lines: Vec<Vec<u8>> =
        (0..4).flat_map(|number| files.lines_of(&format!("stream-{number}"))).collect();
    let all = lines.len();
    lines.sort();
    lines.dedup();
    (lines.len(), all)
}

fn a_fleet_relay_that_is_killed_costs_no_event(io: Io) {
    let root = tempfile::tempdir().unwrap();
    let first = fleet_relay(io, &root, "");
    let listen = format!("--listen {}", first.address());
    let host = host(io, &first, "");
    for part in 0..10 {
        host.send(&numbered(part * 2_000..(part + 1) * 2_000));
    }
    host.until("some are delivered", |metrics| metrics.total("standpipe_events_delivered_total") > 0);
    host.send(&numbered(20_000..30_000));
    // Dropping it is a kill -9.
    drop(first);
    host.send(&numbered(30_000..40_000));
    let _second = fleet_relay(io, &root, &listen);
    let metrics = host.until_settled(40_000);
    assert_eq!(metrics.total("standpipe_events_delivered_total"), 40_000);
    let (different, all) = there(&root);
    assert_eq!(different, 40_000);
    let duplicates = metrics.total("standpipe_possible_duplicate_events_total");
    assert!((all - different) as u64 <= duplicates, "{all} lines, {duplicates} possible duplicates");
}

fn a_fleet_relay_that_drains_costs_no_event_and_repeats_only_what_is_counted(io: Io) {
    let root = tempfile::tempdir().unwrap();
    let first = fleet_relay(io, &root, "");
    let listen = format!("--listen {}", first.address());
    let host = host(io, &first, "");
    host.send(&numbered(0..10_000));
    first.until("some are there", |metrics| metrics.total("standpipe_events_received_total") > 0);
    first.terminate().assert_code(0);
    host.send(&numbered(10_000..20_000));
    let _second = fleet_relay(io, &root, &listen);
    let metrics = host.until_settled(20_000);
    // A drain waits a bounded time for the syncs of what it has read; on a host that stalls for longer the rest is
    // sent again, which is counted.
    let (distinct, in_all) = there(&root);
    let repeated = metrics.total("standpipe_possible_duplicate_events_total") as usize;
    assert_eq!(distinct, 20_000);
    assert!(in_all - distinct <= repeated, "{in_all} lines for 20,000 events, {repeated} counted");
}

fn what_the_fleet_loses_is_counted_and_told(io: Io) {
    let root = tempfile::tempdir().unwrap();
    let fleet = fleet_relay(io, &root, "--max-frame-bytes 10");
    let host = host(io, &fleet, "--shards 1");
    let mut connection = host.connect();
    let mut answers = BufReader::new(connection.try_clone().unwrap());
    connection.write_all(b"!hello\nclicks 1\nclicks 01234567890\nclicks 2\n!sync all\n").unwrap();
    let mut said = String::new();
    while !said.contains("all") {
        answers.read_line(&mut said).unwrap();
    }
    assert!(said.ends_with("!lost all 1\n"), "{said}");
    let metrics = host.until_settled(3);
    assert_eq!((metrics.delivered("clicks"), metrics.dropped("clicks", "lost_downstream")), (2, 1));
    assert_eq!(Files::below(root.path()).of_stream("clicks"), b"1\n2\n");
}

fn a_stream_that_is_stuck_in_the_fleet_holds_no_other_up(io: Io) {
    let sink = Sink::start("--throttle-stream stuck");
    let fleet = Relay::start(
        io,
        &format!("{} --linger 20ms --retry-base 10ms --retry-max 100ms", sink.destination()),
    );
    let host = host(io, &fleet, "");
    host.send(b"stuck 1\n");
    host.until("it is on its way", |metrics| {
        metrics.sum("standpipe_events_held", &[("stream", "stuck"), ("place", "in_flight")]) == 1
    });
    for number in 1..=20 {
        host.send(format!("fine-{} 1\n", number % 5).as_bytes());
        host.until("the others are delivered", |metrics| {
            metrics.total("standpipe_events_delivered_total") == number
        });
    }
    assert_eq!(host.metrics().held("stuck"), 1);
    sink.set_faults("{}");
    host.until_settled(21);
}

fn a_fleet_that_is_away_is_tried_until_it_is_there(io: Io) {
    let root = tempfile::tempdir().unwrap();
    let first = fleet_relay(io, &root, "");
    let (host, listen) = (host(io, &first, ""), format!("--listen {}", first.address()));
    drop(first);
    host.send(&numbered(0..1_000));
    let metrics = host.until("it was tried", |metrics| {
        metrics.sum("standpipe_calls_total", &[("outcome", "internal")]) > 1
    });
    assert_eq!(metrics.total("standpipe_events_held"), 1_000);
    let status = host.get("/status").body;
    assert!(status.contains("no connection to the relay"), "{status}");
    let _second = fleet_relay(io, &root, &listen);
    let metrics = host.until_settled(1_000);
    assert_eq!(metrics.total("standpipe_possible_duplicate_events_total"), 0);
    wait_for("all is in the directory", || (there(&root) == (1_000, 1_000)).then_some(()));
}

fn unknown_calls(relay: &Relay) -> u64 {
    relay.metrics().sum("standpipe_calls_total", &[("outcome", "unknown")])
}

fn a_fleet_relay_that_hangs_holds_no_call_for_ever(io: Io) {
    let root = tempfile::tempdir().unwrap();
    let fleet = fleet_relay(io, &root, "");
    let host = host(io, &fleet, "--call-timeout 500ms");
    host.send(&numbered(0..100));
    host.until_settled(100);
    // Its host lives and takes bytes for it; the connection is there, and it reads nothing.
    fleet.signal(Signal::STOP);
    host.send(&numbered(100..200));
    wait_for("a call is given up", || (unknown_calls(&host) > 0).then_some(()));
    fleet.signal(Signal::CONT);
    let metrics = host.until_settled(200);
    assert_eq!(metrics.total("standpipe_events_delivered_total"), 200);
    let duplicates = metrics.total("standpipe_possible_duplicate_events_total");
    let (different, all) = there(&root);
    assert_eq!(different, 200);
    assert!((all - different) as u64 <= duplicates, "{all} lines, {duplicates} possible duplicates");
}

fn a_fleet_relay_that_waits_itself_is_waited_for(io: Io) {
    let sink = Sink::start("--throttle-stream stuck");
    let fleet = Relay::start(
        io,
        &format!("{} --linger 20ms --retry-base 50ms --retry-max 100ms", sink.destination()),
    );
    let host = host(io, &fleet, "--call-timeout 1s");
    host.send(b"stuck 1\n");
    // Many times as long as a ping may take.
    fleet.until("it has tried and tried", |metrics| {
        metrics.sum("standpipe_calls_total", &[("outcome", "throttled")]) > 60
    });
    assert_eq!((unknown_calls(&host), host.metrics().held("stuck")), (0, 1));
    sink.set_faults("{}");
    let metrics = host.until_settled(1);
    assert_eq!(metrics.total("standpipe_possible_duplicate_events_total"), 0);
}

fn a_spool_before_a_fleet_that_is_killed_again_and_again_loses_nothing_that_was_synced(io: Io) {
    let (root, spool) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut fleet = fleet_relay(io, &root, "");
    let listen = format!("--listen {}", fleet.address());
    let spooling = format!("--spool {} --spool-mode always --spool-free-floor 0", spool.path().display());
    let host = host(io, &fleet, &format!("{spooling} --sync-at stored"));
    let client = Client::with(&host.address().to_string(), Options::default()).unwrap();
    for round in 0..5 {
        for number in round * 2_000..(round + 1) * 2_000 {
            client.send(&format!("stream-{}", number % 4), format!("{number:06}").as_bytes()).unwrap();
        }
        // Stored on the host is safe, whatever becomes of the fleet.
        let report = client.sync(PATIENCE).unwrap();
        assert_eq!((report.synced, report.lost), ((round + 1) * 2_000, 0));
        // Dropping it is a kill -9.
        drop(fleet);
        fleet = fleet_relay(io, &root, &listen);
    }
    let metrics = host.until_settled(10_000);
    assert_identity(&metrics);
    assert_eq!(metrics.total("standpipe_events_delivered_total"), 10_000);
    let duplicates = metrics.total("standpipe_possible_duplicate_events_total");
    let (different, all) = there(&root);
    assert_eq!(different, 10_000);
    assert!((all - different) as u64 <= duplicates, "{all} lines, {duplicates} possible duplicates");
    host.terminate().assert_code(0);
    drop(fleet);
}
