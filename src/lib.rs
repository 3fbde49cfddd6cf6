//! Standpipe, an event relay: TCP lines in, Amazon Data Firehose calls out, every event accounted for.
//!
//! # The map, in the order in which an event passes
//!
//! - [`net`] reads sockets, with io_uring or epoll behind one face, and knows nothing of lines.
//! - [`shard`] is one pinned thread: its connections, its stream buffers, no locks.
//! - [`connection`] cuts bytes into lines at any split; [`frame`] says what stands in a line.
//! - [`stream`] knows streams by name; [`buffer`] gathers one stream's events on one shard, and [`encode`]
//!   packs them into records as they come; [`linger`] says when a buffer is sealed.
//! - [`batch`] is what was sealed; [`queue`] hands it over, the only place where shards and delivery meet.
//! - [`delivery`] queues batches by stream, and its lanes decide which call starts when, what is retried and
//!   what is settled.
//! - [`destination`] makes a call and says truthfully what became of it; AWS appears only there.
//! - [`spool`] keeps batches on disk, for when memory is short or the process ends; [`dead_letter`] keeps the events
//!   that can never be delivered.
//!
//! Beside the path: [`memory`] is the one limit and who holds how much of it, [`metrics`] accounts for every
//! event, [`config`] and [`cli`] say what is wanted, [`reload`] what else is from now on, [`log`] what is told of it and
//! [`rarely`] which lines of that are one too many, [`admin`] shows and takes wishes, [`lifecycle`] and
//! [`drain`] lead to the end, [`handover`] to the process that comes next, and [`inheritance`] is what that starts
//! with; [`supervisor`] talks with systemd, [`failpoint`] leads to a sudden end in tests, and [`relay`] alone knows
//! everybody.
//!
//! Beside the relay: [`client`] sends events and keeps them until they are synced; [`send`] is `standpipe send`,
//! which is made of it. [`health`] is `standpipe health`, which asks a running relay, and [`tail`] shows events of one as
//! they come, with `standpipe tail` as the other end.
//!
//! # Invariants
//!
//! - Every event that arrived is in one place: `received + recovered = delivered + dropped + held`.
//! - Imports point one way: `frame`, `batch`, `encode` and `metrics` know nobody above them; `destination`
//!   never retries; `delivery` never sees AWS.
//! - Everything has a bound, and every drop has a reason and a counter.

pub mod admin;
pub mod batch;
pub mod buffer;
pub mod cli;
pub mod client;
pub mod config;
pub mod connection;
pub mod dead_letter;
pub mod delivery;
pub mod destination;
pub mod drain;
pub mod encode;
pub mod failpoint;
pub mod frame;
#[cfg(fuzzing)]
pub mod fuzz;
pub mod handover;
pub mod health;
pub mod inheritance;
pub mod lifecycle;
pub mod linger;
pub mod log;
pub mod memory;
pub mod metrics;
pub mod net;
mod prefetch;
pub mod queue;
pub mod rarely;
pub mod relay;
pub mod reload;
pub mod send;
pub mod shard;
pub mod spool;
pub mod stream;
pub mod supervisor;
pub mod tail;
