//! The sender against real sockets: what arrives is what was planned, whole lines in order.

use std::collections::HashMap;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::time::Duration;

use clap::Parser;

use super::*;
use crate::event;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    load: Load,
}

fn plan(arguments: &str) -> Plan {
    let load = Cli::parse_from(std::iter::once("send").chain(arguments.split_whitespace())).load;
    Plan::new(load).unwrap()
}

/// Accepts `connections` and reads each to its end, with a small buffer so that the sender's writes are partial.
fn receive(listener: TcpListener, connections: usize) -> Vec<Vec<u8>> {
    let accept = |_| listener.accept().unwrap().0;
    let sockets: Vec<TcpStream> = (0..connections).map(accept).collect();
    let threads: Vec<_> =
        sockets.into_iter().map(|socket| std::thread::spawn(|| read_slowly(socket))).collect();
    threads.into_iter().map(|thread| thread.join().unwrap()).collect()
}

fn read_slowly(mut socket: TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    let mut buffer = [0; 1000];
    loop {
        match socket.read(&mut buffer).unwrap() {
            0 => return all,
            n => all.extend_from_slice(&buffer[..n]),
        }
    }
}

/// Checks every line, and that sequences per (connection, stream) rise from 0; returns counts by stream.
fn check(received: &[Vec<u8>]) -> HashMap<String, (u64, u64)> {
    let mut streams: HashMap<String, (u64, u64)> = HashMap::new();
    for bytes in received {
        let mut next: HashMap<String, u64> = HashMap::new();
        assert!(bytes.is_empty() || bytes.ends_with(b"\n"), "the last line is whole");
        for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let space = memchr::memchr(b' ', line).unwrap();
            let (name, payload) = (std::str::from_utf8(&line[..space]).unwrap(), &line[space + 1..]);
            let event = event::parse(payload).unwrap();
            assert!(event::verify(StreamSeed::new(name), payload, &event));
            let sequence = next.entry(name.to_owned()).or_default();
            assert_eq!(event.sequence, *sequence);
            *sequence += 1;
            let (events, sum) = streams.entry(name.to_owned()).or_default();
            *events += 1;
            *sum = sum.wrapping_add(u64::from(event.check));
        }
    }
    streams
}

fn send_and_check(arguments: &str) -> Sent {
    let plan = plan(arguments);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = Target::Tcp(listener.local_addr().unwrap());
    let connections = plan.load.connections;
    let receiver = std::thread::spawn(move || receive(listener, connections));
    let progress = Progress::default();
    let sent = send(&plan, &target, &progress, None).unwrap();
    let received = receiver.join().unwrap();
    let streams = check(&received);
    for stream in &sent.streams {
        let (events, check_sum) = streams.get(&stream.stream).copied().unwrap_or_default();
        assert_eq!((stream.events, stream.check_sum), (events, check_sum), "{}", stream.stream);
    }
    assert_eq!(sent.line_bytes, received.iter().map(|bytes| bytes.len() as u64).sum::<u64>());
    assert_eq!(progress.events(), sent.events_sent);
    assert_eq!(sent.events_sent, sent.streams.iter().map(|s| s.events).sum::<u64>());
    assert_eq!(sent.connections_failed + sent.connections_not_closed, 0, "{:?}", sent.errors);
    sent
}

#[test]
fn all_that_is_planned_arrives_in_order() {
    for arguments in [
        "--events 20000 --connections 3 --streams 7 --size 57-2000",
        "--events 5000 --connections 3 --write 0",
        "--events 2000 --connections 2 --size 10000 --write 1MiB --threads 2",
        "--events 20 --size 1023999 --connections 2",
        "--events 5 --connections 9 --streams 2",
        "--events 0 --connections 2",
        "--events 3000 --rate 100k --connections 5 --threads 2 --one-stream-per-connection",
    ] {
        let sent = send_and_check(arguments);
        assert_eq!((sent.events_sent, sent.events_unsent), (sent.events_planned, 0), "{arguments}");
        assert!(sent.is_complete());
    }
}

#[test]
fn time_ends_a_run_with_whole_lines() {
    let sent = send_and_check("--duration 200ms --connections 4 --size 64-9000");
    assert!(sent.events_sent > 0);
    let sent = send_and_check("--duration 300ms --rate 1000 --connections 4");
    assert_eq!(sent.events_planned, 300);
}

