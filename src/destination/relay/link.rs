//! One connection to another relay: writes calls as they come, each with its sync, and gives each the answer. It
//! decides nothing and connects to nothing.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use memchr::memchr_iter;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, mpsc, oneshot};

use super::progress::{PING, Progress};
use crate::destination::Outcome;
use crate::frame::CONTROL_BYTES_MAX;

/// Frames are gathered up to this many bytes before they are written.
const WRITE_BYTES: usize = 64 * 1024;

/// A call to be written. Its reply is dropped where not a byte of it was.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) stream: Arc<str>,
    /// Each with its LF.
    pub(super) lines: Bytes,
    pub(super) reply: oneshot::Sender<Outcome>,
}

/// A call that is written, in part at least.
struct Written {
    id: u64,
    reply: oneshot::Sender<Outcome>,
}

/// What reading and writing share.
struct State {
    unanswered: Mutex<VecDeque<Written>>,
    /// Something was answered.
    answered: Notify,
    progress: Arc<Progress>,
}

impl State {
    fn unanswered(&self) -> MutexGuard<'_, VecDeque<Written>> {
        self.unanswered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves a connection until it fails, until no call can come any more and all are answered, or until the other relay
/// has not answered a probe for `timeout`.
pub(super) async fn serve(
    mut reader: BufReader<OwnedReadHalf>,
    mut writer: OwnedWriteHalf,
    mut jobs: mpsc::Receiver<Job>,
    progress: Arc<Progress>,
    timeout: Duration,
) {
    let state = State { unanswered: Mutex::default(), answered: Notify::new(), progress };
    let ended = {
        let reading = read(&mut reader, &state);
        tokio::pin!(reading);
        tokio::select! {
            ended = &mut reading => ended,
            error = watch(&state.progress, timeout) => Err(error),
            written = write(&mut writer, &mut jobs, &state, timeout / 2) => match written {
                // All is answered: half-closed, it is closed by the other relay. Where writing failed, what was
                // answered before is heard too.
                Ok(()) if writer.shutdown().await.is_ok() => reading.await,
                Ok(()) => Err(io::ErrorKind::BrokenPipe.into()),
                Err(error) => reading.await.and(Err(error)),
            },
        }
    };
    jobs.close();
    let reason = ended.err().map_or_else(|| "it was closed".to_owned(), |error| error.to_string());
    for written in std::mem::take(&mut *state.unanswered()) {
        let message = format!("the connection to the relay ended before it answered: {reason}");
        // Whoever made the call may have gone.
        let _ = written.reply.send(Outcome::Unknown { message });
    }
}

/// Resolves when the other relay does nothing any more.
async fn watch(progress: &Progress, timeout: Duration) -> io::Error {
    let mut looks = 0;
    // Looked at twice: where this process stood still itself, the answer may be here and not be heard yet.
    while looks < 2 {
        tokio::time::sleep(timeout / 8).await;
        looks = if progress.is_dead(Instant::now(), timeout) { looks + 1 } else { 0 };
    }
    io::Error::new(io::ErrorKind::TimedOut, format!("a ping was not answered for {timeout:?}"))
}

/// Writes calls until there are none, never will be, and all are answered. While answers are waited for, probes go out.
async fn write(
    writer: &mut OwnedWriteHalf,
    jobs: &mut mpsc::Receiver<Job>,
    state: &State,
    probe_every: Duration,
) -> io::Result<()> {
    let (mut id, mut is_open) = (0, true);
    while is_open || !state.unanswered().is_empty() {
        tokio::select! {
            job = jobs.recv(), if is_open => match job {
                Some(job) => {
                    id += 1;
                    write_call(writer, job, id, state).await?;
                }
                None => is_open = false,
            },
            () = state.answered.notified(), if !is_open => (),
            () = tokio::time::sleep(probe_every) => {
                if state.progress.has_read_all() && !state.unanswered().is_empty() {
                    state.progress.ask(Instant::now());
                    writer.write_all(PING).await?;
                }
            }
        }
    }
    Ok(())
}

/// Writes a call and its sync, between two pings.
async fn write_call(writer: &mut OwnedWriteHalf, job: Job, id: u64, state: &State) -> io::Result<()> {
    let Job { stream, lines, reply } = job;
    state.unanswered().push_back(Written { id, reply });
    state.progress.ask(Instant::now());
    let mut scratch = PING.to_vec();
    let mut start = 0;
    for end in memchr_iter(b'\n', &lines) {
        let line = &lines[start..=end];
        start = end + 1;
        if scratch.len() + line.len() > WRITE_BYTES {
            writer.write_all(&scratch).await?;
            scratch.clear();
        }
        scratch.extend_from_slice(stream.as_bytes());
        scratch.push(b' ');
        scratch.extend_from_slice(line);
    }
    scratch.extend_from_slice(format!("!sync {id}\n").as_bytes());
    state.progress.ask(Instant::now());
    scratch.extend_from_slice(PING);
    writer.write_all(&scratch).await
}

/// Hears answers until the connection ends.
async fn read(reader: &mut BufReader<OwnedReadHalf>, state: &State) -> io::Result<()> {
    let mut line = Vec::new();
    loop {
        line.clear();
        let length = (&mut *reader).take(CONTROL_BYTES_MAX as u64).read_until(b'\n', &mut line).await?;
        if length == 0 {
            return Ok(());
        }
        if !line.ends_with(b"\n") {
            // The rest of a count may be missing, and what is there would still be a number.
            return Err(io::Error::other("it ended within an answer"));
        }
        let text = String::from_utf8_lossy(&line);
        if text.trim_end() == "!pong" && state.progress.hear(Instant::now()) {
            continue;
        }
        let mut unanswered = state.unanswered();
        let answer = understand(text.trim_end());
        match (answer, unanswered.front().map(|written| written.id)) {
            (Some((id, outcome)), Some(first)) if id == first => {
                let written = unanswered.pop_front().expect("it was looked at");
                // Whoever made the call may have gone.
                let _ = written.reply.send(outcome);
                state.answered.notify_one();
            }
            _ => return Err(io::Error::other(format!("the answer {text:?} was not expected"))),
        }
    }
}

/// The answer to a sync: its ID, and what it says.
fn understand(line: &str) -> Option<(u64, Outcome)> {
    let mut words = line.split(' ');
    let (verb, id) = (words.next()?, words.next()?.parse().ok()?);
    match verb {
        "!synced" => Some((id, Outcome::Accepted)),
        "!lost" => Some((id, Outcome::Lost { events: words.next()?.parse().ok()? })),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn half_an_answer_is_none() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let socket = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut peer, _) = listener.accept().await.unwrap();
        let (reader, writer) = socket.into_split();
        let (jobs, waiting) = mpsc::channel(1);
        let serving = tokio::spawn(serve(
            BufReader::new(reader),
            writer,
            waiting,
            Arc::default(),
            Duration::from_secs(60),
        ));
        let (reply, answer) = oneshot::channel();
        let job = Job { stream: "clicks".into(), lines: Bytes::from_static(b"one\n"), reply };
        jobs.send(job).await.unwrap();
        // The peer dies while it writes that it has lost 345 events.
        peer.write_all(b"!lost 1 3").await.unwrap();
        drop(peer);
        let outcome = answer.await.unwrap();
        assert!(matches!(outcome, Outcome::Unknown { .. }), "{outcome:?}");
        serving.await.unwrap();
    }

