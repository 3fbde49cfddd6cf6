//! Amazon Data Firehose: one PutRecordBatch a call, with the body that the caller has encoded. Credentials, endpoint,
//! headers, connections and TLS are the SDK's; the way from call to request and from answer to outcome is ours, since
//! the SDK's own costs more than a small body does. It is not the place for retries, rates or bisecting: those are
//! the lane's.
//!
//! Invariants:
//! - One call is at most one HTTP request.
//! - [`Outcome::Refused`] is only said where nothing can have been accepted: the service answered so, or no byte of
//!   the body was handed to a connection and none ever will be. Everything else is [`Outcome::Unknown`].

use std::error::Error;
use std::fmt::Write as _;
use std::pin::pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_firehose::config::http::HttpResponse;
use aws_smithy_http_client::Connector;
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use aws_smithy_runtime_api::client::connection::CaptureSmithyConnection;
use aws_smithy_runtime_api::client::http::{HttpConnector as _, HttpConnectorSettings, SharedHttpConnector};
use http_body::Body as _;
use thiserror::Error;
use tracing::warn;

mod answer;
mod body;
mod classify;
mod credentials;
#[cfg(fuzzing)]
pub(crate) mod fuzz;
mod hasher;
mod request;
mod sha256;
mod signer;
mod target;
#[cfg(test)]
mod tests;

use self::answer::{Entry, Refused, Success};
use self::body::{Progress, Stage, TrackedBody};
use self::classify::{Verdict, classify, classify_record};
use self::hasher::Hasher;
use self::target::{Maker, Target, Targets};
use super::{Call, Outcome, RecordOutcome, Refusal};
use crate::config::{DeliveryStreamSettings, DeliveryStreams};
use crate::rarely::Rarely;

/// A connection that has been idle for longer is closed by us. Short, because a request that meets the service's
/// own closing of an idle connection has an unknown outcome.
const IDLE_CONNECTION_MAX: Duration = Duration::from_secs(20);

/// How long the start waits for credentials before it warns and goes on without.
const CREDENTIALS_CHECK_MAX: Duration = Duration::from_secs(5);

/// So many identities without credentials are named at start; the rest is told by the lanes that need them.
const CREDENTIALS_LINES_MAX: u32 = 10;

/// No answer is longer: 500 entries, each with an id or an error and its message.
const ANSWER_BYTES_MAX: usize = 4 << 20;

/// No sentence carries more of a text that came from outside than this, in characters.
const QUOTED_CHARACTERS_MAX: usize = 300;

/// What a [`Firehose`] is to be connected with. What is left out comes from the SDK's standard chain: environment
/// (`AWS_REGION`, `AWS_ENDPOINT_URL_FIREHOSE`, `AWS_ENDPOINT_URL`, …), profile, container, instance.
#[derive(Clone, Debug)]
pub struct FirehoseSettings {
    /// The region, the role and the endpoint of delivery streams without a table of their own.
    pub defaults: DeliveryStreamSettings,
    /// Those of delivery streams with one.
    pub delivery_streams: DeliveryStreams,
    /// The name under which roles are assumed, 2 to 64 of `A-Z a-z 0-9 _ + = , . @ -`: the account that a role belongs
    /// to sees it in its logs.
    pub session_name: String,
    /// The limit of one call, from looking for credentials to the last byte of the answer.
    pub call_timeout: Duration,
    /// The limit for a new connection, name resolution and TLS included.
    pub connect_timeout: Duration,
    /// Whether bodies that are ready together are hashed together, rather than one by one.
    pub groups_hashes: bool,
}

impl Default for FirehoseSettings {
    fn default() -> Self {
        Self {
            defaults: DeliveryStreamSettings::default(),
            delivery_streams: DeliveryStreams::default(),
            session_name: "standpipe".to_owned(),
            call_timeout: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(3),
            groups_hashes: true,
        }
    }
}

