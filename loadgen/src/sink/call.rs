//! One HTTP request: a call that is checked, drawn for, accepted or not, and answered; or a request to the
//! control endpoints.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::{HeaderMap, Method, Request, Response, StatusCode, Uri};

use super::faults::{CallFault, Draw, Faults, RecordError};
use super::ledger::{Check, Outcome};
use super::protocol::{self, BODY_BYTES_MAX, Call, Refusal, Violation};
use super::signature::Signed;
use super::{State, lock};
use crate::schedule::unix_ns;

/// The connection is closed without an answer.
#[derive(Debug)]
pub(super) struct Closed;

impl std::fmt::Display for Closed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("closed on purpose")
    }
}

impl std::error::Error for Closed {}

type Answer = Result<Response<Full<Bytes>>, Closed>;

/// How a call ends: what the books say, and what the client is told (nothing: the connection is closed).
#[derive(Debug)]
struct Ending {
    outcome: Outcome,
    answer: Option<(StatusCode, String)>,
}

impl Ending {
    fn new(outcome: Outcome, status: StatusCode, body: String) -> Self {
        Self { outcome, answer: Some((status, body)) }
    }

    fn closed(outcome: Outcome) -> Self {
        Self { outcome, answer: None }
    }

    fn unavailable() -> Self {
        let (status, body) = protocol::unavailable();
        Self::new(Outcome::Unavailable, status, body)
    }
}

pub(super) async fn handle(state: Arc<State>, request: Request<Incoming>) -> Answer {
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/ledger") => {
            let totals = lock(&state.ledger).totals();
            Ok(json(StatusCode::OK, serde_json::to_string(&totals).expect("totals are JSON")))
        }
        (&Method::GET, "/faults") => {
            let faults = serde_json::to_string(&*state.active().0).expect("faults are JSON");
            Ok(json(StatusCode::OK, faults))
        }
        (&Method::POST, "/faults") => change_faults(&state, request).await,
        _ => call(&state, request).await,
    }
}

fn json(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    reply(status, body, "application/json")
}

fn reply(status: StatusCode, body: String, content_type: &'static str) -> Response<Full<Bytes>> {
    Response::builder()
        .status(status)
        .header(CONTENT_TYPE, content_type)
        .body(Full::from(body))
        .expect("status and header are legal")
}

/// The most bytes of settings that are read.
const SETTINGS_BYTES_MAX: usize = 64 << 10;

async fn change_faults(state: &State, request: Request<Incoming>) -> Answer {
    let mut body = Vec::new();
    read(request.into_body(), &mut body, SETTINGS_BYTES_MAX).await.map_err(|_| Closed)?;
    let faults = serde_json::from_slice::<Faults>(&body).map_err(|error| error.to_string());
    match faults.and_then(|faults| faults.validate().map(|()| faults)) {
        Ok(faults) => {
            state.set_faults(faults);
            Ok(json(StatusCode::OK, "{}".to_owned()))
        }
        Err(message) => {
            Ok(json(StatusCode::BAD_REQUEST, serde_json::json!({ "message": message }).to_string()))
        }
    }
}

/// Why a body could not be read.
enum Unread {
    TooLarge,
    Broken,
}

async fn read(mut body: Incoming, into: &mut Vec<u8>, limit: usize) -> Result<(), Unread> {
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Unread::Broken)?;
        if let Some(data) = frame.data_ref() {
            if into.len() + data.len() > limit {
                return Err(Unread::TooLarge);
            }
            into.extend_from_slice(data);
        }
    }
    Ok(())
}

async fn call(state: &State, request: Request<Incoming>) -> Answer {
    let number = {
        let mut ledger = lock(&state.ledger);
        ledger.begin_call()
    };
    let (faults, elapsed) = state.active();
    let draw = faults.draw(state.seed, number);
    let delay = draw.delay;
    let down = faults.down.is_some_and(|window| window.contains(elapsed));
    let ending = match draw.fault {
        Some(CallFault::CutEarly) => Ending::closed(Outcome::CutEarly),
        _ => {
            with_body(state, request, |head, body, records| {
                decide(&Scene { state, faults: &faults, number, down }, draw, head, body, records)
            })
            .await
        }
    };
    lock(&state.ledger).end_call(ending.outcome);
    match ending.outcome {
        Outcome::Stalled => tokio::time::sleep(faults.stall_for.0).await,
        Outcome::CutEarly | Outcome::Broken => {}
        _ if !delay.is_zero() => tokio::time::sleep(delay).await,
        _ => {}
    }
    let (status, body) = ending.answer.ok_or(Closed)?;
    Ok(reply(status, body, "application/x-amz-json-1.1"))
}

