//! One relay replaced by another under load: no connection is refused, and nothing that was synced is lost.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use standpipe::client::Client;
use standpipe::handover;

use super::harness::{Ended, Files, Io, PATIENCE, Process, Relay, under_both_drivers, wait_for};

under_both_drivers!(
    ten_rolling_restarts_refuse_nobody_and_lose_nothing_that_was_synced,
    a_new_process_that_dies_in_the_middle_leaves_the_old_one_as_it_was,
    a_version_that_asks_otherwise_is_refused_in_a_sentence,
    sockets_that_systemd_has_opened_outlive_the_relay,
    systemd_is_told_that_the_relay_is_ready_lives_and_stops,
);

const RESTARTS: usize = 10;
/// Connections that come and go, one after the other, each with one event that it syncs.
const COMERS: usize = 4;
/// Clients that stay, and send without a pause.
const SENDERS: usize = 4;

/// A name under which no other test hands over.
fn name(what: &str, io: Io) -> String {
    format!("{what}-{io:?}-{}", std::process::id())
}

/// What goes on while relays come and go.
struct Load<'a> {
    tcp: SocketAddr,
    unix: &'a Path,
    stops: AtomicBool,
    /// Connections that were accepted and closed before the answer came: their event was sent again.
    repeated: AtomicU64,
}

impl Load<'_> {
    fn goes_on(&self) -> bool {
        !self.stops.load(Ordering::Acquire)
    }

    /// Connects for every event. No connect may fail. Gives the number of synced events.
    fn come_and_go(&self, comer: usize) -> usize {
        let mut synced = 0;
        while self.goes_on() {
            let line = format!("comers {comer} {synced}\n!sync {synced}\n");
            let answer = if comer.is_multiple_of(2) {
                ask(TcpStream::connect(self.tcp).expect("no connection is refused"), &line)
            } else {
                ask(UnixStream::connect(self.unix).expect("no connection is refused"), &line)
            };
            if answer == format!("!synced {synced}\n") {
                synced += 1;
            } else {
                assert!(answer.is_empty() || !answer.ends_with('\n'), "{answer:?}");
                self.repeated.fetch_add(1, Ordering::Relaxed);
            }
        }
        synced
    }

    /// Sends without a pause over a connection that stays. Gives the number of events, all of which are synced.
    fn send(&self, sender: usize) -> usize {
        let unix = format!("unix:{}", self.unix.display());
        let client = match sender % 2 {
            0 => Client::connect(&self.tcp.to_string()),
            _ => Client::connect(&unix),
        };
        let client = client.unwrap();
        let mut sent = 0usize;
        while self.goes_on() {
            client.send("senders", format!("{sender} {sent}").as_bytes()).unwrap();
            sent += 1;
            // So many that files stay small; a pause for the relay is far longer.
            if sent.is_multiple_of(5) {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        let report = client.close(PATIENCE).unwrap();
        assert_eq!((report.synced, report.lost, report.unsynced), (sent as u64, 0, 0), "{report:?}");
        sent
    }
}

/// The answer to what is written, as far as it came.
fn ask(mut connection: impl std::io::Read + Write, line: &str) -> String {
    let mut answer = String::new();
    // One that is closed by the relay before it read the line fails here or there; then nothing is known.
    if connection.write_all(line.as_bytes()).is_ok() {
        let _ = BufReader::new(connection).read_line(&mut answer);
    }
    answer
}

fn ten_rolling_restarts_refuse_nobody_and_lose_nothing_that_was_synced(io: Io) {
    let root = tempfile::tempdir().unwrap();
    let files = root.path().join("files");
    let unix = root.path().join("standpipe.sock");
    let arguments = |listen: &str, shards: usize| {
        format!(
            "--destination directory:{} --handover {} --linger 20ms --shards {shards} --listen {listen} \
             --listen unix:{} --memory 64MiB",
            files.display(),
            name("rolling", io),
            unix.display()
        )
    };
    let mut relay = Relay::start(io, &arguments("127.0.0.1:0", 2));
    let load = Load {
        tcp: relay.address(),
        unix: &unix,
        stops: AtomicBool::new(false),
        repeated: AtomicU64::new(0),
    };
    let load = &load;
    let (comers, senders) = std::thread::scope(|scope| {
        let comers: Vec<_> = (0..COMERS).map(|comer| scope.spawn(move || load.come_and_go(comer))).collect();
        let senders: Vec<_> = (0..SENDERS).map(|sender| scope.spawn(move || load.send(sender))).collect();
        for restart in 0..RESTARTS {
            let shards = [1, 3, 2][restart % 3];
            let arguments = format!("{} --takeover", arguments(&load.tcp.to_string(), shards));
            let new = Relay::start(io, &arguments);
            new.until("the new one has connections of both kinds", |metrics| {
                let opened = |listener: &str| metrics.sum("standpipe_connections", &[("listener", listener)]);
                opened(&load.tcp.to_string()) > 0 && opened(&format!("unix:{}", unix.display())) > 0
            });
            let old = std::mem::replace(&mut relay, new).wait();
            old.assert_code(0);
            assert_eq!(old.lines_with("another relay has taken over"), 1, "{}", old.log.join("\n"));
        }
        load.stops.store(true, Ordering::Release);
        let join = |threads: Vec<std::thread::ScopedJoinHandle<'_, usize>>| -> Vec<usize> {
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        };
        (join(comers), join(senders))
    });
    relay.terminate().assert_code(0);
    assert!(!unix.exists(), "the last one removes the socket's file");
    let files = Files::below(&files);
    let twice =
        assert_each_is_there(&files, "comers", &comers) + assert_each_is_there(&files, "senders", &senders);
    println!(
        "{RESTARTS} restarts: {} connections and {} events of clients that stayed, none refused and none lost; \
         {} connections closed before their answer, {twice} events delivered twice",
        comers.iter().sum::<usize>(),
        senders.iter().sum::<usize>(),
        load.repeated.load(Ordering::Relaxed),
    );
}

