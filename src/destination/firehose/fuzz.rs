//! Any answer at all, given to a call without a network: what we make of it.

use std::cell::RefCell;
use std::sync::LazyLock;

use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_sdk_firehose::config::http::HttpRequest;
use aws_smithy_runtime_api::client::http::{HttpConnector, HttpConnectorFuture};
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
    let credentials = Credentials::new("fuzz", "fuzz", None, None, "fuzz");
    let shared = SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .credentials_provider(SharedCredentialsProvider::new(credentials))
        .build();
    let settings = FirehoseSettings { groups_hashes: false, ..FirehoseSettings::default() };
    let firehose = Firehose::from_config(&shared, &settings, SharedHttpConnector::new(Canned));
    RUNTIME.block_on(firehose).expect("the settings are good")
});

/// The outcome of a call that is answered so.
pub(crate) fn answered(status: u16, body: &[u8], records: usize) -> Outcome {
    ANSWER.set((status, Bytes::copy_from_slice(body)));
    let call = Call {
        delivery_stream: "clicks".into(),
        body: Bytes::from_static(b"{}"),
        records,
        due: Instant::now(),
        digest: None,
    };
    RUNTIME.block_on(FIREHOSE.call(call))
}
