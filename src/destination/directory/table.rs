//! Which file each stream is written to: lengths, sequence numbers, rotation, and which of the open files has been
//! idle longest. Pure: it holds the handles it is given (`F`) and does nothing with them.
//!
//! Invariants:
//! - `length` is the end of the last call that was written whole; what lies beyond is to be cut off.
//! - At most one file of a stream is written to. A file that is retired or forgotten never is again.
//! - No more than [`STREAMS_MAX`] streams are remembered, beside those whose file is open.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use time::OffsetDateTime;

use super::disk::Identity;
use super::names::{self, Hour, with_parents};

/// A file is left for a new one before it grows beyond this. Only a single larger call makes a larger file.
pub(super) const FILE_BYTES_MAX: u64 = 64 << 20;

/// Streams whose place is remembered while their file is closed; about 250 bytes each.
pub(super) const STREAMS_MAX: usize = 32_768;

/// The file that a stream is written to. It may be closed for a while, to be opened again.
#[derive(Debug)]
pub(super) struct Place<F> {
    pub(super) folder: String,
    pub(super) name: String,
    pub(super) identity: Identity,
    /// In bytes.
    pub(super) length: u64,
    pub(super) handle: Option<F>,
    hour: Hour,
}

impl<F> Place<F> {
    /// Whether `bytes` more at time `at` belong into this file.
    fn takes(&self, bytes: u64, at: OffsetDateTime) -> bool {
        self.hour == Hour::of(at) && (self.length == 0 || self.length + bytes <= FILE_BYTES_MAX)
    }
}

#[derive(Debug)]
struct Stream<F> {
    /// The number of the file made last.
    sequence: u64,
    /// The hour whose folder is known to be durable.
    durable: Option<Hour>,
    place: Option<Place<F>>,
    /// When it was last written to, as a count of uses; no two streams have the same.
    used: u64,
}

/// The streams and their files.
#[derive(Debug)]
pub(super) struct Table<F> {
    streams: HashMap<Arc<str>, Stream<F>>,
    /// The streams whose file is open, by when it was last used.
    open: BTreeMap<u64, Arc<str>>,
    uses: u64,
}

/// What must be made for the next file of a stream.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NewFile {
    pub(super) folder: String,
    pub(super) name: String,
    /// Whether the folders above `folder` are to be made durable too, and not only the file's name in it.
    pub(super) whole_path: bool,
    at: OffsetDateTime,
}

impl NewFile {
    /// The folders to be synced before the file is certain to be found again.
    pub(super) fn folders_to_sync(&self) -> impl Iterator<Item = &str> {
        with_parents(&self.folder).take(if self.whole_path { usize::MAX } else { 1 })
    }
}

impl<F> Table<F> {
    pub(super) fn new() -> Self {
        Self { streams: HashMap::new(), open: BTreeMap::new(), uses: 0 }
    }

    /// The number of open files.
    pub(super) fn open_files(&self) -> usize {
        self.open.len()
    }

    /// The file that `bytes` more of `stream` belong into at time `at`, if there is one, marked as used now. A file
    /// that is full or of another hour is retired: it comes out as `Err` if it is open.
    pub(super) fn place(
        &mut self,
        stream: &Arc<str>,
        bytes: u64,
        at: OffsetDateTime,
    ) -> Result<Option<&mut Place<F>>, F> {
        if self
            .streams
            .get(stream)
            .and_then(|s| s.place.as_ref())
            .is_some_and(|place| !place.takes(bytes, at))
            && let Some(handle) = self.forget(stream)
        {
            return Err(handle);
        }
        self.touch(stream);
        Ok(self.current(stream))
    }

    /// The file of `stream`.
    pub(super) fn current(&mut self, stream: &str) -> Option<&mut Place<F>> {
        self.streams.get_mut(stream).and_then(|stream| stream.place.as_mut())
    }

