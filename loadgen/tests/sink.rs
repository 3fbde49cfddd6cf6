//! The sink as a process, spoken to in plain HTTP: every limit and every fault is seen from the outside.
use crate::support::{Answer, Client, SinkProcess, body, event_line, records_of};
use serde_json::{Value, json};

/// A sink with these flags, and a client of it.
fn sink(flags: &str) -> (SinkProcess, Client) {
    let sink = SinkProcess::start(flags);
    let client = Client::new(sink.address());
    (sink, client)
}

fn put(client: &mut Client, stream: &str, records: &[&[u8]]) -> Option<Answer> {
    client.put_record_batch(&body(stream, records))
}

#[test]
fn good_calls_are_accepted_and_counted() {
    let (sink, mut client) = sink("--seed 5");
    let first = [event_line("clicks", 0, 0), event_line("clicks", 0, 1)].concat();
    let answer = put(&mut client, "clicks", &[&first, &event_line("clicks", 0, 2)]).unwrap();
    assert_eq!(answer.status, 200);
    let value = answer.json();
    assert_eq!((&value["FailedPutCount"], &value["Encrypted"]), (&json!(0), &json!(false)));
    assert_eq!(value["RequestResponses"].as_array().unwrap().len(), 2);
    let again = put(&mut client, "clicks", &[&event_line("clicks", 0, 2)]).unwrap();
    assert_eq!(again.status, 200);
    let ledger = client.ledger();
    assert_eq!(ledger["calls"], json!({"ok": 2, "total": 2}));
    let clicks = &ledger["streams"]["clicks"];
    assert_eq!((&clicks["events_accepted"], &clicks["duplicate_events"]), (&json!(3), &json!(1)));
    assert_eq!((&clicks["records_accepted"], &clicks["billed_bytes"]), (&json!(3), &json!(3 * 5120)));
    assert_eq!(ledger["violations"]["total"], 0);
    let written = sink.stop();
    assert_eq!(written["streams"]["clicks"], *clicks);
    assert_eq!(written["seed"], 5);
}

