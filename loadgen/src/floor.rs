//! Floors: what the least work costs on this machine, now, on the relay's CPU, so that the relay's cost can stand
//! beside it. None of it is the relay's code, and none of it keeps anything.
//!
//! - [`receive`]: a child process that reads and discards, fed by the same sender with the same settings. It is
//!   one thread with level-triggered epoll and one read of up to 64 KiB a ready connection; measured once as it is
//!   and once with a pause of 0.5 ms before each look, which gathers what single lines trickle in. It does not
//!   use io_uring: a relay that coalesces better than it can be below this floor. Where the relay has several
//!   shards it has as many such threads.
//! - [`memory`]: stages in memory over the same lines, warm in the cache: the least of three passes. Hashing
//!   several bodies at once is measured over full bodies besides, which are more than a cache holds.
//! - [`requests`]: bare requests to a sink, as many records and bytes in each as the relay's calls had on average; so
//!   these are measured after the relay. Where calls are small, so is copying lines to as many buffers as there are
//!   streams, which leaves the caches once they are thousands.
//!
//! The sum holds the hash that the relay was told to use: one body at a time (`sha2`), or several at once
//! (`tape-sha256`, which the relay does not use). Both figures are given in either case. And it holds the bare
//! requests, which bring the encoded bytes with them, instead of the bytes alone.
//!
//! A sum of floors leaves out everything that has no bare form: looking streams up, books, the SDK, metrics.

pub mod memory;
pub mod receive;
pub mod requests;

use std::time::Duration;

use crate::run::report::Report;
use crate::run::{Destination, Options};
use memory::Stages;
use requests::{Calls, Requests};

/// Floors of one workload, in nanoseconds of CPU an event.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Floors {
    /// The bare receiver.
    pub receive: f64,
    /// The bare receiver with a pause before each look.
    pub receive_paused: f64,
    /// What is done in memory.
    pub stages: Stages,
    /// Lines gathered by stream, where the relay's calls turned out to be small.
    pub gather: Option<f64>,
    /// Bare requests of the size of the relay's calls, bodies included; where it made calls, and once it did.
    pub requests: Option<Requests>,
    /// Which hash the sum holds.
    pub hash: Hash,
}

/// How the relay was told to hash the bodies of its calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hash {
    /// Several at once (`--body-hash grouped`, the relay's default).
    Grouped,
    /// Each by itself (`--body-hash standard`).
    Standard,
}

impl Hash {
    /// As the relay's arguments say.
    fn of(relay_arguments: &[String]) -> Self {
        match argument(relay_arguments, "--body-hash") {
            Some("standard") => Self::Standard,
            _ => Self::Grouped,
        }
    }
}

/// The value of a flag in the relay's arguments: the word behind it, or behind its `=`.
fn argument<'a>(arguments: &'a [String], flag: &str) -> Option<&'a str> {
    let at = arguments.iter().position(|word| word.split('=').next() == Some(flag))?;
    match arguments[at].split_once('=') {
        Some((_, value)) => Some(value),
        None => arguments.get(at + 1).map(String::as_str),
    }
}

impl Floors {
    /// What a relay with this destination cannot do without, each with its name: it receives one way or the other,
    /// and copies; only for Firehose must it encode, hash and send.
    pub fn needed(&self, destination: Destination) -> Vec<(&'static str, f64)> {
        let stages = &self.stages;
        let receive = if self.receive <= self.receive_paused {
            ("receive", self.receive)
        } else {
            ("receive with pauses", self.receive_paused)
        };
        let scan = match self.gather {
            Some(gather) => ("memchr and memcpy by stream", gather),
            None => ("memchr and memcpy", stages.scan),
        };
        let mut needed = vec![receive, scan];
        if destination == Destination::Firehose {
            let hash = match self.hash {
                Hash::Standard => ("SHA-256 of one body at a time", stages.sha256),
                Hash::Grouped => ("SHA-256 of several bodies at once, from memory", stages.sha256_grouped),
            };
            let send = match self.requests {
                Some(requests) => ("send as bare requests", requests.bare),
                None => ("send", stages.send),
            };
            needed.extend([("base64", stages.base64), hash, send]);
        }
        needed
    }

    /// The sum of what a relay with this destination cannot do without.
    pub fn sum(&self, destination: Destination) -> f64 {
        self.needed(destination).iter().map(|(_, cost)| cost).sum()
    }
}

impl Floors {
    /// Measures what could not be measured before the relay ran: requests like those that it made, and buffers like
    /// those that it filled for them.
    ///
    /// # Errors
    ///
    /// A sentence if the bare requests cannot be made.
    pub fn complete(&mut self, options: &Options, report: &Report) -> anyhow::Result<()> {
        if let Some(calls) = Calls::of(report) {
            self.requests = Some(requests::measure(options, calls)?);
            self.gather = memory::gather(&options.load, calls.bytes(), options.pin_relay)?;
        }
        Ok(())
    }
}

/// The pause of the paused receiver.
const PAUSE: Duration = Duration::from_micros(500);

/// Measures all floors of this workload that do not depend on what the relay does; the bare receiver has as many loops
/// as the relay has shards.
///
/// # Errors
///
/// A sentence if a receiver cannot be started or fed.
pub fn measure(options: &Options) -> anyhow::Result<Floors> {
    let shards = argument(&options.relay_arguments, "--shards").and_then(|shards| shards.parse().ok());
    let loops = shards.unwrap_or(1);
    Ok(Floors {
        receive: receive::measure(options, Duration::ZERO, loops)?,
        receive_paused: receive::measure(options, PAUSE, loops)?,
        stages: memory::measure(&options.load, options.pin_relay, options.pin_load)?,
        gather: None,
        requests: None,
        hash: Hash::of(&options.relay_arguments),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn floors(hash: Hash) -> Floors {
        let stages = Stages {
            scan: 1.0,
            base64: 10.0,
            sha256: 100.0,
            sha256_grouped: 50.0,
            sha256_grouped_cached: 40.0,
            send: 1_000.0,
        };
        Floors { receive: 9.0, receive_paused: 4.0, stages, gather: None, requests: None, hash }
    }

    #[test]
    fn a_sum_holds_what_the_destination_and_the_hash_need() {
        assert_eq!(floors(Hash::Grouped).sum(Destination::Null), 5.0);
        assert_eq!(floors(Hash::Standard).sum(Destination::Firehose), 1_115.0);
        assert_eq!(floors(Hash::Grouped).sum(Destination::Firehose), 1_065.0);
        assert_eq!(
            floors(Hash::Grouped).needed(Destination::Null),
            [("receive with pauses", 4.0), ("memchr and memcpy", 1.0)]
        );
        let requests = Some(Requests { bare: 2_000.0, hyper: 9_000.0 });
        let complete = Floors { gather: Some(3.0), requests, ..floors(Hash::Grouped) };
        assert_eq!(complete.sum(Destination::Firehose), 2_067.0);
    }

    #[test]
    fn arguments_of_the_relay_are_found_either_way() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(argument(&words("--memory 1GiB --shards 2"), "--shards"), Some("2"));
        assert_eq!(Hash::of(&words("--shards 2 --body-hash=standard")), Hash::Standard);
        assert_eq!(Hash::of(&words("--body-hash grouped")), Hash::Grouped);
        assert_eq!(Hash::of(&[]), Hash::Grouped);
    }
}
