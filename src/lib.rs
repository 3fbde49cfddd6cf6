//! Standpipe, an event relay: TCP lines in, Amazon Data Firehose calls out, every event accounted for.
//!
//! # The map, in the order in which an event passes
//!
//! The binary is a thin shell over this crate.

pub mod cli;
pub mod config;
pub mod destination;
pub mod metrics;
