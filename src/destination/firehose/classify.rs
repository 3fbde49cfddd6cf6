//! What an answer of Firehose means for the lane: one table, pure, without AWS types. It decides nothing about
//! answers that never came; whether any of the body had left decides about those.
//!
//! | answer | verdict |
//! |---|---|
//! | throttling codes at any status, 503, 429 | `Throttled` |
//! | any other 5xx, and a success that could not be read | unknown |
//! | a clock that is off, time-outs of the service (408), `ResourceInUse` | `Transient` |
//! | `InvalidKMSResource`, `KMS…` | `Key` |
//! | signature, token and permission codes; 401, 403, 407 | `Credentials` |
//! | no such delivery stream, no such operation, data comes from elsewhere | `Permanent` |
//! | every other 400, and 413 | `Content` |
//! | other 4xx with a code of AWS | `Permanent` |
//! | other 4xx without one, 3xx: not Firehose speaking, but something on the way | `Transient` |
//!
//! The last two rows differ because a permanent refusal may drop what is beyond a stream's cap, and a proxy that
//! answers 404 for a minute must not. Codes: the errors of PutRecordBatch and the common errors in the Firehose
//! API reference.

use crate::destination::{RecordOutcome, Refusal};

/// What an answer to a call as a whole means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing was accepted; the sentence says what to do about it.
    Refused(Refusal, &'static str),
    /// Something may have been accepted.
    Unknown,
}

const SLOW_DOWN: Verdict =
    Verdict::Refused(Refusal::Throttled, "the delivery stream is over its quota; sending slows down");
const CLOCK: Verdict = Verdict::Refused(Refusal::Transient, "check this host's clock; it is signed anew");
const AGAIN: Verdict = Verdict::Refused(Refusal::Transient, "it is sent again");
const KEY: Verdict =
    Verdict::Refused(Refusal::Key, "let the delivery stream use its KMS key; the events are kept meanwhile");
const CREDENTIALS: Verdict = Verdict::Refused(
    Refusal::Credentials,
    "check the credentials and that they allow firehose:PutRecordBatch; the events are kept meanwhile",
);
const NO_STREAM: Verdict = Verdict::Refused(
    Refusal::Permanent,
    "create the delivery stream, or correct its name, the region or the account",
);
const OTHER_SOURCE: Verdict = Verdict::Refused(
    Refusal::Permanent,
    "the delivery stream takes its data from another source; use one whose source is Direct PUT",
);
const UNEXPECTED: Verdict = Verdict::Refused(
    Refusal::Permanent,
    "check that the endpoint is Firehose and the delivery stream is right",
);
const NOT_FIREHOSE: Verdict = Verdict::Refused(
    Refusal::Transient,
    "this is no answer of Firehose: check the endpoint and any proxy on the way; it is sent again",
);
const CONTENT: Verdict = Verdict::Refused(
    Refusal::Content,
    "something in the body was refused; smaller calls find out which record",
);

/// What an answer with this status, AWS error code and message means. A code may carry its `Exception` or not.
pub(super) fn classify(status: u16, code: Option<&str>, message: Option<&str>) -> Verdict {
    let code = code.map(|code| code.strip_suffix("Exception").unwrap_or(code));
    let message = message.unwrap_or_default();
    if status < 300 {
        return Verdict::Unknown;
    }
    if code.is_some_and(is_throttling) || status == 503 || status == 429 {
        return SLOW_DOWN;
    }
    if status >= 500 {
        return Verdict::Unknown;
    }
    if let Some(verdict) = code.and_then(|code| by_code(code, message)) {
        return verdict;
    }
    match status {
        401 | 403 | 407 => CREDENTIALS,
        408 => AGAIN,
        400 | 413 => CONTENT,
        _ if status >= 400 && code.is_some() => UNEXPECTED,
        _ => NOT_FIREHOSE,
    }
}

fn is_throttling(code: &str) -> bool {
    matches!(
        code,
        "ServiceUnavailable"
            | "Throttling"
            | "Throttled"
            | "ThrottledRequest"
            | "RequestThrottled"
            | "TooManyRequests"
            | "LimitExceeded"
            | "RequestLimitExceeded"
            | "BandwidthLimitExceeded"
            | "ProvisionedThroughputExceeded"
            | "SlowDown"
    )
}

/// The codes below 500 that say more than their status.
fn by_code(code: &str, message: &str) -> Option<Verdict> {
    Some(match code {
        "RequestExpired" | "RequestTimeTooSkewed" | "RequestInTheFuture" => CLOCK,
        // Firehose answers so to a request that is more than five minutes off.
        "InvalidSignature"
            if message.contains("Signature expired") || message.contains("not yet current") =>
        {
            CLOCK
        }
        "RequestTimeout" | "ResourceInUse" => AGAIN,
        "InvalidKMSResource" => KEY,
        _ if code.starts_with("KMS") => KEY,
        "AccessDenied"
        | "ExpiredToken"
        | "IncompleteSignature"
        | "InvalidClientTokenId"
        | "InvalidSignature"
        | "InvalidToken"
        | "MissingAuthenticationToken"
        | "NotAuthorized"
        | "OptInRequired"
        | "SignatureDoesNotMatch"
        | "SubscriptionRequired"
        | "UnauthorizedOperation"
        | "UnrecognizedClient" => CREDENTIALS,
        "ResourceNotFound" => NO_STREAM,
        "InvalidSource" => OTHER_SOURCE,
        // "This operation is not permitted on KinesisStreamAsSource delivery stream type.", and its like for MSK.
        "InvalidArgument" if message.contains("AsSource") || message.contains("not permitted on") => {
            OTHER_SOURCE
        }
        "UnknownOperation" | "InvalidAction" => UNEXPECTED,
        "InvalidArgument" | "Validation" | "Serialization" => CONTENT,
        _ => return None,
    })
}

