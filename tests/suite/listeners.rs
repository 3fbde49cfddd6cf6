//! Where connections come in: addresses that are taken, taken over, files in the file system, and several shards.

use std::io::Write;
use std::os::unix::net::UnixStream;

use super::harness::{Io, Metrics, Process, Relay, assert_identity, run, under_both_drivers, wait_for};

under_both_drivers!(
    a_second_relay_on_the_same_address_is_refused_in_a_sentence,
    a_relay_can_be_taken_over,
    a_unix_socket_is_served_and_its_file_removed,
    a_socket_file_that_nobody_listens_on_is_replaced,
    two_shards_share_the_calls_of_low_rate_streams,
    of_four_connections_each_of_two_shards_has_two,
    the_admin_port_goes_to_the_relay_that_takes_over,
);

fn second(io: Io, first: &Relay, arguments: &str) -> Process {
    let arguments = format!("{} --destination null --listen {} {arguments}", io.flag(), first.listen());
    Process::start(&mut Relay::command(&arguments))
}

fn a_second_relay_on_the_same_address_is_refused_in_a_sentence(io: Io) {
    let directory = tempfile::tempdir().unwrap();
    let socket = format!("unix:{}", directory.path().join("socket").display());
    for listen in ["127.0.0.1:0", "[::1]:0", &socket] {
        let first = Relay::start(io, &format!("--destination null --listen {listen}"));
        let ended = second(io, &first, "").wait();
        ended.assert_code(1);
        assert_eq!(
            ended.lines_with(&format!("cannot listen on {}: ", first.listen())),
            1,
            "{}",
            ended.log.join("\n")
        );
    }
    let first = Relay::start(io, "--destination null");
    let mut command = Relay::bare_command();
    command.args(["--listen", "127.0.0.1:0", "--destination", "null", "--admin", &first.admin().to_string()]);
    let ended = Process::start(&mut command).wait();
    ended.assert_code(1);
    let sentence = format!("cannot serve the admin endpoints on {}", first.admin());
    assert_eq!(ended.lines_with(&sentence), 1, "{}", ended.log.join("\n"));
}

fn a_relay_can_be_taken_over(io: Io) {
    let old = Relay::start(io, "--destination null");
    old.send(b"clicks 0\n");
    old.until_settled(1);
    let new = Relay::ready(second(io, &old, "--takeover"));
    let received = |relay: &Relay| relay.metrics().received("clicks");
    let mut sent = 1;
    wait_for("both have connections", || {
        old.send(b"clicks 1\n");
        sent += 1;
        (received(&old) > 1 && received(&new) > 0).then_some(())
    });
    wait_for("every event is received by one of them", || {
        (received(&old) + received(&new) == sent).then_some(())
    });
    let by_old = received(&old);
    let ended = old.terminate();
    ended.assert_code(0);
    assert_eq!(
        ended.lines_with(&format!("stream clicks: received {by_old} ")),
        1,
        "{}",
        ended.log.join("\n")
    );
    let by_new = received(&new);
    (0..10).for_each(|_| new.send(b"clicks 2\n"));
    new.until_settled(by_new + 10);
}

fn a_unix_socket_is_served_and_its_file_removed(io: Io) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("standpipe.sock");
    let relay = Relay::start(
        io,
        &format!("--destination null --listen unix:{} --listen 127.0.0.1:0", path.display()),
    );
    UnixStream::connect(&path).unwrap().write_all(b"clicks 1\nclicks 2\n").unwrap();
    relay.send(b"clicks 3\n");
    let metrics = relay.until_settled(3);
    assert_identity(&metrics);
    let mut idle = UnixStream::connect(&path).unwrap();
    idle.write_all(b"clicks 4\n").unwrap();
    let metrics = relay.until_settled(4);
    let listener = format!("unix:{}", path.display());
    assert_eq!(metrics.sum("standpipe_connections", &[("listener", &listener)]), 1);
    relay.terminate().assert_code(0);
    assert!(!path.exists());
}

fn a_socket_file_that_nobody_listens_on_is_replaced(io: Io) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("standpipe.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let relay = Relay::start(io, &format!("--destination null --listen unix:{}", path.display()));
    UnixStream::connect(&path).unwrap().write_all(b"clicks 1\n").unwrap();
    relay.until_settled(1);
    drop(relay);
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "precious").unwrap();
    let arguments = format!("{} --destination null --listen unix:{}", io.flag(), path.display());
    Process::start(&mut Relay::command(&arguments)).wait().assert_code(1);
    assert_eq!(std::fs::read(&path).unwrap(), b"precious", "a file that is no socket is left alone");
}

/// The pieces of both shards meet within 5 ms on a machine that is not overloaded. One that runs other tests may
/// be, so it has several tries; `faults.sh` looks at this on a quiet machine.
const TRIES: usize = 5;

fn two_shards_share_the_calls_of_low_rate_streams(io: Io) {
    let calls = |shards: usize| {
        let load = "--events 2000 --rate 2000 --connections 16 --streams 8";
        let run = run(io, load, &format!("--linger 250ms --shards {shards}"));
        run.assert_good();
        run.number("/ledger/calls/total")
    };
    let mut seen = Vec::new();
    let is_shared = (0..TRIES).any(|_| {
        let (one, two) = (calls(1), calls(2));
        seen.push((one, two));
        // A run may begin and end in the middle of a linger: one call a stream more.
        two as f64 <= one as f64 * 1.1 + 8.0
    });
    assert!(is_shared, "calls with one shard and with two: {seen:?}");
}

fn of_four_connections_each_of_two_shards_has_two(io: Io) {
    let relay = Relay::start(io, "--destination null --shards 2");
    let of_shard =
        |metrics: &Metrics, shard: &str| metrics.sum("standpipe_received_bytes_total", &[("shard", shard)]);
    for round in 1..=10 {
        let connections: Vec<_> = (0..4).map(|_| relay.connect()).collect();
        for mut connection in &connections {
            connection.write_all(b"clicks 1\n").unwrap();
        }
        let metrics = relay.until_settled(4 * round);
        assert_eq!(of_shard(&metrics, "0"), of_shard(&metrics, "1"), "bytes in round {round}");
        drop(connections);
        relay.until("all are closed", |metrics| metrics.total("standpipe_connections") == 0);
    }
    relay.terminate().assert_code(0);
}

fn the_admin_port_goes_to_the_relay_that_takes_over(io: Io) {
    let old = Relay::start(io, "--destination null");
    // A connection that would hold the drain up, so that both run for a while.
    let mut half = old.connect();
    half.write_all(b"clicks ha").unwrap();
    old.until("it is open", |metrics| metrics.total("standpipe_received_bytes_total") == 9);
    let mut command = Relay::bare_command();
    command.args(["--listen", old.listen(), "--admin", &old.admin().to_string(), "--destination", "null"]);
    command.args(io.flag().split(' ')).arg("--takeover");
    let new = Relay::ready(Process::start(&mut command));
    assert_eq!((new.admin(), new.address()), (old.admin(), old.address()));
    new.send(b"clicks 1\n");
    new.until_settled(1);
    half.write_all(b"lf\n").unwrap();
    drop(half);
    old.wait().assert_code(0);
    new.until_settled(1);
    new.terminate().assert_code(0);
}
