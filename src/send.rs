//! `standpipe send`: lines of standard input become events of one stream, and it ends when the relay has said what
//! became of them. It is the client with a pipe before it; connections, syncs and repetition are the client's.

use std::io::{self, BufRead, Read};
use std::time::Duration;

use crate::client::{AddressError, Client, Report, SendError};
use crate::frame::PAYLOAD_BYTES_MAX;

pub mod replay;

/// How often whoever waits is told for what.
const TOLD_EVERY: Duration = Duration::from_secs(5);

/// What became of the lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    /// What the relay said.
    pub report: Report,
    /// Lines that cannot be an event: empty, or longer than the protocol allows.
    pub refused: u64,
}

impl Sent {
    /// Whether every line is safe.
    pub fn is_whole(&self) -> bool {
        self.report.lost == 0 && self.refused == 0
    }
}

/// Sends every line of `input` to the stream and waits until all are synced, however long that takes; `tell` hears
/// a sentence now and then meanwhile.
///
/// # Errors
/// Where the address or the stream's name is not one, or `input` cannot be read; then nothing is known of what was
/// sent before.
pub fn send(stream: &str, to: &str, mut input: impl BufRead, tell: impl Fn(String)) -> anyhow::Result<Sent> {
    let client = Client::connect(to).map_err(|error: AddressError| anyhow::anyhow!(error))?;
    let (mut line, mut refused) = (Vec::new(), 0);
    while let Some(fits) = read_line(&mut input, &mut line)? {
        match client.send(stream, &line) {
            Ok(()) if fits => (),
            Err(SendError::BadStream) => anyhow::bail!(SendError::BadStream),
            _ => refused += 1,
        }
    }
    loop {
        match client.sync(TOLD_EVERY) {
            Ok(report) => {
                // All is answered: closing has nothing to wait for.
                let _ = client.close(Duration::ZERO);
                return Ok(Sent { report, refused });
            }
            Err(waits) => tell(waits.to_string()),
        }
    }
}

/// Reads a line without its LF, and says whether it fits into a frame; one that does not is left empty. The last
/// line needs no LF.
fn read_line(input: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<Option<bool>> {
    line.clear();
    let longest = PAYLOAD_BYTES_MAX as u64 + 1;
    if input.by_ref().take(longest).read_until(b'\n', line)? == 0 {
        return Ok(None);
    }
    if line.pop_if(|last| *last == b'\n').is_some() || line.len() <= PAYLOAD_BYTES_MAX {
        return Ok(Some(true));
    }
    line.clear();
    input.skip_until(b'\n')?;
    Ok(Some(false))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_bounded_and_the_last_needs_no_line_feed() {
        let longest = "x".repeat(PAYLOAD_BYTES_MAX);
        let text = format!("a\n\n{longest}\n{longest}y\nb\r\nc");
        let (mut input, mut line, mut lines) = (text.as_bytes(), Vec::new(), Vec::new());
        while let Some(fits) = read_line(&mut input, &mut line).expect("memory can be read") {
            lines.push((fits, line.len()));
        }
        assert_eq!(
            lines,
            [(true, 1), (true, 0), (true, PAYLOAD_BYTES_MAX), (false, 0), (true, 2), (true, 1)]
        );
    }
}