    /// The name of the next file of `stream`. Each call counts one further.
    pub(super) fn next_file(&mut self, stream: &Arc<str>, instance: &str, at: OffsetDateTime) -> NewFile {
        self.make_room_for_stream();
        self.uses += 1;
        let unknown = Stream { sequence: 0, durable: None, place: None, used: self.uses };
        let entry = self.streams.entry(Arc::clone(stream)).or_insert(unknown);
        entry.sequence += 1;
        NewFile {
            folder: names::folder(stream, at),
            name: names::file(stream, at, instance, entry.sequence),
            whole_path: entry.durable != Some(Hour::of(at)),
            at,
        }
    }

    /// Makes `new`, just created, the file of `stream`. Its folders count as durable: who creates it must sync them
    /// before anything in it is accepted, or else call [`Table::forget_below`].
    pub(super) fn created(&mut self, stream: &Arc<str>, new: NewFile, identity: Identity, handle: F) {
        let hour = Hour::of(new.at);
        let entry = self.streams.get_mut(stream).expect("next_file made the entry");
        entry.durable = Some(hour);
        let (folder, name) = (new.folder, new.name);
        entry.place = Some(Place { folder, name, identity, length: 0, handle: Some(handle), hour });
        self.touch(stream);
    }

    /// Gives the closed file of `stream` a handle again.
    pub(super) fn reopened(&mut self, stream: &Arc<str>, handle: F) {
        if let Some(place) = self.current(stream) {
            place.handle = Some(handle);
        }
        self.touch(stream);
    }

    /// Never writes to the current file of `stream` again; gives its handle back if it is open.
    pub(super) fn forget(&mut self, stream: &str) -> Option<F> {
        let entry = self.streams.get_mut(stream)?;
        self.open.remove(&entry.used);
        entry.place.take().and_then(|place| place.handle)
    }

    /// Like [`Table::forget`], and does not trust that the folders of the stream are still there.
    pub(super) fn forget_path(&mut self, stream: &str) -> Option<F> {
        if let Some(entry) = self.streams.get_mut(stream) {
            entry.durable = None;
        }
        self.forget(stream)
    }

    /// Forgets every file at or below `folder`, and that its folders are durable.
    pub(super) fn forget_below(&mut self, folder: &str) -> Vec<F> {
        let below = |place: &Place<F>| with_parents(&place.folder).any(|parent| parent == folder);
        let hit = |(name, stream): (&Arc<str>, &Stream<F>)| {
            stream.place.as_ref().is_some_and(below).then(|| Arc::clone(name))
        };
        let streams: Vec<Arc<str>> = self.streams.iter().filter_map(hit).collect();
        streams.iter().filter_map(|stream| self.forget_path(stream)).collect()
    }

    /// Takes the handle of the file that was idle longest among those that `may_close` allows; the file stays the
    /// stream's, to be opened again.
    pub(super) fn close_idlest(&mut self, may_close: impl Fn(&F) -> bool) -> Option<F> {
        let (used, stream) = self.open.iter().find_map(|(used, name)| {
            let handle = self.streams.get(name)?.place.as_ref()?.handle.as_ref()?;
            may_close(handle).then(|| (*used, Arc::clone(name)))
        })?;
        self.open.remove(&used);
        self.current(&stream).and_then(|place| place.handle.take())
    }

    /// The streams whose file is open, the idlest first.
    pub(super) fn open_streams(&self) -> Vec<Arc<str>> {
        self.open.values().cloned().collect()
    }

    /// Marks `stream` as the one used last.
    fn touch(&mut self, stream: &Arc<str>) {
        let Some(entry) = self.streams.get_mut(stream) else { return };
        self.open.remove(&entry.used);
        self.uses += 1;
        entry.used = self.uses;
        if entry.place.as_ref().is_some_and(|place| place.handle.is_some()) {
            self.open.insert(entry.used, Arc::clone(stream));
        }
    }

