//! What the outcome of a call means: what is settled, what is queued again, and what its lane is told. Here
//! stands the promise that nothing is lost silently and nothing repeated without being counted.

use std::sync::Arc;
use std::time::Instant;

use super::lane::Verdict;
use super::pace::Answered;
use super::piece::Piece;
use super::{Delivery, LaneError};
use crate::batch::{Fate, Settled, Ticket};
use crate::destination::{Encoding, Outcome, RecordOutcome, Refusal};
use crate::encode::BILLING_STEP_BYTES;
use crate::failpoint::{self, Flaw};
use crate::metrics::{self, Drop, LaneCounters, Place};

impl Delivery {
    /// What an outcome means for the records and for the lane.
    pub(super) fn judge(&mut self, lane: usize, mut piece: Piece, outcome: Outcome, now: Instant) -> Verdict {
        let counters = Arc::clone(&self.lane(lane).counters);
        let records = piece.records().len() as u64;
        if failpoint::has(Flaw::SettlesEarly) {
            return Verdict::Progress;
        }
        match outcome {
            Outcome::Accepted => {
                counters.call(metrics::Outcome::Ok);
                counters.records(records, metrics::Outcome::Ok);
                self.deliver(&piece, |_| true, now);
                Verdict::Progress
            }
            Outcome::Lost { events } => {
                counters.call(metrics::Outcome::Ok);
                counters.records(records, metrics::Outcome::Ok);
                self.deliver_with_loss(&piece, events, now);
                Verdict::Progress
            }
            Outcome::Partial(answers) => self.judge_partial(lane, &counters, piece, &answers, now),
            Outcome::Unknown { message } => {
                counters.call(metrics::Outcome::Unknown);
                counters.records(records, metrics::Outcome::Unknown);
                self.blame(lane, metrics::Outcome::Unknown, message, now);
                piece.is_unknown = true;
                self.requeue(piece, now);
                Verdict::Unreached
            }
            Outcome::Refused { kind, message } => {
                let outcome = counted_as(kind);
                counters.call(outcome);
                counters.records(records, outcome);
                self.blame(lane, outcome, message, now);
                self.judge_refusal(lane, piece, kind, now)
            }
        }
    }

    /// Settles the records that were accepted and queues exactly the others again.
    fn judge_partial(
        &mut self,
        lane: usize,
        counters: &LaneCounters,
        piece: Piece,
        answers: &[RecordOutcome],
        now: Instant,
    ) -> Verdict {
        let count = |wanted| answers.iter().filter(|answer| **answer == wanted).count() as u64;
        let (accepted, throttled) = (count(RecordOutcome::Accepted), count(RecordOutcome::Throttled));
        counters.records(accepted, metrics::Outcome::Ok);
        counters.records(throttled, metrics::Outcome::Throttled);
        counters.records(count(RecordOutcome::Internal), metrics::Outcome::Internal);
        let (outcome, why) = match throttled {
            0 => (metrics::Outcome::Internal, "an error inside the service"),
            _ => (metrics::Outcome::Throttled, "over the delivery stream's quota"),
        };
        counters.call(outcome);
        let message = format!(
            "{} of {} records of a call were not accepted: {why}.",
            answers.len() as u64 - accepted,
            answers.len()
        );
        self.blame(lane, outcome, message, now);
        let is_accepted = |index: usize| answers.get(index) == Some(&RecordOutcome::Accepted);
        if accepted == 0 {
            self.requeue(piece, now);
            return Verdict::Failed;
        }
        self.deliver(&piece, is_accepted, now);
        if accepted == piece.records().len() as u64 {
            return Verdict::Progress;
        }
        let resends = |index| !is_accepted(index) || failpoint::has(Flaw::ResendsWhole);
        self.requeue(piece.only(&self.parts.memory, resends), now);
        Verdict::Progress
    }

    /// Keeps what went wrong with a call, for whoever looks.
    fn blame(&mut self, lane: usize, outcome: metrics::Outcome, message: String, now: Instant) {
        self.lane(lane).last_error = Some(LaneError { at: now, outcome, message });
    }

    fn judge_refusal(&mut self, lane: usize, mut piece: Piece, kind: Refusal, now: Instant) -> Verdict {
        match kind {
            Refusal::Throttled | Refusal::Credentials | Refusal::Key => {
                self.requeue(piece, now);
                Verdict::Failed
            }
            Refusal::Transient => {
                self.requeue(piece, now);
                Verdict::Unreached
            }
            Refusal::Permanent => {
                self.requeue(piece, now);
                Verdict::Parked
            }
            Refusal::Content => {
                let since = *piece.refused_since.get_or_insert(now);
                if piece.records().len() > 1 {
                    let [first, second] = piece.halves(&self.parts.memory);
                    self.requeue(second, now);
                    self.requeue(first, now);
                    return Verdict::Neutral;
                }
                if self.lane(lane).policy.accepted_at().is_some_and(|at| at > since) {
                    let error = self.lane(lane).last_error.as_ref().map(|error| error.message.clone());
                    piece.is_retry = true;
                    piece.stream().label.enter(piece.events(), Place::Retry);
                    self.bury(piece, Drop::Rejected, error, now);
                    return Verdict::Neutral;
                }
                // Nothing else was accepted since: the lane may be to blame and not this record, so it is kept.
                self.requeue(piece, now);
                Verdict::Parked
            }
        }
    }

