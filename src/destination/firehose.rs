//! Amazon Data Firehose: one PutRecordBatch a call, with the body that the caller has encoded. Credentials,
//! signing, endpoints, time-outs and TLS are the SDK's. It is not the place for retries, rates or bisecting: those
//! are the lane's, and the SDK's own retries are off so that the lane sees every attempt.
//!
//! Invariants:
//! - One call is at most one HTTP request.
//! - [`Outcome::Refused`] is only said where nothing can have been accepted: the service answered so, or no byte of
//!   the body was handed to a connection and none ever will be. Everything else is [`Outcome::Unknown`].

use std::error::Error;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::provider::ProvideCredentials;
use aws_sdk_firehose::Client;
use aws_sdk_firehose::config::http::HttpResponse;
use aws_sdk_firehose::config::retry::RetryConfig;
use aws_sdk_firehose::config::timeout::TimeoutConfig;
use aws_sdk_firehose::config::{SharedCredentialsProvider, SharedHttpClient, StalledStreamProtectionConfig};
use aws_sdk_firehose::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_firehose::operation::put_record_batch::PutRecordBatchError;
use aws_sdk_firehose::types::PutRecordBatchResponseEntry;
use aws_smithy_http_client::Connector;
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use aws_smithy_runtime_api::client::http::{HttpConnectorSettings, SharedHttpConnector, http_client_fn};
use thiserror::Error;

mod body;
mod classify;
mod credentials;
#[cfg(fuzzing)]
pub(crate) mod fuzz;
mod hasher;
mod sha256;
#[cfg(test)]
mod tests;

use self::body::{Progress, RawBody, Stage};
use self::classify::{Verdict, classify, classify_record};
use self::credentials::{Expiry, Watched};
use self::hasher::Hasher;
use super::{Call, Outcome, RecordOutcome, Refusal};

/// A connection that has been idle for longer is closed by us. Short, because a request that meets the service's
/// own closing of an idle connection has an unknown outcome.
const IDLE_CONNECTION_MAX: Duration = Duration::from_secs(20);

/// How long the start waits for credentials before it warns and goes on without.
const CREDENTIALS_CHECK_MAX: Duration = Duration::from_secs(5);

/// No sentence carries more of a text that came from outside than this, in characters.
const QUOTED_CHARACTERS_MAX: usize = 300;

/// What a [`Firehose`] is to be connected with. What is left out comes from the SDK's standard chain: environment
/// (`AWS_REGION`, `AWS_ENDPOINT_URL_FIREHOSE`, `AWS_ENDPOINT_URL`, …), profile, container, instance.
#[derive(Clone, Debug)]
pub struct FirehoseSettings {
    /// Where requests go instead of the region's own endpoint; `http://` works too.
    pub endpoint_url: Option<String>,
    /// The region to sign for.
    pub region: Option<String>,
    /// The limit of one call, from looking for credentials to the last byte of the answer.
    pub call_timeout: Duration,
    /// The limit for a new connection, name resolution and TLS included.
    pub connect_timeout: Duration,
    /// The number of idle connections kept; more are opened as calls need them.
    pub max_idle_connections: usize,
    /// Whether large bodies that are ready together are hashed together, rather than by the SDK one by one.
    pub groups_hashes: bool,
}

