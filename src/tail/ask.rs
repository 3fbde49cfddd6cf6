//! `standpipe tail`: asks a relay on this host for live events and writes them to standard output.

use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::config::name;
use crate::health;

/// The longest that connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Lines of an answer's head, at most; hyper sends half a dozen.
const HEAD_LINES_MAX: usize = 64;

/// Writes a sample of a stream's events to `output`, a line each, until there were `count`, the relay ends it, or nobody
/// reads `output` any more. `say` hears what a human should know.
///
/// # Errors
/// A sentence, where no relay answers at `admin`, or it refuses.
pub fn ask(
    admin: SocketAddr,
    stream: &str,
    rate: u32,
    count: Option<u64>,
    output: &mut impl Write,
    say: impl Fn(&str),
) -> Result<(), String> {
    name::check_stream(stream)?;
    let address = health::reachable(admin);
    let count = count.map(|count| format!("&count={count}")).unwrap_or_default();
    let path = format!("/tail?stream={stream}&rate={rate}{count}");
    let cannot = |error| format!("no relay answers at http://{address}: {error}; --admin says where");
    let mut answer = request(address, &path).map_err(cannot)?;
    let (status, notes) = read_head(&mut answer).map_err(cannot)?;
    if status != 200 {
        let mut sentence = String::new();
        let _ = answer.read_line(&mut sentence);
        return Err(sentence.trim().to_owned());
    }
    notes.iter().for_each(|note| say(note));
    match copy(&mut answer, output) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        copied => copied.map_err(|error| format!("the sample has ended: {error}")),
    }
}

/// An answer to HTTP/1.0 ends with its connection, and has no chunks.
fn request(address: SocketAddr, path: &str) -> io::Result<BufReader<TcpStream>> {
    let mut connection = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT)?;
    write!(connection, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    Ok(BufReader::new(connection))
}

/// The status of an answer, and what it says to humans.
fn read_head(answer: &mut impl BufRead) -> io::Result<(u16, Vec<String>)> {
    let (mut status, mut notes) = (0, Vec::new());
    for _ in 0..HEAD_LINES_MAX {
        let mut line = String::new();
        answer.read_line(&mut line)?;
        match line.trim_end().split_once(": ") {
            _ if line.trim_end().is_empty() => break,
            Some((key, note)) if key.eq_ignore_ascii_case(super::NOTE) => notes.push(note.to_owned()),
            Some(_) => (),
            None => status = line.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0),
        }
    }
    Ok((status, notes))
}

/// Events as they come: each is flushed, since the next may be long in coming.
fn copy(answer: &mut impl BufRead, output: &mut impl Write) -> io::Result<()> {
    loop {
        let bytes = answer.fill_buf()?;
        if bytes.is_empty() {
            return Ok(());
        }
        output.write_all(bytes)?;
        output.flush()?;
        let taken = bytes.len();
        answer.consume(taken);
    }
}
