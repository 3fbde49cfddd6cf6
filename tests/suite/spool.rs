//! The spool: an outage that memory cannot hold, restarts and kills, other destinations, damage, full disks.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use rustix::process::Signal;

use super::harness::{Files, Io, Metrics, Relay, Sink, assert_identity, under_both_drivers, wait_for};

under_both_drivers!(
    an_outage_beyond_memory_loses_nothing_and_drains,
    what_could_not_be_delivered_is_spooled_at_the_end_and_delivered_by_the_next,
    a_kill_in_always_loses_nothing_that_was_synced,
    what_was_spooled_for_firehose_goes_to_a_directory,
    a_full_spool_leaves_it_to_the_memory_policy,
    a_damaged_segment_is_put_aside_and_the_rest_delivered,
    what_a_dead_process_left_is_taken_over_while_running,
    a_newer_format_is_left_alone,
    a_spool_that_cannot_be_written_is_said_and_survived,
);

fn of_spool(root: &Path, mode: &str) -> String {
    format!("--spool {} --spool-mode {mode} --spool-free-floor 0", root.display())
}

/// The arguments that lead to an endpoint which refuses connections.
fn down() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("--destination firehose --endpoint-url http://{}", listener.local_addr().unwrap())
}

fn numbered(stream: &str, events: std::ops::Range<u64>, payload: usize) -> Vec<u8> {
    events.flat_map(|event| format!("{stream} {event:0payload$}\n").into_bytes()).collect()
}

/// Events on disk and not in memory.
fn spooled(metrics: &Metrics) -> u64 {
    metrics.sum("standpipe_events_held", &[("place", "spool")])
}

/// Whether so many events are delivered, and none is on its way.
fn all_delivered(metrics: &Metrics, events: u64) -> bool {
    metrics.total("standpipe_events_delivered_total") == events && metrics.total("standpipe_events_held") == 0
}

/// Every file of a kind below the spool.
fn files_of(root: &Path, extension: &str) -> Vec<PathBuf> {
    let files = Files::below(root);
    let paths =
        files.paths().into_iter().filter(|path| path.extension().is_some_and(|found| found == extension));
    paths.map(|path| root.join(path)).collect()
}

/// Instances below the spool.
fn instances(root: &Path) -> usize {
    let entries = fs::read_dir(root).map_or(0, Iterator::count);
    entries - usize::from(root.join("quarantine").exists())
}

/// A relay whose endpoint is down has taken these and was stopped: they are on disk.
fn left_on_disk(io: Io, root: &Path, bytes: &[u8], events: u64, more: &str) {
    let relay =
        Relay::start(io, &format!("{} {} --drain-deadline 1s {more}", down(), of_spool(root, "overflow")));
    relay.send(bytes);
    relay.until("all is received", |metrics| metrics.total("standpipe_events_received_total") == events);
    relay.terminate().assert_code(0);
    assert!(!files_of(root, "seg").is_empty());
}

fn an_outage_beyond_memory_loses_nothing_and_drains(io: Io) {
    let root = tempfile::tempdir().unwrap();
    let sink = Sink::start("--fail-calls 1");
    let arguments = format!(
        "{} {} --memory 48MiB --retry-max 200ms",
        sink.destination(),
        of_spool(root.path(), "overflow")
    );
    let relay = Relay::start(io, &arguments);
    const EVENTS: u64 = 60_000;
    for part in 0..10 {
        relay.send(&numbered("clicks", part * EVENTS / 10..(part + 1) * EVENTS / 10, 1_000));
    }
    let metrics = relay.until("all is received", |metrics| metrics.received("clicks") == EVENTS);
    assert!(spooled(&metrics) > 0, "60 MB do not fit into 48 MiB");
    assert_eq!(metrics.dropped("clicks", "memory"), 0);
    sink.set_faults("{}");
    let metrics = relay.until_settled(EVENTS);
    assert_eq!(metrics.delivered("clicks"), EVENTS);
    relay.until("the spool is empty", |metrics| metrics.total("standpipe_spool_bytes") == 0);
    relay.terminate().assert_code(0);
    assert_eq!(instances(root.path()), 0, "nothing is left behind");
}

