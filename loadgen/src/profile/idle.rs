//! What connections cost that say nothing: resident memory of a relay with many of them over the same relay with
//! none. Nothing is sent, so there is nothing to lose and no CPU an event.

use std::time::{Duration, Instant};

use anyhow::Context;

use super::figures::{Figures, Key};
use crate::run::relay::{Relay, Usage};
use crate::run::samples::Sample;
use crate::run::{Destination, Options, command};
use crate::send::{Target, connect_all, raise_file_limit};

/// How long memory is watched with none and with all connections; the most seen counts.
const WATCH: Duration = Duration::from_secs(2);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What was seen.
#[derive(Debug)]
pub struct Idle {
    /// Memory only.
    pub figures: Figures,
    /// Memory over time; the connections are opened in the middle.
    pub samples: Vec<Sample>,
    /// Whether the relay accepted them all and ended well.
    pub ok: bool,
}

/// Starts a relay, watches it, opens the connections, watches it again.
///
/// # Errors
///
/// A sentence if the relay or a connection fails.
pub fn measure(options: &Options) -> anyhow::Result<Idle> {
    anyhow::ensure!(
        options.destination != Destination::Firehose,
        "idle connections need no sink: use --destination null"
    );
    let connections = options.load.connections;
    raise_file_limit(connections)?;
    let directory = tempfile::tempdir().context("no temporary directory")?;
    let command = command(options, None, directory.path())?;
    let mut relay = Relay::start(command, options.patience, options.pin_relay)?;
    let mut watch = Watch { start: Instant::now(), samples: Vec::new() };
    let none = watch.peak(&relay)?;
    let sockets = connect_all(&Target::Tcp(relay.ready().listen), connections)?;
    let accepted = accepts_all(&mut relay, connections as u64, options.patience)?;
    let all = watch.peak(&relay)?;
    let usage = relay.usage()?;
    drop(sockets);
    let ended = relay.stop(options.patience)?.is_some_and(|status| status.success());
    let over = all.saturating_sub(none) as f64;
    let figures = Figures::from([
        (Key::ResidentStartBytes, none as f64),
        (Key::ResidentEndBytes, all as f64),
        (Key::ResidentPeakBytes, usage.resident_peak_bytes as f64),
        (Key::ResidentOverIdleBytes, over),
        (Key::ResidentBytesPerConnection, over / connections as f64),
    ]);
    Ok(Idle { figures, samples: watch.samples, ok: accepted && ended })
}

/// Waits until the relay counts all connections as open; `false` if it did not in time.
fn accepts_all(relay: &mut Relay, connections: u64, within: Duration) -> anyhow::Result<bool> {
    let deadline = Instant::now() + within;
    while relay.metrics()?.sum("standpipe_connections") < connections {
        if Instant::now() >= deadline {
            return Ok(false);
        }
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(true)
}

struct Watch {
    start: Instant,
    samples: Vec<Sample>,
}

impl Watch {
    /// The most resident memory seen for a while.
    fn peak(&mut self, relay: &Relay) -> anyhow::Result<u64> {
        let (end, mut peak) = (Instant::now() + WATCH, 0);
        while Instant::now() < end {
            let Usage { resident_bytes, .. } = relay.usage()?;
            let seconds = self.start.elapsed().as_secs_f64();
            self.samples.push(Sample { seconds, resident_bytes, sent: 0, accepted: 0 });
            peak = peak.max(resident_bytes);
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(peak)
    }
}
