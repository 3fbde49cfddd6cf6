//! The io_uring driver: multishot accept and receive into a ring of buffers that all connections share.
//!
//! Ownership: what the kernel may write to (the buffers) or read from (an answer being sent) belongs to this
//! struct and outlives the operation; a connection's slot is given up only when none of its operations is under
//! way, so that no completion ever meets a stranger under its key.
//!
//! Fairness: one connection alone can fill every buffer. Those that found none left are read again in the order in
//! which they were last read, so that each has its turn however much the others send.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use rustix::net::{Shutdown, SocketFlags, accept_with, shutdown};

use super::listen::Listener;
use super::{End, Handler, Key, Reading, Reaped, SMALL_READ_BYTES};
use crate::queue::Returns;

mod buffers;

use self::buffers::Buffers;

/// Submissions that wait for the next call into the kernel, at most; when full they are handed in early.
const SUBMISSIONS: u32 = 2048;
/// Completions the ring holds; beyond that the kernel keeps them until there is room (IORING_FEAT_NODROP).
const COMPLETIONS: u32 = 16_384;
/// The one group of buffers.
const BUFFER_GROUP: u16 = 0;
/// How long accepting rests after it failed: most likely files ran out, and come back when connections close.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// What a completion belongs to: the upper half of its user data; the lower half is a key or an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Accept,
    Receive,
    Send,
    Cancel,
    Bell,
}

impl Operation {
    const ALL: [Operation; 5] =
        [Operation::Accept, Operation::Receive, Operation::Send, Operation::Cancel, Operation::Bell];

    fn tag(self, index: u32) -> u64 {
        (self as u64) << 32 | u64::from(index)
    }

    fn of(tag: u64) -> (Operation, u32) {
        (Self::ALL[(tag >> 32) as usize], tag as u32)
    }
}

/// What receive operation is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Armed {
    No,
    /// Goes on until it is cancelled.
    Multishot,
    /// Ends with the next bytes.
    Once,
}

#[derive(Debug)]
struct Slot {
    socket: OwnedFd,
    reading: Reading,
    armed: Armed,
    cancelling: bool,
    /// The turn in which bytes of it came last.
    read_in: u64,
    ended: bool,
    closing: bool,
    /// Answers not handed to the kernel yet.
    outbox: VecDeque<u8>,
    /// The answer that the kernel reads from.
    sending: Option<Box<[u8]>>,
}

/// See the module.
pub struct Uring {
    ring: IoUring,
    buffers: Buffers,
    listeners: Vec<Listener>,
    /// The index of the address of each listener, which stays when the listeners are gone.
    addresses: Vec<usize>,
    /// Whether an accept operation is under way, by listener.
    accepting: Vec<bool>,
    returns: Arc<[Returns]>,
    shard: usize,
    slots: Vec<Option<Slot>>,
    free: Vec<Key>,
    completions: Vec<(u64, i32, u32)>,
    /// How often completions were taken.
    turn: u64,
    /// Connections that found no buffer in this turn.
    dry: Vec<Key>,
    accept_rests_until: Option<Instant>,
}

/// A ring with the flags that the driver wants, which need kernel 6.1: completions are worked on only when this
/// thread asks for them, which is what lets a pause gather them.
pub(super) fn new_ring(submissions: u32, completions: u32) -> io::Result<IoUring> {
    IoUring::builder()
        .setup_cqsize(completions)
        .setup_single_issuer()
        .setup_coop_taskrun()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .build(submissions)
}

impl Uring {
    pub(super) fn new(
        listeners: Vec<Listener>,
        returns: Arc<[Returns]>,
        shard: usize,
        receive_bytes: usize,
        incremental: bool,
    ) -> io::Result<Self> {
        let ring = new_ring(SUBMISSIONS, COMPLETIONS)?;
        let buffers = Buffers::new(&ring.submitter(), BUFFER_GROUP, receive_bytes, incremental)?;
        let mut driver = Self {
            ring,
            buffers,
            accepting: vec![false; listeners.len()],
            addresses: listeners.iter().map(|listener| listener.address).collect(),
            listeners,
            returns,
            shard,
            slots: Vec::new(),
            free: Vec::new(),
            completions: Vec::with_capacity(COMPLETIONS as usize),
            turn: 0,
            dry: Vec::new(),
            accept_rests_until: None,
        };
        driver.arm_bell();
        driver.arm_listeners();
        Ok(driver)
    }

