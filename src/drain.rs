//! The way out: stop accepting, read every connection out, seal, deliver, report. It is bounded by the drain
//! deadline; a second signal cuts it short. It decides the exit code's meaning, not the number.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};
use tracing::{info, warn};

use crate::delivery::Command;
use crate::metrics::{Drop, Totals};
use crate::shard::{Phase, Shared};

/// Reading out may take this share of the deadline; the rest is for delivering.
const READING_SHARE: f64 = 0.6;
/// Where there is a spool, delivering ends after this share of the deadline: the rest is for bringing what is left
/// to disk.
const DELIVERING_SHARE: f64 = 0.8;
/// Calls in flight are cut after this share, to be spooled as well.
const CALLING_SHARE: f64 = 0.9;

/// Spooling has this time at least, even where the deadline comes earlier.
const SPOOLING_MIN: Duration = Duration::from_secs(1);

/// What became of the events that were here when the drain began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// All were delivered, or are on disk.
    Clean,
    /// So many events had to be dropped; they are counted.
    Left(u64),
}

/// Drains shards and delivery, within the configured deadline or until `hurry` resolves.
pub async fn drain(
    shared: &Arc<Shared>,
    delivery: &mpsc::Sender<Command>,
    hurry: impl Future<Output = ()>,
) -> Drained {
    let config = shared.config.load_full();
    let start = Instant::now();
    let deadline = start + config.drain_deadline;
    let share = |share: f64| start + config.drain_deadline.mul_f64(share);
    let deliver_until = if config.spool.is_some() { share(DELIVERING_SHARE) } else { deadline };
    let orderly = async {
        read_out(shared, share(READING_SHARE)).await;
        deliver(delivery, deliver_until).await
    };
    let mut cut_at = share(CALLING_SHARE);
    let done = tokio::select! {
        done = orderly => done,
        () = hurry => {
            warn!("a second signal: what is not delivered yet is given up, or goes to the spool");
            cut_at = Instant::now();
            false
        }
    };
    if !done {
        close(shared).await;
    }
    if config.spool.is_some() {
        spool(delivery, cut_at, deadline.max(Instant::now() + SPOOLING_MIN)).await;
    }
    // What is parked for good was not waited for, but it is counted like the rest.
    abandon(delivery).await;
    shared.orders.advance(Phase::Stop, &shared.returns);
    let totals = shared.metrics.totals();
    report(&totals, start.elapsed());
    let left: u64 = totals.iter().map(|totals| totals.dropped[Drop::DrainDeadline as usize]).sum();
    if left == 0 { Drained::Clean } else { Drained::Left(left) }
}

/// Reads every connection to its end, or to where it rests.
async fn read_out(shared: &Shared, until: Instant) {
    shared.orders.advance(Phase::Drain, &shared.returns);
    if timeout_at(until, shared.orders.all_quiet(shared.returns.len())).await.is_err() {
        warn!("some connections still sent, or were blocked, when their time was over; they are closed");
        close(shared).await;
    }
}

/// Closes what is still open, without waiting for it.
async fn close(shared: &Shared) {
    shared.orders.advance(Phase::Close, &shared.returns);
    let soon = Instant::now() + Duration::from_secs(1);
    // A shard that does not answer within a second is found out by the identity in the report.
    let _ = timeout_at(soon, shared.orders.all_quiet(shared.returns.len())).await;
}

/// Whether everything that can be delivered was, before the deadline.
async fn deliver(delivery: &mpsc::Sender<Command>, deadline: Instant) -> bool {
    let (done, is_done) = oneshot::channel();
    if delivery.send(Command::Drain(done)).await.is_err() {
        return false;
    }
    timeout_at(deadline, is_done).await.is_ok_and(|answer| answer.is_ok())
}

/// Brings what is left to disk.
async fn spool(delivery: &mpsc::Sender<Command>, cut_at: Instant, deadline: Instant) {
    let (done, is_done) = oneshot::channel();
    if delivery.send(Command::Spool(cut_at.into_std(), done)).await.is_err() {
        return;
    }
    if !timeout_at(deadline, is_done).await.is_ok_and(|answer| answer.is_ok()) {
        warn!("the spool was not ready when the drain ended: what it has not synced may be lost");
    }
}

/// Gives up what is left, counted.
async fn abandon(delivery: &mpsc::Sender<Command>) {
    let (done, is_done) = oneshot::channel();
    if delivery.send(Command::Abandon(done)).await.is_ok() {
        let _ = is_done.await;
    }
}

/// A line for each stream, with the identity, and a last one for all of them.
fn report(all: &[Totals], took: Duration) {
    let sum = |of: fn(&Totals) -> u64| all.iter().map(of).sum::<u64>();
    let (delivered, dropped, held) = (sum(|of| of.delivered), sum(Totals::dropped_in_all), sum(Totals::held));
    for totals in all {
        let (dropped, held) = (totals.dropped_in_all(), totals.held());
        let holds = totals.received + totals.recovered == totals.delivered + dropped + held;
        let verdict = if holds { "" } else { "; THE SUM DOES NOT HOLD, which is a bug: please report it" };
        info!(
            "stream {}: received {} + recovered {} = delivered {} + dropped {dropped} + held {held}{verdict}",
            totals.stream, totals.received, totals.recovered, totals.delivered
        );
    }
    info!(
        "drained in {took:.1?}: {delivered} events delivered since the start, {dropped} dropped, {held} left on disk"
    );
}
