//! The streams that one shard knows, found by name once a line. It keeps them where they lie: a place is given
//! away only once its stream is forgotten. What a line touches lies together, since with thousands of streams
//! each of these looks leaves the cache: the table of places is a few bytes a stream, and the name stands in the
//! stream's own entry, beside the buffer that the line is about to be copied to.

use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::Instant;

use foldhash::fast::RandomState;
use hashbrown::HashTable;

use crate::buffer::Buffer;
use crate::frame::STREAM_NAME_BYTES_MAX;
use crate::metrics::ShardCell;
use crate::stream::Stream;

/// One stream on this shard.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Local {
    name: Name,
    /// What this shard counts for it.
    pub(super) cell: Arc<ShardCell>,
    pub(super) buffer: Buffer,
    pub(super) stream: Arc<Stream>,
    /// The sequence of the batch that is open.
    pub(super) batch: u64,
    pub(super) used_at: Instant,
}

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
    /// Whether it is found by its name.
    pub(super) fn is_listed(&self) -> bool {
        self.name.length > 0
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Roster {
    hasher: RandomState,
    places: HashTable<u32>,
    locals: Vec<Option<Local>>,
    free: Vec<u32>,
}

impl Roster {
    /// Whether the stream at a place has this name.
    #[inline]
    pub(super) fn is_at(&self, place: u32, name: &[u8]) -> bool {
        self.get(place).is_some_and(|local| local.name.is(name))
    }

    /// The place of a name.
    #[inline]
    pub(super) fn find(&self, name: &[u8]) -> Option<u32> {
        let is_it = |place: &u32| self.is_at(*place, name);
        self.places.find(self.hasher.hash_one(name), is_it).copied()
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
        places.insert_unique(hash, place, |place| {
            let local = locals[*place as usize].as_ref().expect("a place in the table is taken");
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
        let entry = self.places.find_entry(hash, |found| *found == place);
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