/// Why there is no Firehose to deliver to.
#[derive(Debug, Error)]
pub enum FirehoseError {
    /// Neither the settings nor the standard chain name a region.
    #[error("no AWS region is known: set `region`, AWS_REGION, or a region in the AWS profile")]
    NoRegion,
    /// The thread that hashes bodies cannot be started.
    #[error("the thread that hashes bodies cannot be started: {0}")]
    NoThread(std::io::Error),
    /// The SDK makes no request with this configuration.
    #[error("no request to Firehose can be made: {0}; check the endpoint, the region and the AWS profile")]
    NoRequest(String),
    /// The endpoint is no URL that requests can go to.
    #[error("the endpoint {url:?} cannot be used: write it as https://HOST or http://HOST:PORT")]
    BadEndpoint {
        /// The endpoint as it was given.
        url: String,
    },
}

/// A client of Amazon Data Firehose. Calls may be made concurrently.
#[derive(Debug)]
pub struct Firehose {
    connector: SharedHttpConnector,
    maker: Box<Maker>,
    /// Changed only by [`Firehose::retarget`].
    targets: RwLock<Arc<Targets>>,
    hasher: Option<Hasher>,
    call_timeout: Duration,
}

/// An answer that was read to its end.
struct Answer {
    status: u16,
    error: Option<String>,
    body: Vec<u8>,
}

impl Firehose {
    /// Reads the standard chain, resolves regions and looks for credentials once. Missing credentials are only
    /// warned of, after at most five seconds, since an instance's role may come later.
    pub async fn connect(settings: FirehoseSettings) -> Result<Self, FirehoseError> {
        let mut loader = aws_config::defaults(BehaviorVersion::latest());
        if let Some(region) = &settings.defaults.region {
            loader = loader.region(Region::new(region.clone()));
        }
        let firehose = Self::from_config(&loader.load().await, &settings, connector(&settings)).await?;
        firehose.check_credentials().await;
        Ok(firehose)
    }

    async fn from_config(
        chain: &SdkConfig,
        settings: &FirehoseSettings,
        connector: SharedHttpConnector,
    ) -> Result<Self, FirehoseError> {
        let maker = Maker::new(chain, &connector, &settings.session_name);
        let targets = Targets::make(&maker, &settings.defaults, &settings.delivery_streams, None).await?;
        let hasher = settings.groups_hashes.then(Hasher::start).transpose();
        Ok(Self {
            connector,
            maker: Box::new(maker),
            targets: RwLock::new(Arc::new(targets)),
            hasher: hasher.map_err(FirehoseError::NoThread)?,
            call_timeout: settings.call_timeout,
        })
    }

    /// From now on calls go where these tables say. Calls under way are not changed, and targets that stay as they
    /// were keep their credentials.
    ///
    /// # Errors
    /// Where one of them cannot be used; then nothing is changed.
    pub async fn retarget(
        &self,
        defaults: &DeliveryStreamSettings,
        delivery_streams: &DeliveryStreams,
    ) -> Result<(), FirehoseError> {
        let before = self.targets();
        let targets = Targets::make(&self.maker, defaults, delivery_streams, Some(&before)).await?;
        *self.targets.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(targets);
        Ok(())
    }

