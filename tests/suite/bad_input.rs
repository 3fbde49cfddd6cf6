//! Bad input: each kind has its counter, the connection lives on, and no other connection notices.

use std::io::Write;
use std::time::Duration;

use super::harness::{Files, Io, Relay, assert_identity, under_both_drivers, wait_for};

under_both_drivers!(
    every_reason_is_counted_and_the_connection_lives_on,
    a_frame_of_an_unknown_stream_is_counted_where_only_configured_ones_are_allowed,
    any_octets_but_lf_are_delivered_untouched,
    the_longest_frame_is_taken_and_one_octet_more_is_not,
    a_too_long_frame_that_never_ends_is_one_rejected_frame,
    nothing_is_written_outside_of_the_root,
    a_reset_is_counted_and_no_other_connection_notices,
    a_connection_without_a_byte_is_a_health_probe,
    a_million_names_are_bounded,
);

/// Bad lines, and the reason that each is counted under.
const BAD_LINES: [(&[u8], &str); 14] = [
    (b"\n", "no_space"),
    (b"word\n", "no_space"),
    (b" payload\n", "bad_name"),
    (b". x\n", "bad_name"),
    (b".. x\n", "bad_name"),
    (b"_other x\n", "bad_name"),
    (b"a/b x\n", "bad_name"),
    (b"a\0b x\n", "bad_name"),
    (b"caf\xc3\xa9 x\n", "bad_name"),
    (b"tab\tname x\n", "bad_name"),
    (b"empty \n", "empty_payload"),
    (b"good.but.long 0123456789\n", "too_long"),
    (b"!nonsense\n", "bad_control"),
    (b"!\n", "bad_control"),
];

fn every_reason_is_counted_and_the_connection_lives_on(io: Io) {
    let relay = Relay::start(io, "--destination null --max-frame-bytes 9");
    let mut neighbour = relay.connect();
    let mut connection = relay.connect();
    let long_name = [&[b'n'; 65][..], b" x\n"].concat();
    let long_control = [b"!", &[b'c'; 255][..], b"\n"].concat();
    let more: [(&[u8], &str); 2] = [(&long_name, "bad_name"), (&long_control, "too_long")];
    for (line, _) in BAD_LINES.iter().chain(&more) {
        connection.write_all(line).unwrap();
        connection.write_all(b"good 123456789\n").unwrap();
        neighbour.write_all(b"neighbour x\n").unwrap();
    }
    let count = (BAD_LINES.len() + more.len()) as u64;
    let metrics = relay.until_settled(2 * count);
    assert_eq!((metrics.received("good"), metrics.received("neighbour")), (count, count));
    connection.write_all(b"half a fra").unwrap();
    drop(connection);
    let metrics = relay.until("the half frame is counted", |metrics| metrics.rejected("truncated") == 1);
    for reason in ["no_space", "bad_name", "empty_payload", "too_long", "bad_control"] {
        let expected = BAD_LINES.iter().chain(&more).filter(|(_, expected)| *expected == reason).count();
        assert_eq!(metrics.rejected(reason), expected as u64, "{reason}");
    }
    assert_eq!(metrics.total("standpipe_frames_rejected_total"), count + 1);
    neighbour.write_all(b"neighbour x\n").unwrap();
    relay.until_settled(2 * count + 1);
    drop(neighbour);
    relay.terminate().assert_code(0);
}

fn a_frame_of_an_unknown_stream_is_counted_where_only_configured_ones_are_allowed(io: Io) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("standpipe.toml");
    std::fs::write(&file, "only_configured_streams = true\n[streams.clicks]\n").unwrap();
    let relay = Relay::start(io, &format!("--config {} --destination null", file.display()));
    relay.send(b"clicks 1\nviews 1\nclicks 2\nviews 2\nviews 3\n.. x\n");
    let metrics = relay.until_settled(2);
    assert_eq!((metrics.rejected("unknown_stream"), metrics.rejected("bad_name")), (3, 1));
    assert!(!metrics.streams().contains("views"));
}

fn any_octets_but_lf_are_delivered_untouched(io: Io) {
    let root = tempfile::tempdir().unwrap();
    let relay = Relay::start(io, &format!("--destination directory:{}", root.path().display()));
    let all: Vec<u8> = (0..=255).filter(|octet| *octet != b'\n').collect();
    let payloads: [&[u8]; 8] =
        [b"\0", b"\0\0\0 \0", b"\xff\xfe\xc3\x28", b"ends with CR\r", b"\r", b" ", b"  two  spaces  ", &all];
    let expected: Vec<Vec<u8>> = payloads.iter().map(|payload| [payload, &b"\n"[..]].concat()).collect();
    let frames: Vec<u8> = expected.iter().flat_map(|line| [b"any ", &line[..]].concat()).collect();
    relay.send(&frames);
    relay.until_settled(payloads.len() as u64);
    assert_eq!(Files::below(root.path()).lines_of("any"), expected);
}

const PAYLOAD_BYTES_MAX: usize = 1_023_999;