fn what_could_not_be_delivered_is_spooled_at_the_end_and_delivered_by_the_next(io: Io) {
    let root = tempfile::tempdir().unwrap();
    left_on_disk(io, root.path(), &numbered("clicks", 0..10_000, 20), 10_000, "");
    let sink = Sink::start("");
    let arguments = format!("{} {}", sink.destination(), of_spool(root.path(), "overflow"));
    let relay = Relay::start(io, &format!("{arguments} --delivery-stream other-{{stream}}"));
    let metrics = relay.until("all is delivered", |metrics| all_delivered(metrics, 10_000));
    assert_identity(&metrics);
    assert_eq!(metrics.total("standpipe_events_recovered_total"), 10_000);
    let doubtful = [("stream", "clicks"), ("cause", "recovery")];
    assert_eq!(metrics.sum("standpipe_possible_duplicate_events_total", &doubtful), 0, "it ended in order");
    assert!(sink.ledger().to_string().contains("other-clicks"), "{}", sink.ledger());
    relay.terminate().assert_code(0);
    assert_eq!(instances(root.path()), 0, "nothing is left behind");
}

fn a_kill_in_always_loses_nothing_that_was_synced(io: Io) {
    let root = tempfile::tempdir().unwrap();
    let relay = Relay::start(io, &format!("{} {} --linger 50ms", down(), of_spool(root.path(), "always")));
    relay.send(&numbered("clicks", 0..5_000, 100));
    relay.send(&numbered("views", 0..10, 100));
    let is_on_disk = |metrics: &Metrics| {
        metrics.total("standpipe_events_received_total") == 5_010
            && metrics.sum("standpipe_events_held", &[("place", "open")]) == 0
            && metrics.total("standpipe_spool_bytes") > 5_010 * 101
    };
    relay.until("all is on disk", is_on_disk);
    relay.signal(Signal::KILL);
    assert_eq!(relay.wait().code, None);
    let target = tempfile::tempdir().unwrap();
    let destination = format!("--destination directory:{}", target.path().display());
    let relay = Relay::start(io, &format!("{destination} {}", of_spool(root.path(), "always")));
    let metrics = relay.until("all is delivered", |metrics| all_delivered(metrics, 5_010));
    assert_identity(&metrics);
    let doubtful = metrics.sum("standpipe_possible_duplicate_events_total", &[("cause", "recovery")]);
    assert_eq!(doubtful, 5_010, "a kill leaves it open what was delivered");
    relay.terminate().assert_code(0);
    assert_eq!(instances(root.path()), 0, "nothing is left behind");
    let mut lines = Files::below(target.path()).lines_of("clicks");
    lines.sort();
    let expected: Vec<Vec<u8>> = (0..5_000).map(|event| format!("{event:0100}\n").into_bytes()).collect();
    assert_eq!(lines, expected);
}

fn what_was_spooled_for_firehose_goes_to_a_directory(io: Io) {
    let root = tempfile::tempdir().unwrap();
    let bytes = [numbered("clicks", 0..3_000, 300), numbered("gone", 0..7, 10)].concat();
    left_on_disk(io, root.path(), &bytes, 3_007, "");
    let (target, configuration) = (tempfile::tempdir().unwrap(), tempfile::NamedTempFile::new().unwrap());
    fs::write(configuration.path(), "only_configured_streams = true\n[streams.views]\n").unwrap();
    let arguments = format!(
        "--config {} --destination directory:{} {}",
        configuration.path().display(),
        target.path().display(),
        of_spool(root.path(), "overflow")
    );
    let relay = Relay::start(io, &arguments);
    relay.until("all is delivered", |metrics| metrics.total("standpipe_events_delivered_total") == 3_007);
    relay.terminate().assert_code(0);
    let files = Files::below(target.path());
    assert_eq!((files.lines_of("clicks").len(), files.lines_of("gone").len()), (3_000, 7));
    assert!(files.lines_of("clicks").contains(&format!("{:0300}\n", 2_999).into_bytes()));
}

fn a_full_spool_leaves_it_to_the_memory_policy(io: Io) {
    let root = tempfile::tempdir().unwrap();
    let spool = of_spool(root.path(), "overflow");
    let arguments = format!("{} {spool} --spool-limit 8MiB --memory 48MiB --on-full drop", down());
    let relay = Relay::start(io, &format!("{arguments} --drain-deadline 1s"));
    // A burst may find memory full before the disk has said that it is.
    let mut sent = 0;
    let metrics = wait_for("the spool takes no more", || {
        relay.send(&numbered("clicks", sent..sent + 10_000, 1_000));
        sent += 10_000;
        let metrics = relay.until("all is received", |metrics| metrics.received("clicks") == sent);
        (metrics.dropped("clicks", "spool_full") > 0).then_some(metrics)
    });
    assert!(spooled(&metrics) > 0);
    let limit = metrics.total("standpipe_spool_limit_bytes");
    assert!(metrics.total("standpipe_spool_bytes") <= limit + limit / 2 && limit == 8 << 20);
    assert_identity(&metrics);
    relay.terminate();
}

