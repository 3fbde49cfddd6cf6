//! The configuration is read again while the relay runs.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::Signal;

use standpipe::client::Client;

use super::harness::{Io, Metrics, PATIENCE, Relay, Sink, assert_identity, under_both_drivers, wait_for};

under_both_drivers!(
    a_bad_file_changes_nothing_and_says_all_that_is_wrong,
    what_needs_a_restart_is_named_and_stays_as_it_is,
    a_hangup_reloads_as_a_post_does_and_changes_what_is_logged,
    a_hangup_without_a_file_drains,
    flags_and_environment_keep_their_precedence,
    streams_change_their_delivery_streams_under_load,
    a_parked_stream_is_mended_at_once,
    a_stream_whose_table_goes_away_is_refused_and_what_is_held_of_it_delivered,
    a_stream_that_fits_the_template_no_longer_is_refused,
    a_connection_that_waits_goes_on_where_its_stream_drops,
    linger_and_age_of_connections_change,
    a_relay_that_drains_reloads_nothing,
);

/// A configuration file that can be written again.
struct ConfigFile {
    _directory: tempfile::TempDir,
    path: PathBuf,
}

impl ConfigFile {
    fn new(text: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = Self { path: directory.path().join("standpipe.toml"), _directory: directory };
        file.write(text);
        file
    }

    fn write(&self, text: &str) {
        std::fs::write(&self.path, text).unwrap();
    }

    fn flag(&self) -> String {
        format!("--config {}", self.path.display())
    }

    /// Writes the file, has it read, and gives the answer.
    fn reload(&self, relay: &Relay, text: &str) -> String {
        self.write(text);
        let answer = relay.post("/reload", "");
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.body
    }
}

fn reloads(metrics: &Metrics, result: &str) -> u64 {
    metrics.sum("standpipe_config_reloads_total", &[("result", result)])
}

fn last_was_good(metrics: &Metrics) -> bool {
    metrics.total("standpipe_config_last_reload_successful") == 1
}

/// Events that a delivery stream has accepted.
fn accepted(sink: &Sink, delivery_stream: &str) -> u64 {
    let stream = &sink.ledger()["streams"][delivery_stream];
    stream["events_accepted"].as_u64().unwrap_or(0) + stream["foreign_events"].as_u64().unwrap_or(0)
}

fn a_bad_file_changes_nothing_and_says_all_that_is_wrong(io: Io) {
    let file = ConfigFile::new("max_streams = 1\n");
    let relay = Relay::start(io, &format!("--destination null --linger 50ms {}", file.flag()));
    let since = relay.metrics().total("standpipe_config_last_reload_success_timestamp_seconds");
    assert!(since > 1_600_000_000);
    file.write("max_streams = 2\nlingr = \"1s\"\nmax_calls = 0\n[streams.a]\non_full = \"weit\"\n");
    let answer = relay.post("/reload", "");
    let checked = Relay::bare_command().arg("check").arg(&file.path).output().unwrap();
    assert_eq!((answer.status, &*answer.body), (400, &*String::from_utf8(checked.stderr).unwrap()));
    assert_eq!(answer.body.lines().count(), 3, "{}", answer.body);
    for line in answer.body.lines() {
        let said = serde_json::to_string(&format!("reload refused, nothing changes: {line}")).unwrap();
        relay.process().wait_for_line(|logged| logged.contains(&said).then_some(())).expect(line);
    }
    let metrics = relay.metrics();
    assert_eq!(
        (reloads(&metrics, "done"), reloads(&metrics, "refused"), last_was_good(&metrics)),
        (0, 1, false)
    );
    assert_eq!(metrics.total("standpipe_config_last_reload_success_timestamp_seconds"), since);
    assert_eq!(relay.get("/status").json()["conditions"][0]["kind"], "reload_refused");
    relay.send(b"one 1\ntwo 1\n");
    relay.until("the second is one too many still", |metrics| metrics.rejected("too_many_streams") == 1);
    // A file without a mistake in itself, with which no relay would start all the same.
    file.write("max_streams = 2\nmemory = \"8MiB\"\nshards = 64\n");
    let answer = relay.post("/reload", "");
    assert_eq!((answer.status, answer.body.contains("set memory to")), (400, true), "{}", answer.body);
    std::fs::remove_file(&file.path).unwrap();
    let answer = relay.post("/reload", "");
    assert_eq!((answer.status, answer.body.contains("cannot be read")), (400, true), "{}", answer.body);
    assert_eq!(file.reload(&relay, "max_streams = 2\n"), "changed: max_streams\n");
    assert!(last_was_good(&relay.metrics()));
    relay.send(b"two 1\n");
    let metrics = relay.until_settled(2);
    assert_eq!((metrics.received("two"), reloads(&metrics, "refused")), (1, 3));
    let foreign = relay.post_with("/reload", "sec-fetch-site: cross-site", "");
    assert_eq!((foreign.status, reloads(&relay.metrics(), "done")), (403, 1));
}