impl Default for FirehoseSettings {
    fn default() -> Self {
        Self {
            endpoint_url: None,
            region: None,
            call_timeout: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(3),
            max_idle_connections: 64,
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
    client: Client,
    /// What the SDK's chain found to ask for credentials.
    credentials: Option<SharedCredentialsProvider>,
    expiry: Arc<Expiry>,
    hasher: Option<Hasher>,
}

impl Firehose {
    /// Reads the standard chain, resolves the region and looks for credentials once. Missing credentials are only
    /// warned of, after at most five seconds, since an instance's role may come later.
    pub async fn connect(settings: FirehoseSettings) -> Result<Self, FirehoseError> {
        let mut loader = aws_config::defaults(BehaviorVersion::latest());
        if let Some(region) = &settings.region {
            loader = loader.region(Region::new(region.clone()));
        }
        let firehose = Self::from_config(&loader.load().await, &settings)?;
        firehose.check_credentials().await;
        Ok(firehose)
    }

    fn from_config(shared: &SdkConfig, settings: &FirehoseSettings) -> Result<Self, FirehoseError> {
        if shared.region().is_none_or(|region| region.as_ref().is_empty()) {
            return Err(FirehoseError::NoRegion);
        }
        let expiry = Arc::new(Expiry::default());
        let watch = |inner| SharedCredentialsProvider::new(Watched { inner, expiry: Arc::clone(&expiry) });
        let credentials = shared.credentials_provider().map(watch);
        let mut config = aws_sdk_firehose::config::Builder::from(shared)
            .retry_config(RetryConfig::disabled())
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .timeout_config(timeouts(settings))
            .http_client(http_client(settings));
        config.set_credentials_provider(credentials.clone());
        if let Some(url) = &settings.endpoint_url {
            check_endpoint(url)?;
            config.set_endpoint_url(Some(url.clone()));
        }
        let hasher = settings.groups_hashes.then(|| Hasher::start(settings.max_idle_connections)).transpose();
        let hasher = hasher.map_err(FirehoseError::NoThread)?;
        Ok(Self { client: Client::from_conf(config.build()), credentials, expiry, hasher })
    }

    async fn check_credentials(&self) {
        let Some(provider) = &self.credentials else { return };
        let problem = match tokio::time::timeout(CREDENTIALS_CHECK_MAX, provider.provide_credentials()).await
        {
            Ok(Ok(_)) => return,
            Ok(Err(error)) => chain(&error),
            Err(_) => format!("nothing answered within {CREDENTIALS_CHECK_MAX:?}"),
        };
        tracing::warn!(
            "There are no AWS credentials yet ({problem}). Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, \
             AWS_PROFILE, or give the host a role; until then events are kept and nothing is delivered."
        );
    }

    /// When the credentials used last expire; `None` where they do not, or none were needed yet. Costs no request.
    pub fn credentials_expiry(&self) -> Option<SystemTime> {
        self.expiry.get()
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
        let progress = Progress::new();
        let digest = match (&call.digest, &self.hasher) {
            (None, Some(hasher)) => hasher.digest(&call).await,
            (digest, _) => digest.clone(),
        };
        let raw_body = RawBody { body: call.body.clone(), digest, progress: Arc::clone(&progress) };
        let answer = self
            .client
            .put_record_batch()
            .delivery_stream_name(&*call.delivery_stream)
            .set_records(Some(Vec::new()))
            .customize()
            .interceptor(raw_body)
            .send()
            .await;
        match answer {
            Ok(output) => accepted(&call, output.request_responses()),
            Err(error) => failed(&call, &error, &progress),
        }
    }
}

fn timeouts(settings: &FirehoseSettings) -> TimeoutConfig {
    TimeoutConfig::builder()
        .connect_timeout(settings.connect_timeout)
        .operation_attempt_timeout(settings.call_timeout)
        .disable_operation_timeout()
        .disable_read_timeout()
        .build()
}

/// The SDK's own client, with a pool of our size. Like the SDK's default it honours `HTTPS_PROXY` and `NO_PROXY`.
fn http_client(settings: &FirehoseSettings) -> SharedHttpClient {
    let connector = Connector::builder()
        .tls_provider(Provider::Rustls(CryptoMode::AwsLc))
        .pool_idle_timeout(IDLE_CONNECTION_MAX)
        .pool_max_idle_per_host(settings.max_idle_connections)
        .proxy_config(ProxyConfig::from_env())
        .connector_settings(
            HttpConnectorSettings::builder().connect_timeout(settings.connect_timeout).build(),
        )
        .build();
    let connector = SharedHttpConnector::new(connector);
    http_client_fn(move |_, _| connector.clone())
}

/// A call that was answered with success: the entries decide, whatever FailedPutCount says.
fn accepted(call: &Call, entries: &[PutRecordBatchResponseEntry]) -> Outcome {
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

fn failed(call: &Call, error: &SdkError<PutRecordBatchError, HttpResponse>, progress: &Progress) -> Outcome {
    if let Some(response) = error.raw_response() {
        return refused_by_service(call, response.status().as_u16(), error);
    }
    let problem = chain(error);
    match (error, progress.abandon()) {
        (_, Stage::Sent) => unknown(call, format_args!("{problem}")),
        (SdkError::DispatchFailure(_) | SdkError::TimeoutError(_), Stage::Preparing) => refused(
            call,
            Refusal::Credentials,
            format_args!(
                "the request could not be signed ({problem}): set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, \
                 AWS_PROFILE, or give the host a role; the events are kept meanwhile"
            ),
        ),
        _ => refused(
            call,
            Refusal::Transient,
            format_args!("nothing was sent ({problem}): check the network and the endpoint"),
        ),
    }
}

fn refused_by_service(
    call: &Call,
    status: u16,
    error: &SdkError<PutRecordBatchError, HttpResponse>,
) -> Outcome {
    let mut answer = format!("HTTP {status}");
    if let Some(code) = error.code() {
        let _ = write!(answer, " {}", quote(code));
    }
    match error.message() {
        Some(message) => {
            let _ = write!(answer, " ({})", quote(message));
        }
        None if error.code().is_none() => {
            let _ = write!(answer, " ({})", chain(error));
        }
        None => {}
    }
    match classify(status, error.code(), error.message()) {
        Verdict::Refused(kind, hint) => refused(call, kind, format_args!("{answer}: {hint}")),
        Verdict::Unknown => unknown(call, format_args!("{answer}")),
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
