//! One connection to another relay: writes calls as they come, each with its sync, and gives each the answer. It
//! decides nothing and connects to nothing.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use memchr::memchr_iter;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};

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

type Unanswered = Mutex<VecDeque<Written>>;

/// Serves a connection until it fails, or until no call can come any more and all are answered.
pub(super) async fn serve(
    mut reader: BufReader<OwnedReadHalf>,
    mut writer: OwnedWriteHalf,
    mut jobs: mpsc::Receiver<Job>,
) {
    let unanswered = Unanswered::default();
    let ended = {
        let reading = read(&mut reader, &unanswered);
        tokio::pin!(reading);
        tokio::select! {
            ended = &mut reading => ended,
            written = write(&mut writer, &mut jobs, &unanswered) => match written {
                // Half-closed, it gets the answers that are still to come, and then its end. Where writing failed,
                // what was answered before is heard too.
                Ok(()) if writer.shutdown().await.is_ok() => reading.await,
                Ok(()) => Err(io::ErrorKind::BrokenPipe.into()),
                Err(error) => reading.await.and(Err(error)),
            },
        }
    };
    jobs.close();
    let reason = ended.err().map_or_else(|| "it was closed".to_owned(), |error| error.to_string());
    for written in unanswered.into_inner().unwrap_or_else(PoisonError::into_inner) {
        let message = format!("the connection to the relay ended before it answered: {reason}");
        // Whoever made the call may have gone.
        let _ = written.reply.send(Outcome::Unknown { message });
    }
}

/// Writes calls until there are none and never will be.
async fn write(
    writer: &mut OwnedWriteHalf,
    jobs: &mut mpsc::Receiver<Job>,
    unanswered: &Unanswered,
) -> io::Result<()> {
    let mut scratch = Vec::new();
    let mut id = 0;
    while let Some(Job { stream, lines, reply }) = jobs.recv().await {
        id += 1;
        let written = Written { id, reply };
        unanswered.lock().unwrap_or_else(PoisonError::into_inner).push_back(written);
        let mut start = 0;
        for end in memchr_iter(b'\n', &lines) {
            let line = &lines[start..=end];
            start = end + 1;
            if !scratch.is_empty() && scratch.len() + line.len() > WRITE_BYTES {
                writer.write_all(&scratch).await?;
                scratch.clear();
            }
            scratch.extend_from_slice(stream.as_bytes());
            scratch.push(b' ');
            scratch.extend_from_slice(line);
        }
        scratch.extend_from_slice(format!("!sync {id}\n").as_bytes());
        writer.write_all(&scratch).await?;
        scratch.clear();
        // A line may have been a megabyte.
        scratch.shrink_to(WRITE_BYTES);
    }
    Ok(())
}

/// Hears answers until the connection ends.
async fn read(reader: &mut BufReader<OwnedReadHalf>, unanswered: &Unanswered) -> io::Result<()> {
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
        let mut unanswered = unanswered.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = understand(text.trim_end());
        match (answer, unanswered.front().map(|written| written.id)) {
            (Some((id, outcome)), Some(first)) if id == first => {
                let written = unanswered.pop_front().expect("it was looked at");
                // Whoever made the call may have gone.
                let _ = written.reply.send(outcome);
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
        let serving = tokio::spawn(serve(BufReader::new(reader), writer, waiting));
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

    #[test]
    fn answers_are_understood_and_nothing_else_is() {
        assert_eq!(understand("!synced 7"), Some((7, Outcome::Accepted)));
        assert_eq!(understand("!lost 8 12"), Some((8, Outcome::Lost { events: 12 })));
        for other in ["", "!synced", "!synced x", "!lost 8", "!lost 8 x", "!pong", "!error 1"] {
            assert_eq!(understand(other), None, "{other}");
        }
    }
}