fn what_needs_a_restart_is_named_and_stays_as_it_is(io: Io) {
    let file = ConfigFile::new("max_frame_bytes = 1000\nmemory = \"64MiB\"\n");
    let relay = Relay::start(io, &format!("--destination null --linger 50ms {}", file.flag()));
    let limit = |metrics: &Metrics| metrics.total("standpipe_memory_limit_bytes");
    let before = limit(&relay.metrics());
    let answer = file
        .reload(&relay, "max_frame_bytes = 2000\nmemory = \"128MiB\"\nmax_calls = 20\n[streams.clicks]\n");
    assert_eq!(
        answer,
        "changed: max_calls, [streams.clicks]\n\
         max_frame_bytes: takes effect after a restart\n\
         memory: takes effect after a restart\n"
    );
    let line = "reloaded: memory: takes effect after a restart";
    relay.process().wait_for_line(|logged| logged.contains(line).then_some(())).unwrap();
    relay.send(format!("clicks {}\nclicks 1\n", "x".repeat(1_500)).as_bytes());
    let metrics = relay.until("the long one is refused", |metrics| metrics.rejected("too_long") == 1);
    assert_eq!(limit(&metrics), before);
    // What waits for a restart is named each time, or somebody would take it for done.
    let again =
        file.reload(&relay, "max_frame_bytes = 2000\nmax_calls = 20\nmemory = \"64MiB\"\n[streams.clicks]\n");
    assert_eq!(again, "nothing is different yet\nmax_frame_bytes: takes effect after a restart\n");
    relay.until_settled(1);
}

fn a_hangup_reloads_as_a_post_does_and_changes_what_is_logged(io: Io) {
    let file = ConfigFile::new("log = \"info\"\n");
    let relay = Relay::start(io, &format!("--destination null {}", file.flag()));
    let until = |done: u64, refused: u64| {
        relay.until("it was read", |metrics| {
            (reloads(metrics, "done"), reloads(metrics, "refused")) == (done, refused)
        });
    };
    relay.signal(Signal::HUP);
    until(1, 0);
    file.write("log = \"error\"\n");
    relay.signal(Signal::HUP);
    until(2, 0);
    file.write("log = \"eror\"\n");
    relay.signal(Signal::HUP);
    until(2, 1);
    assert!(file.reload(&relay, "log = \"error\"\nmax_calls = 20\n").starts_with("changed: max_calls"));
    assert_eq!(file.reload(&relay, "log = \"info\"\n"), "changed: max_calls, log\n");
    let ended = relay.terminate();
    ended.assert_code(0);
    assert_eq!(ended.lines_with("reload refused, nothing changes: "), 1, "{}", ended.log.join("\n"));
    assert_eq!(ended.lines_with("reloaded: nothing is different"), 1);
    // That of the first change to "error" and what was changed under it are not said, the change back is.
    assert_eq!(ended.lines_with("reloaded: "), 2, "{}", ended.log.join("\n"));
}

fn a_hangup_without_a_file_drains(io: Io) {
    let relay = Relay::start(io, "--destination null");
    relay.send(b"clicks 1\n");
    relay.until("it is received", |metrics| metrics.received("clicks") == 1);
    assert_eq!(relay.post("/reload", "").body, "nothing is different\n");
    relay.signal(Signal::HUP);
    let ended = relay.wait();
    ended.assert_code(0);
    assert_eq!(ended.lines_with("SIGHUP, and there is no configuration file to read again: draining"), 1);
}

fn flags_and_environment_keep_their_precedence(io: Io) {
    let file = ConfigFile::new("max_calls = 15\n");
    let mut command = Relay::command(&format!("{} --destination null --max-streams 1", io.flag()));
    command.env("STANDPIPE_CONFIG", &file.path).env("STANDPIPE_LINGER", "50ms");
    let relay = Relay::ready(super::harness::Process::start(&mut command));
    let answer = file.reload(&relay, "max_calls = 16\nmax_streams = 2\nlinger = \"15m\"\n");
    assert_eq!(answer, "changed: max_calls\n");
    relay.send(b"one 1\ntwo 1\n");
    relay.until_settled(1);
}

