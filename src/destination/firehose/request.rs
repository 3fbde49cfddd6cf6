//! The HTTP request of a call. What is the same in every request is the SDK's and learned from it at start: endpoint,
//! headers, region and name to sign for. What changes once a second (the date, and with it the key and all of what
//! is signed but the digest) is worked out once a second. A call adds its length, its digest and the signature.
//!
//! It is not the SDK's way from call to request, which costs more than sending a small body does.

use std::fmt::{self, Debug, Formatter, Write as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_sdk_firehose::Client;
use aws_sdk_firehose::config::http::HttpRequest;
use aws_sdk_firehose::config::{Config, RuntimeComponents};
use aws_sigv4::sign::v4;
use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn,
};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_types::body::SdkBody;
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;
use time::macros::format_description;

use super::body::TrackedBody;
use super::chain;

const ALGORITHM: &str = "AWS4-HMAC-SHA256";
const DATE: &str = "x-amz-date";
const TOKEN: &str = "x-amz-security-token";

/// Headers of the sample that belong to one call or one attempt.
const OF_ONE_CALL: [&str; 6] =
    ["authorization", DATE, TOKEN, "content-length", "amz-sdk-invocation-id", "amz-sdk-request"];

/// Headers that are sent but not signed, as in the SDK: what is on the way may change them.
const UNSIGNED: [&str; 2] = ["user-agent", "x-amzn-trace-id"];

/// When dates take a digit more, in seconds since 1970.
const YEAR_10000: u64 = 253_402_300_800;

/// What all requests have in common.
pub(super) struct Template {
    request: HttpRequest,
    path: String,
    /// Names and values, sorted, but for the date and the token.
    signed: Vec<(String, String)>,
    region: String,
    service: String,
}

impl Debug for Template {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("Template").field("uri", &self.request.uri()).finish_non_exhaustive()
    }
}

/// Keeps the request that the SDK would have sent, and sends nothing.
#[derive(Clone, Debug, Default)]
struct Catch(Arc<Mutex<Option<HttpRequest>>>);

impl HttpConnector for Catch {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(request);
        HttpConnectorFuture::ready(Err(ConnectorError::user("a sample is not sent".into())))
    }
}

/// Has the SDK make a request that nobody sends. Also gives what the SDK made it with.
async fn sample(
    config: &Config,
    credentials: Credentials,
) -> Result<(HttpRequest, RuntimeComponents), String> {
    let (catch, used) = (Catch::default(), Arc::new(Mutex::new(None)));
    let (connector, seen) = (SharedHttpConnector::new(catch.clone()), Arc::clone(&used));
    let client = http_client_fn(move |_, components| {
        *seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(components.clone());
        connector.clone()
    });
    let config = config.to_builder().http_client(client).credentials_provider(credentials).build();
    let call =
        Client::from_conf(config).put_record_batch().delivery_stream_name("s").set_records(Some(Vec::new()));
    let answer = call.send().await;
    let request = catch.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    let components = used.lock().unwrap_or_else(PoisonError::into_inner).take();
    let why = || answer.as_ref().err().map_or_else(String::new, |error| chain(error));
    request.zip(components).ok_or_else(why)
}

impl Template {
    /// Learns from the SDK what requests with this configuration look like. Also gives what it made one with.
    ///
    /// # Errors
    /// Where the SDK cannot make a request, with what it says.
    pub(super) async fn learn(config: &Config) -> Result<(Self, RuntimeComponents), String> {
        let credentials = Credentials::new("SAMPLE", "sample", None, None, "sample");
        let (request, components) = sample(config, credentials).await?;
        let template =
            Self::of(request).ok_or("the path of its endpoint may have letters, digits, and -._~/ only")?;
        Ok((template, components))
    }

    fn of(sample: HttpRequest) -> Option<Self> {
        let scope = sample.headers().get("authorization")?.split_once("Credential=")?.1;
        let mut scope = scope.split(['/', ',']).skip(2);
        let (region, service) = (scope.next()?.to_owned(), scope.next()?.to_owned());
        let uri = sample.uri();
        let rest = uri.split_once("://")?.1;
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        let path = if path.is_empty() { "/".to_owned() } else { path.to_owned() };
        if !is_plain(&path) {
            return None;
        }
        let default_port = if uri.starts_with("https:") { ":443" } else { ":80" };
        let host = authority.strip_suffix(default_port).unwrap_or(authority).to_owned();
        let mut request = HttpRequest::new(SdkBody::empty());
        request.set_method(sample.method()).ok()?;
        request.set_uri(uri).ok()?;
        let mut signed = vec![("host".to_owned(), host)];
        for (name, value) in sample.headers().iter().filter(|(name, _)| !OF_ONE_CALL.contains(name)) {
            request.headers_mut().insert(name.to_owned(), value.to_owned());
            if !UNSIGNED.contains(&name) && name != "host" {
                signed.push((name.to_owned(), value.to_owned()));
            }
        }
        signed.sort();
        Some(Self { request, path, signed, region, service })
    }

