//! Where calls go. A destination makes one attempt and says truthfully what became of it; it never retries,
//! never waits out a back-off and knows nothing of lanes, streams' queues or memory. AWS types appear only
//! below this module.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

pub mod directory;
pub mod firehose;
pub mod relay;

use self::directory::Directory;
use self::firehose::{Firehose, FirehoseError};
use self::relay::Relay;
use crate::config::Config;

/// How the events of a batch stand in its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// Raw lines: each event followed by one LF.
    Lines,
    /// `{"Records":[{"Data":"…base64…"},…],"DeliveryStreamName":"…"}`, the body of PutRecordBatch.
    Records,
}

/// One attempt to deliver: the records of one or more batches of one stream.
#[derive(Clone, Debug)]
pub struct Call {
    /// The delivery stream that the call goes to; for `directory` and `relay`, the stream's
    /// own name.
    pub delivery_stream: Arc<str>,
    /// The whole body in the destination's encoding. Cloning shares the bytes.
    pub body: Bytes,
    /// The number of records in the body; 1 where the encoding is lines.
    pub records: usize,
    /// When its oldest event has waited for `linger`: until then nobody expects it to leave.
    pub due: Instant,
    /// The SHA-256 of the body in lower-case hexadecimal, where [`Destination::prepare`] found it worth while.
    pub digest: Option<String>,
}

/// What became of one call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every record was accepted.
    Accepted,
    /// The destination answered for each record; at least one was not accepted. As long as the call's records.
    Partial(Vec<RecordOutcome>),
    /// Everything was accepted, and so many events of it at most are lost for good: there is nothing to send again.
    Lost {
        /// An upper bound, which may be above what the call held.
        events: u64,
    },
    /// Certainly nothing was accepted.
    Refused {
        /// What kind of refusal, which decides what the lane does.
        kind: Refusal,
        /// A sentence for the log and `/status`.
        message: String,
    },
    /// It cannot be known whether anything was accepted: to send again may duplicate.
    Unknown {
        /// A sentence for the log and `/status`.
        message: String,
    },
}

/// What became of one record of a call that was answered record by record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordOutcome {
    /// Accepted.
    Accepted,
    /// Not accepted: over the delivery stream's quota (`ServiceUnavailableException`).
    Throttled,
    /// Not accepted: an error inside the service (`InternalFailure` and every code not known here).
    Internal,
}

/// Why a call as a whole was certainly not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Over a quota: slow down.
    Throttled,
    /// A fault that passes: no connection, a full disk, an expired request.
    Transient,
    /// Credentials are missing, expired or lack a right: somebody must act, the events are kept.
    Credentials,
    /// The delivery stream's KMS key refuses: heals when the key does.
    Key,
    /// This delivery stream can not take calls as it stands: it does not exist, or takes its data elsewhere.
    Permanent,
    /// Something in the body was refused: bisecting finds which record.
    Content,
}

/// A destination, chosen once at start.
#[derive(Debug)]
pub enum Destination {
    /// Files on this host, laid out as Firehose lays out S3.
    Directory(Directory),
    /// Amazon Data Firehose.
    Firehose(Firehose),
    /// Another relay.
    Relay(Relay),
    /// Accepts and forgets, for measuring.
    Null,
}

impl Destination {
    /// What this destination wants batches encoded as.
    pub fn encoding(&self) -> Encoding {
        match self {
            Destination::Firehose(_) => Encoding::Records,
            Destination::Directory(_) | Destination::Relay(_) | Destination::Null => Encoding::Lines,
        }
    }

    /// Does for several calls what is cheaper done together than in each call: to be called once, before them.
    pub fn prepare<'a>(&self, calls: impl Iterator<Item = &'a mut Call>) {
        if let Destination::Firehose(firehose) = self {
            firehose.prepare(calls);
        }
    }

    /// Makes one attempt to deliver `call` and says what became of it.
    pub async fn call(&self, call: Call) -> Outcome {
        match self {
            Destination::Directory(directory) => directory.call(call).await,
            Destination::Firehose(firehose) => firehose.call(call).await,
            Destination::Relay(relay) => relay.call(call).await,
            Destination::Null => Outcome::Accepted,
        }
    }
}

impl Destination {
    /// Makes calls as these settings have it from now on. Calls under way are not changed.
    ///
    /// # Errors
    /// Where they cannot be made so; then nothing is changed.
    pub async fn reload(&self, config: &Config) -> Result<(), FirehoseError> {
        match self {
            Destination::Firehose(firehose) => {
                firehose.retarget(&config.delivery_stream_defaults, &config.delivery_streams).await
            }
            Destination::Directory(_) | Destination::Relay(_) | Destination::Null => Ok(()),
        }
    }

    /// When the first of the credentials expire that calls are signed with, where any do.
    pub fn credentials_expiry(&self) -> Option<std::time::SystemTime> {
        match self {
            Destination::Firehose(firehose) => firehose.credentials_expiry(),
            Destination::Directory(_) | Destination::Relay(_) | Destination::Null => None,
        }
    }
}
