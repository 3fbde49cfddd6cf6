//! Any answer at all, given to a call without a network: what the SDK and we make of it together.

use std::cell::RefCell;
use std::sync::LazyLock;

use aws_credential_types::Credentials;
use aws_smithy_runtime_api::client::http::{HttpConnector, HttpConnectorFuture};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_types::body::SdkBody;
use bytes::Bytes;

use super::*;

thread_local! {
    /// What the next request is answered with.
    static ANSWER: RefCell<(u16, Bytes)> = const { RefCell::new((200, Bytes::new())) };
}

/// Answers every request with what is laid out for it.
#[derive(Debug)]
struct Canned;

impl HttpConnector for Canned {
    fn call(&self, _request: HttpRequest) -> HttpConnectorFuture {
        let (status, body) = ANSWER.take();
        let status = status.try_into().expect("the target gives a status of three digits");
        HttpConnectorFuture::ready(Ok(HttpResponse::new(status, SdkBody::from(body))))
    }
}

static RUNTIME: LazyLock<tokio::runtime::Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime starts")
});

static FIREHOSE: LazyLock<Firehose> = LazyLock::new(|| {
    let connector = SharedHttpConnector::new(Canned);
    let config = aws_sdk_firehose::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .credentials_provider(Credentials::new("fuzz", "fuzz", None, None, "fuzz"))
        .retry_config(RetryConfig::disabled())
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        .http_client(http_client_fn(move |_, _| connector.clone()))
        .build();
    Firehose { client: Client::from_conf(config), credentials: None, expiry: Arc::default(), hasher: None }
});

/// The outcome of a call that is answered so.
pub(crate) fn answered(status: u16, body: &[u8], records: usize) -> Outcome {
    ANSWER.set((status, Bytes::copy_from_slice(body)));
    let call = Call {
        delivery_stream: "clicks".into(),
        body: Bytes::from_static(b"{}"),
        records,
        due: std::time::Instant::now(),
        digest: None,
    };
    RUNTIME.block_on(FIREHOSE.call(call))
}
