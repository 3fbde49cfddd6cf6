//! Calls over real sockets to a small HTTP server that answers as it is told to and keeps what it was sent.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Mutex;

use aws_credential_types::Credentials;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;

mod targets;

/// What the server does with a connection.
#[derive(Clone, Debug)]
enum Reply {
    /// Reads the request and answers it.
    Answer(u16, String),
    /// The same, with more behind its other headers.
    AnswerWith(u16, &'static str, String),
    /// Reads the request, declares a longer body than it sends, and closes.
    CutAnswer(u16, String),
    /// Reads the request and closes.
    CloseAfterRequest,
    /// Closes at once.
    CloseBeforeRequest,
    /// Reads and says nothing until the client goes.
    Silence,
}

#[derive(Debug)]
struct Request {
    line: String,
    headers: HashMap<String, String>,
    body: Vec<u8>,
}

/// A server that gives every connection the same reply.
struct Server {
    address: SocketAddr,
    connections: Arc<Mutex<usize>>,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    async fn start(reply: Reply) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let server = Self {
            address: listener.local_addr().expect("the listener is bound"),
            connections: Arc::default(),
            requests: Arc::default(),
        };
        let (connections, requests) = (Arc::clone(&server.connections), Arc::clone(&server.requests));
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                *connections.lock().expect("not poisoned") += 1;
                tokio::spawn(serve(socket, reply.clone(), Arc::clone(&requests)));
            }
        });
        server
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn connections(&self) -> usize {
        *self.connections.lock().expect("not poisoned")
    }

    fn requests(&self) -> std::sync::MutexGuard<'_, Vec<Request>> {
        self.requests.lock().expect("not poisoned")
    }
}

async fn serve(mut socket: TcpStream, reply: Reply, requests: Arc<Mutex<Vec<Request>>>) {
    if matches!(reply, Reply::CloseBeforeRequest) {
        return;
    }
    while let Some(request) = read_request(&mut socket).await {
        requests.lock().expect("not poisoned").push(request);
        let (status, headers, body, cut) = match &reply {
            Reply::Answer(status, body) => (status, "", body, 0),
            Reply::AnswerWith(status, headers, body) => (status, *headers, body, 0),
            Reply::CutAnswer(status, body) => (status, "", body, 10),
            Reply::Silence => {
                let _ = socket.read(&mut [0]).await;
                return;
            }
            Reply::CloseAfterRequest | Reply::CloseBeforeRequest => return,
        };
        let length = body.len() + cut;
        let answer = format!(
            "HTTP/1.1 {status} X\r\ncontent-type: application/x-amz-json-1.1\r\ncontent-length: {length}{headers}\r\n\r\n{body}"
        );
        if socket.write_all(answer.as_bytes()).await.is_err() || cut > 0 {
            return;
        }
    }
}

/// The next request, or `None` where the client closes or sends something else.
async fn read_request(socket: &mut TcpStream) -> Option<Request> {
    let mut bytes = Vec::new();
    let head_length = loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        if socket.read_buf(&mut bytes).await.ok()? == 0 || !bytes.starts_with(b"P") {
            return None;
        }
    };
    let head = String::from_utf8(bytes[..head_length].to_vec()).ok()?;
    let mut lines = head.lines();
    let line = lines.next()?.to_owned();
    let headers: HashMap<String, String> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let length: usize = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    while bytes.len() < head_length + length {
        if socket.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
    Some(Request { line, headers, body: bytes.split_off(head_length) })
}

fn settings(endpoint_url: &str) -> FirehoseSettings {
    FirehoseSettings { defaults: at(endpoint_url), ..FirehoseSettings::default() }
}

fn at(endpoint_url: &str) -> DeliveryStreamSettings {
    DeliveryStreamSettings { endpoint_url: Some(endpoint_url.to_owned()), ..Default::default() }
}

async fn firehose(settings: &FirehoseSettings) -> Firehose {
    let credentials = Credentials::new("AKIDTEST", "secret", None, None, "test");
    firehose_with(settings, Some(SharedCredentialsProvider::new(credentials))).await
}

async fn firehose_with(
    settings: &FirehoseSettings,
    credentials: Option<SharedCredentialsProvider>,
) -> Firehose {
    let mut shared = SdkConfig::builder().behavior_version(BehaviorVersion::latest());
    shared.set_region(Some(Region::new("eu-west-1")));
    shared.set_credentials_provider(credentials);
    Firehose::from_config(&shared.build(), settings, connector(settings))
        .await
        .expect("the settings are good")
}

