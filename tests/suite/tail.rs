//! Live events through the admin port: a sample that costs nobody anything.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{ChildStdout, Stdio};

use super::harness::{Io, PATIENCE, Process, Relay, Sink, send, under_both_drivers, wait_for};

under_both_drivers!(
    events_are_shown_as_they_came,
    a_sample_ends_with_its_count,
    events_of_large_batches_are_shown_decoded,
    a_reader_that_does_not_read_holds_nobody_up,
    a_stream_may_begin_later_and_one_that_is_not_taken_is_said,
    only_so_many_look_at_one_time_and_each_gives_its_place_up,
    what_is_asked_wrongly_is_answered_in_a_sentence,
);

/// `standpipe tail` as a process.
struct Tail {
    process: Process,
    events: BufReader<ChildStdout>,
}

impl Tail {
    /// Starts one that is to look at a relay, and waits until it does.
    fn start(relay: &Relay, arguments: &str) -> Self {
        let mut command = Relay::bare_command();
        command.arg("tail").args(arguments.split_whitespace());
        command.args(["--admin", &relay.admin().to_string()]).stdout(Stdio::piped());
        let mut process = Process::start(&mut command);
        let events = BufReader::new(process.stdout());
        let said = process.wait_for_line(|line| line.contains("a sample of stream").then_some(()));
        assert!(said.is_some(), "{}", process.log().join("\n"));
        Self { process, events }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.events.read_line(&mut line).unwrap();
        line
    }

    /// All the rest, where it ends by itself.
    fn rest(mut self) -> Vec<String> {
        let lines = self.events.by_ref().lines().map(Result::unwrap).collect();
        self.process.wait().assert_code(0);
        lines
    }
}

/// A request whose answer goes on, with the head read.
fn get(relay: &Relay, path: &str) -> (u16, BufReader<TcpStream>) {
    let mut connection = TcpStream::connect(relay.admin()).unwrap();
    connection.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(connection, "GET {path} HTTP/1.0\r\nhost: test\r\n\r\n").unwrap();
    let mut answer = BufReader::new(connection);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(answer.read_line(&mut head).unwrap() > 0, "{head}");
    }
    (head.split(' ').nth(1).unwrap().parse().unwrap(), answer)
}

fn events_are_shown_as_they_came(io: Io) {
    let relay = Relay::start(io, "--destination null --linger 50ms");
    relay.send(b"clicks before\n");
    relay.until_settled(1);
    let mut tail = Tail::start(&relay, "clicks");
    relay.send(b"clicks {\"a\": 1}\r\nviews 1\nclicks \xff\xfe  \nclicks 3\n");
    let mut seen = vec![0; 10 + 5 + 2];
    tail.events.read_exact(&mut seen).unwrap();
    assert_eq!(seen, b"{\"a\": 1}\r\n\xff\xfe  \n3\n".to_vec(), "{:?}", String::from_utf8_lossy(&seen));
    relay.until_settled(5);
    // The relay ends, and with it the sample.
    relay.terminate().assert_code(0);
    assert_eq!(tail.rest(), [""; 0]);
}

fn a_sample_ends_with_its_count(io: Io) {
    let relay = Relay::start(io, "--destination null --linger 20ms");
    let tail = Tail::start(&relay, "clicks --rate 3 --count 8");
    let sender = send(relay.address(), "--stream clicks --rate 20000 --duration 8s --connections 2");
    let lines = tail.rest();
    // A second's worth at once, and then as they may.
    assert_eq!(lines.len(), 8, "{lines:?}");
    sender.wait().assert_code(0);
    relay.until("nobody looks, and nothing is held", |metrics| metrics.total("standpipe_events_held") == 0);
}