    /// What is the same for all requests signed with these credentials in this second.
    pub(super) fn stamp(&self, now: SystemTime, credentials: &Credentials) -> Stamp {
        let second = seconds(now);
        let date = date(second);
        let scope = format!("{}/{}/{}/aws4_request", &date[..8], self.region, self.service);
        let mut signed = self.signed.clone();
        signed.push((DATE.to_owned(), date.clone()));
        signed.extend(credentials.session_token().map(|token| (TOKEN.to_owned(), token.to_owned())));
        signed.sort();
        let names = signed.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(";");
        let mut canonical = format!("{}\n{}\n\n", self.request.method(), self.path);
        for (name, value) in &signed {
            let _ = writeln!(canonical, "{name}:{}", value.trim());
        }
        let _ = write!(canonical, "\n{names}\n");
        let mut request = self.request.try_clone().expect("an empty body can be cloned");
        request.headers_mut().insert(DATE, date.clone());
        if let Some(token) = credentials.session_token() {
            request.headers_mut().insert(TOKEN, token.to_owned());
        }
        let key = v4::generate_signing_key(credentials.secret_access_key(), now, &self.region, &self.service);
        Stamp {
            second,
            request,
            canonical: Sha256::new_with_prefix(canonical),
            to_sign: format!("{ALGORITHM}\n{date}\n{scope}\n"),
            key: key.as_ref().to_vec(),
            authorization: format!(
                "{ALGORITHM} Credential={}/{scope}, SignedHeaders={names}, Signature=",
                credentials.access_key_id()
            ),
        }
    }
}

/// See [`Template::stamp`].
pub(super) struct Stamp {
    second: u64,
    request: HttpRequest,
    /// What is signed up to the digest of the body, hashed.
    canonical: Sha256,
    to_sign: String,
    key: Vec<u8>,
    authorization: String,
}

impl Debug for Stamp {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stamp").field("second", &self.second).finish_non_exhaustive()
    }
}

impl Stamp {
    /// Whether it is of the second that `now` lies in.
    pub(super) fn is_of(&self, now: SystemTime) -> bool {
        self.second == seconds(now)
    }

    /// The request with a body of this digest (lower-case hexadecimal).
    pub(super) fn request(&self, body: TrackedBody, digest: &str) -> HttpRequest {
        let canonical = hexadecimal(&self.canonical.clone().chain_update(digest).finalize().into());
        let to_sign = [self.to_sign.as_str(), &canonical].concat();
        let signature = v4::calculate_signature(&self.key, to_sign.as_bytes());
        let mut request = self.request.try_clone().expect("an empty body can be cloned");
        request.headers_mut().insert("content-length", body.len().to_string());
        request.headers_mut().insert("authorization", [self.authorization.as_str(), &signature].concat());
        *request.body_mut() = SdkBody::from_body_1_x(body);
        request
    }
}

/// Bytes in lower-case hexadecimal.
pub(super) fn hexadecimal(digest: &[u8; 32]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let pair = |octet: &u8| [octet >> 4, octet & 15].map(|half| char::from(DIGITS[usize::from(half)]));
    digest.iter().flat_map(pair).collect()
}

/// Whether a path stands for itself when it is signed: others are normalised and encoded there.
fn is_plain(path: &str) -> bool {
    let is_plain = |octet: u8| octet.is_ascii_alphanumeric() || b"-._~/".contains(&octet);
    path.bytes().all(is_plain)
        && !path.contains("//")
        && !path.split('/').any(|part| matches!(part, "." | ".."))
}

fn seconds(now: SystemTime) -> u64 {
    now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs().min(YEAR_10000 - 1)
}

/// As `20261121T235959Z`.
fn date(second: u64) -> String {
    let form = format_description!("[year][month][day]T[hour][minute][second]Z");
    let at = i64::try_from(second).ok().and_then(|second| OffsetDateTime::from_unix_timestamp(second).ok());
    at.and_then(|at| at.format(form).ok()).expect("years up to 9999 can be written")
}
