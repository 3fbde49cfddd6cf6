//! The epoll driver: for where io_uring is refused. Level-triggered, one scratch buffer for all connections.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};
use rustix::net::{RecvFlags, SendFlags, Shutdown, SocketFlags, accept_with, recv, send, shutdown};

use super::listen::Listener;
use super::{End, Handler, Key, Reading, Reaped, SMALL_READ_BYTES};
use crate::queue::Returns;

/// The most that is read of one connection before the others have their turn, in bytes.
const READ_BYTES: usize = 256 * 1024;
/// Connections accepted from one listener before anything else has its turn.
const ACCEPTS_AT_ONCE: usize = 64;
/// Events taken from the kernel at once.
const EVENTS_AT_ONCE: usize = 1024;
/// How long accepting rests after it failed: most likely files ran out, and come back when connections close.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// Marks of what an event belongs to, above the range of keys.
const BELL: u64 = u64::MAX;
const LISTENER: u64 = 1 << 32;

#[derive(Debug)]
struct Slot {
    socket: OwnedFd,
    reading: Reading,
    /// What the kernel was last asked to watch; nothing where the socket is not registered.
    watched: epoll::EventFlags,
    ended: bool,
    outbox: VecDeque<u8>,
}

/// See the module.
pub struct Epoll {
    epoll: OwnedFd,
    listeners: Vec<Listener>,
    returns: Arc<[Returns]>,
    shard: usize,
    slots: Vec<Option<Slot>>,
    free: Vec<Key>,
    scratch: Vec<u8>,
    events: Vec<epoll::Event>,
    /// How many of the events are dealt with.
    handled: usize,
    /// When they were taken from the kernel.
    polled_at: Instant,
    /// Bytes after which the shard gets its turn, as the ring of buffers bounds it with io_uring: only then is
    /// it looked at whether memory still allows every connection to be read.
    round_bytes: u64,
    accept_rests_until: Option<Instant>,
}