#[test]
fn a_receiver_that_does_not_read_leaves_events_unsent_and_bounded() {
    let plan = plan("--rate 1M --duration 500ms --size 1000 --connections 2 --close-timeout 100ms");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = Target::Tcp(listener.local_addr().unwrap());
    let sent = send(&plan, &target, &Progress::default(), None).unwrap();
    assert_eq!(sent.events_planned, 500_000);
    assert!(sent.events_unsent > 0 && sent.events_sent > 0);
    assert_eq!(sent.events_sent + sent.events_unsent, sent.events_planned);
    drop(listener);
}

#[test]
fn a_stuck_receiver_ends_the_run() {
    let plan = plan("--events 1M --size 1000 --connections 1 --close-timeout 50ms --stuck-timeout 100ms");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = Target::Tcp(listener.local_addr().unwrap());
    let sent = send(&plan, &target, &Progress::default(), None).unwrap();
    assert!(!sent.is_complete() && sent.events_unsent > 0);
    assert!(sent.errors[0].contains("took a byte"), "{:?}", sent.errors);
    drop(listener);
}

#[test]
fn a_connection_that_is_closed_midway_does_not_stop_the_others() {
    let plan = plan("--events 40000 --connections 2 --streams 3 --close-timeout 5s");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = Target::Tcp(listener.local_addr().unwrap());
    let receiver = std::thread::spawn(move || {
        let (mut first, _) = listener.accept().unwrap();
        let (second, _) = listener.accept().unwrap();
        first.read_exact(&mut [0; 1000]).unwrap();
        drop(first);
        read_slowly(second)
    });
    let sent = send(&plan, &target, &Progress::default(), None).unwrap();
    check(&[receiver.join().unwrap()]);
    assert_eq!(sent.events_by_connection[1], 20_000);
    assert_eq!(sent.connections_failed, 1);
    assert!(!sent.is_complete() && sent.errors[0].contains("connection 0 failed"), "{:?}", sent.errors);
    assert_eq!(sent.events_unsent, 20_000 - sent.events_by_connection[0]);
}

/// A draining relay shuts down its writing side and reads on: the line begun is finished, the rest is unsent.
#[test]
fn a_draining_peer_gets_whole_lines() {
    let plan = plan("--duration 20s --connections 1 --size 1000 --close-timeout 5s");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = Target::Tcp(listener.local_addr().unwrap());
    let receiver = std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        let mut first = vec![0; 100_000];
        socket.read_exact(&mut first).unwrap();
        socket.shutdown(std::net::Shutdown::Write).unwrap();
        first.extend_from_slice(&read_slowly(socket));
        first
    });
    let sent = send(&plan, &target, &Progress::default(), None).unwrap();
    let received = receiver.join().unwrap();
    let events: u64 = check(std::slice::from_ref(&received)).values().map(|(events, _)| events).sum();
    assert_eq!((events, received.len() as u64), (sent.events_sent, sent.line_bytes));
    assert_eq!(sent.connections_failed, 1);
}

#[test]
fn unix_sockets_work() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let receiver = std::thread::spawn(move || {
        let mut all = Vec::new();
        listener.accept().unwrap().0.read_to_end(&mut all).unwrap();
        all
    });
    let target = format!("unix:{}", path.display()).parse().unwrap();
    let sent = send(&plan("--events 10000 --connections 1"), &target, &Progress::default(), None).unwrap();
    let streams = check(&[receiver.join().unwrap()]);
    assert_eq!(streams.values().map(|(events, _)| events).sum::<u64>(), 10_000);
    assert_eq!((sent.events_sent, sent.connections_not_closed), (10_000, 0));
}

#[test]
fn refused_options_are_sentences() {
    let load = |arguments: &str| {
        let load = Cli::parse_from(std::iter::once("send").chain(arguments.split_whitespace())).load;
        Plan::new(load).unwrap_err().to_string()
    };
    assert!(load("--size 9").contains("from 57"));
    assert!(load("--connections 0").contains("--connections"));
    assert!(load("--stream a/b").contains("`a/b` is no stream name"));
    assert!("nowhere".parse::<Target>().unwrap_err().contains("HOST:PORT"));
    assert!(raise_file_limit(1 << 40).unwrap_err().to_string().contains("ulimit"));
}

#[test]
fn names_are_padded_so_that_they_sort() {
    assert_eq!(plan("--streams 10").streams[9].name, "stream-9");
    assert_eq!(plan("--streams 11").streams[9].name, "stream-09");
    assert_eq!(plan("--stream a --stream b").streams.len(), 2);
    assert_eq!(plan("--duration 1s").events(), None);
    assert_eq!(plan("").events(), Some(1_000_000));
    let span = plan("--duration 1s --rate 10");
    assert_eq!(span.events(), Some(10));
    assert_eq!(span.load().duration, Some(Duration::from_secs(1)));
}
