//! Floors: what the least work costs on this machine, now, on the relay's CPU, so that the relay's cost can stand
//! beside it. None of it is the relay's code, and none of it keeps anything.
//!
//! - [`receive`]: a child process that reads and discards, fed by the same sender with the same settings. It is
//!   one thread with level-triggered epoll and one read of up to 64 KiB a ready connection; measured once as it is
//!   and once with a pause of 0.5 ms before each look, which gathers what single lines trickle in. It does not
//!   use io_uring: a relay that coalesces better than it can be below this floor.
//! - [`memory`]: stages in memory over the same lines, warm in the cache: the least of three passes.
//!
//! A sum of floors leaves out everything that has no bare form: looking streams up, books, the SDK, metrics.

pub mod memory;
pub mod receive;

use std::time::Duration;

use crate::run::{Destination, Options};

/// Floors of one workload, in nanoseconds of CPU an event.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Floors {
    /// The bare receiver.
    pub receive: f64,
    /// The bare receiver with a pause before each look.
    pub receive_paused: f64,
    /// Finding the line feeds and copying the payloads.
    pub scan: f64,
    /// Encoding as base64 in bulk.
    pub base64: f64,
    /// SHA-256 over the encoded bytes.
    pub sha256: f64,
    /// Writing the encoded bytes to a connection that discards them.
    pub send: f64,
}

impl Floors {
    /// What a relay with this destination cannot do without: it receives one way or the other, and copies; only
    /// for Firehose must it encode, hash and send.
    pub fn sum(&self, destination: Destination) -> f64 {
        let received = self.receive.min(self.receive_paused) + self.scan;
        match destination {
            Destination::Firehose => received + self.base64 + self.sha256 + self.send,
            Destination::Directory | Destination::Null => received,
        }
    }
}

/// The pause of the paused receiver.
const PAUSE: Duration = Duration::from_micros(500);

/// Measures all floors for this workload.
///
/// # Errors
///
/// A sentence if a receiver cannot be started or fed.
pub fn measure(options: &Options) -> anyhow::Result<Floors> {
    let receive = receive::measure(options, Duration::ZERO)?;
    let receive_paused = receive::measure(options, PAUSE)?;
    let stages = memory::measure(&options.load, options.pin_relay, options.pin_load)?;
    Ok(Floors {
        receive,
        receive_paused,
        scan: stages.scan,
        base64: stages.base64,
        sha256: stages.sha256,
        send: stages.send,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_holds_what_the_destination_needs() {
        let floors = Floors {
            receive: 9.0,
            receive_paused: 4.0,
            scan: 1.0,
            base64: 10.0,
            sha256: 100.0,
            send: 1_000.0,
        };
        assert_eq!(floors.sum(Destination::Null), 5.0);
        assert_eq!(floors.sum(Destination::Firehose), 1_115.0);
    }
}
