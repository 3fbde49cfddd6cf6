//! Delivery beside a spool that is played by the test: what it is asked, and what its answers lead to.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::*;
use crate::batch::BatchId;
use crate::config::{Config, Packing};
use crate::delivery::piece::{CallMax, Loose};
use crate::delivery::queues::StreamQueue;
use crate::destination::{Destination, Encoding};
use crate::memory::{Machine, Memory, Plan};
use crate::metrics::{Drop, Metrics};
use crate::spool::Refusal;
use crate::spool::format::BatchHeader;
use crate::spool::keeper::Part;
use crate::stream::Registry;

const FOUND: u64 = 1 << 63;

struct Rig {
    delivery: Delivery,
    stream: Arc<Stream>,
    memory: Arc<Memory>,
    commands: mpsc::UnboundedReceiver<Command>,
    _events: mpsc::UnboundedSender<Event>,
    now: Instant,
}

impl Rig {
    fn new(encoding: Encoding) -> Self {
        Self::with(encoding, Config::default())
    }

    fn with(encoding: Encoding, config: Config) -> Self {
        let packing = Packing { record_events_max: 1, ..config.packing };
        let config = Arc::new(Config { packing, ..config });
        let machine = Machine { memory: 1 << 30, cpus: 2, files: 1024 };
        let memory = Memory::new(&Plan::new(&config, machine).expect("enough memory"));
        let metrics = Metrics::new(Instant::now(), 1, Vec::new(), 10);
        let registry = Arc::new(Registry::new(Arc::clone(&config), Arc::clone(&metrics)));
        let stream = registry.resolve_spooled("clicks");
        let parts = Parts {
            config,
            destination: Arc::new(Destination::Null),
            memory: Arc::clone(&memory),
            metrics,
            handoff: Arc::default(),
            returns: Arc::new([Returns::new().unwrap()]),
            registry,
            tails: Arc::default(),
        };
        let (to_spool, commands) = mpsc::unbounded_channel();
        let (_events, from_spool) = mpsc::unbounded_channel();
        let mut delivery = Delivery::new(parts, Some(Keeper { commands: to_spool, events: from_spool }));
        delivery.encoding = encoding;
        Self { delivery, stream, memory, commands, _events, now: Instant::now() }
    }

    fn hear(&mut self, event: Event) {
        self.delivery.hear(event, self.now);
    }

    fn recovered(&mut self, batches: u64, events: u64, bytes: u64) {
        self.hear(Event::Recovered { stream: "clicks".into(), batches, events, bytes });
    }

    fn loaded(&mut self, id: u64, lines: &'static [u8]) {
        let header = header(lines);
        self.hear(Event::Loaded { id, header, lines: Bytes::from_static(lines), is_doubtful: false });
    }

    /// Delivery looks at its streams once more: what it asks of the spool then.
    fn step(&mut self) -> Vec<Command> {
        self.now += 2 * LOOK_EVERY;
        self.delivery.step(self.now);
        std::iter::from_fn(|| self.commands.try_recv().ok()).collect()
    }

    fn leave(&mut self) -> Vec<Command> {
        self.delivery.leave(self.now + Duration::from_secs(60), oneshot::channel().0);
        self.step()
    }

    fn queue(&mut self) -> &mut StreamQueue {
        self.delivery.streams.get_mut(&self.stream.id).expect("the stream has a queue")
    }
}

fn header(lines: &[u8]) -> BatchHeader {
    BatchHeader {
        stream: "clicks".into(),
        sequence: 0,
        events: lines.iter().filter(|octet| **octet == b'\n').count() as u32,
        oldest: 1,
        is_unknown: false,
        length: lines.len() as u32,
        crc: 0,
    }
}

