//! Dead letters: what can never be delivered is kept, counted for what became of it, and sent again byte for byte.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

use super::harness::{Disk, Files, Io, Process, Relay, Sink, assert_identity, under_both_drivers, wait_for};

under_both_drivers!(
    what_is_refused_alone_is_kept_and_sent_again_byte_for_byte,
    what_grows_too_old_is_kept_or_dropped_and_nothing_else_is,
    an_outage_beyond_max_age_keeps_all_that_was_in_memory_and_on_disk,
    a_directory_that_cannot_be_written_costs_the_letters_alone,
    a_full_read_only_or_failing_disk_costs_the_letters_alone,
    a_kill_around_a_letter_loses_nothing_that_was_spooled,
);

/// One poisoned record among others, payloads that are no text.
const EVENTS: u64 = 300;

fn payload(number: u64) -> Vec<u8> {
    let poison: &[u8] = if number % 100 == 7 { b"POISON" } else { b"" };
    let binary: Vec<u8> = (0..=255).filter(|octet| *octet != b'\n').collect();
    [format!("{number} ").as_bytes(), poison, b" \0\r ", &binary, b"\r"].concat()
}

fn poisoned() -> Vec<Vec<u8>> {
    (0..EVENTS).filter(|number| number % 100 == 7).map(payload).collect()
}

fn frames(stream: &str) -> Vec<u8> {
    (0..EVENTS).flat_map(|number| [stream.as_bytes(), b" ", &payload(number), b"\n"].concat()).collect()
}

fn keeping(root: &Path, more: &str) -> String {
    format!(
        "--dead-letter {} --packing single --linger 50ms --retry-base 10ms --retry-max 100ms --park-probe 100ms {more}",
        root.display()
    )
}

/// Every letter below a directory: stream, reason and payload.
fn letters(root: &Path) -> Vec<(String, String, Vec<u8>)> {
    let files = Files::below(root);
    let mut letters = Vec::new();
    for path in files.paths() {
        assert_eq!(path.extension().unwrap(), "ndjson", "{path:?}");
        for line in fs::read(root.join(path)).unwrap().split_inclusive(|octet| *octet == b'\n') {
            let letter: Value = serde_json::from_slice(line).unwrap();
            let text = |name: &str| letter[name].as_str().unwrap().to_owned();
            assert!(path.starts_with(text("stream")) && text("received") <= text("dropped"), "{letter}");
            let payload = aws_smithy_types::base64::decode(text("payload")).unwrap();
            letters.push((text("stream"), text("reason"), payload));
        }
    }
    letters.sort();
    letters
}

fn start_replay(root: &Path, relay: &Relay, failpoint: Option<&str>) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_standpipe"));
    command.env_clear().envs(failpoint.map(|point| ("FAILPOINT", point)));
    command.args(["send", "--to", &relay.address().to_string(), "--dead-letter"]).arg(root);
    command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

fn replay(root: &Path, relay: &Relay, failpoint: Option<&str>) -> Output {
    start_replay(root, relay, failpoint).wait_with_output().unwrap()
}

fn files(root: &Path) -> BTreeSet<PathBuf> {
    Files::below(root).paths().into_iter().map(Path::to_owned).collect()
}

/// Sends the frames with a sync behind them, and gives the answer to that.
fn synced(relay: &Relay, frames: &[u8]) -> String {
    let mut connection = relay.connect();
    let mut answers = BufReader::new(connection.try_clone().unwrap());
    connection.write_all(&[b"!hello\n", frames, b"!sync all\n"].concat()).unwrap();
    let mut said = String::new();
    while !said.contains("all") {
        said.clear();
        assert!(answers.read_line(&mut said).unwrap() > 0, "the relay has closed it");
    }
    said.trim_end().to_owned()
}

