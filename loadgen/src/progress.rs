//! A progress bar on a terminal, and nothing elsewhere. It looks at a counter ten times a second; the hot paths
//! do not know it.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::send::Progress;

/// A bar that follows a counter until it is dropped.
#[derive(Debug)]
pub struct Follower {
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Follower {
    /// Shows how many of `events` (where that is known) were sent.
    pub fn new(progress: Progress, events: Option<u64>) -> Self {
        let (stop, stopped) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let bar = bar(events);
            while stopped.recv_timeout(Duration::from_millis(100)) == Err(RecvTimeoutError::Timeout) {
                bar.set_position(progress.events());
            }
            bar.finish_and_clear();
        });
        Self { stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            // A bar that failed to draw is no reason to fail.
            let _ = thread.join();
        }
    }
}

fn bar(events: Option<u64>) -> ProgressBar {
    let (bar, template) = match events {
        Some(events) => {
            (ProgressBar::new(events), "{bar:30} {human_pos}/{human_len} events, {per_sec}, {eta} left")
        }
        None => (ProgressBar::new_spinner(), "{spinner} {human_pos} events, {per_sec}, {elapsed}"),
    };
    bar.with_style(ProgressStyle::with_template(template).expect("the template is legal"))
}