    pub(super) fn wait(
        &mut self,
        timeout: Option<Duration>,
        pause: Duration,
        handler: &mut impl Handler,
    ) -> io::Result<Reaped> {
        let timeout = self.wake_listeners(timeout);
        self.enter(1, timeout)?;
        if !pause.is_zero() {
            super::pause_before_reaping(pause);
            self.enter(0, None)?;
        }
        let now = Instant::now();
        handler.woke(now);
        // The kernel does a bounded part of what it has to do at once.
        let has_more = self.ring.submission().taskrun();
        self.turn += 1;
        let mut completions = std::mem::take(&mut self.completions);
        completions
            .extend(self.ring.completion().map(|entry| (entry.user_data(), entry.result(), entry.flags())));
        let mut reaped = Reaped::default();
        for (tag, result, flags) in completions.drain(..) {
            let (operation, index) = Operation::of(tag);
            match operation {
                Operation::Accept => self.accepted(index as usize, result, flags, handler),
                Operation::Receive => self.received(index, result, flags, handler, &mut reaped),
                Operation::Send => self.sent(index, result, handler),
                Operation::Cancel => (),
                Operation::Bell => {
                    self.returns[self.shard].bell.hear();
                    if !cqueue::more(flags) {
                        self.arm_bell();
                    }
                }
            }
        }
        self.completions = completions;
        reaped.caught_up = (self.dry.is_empty() && !has_more).then_some(now);
        self.buffers.publish();
        self.arm_dry();
        Ok(reaped)
    }

    /// Reads those again that found no buffer, the one that has waited longest first: the kernel serves them in the
    /// order in which they are armed.
    fn arm_dry(&mut self) {
        let mut dry = std::mem::take(&mut self.dry);
        dry.sort_by_key(|key| self.slots[*key as usize].as_ref().map(|slot| slot.read_in));
        dry.drain(..).for_each(|key| self.arm(key));
        self.dry = dry;
    }

