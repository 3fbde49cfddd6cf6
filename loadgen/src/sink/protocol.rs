//! PutRecordBatch as bytes: the checks that Firehose makes of a request, decoding, and answers in its words.
//! Nothing here keeps state or decides what fails on purpose.
//!
//! Limits are those of the API reference of PutRecordBatch: 500 records and 4 MiB a call, 1,000 KiB a record;
//! bytes are counted before base64.

use std::borrow::Cow;
use std::fmt::Write;
use std::ops::Range;

use base64_simd::{Out, STANDARD};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE};
use hyper::{HeaderMap, Method, StatusCode};
use serde::de::Visitor;
use serde::{Deserialize, Deserializer};
use sha2::{Digest, Sha256};

use super::faults::{Garbage, RecordError};
use super::signature::{self, Signed};

/// The most records in a call.
pub const RECORDS_MAX: usize = 500;
/// The most raw bytes in a call.
pub const CALL_BYTES_MAX: usize = 4 << 20;
/// The most raw bytes in a record.
pub const RECORD_BYTES_MAX: usize = 1_024_000;
/// The most bytes of a body that are read: far above what the largest legal call needs (5.6 MiB).
pub const BODY_BYTES_MAX: usize = 16 << 20;

/// What the client did that the API does not allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Violation {
    /// Not `POST /`.
    Method,
    /// `X-Amz-Target` is not PutRecordBatch.
    Target,
    /// Not `application/x-amz-json-1.1`.
    ContentType,
    /// No Authorization header, or not one of Signature Version 4.
    Authorization,
    /// No X-Amz-Date.
    Date,
    /// `x-amz-content-sha256` is not the digest of the body.
    Digest,
    /// The signature is not the one that this request should bear.
    Signature,
    /// More than [`BODY_BYTES_MAX`] bytes.
    BodyTooLarge,
    /// Not the JSON of a PutRecordBatch.
    Json,
    /// Data that is not base64.
    Base64,
    /// No DeliveryStreamName, or not 1 to 64 of `[a-zA-Z0-9_.-]`.
    StreamName,
    /// No records.
    NoRecords,
    /// More than [`RECORDS_MAX`] records.
    TooManyRecords,
    /// A record of more than [`RECORD_BYTES_MAX`].
    RecordTooLarge,
    /// More than [`CALL_BYTES_MAX`] in all.
    CallTooLarge,
}

impl Violation {
    /// Its name in the ledger.
    pub fn name(self) -> &'static str {
        match self {
            Self::Method => "method",
            Self::Target => "target",
            Self::ContentType => "content_type",
            Self::Authorization => "authorization",
            Self::Date => "date",
            Self::Digest => "digest",
            Self::Signature => "signature",
            Self::BodyTooLarge => "body_too_large",
            Self::Json => "json",
            Self::Base64 => "base64",
            Self::StreamName => "stream_name",
            Self::NoRecords => "no_records",
            Self::TooManyRecords => "too_many_records",
            Self::RecordTooLarge => "record_too_large",
            Self::CallTooLarge => "call_too_large",
        }
    }

    fn exception(self) -> &'static str {
        match self {
            Self::Method | Self::Target | Self::ContentType => "UnknownOperationException",
            Self::Authorization => "MissingAuthenticationTokenException",
            Self::Date => "IncompleteSignatureException",
            Self::Digest | Self::Signature => "InvalidSignatureException",
            Self::Json | Self::Base64 => "SerializationException",
            Self::CallTooLarge | Self::BodyTooLarge => "InvalidArgumentException",
            Self::StreamName | Self::NoRecords | Self::TooManyRecords | Self::RecordTooLarge => {
                "ValidationException"
            }
        }
    }
}

/// A request that is not accepted, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Which rule was broken.
    pub violation: Violation,
    /// A sentence with the figures.
    pub message: String,
}

impl Refusal {
    fn new(violation: Violation, message: impl Into<String>) -> Self {
        Self { violation, message: message.into() }
    }

    /// The body of the answer, whose status is 400.
    pub fn body(&self) -> String {
        exception(self.violation.exception(), &self.message)
    }
}

/// The JSON of an exception.
pub fn exception(kind: &str, message: &str) -> String {
    serde_json::json!({ "__type": kind, "message": message }).to_string()
}

