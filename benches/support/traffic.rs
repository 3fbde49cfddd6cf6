//! Frames to feed: always the same bytes for the same wish.

/// In which order the streams of a traffic follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// All of one stream, then all of the next: a connection repeats its last name.
    Sorted,
    /// By a fixed shuffle: hardly ever the last name again.
    Shuffled,
}

impl Order {
    /// Both.
    pub const ALL: [Order; 2] = [Order::Sorted, Order::Shuffled];

    /// For the name of a bench.
    pub fn label(self) -> &'static str {
        match self {
            Order::Sorted => "sorted",
            Order::Shuffled => "shuffled",
        }
    }
}

/// Seeds every choice, so that all runs see the same bytes.
const SEED: u64 = 0x5eed;

/// Bytes as a connection would send them.
#[derive(Debug)]
pub struct Traffic {
    /// Whole frames, one behind the other.
    pub bytes: Vec<u8>,
    /// The frames in them.
    pub events: u64,
    /// The octets of the payloads, their LFs included.
    pub payload_bytes: u64,
}

impl Traffic {
    /// `events` frames whose payloads have `size` octets, the LF included, over `streams` streams in turn.
    pub fn new(size: usize, streams: usize, events: usize, order: Order) -> Self {
        let mut random = fastrand::Rng::with_seed(SEED);
        let mut names: Vec<usize> = (0..events).map(|event| event % streams).collect();
        match order {
            Order::Sorted => names.sort_unstable(),
            Order::Shuffled => random.shuffle(&mut names),
        }
        let mut bytes = Vec::with_capacity(events * (size + 16));
        for name in names {
            bytes.extend_from_slice(format!("stream-{name:05} ").as_bytes());
            bytes.extend(std::iter::repeat_with(|| random.u8(b' '..=b'~')).take(size - 1));
            bytes.push(b'\n');
        }
        Self { bytes, events: events as u64, payload_bytes: (events * size) as u64 }
    }

    /// As [`Traffic::new`], with as many events as make up about `bytes` octets of payload, and at least one a
    /// stream.
    pub fn of_bytes(size: usize, streams: usize, bytes: usize, order: Order) -> Self {
        Self::new(size, streams, (bytes / size).max(streams), order)
    }

    /// The payload of every frame, its LF included.
    pub fn payloads(&self) -> impl Iterator<Item = &[u8]> {
        let frames = self.bytes.split_inclusive(|octet| *octet == b'\n');
        frames.map(|frame| &frame[frame.iter().position(|octet| *octet == b' ').map_or(0, |at| at + 1)..])
    }
}
