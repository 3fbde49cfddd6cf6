//! Standpipe's load generator: what the `loadgen` binary does, as a library.
//!
//! It links nothing of the relay: its encoder, decoder and books are an independent check on the relay's.
//!
//! # Layout
//!
//! - [`event`]: what is inside a generated event, built and checked.
//! - [`schedule`]: when each event is due, and on which connection and stream.
//! - [`send`]: the sender.
//! - [`sink`]: a Firehose-compatible endpoint that checks, counts and fails on purpose.
//! - [`report`], [`progress`]: tables and a bar for people.
//! - [`run`]: sink, relay and sender together, verified.
//! - [`chaos`]: relays killed again and again, and what clients were promised held against the books.
//! - [`outage`]: an endpoint that is gone for a while, the backlog of it, and fresh events beside that.
//! - [`backlog`]: a start with a full spool.
//! - [`durability`]: what it costs to have everything on disk first, beside what the disk can do.
//! - [`profile`]: named runs, compared and reported.
//! - [`floor`]: the least that the same work costs.
//! - [`units`]: how numbers are written.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may panic"))]

pub mod backlog;
pub mod chaos;
pub mod durability;
pub mod event;
pub mod floor;
pub mod outage;
pub mod profile;
pub mod progress;
pub mod report;
pub mod run;
pub mod schedule;
pub mod send;
pub mod sink;
pub mod units;

/// Binds this thread to a CPU, if one is given. Where that is not allowed, it stays where it is, with a warning.
pub fn pin_to(cpu: Option<usize>) {
    let Some(cpu) = cpu else { return };
    if !core_affinity::set_for_current(core_affinity::CoreId { id: cpu }) {
        eprintln!("this thread could not be bound to CPU {cpu}; it runs unbound");
    }
}

/// Writes JSON, indented, to a file, or to standard output for `-`.
///
/// # Errors
///
/// A sentence that names the file.
pub fn write_json(path: &str, value: &impl serde::Serialize) -> anyhow::Result<()> {
    use anyhow::Context;
    let text = serde_json::to_string_pretty(value).context("the report could not be written as JSON")?;
    if path == "-" {
        println!("{text}");
        return Ok(());
    }
    std::fs::write(path, text + "\n").with_context(|| format!("`{path}` could not be written"))
}