fn the_longest_frame_is_taken_and_one_octet_more_is_not(io: Io) {
    let root = tempfile::tempdir().unwrap();
    let relay = Relay::start(io, &format!("--destination directory:{}", root.path().display()));
    let name = "n".repeat(64);
    let longest = "p".repeat(PAYLOAD_BYTES_MAX);
    let frames =
        format!("{name} {longest}\n{name} {longest}+\n{name} next\ns {longest}++{name}{name}\ns next\n");
    relay.send(frames.as_bytes());
    let metrics = relay.until_settled(3);
    assert_eq!(metrics.rejected("too_long"), 2);
    assert_eq!(metrics.total("standpipe_frames_rejected_total"), 2);
    let files = Files::below(root.path());
    assert_eq!(files.of_stream(&name), format!("{longest}\nnext\n").into_bytes());
    assert_eq!(files.of_stream("s"), b"next\n");
}

fn a_too_long_frame_that_never_ends_is_one_rejected_frame(io: Io) {
    let relay = Relay::start(io, "--destination null --max-frame-bytes 1000");
    relay.send(&[b"clicks ", &[b'x'; 100_000][..]].concat());
    relay.until("the connection is closed", |metrics| {
        metrics.total("standpipe_connections_opened_total") == 1
            && metrics.total("standpipe_connections") == 0
    });
    let metrics = relay.metrics();
    assert_eq!((metrics.rejected("too_long"), metrics.rejected("truncated")), (1, 0));
    assert_eq!(metrics.memory("partial"), 0);
}

fn nothing_is_written_outside_of_the_root(io: Io) {
    let outer = tempfile::tempdir().unwrap();
    let root = outer.path().join("a/b/root");
    std::fs::create_dir_all(&root).unwrap();
    let relay = Relay::start(io, &format!("--destination directory:{}", root.display()));
    let bad = ["..", ".", "_other", "../x", "/etc", "a/../../x", "..%2f", "~", "\\..", "a\0", "-/.."];
    let good = ["...", "..a", "-", "--help", "_", ".hidden", "_othe"];
    let frames: String = bad.iter().chain(&good).map(|name| format!("{name} payload\n")).collect();
    relay.send(frames.as_bytes());
    let metrics = relay.until_settled(good.len() as u64);
    assert_eq!(metrics.rejected("bad_name"), bad.len() as u64);
    relay.terminate().assert_code(0);
    let files = Files::below(outer.path());
    assert!(files.paths().iter().all(|path| path.starts_with("a/b/root")), "{:?}", files.paths());
    assert_eq!(Files::below(&root).streams(), good.iter().map(ToString::to_string).collect());
}

fn a_reset_is_counted_and_no_other_connection_notices(io: Io) {
    let relay = Relay::start(io, "--destination null");
    let mut neighbour = relay.connect();
    for (number, bytes) in [(1, &b"clicks 1\n"[..]), (2, b"clicks 2\nclicks ha")] {
        let mut connection = relay.connect();
        connection.write_all(bytes).unwrap();
        relay.until("the event is received", |metrics| metrics.received("clicks") == number);
        socket2::SockRef::from(&connection).set_linger(Some(Duration::ZERO)).unwrap();
        drop(connection);
        relay.until("the reset is counted", |metrics| {
            metrics.total("standpipe_connections_failed_total") == number
        });
        neighbour.write_all(b"neighbour 1\n").unwrap();
    }
    let metrics = relay.until_settled(4);
    assert_eq!((metrics.rejected("truncated"), metrics.total("standpipe_health_probes_total")), (1, 0));
    assert_eq!(metrics.total("standpipe_connections"), 1);
    assert_eq!(metrics.memory("partial"), 0);
}

fn a_connection_without_a_byte_is_a_health_probe(io: Io) {
    let relay = Relay::start(io, "--destination null --log debug");
    let lines_before = wait_for("the log is quiet", || {
        relay.metrics();
        let before = relay.process().log().len();
        relay.metrics();
        (relay.process().log().len() == before).then_some(before)
    });
    (0..10).for_each(|_| drop(relay.connect()));
    let metrics = relay.until("ten probes", |metrics| metrics.total("standpipe_health_probes_total") == 10);
    assert_eq!(metrics.total("standpipe_connections_opened_total"), 10);
    assert_eq!(metrics.total("standpipe_frames_rejected_total"), 0);
    assert_eq!(relay.process().log()[lines_before..], [""; 0], "a probe leaves no line of log");
}

/// Names that are known before the flood, and the most that may be known at all.
const STREAMS_MAX: u64 = 1000;
const NAMES: u64 = 1_000_000;

fn a_million_names_are_bounded(io: Io) {
    let relay = Relay::start(io, "--destination null --max-streams 1000 --memory 64MiB --linger 50ms");
    relay.send(b"known 1\n");
    relay.until_settled(1);
    let mut flood = relay.connect();
    let mut chunk = Vec::with_capacity(1 << 20);
    for number in 0..NAMES {
        writeln!(chunk, "name-{number} x").unwrap();
        if chunk.len() > 1 << 19 {
            flood.write_all(&chunk).unwrap();
            chunk.clear();
        }
    }
    flood.write_all(&chunk).unwrap();
    let known = STREAMS_MAX - 1;
    relay.until("the flood is counted", |metrics| metrics.rejected("too_many_streams") == NAMES - known);
    relay.send(b"known 2\n");
    flood.write_all(b"known 3\nname-0 x\n").unwrap();
    let metrics = relay.until_settled(1 + known + 3);
    assert_eq!((metrics.received("known"), metrics.received("name-0")), (3, 2));
    assert_identity(&metrics);
    let (resident, limit) = (metrics.memory("resident"), metrics.total("standpipe_memory_limit_bytes"));
    assert!(resident <= limit, "{resident} bytes are resident, the limit is {limit}");
}