    fn requeue(&mut self, mut piece: Piece, now: Instant) {
        piece.is_retry = true;
        let stream = Arc::clone(piece.stream());
        stream.label.enter(piece.events(), Place::Retry);
        let id = self.open_queue(&stream, now);
        self.streams.get_mut(&id).expect("it was opened").push_retry(piece);
    }

    /// Counts and settles accepted records.
    pub(super) fn deliver(&mut self, piece: &Piece, chosen: impl Fn(usize) -> bool, now: Instant) {
        let (mut events, mut bytes, mut billed) = (0, 0, 0);
        for (_, record) in piece.records().iter().enumerate().filter(|(index, _)| chosen(*index)) {
            events += u64::from(record.events);
            bytes += u64::from(record.bytes);
            if self.encoding == Encoding::Records {
                billed += u64::from(record.bytes).next_multiple_of(BILLING_STEP_BYTES);
            }
        }
        piece.stream().label.delivered(events, bytes, billed);
        self.conclude(piece, now, |told| piece.settle(Fate::Delivered, chosen, told));
    }

    /// Counts and settles a piece of which so many events at most were lost behind the destination. Whose they
    /// were is not known, so every batch in it is told of as many.
    fn deliver_with_loss(&mut self, piece: &Piece, lost: u64, now: Instant) {
        let (events, bytes) = (piece.events(), piece.bytes() as u64);
        let lost = lost.min(events);
        let label = &piece.stream().label;
        label.dropped(lost, Drop::LostDownstream);
        label.delivered(events - lost, bytes / events.max(1) * (events - lost), 0);
        self.conclude(piece, now, |told| piece.settle_with_loss(lost, told));
    }

    /// Counts and settles a piece that is lost.
    pub(super) fn drop_piece(&mut self, piece: &Piece, reason: Drop, now: Instant) {
        piece.stream().label.dropped(piece.events(), reason);
        self.conclude(piece, now, |told| piece.settle(Fate::Lost, |_| true, told));
    }

    /// Settles events of a piece, and tells of every batch that this ends: how long its delivery took counts for
    /// those of its events that were not lost.
    fn conclude(
        &mut self,
        piece: &Piece,
        now: Instant,
        settle: impl FnOnce(&mut dyn FnMut(&Ticket, Settled)),
    ) {
        let latency = &self.parts.metrics.delivery_latency;
        let mut ended = Vec::new();
        settle(&mut |ticket, settled| {
            latency
                .observe_weighted(now.saturating_duration_since(ticket.oldest), ticket.events - settled.lost);
            ended.push(settled);
        });
        self.settled(piece, ended);
        self.released = true;
    }
}

/// What an outcome tells the pace of its lane.
pub(super) fn answered(piece: &Piece, outcome: &Outcome) -> Answered {
    let sent = piece.bytes() as u64;
    let records = piece.records().len() as u64;
    let none = Answered { sent, ..Answered::default() };
    match outcome {
        Outcome::Accepted | Outcome::Lost { .. } => Answered { accepted: sent, records, ..none },
        Outcome::Refused { kind: Refusal::Throttled, .. } => Answered { throttled: sent, records, ..none },
        Outcome::Refused { .. } | Outcome::Unknown { .. } => none,
        Outcome::Partial(answers) => {
            piece.records().iter().zip(answers).fold(none, |sum, (record, answer)| {
                let bytes = u64::from(record.bytes);
                match answer {
                    RecordOutcome::Accepted => {
                        Answered { accepted: sum.accepted + bytes, records: sum.records + 1, ..sum }
                    }
                    RecordOutcome::Throttled => {
                        Answered { throttled: sum.throttled + bytes, records: sum.records + 1, ..sum }
                    }
                    RecordOutcome::Internal => sum,
                }
            })
        }
    }
}

/// How a refusal is counted.
fn counted_as(kind: Refusal) -> metrics::Outcome {
    match kind {
        Refusal::Throttled => metrics::Outcome::Throttled,
        Refusal::Transient => metrics::Outcome::Internal,
        Refusal::Credentials | Refusal::Key | Refusal::Permanent | Refusal::Content => {
            metrics::Outcome::Rejected
        }
    }
}
