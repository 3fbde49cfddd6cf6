//! `!sync` from the outside: answered when everything before it is safe, in order, with what was lost, and not
//! before; whatever becomes of the destination, of the connection and of the relay.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;

use rustix::process::Signal;

use super::harness::{Files, Io, PATIENCE, Relay, Sink, under_both_drivers, wait_for};

under_both_drivers!(
    what_is_synced_is_in_the_directory,
    syncs_are_answered_in_order_and_one_each,
    what_was_not_taken_is_lost_to_the_next_sync_and_only_to_that,
    a_first_sync_without_a_hello_covers_what_came_before,
    a_half_closed_connection_is_answered_and_then_closed,
    a_unix_socket_syncs_too,
    with_64_pending_a_connection_is_not_read,
    faults_of_the_endpoint_delay_syncs_and_lose_nothing,
    a_stuck_lane_delays_only_the_syncs_that_cover_it,
    what_is_rejected_after_sealing_is_lost,
    what_is_dropped_at_the_cap_is_lost,
    a_paused_connection_is_told_nothing_until_it_goes_on,
    a_drain_answers_before_it_closes,
    a_drain_waits_for_the_sync_of_what_was_sent,
    a_drain_that_cannot_deliver_answers_nothing,
    many_connections_on_two_shards_sync_at_once,
);

/// A connection that says hello and syncs.
struct Client {
    writer: TcpStream,
    answers: BufReader<TcpStream>,
}

impl Client {
    fn connect(relay: &Relay) -> Self {
        let mut client = Self::silent(relay);
        client.write(b"!hello\n");
        assert_eq!(client.answer(), "!hello sync_at=delivered");
        client
    }

    fn silent(relay: &Relay) -> Self {
        let writer = relay.connect();
        let answers = BufReader::new(writer.try_clone().unwrap());
        Self { writer, answers }
    }

    fn write(&mut self, bytes: &[u8]) {
        self.writer.write_all(bytes).unwrap();
    }

