//! `loadgen run` around a fake relay: a small one that can be told to lose, repeat, damage or reorder events, so
//! that each kind of harm is seen to be found. The fake is this test binary itself, started through a script.
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use crate::support::{Client, body, records_of};
use serde_json::Value;

/// Runs `loadgen run` around the fake; `harm` is what the fake does wrong.
fn run(harm: &str, flags: &str) -> (Output, Value) {
    let directory = tempfile::tempdir().unwrap();
    let (script, report) = (directory.path().join("relay"), directory.path().join("report.json"));
    let this = std::env::current_exe().unwrap();
    let text = format!(
        "#!/bin/sh\nFAKE_RELAY_ARGUMENTS=\"$*\" FAKE_RELAY_HARM={harm} exec '{}' --exact run::fake_relay --nocapture\n",
        this.display()
    );
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_loadgen"))
        .args(["run", "--relay", script.to_str().unwrap(), "--json", report.to_str().unwrap()])
        .args(flags.split_whitespace())
        .output()
        .unwrap();
    let report =
        std::fs::read_to_string(report).map_or(Value::Null, |text| serde_json::from_str(&text).unwrap());
    (output, report)
}

/// The names of the checks that do not hold.
fn failed(report: &Value) -> Vec<&str> {
    let checks = report["checks"].as_array().unwrap();
    checks.iter().filter(|check| check["ok"] == false).map(|check| check["name"].as_str().unwrap()).collect()
}

#[test]
fn a_good_relay_passes() {
    let (output, report) = run("none", "--events 20000 --connections 4 --streams 3 --size 57-400");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert_eq!((&report["ok"], &report["version"]), (&Value::Bool(true), &Value::from(1)), "{text}");
    assert_eq!(report["sent"]["events_sent"], 20_000);
    assert_eq!(report["ledger"]["totals"]["events_accepted"], 20_000);
    assert_eq!(report["relay"]["exit_code"], 0);
    assert!(report["relay"]["cpu_ns_per_event"].is_number() && report["latency_ms"]["p99_9"].is_number());
    assert!(report["billed_per_payload"].as_f64() > Some(1.0));
    assert!(text.contains("relay CPU ns/event") && text.contains("ok   nothing lost"), "{text}");
}

#[test]
fn faults_are_survived_and_a_schedule_is_kept() {
    let flags = "--events 3000 --rate 20k --connections 3 --fail-records 0.3 --fail-calls 0.2 --seed 3";
    let (output, report) = run("none", flags);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(report["ledger"]["calls"]["unavailable"].as_u64() > Some(0));
    assert!(report["ledger"]["totals"]["records_failed"].as_u64() > Some(0));
    assert!(report["sent"]["seconds"].as_f64() > Some(0.14));
}

#[test]
fn duplicates_that_are_counted_as_possible_are_allowed() {
    let (output, report) =
        run("none", "--events 5000 --connections 2 --cut 0.2 --garbage 0.2 --error-500 0.2");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let duplicates = report["events"]["duplicates"].as_u64().unwrap();
    assert!(duplicates > 0 && Some(duplicates) <= report["metrics"]["possible_duplicates"].as_u64());
}

#[test]
fn every_harm_is_found() {
    for (harm, check) in [
        ("lose", "nothing lost"),
        ("repeat", "no uncounted duplicates"),
        ("damage", "nothing corrupted"),
        ("reorder", "nothing reordered inside a record"),
        ("miscount", "received + recovered = delivered + dropped + held"),
        ("hide_calls", "every call was counted"),
        ("drop", "nothing dropped"),
        ("hold", "the relay let go of everything in time"),
        ("end_badly", "the relay ended well"),
        ("unterminated", "every record ends with a line"),
        ("missign", "every rule of the API kept"),
    ] {
        let (output, report) = run(harm, "--events 3000 --connections 2 --streams 2 --settle 1s");
        assert_eq!(output.status.code(), Some(1), "{harm}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(failed(&report).contains(&check), "{harm} gave {:?}", failed(&report));
    }
}

#[test]
fn drops_that_are_counted_can_be_allowed() {
    let (output, report) = run("drop", "--events 3000 --connections 2 --allow-drops");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(report["events"]["dropped"].as_u64() > Some(0));
    assert_eq!(report["events"]["lost"], 0);
}

#[test]
fn a_light_check_finds_loss_and_damage_of_headers() {
    let (output, _) = run("none", "--events 3000 --check light");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let (_, report) = run("lose", "--events 3000 --check light");
    assert!(failed(&report).contains(&"nothing lost"));
}

#[test]
fn the_other_destinations_are_verified() {
    for flags in ["--destination directory", "--destination null"] {
        let (output, report) = run("none", &format!("--events 3000 {flags}"));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(report.get("latency_ms").is_none());
    }
    let (_, report) = run("lose", "--events 3000 --destination directory");
    assert!(failed(&report).contains(&"nothing lost"));
}

#[test]
fn a_profile_runs_and_compares_its_steps() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let flags = format!(
        "--profile streams --repeat 2 --connections 2 --streams 3 --rate 4000 --duration 500ms --warm-up 100ms \
         --pin-relay 0 --pin-load 0 --html {}",
        path("report.html")
    );
    let (output, report) = run("none", &flags);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert_eq!(
        (&report["version"], &report["profile"], &report["repeat"]),
        (&1.into(), &"streams".into(), &2.into())
    );
    let figures = &report["steps"][1]["figures"];
    for figure in ["cpu_ns_per_event", "events_per_second", "latency_p99_9_ms"] {
        assert!(figures[figure].as_f64() > Some(0.0), "{figure}: {figures}");
    }
    assert_eq!((&figures["lost"], &figures["events_sent"]), (&0.0.into(), &2_000.0.into()));
    assert_eq!(report["steps"][0]["spread"]["runs"], 2);
    assert_eq!(report["ratios"].as_array().unwrap().len(), 3);
    let page = std::fs::read_to_string(path("report.html")).unwrap();
    assert!(page.contains("<svg") && page.contains("10,000 streams"));
    std::fs::write(path("a.json"), report.to_string()).unwrap();
    let compared = Command::new(env!("CARGO_BIN_EXE_loadgen"))
        .args(["run", "--compare", &path("a.json"), &path("a.json")])
        .output()
        .unwrap();
    let compared = String::from_utf8(compared.stdout).unwrap();
    assert!(compared.contains("relay CPU ns/event") && compared.contains("1.000"), "{compared}");
}