/// Reads the body into a buffer that is kept for later calls, and hands it on with another one for the records.
async fn with_body(
    state: &State,
    request: Request<Incoming>,
    then: impl FnOnce(&Head, &[u8], &mut Vec<u8>) -> Ending,
) -> Ending {
    let (parts, incoming) = request.into_parts();
    let head = Head { method: parts.method, uri: parts.uri, headers: parts.headers };
    let take = || lock(&state.buffers).pop().unwrap_or_default();
    let (mut body, mut records) = (take(), take());
    body.clear();
    let ending = match read(incoming, &mut body, BODY_BYTES_MAX).await {
        Ok(()) => then(&head, &body, &mut records),
        Err(Unread::Broken) => Ending::closed(Outcome::Broken),
        Err(Unread::TooLarge) => refuse(
            state,
            &Refusal {
                violation: Violation::BodyTooLarge,
                message: format!("the body has more than {BODY_BYTES_MAX} bytes"),
            },
        ),
    };
    lock(&state.buffers).extend([records, body]);
    ending
}

struct Head {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
}

/// What surrounds a call.
struct Scene<'a> {
    state: &'a State,
    faults: &'a Faults,
    number: u64,
    down: bool,
}

fn refuse(state: &State, refusal: &Refusal) -> Ending {
    lock(&state.ledger).violation(refusal.violation.name(), &refusal.message);
    Ending::new(Outcome::Refused, StatusCode::BAD_REQUEST, refusal.body())
}

/// Rules first, then faults of the stream, then faults of the call, then records one by one.
fn decide(scene: &Scene<'_>, draw: Draw, head: &Head, body: &[u8], records: &mut Vec<u8>) -> Ending {
    let call = match understand(scene, head, body, records) {
        Ok(call) => call,
        Err(refusal) => return refuse(scene.state, &refusal),
    };
    let ending = stream_fault(scene, &call, records).or_else(|| call_fault(scene, &draw, &call, records));
    match ending {
        Some(ending) => ending,
        None => by_record(scene, draw, &call, records),
    }
}

fn understand<'a>(
    scene: &Scene<'_>,
    head: &Head,
    body: &'a [u8],
    records: &mut Vec<u8>,
) -> Result<Call<'a>, Refusal> {
    protocol::check_head(&head.method, head.uri.path(), &head.headers)?;
    if scene.state.check == Check::Full {
        protocol::check_digest(&head.headers, body)?;
    }
    if let Some(secret) = &scene.state.secret {
        let request = Signed { method: &head.method, uri: &head.uri, headers: &head.headers, body };
        protocol::check_signature(request, secret)?;
    }
    protocol::decode(body, records)
}

/// What is wrong with this delivery stream or its data, whatever is drawn.
fn stream_fault(scene: &Scene<'_>, call: &Call<'_>, records: &[u8]) -> Option<Ending> {
    let (faults, name) = (scene.faults, call.delivery_stream.as_ref());
    let named = |names: &[String]| names.iter().any(|listed| listed == name);
    let bad_request = |outcome, kind, message: &str| {
        Ending::new(outcome, StatusCode::BAD_REQUEST, protocol::exception(kind, message))
    };
    let ending = if named(&faults.missing) {
        let message = format!("Firehose {name} under account 000000000000 not found.");
        bad_request(Outcome::Missing, "ResourceNotFoundException", &message)
    } else if faults.poison.as_ref().is_some_and(|poison| is_poisoned(poison, call, records)) {
        bad_request(Outcome::Poisoned, "ValidationException", "a record is not acceptable")
    } else if scene.down {
        Ending::unavailable()
    } else if named(&faults.throttle_stream) {
        match scene.number % 2 {
            0 => Ending::unavailable(),
            _ => {
                let results = vec![Some(RecordError::Throttled); call.records.len()];
                Ending::new(Outcome::Throttled, StatusCode::OK, answer(scene, &results))
            }
        }
    } else {
        return None;
    };
    lock(&scene.state.ledger).stream_call(name, call.records.len() as u64);
    Some(ending)
}

