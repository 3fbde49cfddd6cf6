//! The admin port.

use super::harness::{Io, Relay, under_both_drivers, wait_for};

under_both_drivers!(
    health_and_readiness_follow_the_stage,
    a_body_that_is_not_understood_is_answered_in_a_sentence,
    the_status_is_json,
    the_metrics_are_what_the_design_names,
    lanes_beyond_the_labels_share_one,
    a_drain_can_be_asked_for,
    a_file_puts_the_relay_into_maintenance,
);

fn health_and_readiness_follow_the_stage(io: Io) {
    let relay = Relay::start(io, "--destination null --pre-drain-delay 1h");
    let stage = || (relay.get("/healthz").status, relay.get("/readyz").status);
    let counted = |stage| relay.metrics().sum("standpipe_stage", &[("stage", stage)]);
    assert_eq!((stage(), counted("ready"), counted("maintenance")), ((200, 200), 1, 0));
    assert_eq!(relay.post("/maintenance", "{\"on\": true}").status, 200);
    assert_eq!((stage(), counted("ready"), counted("maintenance")), ((200, 503), 0, 1));
    relay.send(b"clicks 1\n");
    relay.until_settled(1);
    assert_eq!(relay.post("/maintenance", "{\"on\":false}").status, 200);
    assert_eq!(stage(), (200, 200));
    relay.signal(rustix::process::Signal::TERM);
    wait_for("it drains", || (stage() == (200, 503)).then_some(()));
    assert!(relay.get("/readyz").body.contains("draining"));
    // Connections are still accepted during the delay.
    relay.send(b"clicks 1\n");
    relay.until_settled(2);
    relay.terminate().assert_code(0);
}

fn a_body_that_is_not_understood_is_answered_in_a_sentence(io: Io) {
    let relay = Relay::start(io, "--destination null");
    for body in ["", "{", "on", "{\"on\": 1}", "{\"of\": true}", "[]"] {
        let answer = relay.post("/maintenance", body);
        assert_eq!(answer.status, 400, "{body}");
        assert!(
            answer.body.contains("the body must be {\"on\": true} or {\"on\": false}"),
            "{}",
            answer.body
        );
    }
    assert_eq!((relay.get("/readyz").status, relay.get("/nowhere").status), (200, 404));
    assert_eq!(relay.get("/drain").status, 405);
}

fn the_status_is_json(io: Io) {
    let relay = Relay::start(io, "--destination null --linger 50ms");
    relay.send(b"clicks 1\nclicks 2\nviews 1\n");
    relay.until_settled(3);
    let status = relay.get("/status").json();
    assert_eq!((&status["stage"], &status["held"]), (&"ready".into(), &0.into()));
    let of = |list: &str, key: &str, value: &str| {
        let entries = status[list].as_array().unwrap();
        entries
            .iter()
            .find(|entry| entry[key] == value)
            .cloned()
            .unwrap_or_else(|| panic!("no {value} in {list}"))
    };
    let clicks = of("streams", "stream", "clicks");
    assert_eq!((&clicks["received"], &clicks["delivered"]), (&2.into(), &2.into()));
    assert_eq!(of("lanes", "delivery_stream", "views")["state"], "active");
    assert!(status["memory"]["limit_bytes"].as_u64() > Some(0));
    let index = relay.get("/").body;
    assert!(
        ["/metrics", "/healthz", "/readyz", "/status", "/maintenance", "/drain"]
            .iter()
            .all(|path| index.contains(path))
    );
}

fn the_metrics_are_what_the_design_names(io: Io) {
    let root = tempfile::tempdir().unwrap();
    let relay = Relay::start(io, &format!("--destination directory:{} --linger 50ms", root.path().display()));
    relay.send(b"clicks 1\n");
    relay.until_settled(1);
    let text = relay.get("/metrics").body;
    for (name, kind) in [
        ("events_received_total", "counter"),
        ("events_delivered_total", "counter"),
        ("events_dropped_total", "counter"),
        ("events_recovered_total", "counter"),
        ("events_held", "gauge"),
        ("frames_rejected_total", "counter"),
        ("received_bytes_total", "counter"),
        ("payload_bytes_delivered_total", "counter"),
        ("billed_bytes_total", "counter"),
        ("connections", "gauge"),
        ("connections_opened_total", "counter"),
        ("health_probes_total", "counter"),
        ("calls_total", "counter"),
        ("records_total", "counter"),
        ("possible_duplicate_events_total", "counter"),
        ("call_duration_seconds", "histogram"),
        ("delivery_latency_seconds", "histogram"),
        ("fsync_duration_seconds", "histogram"),
        ("memory_bytes", "gauge"),
        ("memory_limit_bytes", "gauge"),
        ("paused_connections", "gauge"),
        ("lane_state", "gauge"),
        ("oldest_held_event_age_seconds", "gauge"),
        ("shard_busy_ratio", "gauge"),
        ("io_driver_info", "gauge"),
        ("build_info", "gauge"),
    ] {
        let line = format!("# TYPE standpipe_{name} {kind}\n");
        assert_eq!(text.matches(&line).count(), 1, "{line} in\n{text}");
    }
}

fn lanes_beyond_the_labels_share_one(io: Io) {
    let relay = Relay::start(io, "--destination null --linger 50ms --max-stream-labels 1");
    relay.send(b"a 1\nb 1\nc 1\n");
    relay.until_settled(3);
    let text = relay.get("/metrics").body;
    for name in ["lane_state", "calls_in_flight"] {
        let of = |lane| format!("standpipe_{name}{{delivery_stream=\"{lane}\"}} 0\n");
        assert_eq!(text.matches(&format!("standpipe_{name}{{")).count(), 2, "{text}");
        assert!(text.contains(&of("_other")), "{text}");
    }
}

fn a_drain_can_be_asked_for(io: Io) {
    let relay = Relay::start(io, "--destination null");
    relay.send(&b"clicks 1\n".repeat(1_000));
    relay.until("all is received", |metrics| metrics.received("clicks") == 1_000);
    assert_eq!(relay.post("/drain", "").status, 202);
    let ended = relay.wait();
    ended.assert_code(0);
    let line = "stream clicks: received 1000 + recovered 0 = delivered 1000 + dropped 0 + held 0";
    assert_eq!(ended.lines_with(line), 1, "{}", ended.log.join("\n"));
}

fn a_file_puts_the_relay_into_maintenance(io: Io) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("down-for-maintenance");
    let relay = Relay::start(io, &format!("--destination null --maintenance-file {}", file.display()));
    let is = |status: u16| {
        wait_for("readiness follows the file", || (relay.get("/readyz").status == status).then_some(()))
    };
    is(200);
    std::fs::write(&file, "").unwrap();
    is(503);
    assert_eq!((relay.get("/readyz").body.as_str(), relay.get("/healthz").status), ("maintenance\n", 200));
    let answer = relay.post("/maintenance", "{\"on\": false}");
    assert!(answer.body.contains("stays on as long as"), "{}", answer.body);
    assert_eq!(relay.get("/readyz").status, 503);
    std::fs::remove_file(&file).unwrap();
    is(200);
    relay.terminate().assert_code(0);
}