#[test]
fn a_profile_stands_beside_its_floors() {
    let flags = "--profile bulk --floor --connections 2 --duration 500ms --warm-up 100ms --rate 4000";
    let (output, report) = run("none", flags);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let figures = &report["steps"][0]["figures"];
    let floors = [
        "receive_ns",
        "receive_paused_ns",
        "scan_ns",
        "gather_ns",
        "base64_ns",
        "sha256_ns",
        "send_ns",
        "requests_ns",
        "requests_hyper_ns",
        "sum_ns",
    ];
    for floor in floors {
        assert!(figures[format!("floor_{floor}")].as_f64() > Some(0.0), "{floor}: {figures}");
    }
    assert!(figures["cpu_per_floor"].is_number());
}

#[test]
fn a_profile_that_loses_fails() {
    let flags = "--profile paced --rate 2000 --duration 500ms --warm-up 100ms --connections 2";
    let (output, report) = run("lose", flags);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(report["ok"], false);
    assert!(report["steps"][0]["failed_checks"][0].as_str().unwrap().starts_with("nothing lost"), "{report}");
}

#[test]
fn a_relay_that_cannot_start_is_told_in_words() {
    let (output, _) = run("refuse_to_start", "--events 1");
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no licence to start"));
    let missing =
        Command::new(env!("CARGO_BIN_EXE_loadgen")).args(["run", "--relay", "/nowhere"]).output().unwrap();
    assert_eq!(missing.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("there is no relay at `/nowhere`"));
}

/// The fake relay's main; a test that passes at once where it is not started as the fake.
#[test]
fn fake_relay() {
    if let (Ok(arguments), Ok(harm)) =
        (std::env::var("FAKE_RELAY_ARGUMENTS"), std::env::var("FAKE_RELAY_HARM"))
    {
        Fake::main(&arguments, harm);
    }
}

static MISSIGNED: AtomicBool = AtomicBool::new(false);

enum Out {
    Sink(SocketAddr),
    Directory(PathBuf),
    Null,
}

/// A relay of one lock: each connection gathers what it reads and delivers it itself.
struct Fake {
    harm: String,
    out: Out,
    metrics: Mutex<BTreeMap<String, u64>>,
}

impl Fake {
    fn main(arguments: &str, harm: String) {
        if harm == "refuse_to_start" {
            eprintln!("no licence to start");
            std::process::exit(3);
        }
        let words: Vec<&str> = arguments.split(' ').collect();
        let after = |flag: &str| words[words.iter().position(|word| *word == flag).unwrap() + 1];
        let out = match after("--destination") {
            "firehose" => {
                Out::Sink(after("--endpoint-url").strip_prefix("http://").unwrap().parse().unwrap())
            }
            "null" => Out::Null,
            directory => Out::Directory(directory.strip_prefix("directory:").unwrap().into()),
        };
        let fake = Arc::new(Self { harm, out, metrics: Mutex::default() });
        let (events, admin) =
            (TcpListener::bind(after("--listen")).unwrap(), TcpListener::bind(after("--admin")).unwrap());
        eprintln!(
            "INFO ready listen={} admin={} fake=1",
            events.local_addr().unwrap(),
            admin.local_addr().unwrap()
        );
        let code = i32::from(fake.harm == "end_badly");
        let shared = fake.clone();
        std::thread::spawn(move || admin.incoming().for_each(|connection| shared.admin(connection.unwrap())));
        std::thread::spawn(move || {
            for connection in events.incoming() {
                let fake = fake.clone();
                std::thread::spawn(move || fake.connection(connection.unwrap()));
            }
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let kind = tokio::signal::unix::SignalKind::terminate();
            tokio::signal::unix::signal(kind).unwrap().recv().await;
        });
        std::process::exit(code);
    }