    /// Hands in what was submitted and waits for `want` completions, at most `timeout`.
    fn enter(&mut self, want: usize, timeout: Option<Duration>) -> io::Result<()> {
        let timespec = timeout.map(Timespec::from);
        let mut args = SubmitArgs::new();
        if let Some(timespec) = &timespec {
            args = args.timespec(timespec);
        }
        match self.ring.submitter().submit_with_args(want, &args) {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                // Timed out, interrupted, or the kernel first wants its completions taken.
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
                _ => Err(error),
            },
        }
    }

    fn submit(&mut self, entry: &squeue::Entry) {
        loop {
            // SAFETY: everything an entry points to is owned by `self`, by `Buffers` or by a slot, and lives
            // until its completion was seen (see the module).
            #[allow(unsafe_code, reason = "handing an operation to the kernel")]
            let pushed = unsafe { self.ring.submission().push(entry) };
            if pushed.is_ok() {
                return;
            }
            // The queue is full: hand it in. An error here comes again, and is dealt with, in `enter`.
            let _ = self.ring.submit();
        }
    }

    fn arm_bell(&mut self) {
        let bell = self.returns[self.shard].bell.as_fd().as_raw_fd();
        let entry = opcode::PollAdd::new(Fd(bell), libc::POLLIN as u32).multi(true).build();
        self.submit(&entry.user_data(Operation::Bell.tag(0)));
    }

    /// Accepts from every listener that does not yet.
    fn arm_listeners(&mut self) {
        for index in 0..self.listeners.len() {
            if !std::mem::replace(&mut self.accepting[index], true) {
                let listener = Fd(self.listeners[index].socket.as_raw_fd());
                let entry = opcode::AcceptMulti::new(listener).flags(libc::SOCK_CLOEXEC).build();
                self.submit(&entry.user_data(Operation::Accept.tag(index as u32)));
            }
        }
    }

    /// Accepts again after a rest; gives the time-out that does not sleep through its end.
    fn wake_listeners(&mut self, timeout: Option<Duration>) -> Option<Duration> {
        match self.accept_rests_until {
            None => timeout,
            Some(until) if until > Instant::now() => Some(timeout.unwrap_or(ACCEPT_REST).min(ACCEPT_REST)),
            Some(_) => {
                self.accept_rests_until = None;
                self.arm_listeners();
                timeout
            }
        }
    }

    fn accepted(&mut self, listener: usize, result: i32, flags: u32, handler: &mut impl Handler) {
        self.accepting[listener] = cqueue::more(flags);
        if result >= 0 {
            // SAFETY: the kernel has just given this descriptor to us, and nobody else knows it.
            #[allow(unsafe_code, reason = "taking a descriptor from the kernel")]
            let socket = unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(result) };
            // What was accepted just before listening stopped comes when the listener is gone.
            let address = self.addresses[listener];
            if let Some(socket) = handler.accepted(socket, address) {
                self.open(socket, address, handler);
            }
        } else if !matches!(-result, libc::ECANCELED | libc::ECONNABORTED | libc::EINTR | libc::EAGAIN) {
            handler.accept_failed(&io::Error::from_raw_os_error(-result));
            self.accept_rests_until = Some(Instant::now() + ACCEPT_REST);
        }
        if self.accept_rests_until.is_none() {
            self.arm_listeners();
        }
    }

    pub(super) fn open(&mut self, socket: OwnedFd, address: usize, handler: &mut impl Handler) {
        let key = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            Key::try_from(self.slots.len() - 1).expect("fewer connections than keys")
        });
        self.slots[key as usize] = Some(Slot {
            socket,
            reading: Reading::Full,
            armed: Armed::No,
            cancelling: false,
            read_in: 0,
            ended: false,
            closing: false,
            outbox: VecDeque::new(),
            sending: None,
        });
        handler.opened(key, address);
        self.arm(key);
    }

    fn slot(&mut self, key: Key) -> Option<&mut Slot> {
        self.slots.get_mut(key as usize)?.as_mut()
    }

    /// Brings what is under way in line with what is wanted of a connection.
    fn arm(&mut self, key: Key) {
        let Some(slot) = self.slot(key) else { return };
        let wanted = if slot.ended || slot.closing { Reading::Paused } else { slot.reading };
        let socket = Fd(slot.socket.as_raw_fd());
        let entry = match (slot.armed, wanted) {
            (Armed::No, Reading::Paused) => return self.free_if_done(key),
            (Armed::No, Reading::Full) => {
                slot.armed = Armed::Multishot;
                opcode::RecvMulti::new(socket, BUFFER_GROUP).build().user_data(Operation::Receive.tag(key))
            }
            (Armed::No, Reading::Small) => {
                slot.armed = Armed::Once;
                opcode::Recv::new(socket, std::ptr::null_mut(), SMALL_READ_BYTES as u32)
                    .buf_group(BUFFER_GROUP)
                    .build()
                    .flags(squeue::Flags::BUFFER_SELECT)
                    .user_data(Operation::Receive.tag(key))
            }
            (Armed::Multishot, Reading::Full) | (Armed::Once, Reading::Full | Reading::Small) => return,
            (Armed::Multishot, _) | (Armed::Once, Reading::Paused) => {
                if std::mem::replace(&mut slot.cancelling, true) {
                    return;
                }
                opcode::AsyncCancel::new(Operation::Receive.tag(key))
                    .build()
                    .user_data(Operation::Cancel.tag(key))
            }
        };
        self.submit(&entry);
    }

    fn received(
        &mut self,
        key: Key,
        result: i32,
        flags: u32,
        handler: &mut impl Handler,
        reaped: &mut Reaped,
    ) {
        let buffer = cqueue::buffer_select(flags);
        let length = usize::try_from(result).unwrap_or(0);
        if let Some(buffer) = buffer {
            let turn = self.turn;
            let is_open =
                self.slot(key).filter(|slot| !slot.closing).map(|slot| slot.read_in = turn).is_some();
            if length > 0 && is_open {
                reaped.reads += 1;
                reaped.bytes += length as u64;
                handler.data(key, self.buffers.filled(buffer, length));
            }
            self.buffers.consume(buffer, length, cqueue::buffer_more(flags));
        }
        if cqueue::more(flags) {
            return;
        }
        let Some(slot) = self.slot(key) else { return };
        slot.armed = Armed::No;
        slot.cancelling = false;
        let end = match -result {
            0 => Some(End::Closed),
            error if error < 0 => None,
            libc::ENOBUFS | libc::ECANCELED | libc::EINTR | libc::EAGAIN => None,
            _ => Some(End::Failed),
        };
        if let Some(end) = end.filter(|_| !slot.closing) {
            slot.ended = true;
            handler.ended(key, end);
        }
        if -result == libc::ENOBUFS {
            self.dry.push(key);
        } else {
            self.arm(key);
        }
    }

    fn sent(&mut self, key: Key, result: i32, handler: &mut impl Handler) {
        let Some(slot) = self.slot(key) else { return };
        let Some(sent) = slot.sending.take() else { return };
        match usize::try_from(result) {
            Ok(length) => {
                for byte in sent[length..].iter().rev() {
                    slot.outbox.push_front(*byte);
                }
                handler.sent(key, length);
            }
            // Reading will say that the connection failed.
            Err(_) => {
                slot.outbox.clear();
                handler.sent(key, usize::MAX);
            }
        }
        self.send_next(key);
        self.free_if_done(key);
    }

    fn send_next(&mut self, key: Key) {
        let Some(slot) = self.slot(key) else { return };
        if slot.sending.is_some() || slot.outbox.is_empty() || slot.closing {
            return;
        }
        let bytes: Box<[u8]> = slot.outbox.drain(..).collect();
        let length = u32::try_from(bytes.len()).expect("answers are bounded far below 4 GiB");
        let entry = opcode::Send::new(Fd(slot.socket.as_raw_fd()), bytes.as_ptr(), length)
            .flags(libc::MSG_NOSIGNAL)
            .build()
            .user_data(Operation::Send.tag(key));
        slot.sending = Some(bytes);
        self.submit(&entry);
    }

    /// Gives a slot up once it is to be closed and the kernel has nothing of it any more.
    fn free_if_done(&mut self, key: Key) {
        let done = self
            .slot(key)
            .is_some_and(|slot| slot.closing && slot.armed == Armed::No && slot.sending.is_none());
        if done {
            self.slots[key as usize] = None;
            self.free.push(key);
        }
    }

    pub(super) fn set_reading(&mut self, key: Key, reading: Reading) {
        if let Some(slot) = self.slot(key) {
            slot.reading = reading;
            self.arm(key);
        }
    }

    pub(super) fn send(&mut self, key: Key, bytes: &[u8]) {
        if let Some(slot) = self.slot(key) {
            slot.outbox.extend(bytes);
            self.send_next(key);
        }
    }

    pub(super) fn shut_down_writing(&mut self, key: Key) {
        if let Some(slot) = self.slot(key) {
            let _ = shutdown(&slot.socket, Shutdown::Write);
        }
    }

    pub(super) fn socket(&self, key: Key) -> Option<BorrowedFd<'_>> {
        Some(self.slots.get(key as usize)?.as_ref()?.socket.as_fd())
    }

    pub(super) fn close(&mut self, key: Key) {
        let Some(slot) = self.slot(key) else { return };
        slot.closing = true;
        slot.outbox.clear();
        if slot.sending.is_some() {
            // A peer that reads nothing would keep the answer, and with it the slot, for ever.
            let _ = shutdown(&slot.socket, Shutdown::Both);
        }
        self.arm(key);
    }

    pub(super) fn stop_listening(&mut self, kept: impl Fn(usize) -> bool, handler: &mut impl Handler) {
        for index in 0..self.listeners.len() {
            let cancel = opcode::AsyncCancel::new(Operation::Accept.tag(index as u32)).build();
            self.submit(&cancel.user_data(Operation::Cancel.tag(0)));
        }
        let _ = self.enter(0, None);
        // What multishot accept took before it was cancelled comes as completions; the rest is still queued.
        for Listener { socket: listener, address } in std::mem::take(&mut self.listeners) {
            while !kept(address)
                && let Ok(socket) = accept_with(&listener, SocketFlags::CLOEXEC)
            {
                if let Some(socket) = handler.accepted(socket, address) {
                    self.open(socket, address, handler);
                }
            }
        }
        self.accept_rests_until = None;
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        // The ring goes first, so that the kernel has let go of the buffers and answers when they are freed:
        // closing it cancels everything, and waits for it, before `Buffers` unmaps.
        for key in 0..self.slots.len() {
            if let Some(slot) = self.slots[key].as_ref() {
                let _ = shutdown(&slot.socket, Shutdown::Both);
            }
        }
    }
}

/// Registers a small ring of buffers, to see whether the kernel has that kind.
pub(super) fn try_buffers(ring: &IoUring, incremental: bool) -> io::Result<()> {
    let buffers = Buffers::new(&ring.submitter(), BUFFER_GROUP, 0, incremental)?;
    ring.submitter().unregister_buf_ring(BUFFER_GROUP)?;
    drop(buffers);
    Ok(())
}