fn what_is_refused_alone_is_kept_and_sent_again_byte_for_byte(io: Io) {
    let (root, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let sink = Sink::start("--poison POISON");
    let relay = Relay::start(io, &format!("{} {}", sink.destination(), keeping(root.path(), "")));
    assert_eq!(synced(&relay, &frames("clicks.1")), "!lost all 3");
    let metrics = relay.until_settled(EVENTS);
    assert_eq!((metrics.dropped("clicks.1", "dead_letter"), metrics.dropped("clicks.1", "rejected")), (3, 0));
    assert_eq!(metrics.delivered("clicks.1"), EVENTS - 3);
    assert!(metrics.total("standpipe_dead_letter_bytes") >= 4096);
    let kept = letters(root.path());
    assert!(kept.iter().all(|(stream, reason, _)| stream == "clicks.1" && reason == "rejected"));
    let mut expected = poisoned();
    expected.sort();
    assert_eq!(kept.iter().map(|(_, _, payload)| payload.clone()).collect::<Vec<_>>(), expected);
    // Where it is refused again, while others are accepted, it is a letter again, and the file stays.
    let first = files(root.path());
    let mut again = start_replay(root.path(), &relay, None);
    wait_for("it has ended", || {
        relay.send(b"clicks.1 fine\n");
        again.try_wait().unwrap()
    });
    let again = again.wait_with_output().unwrap();
    let said = String::from_utf8(again.stderr).unwrap();
    assert!(again.status.code() == Some(1) && said.contains("is kept: of its"), "{said}");
    relay.until("it is idle", |metrics| metrics.total("standpipe_events_held") == 0);
    relay.terminate().assert_code(0);
    assert_eq!(letters(root.path()).len(), 6);
    let second = files(root.path());
    second.difference(&first).for_each(|file| fs::remove_file(root.path().join(file)).unwrap());
    let relay =
        Relay::start(io, &format!("--destination directory:{} --linger 50ms", target.path().display()));
    // Killed when all is synced and nothing removed yet: the file is there, and is sent once more.
    let killed = replay(root.path(), &relay, Some("replayed.before:1"));
    assert_eq!((killed.status.code(), letters(root.path()).len()), (None, 3));
    let sent = replay(root.path(), &relay, None);
    assert_eq!((sent.status.code(), sent.stderr), (Some(0), Vec::new()));
    assert_eq!(letters(root.path()), []);
    let mut delivered = Files::below(target.path()).lines_of("clicks.1");
    delivered.sort();
    delivered.dedup();
    assert_eq!(
        delivered,
        expected.into_iter().map(|line| [line, b"\n".to_vec()].concat()).collect::<Vec<_>>()
    );
    relay.terminate().assert_code(0);
}

fn what_grows_too_old_is_kept_or_dropped_and_nothing_else_is(io: Io) {
    let root = tempfile::tempdir().unwrap();
    let configuration = tempfile::NamedTempFile::new().unwrap();
    fs::write(configuration.path(), "[streams.patient]\nmax_age = \"0s\"\n").unwrap();
    let sink = Sink::start("--fail-calls 1");
    let more = format!("--max-age 300ms --config {}", configuration.path().display());
    let relay = Relay::start(io, &format!("{} {}", sink.destination(), keeping(root.path(), &more)));
    let frames = [frames("hasty"), frames("patient")].concat();
    relay.send(&frames);
    let metrics =
        relay.until("the old are given up", |metrics| metrics.dropped("hasty", "dead_letter") == EVENTS);
    assert_identity(&metrics);
    assert_eq!((metrics.held("patient"), metrics.held("hasty")), (EVENTS, 0));
    let kept = letters(root.path());
    assert!(kept.len() as u64 == EVENTS && kept.iter().all(|(_, reason, _)| reason == "max_age"));
    sink.set_faults("{}");
    let metrics = relay.until_settled(2 * EVENTS);
    assert_eq!((metrics.delivered("patient"), metrics.delivered("hasty")), (EVENTS, 0));
    relay.terminate().assert_code(0);

    // Without a directory they are dropped under their own reason.
    let sink = Sink::start("--fail-calls 1");
    let relay = Relay::start(io, &format!("{} --max-age 300ms --linger 50ms", sink.destination()));
    assert_eq!(synced(&relay, b"clicks 1\nclicks 2\n"), "!lost all 2");
    assert_eq!(relay.until_settled(2).dropped("clicks", "max_age"), 2);
    relay.terminate().assert_code(0);
}

fn an_outage_beyond_max_age_keeps_all_that_was_in_memory_and_on_disk(io: Io) {
    const LARGE: u64 = 40_000;
    let (dead, spool) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let sink = Sink::start("--fail-calls 1");
    let arguments = format!(
        "{} --dead-letter {} --spool {} --spool-free-floor 0 --memory 48MiB --max-age 2s --linger 50ms --retry-max 200ms",
        sink.destination(),
        dead.path().display(),
        spool.path().display()
    );
    let relay = Relay::start(io, &arguments);
    let lines: Vec<Vec<u8>> = (0..LARGE).map(|number| format!("{number:01000}").into_bytes()).collect();
    lines.chunks(5_000).for_each(|lines| {
        relay
            .send(&lines.iter().flat_map(|line| [b"clicks ", &line[..], b"\n"].concat()).collect::<Vec<_>>());
    });
    relay.until("some is on disk", |metrics| metrics.sum("standpipe_events_held", &[("place", "spool")]) > 0);
    let metrics = relay.until_settled(LARGE);
    assert_eq!(metrics.dropped("clicks", "dead_letter"), LARGE, "more than waits for the disk at one time");
    let kept = letters(dead.path());
    assert!(kept.iter().all(|(_, reason, _)| reason == "max_age"));
    assert_eq!(kept.into_iter().map(|(_, _, payload)| payload).collect::<Vec<_>>(), lines);
    relay.until("the spool is empty", |metrics| metrics.total("standpipe_spool_bytes") == 0);
    relay.terminate().assert_code(0);
}

fn a_directory_that_cannot_be_written_costs_the_letters_alone(io: Io) {
    let root = tempfile::tempdir().unwrap();
    let blocked = root.path().join("letters");
    fs::write(&blocked, "").unwrap();
    let sink = Sink::start("--poison POISON");
    let relay = Relay::start(io, &format!("{} {}", sink.destination(), keeping(&blocked, "")));
    relay.send(&frames("clicks"));
    let metrics = relay.until_settled(EVENTS);
    assert_eq!((metrics.dropped("clicks", "rejected"), metrics.dropped("clicks", "dead_letter")), (3, 0));
    let said =
        |text: &'static str| relay.process().wait_for_line(|line| line.contains(text).then_some(())).unwrap();
    said("dead letters cannot be written below");
    // It works by itself once the disk does.
    fs::remove_file(&blocked).unwrap();
    relay.send(&frames("clicks"));
    let metrics = relay.until_settled(2 * EVENTS);
    assert_eq!((metrics.dropped("clicks", "rejected"), metrics.dropped("clicks", "dead_letter")), (3, 3));
    said("events that can never be delivered (rejected) are kept in");
    relay.terminate().assert_code(0);
    assert_eq!(letters(&blocked).len(), 3);
    assert!(fs::metadata(&blocked).unwrap().permissions().mode() & 0o700 == 0o700);
}

fn a_full_read_only_or_failing_disk_costs_the_letters_alone(io: Io) {
    let Some(mut disk) = Disk::mount() else { return };
    let sink = Sink::start("--poison POISON");
    let root = disk.path().join("letters");
    let relay = Relay::start(io, &format!("{} {}", sink.destination(), keeping(&root, "")));
    let (mut sent, mut rejected, mut kept) = (0, 0, 0);
    for fault in ["limit 10", "clear", "read-only", "clear", "fail fsync EIO", "clear"] {
        disk.tell(fault);
        relay.send(&frames("clicks"));
        sent += EVENTS;
        let metrics = relay.until_settled(sent);
        *(if fault == "clear" { &mut kept } else { &mut rejected }) += 3;
        let counted = (metrics.dropped("clicks", "rejected"), metrics.dropped("clicks", "dead_letter"));
        assert_eq!(counted, (rejected, kept), "{fault}");
    }
    relay.terminate().assert_code(0);
    assert_eq!(complete(&root).len() as u64, kept);
}

fn a_kill_around_a_letter_loses_nothing_that_was_spooled(io: Io) {
    for point in ["letter.before:1", "letter.after:1"] {
        let root = tempfile::tempdir().unwrap();
        let (spool, dead) = (root.path().join("spool"), root.path().join("letters"));
        let sink = Sink::start("--fail-calls 1");
        let spooling =
            format!("--spool {} --spool-mode always --spool-free-floor 0 --sync-at stored", spool.display());
        let arguments = format!("{} {} {spooling}", sink.destination(), keeping(&dead, ""));
        let mut command = Relay::command(&format!("{} {arguments}", io.flag()));
        let dying = Relay::ready(Process::start(command.env("FAILPOINT", point)));
        assert_eq!(synced(&dying, &frames("clicks")), "!synced all");
        sink.set_faults(r#"{"poison": "POISON"}"#);
        assert_eq!(dying.wait().code, None, "it was killed at {point}");
        let heir = Relay::start(io, &arguments);
        let metrics = heir.until("the rest is settled", |metrics| {
            metrics.total("standpipe_events_recovered_total") > 0
                && metrics.total("standpipe_events_held") == 0
        });
        assert_identity(&metrics);
        heir.terminate().assert_code(0);
        let mut kept: Vec<Vec<u8>> = complete(&dead).into_iter().map(|(_, _, payload)| payload).collect();
        kept.dedup();
        let mut expected = poisoned();
        expected.sort();
        assert_eq!(kept, expected, "killed at {point}");
        let ledger = sink.ledger();
        let count = |name: &str| ledger["streams"]["clicks"][name].as_u64().unwrap_or(0);
        assert!(count("events_accepted") + count("foreign_events") >= EVENTS - 3, "{ledger}");
    }
}

/// The letters of files that have their name; what a killed relay left half is not theirs.
fn complete(root: &Path) -> Vec<(String, String, Vec<u8>)> {
    let files = Files::below(root);
    let partial: Vec<PathBuf> = files
        .paths()
        .into_iter()
        .filter(|path| path.extension().unwrap() == "part")
        .map(Path::to_owned)
        .collect();
    for path in partial {
        fs::remove_file(root.join(path)).unwrap();
    }
    letters(root)
}