#[tokio::test]
async fn what_is_left_of_a_batch_replaces_it_on_disk() {
    let mut rig = Rig::new(Encoding::Records);
    rig.recovered(1, 2, 4);
    rig.loaded(FOUND, b"a\nb\n");
    let Some(Item::Piece(piece)) = rig.queue().take_recalled() else { panic!("it was read back") };
    assert_eq!(piece.records().len(), 2);
    let mut ended = Vec::new();
    piece.settle(Fate::Delivered, |record| record == 0, |_, settled| ended.push(settled));
    assert!(ended.is_empty(), "one of two is settled");
    let rest = piece.only(&rig.memory, |record| record == 1);
    rig.queue().push_retry(rest);
    let asked = rig.leave();
    assert!(matches!(asked[..], [Command::Append { id: 0, events: 1, .. }]), "{asked:?}");
    rig.hear(Event::Stored(0));
    let asked = rig.step();
    let is_done = |command: &Command| matches!(command, Command::Done(FOUND));
    assert!(asked.iter().any(is_done), "the next process would deliver both: {asked:?}");
}

#[tokio::test]
async fn a_batch_is_replaced_on_disk_once_the_rest_of_it_is_delivered() {
    let mut rig = Rig::new(Encoding::Records);
    rig.recovered(1, 2, 4);
    rig.loaded(FOUND, b"a\nb\n");
    let Some(Item::Piece(piece)) = rig.queue().take_recalled() else { panic!("it was read back") };
    let [first, rest] = piece.halves(&rig.memory);
    rig.queue().push_retry(rest);
    rig.leave();
    rig.hear(Event::Stored(0));
    let is_done = |command: &Command| matches!(command, Command::Done(FOUND));
    assert!(!rig.step().iter().any(is_done), "the first half is under way");
    first.settle(Fate::Delivered, |_| true, |_, _| panic!("one of two is settled"));
    rig.delivery.settled(&first, Vec::new());
    assert!(rig.step().iter().any(is_done));
}

/// A call with what was read back ended without a known outcome, and now everything goes to disk: what is asked then.
fn leaving_with_an_unknown() -> (Rig, Vec<Command>) {
    let mut rig = Rig::new(Encoding::Lines);
    rig.recovered(1, 1, 2);
    rig.loaded(FOUND, b"a\n");
    let Some(Item::Piece(mut piece)) = rig.queue().take_recalled() else { panic!("it was read back") };
    piece.is_unknown = true;
    rig.queue().push_retry(piece);
    let asked = rig.leave();
    (rig, asked)
}

#[tokio::test]
async fn what_may_have_been_delivered_is_said_to_be_so_on_disk() {
    let (mut rig, asked) = leaving_with_an_unknown();
    assert!(matches!(asked[..], [Command::Append { id: 0, is_unknown: true, .. }]), "{asked:?}");
    rig.hear(Event::Stored(0));
    assert!(rig.step().iter().any(|command| matches!(command, Command::Done(FOUND))));
}

#[tokio::test]
async fn what_is_on_disk_already_is_left_there_where_the_spool_takes_no_more() {
    let (mut rig, asked) = leaving_with_an_unknown();
    assert!(matches!(asked[..], [Command::Append { id: 0, .. }]), "{asked:?}");
    rig.hear(Event::Refused(0, Refusal::Limit));
    let asked = rig.step();
    assert!(matches!(asked[..], [Command::Release(FOUND, true), Command::Stop(_)]), "{asked:?}");
    rig.delivery.abandon(rig.now);
    let totals = rig.stream.label.totals();
    assert_eq!((totals.spool, totals.held(), totals.dropped_in_all()), (1, 1, 0), "the next one delivers it");
}