fn call(records: usize) -> Call {
    call_to("clicks", records)
}

fn call_to(delivery_stream: &str, records: usize) -> Call {
    let record = r#"{"Data":"aGVsbG8K"}"#;
    let body = format!(
        r#"{{"Records":[{}],"DeliveryStreamName":"{delivery_stream}"}}"#,
        vec![record; records].join(",")
    );
    Call {
        delivery_stream: delivery_stream.into(),
        body: Bytes::from(body),
        records,
        due: Instant::now(),
        digest: None,
    }
}

fn answer_of(failed: usize, entries: &[&str]) -> String {
    format!(r#"{{"FailedPutCount":{failed},"Encrypted":false,"RequestResponses":[{}]}}"#, entries.join(","))
}

const OK: &str = r#"{"RecordId":"id"}"#;
const SLOW_DOWN: &str = r#"{"ErrorCode":"ServiceUnavailableException","ErrorMessage":"Slow down."}"#;
const FAILURE: &str = r#"{"ErrorCode":"InternalFailure","ErrorMessage":"Internal Service Failure"}"#;

/// Makes one call against a server that replies so, checks that exactly one attempt was made, and gives the outcome.
async fn outcome_of(records: usize, reply: Reply) -> Outcome {
    let seen = usize::from(!matches!(reply, Reply::CloseBeforeRequest));
    let server = Server::start(reply).await;
    let outcome = firehose(&settings(&server.url())).await.call(call(records)).await;
    assert_eq!(server.connections(), 1, "{outcome:?}");
    assert_eq!(server.requests().len(), seen, "{outcome:?}");
    outcome
}

fn refusal(outcome: &Outcome) -> Option<Refusal> {
    match outcome {
        Outcome::Refused { kind, .. } => Some(*kind),
        _ => None,
    }
}

fn message(outcome: &Outcome) -> &str {
    match outcome {
        Outcome::Refused { message, .. } | Outcome::Unknown { message } => message,
        Outcome::Accepted | Outcome::Partial(_) | Outcome::Lost { .. } => "",
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// HMAC-SHA256, as RFC 2104 defines it, for keys of at most 64 bytes.
fn hmac(key: &[u8], message: &str) -> Vec<u8> {
    let pad = |with: u8| (0..64).map(|i| key.get(i).unwrap_or(&0) ^ with).collect::<Vec<u8>>();
    let inner = Sha256::digest([&pad(0x36), message.as_bytes()].concat());
    Sha256::digest([&pad(0x5c)[..], &inner].concat()).to_vec()
}

/// The signature (version 4) that the request must carry, worked out from what arrived. Firehose is sent no
/// `x-amz-content-sha256`, so only the signature shows that the digest of our body was signed.
fn signature(request: &Request) -> String {
    let authorization = &request.headers["authorization"];
    let field =
        |name: &str| authorization.split([' ', ',']).find_map(|part| part.strip_prefix(name)).expect("given");
    let signed_headers = field("SignedHeaders=");
    let headers: String =
        signed_headers.split(';').map(|name| format!("{name}:{}\n", request.headers[name].trim())).collect();
    let digest = hex(&Sha256::digest(&request.body));
    let path = request.line.split(' ').nth(1).expect("a request line has a path");
    let canonical = format!("POST\n{path}\n\n{headers}\n{signed_headers}\n{digest}");
    let scope = field("Credential=").split_once('/').expect("a key and a scope").1;
    let date = &request.headers["x-amz-date"];
    let to_sign = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{}", hex(&Sha256::digest(canonical)));
    let key = scope.split('/').fold(b"AWS4secret".to_vec(), |key, part| hmac(&key, part));
    hex(&hmac(&key, &to_sign))
}

#[tokio::test]
async fn the_request_is_ours_byte_for_byte() {
    let server = Server::start(Reply::Answer(200, answer_of(0, &[OK, OK]))).await;
    let firehose = firehose(&settings(&server.url())).await;
    let call = call(2);
    for _ in 0..2 {
        assert_eq!(firehose.call(call.clone()).await, Outcome::Accepted);
    }
    assert_eq!(server.connections(), 1, "the connection is used again");
    let requests = server.requests();
    assert_eq!(requests.len(), 2);
    for request in &*requests {
        assert_eq!(request.line, "POST / HTTP/1.1");
        assert_eq!(request.body, call.body);
        assert_eq!(request.headers["content-length"], call.body.len().to_string());
        assert!(!request.headers.contains_key("transfer-encoding"));
        assert_eq!(request.headers["x-amz-target"], "Firehose_20150804.PutRecordBatch");
        assert_eq!(request.headers["content-type"], "application/x-amz-json-1.1");
        assert!(request.headers["authorization"].contains("/eu-west-1/firehose/aws4_request"));
        assert_eq!(
            request.headers["authorization"].rsplit_once("Signature=").expect("it is signed").1,
            signature(request)
        );
    }
}

#[tokio::test]
async fn a_session_token_and_the_path_of_an_endpoint_are_signed_too() {
    let server = Server::start(Reply::Answer(200, answer_of(0, &[OK]))).await;
    let credentials = Credentials::new("AKIDTEST", "secret", Some("a token".to_owned()), None, "test");
    let provider = SharedCredentialsProvider::new(credentials);
    for (path, line) in [("", "/"), ("/", "/"), ("/a/b.c", "/a/b.c/"), ("/a/", "/a/")] {
        let settings = settings(&(server.url() + path));
        let firehose = firehose_with(&settings, Some(provider.clone())).await;
        assert_eq!(firehose.call(call(1)).await, Outcome::Accepted);
        let requests = server.requests();
        let request = requests.last().expect("it was sent");
        assert_eq!(request.line, format!("POST {line} HTTP/1.1"));
        assert_eq!(request.headers["x-amz-security-token"], "a token");
        let authorization = &request.headers["authorization"];
        assert!(authorization.contains("host;") && authorization.contains("x-amz-security-token;"));
        assert_eq!(authorization.rsplit_once("Signature=").expect("it is signed").1, signature(request));
    }
    let settings = settings(&(server.url() + "/a%20b"));
    let shared = SdkConfig::builder().behavior_version(BehaviorVersion::latest());
    let shared = shared.region(Region::new("eu-west-1")).build();
    let refused = Firehose::from_config(&shared, &settings, connector(&settings)).await;
    assert!(refused.expect_err("it would have to be encoded twice").to_string().contains("path"));
}

/// The service's clock decides: what it says in one answer is signed in the next call.
#[tokio::test]
async fn the_time_is_the_services() {
    let head = "\r\ndate: Fri, 01 Jan 2100 12:00:00 GMT";
    let server = Server::start(Reply::AnswerWith(400, head, r#"{"__type":"RequestExpired"}"#.into())).await;
    let firehose = firehose(&settings(&server.url())).await;
    for year in ["20", "2100"] {
        assert_eq!(refusal(&firehose.call(call(1)).await), Some(Refusal::Transient));
        assert!(server.requests().last().expect("it was sent").headers["x-amz-date"].starts_with(year));
    }
}

#[tokio::test]
async fn a_full_body_arrives_whole() {
    let server = Server::start(Reply::Answer(200, answer_of(0, &[OK]))).await;
    let body = Bytes::from(vec![b'x'; 5_600_000]);
    let call = Call {
        delivery_stream: "clicks".into(),
        body: body.clone(),
        records: 1,
        due: Instant::now(),
        digest: None,
    };
    assert_eq!(firehose(&settings(&server.url())).await.call(call).await, Outcome::Accepted);
    assert_eq!(server.requests()[0].headers["content-length"], "5600000");
    assert!(server.requests()[0].body == body);
}

#[tokio::test]
async fn records_are_answered_one_by_one() {
    use RecordOutcome::{Accepted, Internal, Throttled};
    let partial = Outcome::Partial(vec![Accepted, Throttled, Internal]);
    let entries = [OK, SLOW_DOWN, FAILURE];
    assert_eq!(outcome_of(3, Reply::Answer(200, answer_of(2, &entries))).await, partial);
    assert_eq!(outcome_of(3, Reply::Answer(200, answer_of(0, &entries))).await, partial, "the entries win");
    assert_eq!(outcome_of(2, Reply::Answer(200, answer_of(2, &[OK, OK]))).await, Outcome::Accepted);
}

#[tokio::test]
async fn an_answer_that_cannot_be_trusted_is_unknown() {
    let good = answer_of(0, &[OK]);
    let replies = [
        Reply::Answer(200, answer_of(0, &[OK, OK])),
        Reply::Answer(200, answer_of(0, &[])),
        Reply::Answer(200, answer_of(0, &["{}"])),
        Reply::Answer(200, "{}".into()),
        Reply::Answer(200, String::new()),
        Reply::Answer(200, good[..good.len() / 2].into()),
        Reply::Answer(200, "\u{1}garbage".into()),
        Reply::Answer(200, r#"{"FailedPutCount":0,"RequestResponses":"none"}"#.into()),
        Reply::CutAnswer(200, good),
        Reply::CloseAfterRequest,
        Reply::Answer(500, String::new()),
        Reply::Answer(500, r#"{"__type":"InternalFailure","message":"no"}"#.into()),
        Reply::Answer(502, "<html>".into()),
        Reply::Answer(504, String::new()),
    ];
    for reply in replies {
        let outcome = outcome_of(1, reply.clone()).await;
        assert!(matches!(outcome, Outcome::Unknown { .. }), "{reply:?}: {outcome:?}");
        assert!(message(&outcome).contains("clicks"), "{outcome:?}");
    }
}

/// Which of the two it is depends on whether the client notices before it writes; both are true.
#[tokio::test]
async fn a_connection_closed_at_once_accepts_nothing_for_certain_or_is_unknown() {
    let outcome = outcome_of(1, Reply::CloseBeforeRequest).await;
    let refused =
        refusal(&outcome) == Some(Refusal::Transient) && message(&outcome).contains("nothing was sent");
    assert!(refused || matches!(outcome, Outcome::Unknown { .. }), "{outcome:?}");
}

#[tokio::test]
async fn a_refusal_names_the_stream_the_status_and_the_code() {
    let typed = |code: &str| format!(r#"{{"__type":"{code}","message":"some\nreason"}}"#);
    let replies = [
        (503, String::new(), Refusal::Throttled),
        (503, typed("ServiceUnavailableException"), Refusal::Throttled),
        (400, typed("ThrottlingException"), Refusal::Throttled),
        (403, typed("AccessDeniedException"), Refusal::Credentials),
        (403, "<html>".into(), Refusal::Credentials),
        (400, typed("com.amazonaws#ExpiredTokenException"), Refusal::Credentials),
        (400, typed("RequestExpired"), Refusal::Transient),
        (400, typed("InvalidKMSResourceException"), Refusal::Key),
        (400, typed("ResourceNotFoundException"), Refusal::Permanent),
        (400, typed("InvalidSourceException"), Refusal::Permanent),
        (400, typed("InvalidArgumentException"), Refusal::Content),
        (400, typed("ValidationException"), Refusal::Content),
        (400, "\u{1}garbage".into(), Refusal::Content),
        (413, String::new(), Refusal::Content),
        (404, "<html>".into(), Refusal::Transient),
    ];
    for (status, body, kind) in replies {
        let outcome = outcome_of(1, Reply::Answer(status, body.clone())).await;
        assert_eq!(refusal(&outcome), Some(kind), "{status} {body}: {outcome:?}");
        let message = message(&outcome);
        assert!(message.contains("clicks") && message.contains(&status.to_string()), "{message}");
        assert!(!message.contains('\n'), "{message}");
        if let Some(code) = body.split('"').nth(3) {
            assert!(message.contains(code.trim_start_matches("com.amazonaws#")), "{message}");
            assert!(message.contains("some reason"), "{message}");
        }
    }
}

#[tokio::test]
async fn a_silent_service_is_unknown() {
    let server = Server::start(Reply::Silence).await;
    let mut settings = settings(&server.url());
    settings.call_timeout = Duration::from_millis(200);
    let outcome = firehose(&settings).await.call(call(1)).await;
    assert!(matches!(outcome, Outcome::Unknown { .. }), "{outcome:?}");
    assert_eq!((server.connections(), server.requests().len()), (1, 1));
}

#[tokio::test]
async fn nothing_is_accepted_where_no_connection_came_about() {
    let unused = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let refusing = format!("http://{}", unused.local_addr().expect("the listener is bound"));
    drop(unused);
    let plain = Server::start(Reply::Answer(200, String::new())).await;
    let silent = Server::start(Reply::Silence).await;
    let endpoints = [refusing, format!("https://{}", plain.address), format!("https://{}", silent.address)];
    for endpoint in endpoints {
        let mut settings = settings(&endpoint);
        settings.connect_timeout = Duration::from_millis(300);
        let outcome = firehose(&settings).await.call(call(1)).await;
        assert_eq!(refusal(&outcome), Some(Refusal::Transient), "{endpoint}: {outcome:?}");
        assert!(message(&outcome).contains("nothing was sent"), "{outcome:?}");
    }
    assert!(plain.requests().is_empty() && silent.requests().is_empty());
}

/// Credentials that never come, or come with an expiry.
#[derive(Debug)]
struct Provider(Option<SystemTime>);

impl ProvideCredentials for Provider {
    fn provide_credentials<'a>(&'a self) -> aws_credential_types::provider::future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        use aws_credential_types::provider::{error::CredentialsError, future::ProvideCredentials};
        ProvideCredentials::ready(match self.0 {
            Some(at) => Ok(Credentials::new("AKIDTEST", "secret", Some("token".into()), Some(at), "test")),
            None => Err(CredentialsError::not_loaded("the role is gone")),
        })
    }
}

#[tokio::test]
async fn without_credentials_nothing_is_sent() {
    let server = Server::start(Reply::Answer(200, answer_of(0, &[OK]))).await;
    let provider = SharedCredentialsProvider::new(Provider(None));
    for credentials in [Some(provider), None] {
        let firehose = firehose_with(&settings(&server.url()), credentials).await;
        firehose.check_credentials().await;
        let outcome = firehose.call(call(1)).await;
        assert_eq!(refusal(&outcome), Some(Refusal::Credentials), "{outcome:?}");
        assert_eq!(firehose.credentials_expiry(), None);
    }
    assert_eq!(server.connections(), 0);
}

#[tokio::test]
async fn the_expiry_of_the_credentials_is_known() {
    let server = Server::start(Reply::Answer(200, answer_of(0, &[OK]))).await;
    let whole_seconds = SystemTime::UNIX_EPOCH + Duration::from_secs(4_000_000_000);
    let provider = SharedCredentialsProvider::new(Provider(Some(whole_seconds)));
    let firehose = firehose_with(&settings(&server.url()), Some(provider)).await;
    assert_eq!(firehose.credentials_expiry(), None);
    assert_eq!(firehose.call(call(1)).await, Outcome::Accepted);
    assert_eq!(firehose.credentials_expiry(), Some(whole_seconds));
}

#[tokio::test]
async fn settings_that_cannot_work_are_errors() {
    let shared = SdkConfig::builder().behavior_version(BehaviorVersion::latest()).build();
    let settings = FirehoseSettings::default();
    let firehose = Firehose::from_config(&shared, &settings, connector(&settings)).await;
    let error = firehose.expect_err("there is no region");
    assert!(error.to_string().contains("AWS_REGION"), "{error}");
    for url in ["", "localhost:4566", "ftp://host", "http://", "http://:80", "https:///x", "http://a b"] {
        assert!(check_endpoint(url).is_err(), "{url:?}");
    }
    for url in ["http://127.0.0.1:4566", "https://firehose.eu-west-1.amazonaws.com", "http://[::1]:80/"] {
        assert!(check_endpoint(url).is_ok(), "{url:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_run_beside_each_other_on_several_threads() {
    let server = Server::start(Reply::Answer(200, answer_of(0, &[OK]))).await;
    let firehose = Arc::new(firehose(&settings(&server.url())).await);
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let firehose = Arc::clone(&firehose);
        calls.spawn(async move { firehose.call(call(1)).await });
    }
    assert!(calls.join_all().await.iter().all(|outcome| *outcome == Outcome::Accepted));
    assert_eq!(server.requests().len(), 50);
}

/// The environment of a process is read by a process of its own: this test starts itself again, with the endpoint
/// and the credentials in the child's environment.
#[tokio::test]
async fn the_environment_is_honoured() {
    const CHILD: &str = "STANDPIPE_TEST_FIREHOSE_CHILD";
    if std::env::var_os(CHILD).is_some() {
        let firehose =
            Firehose::connect(FirehoseSettings::default()).await.expect("the environment says it all");
        assert_eq!(firehose.call(call(1)).await, Outcome::Accepted);
        return;
    }
    let server = Server::start(Reply::Answer(200, answer_of(0, &[OK]))).await;
    for variable in ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_FIREHOSE"] {
        let mut child = Command::new(std::env::current_exe().expect("a test knows its own path"));
        child
            .args(["--exact", "destination::firehose::tests::the_environment_is_honoured", "--nocapture"])
            .env_clear()
            .env(CHILD, "1")
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("AWS_REGION", "eu-central-1")
            .env("AWS_ACCESS_KEY_ID", "AKIDENVIRONMENT")
            .env("AWS_SECRET_ACCESS_KEY", "secret")
            .env(variable, server.url());
        let output = tokio::task::spawn_blocking(move || child.output()).await.expect("it does not panic");
        let output = output.expect("a test can start itself");
        assert!(output.status.success(), "{variable}: {}", String::from_utf8_lossy(&output.stdout));
    }
    let requests = server.requests();
    assert_eq!(requests.len(), 2);
    for request in &*requests {
        assert!(request.headers["authorization"].contains("AKIDENVIRONMENT"));
        assert!(request.headers["authorization"].contains("/eu-central-1/firehose/"));
    }
}