/// Sends to four streams, with syncs, until `stop` says so; gives the number of events.
fn send_until(client: Client, stop: &AtomicBool) -> u64 {
    let mut sent = 0;
    while !stop.load(Ordering::Acquire) {
        for _ in 0..100 {
            client.send(&format!("stream-{}", sent % 4), format!("event {sent}").as_bytes()).unwrap();
            sent += 1;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let report = client.close(PATIENCE).unwrap();
    assert_eq!((report.synced, report.lost, report.unsynced), (sent, 0, 0), "{report:?}");
    sent
}

/// While events come, and calls fail in part, streams move to and fro.
fn streams_change_their_delivery_streams_under_load(io: Io) {
    let sink = Sink::start("--fail-records 0.1 --latency 1ms-20ms");
    let file = ConfigFile::new("");
    let flags = "--linger 20ms --retry-base 5ms --retry-max 50ms";
    let relay = Relay::start(io, &format!("{} {} {flags}", sink.destination(), file.flag()));
    let mappings = [
        "delivery_stream = \"all\"\n",
        "[streams.stream-0]\ndelivery_streams = [\"a\", \"b\"]\n[streams.stream-1]\ndelivery_streams = [\"b\"]\n",
        "delivery_stream = \"x-{stream}\"\n[streams.stream-0]\ndelivery_streams = [\"b\", \"c\"]\npacking = \"single\"\n",
        "linger = \"30ms\"\n[streams.stream-2]\ndelivery_streams = [\"stream-2\", \"a\"]\nmax_record_events = 3\n",
        "max_lane_calls = 1\n",
    ];
    let stop = AtomicBool::new(false);
    let sent: u64 = std::thread::scope(|scope| {
        let connect = || Client::connect(&relay.address().to_string()).unwrap();
        let senders: Vec<_> =
            (0..2).map(|_| connect()).map(|client| scope.spawn(|| send_until(client, &stop))).collect();
        for mapping in mappings.iter().cycle().take(15) {
            let delivered = |metrics: &Metrics| metrics.total("standpipe_events_delivered_total");
            let before = delivered(&relay.metrics());
            file.reload(&relay, mapping);
            relay.until("it goes on", |metrics| delivered(metrics) >= before + 2_000);
        }
        stop.store(true, Ordering::Release);
        senders.into_iter().map(|sender| sender.join().unwrap()).sum()
    });
    let metrics = relay.until_settled(sent);
    assert_eq!(metrics.total("standpipe_events_delivered_total"), sent);
    assert_eq!(metrics.total("standpipe_possible_duplicate_events_total"), 0);
    assert_eq!(sink.ledger()["totals"]["foreign_events"], sent);
    for lane in ["all", "a", "b", "c", "x-stream-3", "stream-3"] {
        assert!(accepted(&sink, lane) > 0, "{lane}");
    }
    // What nobody is mapped to is shown no more.
    let status = relay.get("/status").json();
    let mut lanes: Vec<&str> = status["lanes"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|lane| lane["delivery_stream"].as_str())
        .collect();
    lanes.sort_unstable();
    assert_eq!(lanes, ["stream-0", "stream-1", "stream-2", "stream-3"]);
    relay.terminate().assert_code(0);
}

fn a_parked_stream_is_mended_at_once(io: Io) {
    let sink = Sink::start("--missing clicks");
    let file = ConfigFile::new("park_probe = \"1h\"\n");
    let relay = Relay::start(io, &format!("{} {} --linger 50ms", sink.destination(), file.flag()));
    let state = |metrics: &Metrics, lane| metrics.sum("standpipe_lane_state", &[("delivery_stream", lane)]);
    relay.send(&b"clicks 1\n".repeat(100));
    relay.until("it is parked", |metrics| state(metrics, "clicks") == 2);
    file.reload(&relay, "park_probe = \"1h\"\n[streams.clicks]\ndelivery_streams = [\"other\"]\n");
    let metrics = relay.until_settled(100);
    assert_eq!((metrics.delivered("clicks"), accepted(&sink, "other")), (100, 100));
    // It stands in no lane that is parked any more, so that nobody is called out of bed.
    assert_eq!(state(&metrics, "clicks") + state(&metrics, "other"), 0);
    // Back to the first, which has come into being meanwhile: it need not wait for the hour to pass.
    sink.set_faults("{}");
    file.reload(&relay, "park_probe = \"1h\"\n");
    relay.send(&b"clicks 1\n".repeat(10));
    relay.until_settled(110);
    assert_eq!(accepted(&sink, "clicks"), 10);
    // Nor has one that only waits for its probe, where the probes become more frequent.
    sink.set_faults("{\"missing\": [\"clicks\"]}");
    relay.send(b"clicks 1\n");
    relay.until("it is parked again", |metrics| state(metrics, "clicks") == 2);
    sink.set_faults("{}");
    file.reload(&relay, "park_probe = \"50ms\"\n");
    relay.until_settled(111);
}

fn a_stream_whose_table_goes_away_is_refused_and_what_is_held_of_it_delivered(io: Io) {
    let sink = Sink::start("");
    let strict = "only_configured_streams = true\nlinger = \"15m\"\n";
    let both = format!("{strict}[streams.one]\ndelivery_streams = [\"lane\"]\n[streams.two]\n");
    let file = ConfigFile::new(&both);
    let relay = Relay::start(io, &format!("{} {}", sink.destination(), file.flag()));
    let mut connection = relay.connect();
    let mut write = |bytes: &[u8]| std::io::Write::write_all(&mut connection, bytes).unwrap();
    write(b"one 1\ntwo 1\n");
    relay.until("both are open", |metrics| metrics.total("standpipe_events_received_total") == 2);
    file.reload(&relay, &format!("{strict}[streams.two]\n"));
    // It is sealed, so that the quarter of an hour is not waited for.
    relay.until("what was held of it is delivered", |metrics| metrics.delivered("one") == 1);
    write(b"one 2\ntwo 2\n");
    let metrics = relay.until("the other is taken", |metrics| metrics.received("two") == 2);
    assert_eq!((metrics.rejected("unknown_stream"), metrics.received("one")), (1, 1));
    file.reload(&relay, &both);
    write(b"one 3\n");
    relay.until("it is taken again", |metrics| metrics.received("one") == 2);
    drop(connection);
    let ended = relay.terminate();
    ended.assert_code(0);
    let line = "stream one: received 2 + recovered 0 = delivered 2 + dropped 0 + held 0";
    assert_eq!(ended.lines_with(line), 1, "{}", ended.log.join("\n"));
    assert_eq!((accepted(&sink, "one"), accepted(&sink, "two")), (1, 2));
}

fn a_stream_that_fits_the_template_no_longer_is_refused(io: Io) {
    let sink = Sink::start("");
    let file = ConfigFile::new("linger = \"50ms\"\n");
    let relay = Relay::start(io, &format!("{} {}", sink.destination(), file.flag()));
    let long = "n".repeat(60);
    relay.send(format!("{long} 1\nclicks 1\n").as_bytes());
    relay.until_settled(2);
    file.reload(&relay, "linger = \"50ms\"\ndelivery_stream = \"production-{stream}\"\n");
    relay.send(format!("{long} 2\nclicks 2\n").as_bytes());
    let metrics = relay.until_settled(3);
    assert_eq!((metrics.rejected("bad_name"), accepted(&sink, "production-clicks")), (1, 1));
}

fn a_connection_that_waits_goes_on_where_its_stream_drops(io: Io) {
    let sink = Sink::start("--missing none --throttle-stream stuck");
    let file = ConfigFile::new("");
    let flags = "--memory 64MiB --retry-max 100ms --shards 1";
    let relay = Relay::start(io, &format!("{} {} {flags}", sink.destination(), file.flag()));
    let mut stuck = relay.connect();
    let writer = std::thread::spawn(move || {
        let line = [&b"stuck "[..], &[b'x'; 4_000], b"\n"].concat();
        // Far more than the stream may hold.
        (0..10_000).for_each(|_| std::io::Write::write_all(&mut stuck, &line).unwrap());
    });
    relay.until("it waits", |metrics| metrics.total("standpipe_paused_connections") == 1);
    file.reload(&relay, "[streams.stuck]\non_full = \"drop\"\n");
    writer.join().unwrap();
    relay.until("all has come", |metrics| metrics.received("stuck") == 10_000);
    sink.set_faults("{}");
    let metrics = relay.until_settled(10_000);
    assert!(metrics.dropped("stuck", "memory") > 0);
}

fn linger_and_age_of_connections_change(io: Io) {
    let file = ConfigFile::new("linger = \"15m\"\n");
    let relay = Relay::start(io, &format!("--destination null {}", file.flag()));
    let mut connection = relay.connect();
    std::io::Write::write_all(&mut connection, b"clicks 1\n").unwrap();
    relay.until("it is received", |metrics| metrics.received("clicks") == 1);
    file.reload(&relay, "linger = \"50ms\"\nmax_connection_age = \"1s\"\n");
    relay.until_settled(1);
    assert_eq!(std::io::Read::read(&mut connection, &mut [0; 1]).unwrap(), 0, "it is told to leave");
    relay.send(b"clicks 2\n");
    let metrics = relay.until_settled(2);
    assert_eq!(metrics.total("standpipe_connections_aged_total"), 1);
    assert_identity(&metrics);
}

fn a_relay_that_drains_reloads_nothing(io: Io) {
    let file = ConfigFile::new("pre_drain_delay = \"1h\"\n");
    let relay = Relay::start(io, &format!("--destination null {}", file.flag()));
    assert_eq!(relay.post("/drain", "").status, 202);
    wait_for("it drains", || (relay.get("/readyz").status == 503).then_some(()));
    let answer = relay.post("/reload", "");
    assert_eq!((answer.status, answer.body.contains("drains")), (409, true), "{}", answer.body);
    assert!(last_was_good(&relay.metrics()));
    relay.terminate().assert_code(0);
}
