//! The faces that the fuzz targets in `fuzz/` drive, where the library has no such function of its own. It exists
//! only in their builds (`--cfg fuzzing`), and decides nothing.

use crate::config::{Config, Errors};
use crate::destination::Outcome;
use crate::destination::firehose::fuzz::answered;

/// Resolves the text of a configuration file, with no other source but the defaults.
///
/// # Errors
///
/// All that is wrong in it.
pub fn configuration(text: &str) -> Result<Config, Errors> {
    Config::of_text(text)
}

/// What the Firehose destination makes of an answer to a call of so many records.
pub fn reply(status: u16, body: &[u8], records: usize) -> Outcome {
    answered(status, body, records)
}