    /// A connection on which a call of one line was made, and what becomes of that.
    async fn called(timeout: Duration) -> (tokio::net::TcpStream, oneshot::Receiver<Outcome>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let socket = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (peer, _) = listener.accept().await.unwrap();
        let (reader, writer) = socket.into_split();
        let (jobs, waiting) = mpsc::channel(1);
        tokio::spawn(serve(BufReader::new(reader), writer, waiting, Arc::default(), timeout));
        let (reply, answer) = oneshot::channel();
        let job = Job { stream: "clicks".into(), lines: Bytes::from_static(b"one\n"), reply };
        jobs.send(job).await.unwrap();
        (peer, answer)
    }

    #[tokio::test]
    async fn a_relay_that_answers_no_ping_ends_the_call() {
        let (mut peer, answer) = called(Duration::from_millis(100)).await;
        let outcome = answer.await.unwrap();
        assert!(
            matches!(&outcome, Outcome::Unknown { message } if message.contains("a ping")),
            "{outcome:?}"
        );
        let mut said = String::new();
        peer.read_to_string(&mut said).await.unwrap();
        assert_eq!(said, "!ping\nclicks one\n!sync 1\n!ping\n");
    }

    #[tokio::test]
    async fn a_relay_that_is_paused_or_waits_itself_may_take_its_time() {
        let limit = Duration::from_millis(100);
        let (mut peer, mut answer) = called(limit).await;
        // It has read as far as the call, and is paused for the event.
        peer.write_all(b"!pong\n").await.unwrap();
        assert!(tokio::time::timeout(4 * limit, &mut answer).await.is_err(), "that is no fault");
        // It has room again, and waits for its own destination: now it is asked whether it lives.
        peer.write_all(b"!pong\n").await.unwrap();
        let mut said = vec![0; "!ping\nclicks one\n!sync 1\n!ping\n".len()];
        peer.read_exact(&mut said).await.unwrap();
        for _ in 0..3 {
            peer.read_exact(&mut said[..PING.len()]).await.unwrap();
            assert_eq!(&said[..PING.len()], PING);
            peer.write_all(b"!pong\n").await.unwrap();
        }
        peer.write_all(b"!synced 1\n").await.unwrap();
        assert_eq!(answer.await.unwrap(), Outcome::Accepted);
    }

    #[test]
    fn answers_are_understood_and_nothing_else_is() {
        assert_eq!(understand("!synced 7"), Some((7, Outcome::Accepted)));
        assert_eq!(understand("!lost 8 12"), Some((8, Outcome::Lost { events: 12 })));
        for other in ["", "!synced", "!synced x", "!lost 8", "!lost 8 x", "!pong", "!error 1"] {
            assert_eq!(understand(other), None, "{other}");
        }
    }
}