    /// Keeps the memory for streams bounded: beyond the limit the older half of those that have no open file go.
    /// Their numbers start again at 1, which costs a look at names that exist.
    fn make_room_for_stream(&mut self) {
        if self.streams.len() < STREAMS_MAX + self.open.len() {
            return;
        }
        let mut uses: Vec<u64> = self.streams.values().map(|stream| stream.used).collect();
        uses.sort_unstable();
        let middle = uses[uses.len() / 2];
        self.streams.retain(|_, stream| stream.used >= middle || self.open.contains_key(&stream.used));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    const NOON: OffsetDateTime = datetime!(2026-03-04 12:00:00 UTC);
    const ONE: OffsetDateTime = datetime!(2026-03-04 13:00:00 UTC);
    const SOME: Identity = Identity { device: 1, inode: 2 };

    fn open(table: &mut Table<u32>, stream: &str, handle: u32) -> Arc<str> {
        let stream: Arc<str> = stream.into();
        let new = table.next_file(&stream, "i", NOON);
        table.created(&stream, new, SOME, handle);
        stream
    }

    #[test]
    fn a_file_is_left_when_it_is_full_or_the_hour_is_over() {
        let mut table = Table::new();
        let a = open(&mut table, "a", 7);
        let place = table.place(&a, FILE_BYTES_MAX + 1, NOON).unwrap().expect("an empty file takes any call");
        place.length = FILE_BYTES_MAX - 10;
        assert!(table.place(&a, 10, NOON).unwrap().is_some());
        assert_eq!(table.place(&a, 11, NOON).unwrap_err(), 7);
        assert!(table.place(&a, 11, NOON).unwrap().is_none());
        open(&mut table, "a", 8);
        assert_eq!(table.place(&a, 1, ONE).unwrap_err(), 8);
        assert_eq!(table.open_files(), 0);
    }

    #[test]
    fn numbers_count_up_and_paths_are_synced_once() {
        let mut table = Table::new();
        let a: Arc<str> = "a".into();
        let first = table.next_file(&a, "i", NOON);
        assert_eq!(first.name, "a-1-2026-03-04-12-00-00-i-000001");
        assert_eq!(first.folders_to_sync().count(), 6);
        table.created(&a, first, SOME, 1);
        let second = table.next_file(&a, "i", NOON);
        assert_eq!(second.name, "a-1-2026-03-04-12-00-00-i-000002");
        assert_eq!(second.folders_to_sync().collect::<Vec<_>>(), ["a/2026/03/04/12"]);
        assert!(table.next_file(&a, "i", ONE).whole_path);
        assert_eq!(table.forget_path("a"), Some(1));
        assert!(table.next_file(&a, "i", NOON).whole_path);
    }

    #[test]
    fn the_idlest_file_is_closed_first_and_keeps_its_place() {
        let mut table = Table::new();
        let a = open(&mut table, "a", 1);
        open(&mut table, "b", 2);
        open(&mut table, "c", 3);
        assert!(table.place(&a, 1, NOON).unwrap().is_some());
        assert_eq!(table.close_idlest(|handle| *handle != 2), Some(3));
        assert_eq!(table.close_idlest(|_| true), Some(2));
        assert_eq!(table.close_idlest(|_| true), Some(1));
        assert_eq!(table.close_idlest(|_| true), None);
        assert!(table.place(&a, 1, NOON).unwrap().is_some_and(|place| place.handle.is_none()));
        table.reopened(&a, 9);
        assert_eq!(table.open_streams(), [a]);
    }

    #[test]
    fn a_folder_that_failed_takes_its_files_with_it() {
        let mut table = Table::new();
        open(&mut table, "a", 1);
        open(&mut table, "b", 2);
        assert_eq!(table.forget_below("a/2026"), [1]);
        assert_eq!(table.forget_below("a/2026"), Vec::<u32>::new());
        assert_eq!(table.forget_below(""), [2]);
        assert_eq!(table.open_files(), 0);
    }

    #[test]
    fn a_flood_of_names_is_forgotten() {
        let mut table = Table::new();
        let kept = open(&mut table, "kept", 1);
        for i in 0..3 * STREAMS_MAX as u32 {
            let stream = open(&mut table, &format!("s{i}"), i);
            table.touch(&stream);
            table.close_idlest(|handle| *handle != 1);
        }
        assert!(table.streams.len() <= STREAMS_MAX + 2);
        assert!(table.current(&kept).is_some_and(|place| place.handle.is_some()));
    }
}
