//! The admin port.

use std::io::Write;
use std::net::Shutdown;

use super::harness::{Io, Relay, under_both_drivers, wait_for};

under_both_drivers!(
    health_and_readiness_follow_the_stage,
    a_body_that_is_not_understood_is_answered_in_a_sentence,
    the_status_is_json,
    the_page_asks_for_nothing_but_the_status,
    what_was_not_taken_is_kept_with_who_sent_it,
    a_lane_says_what_went_wrong_last,
    somebody_elses_page_may_not_drain,
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
    for body in ["", "{", "on", "{\"on\": 1}", "{\"of\": true}", "[]", "[true]", " [true]"] {
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
    assert_eq!(status["totals"]["delivered"], 3);
    assert_eq!(status["latency"]["events"], 3);
    let found = relay.get("/status?search=lick&streams=1").json();
    assert_eq!((&found["streams_known"], &found["streams_found"]), (&2.into(), &1.into()));
    let wrong = relay.get("/status?streams=many");
    assert_eq!((wrong.status, wrong.body.contains("streams must be a number")), (400, true));
}

fn the_page_asks_for_nothing_but_the_status(io: Io) {
    let relay = Relay::start(io, "--destination null");
    let page = relay.get("/");
    assert_eq!(page.status, 200);
    let policy = page.header("content-security-policy").expect("a policy");
    assert!(policy.starts_with("default-src 'none';") && !policy.contains("unsafe"), "{policy}");
    for path in ["/metrics", "/healthz", "/readyz", "/status", "/maintenance", "/drain"] {
        assert!(page.body.contains(path), "{path}");
    }
}

fn what_was_not_taken_is_kept_with_who_sent_it(io: Io) {
    let relay = Relay::start(io, "--destination null --max-frame-bytes 1000");
    let (mut connection, long) = (relay.connect(), "x".repeat(5_000));
    let peer = connection.local_addr().unwrap().to_string();
    connection.write_all(format!("a\tb\nlong {long}\nclicks \n!what\nhalf").as_bytes()).unwrap();
    connection.shutdown(Shutdown::Write).unwrap();
    // A frame is kept a moment after it was counted.
    let rejected = wait_for("all was looked at", || {
        let rejected = relay.get("/status").json()["rejected"].clone();
        let kept = rejected.as_object().unwrap().values().map(|one| one["frames"].as_array().unwrap().len());
        (kept.sum::<usize>() == 5).then_some(rejected)
    });
    for (reason, frame, is_cut) in [
        ("no_space", "a\\tb", false),
        ("too_long", &*format!("long {}", &long[..123]), true),
        ("empty_payload", "clicks ", false),
        ("bad_control", "!what", false),
        ("truncated", "half", false),
    ] {
        let kept = &rejected[reason]["frames"][0];
        assert_eq!((&kept["frame"], &kept["is_cut"]), (&frame.into(), &is_cut.into()), "{rejected}");
        assert_eq!(kept["peer"], *peer, "{reason}");
    }
    assert_eq!(rejected["bad_name"]["count"], 0);
    let silent = Relay::start(io, "--destination null --rejected-samples 0");
    silent.send(b"hello\n");
    silent.until("it was counted", |metrics| metrics.sum("standpipe_frames_rejected_total", &[]) == 1);
    assert_eq!(silent.get("/status").json()["rejected"]["no_space"]["frames"], serde_json::json!([]));
}

fn a_lane_says_what_went_wrong_last(io: Io) {
    let relay = Relay::start(io, "--destination relay:127.0.0.1:9 --linger 50ms --connect-timeout 1s");
    relay.send(b"clicks 1\n");
    let status = wait_for("a call fails", || {
        let status = relay.get("/status").json();
        (status["lanes"][0]["state"] == "backing_off").then_some(status)
    });
    assert_eq!(status["lanes"][0]["last_error_outcome"], "internal");
    assert_eq!((&status["lanes_by_state"]["backing_off"], &status["held"]), (&1.into(), &1.into()));
    let condition = &status["conditions"][0];
    assert_eq!((&condition["kind"], &condition["severity"]), (&"lanes_failing".into(), &"critical".into()));
    assert!(
        condition["sentence"]
            .as_str()
            .unwrap()
            .starts_with("The lane clicks cannot deliver to relay:127.0.0.1:9: ")
    );
}

fn somebody_elses_page_may_not_drain(io: Io) {
    let relay = Relay::start(io, "--destination null");
    for path in ["/drain", "/maintenance"] {
        let answer = relay.post_with(path, "sec-fetch-site: cross-site", "{\"on\": true}");
        assert_eq!(
            (answer.status, answer.body.contains("another site")),
            (403, true),
            "{path}: {}",
            answer.body
        );
    }
    assert_eq!(relay.post_with("/maintenance", "sec-fetch-site: same-origin", "{\"on\": true}").status, 200);
    assert_eq!(relay.get("/readyz").status, 503);
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
        wait_for("readiness follows the file", || (relay.get("/readyz").status == status).then_some(()));
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
