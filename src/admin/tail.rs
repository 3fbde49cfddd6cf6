//! `/tail`: a sample of one stream's events as they come, an event a line. Events are what a relay keeps for others, so
//! they are shown to this host alone, wherever else the admin port is reached from.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{ConnectInfo, RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::{Admin, is_foreign};
use crate::config::name;
use crate::tail::{NOTE, RATE_DEFAULT, RATE_MAX, TAILS_MAX};

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Query {
    stream: String,
    rate: u32,
    /// Events in all, at most.
    count: u64,
}

impl Query {
    /// Reads what stands behind the `?`.
    ///
    /// # Errors
    /// A sentence about what is not understood.
    fn parse(text: &str) -> Result<Self, String> {
        let mut query = Self { stream: String::new(), rate: RATE_DEFAULT, count: u64::MAX };
        for (key, value) in form_urlencoded::parse(text.as_bytes()) {
            match &*key {
                "stream" => query.stream = value.into_owned(),
                "rate" => {
                    let rate = value.parse().ok().filter(|rate| (1..=RATE_MAX).contains(rate));
                    query.rate = rate.ok_or_else(|| format!("rate must be a number from 1 to {RATE_MAX}"))?;
                }
                "count" => {
                    let count = value.parse().ok().filter(|count| *count > 0);
                    query.count = count.ok_or("count must be a number above 0")?;
                }
                _ => return Err(format!("there is no parameter {key}; there are stream, rate and count")),
            }
        }
        match query.stream.as_str() {
            "" => Err("the stream is missing: /tail?stream=NAME".to_owned()),
            name => name::check_stream(name).map(|()| query),
        }
    }
}

/// The endpoint.
pub(super) async fn tail(
    State(admin): State<Arc<Admin>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let refuse = |status: StatusCode, sentence: &str| (status, format!("{sentence}\n")).into_response();
    if !peer.ip().to_canonical().is_loopback() || is_foreign(&headers) {
        let sentence = "events are shown to this host alone: run `standpipe tail` where the relay runs";
        return refuse(StatusCode::FORBIDDEN, sentence);
    }
    let Query { stream, rate, count } = match Query::parse(query.as_deref().unwrap_or_default()) {
        Ok(query) => query,
        Err(sentence) => return refuse(StatusCode::BAD_REQUEST, &sentence),
    };
    let Ok(is_known) = admin.shared.registry.knows(&stream) else {
        let sentence = format!("the stream {stream} is not taken here: it is not configured");
        return refuse(StatusCode::NOT_FOUND, &sentence);
    };
    let Some(sample) = admin.shared.tails.open(&stream, rate, count) else {
        let sentence = format!("{TAILS_MAX} samples are being looked at, and that is the most: end one");
        return refuse(StatusCode::TOO_MANY_REQUESTS, &sentence);
    };
    let mut response = Response::new(Body::new(sample));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    for note in notes(&stream, rate, is_known) {
        headers.extend(HeaderValue::try_from(note).ok().map(|note| (NOTE_HEADER, note)));
    }
    response
}

const NOTE_HEADER: header::HeaderName = header::HeaderName::from_static(NOTE);

fn notes(stream: &str, rate: u32, is_known: bool) -> Vec<String> {
    let mut notes =
        vec![format!("a sample of stream {stream}: at most {rate} events a second, not all there are")];
    if !is_known {
        notes.push(format!("no event of stream {stream} has come yet; waiting for the first"));
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_understood_or_answered_in_a_sentence() {
        let query = |rate, count| Ok(Query { stream: "clicks".to_owned(), rate, count });
        assert_eq!(Query::parse("stream=clicks"), query(RATE_DEFAULT, u64::MAX));
        assert_eq!(Query::parse("count=3&stream=clicks&rate=1000"), query(1_000, 3));
        for wrong in [
            "",
            "stream=",
            "stream=a/b",
            "stream=a&rate=0",
            "stream=a&rate=1001",
            "stream=a&count=0",
            "max=1",
        ] {
            assert!(Query::parse(wrong).is_err(), "{wrong}");
        }
    }
}
