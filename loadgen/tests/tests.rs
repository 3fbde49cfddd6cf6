//! The binary from the outside, as one test program.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod run;
mod send;
mod sink;
mod support;
