//! `standpipe send` and the client library against relays that come and go.

use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use standpipe::client::{Client, NotSynced, Options, SendError, WhenFull};

use super::harness::{Files, Io, PATIENCE, Process, Relay, wait_for};

/// A directory, and a relay that delivers to it.
fn relay(arguments: &str) -> (tempfile::TempDir, Relay) {
    let root = tempfile::tempdir().unwrap();
    let relay = Relay::start(Io::Epoll, &format!("{} --linger 50ms {arguments}", destination(&root)));
    (root, relay)
}

fn destination(root: &tempfile::TempDir) -> String {
    format!("--destination directory:{}/out", root.path().display())
}

/// Another relay on the address of one that is gone.
fn again(root: &tempfile::TempDir, listen: &str) -> Relay {
    let arguments = format!("--io epoll {} --linger 50ms --listen {listen}", destination(root));
    Relay::ready(Process::start(&mut Relay::command(&arguments)))
}

fn start_send(arguments: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_standpipe"));
    command.env_clear().arg("send").args(arguments);
    command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// What `standpipe send` did with this input: its exit code, and what it said.
fn send(arguments: &[&str], input: &[u8]) -> (Option<i32>, String) {
    let mut child = start_send(arguments);
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

/// The lines of the stream, each as often as it is there.
fn delivered(root: &tempfile::TempDir, stream: &str) -> Vec<Vec<u8>> {
    let mut lines = Files::below(&root.path().join("out")).lines_of(stream);
    lines.sort();
    lines
}

#[test]
fn lines_are_events_and_it_ends_when_they_are_synced() {
    let (root, relay) = relay("");
    let lines: String = (0..10_000).map(|number| format!("line {number:05}\r\n")).collect();
    let (code, said) = send(&["clicks", "--to", &relay.address().to_string()], (lines + "last").as_bytes());
    assert_eq!((code, said.as_str()), (Some(0), ""));
    let lines = delivered(&root, "clicks");
    assert_eq!(lines.len(), 10_001);
    assert_eq!((&lines[0][..], &lines[10_000][..]), (&b"last\n"[..], &b"line 09999\r\n"[..]));
    assert_eq!(relay.until_settled(10_001).total("standpipe_connections"), 0);
}

#[test]
fn what_is_lost_is_said_and_ends_with_1() {
    let (root, relay) = relay("--max-frame-bytes 10");
    let to = relay.address().to_string();
    let (code, said) = send(&["clicks", "--to", &to], b"1\n\n012345678901\n2\n");
    assert_eq!(code, Some(1));
    assert!(said.contains("2 events are synced; the relay has lost 1; 1 lines were not sent"), "{said}");
    assert_eq!(delivered(&root, "clicks"), [b"1\n", b"2\n"]);
    let (code, said) = send(&["no/name", "--to", &to], b"1\n");
    assert!(code == Some(1) && said.contains("not a stream's name"), "{code:?} {said}");
    let (code, said) = send(&["clicks", "--to", "nowhere"], b"1\n");
    assert!(code == Some(1) && said.contains("write HOST:PORT or unix:PATH"), "{code:?} {said}");
}

#[test]
fn a_unix_socket_takes_lines_too() {
    let root = tempfile::tempdir().unwrap();
    let socket = format!("unix:{}", root.path().join("socket").display());
    let relay = Relay::start(Io::Epoll, &format!("--destination null --linger 50ms --listen {socket}"));
    assert_eq!(send(&["clicks", "--to", &socket], b"1\n2\n"), (Some(0), String::new()));
    relay.until_settled(2);
}

#[test]
fn a_relay_that_is_killed_and_comes_back_costs_no_line() {
    let (root, first) = relay("");
    let listen = first.address().to_string();
    let mut child = start_send(&["clicks", "--to", &listen]);
    let mut input = child.stdin.take().unwrap();
    let mut write = |numbers: std::ops::Range<usize>| {
        let lines: String = numbers.map(|number| format!("line {number:05}\n")).collect();
        input.write_all(lines.as_bytes()).unwrap();
    };
    write(0..5_000);
    let synced = |count| {
        first.until("some are synced", |metrics| {
            metrics.sum("standpipe_syncs_total", &[("outcome", "synced")]) == count
        })
    };
    synced(1);
    // An answer is counted before it is written; once the next one is, the first was long heard.
    write(5_000..5_001);
    synced(2);
    write(5_001..10_000);
    // Dropping it is a kill -9.
    drop(first);
    write(10_000..15_000);
    let second = again(&root, &listen);
    write(15_000..20_000);
    drop(input);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let mut lines = delivered(&root, "clicks");
    let all = lines.len();
    lines.dedup();
    assert_eq!(lines.len(), 20_000);
    let received = usize::try_from(second.metrics().received("clicks")).unwrap();
    assert!(received <= 15_000, "what was synced is not sent again: {received} after {all}");
}

#[test]
fn a_drained_relay_has_answered_all_and_nothing_is_repeated() {
    let (root, first) = relay("");
    let listen = first.address().to_string();
    let client =
        Client::with(&listen, Options { sync_interval: Duration::from_millis(20), ..Options::default() });
    let client = client.unwrap();
    for number in 0..1_000 {
        client.send("clicks", format!("{number:04}").as_bytes()).unwrap();
    }
    first.until("some are received", |metrics| metrics.received("clicks") > 0);
    first.terminate().assert_code(0);
    let _second = again(&root, &listen);
    for number in 1_000..2_000 {
        client.send("clicks", format!("{number:04}").as_bytes()).unwrap();
    }
    let report = client.close(PATIENCE).unwrap();
    let lines = delivered(&root, "clicks");
    assert_eq!((lines.len(), report.synced, report.lost, report.unsynced), (2_000, 2_000, 0, 0));
    assert!(report.connections >= 2 && report.possible_duplicates == 0, "{report:?}");
}

#[test]
fn a_client_without_a_relay_holds_what_it_may_and_then_drops_or_waits() {
    let (root, first) = relay("");
    let listen = first.address().to_string();
    drop(first);
    let options =
        Options { bytes_max: 64 << 10, retry_max: Duration::from_millis(100), ..Options::default() };
    let dropping = Client::with(&listen, Options { when_full: WhenFull::Drop, ..options }).unwrap();
    let payload = [b'x'; 1_000];
    let taken = (0..200).filter(|_| dropping.send("drops", &payload) == Ok(())).count() as u64;
    assert!((50..70).contains(&taken), "{taken}");
    let Err(NotSynced { report }) = dropping.sync(Duration::ZERO) else {
        panic!("there is nobody to answer")
    };
    assert_eq!((report.unsynced, report.dropped, report.synced), (taken, 200 - taken, 0));
    wait_for("a failure is reported", || dropping.report().last_error);
    assert_eq!(dropping.send("drops", &[b'x'; 70_000]), Err(SendError::TooLong));
    assert_eq!(dropping.send("drops", b"a\nb"), Err(SendError::BadPayload));

    let waiting = Client::with(&listen, options).unwrap();
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| (0..200).for_each(|_| waiting.send("waits", &payload).unwrap()));
        wait_for("it waits", || (waiting.report().unsynced > 50).then_some(()));
        assert!(!sender.is_finished());
        let _second = again(&root, &listen);
        sender.join().unwrap();
        let report = waiting.sync(PATIENCE).unwrap();
        assert_eq!((report.synced, report.lost, report.dropped), (200, 0, 0));
        assert_eq!(dropping.sync(PATIENCE).unwrap().synced, taken);
    });
    assert_eq!(delivered(&root, "waits").len(), 200);
}
