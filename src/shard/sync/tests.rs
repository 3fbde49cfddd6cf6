//! The state machine against a naive model that remembers every event of every sync.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

const CONNECTIONS: usize = 4;

#[derive(Clone, Debug)]
enum Step {
    Event { connection: usize, stream: u32 },
    Drop { connection: usize },
    Hello { connection: usize },
    Sync { connection: usize },
    Close { connection: usize },
    Seal { stream: u32 },
    Settle { which: usize, lost: usize },
}

fn steps(streams: u32, length: usize) -> impl Strategy<Value = Vec<Step>> {
    let connection = 0..CONNECTIONS;
    let step = prop_oneof![
        10 => (connection.clone(), 0..streams).prop_map(|(connection, stream)| Step::Event { connection, stream }),
        1 => connection.clone().prop_map(|connection| Step::Drop { connection }),
        1 => connection.clone().prop_map(|connection| Step::Hello { connection }),
        4 => connection.clone().prop_map(|connection| Step::Sync { connection }),
        1 => connection.prop_map(|connection| Step::Close { connection }),
        4 => (0..streams).prop_map(|stream| Step::Seal { stream }),
        4 => (0usize..8, prop_oneof![4 => Just(0usize), 1 => 1usize..4])
            .prop_map(|(which, lost)| Step::Settle { which, lost }),
    ];
    proptest::collection::vec(step, 0..length)
}

/// What a sync covers, as the model knows it.
#[derive(Clone, Debug, Default)]
struct Covered {
    /// Events by batch.
    batches: BTreeMap<u64, usize>,
    /// The first and last batch of each stream.
    hull: BTreeMap<u32, (u64, u64)>,
    /// It waits for every batch below this: some of its events came before it was tracked.
    all_before: Option<u64>,
    frames_dropped: u64,
    /// Of its own events, so many were lost.
    events_lost: u64,
    /// Whether a batch in the hull lost any.
    may_be_lost: bool,
}

impl Covered {
    fn takes_in(&self, stream: u32, sequence: u64) -> bool {
        let in_hull =
            self.hull.get(&stream).is_some_and(|(first, last)| (*first..=*last).contains(&sequence));
        in_hull || self.all_before.is_some_and(|before| sequence < before)
    }
}

#[derive(Debug, Default)]
struct Peer {
    syncs: Option<Syncs>,
    lost_before: u64,
    dropped: u64,
    current: Covered,
    pending: VecDeque<(Vec<u8>, Covered)>,
}

/// A batch of the model: its stream, and whose events it took, in their order.
#[derive(Debug)]
struct Batch {
    stream: u32,
    events: Vec<(usize, u64)>,
}

struct World {
    window: Window,
    peers: Vec<Peer>,
    /// A connection's key may be another's later, with a number of its own.
    generations: Vec<u64>,
    open: BTreeMap<u32, u64>,
    unsafe_batches: BTreeMap<u64, Batch>,
    lost_in_all: u64,
    ids: u64,
    is_exact: bool,
}

impl World {
    fn new(is_exact: bool) -> Self {
        Self {
            window: Window::default(),
            peers: (0..CONNECTIONS).map(|_| Peer::default()).collect(),
            generations: vec![0; CONNECTIONS],
            open: BTreeMap::new(),
            unsafe_batches: BTreeMap::new(),
            lost_in_all: 0,
            ids: 0,
            is_exact,
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Event { connection, stream } => self.event(connection, stream),
            Step::Drop { connection } => self.peers[connection].dropped += 1,
            Step::Hello { connection } => self.track(connection),
            Step::Sync { connection } => self.sync(connection),
            Step::Close { connection } => self.close(connection),
            Step::Seal { stream } => drop(self.open.remove(&stream)),
            Step::Settle { which, lost } => self.settle(which, lost),
        }
    }