    /// The next line, without its LF; empty at the end.
    fn answer(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn sync(&mut self, id: &str) -> String {
        self.write(format!("!sync {id}\n").as_bytes());
        self.answer()
    }

    /// Asserts that no answer has come: a ping overtakes syncs that wait, and by then one would be here.
    fn assert_waits(&mut self) {
        self.write(b"!ping\n");
        assert_eq!(self.answer(), "!pong");
    }
}

fn directory(root: &tempfile::TempDir) -> String {
    format!("--destination directory:{} --linger 50ms", root.path().display())
}

fn what_is_synced_is_in_the_directory(io: Io) {
    let root = tempfile::tempdir().unwrap();
    let relay = Relay::start(io, &format!("{} --shards 1", directory(&root)));
    let mut client = Client::connect(&relay);
    for round in 0..20 {
        for event in 0..100 {
            client.write(format!("clicks {round} {event}\nviews {round} {event}\n").as_bytes());
        }
        let id = format!("round-{round}");
        assert_eq!(client.sync(&id), format!("!synced {id}"));
        let files = Files::below(root.path());
        for stream in ["clicks", "views"] {
            assert_eq!(files.lines_of(stream).len(), (round + 1) * 100);
        }
    }
    let metrics = relay.until_settled(4_000);
    assert_eq!(metrics.sum("standpipe_syncs_total", &[("outcome", "synced")]), 20);
    assert_eq!(metrics.total("standpipe_syncs_pending"), 0);
}

fn syncs_are_answered_in_order_and_one_each(io: Io) {
    let relay = Relay::start(io, "--destination null --linger 50ms");
    let mut client = Client::connect(&relay);
    let frames: String = (0..60).map(|number| format!("stream-{} x\n!sync {number}\n", number % 7)).collect();
    client.write(frames.as_bytes());
    for number in 0..60 {
        assert_eq!(client.answer(), format!("!synced {number}"));
    }
    assert_eq!(client.sync("nothing"), "!synced nothing");
    for wrong in ["!sync\n", "!sync \n", "!sync a b\n", "!sync \u{e9}\n"] {
        client.write(wrong.as_bytes());
        assert_eq!(client.answer(), "!error sync wants an ID of 1 to 64 printable octets");
    }
    let longest = "x".repeat(64);
    assert_eq!(client.sync(&longest), format!("!synced {longest}"));
    assert_eq!(relay.until_settled(60).rejected("bad_control"), 4);
}

fn what_was_not_taken_is_lost_to_the_next_sync_and_only_to_that(io: Io) {
    let relay = Relay::start(io, "--destination null --linger 50ms --max-frame-bytes 10");
    let mut client = Client::connect(&relay);
    client.write(b"clicks 1\nclicks 01234567890\nclicks 2\n");
    assert_eq!(client.sync("long"), "!lost long 1");
    assert_eq!(client.sync("none"), "!synced none");
    client.write(b"no/name x\n\nclicks \n");
    client.write(&[b"clicks ", &b"x".repeat(100_000)[..], b"\n"].concat());
    assert_eq!(client.sync("four"), "!lost four 4");
    client.write(b"clicks 3\n");
    assert_eq!(client.sync("good"), "!synced good");
    let metrics = relay.until_settled(3);
    assert_eq!(metrics.sum("standpipe_syncs_total", &[("outcome", "lost")]), 2);
}

fn a_first_sync_without_a_hello_covers_what_came_before(io: Io) {
    let root = tempfile::tempdir().unwrap();
    let relay = Relay::start(io, &directory(&root));
    let mut client = Client::silent(&relay);
    client.write(b"clicks 1\nclicks 2\nword\nviews 1\n");
    assert_eq!(client.sync("first"), "!lost first 1");
    let files = Files::below(root.path());
    assert_eq!((files.of_stream("clicks"), files.of_stream("views")), (b"1\n2\n".to_vec(), b"1\n".to_vec()));
    client.write(b"clicks 3\n");
    assert_eq!(client.sync("second"), "!synced second");
}

fn a_half_closed_connection_is_answered_and_then_closed(io: Io) {
    let root = tempfile::tempdir().unwrap();
    let relay = Relay::start(io, &directory(&root));
    let mut client = Client::silent(&relay);
    client.write(b"!sync 0\nclicks 1\n!sync 1\nclicks 2\n!sync 2\nclicks half");
    client.writer.shutdown(Shutdown::Write).unwrap();
    let mut answers = String::new();
    client.answers.read_to_string(&mut answers).unwrap();
    assert_eq!(answers, "!synced 0\n!synced 1\n!synced 2\n");
    assert_eq!(Files::below(root.path()).of_stream("clicks"), b"1\n2\n");
    relay.until("it is closed", |metrics| metrics.total("standpipe_connections") == 0);
}

fn a_unix_socket_syncs_too(io: Io) {
    let root = tempfile::tempdir().unwrap();
    let socket = root.path().join("socket");
    let relay =
        Relay::start(io, &format!("--destination null --linger 50ms --listen unix:{}", socket.display()));
    let mut connection = UnixStream::connect(&socket).unwrap();
    connection.set_read_timeout(Some(PATIENCE)).unwrap();
    connection.write_all(b"!hello\nclicks 1\n!sync a\nclicks 2\nbad\n!sync b\n").unwrap();
    connection.shutdown(Shutdown::Write).unwrap();
    let mut answers = String::new();
    connection.read_to_string(&mut answers).unwrap();
    assert_eq!(answers, "!hello sync_at=delivered\n!synced a\n!lost b 1\n");
    relay.until_settled(2);
}

/// Firehose, refused for now by throttling one stream.
fn throttling(io: Io, stream: &str) -> (Sink, Relay) {
    let sink = Sink::start(&format!("--throttle-stream {stream}"));
    let relay = Relay::start(
        io,
        &format!("{} --linger 50ms --retry-base 10ms --retry-max 100ms --shards 1", sink.destination()),
    );
    (sink, relay)
}

fn with_64_pending_a_connection_is_not_read(io: Io) {
    let (sink, relay) = throttling(io, "stuck");
    let mut client = Client::connect(&relay);
    client.write(b"stuck 1\n");
    for number in 0..100 {
        client.write(format!("!sync {number}\nfine {number}\n").as_bytes());
    }
    let metrics = relay.until("64 syncs wait", |metrics| {
        metrics.total("standpipe_syncs_pending") == 64 && metrics.total("standpipe_paused_connections") == 1
    });
    assert_eq!(metrics.received("fine"), 64);
    sink.set_faults("{}");
    for number in 0..100 {
        assert_eq!(client.answer(), format!("!synced {number}"));
    }
    let metrics = relay.until_settled(101);
    assert_eq!(
        (metrics.total("standpipe_syncs_pending"), metrics.total("standpipe_paused_connections")),
        (0, 0)
    );
}

fn faults_of_the_endpoint_delay_syncs_and_lose_nothing(io: Io) {
    let sink = Sink::start("--fail-records 0.2 --latency 1ms-20ms --cut 0.1 --cut-early 0.1 --error-500 0.1");
    let relay = Relay::start(
        io,
        &format!("{} --linger 20ms --retry-base 5ms --retry-max 50ms --shards 2", sink.destination()),
    );
    std::thread::scope(|scope| {
        for connection in 0..8 {
            let (relay, sink) = (&relay, &sink);
            scope.spawn(move || {
                let mut client = Client::connect(relay);
                let stream = format!("own-{connection}");
                for round in 1..=10u64 {
                    for event in 0..50 {
                        client.write(format!("{stream} {event}\nshared {event}\n").as_bytes());
                    }
                    assert_eq!(client.sync(&round.to_string()), format!("!synced {round}"));
                    let ledger = sink.ledger();
                    let accepted = ledger["streams"][&stream]["foreign_events"].as_u64().unwrap_or(0);
                    assert!(accepted >= round * 50, "{accepted} of {} are there", round * 50);
                }
            });
        }
    });
    relay.until_settled(8 * 10 * 100);
}

fn a_stuck_lane_delays_only_the_syncs_that_cover_it(io: Io) {
    let (sink, relay) = throttling(io, "stuck");
    let (mut stuck, mut fine) = (Client::connect(&relay), Client::connect(&relay));
    stuck.write(b"fine 0\n!sync before\nstuck 1\n!sync over\nfine 1\n!sync behind\n");
    assert_eq!(stuck.answer(), "!synced before");
    for number in 0..20 {
        fine.write(b"fine 2\n");
        assert_eq!(fine.sync(&number.to_string()), format!("!synced {number}"));
    }
    stuck.assert_waits();
    assert_eq!(relay.metrics().total("standpipe_syncs_pending"), 2);
    sink.set_faults("{}");
    assert_eq!(stuck.answer() + &stuck.answer(), "!synced over!synced behind");
    relay.until_settled(23);
}

fn what_is_rejected_after_sealing_is_lost(io: Io) {
    let sink = Sink::start("--poison POISON");
    let root = tempfile::tempdir().unwrap();
    let config = root.path().join("standpipe.toml");
    std::fs::write(&config, "[streams.mixed]\npacking = \"single\"\n").unwrap();
    let flags = format!("--config {} --linger 100ms --park-probe 100ms --shards 1", config.display());
    let relay = Relay::start(io, &format!("{} {flags}", sink.destination()));
    let (mut poisoned, mut other) = (Client::connect(&relay), Client::connect(&relay));
    other.write(b"good 1\n");
    poisoned.write(b"mixed 1\nmixed POISON\nmixed POISON\nmixed 2\n!sync bad\n");
    other.write(b"!sync good\n");
    // A record that is refused alone is dropped once the lane has accepted others since.
    let answer = wait_for("the poison is dropped", || {
        relay.send(b"mixed 3\n");
        (relay.metrics().total("standpipe_syncs_pending") == 0).then(|| poisoned.answer())
    });
    assert_eq!((answer.as_str(), other.answer().as_str()), ("!lost bad 2", "!synced good"));
    poisoned.write(b"good 2\n");
    assert_eq!(poisoned.sync("again"), "!synced again");
}

fn what_is_dropped_at_the_cap_is_lost(io: Io) {
    let (sink, relay) = {
        let sink = Sink::start("--throttle-stream stuck");
        let flags = "--memory 48MiB --max-connections 100 --on-full drop --retry-max 100ms --shards 1";
        let relay = Relay::start(io, &format!("{} {flags}", sink.destination()));
        (sink, relay)
    };
    let mut client = Client::connect(&relay);
    let line = [&b"stuck "[..], &[b'x'; 4_000], b"\n"].concat();
    client.write(&line.repeat(4_000));
    client.write(b"!sync all\n");
    let metrics = relay.until("all is read", |metrics| metrics.received("stuck") == 4_000);
    sink.set_faults("{}");
    let dropped = metrics.dropped("stuck", "memory");
    assert!(dropped > 0);
    assert_eq!(client.answer(), format!("!lost all {dropped}"));
}

fn a_paused_connection_is_told_nothing_until_it_goes_on(io: Io) {
    let sink = Sink::start("--throttle-stream stuck");
    let flags = "--memory 48MiB --max-connections 100 --linger 100ms --retry-max 100ms --shards 1";
    let relay = Relay::start(io, &format!("{} {flags}", sink.destination()));
    let line = [&b"stuck "[..], &[b'x'; 4_000], b"\n"].concat();
    let mut client = Client::connect(&relay);
    let mut writer = client.writer.try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            writer.write_all(b"fine 1\n!sync fine\n").unwrap();
            writer.write_all(&line.repeat(4_000)).unwrap();
            writer.write_all(b"!sync stuck\n").unwrap();
        });
        relay.until("it is paused", |metrics| {
            metrics.total("standpipe_paused_connections") == 1 && metrics.delivered("fine") == 1
        });
        sink.set_faults("{}");
        assert_eq!(client.answer() + &client.answer(), "!synced fine!synced stuck");
    });
    relay.until_settled(4_001);
}

