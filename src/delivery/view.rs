//! What can be seen of delivery: its view, as the admin server and the tests have it, what it logs of its lanes, and
//! whether all lanes of a stream are parked, which shards look at. It decides nothing.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use tracing::{info, warn};

use super::lane::LaneState;
use super::{Delivery, LaneEntry};
use crate::metrics::{self, Ages};
use crate::rarely::Rarely;

/// Where many lanes have something to say at once, so many are named; `/status` has them all.
const LANES_LOGGED: u32 = 10;

/// What delivery looks like from outside.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Every lane.
    pub lanes: Vec<LaneView>,
    /// How old the oldest sealed event of each stream label is.
    pub ages: Ages,
}

/// One lane from outside.
#[derive(Clone, Debug)]
pub struct LaneView {
    /// Its delivery stream.
    pub delivery_stream: Arc<str>,
    /// Its state.
    pub state: LaneState,
    /// Calls in flight.
    pub in_flight: usize,
    /// Raw bytes a second that it sends at most, configured or learned from throttling; `None`: no limit.
    pub rate: Option<f64>,
    /// The streams mapped to it.
    pub streams: usize,
    /// What went wrong last.
    pub last_error: Option<LaneError>,
}

/// What went wrong with a call.
#[derive(Clone, Debug)]
pub struct LaneError {
    /// When the call ended.
    pub at: Instant,
    /// How it was counted.
    pub outcome: metrics::Outcome,
    /// A sentence.
    pub message: String,
}

/// What is said of lanes, all of them together.
#[derive(Debug)]
pub(super) struct Logged {
    failing: Rarely,
    parked: Rarely,
    accepted: Rarely,
}

impl Default for Logged {
    fn default() -> Self {
        let [failing, parked, accepted] = [const { Rarely::up_to(LANES_LOGGED) }; 3];
        Self { failing, parked, accepted }
    }
}

impl Delivery {
    pub(super) fn view(&self, now: Instant) -> View {
        let lane = |entry: &LaneEntry| LaneView {
            delivery_stream: Arc::clone(&entry.delivery_stream),
            state: entry.policy.state(),
            in_flight: entry.policy.in_flight(),
            rate: entry.policy.pace().rate(),
            streams: entry.streams.len(),
            last_error: entry.last_error.clone(),
        };
        let mut ages = Ages::default();
        for queue in self.streams.values() {
            if let Some(at) = queue.oldest() {
                ages.note(queue.stream.label.name(), now.saturating_duration_since(at));
            }
        }
        if let Some(spill) = &self.spill {
            spill.note_ages(&mut ages, &self.parts.metrics.spool, now);
        }
        // One that no stream is mapped to any more is as good as gone, with whatever was the matter with it.
        let is_used = |entry: &&LaneEntry| !entry.streams.is_empty() || entry.policy.in_flight() > 0;
        View { lanes: self.lanes.iter().flatten().filter(is_used).map(lane).collect(), ages }
    }

    /// Logs a change of a lane's state once, and a lane that keeps failing now and then; few of them where many have
    /// the same to say.
    pub(super) fn report(&mut self, index: usize, before: LaneState, after: LaneState, now: Instant) {
        if before == LaneState::Parked || after == LaneState::Parked {
            let streams = self.lane(index).streams.clone();
            streams.into_iter().for_each(|stream| self.note_parked(stream));
        }
        let Self { lanes, logged, limits, .. } = self;
        let entry = lanes[index].as_mut().expect("a lane lives while a stream is mapped to it");
        let name = &entry.delivery_stream;
        let reason = entry.last_error.as_ref().map_or("", |error| &*error.message);
        match (before, after) {
            (LaneState::Parked, LaneState::Active) => {
                if let Some(more) = logged.accepted.say(now) {
                    info!("lane {name}: accepted again, no longer parked{more}");
                }
            }
            (_, LaneState::Parked) if before != after => {
                if let Some(more) = logged.parked.say(now) {
                    let every = limits.park_probe;
                    warn!(
                        "lane {name}: parked, its events are kept up to their stream's memory cap and it is tried \
                         every {every:?}. {reason}{more}"
                    );
                }
            }
            (_, LaneState::BackingOff) if entry.failing.say(now).is_some() => {
                if let Some(more) = logged.failing.say(now) {
                    warn!("lane {name}: calls fail, its events are kept and tried again. {reason}{more}");
                }
            }
            _ => (),
        }
    }

    /// Lets shards know whether all lanes of a stream are parked.
    pub(super) fn note_parked(&mut self, stream: u64) {
        let Some(queue) = self.streams.get(&stream) else { return };
        let parked = |lane: usize| {
            self.lanes[lane].as_ref().is_some_and(|lane| lane.policy.state() == LaneState::Parked)
        };
        let all = queue.links.iter().all(|link| parked(link.lane));
        if queue.stream.parked.swap(all, Relaxed) != all {
            self.released = true;
        }
    }
}