/// What the answer for one record means, or `None` where it says neither that the record was accepted nor that it
/// was not. An error code wins over a record id.
pub(super) fn classify_record(record_id: Option<&str>, error_code: Option<&str>) -> Option<RecordOutcome> {
    match error_code.filter(|code| !code.is_empty()) {
        Some(code) if is_throttling(code.strip_suffix("Exception").unwrap_or(code)) => {
            Some(RecordOutcome::Throttled)
        }
        Some(_) => Some(RecordOutcome::Internal),
        None => record_id.filter(|id| !id.is_empty()).map(|_| RecordOutcome::Accepted),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(status: u16, code: Option<&str>, message: Option<&str>) -> Option<Refusal> {
        match classify(status, code, message) {
            Verdict::Refused(kind, _) => Some(kind),
            Verdict::Unknown => None,
        }
    }

    #[test]
    fn answers_mean_what_the_table_says() {
        use Refusal::{Content, Credentials, Key, Permanent, Throttled, Transient};
        let source = "This operation is not permitted on KinesisStreamAsSource delivery stream type.";
        let table = [
            (200, None, None, None),
            (204, None, None, None),
            (500, None, None, None),
            (500, Some("InternalFailure"), None, None),
            (500, Some("AccessDeniedException"), None, None),
            (502, None, None, None),
            (504, None, None, None),
            (503, None, None, Some(Throttled)),
            (503, Some("InternalFailure"), None, Some(Throttled)),
            (500, Some("ServiceUnavailableException"), None, Some(Throttled)),
            (400, Some("ServiceUnavailableException"), None, Some(Throttled)),
            (400, Some("ThrottlingException"), None, Some(Throttled)),
            (400, Some("Throttling"), None, Some(Throttled)),
            (400, Some("LimitExceededException"), None, Some(Throttled)),
            (429, None, None, Some(Throttled)),
            (400, Some("RequestExpired"), None, Some(Transient)),
            (403, Some("RequestTimeTooSkewed"), None, Some(Transient)),
            (
                400,
                Some("InvalidSignatureException"),
                Some("Signature expired: a is now earlier"),
                Some(Transient),
            ),
            (400, Some("RequestTimeout"), None, Some(Transient)),
            (408, None, None, Some(Transient)),
            (400, Some("InvalidSignatureException"), Some("does not match"), Some(Credentials)),
            (400, Some("ExpiredTokenException"), None, Some(Credentials)),
            (400, Some("ExpiredToken"), None, Some(Credentials)),
            (400, Some("UnrecognizedClientException"), None, Some(Credentials)),
            (400, Some("MissingAuthenticationTokenException"), None, Some(Credentials)),
            (400, Some("AccessDeniedException"), None, Some(Credentials)),
            (401, None, None, Some(Credentials)),
            (403, None, None, Some(Credentials)),
            (403, Some("SomethingNew"), None, Some(Credentials)),
            (407, None, None, Some(Credentials)),
            (400, Some("InvalidKMSResourceException"), None, Some(Key)),
            (400, Some("KMSAccessDeniedException"), None, Some(Key)),
            (400, Some("KMSDisabled"), None, Some(Key)),
            (400, Some("ResourceNotFoundException"), None, Some(Permanent)),
            (404, Some("ResourceNotFoundException"), None, Some(Permanent)),
            (400, Some("InvalidSourceException"), None, Some(Permanent)),
            (400, Some("InvalidArgumentException"), Some(source), Some(Permanent)),
            (404, Some("UnknownOperationException"), None, Some(Permanent)),
            (410, Some("SomethingNew"), None, Some(Permanent)),
            (400, Some("InvalidArgumentException"), Some("Records size exceeds 4 MB limit"), Some(Content)),
            (400, Some("ValidationException"), None, Some(Content)),
            (400, Some("SerializationException"), None, Some(Content)),
            (400, Some("SomethingNew"), None, Some(Content)),
            (400, None, None, Some(Content)),
            (413, None, None, Some(Content)),
            (413, Some("RequestEntityTooLargeException"), None, Some(Content)),
            (404, None, None, Some(Transient)),
            (410, None, None, Some(Transient)),
            (301, None, None, Some(Transient)),
        ];
        for (status, code, message, expected) in table {
            assert_eq!(kind(status, code, message), expected, "{status} {code:?} {message:?}");
        }
    }

    #[test]
    fn records_are_told_apart_by_their_error_code() {
        use RecordOutcome::{Accepted, Internal, Throttled};
        assert_eq!(classify_record(Some("id"), None), Some(Accepted));
        assert_eq!(classify_record(Some("id"), Some("")), Some(Accepted));
        assert_eq!(classify_record(None, Some("ServiceUnavailableException")), Some(Throttled));
        assert_eq!(classify_record(None, Some("ThrottlingException")), Some(Throttled));
        assert_eq!(classify_record(None, Some("ProvisionedThroughputExceededException")), Some(Throttled));
        assert_eq!(classify_record(None, Some("InternalFailure")), Some(Internal));
        assert_eq!(classify_record(Some("id"), Some("SomethingNew")), Some(Internal));
        assert_eq!(classify_record(None, None), None);
        assert_eq!(classify_record(Some(""), None), None);
    }
}