fn a_drain_answers_before_it_closes(io: Io) {
    let root = tempfile::tempdir().unwrap();
    // Nothing but the drain seals.
    let relay = Relay::start(
        io,
        &format!("--destination directory:{} --linger 15m --drain-deadline 1h", root.path().display()),
    );
    let mut clients: Vec<Client> = (0..10).map(|_| Client::connect(&relay)).collect();
    let mut idle = Client::connect(&relay);
    for client in &mut clients {
        client.write(b"clicks 1\n!sync 1\nbad\n!sync 2\n");
    }
    relay.until("all is read", |metrics| metrics.total("standpipe_syncs_pending") == 20);
    relay.signal(Signal::TERM);
    assert_eq!(idle.answer(), "", "nothing is owed to it");
    for client in &mut clients {
        assert_eq!([client.answer(), client.answer(), client.answer()], ["!synced 1", "!lost 2 1", ""]);
    }
    relay.wait().assert_code(0);
    assert_eq!(Files::below(root.path()).lines_of("clicks").len(), 10);
}

fn a_drain_waits_for_the_sync_of_what_was_sent(io: Io) {
    let root = tempfile::tempdir().unwrap();
    let relay = Relay::start(io, &format!("{} --drain-deadline 1h", directory(&root)));
    let mut client = Client::connect(&relay);
    client.write(b"clicks 1\n");
    relay.until_settled(1);
    let mut idle = Client::connect(&relay);
    relay.signal(Signal::TERM);
    assert_eq!(idle.answer(), "", "the drain has begun");
    client.write(b"clicks 2\n!sync 1\n");
    assert_eq!([client.answer(), client.answer()], ["!synced 1", ""]);
    drop(client);
    relay.wait().assert_code(0);
    assert_eq!(Files::below(root.path()).of_stream("clicks"), b"1\n2\n");
}

