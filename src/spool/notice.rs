//! What an operator should read of the spool, as sentences. The machine says it; the thread writes it to the log.

use std::fmt;

use super::{File, format};

/// What an operator should read, as a sentence ([`fmt::Display`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The disk fails; batches stay in memory.
    Failing(String),
    /// It works again.
    Works,
    /// A segment was put aside.
    Quarantined(File),
    /// So many bytes at a segment's end are not whole: nobody was told that they are stored, unless the disk has
    /// damaged them since.
    Torn(File, u64),
    /// A directory of a newer relay was left alone.
    Newer(u32, u16),
    /// A file could not be read and was left where it is.
    Unreadable(File, String),
    /// What an adopted directory brought.
    Adopted {
        /// The directory.
        dir: u32,
        /// Batches to deliver.
        batches: u64,
        /// Their events.
        events: u64,
    },
}

impl fmt::Display for Notice {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Notice::Failing(error) => write!(
                out,
                "the spool cannot be written ({error}): batches stay in memory, and it is tried again every second"
            ),
            Notice::Works => out.write_str("the spool can be written again"),
            Notice::Quarantined(file) => write!(
                out,
                "something in segment {:08} of the spool was damaged; what could be read of it is delivered, and \
                 the file was moved to the directory \"quarantine\": look at the disk, then delete it",
                file.number
            ),
            Notice::Torn(file, bytes) => write!(
                out,
                "the last {bytes} bytes of segment {:08} are not whole, as where power is lost while they are written; \
                 what stands before them is delivered",
                file.number
            ),
            Notice::Newer(_, version) => write!(
                out,
                "it is in format {version} of the spool, and this relay reads up to {}: it is left as it is; start \
                 a relay at least as new as the one that wrote it",
                format::VERSION
            ),
            Notice::Unreadable(file, error) => {
                write!(
                    out,
                    "{:?} {:08} cannot be read ({error}) and is left as it is",
                    file.kind, file.number
                )
            }
            Notice::Adopted { batches, events, .. } => {
                write!(out, "took over {batches} batches with {events} events")
            }
        }
    }
}