/// Where the rest is not on disk. It was dropped as a whole, and what was on disk came again without a word.
#[tokio::test]
async fn what_is_on_disk_of_a_call_is_left_there() {
    let mut rig = Rig::new(Encoding::Lines);
    rig.recovered(1, 1, 2);
    rig.loaded(FOUND, b"a\n");
    let stored = rig.queue().take_recalled().expect("it was read back").tickets().remove(0).0;
    let id = BatchId { shard: 0, sequence: 0 };
    let fresh = Arc::new(Ticket::new(id, Arc::clone(&rig.stream), 1, rig.now, rig.now));
    rig.stream.label.enter(1, Place::Queued);
    let loose = |ticket, lines: &'static [u8]| {
        let charge = Charge::forced(&rig.memory, &rig.stream.account, lines.len() as u64);
        Loose::new(ticket, Bytes::from_static(lines), charge, rig.now)
    };
    let mut both = VecDeque::from([loose(stored, b"a\n"), loose(fresh, b"b\n")]);
    let mut piece = crate::delivery::piece::pack(&mut both, Encoding::Lines, &rig.memory).expect("a call");
    assert_eq!((piece.events(), both.len()), (2, 0));
    piece.is_unknown = true;
    rig.queue().push_retry(piece);
    let asked = rig.leave();
    assert!(matches!(asked[..], [Command::Append { id: 0, is_unknown: true, .. }]), "{asked:?}");
    rig.hear(Event::Refused(0, Refusal::Limit));
    let asked = rig.step();
    assert!(matches!(asked[..], [Command::Release(FOUND, true), Command::Stop(_)]), "{asked:?}");
    rig.delivery.abandon(rig.now);
    let totals = rig.stream.label.totals();
    let dropped = totals.dropped[Drop::DrainDeadline as usize];
    assert_eq!((totals.spool, totals.held(), dropped), (1, 1, 1), "one is delivered by the next process");
}

#[tokio::test]
async fn what_cannot_be_read_on_disk_is_let_go_of_only_when_it_is_written_anew() {
    let mut rig = Rig::new(Encoding::Lines);
    rig.recovered(1, 1, 2);
    rig.loaded(FOUND, b"a\n");
    rig.hear(Event::Unreadable(FOUND));
    let asked = rig.leave();
    assert!(matches!(asked[..], [Command::Append { id: 0, events: 1, .. }]), "{asked:?}");
    rig.hear(Event::Stored(0));
    assert!(rig.step().iter().any(|command| matches!(command, Command::Done(FOUND))));
}

#[tokio::test]
async fn what_cannot_be_read_and_not_be_written_anew_is_left_where_it_is() {
    let mut rig = Rig::new(Encoding::Lines);
    rig.recovered(1, 1, 2);
    rig.loaded(FOUND, b"a\n");
    rig.hear(Event::Unreadable(FOUND));
    rig.leave();
    rig.hear(Event::Refused(0, Refusal::Failing));
    let asked = rig.step();
    assert!(matches!(asked[..], [Command::Release(FOUND, false), Command::Stop(_)]), "{asked:?}");
    assert_eq!(rig.stream.label.totals().dropped_in_all(), 0, "it was answered as stored");
}

#[tokio::test]
async fn what_is_read_back_too_old_is_dropped_and_its_batch_settled() {
    let max_age = Some(Duration::from_secs(3600));
    let mut rig = Rig::with(Encoding::Records, Config { max_age, ..Config::default() });
    rig.recovered(2, 3, 6);
    let young = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64 - 3_550_000;
    for (id, oldest, lines) in [(FOUND, 1, &b"a\nb\n"[..]), (FOUND + 1, young, b"c\n")] {
        let header = BatchHeader { oldest, ..header(lines) };
        rig.hear(Event::Loaded { id, header, lines: Bytes::from_static(lines), is_doubtful: false });
    }
    let is_done = |command: &Command| matches!(command, Command::Done(FOUND));
    assert!(rig.step().iter().any(is_done));
    let totals = rig.stream.label.totals();
    assert_eq!((totals.dropped[Drop::MaxAge as usize], totals.held()), (2, 1), "the young one is called");
}

