//! How delivery takes over settings that were changed while it runs. What a stream is mapped to may change: what is
//! queued then leaves by the new lanes, and a call in flight ends on the lane that it was made on. Whatever else
//! delivery is made of from its settings is made anew here as well.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Instant;

use super::lane::LaneLimits;
use super::queues::LaneLink;
use super::{Delivery, Timer};
use crate::config::Config;

impl Delivery {
    /// Goes by these settings from now on.
    pub(super) fn reload(&mut self, config: Arc<Config>, now: Instant) {
        self.parts.config = config;
        self.limit_anew(now);
        self.pace_anew();
        self.map_anew(now);
        if let Some(spill) = &mut self.spill {
            spill.reload(&self.parts.config);
        }
        if let Some(letters) = &self.letters {
            letters.reload(&self.parts.config);
        }
        if self.streams.values().any(|queue| queue.stream.settings.load().max_age.is_some()) {
            self.watch_age(now);
        }
    }

    /// Nobody waits longer than the new limits have it, and lanes that may make more calls are looked at.
    fn limit_anew(&mut self, now: Instant) {
        let limits = LaneLimits::of(&self.parts.config);
        if std::mem::replace(&mut self.limits, limits) == limits {
            return;
        }
        let limits = self.limits_now();
        for index in 0..self.lanes.len() {
            let Some(entry) = self.lanes[index].as_mut() else { continue };
            if let Some(at) = entry.policy.shorten(now, &limits, self.jitter.f64()) {
                entry.has_timer = true;
                self.timers.push(Reverse((at, Timer::Lane(index))));
            }
            self.wake(index);
        }
    }

    /// Every lane keeps to the ceilings that are configured for it now.
    fn pace_anew(&mut self) {
        for index in 0..self.lanes.len() {
            let Some(entry) = &self.lanes[index] else { continue };
            let ceilings = self.ceilings(&entry.delivery_stream);
            if self.lane(index).policy.set_ceilings(ceilings) {
                self.wake(index);
            }
        }
    }

    /// Has every stream wait for the lanes that it is mapped to now. Lanes that a stream has come to are tried at once,
    /// whatever was wrong with them: somebody may have mended it.
    fn map_anew(&mut self, now: Instant) {
        let mut moved = Vec::new();
        let mut reached = Vec::new();
        for id in self.stream_ids() {
            if let Some(lanes) = self.link_anew(id) {
                moved.push(id);
                reached.extend(lanes);
            }
        }
        if moved.is_empty() {
            return;
        }
        self.line_up_anew();
        for lane in reached {
            self.lane(lane).policy.cut_wait_short();
            self.wake(lane);
        }
        for id in moved {
            self.note_parked(id);
            self.offer(id, now);
        }
        self.close_unused_lanes();
    }

    /// Links a stream to its lanes where these are others than before: gives those that are new to it.
    fn link_anew(&mut self, id: u64) -> Option<Vec<usize>> {
        let queue = self.streams.get(&id)?;
        let settings = queue.stream.settings.load_full();
        let names = &settings.delivery_streams;
        let leads_to = |link: &LaneLink| {
            self.lanes[link.lane].as_ref().is_some_and(|entry| names.contains(&entry.delivery_stream))
        };
        if queue.links.len() == names.len() && queue.links.iter().all(leads_to) {
            return None;
        }
        let lanes: Vec<usize> = names.iter().map(|name| self.open_lane(name)).collect();
        let queue = self.streams.get_mut(&id)?;
        let mut old = std::mem::take(&mut queue.links);
        let mut reached = Vec::new();
        for lane in lanes {
            let link = match old.iter().position(|link| link.lane == lane) {
                Some(kept) => old.swap_remove(kept),
                None => {
                    reached.push(lane);
                    LaneLink::new(lane)
                }
            };
            // From here on all of them get the same, or those that are new would get everything for long.
            queue.links.push(LaneLink { sent: 0.0, ..link });
        }
        Some(reached)
    }

    /// Has lanes know the streams that are mapped to them, and no other stand in their lines.
    fn line_up_anew(&mut self) {
        for entry in self.lanes.iter_mut().flatten() {
            entry.streams.clear();
        }
        for id in self.stream_ids() {
            for link in &self.streams[&id].links {
                self.lanes[link.lane].as_mut().expect("a link keeps its lane").streams.push(id);
            }
        }
        let streams = &self.streams;
        for (index, entry) in self.lanes.iter_mut().enumerate() {
            let Some(entry) = entry else { continue };
            entry.line.retain(|Reverse((_, id))| {
                streams.get(id).is_some_and(|queue| queue.links.iter().any(|link| link.lane == index))
            });
        }
    }
}
