//! What a new configuration may change while the relay runs: each row of the table says so of its setting, and all
//! tables of streams may come, change and go.

use std::collections::BTreeMap;
use std::fmt;

use super::setting::Change;
use super::table::SETTINGS;
use super::{Config, StreamConfig};

/// So many streams are named that changed; of more, only the number is said.
const STREAMS_NAMED_MAX: usize = 8;

/// The tables of delivery streams, as they are called in what is said of them.
const DELIVERY_STREAMS: &str = "delivery_streams";

/// Which settings of two configurations differ.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Those that a reload changes, by their keys.
    pub made: Vec<&'static str>,
    /// The streams whose table came, went, or means something else now.
    pub streams: Vec<String>,
    /// Those that stay as they are until the relay is started again.
    pub kept: Vec<&'static str>,
}

/// See [`Config::reloaded`].
pub(super) fn merge(old: &Config, mut new: Config) -> (Config, Changes) {
    let mut changes = Changes { streams: changed_streams(&old.streams, &new.streams), ..Changes::default() };
    let mut compared = old.clone();
    for setting in SETTINGS {
        match setting.change {
            Change::Reload(take) if take(&mut compared, &new) => changes.made.push(setting.key),
            Change::Restart(take) if take(&mut new, old) => changes.kept.push(setting.key),
            Change::Reload(_) | Change::Restart(_) => (),
        }
    }
    if old.delivery_streams != new.delivery_streams {
        changes.made.push(DELIVERY_STREAMS);
    }
    (new, changes)
}

fn changed_streams(
    old: &BTreeMap<String, StreamConfig>,
    new: &BTreeMap<String, StreamConfig>,
) -> Vec<String> {
    let gone = old.keys().filter(|name| !new.contains_key(*name));
    let other = new.iter().filter(|(name, stream)| old.get(*name) != Some(*stream)).map(|(name, _)| name);
    let mut changed: Vec<String> = gone.chain(other).cloned().collect();
    changed.sort_unstable();
    changed
}

impl fmt::Display for Changes {
    /// One line a sentence: what is different now, and, of each setting that waits for a restart, that it does.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut made: Vec<String> = self.made.iter().map(|key| (*key).to_owned()).collect();
        match self.streams.len() {
            count if count > STREAMS_NAMED_MAX => made.push(format!("{count} streams")),
            _ => made.extend(self.streams.iter().map(|name| format!("[streams.{name}]"))),
        }
        match (made.is_empty(), self.kept.is_empty()) {
            (true, true) => f.write_str("nothing is different")?,
            (true, false) => f.write_str("nothing is different yet")?,
            (false, _) => write!(f, "changed: {}", made.join(", "))?,
        }
        self.kept.iter().try_for_each(|key| write!(f, "\n{key}: takes effect after a restart"))
    }
}