    fn event(&mut self, connection: usize, stream: u32) {
        let sequence = *self.open.entry(stream).or_insert_with(|| self.window.open(stream));
        let batch = self.unsafe_batches.entry(sequence).or_insert(Batch { stream, events: Vec::new() });
        batch.events.push((connection, self.generations[connection]));
        let peer = &mut self.peers[connection];
        *peer.current.batches.entry(sequence).or_default() += 1;
        let hull = peer.current.hull.entry(stream).or_insert((sequence, sequence));
        hull.1 = sequence;
        // One range over all streams, once there is one, takes in what comes after it too.
        peer.current.all_before = peer.current.all_before.map(|before| before.max(sequence + 1));
        if let Some(syncs) = &mut peer.syncs {
            syncs.note(stream, sequence, &self.window);
        }
    }

    fn track(&mut self, connection: usize) {
        let peer = &mut self.peers[connection];
        if peer.syncs.is_some() {
            return;
        }
        peer.syncs = Some(if peer.current.batches.is_empty() {
            Syncs::new()
        } else {
            peer.current.all_before = Some(self.window.all().last + 1);
            peer.current.may_be_lost |= self.lost_in_all > peer.lost_before;
            Syncs::covering_all(&self.window, self.lost_in_all - peer.lost_before)
        });
    }

    fn sync(&mut self, connection: usize) {
        self.track(connection);
        self.ids += 1;
        let id = format!("id-{}", self.ids).into_bytes();
        let peer = &mut self.peers[connection];
        let syncs = peer.syncs.as_mut().expect("it is tracked");
        if syncs.pending() == PENDING_MAX {
            return;
        }
        peer.current.frames_dropped = std::mem::take(&mut peer.dropped);
        syncs.sync(&id, peer.current.frames_dropped);
        peer.pending.push_back((id, std::mem::take(&mut peer.current)));
        self.answer(connection);
    }

    fn close(&mut self, connection: usize) {
        self.window.stop_waiting(connection as Key);
        self.peers[connection] = Peer { lost_before: self.lost_in_all, ..Peer::default() };
        self.generations[connection] += 1;
    }

    /// Settles one of the sealed batches, whichever is chosen; its first events are those that are lost.
    fn settle(&mut self, which: usize, lost: usize) {
        let is_sealed = |sequence: &u64| !self.open.values().any(|open| open == sequence);
        let sealed: Vec<u64> = self.unsafe_batches.keys().copied().filter(is_sealed).collect();
        let Some(sequence) = sealed.get(which % sealed.len().max(1)).copied() else { return };
        let batch = self.unsafe_batches.remove(&sequence).expect("it is there");
        let lost = lost.min(batch.events.len());
        let mut woken = Vec::new();
        assert_eq!(self.window.settle(sequence, &mut woken), Some(batch.stream));
        self.lost_in_all += lost as u64;
        for (connection, peer) in self.peers.iter_mut().enumerate().filter(|_| lost > 0) {
            if let Some(syncs) = &mut peer.syncs {
                syncs.lose(batch.stream, sequence, lost as u64);
            }
            let owner = (connection, self.generations[connection]);
            let mut own = batch.events[..lost].iter().filter(|event| **event == owner).count();
            let pending = peer.pending.iter_mut().map(|(_, covered)| covered);
            for covered in pending.chain([&mut peer.current]) {
                // Its events are in the order of its syncs.
                let here = covered.batches.get(&sequence).copied().unwrap_or(0).min(own);
                covered.events_lost += here as u64;
                own -= here;
                covered.may_be_lost |= covered.takes_in(batch.stream, sequence);
            }
        }
        woken.into_iter().for_each(|key| self.answer(key as usize));
    }

    /// Takes the answers there are, and asserts that they may be given.
    fn answer(&mut self, connection: usize) {
        let peer = &mut self.peers[connection];
        let Some(syncs) = &mut peer.syncs else { return };
        while let Some(answer) = syncs.next_answer(connection as Key, &mut self.window) {
            let (id, covered) = peer.pending.pop_front().expect("one answer a sync");
            let id = String::from_utf8(id).expect("text");
            let line = String::from_utf8(answer.line).expect("text");
            let expected = match answer.lost {
                0 => format!("!synced {id}\n"),
                lost => format!("!lost {id} {lost}\n"),
            };
            assert_eq!(line, expected, "answers come in order");
            assert!(
                covered.batches.keys().all(|sequence| !self.unsafe_batches.contains_key(sequence)),
                "{id} is answered, and a batch that holds an event of it is not safe"
            );
            assert!(answer.lost >= covered.events_lost + covered.frames_dropped, "{id}: {covered:?}");
            let may_be_lost = !self.is_exact || covered.may_be_lost || covered.frames_dropped > 0;
            assert!(answer.lost == 0 || may_be_lost, "{id} lost nothing: {covered:?}");
        }
    }

