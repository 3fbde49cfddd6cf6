//! Helpers of the tests: the binary as a process, and a small HTTP client that sees what a connection sees.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64_simd::STANDARD;
use hyper::{HeaderMap, Method, Uri};
use loadgen::event::{Builder, Event, StreamSeed};
use loadgen::sink::signature::Signed;
use loadgen::units::Sizes;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// How long anything may take before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// `loadgen sink` as a process; killed when dropped.
pub struct SinkProcess {
    child: Child,
    stdout: BufReader<std::process::ChildStdout>,
    address: SocketAddr,
}

impl SinkProcess {
    pub fn start(flags: &str) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_loadgen"))
            .args(["sink", "--listen", "127.0.0.1:0", "--json", "-"])
            .args(flags.split_whitespace())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on http://").unwrap().parse().unwrap();
        Self { child, stdout, address }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Tells it to stop; its ledger.
    pub fn stop(mut self) -> Value {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        let mut text = String::new();
        self.stdout.read_to_string(&mut text).unwrap();
        assert!(self.child.wait().unwrap().success());
        serde_json::from_str(&text).unwrap()
    }
}

impl Drop for SinkProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An HTTP answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }
}

/// An HTTP client that opens a connection a request.
pub struct Client {
    address: SocketAddr,
    /// What calls are signed with; without it the signature is nonsense.
    secret: Option<String>,
}

impl Client {
    pub fn new(address: SocketAddr) -> Self {
        Self { address, secret: None }
    }

    /// A client whose signatures are right where the sink knows the same secret.
    pub fn signing(address: SocketAddr, secret: &str) -> Self {
        Self { address, secret: Some(secret.to_owned()) }
    }

    pub fn try_connect(&self) -> std::io::Result<TcpStream> {
        let connection = TcpStream::connect(self.address)?;
        connection.set_read_timeout(Some(PATIENCE))?;
        Ok(connection)
    }

    /// Waits until `condition` holds.
    pub fn until(&mut self, what: &str, mut condition: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition(self) {
            assert!(Instant::now() < deadline, "waited in vain until {what}");
            std::thread::yield_now();
        }
    }

    /// One request; `None` if the connection was closed without an answer.
    fn request(&self, head: &str, body: &str) -> Option<Answer> {
        let mut connection = self.try_connect().unwrap();
        let request = format!(
            "{head} HTTP/1.1\r\nhost: sink\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        // A sink that closes early makes writing or reading fail, as it should.
        let _ = connection.write_all(insert_headers(&request).as_bytes());
        let mut text = Vec::new();
        let _ = connection.read_to_end(&mut text);
        let text = String::from_utf8(text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Some(Answer { status, body: body.to_owned() })
    }

    pub fn get(&self, path: &str) -> Answer {
        self.request(&format!("GET {path}"), "").unwrap()
    }

    pub fn post(&self, path: &str, body: &str) -> Answer {
        self.request(&format!("POST {path}"), body).unwrap()
    }

    pub fn set_faults(&mut self, faults: &Value) {
        let answer = self.post("/faults", &faults.to_string());
        assert_eq!(answer.status, 200, "{}", answer.body);
    }

    pub fn ledger(&self) -> Value {
        self.get("/ledger").json()
    }

    pub fn put_record_batch(&self, body: &str) -> Option<Answer> {
        self.call(body, |_| true, &[])
    }

    /// A call with the usual headers that `keep` keeps, and with more.
    pub fn call(&self, body: &str, keep: impl Fn(&str) -> bool, more: &[(&str, String)]) -> Option<Answer> {
        let signature = self.secret.as_ref().map_or("00".to_owned(), |secret| sign(secret, body.as_bytes()));
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential=x/{SCOPE}, SignedHeaders={SIGNED_HEADERS}, Signature={signature}"
        );
        let usual = [
            ("content-type", "application/x-amz-json-1.1"),
            ("x-amz-target", TARGET),
            ("x-amz-date", DATE),
            ("authorization", &authorization),
        ];
        let mut headers = String::new();
        for (name, value) in usual.into_iter().filter(|(name, _)| keep(name)) {
            headers.push_str(&format!("\n{name}: {value}"));
        }
        for (name, value) in more {
            headers.push_str(&format!("\n{name}: {value}"));
        }
        self.request(&format!("POST /{headers}"), body)
    }
}

const DATE: &str = "20260101T000000Z";
const TARGET: &str = "Firehose_20150804.PutRecordBatch";
const SCOPE: &str = "20260101/us-east-1/firehose/aws4_request";
const SIGNED_HEADERS: &str = "host;x-amz-date;x-amz-target";

/// The signature of a call with the usual headers.
fn sign(secret: &str, body: &[u8]) -> String {
    let headers = [("host", "sink"), ("x-amz-date", DATE), ("x-amz-target", TARGET)]
        .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
    let (method, uri, headers) = (Method::POST, Uri::from_static("/"), HeaderMap::from_iter(headers));
    let request = Signed { method: &method, uri: &uri, headers: &headers, body };
    request.sign(secret, SCOPE, SIGNED_HEADERS).unwrap()
}

/// Headers ride behind the path, a line each; here they go to their place.
fn insert_headers(request: &str) -> String {
    let (first, rest) = request.split_once(" HTTP/1.1\r\n").unwrap();
    let (path, headers) = first.split_once('\n').unwrap_or((first, ""));
    let headers: String = headers.lines().map(|line| format!("{line}\r\n")).collect();
    format!("{path} HTTP/1.1\r\n{headers}{rest}")
}

/// The body of a PutRecordBatch, the name of the stream last.
pub fn body(stream: &str, records: &[&[u8]]) -> String {
    let records: Vec<_> = records
        .iter()
        .map(|record| format!(r#"{{"Data":"{}"}}"#, STANDARD.encode_to_string(record)))
        .collect();
    format!(r#"{{"Records":[{}],"DeliveryStreamName":"{stream}"}}"#, records.join(","))
}

/// An event with its LF, as the sender would build it.
pub fn event_line(stream: &str, connection: u32, sequence: u64) -> Vec<u8> {
    let builder = Builder::new(1, Sizes { min: 100, max: 100 }).unwrap();
    let mut line = Vec::new();
    let event = Event { connection, sequence, planned_ns: 1, check: 0 };
    builder.append(&mut line, StreamSeed::new(stream), sequence, &event);
    line.push(b'\n');
    line
}

/// The error code of each record, where it has one.
pub fn records_of(answer: &Answer) -> Vec<Option<String>> {
    let value = answer.json();
    let entries = value["RequestResponses"].as_array().unwrap();
    entries.iter().map(|entry| entry["ErrorCode"].as_str().map(str::to_owned)).collect()
}
