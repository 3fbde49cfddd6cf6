//! The Firehose path against a sink that fails: `loadgen run` verifies every event; here it is said what it must
//! survive.

use super::harness::{Io, Relay, Sink, run, seed, under_both_drivers, wait_for};

under_both_drivers!(
    partial_failures_and_refusals_are_survived_exactly_once,
    cut_connections_and_broken_answers_lose_nothing,
    single_packing_survives_the_same,
    records_keep_their_limits_at_every_size,
    without_faults_a_call_is_not_repeated,
    calls_are_counted_where_they_went,
);

const LOAD: &str = "--events 200000 --connections 64 --streams 16 --size 57-400";
const FAULTS: &str = "--fail-records 0.3 --fail-calls 0.1 --latency 1ms-50ms";

/// Small records, so that a moderate load makes many.
const PACKING: &str = "--max-record-events 40 --retry-base 10ms --retry-max 1s";

fn partial_failures_and_refusals_are_survived_exactly_once(io: Io) {
    let run = run(io, &format!("{LOAD} {FAULTS} --seed {}", seed()), PACKING);
    run.assert_good();
    assert_eq!((run.number("/events/duplicates"), run.number("/metrics/possible_duplicates")), (0, 0));
    assert_eq!(run.number("/ledger/totals/events_accepted"), 200_000);
    assert!(run.number("/ledger/totals/records_failed") > 100, "{}", run.text);
    assert!(run.number("/ledger/calls/unavailable") > 0, "{}", run.text);
}

fn cut_connections_and_broken_answers_lose_nothing(io: Io) {
    let more = "--cut 0.05 --cut-early 0.05 --garbage 0.05 --error-500 0.05 --miscount 0.05";
    let run = run(io, &format!("{LOAD} {FAULTS} {more} --seed {}", seed()), PACKING);
    run.assert_good();
    assert_eq!(run.number("/ledger/totals/events_accepted"), 200_000);
    for outcome in ["cut", "garbage", "error_500"] {
        assert!(run.number(&format!("/ledger/calls/{outcome}")) > 0, "no {outcome}: {}", run.text);
    }
}

fn single_packing_survives_the_same(io: Io) {
    let load = "--events 20000 --connections 8 --streams 3";
    let run = run(
        io,
        &format!("{load} {FAULTS} --cut 0.05 --seed {}", seed()),
        "--packing single --retry-base 10ms",
    );
    run.assert_good();
    assert!(run.number("/ledger/totals/records_accepted") >= 20_000);
}

fn records_keep_their_limits_at_every_size(io: Io) {
    let load = "--events 300 --connections 3 --streams 2 --size 57-1023999";
    let run = run(io, &format!("{load} --fail-records 0.1 --seed {}", seed()), "--retry-base 10ms");
    run.assert_good();
    assert_eq!(run.number("/ledger/violations/total"), 0);
}

fn without_faults_a_call_is_not_repeated(io: Io) {
    let run = run(io, "--events 100000 --connections 8 --streams 4", "");
    run.assert_good();
    assert_eq!(run.number("/ledger/totals/records_failed"), 0);
    assert_eq!(run.number("/ledger/calls/total"), run.number("/ledger/calls/ok"));
    assert_eq!(run.number("/metrics/possible_duplicates"), 0);
}

/// What the metrics say of calls is what the sink saw, also by delivery stream.
fn calls_are_counted_where_they_went(io: Io) {
    let sink = Sink::start("");
    let relay =
        Relay::start(io, &format!("{} --delivery-stream prod-{{stream}} --linger 20ms", sink.destination()));
    relay.send(b"clicks 1\nviews 1\n");
    let metrics = relay.until_settled(2);
    let ledger = wait_for("the sink has answered", || {
        let ledger = sink.ledger();
        (ledger["calls"]["total"] == 2).then_some(ledger)
    });
    for name in ["prod-clicks", "prod-views"] {
        assert_eq!(ledger["streams"][name]["records_accepted"], 1);
        let labels = [("delivery_stream", name), ("outcome", "ok")];
        assert_eq!(metrics.sum("standpipe_calls_total", &labels), 1);
        assert_eq!(metrics.sum("standpipe_records_total", &labels), 1);
    }
    assert_eq!(metrics.total("standpipe_billed_bytes_total"), 2 * 5 * 1024);
    assert_eq!(metrics.sum("standpipe_io_driver_info", &[("driver", "epoll")]), u64::from(io == Io::Epoll));
}
