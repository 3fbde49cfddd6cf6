//! What relays that are dead have left in a spool: the folders that stand there when the next relay is started. It
//! makes its own later, when it has something to write, so a folder that stands there alone may be a dead one's.

use std::ffi::OsString;
use std::path::Path;

use anyhow::Context;

/// What was damaged stays put aside here for people to look at.
const QUARANTINE: &str = "quarantine";

/// See the module.
#[derive(Debug, Default)]
pub struct Leftovers(Vec<OsString>);

impl Leftovers {
    /// What stands in a spool now, before a relay is started there. A name with a dot in front is no relay's yet:
    /// whoever was to have that folder died while it was made, and it is empty.
    ///
    /// # Errors
    ///
    /// A sentence if the spool cannot be read.
    pub fn of(spool: &Path) -> anyhow::Result<Self> {
        let entries =
            std::fs::read_dir(spool).with_context(|| format!("{} cannot be read", spool.display()))?;
        let names = entries.flatten().map(|entry| entry.file_name());
        Ok(Self(
            names.filter(|name| name != QUARANTINE && !name.as_encoded_bytes().starts_with(b".")).collect(),
        ))
    }

    /// How many of them are still there: nobody has taken them over, or not all of them is delivered.
    pub fn left(&self, spool: &Path) -> usize {
        self.0.iter().filter(|name| spool.join(name).exists()).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_only_folder_of_a_spool_is_waited_for_where_it_is_a_dead_relay_s() {
        let spool = tempfile::tempdir().unwrap();
        let make = |name: &str| std::fs::create_dir(spool.path().join(name)).unwrap();
        ["dead", QUARANTINE].into_iter().for_each(make);
        let leftovers = Leftovers::of(spool.path()).unwrap();
        assert_eq!(leftovers.left(spool.path()), 1);
        std::fs::remove_dir(spool.path().join("dead")).unwrap();
        make("own");
        assert_eq!(leftovers.left(spool.path()), 0);
    }

    #[test]
    fn a_folder_whose_owner_died_while_it_was_made_is_not_waited_for() {
        let spool = tempfile::tempdir().unwrap();
        std::fs::create_dir(spool.path().join(".new-1")).unwrap();
        assert_eq!(Leftovers::of(spool.path()).unwrap().left(spool.path()), 0);
    }
}