    fn count(&self, sample: &str, by: u64) {
        *self.metrics.lock().unwrap().entry(format!("standpipe_{sample}")).or_default() += by;
    }

    fn admin(&self, mut connection: TcpStream) {
        let _ = connection.read(&mut [0; 1024]);
        let metrics = self.metrics.lock().unwrap();
        let body: String = metrics.iter().map(|(sample, value)| format!("{sample} {value}\n")).collect();
        let _ = write!(connection, "HTTP/1.0 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    }

    /// What a connection sent, in chunks of up to 200 lines, held until delivered.
    fn connection(&self, connection: TcpStream) {
        let mut chunk: BTreeMap<String, Vec<Vec<u8>>> = BTreeMap::new();
        let mut lines = 0;
        for line in BufReader::new(connection).split(b'\n').map_while(Result::ok) {
            let space = line.iter().position(|byte| *byte == b' ').unwrap();
            let stream = String::from_utf8(line[..space].to_vec()).unwrap();
            chunk.entry(stream).or_default().push([&line[space + 1..], b"\n"].concat());
            lines += 1;
            if lines % 200 == 0 {
                self.deliver(std::mem::take(&mut chunk));
            }
        }
        self.deliver(chunk);
    }

    fn deliver(&self, chunk: BTreeMap<String, Vec<Vec<u8>>>) {
        for (stream, events) in chunk {
            let count = events.len() as u64;
            // Held first, so that the relay never seems settled before it is.
            let held = format!("standpipe_events_held{{stream=\"{stream}\",place=\"queued\"}}");
            *self.metrics.lock().unwrap().entry(held.clone()).or_default() += count;
            self.count(&format!("events_received_total{{stream=\"{stream}\"}}"), count);
            let (records, mut delivered) = self.harmed(&stream, events);
            self.put(&stream, records);
            if self.harm == "miscount" {
                delivered -= 1;
            }
            self.count(&format!("events_delivered_total{{stream=\"{stream}\"}}"), delivered);
            if self.harm != "hold" {
                *self.metrics.lock().unwrap().get_mut(&held).unwrap() -= count;
            }
        }
    }

    /// The records of these events, a few each, with the harm done; and how many events are said to be delivered.
    fn harmed(&self, stream: &str, mut events: Vec<Vec<u8>>) -> (Vec<Vec<u8>>, u64) {
        let mut delivered = events.len() as u64;
        match self.harm.as_str() {
            "lose" => drop(events.pop()),
            "drop" => {
                events.pop();
                delivered -= 1;
                self.count(&format!("events_dropped_total{{stream=\"{stream}\",reason=\"memory\"}}"), 1);
            }
            "repeat" => events.push(events[0].clone()),
            "damage" => events[0][70] ^= 1,
            "reorder" => events.reverse(),
            "unterminated" => drop(events.last_mut().unwrap().pop()),
            _ => {}
        }
        (events.chunks(20).map(<[_]>::concat).collect(), delivered)
    }

    fn put(&self, stream: &str, mut records: Vec<Vec<u8>>) {
        match &self.out {
            Out::Null => {}
            Out::Directory(root) => {
                let path = root.join(stream);
                std::fs::create_dir_all(&path).unwrap();
                let file = std::fs::OpenOptions::new().create(true).append(true).open(path.join("file"));
                file.unwrap().write_all(&records.concat()).unwrap();
            }
            Out::Sink(address) => {
                while !records.is_empty() {
                    records = self.call(*address, stream, records);
                }
            }
        }
    }

    /// One call; what has to be sent again.
    fn call(&self, address: SocketAddr, stream: &str, records: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
        if self.harm != "hide_calls" {
            self.count(&format!("calls_total{{delivery_stream=\"{stream}\",outcome=\"any\"}}"), 1);
        }
        let slices: Vec<&[u8]> = records.iter().map(Vec::as_slice).collect();
        // The first call only: who never signs well never gets rid of anything.
        let missign = self.harm == "missign" && !MISSIGNED.swap(true, Relaxed);
        let secret = if missign { "another" } else { &std::env::var("AWS_SECRET_ACCESS_KEY").unwrap() };
        let answer = Client::signing(address, secret).put_record_batch(&body(stream, &slices));
        let understood = answer.as_ref().filter(|answer| answer.status == 200).and_then(|answer| {
            let value = serde_json::from_str::<Value>(&answer.body).ok()?;
            (value["RequestResponses"].as_array()?.len() == records.len()).then(|| records_of(answer))
        });
        match understood {
            Some(codes) => {
                records.into_iter().zip(codes).filter(|(_, code)| code.is_some()).map(|(r, _)| r).collect()
            }
            None if answer.is_some_and(|answer| answer.status == 503) => records,
            None => {
                let events = records.concat().iter().filter(|byte| **byte == b'\n').count() as u64;
                self.count(
                    &format!("possible_duplicate_events_total{{stream=\"{stream}\",cause=\"unknown\"}}"),
                    events,
                );
                records
            }
        }
    }
}