fn a_damaged_segment_is_put_aside_and_the_rest_delivered(io: Io) {
    let root = tempfile::tempdir().unwrap();
    let bytes = [numbered("clicks", 0..1_000, 50), numbered("views", 0..1_000, 50)].concat();
    left_on_disk(io, root.path(), &bytes, 2_000, "");
    let segment = files_of(root.path(), "seg").remove(0);
    let mut contents = fs::read(&segment).unwrap();
    // In the lines of the first batch, behind the file's header and the batch's.
    contents[64 + 128 + 1_000] ^= 1;
    fs::write(&segment, contents).unwrap();
    let relay = Relay::start(io, &format!("--destination null {}", of_spool(root.path(), "overflow")));
    let metrics = relay.until("all is settled", |metrics| {
        metrics.total("standpipe_events_recovered_total") == 2_000
            && metrics.total("standpipe_events_held") == 0
    });
    assert_identity(&metrics);
    let lost = metrics.sum("standpipe_events_dropped_total", &[("reason", "spool_damaged")]);
    assert!(lost > 0 && lost <= 1_000, "{lost} events of one batch");
    assert_eq!(metrics.total("standpipe_spool_damaged_segments_total"), 1);
    wait_for("the segment is put aside", || {
        (files_of(&root.path().join("quarantine"), "seg").len() == 1).then_some(())
    });
    let ended = relay.terminate();
    assert!(ended.lines_with("was moved to the directory") == 1, "{}", ended.log.join("\n"));
    assert_eq!(instances(root.path()), 0);
}

fn what_a_dead_process_left_is_taken_over_while_running(io: Io) {
    let root = tempfile::tempdir().unwrap();
    let spool = of_spool(root.path(), "always");
    let dying = Relay::start(io, &format!("{} {spool} --linger 50ms", down()));
    let heir = Relay::start(io, &format!("--destination null {spool}"));
    dying.send(&numbered("clicks", 0..1_000, 50));
    dying.until("all is on disk", |metrics| metrics.total("standpipe_spool_bytes") > 51_000);
    assert_eq!(heir.metrics().total("standpipe_events_recovered_total"), 0, "it lives, so it is left alone");
    dying.signal(Signal::KILL);
    dying.wait();
    let metrics = heir.until("it is taken over", |metrics| all_delivered(metrics, 1_000));
    assert_identity(&metrics);
    heir.terminate().assert_code(0);
    assert_eq!(instances(root.path()), 0);
}

fn a_newer_format_is_left_alone(io: Io) {
    let root = tempfile::tempdir().unwrap();
    left_on_disk(io, root.path(), &numbered("clicks", 0..100, 50), 100, "");
    let segment = files_of(root.path(), "seg").remove(0);
    let mut contents = fs::read(&segment).unwrap();
    // The version of the format, under its checksum, in both copies of the file's header.
    contents[8] = 2;
    let crc = crc32c::crc32c(&contents[..28]).to_le_bytes();
    contents[28..32].copy_from_slice(&crc);
    contents.copy_within(0..32, 32);
    fs::write(&segment, contents).unwrap();
    let relay = Relay::start(io, &format!("--destination null {}", of_spool(root.path(), "overflow")));
    let sentence = "it is in format 2 of the spool, and this relay reads up to 1";
    relay.process().wait_for_line(|line| line.contains(sentence).then_some(())).unwrap();
    relay.send(&numbered("clicks", 0..10, 50));
    relay.until_settled(10);
    relay.terminate().assert_code(0);
    assert!(segment.exists());
}

fn a_spool_that_cannot_be_written_is_said_and_survived(io: Io) {
    let root = tempfile::tempdir().unwrap();
    let blocked = root.path().join("not-a-directory");
    fs::write(&blocked, "").unwrap();
    let sink = Sink::start("");
    let relay = Relay::start(io, &format!("{} {}", sink.destination(), of_spool(&blocked, "always")));
    relay.send(&numbered("clicks", 0..1_000, 50));
    relay.until_settled(1_000);
    relay.process().wait_for_line(|line| line.contains("the spool").then_some(())).unwrap();
    // It works by itself once the disk does.
    fs::remove_file(&blocked).unwrap();
    sink.set_faults(r#"{"fail_calls": 1.0}"#);
    wait_for("it is written to", || {
        relay.send(&numbered("clicks", 0..10, 50));
        (relay.metrics().total("standpipe_spool_bytes") > 0).then_some(())
    });
    sink.set_faults("{}");
    relay.terminate().assert_code(0);
}