fn a_drain_that_cannot_deliver_answers_nothing(io: Io) {
    let sink = Sink::start("--throttle-stream stuck");
    let relay = Relay::start(io, &format!("{} --linger 50ms --drain-deadline 1s", sink.destination()));
    let mut client = Client::connect(&relay);
    client.write(b"stuck 1\n!sync 1\n");
    relay.until("it is read", |metrics| metrics.total("standpipe_syncs_pending") == 1);
    relay.signal(Signal::TERM);
    let mut answers = String::new();
    // Cut off or closed: nothing was promised.
    let _ = client.answers.read_to_string(&mut answers);
    assert_eq!(answers, "");
    relay.wait().assert_code(3);
}

fn many_connections_on_two_shards_sync_at_once(io: Io) {
    let relay = Relay::start(io, "--destination null --linger 50ms --shards 2");
    let mut clients: Vec<Client> = (0..400).map(|_| Client::connect(&relay)).collect();
    for round in 0..5 {
        for (number, client) in clients.iter_mut().enumerate() {
            client.write(format!("shared x\nstream-{} x\n!sync {round}\n", number % 50).as_bytes());
        }
        for client in &mut clients {
            assert_eq!(client.answer(), format!("!synced {round}"));
        }
    }
    drop(clients);
    let metrics = relay.until_settled(4_000);
    assert_eq!(metrics.sum("standpipe_syncs_total", &[("outcome", "synced")]), 2_000);
    relay.until("sync memory is given back", |metrics| metrics.memory("partial") == 0);
}
