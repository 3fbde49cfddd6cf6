//! The streams that one shard knows, found by name once a line. It keeps them where they lie: a place is given
//! away only once its stream is forgotten.
//!
//! With thousands of streams each entry that a line touches leaves the caches. The table of places stays in them: it
//! is a few bytes a stream, enough of a name's hash to [guess](Roster::guess) its place without a look at the entry.
//! The entry then has time to come before it is looked at, and holds all that a line needs together: the name that
//! tells whether the guess was right, and the buffer.

use std::hash::BuildHasher;
use std::mem::offset_of;
use std::sync::Arc;
use std::time::Instant;

use foldhash::fast::RandomState;
use hashbrown::HashTable;

use crate::buffer::Buffer;
use crate::frame::STREAM_NAME_BYTES_MAX;
use crate::metrics::ShardCell;
use crate::prefetch;
use crate::stream::Stream;

/// One stream on this shard. What every line touches stands first, and ends with the buffer.
#[derive(Debug)]
#[repr(C, align(64))]
pub(super) struct Local {
    name: Name,
    /// What this shard counts for it.
    pub(super) cell: Arc<ShardCell>,
    /// The sequence of the batch that is open.
    pub(super) batch: u64,
    pub(super) buffer: Buffer,
    pub(super) stream: Arc<Stream>,
    pub(super) used_at: Instant,
}

/// Octets of an entry that every line touches.
const HOT_BYTES: usize = offset_of!(Local, stream);

/// A stream's name without a pointer to it.
#[derive(Debug)]
#[repr(C)]
struct Name {
    length: u8,
    octets: [u8; STREAM_NAME_BYTES_MAX],
}

impl Name {
    fn new(name: &[u8]) -> Self {
        let mut octets = [0; STREAM_NAME_BYTES_MAX];
        octets[..name.len()].copy_from_slice(name);
        Self { length: u8::try_from(name.len()).expect("a name has at most 64 octets"), octets }
    }

    /// That of no frame.
    fn none() -> Self {
        Self { length: 0, octets: [0; STREAM_NAME_BYTES_MAX] }
    }

    fn is(&self, name: &[u8]) -> bool {
        self.octets[..usize::from(self.length)] == *name
    }
}

impl Local {
    /// Hints that a line of `length` octets will be appended soon, and counted.
    #[inline]
    pub(super) fn prefetch(&self, length: usize) {
        self.buffer.prefetch(length);
        prefetch::for_writing(Arc::as_ptr(&self.cell).cast(), 1);
    }

    /// Whether it is found by its name.
    pub(super) fn is_listed(&self) -> bool {
        self.name.length > 0
    }
}

/// Where a stream lies.
#[derive(Clone, Copy, Debug)]
struct Place {
    index: u32,
    /// Of its name's hash, what tells it from nearly all others.
    tag: u32,
}

/// The table itself uses the uppermost bits, and as many of the lowest as it has places. Unit tests have one bit, so that
/// wrong guesses are made there.
fn tag(hash: u64) -> u32 {
    let tag = (hash >> 24) as u32;
    if cfg!(test) { tag & 1 } else { tag }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Roster {
    hasher: RandomState,
    places: HashTable<Place>,
    locals: Vec<Option<Local>>,
    free: Vec<u32>,
}

impl Roster {
    /// Whether the stream at a place has this name.
    #[inline]
    pub(super) fn is_at(&self, place: u32, name: &[u8]) -> bool {
        self.get(place).is_some_and(|local| local.name.is(name))
    }

    /// The place that a name has if it has one, most likely: its entry is not looked at, but asked for from memory. Where
    /// there is no guess the name has no place.
    #[inline]
    pub(super) fn guess(&self, name: &[u8]) -> Option<u32> {
        let hash = self.hasher.hash_one(name);
        let place = self.places.find(hash, |place| place.tag == tag(hash))?.index;
        prefetch::for_writing(self.locals.as_ptr().wrapping_add(place as usize).cast(), HOT_BYTES);
        Some(place)
    }

    /// The place of a name.
    pub(super) fn find(&self, name: &[u8]) -> Option<u32> {
        let is_it = |place: &Place| self.is_at(place.index, name);
        self.places.find(self.hasher.hash_one(name), is_it).map(|place| place.index)
    }

    /// Gives a stream a place. Its name must have none yet.
    pub(super) fn add(&mut self, stream: Arc<Stream>, buffer: Buffer, shard: usize, now: Instant) -> u32 {
        let name = Name::new(stream.name.as_bytes());
        let hash = self.hasher.hash_one(stream.name.as_bytes());
        let cell = Arc::clone(&stream.label.shards[shard]);
        let local = Some(Local { name, cell, buffer, stream, batch: 0, used_at: now });
        let place = if let Some(place) = self.free.pop() {
            self.locals[place as usize] = local;
            place
        } else {
            self.locals.push(local);
            u32::try_from(self.locals.len() - 1).expect("max_streams is far below 2^32")
        };
        let Self { hasher, places, locals, .. } = self;
        places.insert_unique(hash, Place { index: place, tag: tag(hash) }, |place| {
            let local = locals[place.index as usize].as_ref().expect("a place in the table is taken");
            hasher.hash_one(local.stream.name.as_bytes())
        });
        place
    }

    /// The stream at a place.
    #[inline]
    pub(super) fn get(&self, place: u32) -> Option<&Local> {
        self.locals.get(place as usize)?.as_ref()
    }

    /// The stream at a place.
    #[inline]
    pub(super) fn get_mut(&mut self, place: u32) -> Option<&mut Local> {
        self.locals.get_mut(place as usize)?.as_mut()
    }

    /// Every place, taken or not.
    pub(super) fn places(&self) -> std::ops::Range<u32> {
        0..u32::try_from(self.locals.len()).expect("max_streams is far below 2^32")
    }

    /// Has the stream at a place found by its name no longer, so that the registry decides anew on the frames that come
    /// for it. It keeps its place until it is forgotten, since what was sealed of it may be asked for still.
    pub(super) fn unlist(&mut self, place: u32) {
        let Some(local) = self.locals[place as usize].as_mut().filter(|local| local.is_listed()) else {
            return;
        };
        local.name = Name::none();
        let hash = self.hasher.hash_one(local.stream.name.as_bytes());
        let entry = self.places.find_entry(hash, |found| found.index == place);
        entry.expect("a listed stream is in the table").remove();
    }

    /// Forgets the streams that `is_idle` picks.
    pub(super) fn forget(&mut self, is_idle: impl Fn(u32, &Local) -> bool) {
        for place in self.places() {
            if self.get(place).is_some_and(|local| is_idle(place, local)) {
                self.unlist(place);
                self.locals[place as usize] = None;
                self.free.push(place);
            }
        }
    }
}