    fn targets(&self) -> Arc<Targets> {
        Arc::clone(&self.targets.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Asks for the credentials of every identity, one after the other, within [`CREDENTIALS_CHECK_MAX`] in all.
    async fn check_credentials(&self) {
        let end = Instant::now() + CREDENTIALS_CHECK_MAX;
        let mut cause = Rarely::up_to(CREDENTIALS_LINES_MAX);
        for target in self.targets().of_each_identity() {
            let problem = match tokio::time::timeout_at(end.into(), target.signer.stamp()).await {
                Ok(Ok(_)) => continue,
                Ok(Err(problem)) => problem,
                Err(_) => format!("nothing answered within {CREDENTIALS_CHECK_MAX:?}"),
            };
            if cause.say(Instant::now()).is_some() {
                let remedy = target.identity.remedy(&problem);
                warn!("{remedy}; until then its events are kept and not delivered");
            }
            if Instant::now() >= end {
                return;
            }
        }
    }

    /// When the first of the credentials in use expire; `None` where they do not, or none were needed yet. Costs no
    /// request.
    pub fn credentials_expiry(&self) -> Option<SystemTime> {
        self.targets().expiry(SystemTime::now())
    }

    /// Hashes the smaller bodies of these calls side by side; what is large goes to the hasher's own thread.
    pub fn prepare<'a>(&self, calls: impl Iterator<Item = &'a mut Call>) {
        if self.hasher.is_some() {
            hasher::digest_small(calls);
        }
    }

    /// Makes one PutRecordBatch and says what became of it. `call.body` must be the JSON of the request, with the
    /// delivery stream's name in it.
    pub async fn call(&self, call: Call) -> Outcome {
        let digest = match (&call.digest, &self.hasher) {
            (Some(digest), _) => digest.clone(),
            (None, Some(hasher)) => hasher.digest(&call).await,
            (None, None) => hasher::digest(&call.body),
        };
        let progress = Progress::new();
        let targets = self.targets();
        let target = targets.of(&call.delivery_stream);
        let attempt = self.attempt(target, &call, &digest, &progress);
        match tokio::time::timeout(self.call_timeout, attempt).await {
            Ok(Ok(answer)) => answer.outcome(&call),
            Ok(Err(problem)) => failed(target, &call, &problem, &progress),
            Err(_) => {
                failed(target, &call, &format!("no answer came within {:?}", self.call_timeout), &progress)
            }
        }
    }

    /// One request and its answer.
    async fn attempt(
        &self,
        target: &Target,
        call: &Call,
        digest: &str,
        progress: &Arc<Progress>,
    ) -> Result<Answer, String> {
        let stamp = target.signer.stamp().await?;
        let mut request = stamp.request(TrackedBody::new(&call.body, progress), digest);
        let connection = CaptureSmithyConnection::new();
        request.add_extension(connection.clone());
        progress.signed();
        let sent = SystemTime::now();
        let response = self.connector.call(request).await.map_err(|error| chain(&error))?;
        target.signer.learn(response.headers(), sent);
        let answer = read(response).await?;
        if matches!(answer.status, 500 | 502..=504)
            && let Some(connection) = connection.get()
        {
            // What answers so may be behind this connection only; the next call is to come by another.
            connection.poison();
        }
        Ok(answer)
    }
}

/// Reads an answer to its end.
async fn read(response: HttpResponse) -> Result<Answer, String> {
    let error = response.headers().get("x-amzn-errortype").map(str::to_owned);
    let mut answer = Answer { status: response.status().as_u16(), error, body: Vec::new() };
    let mut body = pin!(response.into_body());
    while let Some(frame) = std::future::poll_fn(|context| body.as_mut().poll_frame(context)).await {
        let frame = frame.map_err(|error| chain(&*error))?;
        frame.data_ref().into_iter().for_each(|bytes| answer.body.extend_from_slice(bytes));
        if answer.body.len() > ANSWER_BYTES_MAX {
            return Err(format!("the answer is longer than {ANSWER_BYTES_MAX} bytes"));
        }
    }
    Ok(answer)
}

impl Answer {
    fn outcome(&self, call: &Call) -> Outcome {
        if self.status / 100 != 2 {
            return self.refusal(call);
        }
        match serde_json::from_slice::<Success<'_>>(&self.body) {
            Ok(success) => accepted(call, &success.entries),
            Err(error) => {
                unknown(call, format_args!("HTTP {} (what it says cannot be read: {error})", self.status))
            }
        }
    }

