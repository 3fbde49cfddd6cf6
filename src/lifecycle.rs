//! Which part of its life the process is in, as the admin endpoints show it and may change it.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use tokio::sync::Notify;

/// A part of the process's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Not ready yet.
    Starting,
    /// Accepting connections.
    Ready,
    /// Accepting connections, but not to be given any: somebody asked for it.
    Maintenance,
    /// On its way to the end.
    Draining,
}

impl Stage {
    /// Every stage, in the order of a process's life.
    pub const ALL: [Stage; 4] = [Stage::Starting, Stage::Ready, Stage::Maintenance, Stage::Draining];

    /// The value of the metric's `stage` label, and what `/readyz` says.
    pub fn label(self) -> &'static str {
        match self {
            Stage::Starting => "starting",
            Stage::Ready => "ready",
            Stage::Maintenance => "maintenance",
            Stage::Draining => "draining",
        }
    }
}

/// The stage, and the wish for the end.
#[derive(Debug, Default)]
pub struct Lifecycle {
    stage: AtomicU8,
    maintenance: AtomicBool,
    maintenance_file: AtomicBool,
    drain_wanted: Notify,
}

impl Lifecycle {
    /// The stage now.
    pub fn stage(&self) -> Stage {
        match self.stage.load(Ordering::Acquire) {
            0 => Stage::Starting,
            1 if self.is_in_maintenance() => Stage::Maintenance,
            1 => Stage::Ready,
            _ => Stage::Draining,
        }
    }

    /// Connections are accepted from now on.
    pub fn ready(&self) {
        self.stage.store(1, Ordering::Release);
    }

    /// The end has begun.
    pub fn draining(&self) {
        self.stage.store(2, Ordering::Release);
    }

    /// Whether load balancers should send no new connections here. The file for it has its own say. Gives what was
    /// asked for before.
    pub fn set_maintenance(&self, on: bool) -> bool {
        self.maintenance.swap(on, Ordering::AcqRel)
    }

    /// Whether the file that stands for maintenance is there. Gives what was known before.
    pub fn set_maintenance_file(&self, is_there: bool) -> bool {
        self.maintenance_file.swap(is_there, Ordering::AcqRel)
    }

    /// Whether maintenance was asked for, in either way.
    pub fn is_in_maintenance(&self) -> bool {
        self.maintenance.load(Ordering::Acquire) || self.maintenance_file.load(Ordering::Acquire)
    }

    /// Asks for the end, as SIGTERM does.
    pub fn ask_to_drain(&self) {
        self.drain_wanted.notify_one();
    }

    /// Resolves when somebody asked for the end.
    pub async fn drain_asked(&self) {
        self.drain_wanted.notified().await;
    }
}