    /// Every first sync that nothing stands in the way of must have been answered.
    fn assert_prompt(&self) {
        for peer in self.peers.iter().filter(|_| self.is_exact) {
            let Some((id, covered)) = peer.pending.front() else { continue };
            let mut batches = self.unsafe_batches.iter();
            assert!(
                batches.any(|(sequence, batch)| covered.takes_in(batch.stream, *sequence)),
                "nothing stands in the way of {:?}",
                String::from_utf8_lossy(id)
            );
        }
    }

    fn settle_all(&mut self) {
        self.open.clear();
        while !self.unsafe_batches.is_empty() {
            self.settle(self.unsafe_batches.len() / 2, 0);
        }
        let unanswered: BTreeSet<usize> =
            (0..CONNECTIONS).filter(|connection| !self.peers[*connection].pending.is_empty()).collect();
        assert_eq!(unanswered, BTreeSet::new());
        assert!(!self.window.has_waiting());
    }
}

fn play(steps: &[Step], is_exact: bool) {
    let mut world = World::new(is_exact);
    for step in steps {
        world.step(step);
        world.assert_prompt();
        for peer in &world.peers {
            let Some(syncs) = &peer.syncs else { continue };
            assert!(syncs.pending() <= PENDING_MAX && syncs.ranges.len() <= RANGES_MAX + PENDING_MAX);
        }
    }
    world.settle_all();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]
    #[test]
    fn a_sync_is_answered_when_what_it_covers_is_safe_and_not_before(steps in steps(4, 200)) {
        play(&steps, true);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]
    #[test]
    fn with_more_streams_than_are_kept_apart_a_sync_is_still_never_answered_too_early(
        steps in steps(3 * RANGES_MAX as u32, 2_000),
    ) {
        play(&steps, false);
    }
}

#[test]
fn a_stuck_stream_delays_only_the_syncs_that_cover_it() {
    let mut window = Window::default();
    let mut syncs = Syncs::new();
    let (stuck, fine) = (window.open(0), window.open(1));
    syncs.note(1, fine, &window);
    syncs.sync(b"1", 0);
    syncs.note(0, stuck, &window);
    syncs.sync(b"2", 0);
    syncs.sync(b"3", 2);
    assert_eq!(syncs.next_answer(9, &mut window), None);
    assert_eq!(window.settle(fine, &mut Vec::new()), Some(1));
    let line = |answer: Option<Answer>| answer.map(|answer| String::from_utf8(answer.line).expect("text"));
    assert_eq!(line(syncs.next_answer(9, &mut window)).as_deref(), Some("!synced 1\n"));
    assert_eq!(syncs.next_answer(9, &mut window), None);
    let mut woken = Vec::new();
    window.settle(stuck, &mut woken);
    assert_eq!(woken, [9]);
    assert_eq!(line(syncs.next_answer(9, &mut window)).as_deref(), Some("!synced 2\n"));
    assert_eq!(line(syncs.next_answer(9, &mut window)).as_deref(), Some("!lost 3 2\n"));
    assert!(!syncs.has_uncovered() && syncs.pending() == 0);
}

#[test]
fn an_id_is_1_to_64_printable_octets() {
    assert!(is_id(b"1") && is_id(&[b'~'; 64]) && is_id(b"a!b"));
    assert!(!is_id(b"") && !is_id(&[b'x'; 65]) && !is_id(b"a b") && !is_id(b"\x7f") && !is_id(b"\xc3\xa9"));
}