fn is_poisoned(poison: &str, call: &Call<'_>, records: &[u8]) -> bool {
    let finder = memchr::memmem::Finder::new(poison);
    call.records.iter().any(|range| finder.find(&records[range.clone()]).is_some())
}

/// What was drawn for the call as a whole.
fn call_fault(scene: &Scene<'_>, draw: &Draw, call: &Call<'_>, records: &[u8]) -> Option<Ending> {
    let internal = || protocol::exception("InternalFailure", "Internal service failure.");
    let (accepted, ending) = match draw.fault? {
        CallFault::CutEarly | CallFault::Miscount => return None,
        CallFault::Unavailable => (false, Ending::unavailable()),
        CallFault::Stall => (true, Ending::closed(Outcome::Stalled)),
        CallFault::Cut => (true, Ending::closed(Outcome::Cut)),
        CallFault::Garbage(kind) => {
            let body = protocol::garbage(kind, scene.number, call.records.len());
            (true, Ending::new(Outcome::Garbage, StatusCode::OK, body))
        }
        CallFault::Error500 { accepted } => {
            (accepted, Ending::new(Outcome::Error500, StatusCode::INTERNAL_SERVER_ERROR, internal()))
        }
    };
    let mut results = vec![(!accepted).then_some(RecordError::Internal); call.records.len()];
    accept(scene, call, records, &mut results);
    Some(ending)
}

/// Each record is accepted, or fails by the draw or by the quota.
fn by_record(scene: &Scene<'_>, mut draw: Draw, call: &Call<'_>, records: &[u8]) -> Ending {
    let mut results: Vec<_> = call.records.iter().map(|_| scene.faults.record(&mut draw)).collect();
    if let Some(quota) = scene.faults.quota {
        throttle(scene.state, quota as f64, call, &mut results);
    }
    accept(scene, call, records, &mut results);
    let failed = results.iter().flatten().count();
    let outcome = match failed {
        _ if draw.fault == Some(CallFault::Miscount) => Outcome::Miscounted,
        0 => Outcome::Ok,
        failed if failed == results.len() => Outcome::Throttled,
        _ => Outcome::Partial,
    };
    let claimed = match outcome {
        Outcome::Miscounted if failed == 0 => 1,
        Outcome::Miscounted => 0,
        _ => failed,
    };
    Ending::new(outcome, StatusCode::OK, protocol::answer(scene.number, &results, claimed))
}

fn answer(scene: &Scene<'_>, results: &[Option<RecordError>]) -> String {
    protocol::answer(scene.number, results, results.iter().flatten().count())
}

/// Enters the records without an error into the books.
fn accept(scene: &Scene<'_>, call: &Call<'_>, records: &[u8], results: &mut [Option<RecordError>]) {
    let failed = results.iter().flatten().count() as u64;
    let accepted = call.records.iter().zip(results.iter()).filter(|(_, result)| result.is_none());
    let mut ledger = lock(&scene.state.ledger);
    ledger.stream_call(&call.delivery_stream, failed);
    ledger.accept(&call.delivery_stream, accepted.map(|(range, _)| &records[range.clone()]), Some(unix_ns()));
}

/// A token bucket a delivery stream, a second deep: what does not fit is throttled, record by record.
fn throttle(state: &State, quota: f64, call: &Call<'_>, results: &mut [Option<RecordError>]) {
    let now = Instant::now();
    let mut quotas = lock(&state.quotas);
    let (left, reckoned) = quotas.entry(call.delivery_stream.to_string()).or_insert((quota, now));
    *left = (*left + now.duration_since(*reckoned).as_secs_f64() * quota).min(quota);
    *reckoned = now;
    for (range, result) in call.records.iter().zip(results).filter(|(_, result)| result.is_none()) {
        let bytes = range.len() as f64;
        // A record larger than a second's worth would otherwise never pass.
        match *left >= bytes.min(quota) {
            true => *left -= bytes,
            false => *result = Some(RecordError::Throttled),
        }
    }
}