fn events_of_large_batches_are_shown_decoded(io: Io) {
    let sink = Sink::start("");
    let relay = Relay::start(io, &format!("{} --linger 200ms --shards 1", sink.destination()));
    let mut tail = Tail::start(&relay, "clicks --rate 1000");
    let frames: String = (0..20_000).map(|number| format!("clicks event number {number}\n")).collect();
    relay.send(frames.as_bytes());
    for _ in 0..30 {
        let line = tail.line();
        let number = line.strip_prefix("event number ").and_then(|number| number.trim_end().parse().ok());
        assert!(number.is_some_and(|number: u32| number < 20_000), "{line:?}");
    }
    relay.send(format!("clicks {}\n", "x".repeat(100_000)).as_bytes());
    wait_for("the long one is shown, and cut", || {
        let line = tail.line();
        line.starts_with('x').then(|| assert_eq!(line, format!("{}…\n", "x".repeat(8 * 1024))))
    });
    relay.until_settled(20_001);
    assert_eq!(sink.ledger()["totals"]["foreign_events"], 20_001);
}

fn a_reader_that_does_not_read_holds_nobody_up(io: Io) {
    let relay = Relay::start(io, "--destination null --linger 20ms");
    let (status, lazy) = get(&relay, "/tail?stream=clicks&rate=1000");
    assert_eq!(status, 200);
    let line = [&b"clicks "[..], &[b'x'; 8_000], b"\n"].concat();
    for round in 1..=40 {
        relay.send(&line.repeat(100));
        relay.until_settled(100 * round);
    }
    drop(lazy);
    relay.terminate().assert_code(0);
}

fn a_stream_may_begin_later_and_one_that_is_not_taken_is_said(io: Io) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("standpipe.toml");
    std::fs::write(&file, "only_configured_streams = true\n[streams.clicks]\n").unwrap();
    let flags = format!("--destination null --linger 50ms --config {}", file.display());
    let relay = Relay::start(io, &flags);
    let mut tail = Tail::start(&relay, "clicks");
    let note = "no event of stream clicks has come yet; waiting for the first";
    tail.process.wait_for_line(|line| line.contains(note).then_some(())).unwrap();
    relay.send(b"clicks 1\n");
    assert_eq!(tail.line(), "1\n");
    let answer = relay.get("/tail?stream=views");
    assert_eq!((answer.status, answer.body.contains("is not configured")), (404, true), "{}", answer.body);
    let mut command = Relay::bare_command();
    command.args(["tail", "views", "--admin", &relay.admin().to_string()]);
    let ended = Process::start(&mut command).wait();
    ended.assert_code(1);
    assert_eq!(ended.lines_with("the stream views is not taken here"), 1, "{}", ended.log.join("\n"));
}

fn only_so_many_look_at_one_time_and_each_gives_its_place_up(io: Io) {
    let relay = Relay::start(io, "--destination null --linger 50ms");
    let mut tails: Vec<_> = (0..4).map(|_| get(&relay, "/tail?stream=quiet")).collect();
    assert!(tails.iter().all(|(status, _)| *status == 200));
    assert_eq!(relay.get("/tail?stream=clicks&count=1").status, 429);
    // A stream without events does not keep a place for who has gone.
    tails.pop();
    let (_, mut next) = wait_for("a place is free", || {
        Some(get(&relay, "/tail?stream=clicks&count=1")).filter(|(status, _)| *status == 200)
    });
    relay.send(b"clicks 1\nclicks 2\n");
    let mut text = String::new();
    next.read_to_string(&mut text).unwrap();
    assert_eq!(text, "1\n");
}

fn what_is_asked_wrongly_is_answered_in_a_sentence(io: Io) {
    let relay = Relay::start(io, "--destination null");
    for (query, sentence) in [
        ("", "the stream is missing"),
        ("?stream=a/b", "a stream's name has"),
        ("?stream=a&rate=0", "rate must be"),
        ("?stream=a&count=x", "count must be"),
        ("?stream=a&max=1", "there is no parameter max"),
    ] {
        let answer = relay.get(&format!("/tail{query}"));
        assert_eq!((answer.status, answer.body.contains(sentence)), (400, true), "{query}: {}", answer.body);
    }
    assert_eq!(relay.get_with("/tail?stream=clicks", "sec-fetch-site: cross-site").status, 403);
    let mut command = Relay::bare_command();
    let ended = Process::start(command.args(["tail", "clicks", "--admin", "127.0.0.1:9"])).wait();
    assert_eq!(ended.assert_code(1).lines_with("no relay answers at http://127.0.0.1:9"), 1);
}
