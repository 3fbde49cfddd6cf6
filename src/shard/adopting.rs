//! How a shard takes over settings that were changed while it runs. It decides nothing but what of its own state
//! follows from them: streams have theirs at hand already, and delivery hears of its own.

use super::intake::Intake;
use super::leaving;
use super::rejects::Allowance;
use super::roster::Local;
use crate::linger::Wheel;

impl Intake {
    /// Goes by the settings of now.
    pub(super) fn adopt(&mut self) {
        let new = self.shared().config.load_full();
        let old = std::mem::replace(&mut self.config, new);
        if self.config.linger != old.linger {
            // An instant of the old wheel is none of the new one: the other shards seal at the new ones.
            self.seal_all();
            self.wheel = Wheel::new(self.shared().metrics.epoch, self.config.linger);
        }
        if self.config.rejected_samples != old.rejected_samples {
            self.allowance = Allowance::new(self.config.rejected_samples);
        }
        if self.config.max_connection_age != old.max_connection_age {
            self.age_anew();
        }
        self.turn_away();
    }

    /// Connections that are open get an age that counts from now: how old they are is not known.
    fn age_anew(&mut self) {
        if self.is_draining {
            return;
        }
        for key in self.keys() {
            let leaves_at = self.leaves_at();
            let peer = self.peers[key as usize].as_mut();
            if let Some(peer) = peer.filter(|peer| !peer.is_leaving) {
                peer.leaves_at = leaves_at;
            }
        }
        self.ages_at = leaving::next_look_at_ages(&self.config, self.now());
        self.look_at = self.look_at.into_iter().chain(self.ages_at).min();
    }

    /// Streams that are taken no more are sealed, so that what is held of them is delivered, and found no more.
    fn turn_away(&mut self) {
        let listed = |place: &u32| self.streams.get(*place).is_some_and(Local::is_listed);
        let places: Vec<u32> = self.streams.places().filter(listed).collect();
        let names =
            places.iter().map(|place| self.streams.get(*place).map_or("", |local| &*local.stream.name));
        let is_refused = self.shared().registry.refuses(names);
        for (place, _) in places.into_iter().zip(is_refused).filter(|(_, is_refused)| *is_refused) {
            self.seal(place);
            self.streams.unlist(place);
        }
    }
}
