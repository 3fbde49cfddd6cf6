//! The last part of a drain: no more calls, everything to disk, and the end of the spool.

use std::time::Instant;

use tokio::sync::oneshot;

use super::Spill;
use crate::delivery::Delivery;
use crate::delivery::queues::StreamQueue;
use crate::destination::Outcome;
use crate::metrics::{Drop, Place};
use crate::spool::keeper::Command;

/// The last part of a drain.
#[derive(Debug)]
pub(super) struct Leaving {
    cut_at: Instant,
    was_cut: bool,
    /// Something was refused: it stays in its queue, to be dropped.
    pub(super) is_full: bool,
    done: Option<oneshot::Sender<()>>,
}

/// What a call is told that is cut off at the end.
pub(in super::super) fn cut_off() -> Outcome {
    Outcome::Unknown { message: "The process ends, and the call was cut off.".to_owned() }
}

/// Whether no more calls are made.
pub(in super::super) fn is_leaving(spill: &Option<Spill>) -> bool {
    spill.as_ref().is_some_and(|spill| spill.leaving.is_some())
}

/// Counts what is on its way to disk as dropped: nobody waits for it any more.
pub(in super::super) fn abandon(spill: &mut Option<Spill>) {
    let Some(spill) = spill else { return };
    for spilled in spill.batches.values_mut().filter(|spilled| !spilled.items.is_empty()) {
        spilled.items.clear();
        spilled.stream.label.leave(spilled.events, Place::Spool);
        spilled.stream.label.dropped(spilled.events, Drop::DrainDeadline);
    }
}

impl Delivery {
    /// Makes no more calls and brings everything to disk; calls in flight are cut at `cut_at`.
    pub(in super::super) fn leave(&mut self, cut_at: Instant, done: oneshot::Sender<()>) {
        let Some(spill) = &mut self.spill else {
            let _ = done.send(());
            return;
        };
        spill.leaving = Some(Leaving { cut_at, was_cut: false, is_full: false, done: Some(done) });
    }

    pub(super) fn leave_further(&mut self, now: Instant) {
        let Some(spill) = &mut self.spill else { return };
        let Some(leaving) = &mut spill.leaving else { return };
        if now >= leaving.cut_at && !std::mem::replace(&mut leaving.was_cut, true) {
            self.cut.send_replace(true);
        }
        let is_full = leaving.is_full;
        if !is_full {
            self.spill_everything();
        }
        let Some(spill) = &mut self.spill else { return };
        let is_settled = self.in_flight == 0
            && spill.writing_bytes == 0
            && (is_full || self.streams.values().all(StreamQueue::is_empty));
        if is_settled && let Some(done) = spill.leaving.as_mut().and_then(|leaving| leaving.done.take()) {
            spill.command(Command::Stop(done));
        }
    }

    fn spill_everything(&mut self) {
        let streams: Vec<u64> = self.streams.keys().copied().collect();
        for id in streams {
            self.spill_stream(id, u64::MAX);
            let (Some(queue), Some(spill)) = (self.streams.get_mut(&id), &mut self.spill) else { continue };
            while let Some(item) = queue.take_recalled() {
                if let Some(item) = spill.let_go(item) {
                    spill.write(vec![item], self.encoding);
                }
            }
        }
    }
}
