//! The relay from the outside, as one test program: real processes, real sockets, port 0. Nothing here looks into
//! the relay's code; it is known by its command line, its log, its admin port and what arrives behind it.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod suite {
    mod admin;
    mod bad_input;
    mod commands;
    mod control;
    mod dead_letters;
    mod directory;
    mod drain;
    mod firehose;
    mod fuzz;
    mod harness;
    mod lanes;
    mod listeners;
    mod logs;
    mod memory;
    mod relay_to_relay;
    mod reload;
    mod rolling;
    mod seccomp;
    mod send;
    mod spool;
    mod stored;
    mod sync;
    mod tail;
}
