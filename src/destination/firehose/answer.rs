//! What stands in an answer of PutRecordBatch: for a success an entry for each record, for a refusal a code and a
//! message. It reads and judges nothing; what is missing is `None`.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::{Map, Value};

/// The answer to a call that was not refused as a whole.
#[derive(Debug, Deserialize)]
pub(super) struct Success<'a> {
    /// In the order of the records.
    #[serde(borrow, default, rename = "RequestResponses")]
    pub(super) entries: Vec<Entry<'a>>,
}

/// What became of one record.
#[derive(Debug, Deserialize)]
pub(super) struct Entry<'a> {
    #[serde(borrow, rename = "RecordId")]
    record_id: Option<Text<'a>>,
    #[serde(borrow, rename = "ErrorCode")]
    error_code: Option<Text<'a>>,
}

impl Entry<'_> {
    /// What names the record where it was accepted.
    pub(super) fn record_id(&self) -> Option<&str> {
        self.record_id.as_ref().map(|text| &*text.0)
    }

    /// Why it was not.
    pub(super) fn error_code(&self) -> Option<&str> {
        self.error_code.as_ref().map(|text| &*text.0)
    }
}

/// Borrowed unless it holds escapes.
#[derive(Debug, Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// What a refusal says.
#[derive(Debug, Default)]
pub(super) struct Refused {
    /// The error code without its namespace and the URL behind it.
    pub(super) code: Option<String>,
    /// What the service says about it.
    pub(super) message: Option<String>,
}

impl Refused {
    /// Reads a body, which may be anything. The code stands in a header, `x-amzn-errortype`, or in the body (AWS
    /// JSON 1.1 protocol, "Operation error serialization").
    pub(super) fn read(header: Option<&str>, body: &[u8]) -> Self {
        let fields: Map<String, Value> = serde_json::from_slice(body).unwrap_or_default();
        let first = |names: &[&str]| names.iter().find_map(|name| fields.get(*name)?.as_str());
        let filled = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Self {
            code: header.or_else(|| first(&["code", "__type"])).map(bare).and_then(filled),
            message: first(&["message", "Message", "errorMessage"]).and_then(filled),
        }
    }
}

fn bare(code: &str) -> &str {
    let code = code.split_once(':').map_or(code, |(code, _)| code);
    code.rsplit_once('#').map_or(code, |(_, code)| code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_bare_wherever_they_stand() {
        let body =
            br#"{"__type":"com.amazonaws.firehose#LimitExceededException:http://a/b","Message":"a \"b\""}"#;
        let refused = Refused::read(None, body);
        assert_eq!(refused.code.as_deref(), Some("LimitExceededException"));
        assert_eq!(refused.message.as_deref(), Some("a \"b\""));
        assert_eq!(Refused::read(Some("Throttling:http://x"), body).code.as_deref(), Some("Throttling"));
        let both = br#"{"code":"X","__type":"Y","message":null,"Message":"m"}"#;
        let refused = Refused::read(None, both);
        assert_eq!((refused.code.as_deref(), refused.message.as_deref()), (Some("X"), Some("m")));
        for garbage in [&b"<html>"[..], b"", b"{}", b"[]", br#"{"__type":1,"message":""}"#] {
            let refused = Refused::read(None, garbage);
            assert_eq!((refused.code, refused.message), (None, None));
        }
    }

    #[test]
    fn entries_may_lack_fields_and_hold_escapes() {
        let body = br#"{"FailedPutCount":1,"RequestResponses":[{"RecordId":"a"},{"RecordId":null,"ErrorCode":"\u0041"},{}]}"#;
        let success: Success = serde_json::from_slice(body).expect("it is good");
        let entries: Vec<_> =
            success.entries.iter().map(|entry| (entry.record_id(), entry.error_code())).collect();
        assert_eq!(entries, [(Some("a"), None), (None, Some("A")), (None, None)]);
    }
}
