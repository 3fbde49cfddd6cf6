//! The body of a call on its way out, and how it is known whether any of it left. It is not a retry mechanism: a
//! body is handed out at most once.
//!
//! Invariant: once [`Progress::abandon`] has returned anything but [`Stage::Sent`], no byte of the body is handed
//! to a connection any more, even if the HTTP client's connection task still holds the request. Without that, a
//! call that timed out could be reported as certainly not accepted and still be sent a moment later.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::SeqCst};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

/// How far a call got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Credentials are still being looked for.
    Preparing,
    /// Signed and given to the HTTP client: it resolves, connects, or waits.
    Signed,
    /// The connection has asked for the body: from here on bytes may have arrived.
    Sent,
    /// Given up before any of the body was handed out; it never will be.
    Abandoned,
}

impl Stage {
    fn from_number(number: u8) -> Self {
        [Stage::Preparing, Stage::Signed, Stage::Sent, Stage::Abandoned][usize::from(number)]
    }
}

/// The stage of one call, shared by the caller and the body.
#[derive(Debug)]
pub(super) struct Progress(AtomicU8);

impl Progress {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self(AtomicU8::new(Stage::Preparing as u8)))
    }

    /// The call is about to be given to the HTTP client.
    pub(super) fn signed(&self) {
        let _ = self.0.compare_exchange(Stage::Preparing as u8, Stage::Signed as u8, SeqCst, SeqCst);
    }

    /// Asks to hand out the body; false when the call has been given up.
    fn send(&self) -> bool {
        self.0.compare_exchange(Stage::Signed as u8, Stage::Sent as u8, SeqCst, SeqCst).is_ok()
    }

    /// Gives the call up unless its body has been handed out, and says how far it had got.
    pub(super) fn abandon(&self) -> Stage {
        let give_up = |stage| (stage != Stage::Sent as u8).then_some(Stage::Abandoned as u8);
        match self.0.fetch_update(SeqCst, SeqCst, give_up) {
            Ok(before) | Err(before) => Stage::from_number(before),
        }
    }
}

/// Bytes that tell when they are first asked for, and refuse when the call has been given up.
#[derive(Debug)]
pub(super) struct TrackedBody {
    rest: Bytes,
    progress: Arc<Progress>,
}

impl TrackedBody {
    pub(super) fn new(bytes: &Bytes, progress: &Arc<Progress>) -> Self {
        Self { rest: bytes.clone(), progress: Arc::clone(progress) }
    }

    /// Bytes not handed out yet.
    pub(super) fn len(&self) -> usize {
        self.rest.len()
    }
}

impl Body for TrackedBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.rest.is_empty() {
            return Poll::Ready(None);
        }
        if !self.progress.send() {
            return Poll::Ready(Some(Err(io::Error::other("the call was given up before it was sent"))));
        }
        Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.rest)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    /// Exact, so that the length is declared and nothing is sent in chunks, which Firehose does not take.
    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first_frame(progress: &Arc<Progress>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let mut body = TrackedBody::new(&Bytes::from_static(b"{}"), progress);
        Pin::new(&mut body).poll_frame(&mut Context::from_waker(std::task::Waker::noop()))
    }

    #[test]
    fn an_abandoned_call_never_hands_out_its_body() {
        let progress = Progress::new();
        progress.signed();
        assert_eq!(progress.abandon(), Stage::Signed);
        assert!(matches!(first_frame(&progress), Poll::Ready(Some(Err(_)))));
        assert_eq!(progress.abandon(), Stage::Abandoned);
    }

    #[test]
    fn a_call_whose_body_was_handed_out_cannot_be_abandoned() {
        let progress = Progress::new();
        assert_eq!(Stage::from_number(progress.0.load(SeqCst)), Stage::Preparing);
        progress.signed();
        assert!(matches!(first_frame(&progress), Poll::Ready(Some(Ok(_)))));
        assert_eq!(progress.abandon(), Stage::Sent);
        assert_eq!(progress.abandon(), Stage::Sent);
    }
}