impl Epoll {
    pub(super) fn new(
        listeners: Vec<Listener>,
        returns: Arc<[Returns]>,
        shard: usize,
        receive_bytes: usize,
    ) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(
            &epoll,
            returns[shard].bell.as_fd(),
            epoll::EventData::new_u64(BELL),
            epoll::EventFlags::IN,
        )?;
        for (index, listener) in listeners.iter().enumerate() {
            let data = epoll::EventData::new_u64(LISTENER + index as u64);
            epoll::add(&epoll, &listener.socket, data, epoll::EventFlags::IN)?;
        }
        Ok(Self {
            epoll,
            listeners,
            returns,
            shard,
            slots: Vec::new(),
            free: Vec::new(),
            scratch: vec![0; READ_BYTES],
            events: Vec::with_capacity(EVENTS_AT_ONCE),
            handled: 0,
            polled_at: Instant::now(),
            round_bytes: receive_bytes as u64,
            accept_rests_until: None,
        })
    }

    pub(super) fn wait(
        &mut self,
        timeout: Option<Duration>,
        pause: Duration,
        handler: &mut impl Handler,
    ) -> io::Result<Reaped> {
        let is_new = self.handled == self.events.len();
        if is_new {
            self.wait_for_events(timeout, pause)?;
        }
        let now = Instant::now();
        if is_new {
            self.polled_at = now;
        }
        handler.woke(now);
        let mut reaped = Reaped::default();
        while self.handled < self.events.len() && reaped.bytes < self.round_bytes {
            let epoll::Event { data, flags } = self.events[self.handled];
            self.handled += 1;
            match data.u64() {
                BELL => self.returns[self.shard].bell.hear(),
                listener if listener >= LISTENER => {
                    self.accept((listener - LISTENER) as usize, ACCEPTS_AT_ONCE, handler);
                }
                // The connection may have been closed since, and the key be another's: reading that one is harmless.
                key => self.serve(key as Key, flags, handler, &mut reaped),
            }
        }
        let is_whole = self.handled == self.events.len() && self.events.len() < EVENTS_AT_ONCE;
        reaped.caught_up = is_whole.then_some(self.polled_at);
        Ok(reaped)
    }

    fn wait_for_events(&mut self, timeout: Option<Duration>, pause: Duration) -> io::Result<()> {
        self.wake_listeners();
        let timeout = if self.accept_rests_until.is_some() {
            Some(timeout.unwrap_or(ACCEPT_REST).min(ACCEPT_REST))
        } else {
            timeout
        };
        self.poll(timeout)?;
        if !pause.is_zero() && !self.events.is_empty() {
            super::pause_before_reaping(pause);
            self.poll(Some(Duration::ZERO))?;
        }
        Ok(())
    }

    fn poll(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let timeout = timeout.map(|timeout| Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(timeout.subsec_nanos()),
        });
        self.events.clear();
        self.handled = 0;
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut self.events), timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn serve(&mut self, key: Key, flags: epoll::EventFlags, handler: &mut impl Handler, reaped: &mut Reaped) {
        if flags.contains(epoll::EventFlags::OUT) {
            self.flush(key, handler);
        }
        if flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::HUP | epoll::EventFlags::ERR) {
            self.read(key, handler, reaped);
        }
        self.watch(key);
    }

    fn read(&mut self, key: Key, handler: &mut impl Handler, reaped: &mut Reaped) {
        let Some(slot) = self.slots[key as usize].as_mut() else { return };
        let length = match slot.reading {
            _ if slot.ended => return,
            Reading::Paused => return,
            Reading::Small => SMALL_READ_BYTES,
            Reading::Full => READ_BYTES,
        };
        match recv(&slot.socket, &mut self.scratch[..length], RecvFlags::empty()) {
            Ok((0, _)) => self.end(key, End::Closed, handler),
            Ok((length, _)) => {
                reaped.reads += 1;
                reaped.bytes += length as u64;
                handler.data(key, &self.scratch[..length]);
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => (),
            Err(_) => self.end(key, End::Failed, handler),
        }
    }

    fn end(&mut self, key: Key, end: End, handler: &mut impl Handler) {
        if let Some(slot) = self.slots[key as usize].as_mut() {
            slot.ended = true;
        }
        handler.ended(key, end);
    }

    fn accept(&mut self, index: usize, at_most: usize, handler: &mut impl Handler) {
        for _ in 0..at_most {
            // An event may be older than the end of listening.
            let Some(listener) = self.listeners.get(index) else { return };
            let address = listener.address;
            match accept_with(&listener.socket, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
                Ok(socket) => {
                    if let Some(socket) = handler.accepted(socket, address) {
                        self.open(socket, address, handler);
                    }
                }
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return,
                Err(rustix::io::Errno::CONNABORTED) => (),
                Err(error) => {
                    handler.accept_failed(&error.into());
                    return self.rest_listeners();
                }
            }
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
            watched: epoll::EventFlags::empty(),
            ended: false,
            outbox: VecDeque::new(),
        });
        handler.opened(key, address);
        self.watch(key);
    }

    /// Without descriptors left, a listener that stays readable would keep the shard busy for nothing.
    fn rest_listeners(&mut self) {
        for listener in &self.listeners {
            let _ = epoll::delete(&self.epoll, &listener.socket);
        }
        self.accept_rests_until = Some(Instant::now() + ACCEPT_REST);
    }

    fn wake_listeners(&mut self) {
        if self.accept_rests_until.is_none_or(|until| until > Instant::now()) {
            return;
        }
        self.accept_rests_until = None;
        for (index, listener) in self.listeners.iter().enumerate() {
            let data = epoll::EventData::new_u64(LISTENER + index as u64);
            let _ = epoll::add(&self.epoll, &listener.socket, data, epoll::EventFlags::IN);
        }
    }

    /// Has the kernel watch what is wanted of a connection now. One that is not read is not watched at all,
    /// since a hang-up would be reported over and over.
    fn watch(&mut self, key: Key) {
        let Some(slot) = self.slots[key as usize].as_mut() else { return };
        let mut wanted = epoll::EventFlags::empty();
        wanted.set(epoll::EventFlags::IN, slot.reading != Reading::Paused && !slot.ended);
        wanted.set(epoll::EventFlags::OUT, !slot.outbox.is_empty());
        if wanted == slot.watched {
            return;
        }
        let data = epoll::EventData::new_u64(u64::from(key));
        let done = match (slot.watched.is_empty(), wanted.is_empty()) {
            (true, _) => epoll::add(&self.epoll, &slot.socket, data, wanted),
            (false, true) => epoll::delete(&self.epoll, &slot.socket),
            (false, false) => epoll::modify(&self.epoll, &slot.socket, data, wanted),
        };
        if done.is_ok() {
            slot.watched = wanted;
        }
    }

    pub(super) fn set_reading(&mut self, key: Key, reading: Reading) {
        if let Some(slot) = self.slots.get_mut(key as usize).and_then(Option::as_mut) {
            slot.reading = reading;
            self.watch(key);
        }
    }

    pub(super) fn send(&mut self, key: Key, bytes: &[u8]) {
        if let Some(slot) = self.slots.get_mut(key as usize).and_then(Option::as_mut) {
            slot.outbox.extend(bytes);
            self.watch(key);
        }
    }

    fn flush(&mut self, key: Key, handler: &mut impl Handler) {
        let Some(slot) = self.slots[key as usize].as_mut() else { return };
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        match send(&slot.socket, slot.outbox.make_contiguous(), flags) {
            Ok(length) => {
                slot.outbox.drain(..length);
                handler.sent(key, length);
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => (),
            // Reading will say that the connection failed.
            Err(_) => {
                slot.outbox.clear();
                handler.sent(key, usize::MAX);
            }
        }
    }

    pub(super) fn shut_down_writing(&mut self, key: Key) {
        if let Some(slot) = self.slots.get(key as usize).and_then(Option::as_ref) {
            let _ = shutdown(&slot.socket, Shutdown::Write);
        }
    }

    pub(super) fn socket(&self, key: Key) -> Option<BorrowedFd<'_>> {
        Some(self.slots.get(key as usize)?.as_ref()?.socket.as_fd())
    }

    pub(super) fn close(&mut self, key: Key) {
        if self.slots.get_mut(key as usize).and_then(Option::take).is_some() {
            self.free.push(key);
        }
    }

    pub(super) fn stop_listening(&mut self, kept: impl Fn(usize) -> bool, handler: &mut impl Handler) {
        for index in 0..self.listeners.len() {
            if !kept(self.listeners[index].address) {
                self.accept(index, usize::MAX, handler);
            }
        }
        for listener in self.listeners.drain(..) {
            let _ = epoll::delete(&self.epoll, &listener.socket);
        }
        self.accept_rests_until = None;
    }
}