/// Checks method, path and headers.
///
/// # Errors
///
/// The first rule broken.
pub fn check_head(method: &Method, path: &str, headers: &HeaderMap) -> Result<(), Refusal> {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("");
    if method != Method::POST || path != "/" {
        return Err(Refusal::new(Violation::Method, format!("`{method} {path}` is no call: use POST /")));
    }
    let target = header("x-amz-target");
    if target != "Firehose_20150804.PutRecordBatch" {
        return Err(Refusal::new(
            Violation::Target,
            format!("`{target}` is not Firehose_20150804.PutRecordBatch"),
        ));
    }
    let content_type = header(CONTENT_TYPE.as_str());
    if content_type != "application/x-amz-json-1.1" {
        let message = format!("`{content_type}` is not application/x-amz-json-1.1");
        return Err(Refusal::new(Violation::ContentType, message));
    }
    check_authorization(header(AUTHORIZATION.as_str()))?;
    if header("x-amz-date").is_empty() {
        return Err(Refusal::new(Violation::Date, "X-Amz-Date is missing"));
    }
    Ok(())
}

fn check_authorization(value: &str) -> Result<(), Refusal> {
    let parts = ["AWS4-HMAC-SHA256 ", "Credential=", "SignedHeaders=", "Signature="];
    match parts.iter().find(|part| !value.contains(**part)) {
        None => Ok(()),
        Some(part) => {
            let message = format!("Missing Authentication Token: no `{}` in Authorization", part.trim_end());
            Err(Refusal::new(Violation::Authorization, message))
        }
    }
}

/// Checks the body against `x-amz-content-sha256`, if that header holds a digest.
///
/// # Errors
///
/// [`Violation::Digest`].
pub fn check_digest(headers: &HeaderMap, body: &[u8]) -> Result<(), Refusal> {
    let Some(stated) = headers.get("x-amz-content-sha256").and_then(|value| value.to_str().ok()) else {
        return Ok(());
    };
    if stated.len() != 64 || !stated.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(());
    }
    let hex = signature::hex(&Sha256::digest(body));
    match hex.eq_ignore_ascii_case(stated) {
        true => Ok(()),
        false => Err(Refusal::new(Violation::Digest, format!("the body's SHA-256 is {hex}, not {stated}"))),
    }
}

/// Checks the signature against a secret that both sides know.
///
/// # Errors
///
/// [`Violation::Signature`].
pub fn check_signature(request: Signed<'_>, secret: &str) -> Result<(), Refusal> {
    request.verify(secret, "firehose").map_err(|why| Refusal::new(Violation::Signature, why))
}

#[derive(Deserialize)]
struct Request<'a> {
    #[serde(borrow, rename = "DeliveryStreamName")]
    delivery_stream_name: Option<Cow<'a, str>>,
    #[serde(borrow, rename = "Records")]
    records: Option<Vec<Record<'a>>>,
}

#[derive(Deserialize)]
struct Record<'a> {
    #[serde(borrow, rename = "Data")]
    data: Data<'a>,
}

/// The bytes of a JSON string. Unlike a `str` they need not be searched for what is no UTF-8 or must be escaped:
/// whatever base64 does not allow is found when it is decoded.
struct Data<'a>(Cow<'a, [u8]>);

impl<'de: 'a, 'a> Deserialize<'de> for Data<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_bytes(DataVisitor)
    }
}

struct DataVisitor;

impl<'de> Visitor<'de> for DataVisitor {
    type Value = Data<'de>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a string of base64")
    }

    fn visit_borrowed_bytes<E>(self, bytes: &'de [u8]) -> Result<Self::Value, E> {
        Ok(Data(Cow::Borrowed(bytes)))
    }

    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Self::Value, E> {
        Ok(Data(Cow::Owned(bytes.to_vec())))
    }
}

/// A decoded call.
#[derive(Debug)]
pub struct Call<'a> {
    /// The delivery stream.
    pub delivery_stream: Cow<'a, str>,
    /// Where each record lies in the buffer that it was decoded to.
    pub records: Vec<Range<usize>>,
}

/// Decodes a body. The records' bytes go to `out`, whose former content is lost.
///
/// # Errors
///
/// The first rule broken: limits are checked before anything is decoded.
pub fn decode<'a>(body: &'a [u8], out: &mut Vec<u8>) -> Result<Call<'a>, Refusal> {
    let request: Request<'a> = serde_json::from_slice(body)
        .map_err(|error| Refusal::new(Violation::Json, format!("the body is not understood: {error}")))?;
    let name = request.delivery_stream_name.unwrap_or_default();
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    if !(1..=64).contains(&name.len()) || !name.bytes().all(legal) {
        let message =
            format!("1 validation error detected: Value '{name}' at 'deliveryStreamName' is not allowed");
        return Err(Refusal::new(Violation::StreamName, message));
    }
    let records = request.records.unwrap_or_default();
    let ranges = ranges(&records)?;
    let total = ranges.last().map_or(0, |last| last.end);
    if out.len() < total {
        out.resize(total, 0);
    }
    for (record, range) in records.iter().zip(&ranges) {
        let into = Out::from_slice(&mut out[range.clone()]);
        STANDARD.decode(&record.data.0, into).map_err(|_| not_base64())?;
    }
    Ok(Call { delivery_stream: name, records: ranges })
}