/// Asserts that every event `WHO NUMBER` of a stream is there; gives the number of those that are there again.
fn assert_each_is_there(files: &Files, stream: &str, expected: &[usize]) -> usize {
    let mut seen: Vec<Vec<usize>> = expected.iter().map(|count| vec![0; *count]).collect();
    for line in files.lines_of(stream) {
        let line = String::from_utf8(line).unwrap();
        let (who, number) = line.trim_end().split_once(' ').unwrap();
        // The last event of one who came and went may not be synced.
        if let Some(seen) = seen[who.parse::<usize>().unwrap()].get_mut(number.parse::<usize>().unwrap()) {
            *seen += 1;
        }
    }
    let missing = seen.iter().flatten().filter(|seen| **seen == 0).count();
    assert_eq!(missing, 0, "events of {stream} that were synced are not there");
    seen.iter().flatten().filter(|seen| **seen > 1).count()
}

fn a_new_process_that_dies_in_the_middle_leaves_the_old_one_as_it_was(io: Io) {
    let name = name("dies", io);
    let old = Relay::start(io, &format!("--destination null --handover {name}"));
    let taken = handover::take(&name).unwrap().unwrap();
    assert_eq!(taken.sockets.clients.len(), 1);
    drop(taken);
    let arguments = format!(
        "{} --listen {} --takeover --handover {name} --destination directory:/dev/null/nowhere",
        io.flag(),
        old.address()
    );
    Process::start(&mut Relay::command(&arguments)).wait().assert_code(1);
    (0..100).for_each(|_| old.send(b"clicks 1\n"));
    old.until_settled(100);
    let new = Relay::start(
        io,
        &format!("--listen {} --takeover --handover {name} --destination null", old.address()),
    );
    old.wait().assert_code(0);
    new.send(b"clicks 2\n");
    new.until_settled(1);
    // The new one can be taken over as well, and no relay at all is no reason not to start.
    let last = Relay::start(
        io,
        &format!("--listen {} --takeover --handover {name} --destination null", new.address()),
    );
    new.wait().assert_code(0);
    last.terminate().assert_code(0);
    Relay::start(io, &format!("--takeover --handover {name} --destination null")).terminate().assert_code(0);
}

fn a_version_that_asks_otherwise_is_refused_in_a_sentence(io: Io) {
    use rustix::net::{
        AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv, send,
        socket_with,
    };
    let name = name("version", io);
    let relay = Relay::start(io, &format!("--destination null --handover {name}"));
    let link = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    connect(&link, &SocketAddrUnix::new_abstract_name(format!("standpipe/{name}").as_bytes()).unwrap())
        .unwrap();
    send(&link, br#"{"ask":{"protocol":99,"version":"9.9.9"}}"#, SendFlags::empty()).unwrap();
    let mut answer = [0; 4096];
    let (length, _) = recv(&link, &mut answer, RecvFlags::empty()).unwrap();
    let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
    assert!(
        answer.starts_with(r#"{"refused":{"reason":"it is of version "#) && answer.contains("9.9.9"),
        "{answer}"
    );
    relay.send(b"clicks 1\n");
    relay.until_settled(1);
    relay.terminate().assert_code(0);
}

/// A relay to which descriptor 3 is passed, as systemd does it; `socket` stands in for standard output until then.
fn activated(io: Io, socket: std::os::fd::OwnedFd, arguments: &str) -> Process {
    let relay = Relay::command(&format!("{} {arguments}", io.flag()));
    let mut command = Command::new("sh");
    command.args(["-c", r#"exec 3>&1 1>&2; LISTEN_FDS=1 LISTEN_PID=$$ exec "$0" "$@""#]);
    command.arg(relay.get_program()).args(relay.get_args());
    for (key, value) in relay.get_envs() {
        value.map(|value| command.env(key, value));
    }
    Process::start(command.stdout(socket))
}

fn sockets_that_systemd_has_opened_outlive_the_relay(io: Io) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let start = || {
        let process = activated(io, listener.try_clone().unwrap().into(), "--destination null --shards 2");
        Relay::ready(process)
    };
    let first = start();
    assert_eq!(first.address(), address, "it listens where the socket does, and nowhere else");
    first.send(b"clicks 1\n");
    first.until_settled(1);
    first.terminate().assert_code(0);
    // While no relay runs, connections wait in the queue.
    let mut early = TcpStream::connect(address).unwrap();
    early.write_all(b"clicks 2\n").unwrap();
    let second = start();
    second.until_settled(1);
    drop(early);
    second.terminate().assert_code(0);
}

fn systemd_is_told_that_the_relay_is_ready_lives_and_stops(io: Io) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut command = Relay::command(&format!("{} --destination null --shards 2", io.flag()));
    let relay =
        Relay::ready(Process::start(command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "300000")));
    let heard = |what: &str| {
        wait_for(what, || {
            let mut text = [0; 256];
            let length = socket.recv(&mut text).unwrap();
            String::from_utf8_lossy(&text[..length]).lines().any(|line| line == what).then_some(())
        });
    };
    heard("READY=1");
    (0..3).for_each(|_| heard("WATCHDOG=1"));
    relay.signal(Signal::TERM);
    heard("STOPPING=1");
    let _: &Ended = relay.wait().assert_code(0);
}
