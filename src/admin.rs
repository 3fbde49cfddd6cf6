//! The admin port: metrics, health, status, and the few things that can be asked of a running relay. It reads
//! what others count and passes wishes on; it decides nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use tokio::sync::{mpsc, oneshot};

use crate::delivery::{Command, LaneView, View, lane::LaneState};
use crate::destination::Destination;
use crate::lifecycle::{Lifecycle, Stage};
use crate::memory::Plan;
use crate::metrics::exposition::{self, Live};
use crate::metrics::process::Usage;
use crate::shard::Shared;

/// The content type of Prometheus' text format.
const METRICS_CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
/// Busy ratios are taken over at least this long, so that two scrapers do not spoil each other's.
const BUSY_WINDOW: Duration = Duration::from_secs(1);

/// What the endpoints look at.
#[derive(Debug)]
pub struct Admin {
    /// What the shards share.
    pub shared: Arc<Shared>,
    /// Where calls go.
    pub destination: Arc<Destination>,
    /// How delivery is asked.
    pub delivery: mpsc::Sender<Command>,
    /// The stage of the process.
    pub lifecycle: Arc<Lifecycle>,
    /// The memory plan.
    pub plan: Plan,
    /// Which driver reads the sockets.
    pub driver: &'static str,
    /// The last look at how busy the shards were.
    pub busy: Mutex<Busy>,
}

/// A window of time over which shards were more or less busy.
#[derive(Debug)]
pub struct Busy {
    since: Instant,
    nanoseconds: Vec<u64>,
    ratios: Vec<f64>,
}

impl Busy {
    /// A window that starts now, with nothing in it.
    pub fn new(shards: usize) -> Self {
        Self { since: Instant::now(), nanoseconds: vec![0; shards], ratios: vec![0.0; shards] }
    }

    /// The ratios of the last whole window.
    fn look(&mut self, now: Instant, nanoseconds: Vec<u64>) -> Vec<f64> {
        let window = now.saturating_duration_since(self.since);
        if window >= BUSY_WINDOW {
            let ratio = |(now, before): (&u64, &u64)| (now - before) as f64 / window.as_nanos() as f64;
            self.ratios =
                nanoseconds.iter().zip(&self.nanoseconds).map(ratio).map(|ratio| ratio.min(1.0)).collect();
            self.nanoseconds = nanoseconds;
            self.since = now;
        }
        self.ratios.clone()
    }
}

/// The routes of the admin port.
pub fn router(admin: Arc<Admin>) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "alive\n" }))
        .route("/readyz", get(readyz))
        .route("/status", get(status))
        .route("/maintenance", post(maintenance))
        .route("/drain", post(drain))
        .with_state(admin)
}

async fn index() -> &'static str {
    "Standpipe\n\n\
     GET  /metrics      Prometheus metrics\n\
     GET  /healthz      200 while the process lives: for load balancers\n\
     GET  /readyz       200, or 503 while starting, in maintenance or draining\n\
     GET  /status       phase, streams, lanes and memory as JSON\n\
     POST /maintenance  {\"on\": true} makes /readyz say 503, {\"on\": false} takes that back\n\
     POST /drain        what SIGTERM does\n"
}

async fn metrics(State(admin): State<Arc<Admin>>) -> Response {
    let live = admin.live().await;
    let text = exposition::text(&admin.shared.metrics, &live);
    ([(header::CONTENT_TYPE, METRICS_CONTENT_TYPE)], text).into_response()
}