fn not_base64() -> Refusal {
    Refusal::new(Violation::Base64, "Data is not base64")
}

/// Checks the limits, and gives each record its place.
fn ranges(records: &[Record<'_>]) -> Result<Vec<Range<usize>>, Refusal> {
    let validation = |rule: &str| format!("1 validation error detected: Value at 'records' failed: {rule}");
    if records.is_empty() {
        let message = validation("Member must have length greater than or equal to 1");
        return Err(Refusal::new(Violation::NoRecords, message));
    }
    if records.len() > RECORDS_MAX {
        let message = validation("Member must have length less than or equal to 500");
        return Err(Refusal::new(Violation::TooManyRecords, format!("{message}, but has {}", records.len())));
    }
    let mut end = 0;
    let mut ranges = Vec::with_capacity(records.len());
    for (number, record) in records.iter().enumerate() {
        let raw = STANDARD.decoded_length(&record.data.0).map_err(|_| not_base64())?;
        if raw > RECORD_BYTES_MAX {
            let rule =
                format!("record {number} must have length less than or equal to 1024000, but has {raw}");
            return Err(Refusal::new(Violation::RecordTooLarge, validation(&rule)));
        }
        ranges.push(end..end + raw);
        end += raw;
    }
    if end > CALL_BYTES_MAX {
        let message = format!("Records size exceeds 4 MB limit: {end} bytes");
        return Err(Refusal::new(Violation::CallTooLarge, message));
    }
    Ok(ranges)
}

/// What a real RecordId looks like behind its unique start: about 220 characters of base64.
const RECORD_ID_TAIL: &str = "Xm7jYq2LhV0sTzR4kPwEoBcN9uGdAfI6ZxQ1rHyK8vMtSlJ3WbUeOnCpDgFaXiYhZqR5kTwLmVjPsBoNcQuGdEf\
AhIyKxZr7WvMtSlJ3UbOeCnDpFgXaYi2HqZ0R4kTwEmVjPsLoBcNuQdGfAhI6yKxZrWvMtSlJ3UbOeCnDpFgXaYiHqZRkTwEmVjPsLoBcNuQd";

/// The answer to a call of which each record was accepted (`None`) or not; `call` makes the record ids unique.
/// `failed_put_count` is what is claimed.
pub fn answer(call: u64, results: &[Option<RecordError>], failed_put_count: usize) -> String {
    let mut body = String::with_capacity(80 + results.len() * 260);
    write!(body, r#"{{"FailedPutCount":{failed_put_count},"Encrypted":false,"RequestResponses":["#)
        .expect("writing to a string cannot fail");
    for (number, result) in results.iter().enumerate() {
        if number > 0 {
            body.push(',');
        }
        match result {
            None => write!(body, r#"{{"RecordId":"{call:012x}{number:04x}{RECORD_ID_TAIL}"}}"#)
                .expect("writing to a string cannot fail"),
            Some(RecordError::Throttled) => {
                body.push_str(r#"{"ErrorCode":"ServiceUnavailableException","ErrorMessage":"Slow down."}"#);
            }
            Some(RecordError::Internal) => {
                body.push_str(
                    r#"{"ErrorCode":"InternalFailure","ErrorMessage":"Internal service failure."}"#,
                );
            }
        }
    }
    body.push_str("]}");
    body
}

/// An answer to this many accepted records that cannot be understood.
pub fn garbage(kind: Garbage, call: u64, records: usize) -> String {
    let of = |records: usize| answer(call, &vec![None; records], 0);
    match kind {
        Garbage::Truncated => {
            let mut body = of(records);
            body.truncate(body.len() / 2);
            body
        }
        Garbage::Nonsense => "<html>502 Bad Gateway</html>".to_owned(),
        Garbage::Empty => String::new(),
        Garbage::TooShort => of(records - 1),
        Garbage::TooLong => of(records + 1),
    }
}

/// The status and body of a call that fails as a whole because the service is busy.
pub fn unavailable() -> (StatusCode, String) {
    (StatusCode::SERVICE_UNAVAILABLE, exception("ServiceUnavailableException", "Slow down."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(records: &[usize], name_last: bool) -> String {
        let objects: Vec<_> = records
            .iter()
            .map(|len| format!(r#"{{"Data":"{}"}}"#, STANDARD.encode_to_string(vec![b'x'; *len])))
            .collect();
        let records = format!(r#""Records":[{}]"#, objects.join(","));
        match name_last {
            true => format!(r#"{{{records},"DeliveryStreamName":"clicks"}}"#),
            false => format!(r#"{{"DeliveryStreamName":"clicks",{records}}}"#),
        }
    }

    fn violation(body: &str) -> Option<Violation> {
        decode(body.as_bytes(), &mut Vec::new()).err().map(|refusal| refusal.violation)
    }

    #[test]
    fn limits_hold_exactly() {
        let four_mib = |last: usize| [&[1_024_000; 4], &[98_304 + last][..]].concat();
        assert_eq!(four_mib(0).iter().sum::<usize>(), 4 << 20);
        for (records, expected) in [
            (vec![1; 500], None),
            (vec![1; 501], Some(Violation::TooManyRecords)),
            (vec![1_024_000], None),
            (vec![1_024_001], Some(Violation::RecordTooLarge)),
            (four_mib(0), None),
            (four_mib(1), Some(Violation::CallTooLarge)),
            (vec![], Some(Violation::NoRecords)),
            (vec![0, 1], None),
        ] {
            assert_eq!(violation(&body(&records, true)), expected, "{} records", records.len());
        }
    }

    #[test]
    fn keys_may_come_in_any_order_and_strings_escaped() {
        for name_last in [true, false] {
            let body = body(&[3, 4], name_last);
            let mut out = Vec::new();
            let call = decode(body.as_bytes(), &mut out).unwrap();
            assert_eq!((call.delivery_stream.as_ref(), call.records.clone()), ("clicks", vec![0..3, 3..7]));
            assert_eq!(&out[..7], b"xxxxxxx");
        }
        let escaped = r#"{"Records":[{"Data":"\/\/8="}],"DeliveryStreamName":"click\u0073"}"#;
        let mut out = Vec::new();
        let call = decode(escaped.as_bytes(), &mut out).unwrap();
        assert_eq!((call.delivery_stream.as_ref(), &out[..2]), ("clicks", &[255, 255][..]));
    }

    #[test]
    fn malformed_bodies_are_told_apart() {
        for (body, expected) in [
            ("", Violation::Json),
            ("{", Violation::Json),
            (r#"{"DeliveryStreamName":"a","Records":[{"Data":5}]}"#, Violation::Json),
            (r#"{"DeliveryStreamName":"a","Records":[{}]}"#, Violation::Json),
            (r#"{"DeliveryStreamName":"a","Records":[{"Data":"????"}]}"#, Violation::Base64),
            (r#"{"DeliveryStreamName":"a","Records":[{"Data":"abc"}]}"#, Violation::Base64),
            (r#"{"DeliveryStreamName":"a"}"#, Violation::NoRecords),
            (r#"{"Records":[{"Data":"QUJD"}]}"#, Violation::StreamName),
            (r#"{"DeliveryStreamName":"a/b","Records":[{"Data":"QUJD"}]}"#, Violation::StreamName),
        ] {
            assert_eq!(violation(body), Some(expected), "{body}");
        }
    }

    #[test]
    fn answers_are_json_of_the_right_shape() {
        let results = [None, Some(RecordError::Throttled), Some(RecordError::Internal)];
        let value: serde_json::Value = serde_json::from_str(&answer(1, &results, 2)).unwrap();
        assert_eq!(value["FailedPutCount"], 2);
        assert!(value["RequestResponses"][0]["RecordId"].as_str().unwrap().len() > 200);
        assert_eq!(value["RequestResponses"][1]["ErrorMessage"], "Slow down.");
        assert_eq!(value["RequestResponses"][2]["ErrorCode"], "InternalFailure");
    }

    #[test]
    fn garbage_cannot_be_understood() {
        let entries = |kind| {
            let value: Option<serde_json::Value> = serde_json::from_str(&garbage(kind, 1, 3)).ok();
            value.map(|value| value["RequestResponses"].as_array().unwrap().len())
        };
        let kinds =
            [Garbage::Truncated, Garbage::Nonsense, Garbage::Empty, Garbage::TooShort, Garbage::TooLong];
        assert_eq!(kinds.map(entries), [None, None, None, Some(2), Some(4)]);
    }

    #[test]
    fn the_digest_is_checked_when_it_is_one() {
        let mut headers = HeaderMap::new();
        assert!(check_digest(&headers, b"abc").is_ok());
        headers.insert("x-amz-content-sha256", "UNSIGNED-PAYLOAD".parse().unwrap());
        assert!(check_digest(&headers, b"abc").is_ok());
        let digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        headers.insert("x-amz-content-sha256", digest.parse().unwrap());
        assert!(check_digest(&headers, b"abc").is_ok());
        assert_eq!(check_digest(&headers, b"abd").unwrap_err().violation, Violation::Digest);
    }
}