#[tokio::test]
async fn a_batch_that_comes_back_after_damage_beside_it_is_taken() {
    let mut rig = Rig::new(Encoding::Lines);
    rig.recovered(2, 2, 4);
    rig.step();
    assert_eq!(rig.step().len() + 1, 2, "both are asked for");
    // One was found to be damaged before it was asked for: the second time nothing was left.
    rig.hear(Event::Damaged { id: FOUND, header: header(b"b\n"), was_asked: false });
    rig.hear(Event::Nothing("clicks".into()));
    rig.loaded(FOUND + 1, b"a\n");
    assert!(rig.queue().has_recalled(), "it stands in its queue");
    let totals = rig.stream.label.totals();
    assert_eq!((totals.recovered, totals.dropped_in_all(), totals.held()), (2, 1, 1));
}

#[tokio::test]
async fn what_is_read_back_leaves_its_stream_room_for_what_arrives() {
    let mut rig = Rig::new(Encoding::Lines);
    let share = 4 * rig.memory.batch_bytes_max();
    let lines: &'static [u8] = Box::leak(vec![b'\n'; share as usize / 6].into_boxed_slice());
    rig.recovered(8, 8 * lines.len() as u64, 8 * lines.len() as u64);
    let mut next = FOUND;
    for _ in 0..100 {
        for command in rig.step() {
            assert!(matches!(command, Command::Fetch(_)), "{command:?}");
            rig.loaded(next, lines);
            next += 1;
        }
    }
    assert!(next > FOUND, "some are read back");
    assert!(rig.memory.has_room(&rig.stream.account, share / 3), "{} of 8 are here", next - FOUND);
}

#[tokio::test]
async fn the_age_of_what_is_held_includes_what_is_on_disk() {
    let mut rig = Rig::new(Encoding::Lines);
    let age = |rig: &Rig| rig.delivery.view(Instant::now()).ages.of("clicks");
    assert_eq!(age(&rig), Duration::ZERO);
    rig.recovered(2, 2, 4);
    let spool = Arc::clone(&rig.delivery.parts.metrics.spool);
    let of_1970 = Duration::from_secs(40 * 365 * 86_400);
    spool.oldest.lock().unwrap().insert("clicks".into(), 1);
    assert!(age(&rig) > of_1970, "it is on disk alone: {:?}", age(&rig));
    spool.oldest.lock().unwrap().clear();
    assert_eq!(age(&rig), Duration::ZERO);
}

#[tokio::test]
async fn batches_whose_calls_failed_in_any_order_are_written_in_theirs() {
    let mut rig = Rig::new(Encoding::Lines);
    let stream = rig.delivery.open_queue(&Arc::clone(&rig.stream), rig.now);
    let mut failed = Vec::new();
    for (sequence, lines) in [&b"a\n"[..], b"b\n", b"c\n"].into_iter().enumerate() {
        let id = BatchId { shard: 0, sequence: sequence as u64 };
        let ticket = Ticket::new(id, Arc::clone(&rig.stream), 1, rig.now, rig.now);
        let charge = Charge::forced(&rig.memory, &rig.stream.account, 2);
        let (now, memory) = (rig.now, Arc::clone(&rig.memory));
        rig.queue().push(Item::Loose(Loose::new(Arc::new(ticket), lines, charge, now)));
        failed.extend(rig.queue().next_call(Encoding::Lines, &memory, CallMax::WHOLE, true));
    }
    for mut piece in failed {
        piece.is_retry = true;
        rig.queue().push_retry(piece);
    }
    rig.delivery.spill_stream(stream, u64::MAX);
    let asked = rig.step();
    let [Command::Append { parts, .. }] = &asked[..] else { panic!("one batch: {asked:?}") };
    let lines: Vec<u8> = parts
        .iter()
        .flat_map(|part| match part {
            Part::Lines(lines) => lines.to_vec(),
            Part::Records(..) => panic!("they were lines"),
        })
        .collect();
    assert_eq!(lines, b"a\nb\nc\n");
}
