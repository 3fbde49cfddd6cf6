//! Hashes the bodies of calls that are ready at about the same time together, on a thread of its own. A body that
//! was full before `linger` was over is in no hurry and waits a moment for others, as long as they keep coming;
//! one that is due waits for nobody.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::sync::oneshot;

use super::request::hexadecimal;
use super::sha256::{self, LANES_MAX};
use crate::destination::Call;

/// Smaller bodies are not worth the way to another thread and back: those that start together are hashed side by
/// side where they are ([`digest_small`]).
const BODY_BYTES_MIN: usize = 128 * 1024;

/// How long bodies that are in no hurry wait for the next: a group of sixteen costs a third less than one of four,
/// and at the rates where that matters a full body comes every few milliseconds.
const NEXT_WAIT: Duration = Duration::from_millis(8);

/// A body, and where its digest goes.
struct Job {
    body: Bytes,
    due: Instant,
    digest: oneshot::Sender<String>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Hasher {
    /// Bounded by the calls in flight.
    jobs: Sender<Job>,
}

impl Hasher {
    /// Starts the thread; it ends when the hasher is dropped.
    pub(super) fn start() -> std::io::Result<Self> {
        let (jobs, waiting) = channel();
        std::thread::Builder::new().name("hasher".to_owned()).spawn(move || run(&waiting))?;
        Ok(Self { jobs })
    }

    /// The digest of a body in lower-case hexadecimal. What is small is hashed at once and alone.
    pub(super) async fn digest(&self, call: &Call) -> String {
        self.digest_in_group(call).await.unwrap_or_else(|| digest(&call.body))
    }

    async fn digest_in_group(&self, call: &Call) -> Option<String> {
        if call.body.len() < BODY_BYTES_MIN {
            return None;
        }
        let (digest, hashed) = oneshot::channel();
        self.jobs.send(Job { body: call.body.clone(), due: call.due, digest }).ok()?;
        hashed.await.ok()
    }
}

/// The digest of one body alone, in lower-case hexadecimal.
pub(super) fn digest(body: &[u8]) -> String {
    hexadecimal(&Sha256::digest(body).into())
}

/// The first body and those that come while it may wait.
fn gather(first: Job, waiting: &Receiver<Job>) -> Vec<Job> {
    let mut due = first.due;
    let mut group = vec![first];
    while group.len() < LANES_MAX {
        let wait = due.saturating_duration_since(Instant::now()).min(NEXT_WAIT);
        let Ok(next) = waiting.recv_timeout(wait) else { break };
        due = due.min(next.due);
        group.push(next);
    }
    group
}

/// Puts the digests of the bodies that are too small for the thread into their calls.
pub(super) fn digest_small<'a>(calls: impl Iterator<Item = &'a mut Call>) {
    let mut small: Vec<&mut Call> = calls.filter(|call| call.body.len() < BODY_BYTES_MIN).collect();
    let bodies: Vec<&[u8]> = small.iter().map(|call| &call.body[..]).collect();
    let digests = sha256::digest_each(&bodies);
    for (call, digest) in small.iter_mut().zip(digests) {
        call.digest = Some(hexadecimal(&digest));
    }
}

fn run(waiting: &Receiver<Job>) {
    while let Ok(first) = waiting.recv() {
        let group = gather(first, waiting);
        let bodies: Vec<&[u8]> = group.iter().map(|job| &job.body[..]).collect();
        let digests = sha256::digest_each(&bodies);
        for (job, digest) in group.into_iter().zip(digests) {
            // Whoever asked may have given its call up.
            let _ = job.digest.send(hexadecimal(&digest));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(body: Bytes) -> Call {
        Call { delivery_stream: "clicks".into(), body, records: 1, due: Instant::now(), digest: None }
    }

    #[tokio::test]
    async fn bodies_that_come_together_are_each_hashed_right() {
        let hasher = std::sync::Arc::new(Hasher::start().unwrap());
        let bodies: Vec<Bytes> =
            (0..40u8).map(|fill| vec![fill; BODY_BYTES_MIN + usize::from(fill)].into()).collect();
        let ask = |body: Bytes| {
            let hasher = std::sync::Arc::clone(&hasher);
            tokio::spawn(async move { hasher.digest(&call(body)).await })
        };
        let asked: Vec<_> = bodies.iter().cloned().map(ask).collect();
        let mut digests = Vec::new();
        for digest in asked {
            digests.push(digest.await.unwrap());
        }
        let wanted: Vec<String> = bodies.iter().map(|body| digest(body)).collect();
        assert_eq!(digests, wanted);
    }

    #[tokio::test]
    async fn small_bodies_are_hashed_where_they_are() {
        let body = Bytes::from_static(b"{}");
        let hasher = Hasher::start().unwrap();
        assert_eq!(hasher.digest_in_group(&call(body.clone())).await, None);
        assert_eq!(hasher.digest(&call(body.clone())).await, digest(&body));
    }
}