    fn refusal(&self, call: &Call) -> Outcome {
        let Refused { code, message } = Refused::read(self.error.as_deref(), &self.body);
        let mut answer = format!("HTTP {}", self.status);
        if let Some(code) = &code {
            let _ = write!(answer, " {}", quote(code));
        }
        if let Some(message) = &message {
            let _ = write!(answer, " ({})", quote(message));
        }
        match classify(self.status, code.as_deref(), message.as_deref()) {
            Verdict::Refused(kind, hint) => refused(call, kind, format_args!("{answer}: {hint}")),
            Verdict::Unknown => unknown(call, format_args!("{answer}")),
        }
    }
}

/// The SDK's own connector. Its pool has as many connections as there were calls at once, until they are idle for too
/// long. Like the SDK's default it honours `HTTPS_PROXY` and `NO_PROXY`.
fn connector(settings: &FirehoseSettings) -> SharedHttpConnector {
    let connector = Connector::builder()
        .tls_provider(Provider::Rustls(CryptoMode::AwsLc))
        .pool_idle_timeout(IDLE_CONNECTION_MAX)
        .proxy_config(ProxyConfig::from_env())
        .connector_settings(
            HttpConnectorSettings::builder().connect_timeout(settings.connect_timeout).build(),
        )
        .build();
    SharedHttpConnector::new(connector)
}

/// A call that was answered with success: the entries decide, whatever FailedPutCount says.
fn accepted(call: &Call, entries: &[Entry<'_>]) -> Outcome {
    if entries.len() != call.records {
        return unknown(
            call,
            format_args!("{} records were answered out of {}", entries.len(), call.records),
        );
    }
    let outcomes: Option<Vec<RecordOutcome>> =
        entries.iter().map(|entry| classify_record(entry.record_id(), entry.error_code())).collect();
    match outcomes {
        None => unknown(call, format_args!("a record was answered with neither an id nor an error")),
        Some(outcomes) if outcomes.iter().all(|outcome| *outcome == RecordOutcome::Accepted) => {
            Outcome::Accepted
        }
        Some(outcomes) => Outcome::Partial(outcomes),
    }
}

/// A call that got no answer to its end.
fn failed(target: &Target, call: &Call, problem: &str, progress: &Progress) -> Outcome {
    match progress.abandon() {
        Stage::Sent => unknown(call, format_args!("{problem}")),
        Stage::Preparing => refused(
            call,
            Refusal::Credentials,
            format_args!("{}; the events are kept meanwhile", target.identity.remedy(problem)),
        ),
        Stage::Signed | Stage::Abandoned => refused(
            call,
            Refusal::Transient,
            format_args!("nothing was sent ({problem}): check the network and the endpoint"),
        ),
    }
}

fn refused(call: &Call, kind: Refusal, what: std::fmt::Arguments<'_>) -> Outcome {
    Outcome::Refused { kind, message: format!("Firehose delivery stream {}: {what}.", call.delivery_stream) }
}

fn unknown(call: &Call, what: std::fmt::Arguments<'_>) -> Outcome {
    let name = &call.delivery_stream;
    Outcome::Unknown {
        message: format!(
            "Firehose delivery stream {name}: {what}. Whether the call was accepted is unknown."
        ),
    }
}

fn check_endpoint(url: &str) -> Result<(), FirehoseError> {
    let bad = || FirehoseError::BadEndpoint { url: url.to_owned() };
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://")).ok_or_else(bad)?;
    let printable = rest.bytes().all(|byte| byte.is_ascii_graphic());
    if rest.is_empty() || rest.starts_with(['/', ':']) || !printable { Err(bad()) } else { Ok(()) }
}

/// An error with its causes, on one line of bounded length.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.ends_with(&next) {
            let _ = write!(text, ": {next}");
        }
        cause = error.source();
    }
    quote(&text)
}

/// A text from outside, made fit for a line of the log.
fn quote(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(QUOTED_CHARACTERS_MAX).collect()
}
