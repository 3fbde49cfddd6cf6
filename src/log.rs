//! The log: lines on standard error, text on a terminal and JSON otherwise. What is written is a filter's to say, and
//! that may be changed while the process runs.

use std::io::IsTerminal;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

/// The filter of the process's log.
#[derive(Debug)]
pub struct Log(reload::Handle<EnvFilter, Registry>);

impl Log {
    /// Starts the log of this process with a filter as [`crate::config::Config::log`] has it; once in a process.
    pub fn start(directives: &str) -> Self {
        let (filter, handle) = reload::Layer::new(filter(directives));
        let registry = tracing_subscriber::registry().with(filter);
        // A reader of the log that went away is no reason to end: without this, a failed write panics.
        let lines = fmt::layer().with_writer(std::io::stderr).log_internal_errors(false);
        if std::io::stderr().is_terminal() {
            registry.with(lines.with_target(false)).init();
        } else {
            registry.with(lines.json()).init();
        }
        Self(handle)
    }

    /// Has the lines written from now on that this filter lets pass.
    pub fn set(&self, directives: &str) {
        // The subscriber is gone only when the process is about to end.
        let _ = self.0.reload(filter(directives));
    }
}

fn filter(directives: &str) -> EnvFilter {
    // The SDK's own warnings are dumps of its state; what they mean is said by our own lines.
    EnvFilter::try_new(format!("aws_config=error,{directives}")).unwrap_or_else(|_| EnvFilter::new("info"))
}