async fn readyz(State(admin): State<Arc<Admin>>) -> (StatusCode, String) {
    match admin.lifecycle.stage() {
        Stage::Ready => (StatusCode::OK, "ready\n".to_owned()),
        other => (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", other.label())),
    }
}

async fn status(State(admin): State<Arc<Admin>>) -> Json<serde_json::Value> {
    let view = admin.view().await;
    let lane = |lane: &LaneView| {
        let state = match lane.state {
            LaneState::Active => "active",
            LaneState::BackingOff => "backing_off",
            LaneState::Parked => "parked",
        };
        serde_json::json!({
            "delivery_stream": *lane.delivery_stream,
            "state": state,
            "calls_in_flight": lane.in_flight,
            "last_error": lane.last_error,
        })
    };
    let totals = admin.shared.metrics.totals();
    let stream = |totals: &crate::metrics::Totals| {
        serde_json::json!({
            "stream": totals.stream,
            "received": totals.received,
            "recovered": totals.recovered,
            "delivered": totals.delivered,
            "dropped": totals.dropped_in_all(),
            "held": {
                "open": totals.open,
                "queued": totals.queued,
                "in_flight": totals.in_flight,
                "retry": totals.retry,
                "spool": totals.spool,
            },
        })
    };
    let memory = &admin.shared.memory;
    Json(serde_json::json!({
        "version": env!("CARGO_PKG_VERSION"),
        "stage": admin.lifecycle.stage(),
        "io_driver": admin.driver,
        "memory": {
            "limit_bytes": admin.plan.total,
            "events_limit_bytes": admin.plan.events,
            "events_bytes": memory.used(),
            "partial_bytes": memory.partial(),
            "resident_bytes": resident_bytes(),
        },
        "held": totals.iter().map(crate::metrics::Totals::held).sum::<u64>(),
        "streams": totals.iter().map(stream).collect::<Vec<_>>(),
        "lanes": view.lanes.iter().map(lane).collect::<Vec<_>>(),
    }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Maintenance {
    on: bool,
}

async fn maintenance(State(admin): State<Arc<Admin>>, body: String) -> (StatusCode, String) {
    match serde_json::from_str::<Maintenance>(&body) {
        Ok(Maintenance { on }) => {
            admin.lifecycle.set_maintenance(on);
            tracing::info!("maintenance was turned {}", if on { "on" } else { "off" });
            let file = admin.shared.config.maintenance_file.as_ref();
            let file = file.filter(|_| !on && admin.lifecycle.is_in_maintenance());
            let answer = match file {
                Some(file) => format!("maintenance stays on as long as {} is there\n", file.display()),
                None => format!("maintenance is {}\n", if on { "on" } else { "off" }),
            };
            (StatusCode::OK, answer)
        }
        Err(error) => (
            StatusCode::BAD_REQUEST,
            format!("the body must be {{\"on\": true}} or {{\"on\": false}}: {error}\n"),
        ),
    }
}

async fn drain(State(admin): State<Arc<Admin>>) -> (StatusCode, &'static str) {
    admin.lifecycle.ask_to_drain();
    (StatusCode::ACCEPTED, "draining\n")
}

impl Admin {
    async fn view(&self) -> View {
        let (answer, view) = oneshot::channel();
        if self.delivery.send(Command::Look(answer)).await.is_err() {
            return View::default();
        }
        view.await.unwrap_or_default()
    }

    /// State and calls in flight by label: of several lanes with one label the worst state, and all calls.
    fn lanes(&self, views: &[LaneView]) -> BTreeMap<String, (u8, usize)> {
        let mut lanes = BTreeMap::new();
        for view in views {
            let counters = self.shared.metrics.lane(&view.delivery_stream);
            let (state, in_flight) = lanes.entry(counters.name().to_owned()).or_insert((0, 0));
            *state = (view.state as u8).max(*state);
            *in_flight += view.in_flight;
        }
        lanes
    }

    async fn live(&self) -> Live {
        let view = self.view().await;
        let now = Instant::now();
        let shards = &self.shared.metrics.shards;
        let busy = shards.iter().map(|shard| shard.busy_nanoseconds.get()).collect();
        let mut ages = view.ages;
        self.shared.registry.note_ages(&mut ages, now);
        Live {
            memory: [
                ("events", self.shared.memory.used()),
                ("partial", self.shared.memory.partial()),
                ("resident", resident_bytes()),
            ],
            memory_limit: self.plan.total,
            memory_events_limit: self.plan.events,
            driver: self.driver,
            lanes: self.lanes(&view.lanes),
            ages,
            credentials_expiry: self.destination.credentials_expiry(),
            busy_ratios: self.busy.lock().unwrap_or_else(PoisonError::into_inner).look(now, busy),
            stage: self.lifecycle.stage(),
            process: Usage::now(),
        }
    }
}

/// Memory resident in all, in bytes: the second figure of /proc/self/statm (proc_pid_statm(5)).
fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    pages * rustix::param::page_size() as u64
}