#[test]
fn limits_hold_at_the_limit_and_one_over() {
    let (_sink, mut client) = sink("--check light");
    let full = vec![b'x'; 1_024_000];
    let rest = vec![b'x'; (4 << 20) - 4 * 1_024_000];
    let over = vec![b'x'; rest.len() + 1];
    let largest: [&[u8]; 5] = [&full, &full, &full, &full, &rest];
    assert_eq!(put(&mut client, "clicks", &largest).unwrap().status, 200);
    assert_eq!(put(&mut client, "clicks", &[b"x".as_slice(); 500]).unwrap().status, 200);
    let refused = |answer: Option<Answer>, kind: &str, exception: &str, client: &mut Client| {
        let answer = answer.unwrap();
        assert_eq!((answer.status, &answer.json()["__type"]), (400, &json!(exception)), "{kind}");
        assert_eq!(client.ledger()["violations"]["by_kind"][kind], 1, "{kind}");
    };
    let answer = put(&mut client, "clicks", &[b"x".as_slice(); 501]);
    refused(answer, "too_many_records", "ValidationException", &mut client);
    let answer = put(&mut client, "clicks", &[&full, &full, &full, &full, &over]);
    refused(answer, "call_too_large", "InvalidArgumentException", &mut client);
    let answer = put(&mut client, "clicks", &[&vec![b'x'; 1_024_001]]);
    refused(answer, "record_too_large", "ValidationException", &mut client);
    let answer = put(&mut client, "clicks", &[]);
    refused(answer, "no_records", "ValidationException", &mut client);
    let answer = client.put_record_batch(r#"{"Records":[{"Data":"QQ=="}]}"#);
    refused(answer, "stream_name", "ValidationException", &mut client);
    let answer = client.put_record_batch(r#"{"Records":[{"Data":"***"}],"DeliveryStreamName":"a"}"#);
    refused(answer, "base64", "SerializationException", &mut client);
    let answer = client.put_record_batch("{");
    refused(answer, "json", "SerializationException", &mut client);
    let ledger = client.ledger();
    assert_eq!((&ledger["calls"]["ok"], &ledger["calls"]["refused"]), (&json!(2), &json!(7)));
    assert_eq!(ledger["totals"]["records_accepted"], 505);
}

#[test]
fn missing_headers_are_violations() {
    let (_sink, client) = sink("");
    let good = body("clicks", &[b"x\n"]);
    for (leave_out, kind) in [
        ("authorization", "authorization"),
        ("x-amz-date", "date"),
        ("x-amz-target", "target"),
        ("content-type", "content_type"),
    ] {
        let answer = client.call(&good, |name| name != leave_out, &[]).unwrap();
        assert_eq!(answer.status, 400, "{leave_out}");
        assert_eq!(client.ledger()["violations"]["by_kind"][kind], 1);
    }
    let wrong = [("x-amz-content-sha256", "0".repeat(64))];
    assert_eq!(client.call(&good, |_| true, &wrong).unwrap().status, 400);
    assert_eq!(client.ledger()["violations"]["by_kind"]["digest"], 1);
    assert_eq!(client.ledger()["totals"]["records_accepted"], 0);
}

#[test]
fn signatures_are_verified_where_the_secret_is_known() {
    let (sink, stranger) = sink("--secret abc");
    let good = body("clicks", &[&event_line("clicks", 0, 0)]);
    assert_eq!(Client::signing(sink.address(), "abc").put_record_batch(&good).unwrap().status, 200);
    for client in [stranger, Client::signing(sink.address(), "abd")] {
        let answer = client.put_record_batch(&good).unwrap();
        assert_eq!((answer.status, &answer.json()["__type"]), (400, &json!("InvalidSignatureException")));
    }
    let written = sink.stop();
    assert_eq!(
        (&written["violations"]["by_kind"]["signature"], &written["calls"]["ok"]),
        (&json!(2), &json!(1))
    );
}

#[test]
fn records_fail_one_by_one_and_what_is_resent_arrives_once() {
    let (_sink, mut client) = sink("--fail-records 0.3 --seed 7");
    let mut left: Vec<Vec<u8>> = (0..200).map(|sequence| event_line("clicks", 0, sequence)).collect();
    let mut calls = 0;
    while !left.is_empty() {
        let records: Vec<&[u8]> = left.iter().map(Vec::as_slice).collect();
        let answer = put(&mut client, "clicks", &records).unwrap();
        assert_eq!(answer.status, 200);
        let codes = records_of(&answer);
        let failed = codes.iter().flatten().count();
        assert_eq!(answer.json()["FailedPutCount"], failed);
        assert!(
            codes
                .iter()
                .flatten()
                .all(|code| { ["ServiceUnavailableException", "InternalFailure"].contains(&code.as_str()) })
        );
        left = left.into_iter().zip(codes).filter(|(_, code)| code.is_some()).map(|(line, _)| line).collect();
        calls += 1;
    }
    let ledger = client.ledger();
    assert!(calls > 2);
    assert_eq!(
        (&ledger["totals"]["events_accepted"], &ledger["totals"]["duplicate_events"]),
        (&json!(200), &json!(0))
    );
    assert!(ledger["totals"]["records_failed"].as_u64() > Some(40));
}

#[test]
fn the_code_of_failing_records_can_be_fixed() {
    let (_sink, mut client) = sink("--fail-records 1 --fail-records-code throttled");
    let answer = put(&mut client, "clicks", &[b"a\n", b"b\n"]).unwrap();
    assert_eq!(records_of(&answer), vec![Some("ServiceUnavailableException".to_owned()); 2]);
    assert_eq!(client.ledger()["calls"]["throttled"], 1);
}

/// Status, outcome, and how many of 2 events were accepted, under a fault that hits every call.
#[test]
fn faults_of_whole_calls_do_what_they_say() {
    for (fault, status, outcome, accepted) in [
        ("fail_calls", Some(503), "unavailable", 0..=0),
        ("cut", None, "cut", 2..=2),
        ("cut_early", None, "cut_early", 0..=0),
        ("garbage", Some(200), "garbage", 2..=2),
        ("miscount", Some(200), "miscounted", 2..=2),
        ("error_500", Some(500), "error_500", 0..=2),
    ] {
        let (_sink, mut client) = sink("");
        client.set_faults(&json!({ fault: 1.0 }));
        let answer = put(&mut client, "clicks", &[&event_line("clicks", 0, 0), &event_line("clicks", 0, 1)]);
        assert_eq!(answer.as_ref().map(|answer| answer.status), status, "{fault}");
        if fault == "garbage" {
            let understood = answer.and_then(|answer| serde_json::from_str::<Value>(&answer.body).ok());
            let entries = understood.map(|value| value["RequestResponses"].as_array().unwrap().len());
            assert_ne!(entries, Some(2), "garbage must not look right");
        }
        let ledger = client.ledger();
        assert_eq!(ledger["calls"], json!({ outcome: 1, "total": 1 }), "{fault}");
        let events = ledger["totals"]["events_accepted"].as_u64().unwrap();
        assert!(accepted.contains(&events), "{fault}: {events}");
    }
}

#[test]
fn half_of_the_500s_are_accepted() {
    let (_sink, mut client) = sink("--error-500 1");
    for sequence in 0..64 {
        assert_eq!(put(&mut client, "clicks", &[&event_line("clicks", 0, sequence)]).unwrap().status, 500);
    }
    let accepted = client.ledger()["totals"]["events_accepted"].as_u64().unwrap();
    assert!((16..=48).contains(&accepted), "{accepted}");
}

#[test]
fn a_stalled_call_is_accepted_and_closed_in_the_end() {
    let (_sink, mut client) = sink("--stall 1 --stall-for 50ms");
    assert!(put(&mut client, "clicks", &[&event_line("clicks", 0, 0)]).is_none());
    let ledger = client.ledger();
    assert_eq!((&ledger["calls"]["stalled"], &ledger["totals"]["events_accepted"]), (&json!(1), &json!(1)));
}

#[test]
fn faults_of_one_stream_leave_the_others_alone() {
    let (_sink, mut client) = sink("--missing gone --throttle-stream busy --poison arsenic");
    let gone = put(&mut client, "gone", &[b"x\n"]).unwrap();
    assert_eq!((gone.status, &gone.json()["__type"]), (400, &json!("ResourceNotFoundException")));
    let statuses: Vec<_> = (0..4).map(|_| put(&mut client, "busy", &[b"x\n"]).unwrap().status).collect();
    assert!(statuses.contains(&200) && statuses.contains(&503), "{statuses:?}");
    let poisoned = put(&mut client, "clicks", &[b"good\n", b"some arsenic\n"]).unwrap();
    assert_eq!((poisoned.status, &poisoned.json()["__type"]), (400, &json!("ValidationException")));
    assert_eq!(put(&mut client, "clicks", &[b"good\n"]).unwrap().status, 200);
    let ledger = client.ledger();
    assert_eq!((&ledger["calls"]["missing"], &ledger["calls"]["poisoned"]), (&json!(1), &json!(1)));
    assert_eq!(ledger["totals"]["records_accepted"], 1);
    assert_eq!(ledger["violations"]["total"], 0, "faults are no violations");
}

#[test]
fn a_quota_throttles_what_is_beyond_it() {
    let (_sink, mut client) = sink("--quota 3000");
    let record = vec![b'x'; 1_000];
    let answer = put(&mut client, "clicks", &[record.as_slice(); 100]).unwrap();
    let accepted = records_of(&answer).iter().filter(|code| code.is_none()).count();
    assert!((3..100).contains(&accepted), "{accepted}");
    assert_eq!(put(&mut client, "views", &[record.as_slice(); 3]).unwrap().json()["FailedPutCount"], 0);
}

#[test]
fn the_service_can_be_down_and_come_back() {
    let (_sink, mut client) = sink("");
    client.set_faults(&json!({ "down": "0-3600" }));
    assert_eq!(put(&mut client, "clicks", &[b"x\n"]).unwrap().status, 503);
    client.set_faults(&json!({}));
    assert_eq!(put(&mut client, "clicks", &[b"x\n"]).unwrap().status, 200);
}

#[test]
fn the_listener_can_close_and_come_back() {
    let (_sink, mut client) = sink("");
    client.set_faults(&json!({ "refuse": "0-0.3" }));
    client.until("it refuses", |client| client.try_connect().is_err());
    client.until("it listens again", |client| client.try_connect().is_ok());
    assert_eq!(put(&mut client, "clicks", &[b"x\n"]).unwrap().status, 200);
}

#[test]
fn faults_can_be_read_and_mistakes_are_told() {
    let (_sink, client) = sink("--latency 1ms-2ms --cut 0.25");
    let faults = client.get("/faults").json();
    assert_eq!((&faults["cut"], &faults["latency"]), (&json!(0.25), &json!("1ms-2ms")));
    let refused = client.post("/faults", r#"{"kut":1}"#);
    assert_eq!(refused.status, 400);
    assert!(refused.json()["message"].as_str().unwrap().contains("kut"), "{}", refused.body);
    assert_eq!(client.post("/faults", r#"{"cut":2}"#).status, 400);
    assert_eq!(client.get("/faults").json()["cut"], 0.25, "a refused change changes nothing");
}

#[test]
fn the_same_seed_gives_the_same_faults() {
    let outcomes = |seed: u64| {
        let (_sink, mut client) = sink(&format!("--fail-calls 0.5 --seed {seed}"));
        (0..32).map(|_| put(&mut client, "clicks", &[b"x\n"]).unwrap().status).collect::<Vec<_>>()
    };
    assert_eq!(outcomes(1), outcomes(1));
    assert_ne!(outcomes(1), outcomes(2));
}
