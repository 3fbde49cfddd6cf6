//! The admin port: metrics, health, status, and the few things that can be asked of a running relay. It reads
//! what others count and passes wishes on; it decides nothing.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{RawQuery, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use tokio::sync::{mpsc, oneshot};

use crate::delivery::{Command, LaneView, View};
use crate::destination::Destination;
use crate::lifecycle::{Lifecycle, Stage};
use crate::memory::Plan;
use crate::metrics::exposition::{self, LaneFigures, Live};
use crate::metrics::process::Usage;
use crate::reload::{Refused, Reloader};
use crate::shard::Shared;

mod conditions;
mod page;
mod status;
mod tail;
mod watch;

use self::status::{Looker, Query};

/// The content type of Prometheus' text format.
const METRICS_CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
/// Busy ratios are taken over at least this long, so that two scrapers do not spoil each other's.
const BUSY_WINDOW: Duration = Duration::from_secs(1);

/// What the endpoints look at.
#[derive(Debug)]
pub struct Parts {
    /// What the shards share.
    pub shared: Arc<Shared>,
    /// Where calls go.
    pub destination: Arc<Destination>,
    /// How delivery is asked.
    pub delivery: mpsc::Sender<Command>,
    /// The stage of the process.
    pub lifecycle: Arc<Lifecycle>,
    /// What reads the configuration again.
    pub reloader: Arc<Reloader>,
    /// The memory plan.
    pub plan: Plan,
    /// Which driver reads the sockets.
    pub driver: &'static str,
}

/// What the endpoints look at, and what they remember.
#[derive(Debug)]
pub struct Admin {
    parts: Parts,
    /// The name of this host.
    host: String,
    /// Where calls go, as it is configured.
    destination_name: String,
    /// The last look at how busy the shards were.
    busy: Mutex<Busy>,
    /// The last look at everything.
    looker: tokio::sync::Mutex<Looker>,
}

impl Deref for Admin {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.parts
    }
}

/// A window of time over which shards were more or less busy.
#[derive(Debug)]
struct Busy {
    since: Instant,
    nanoseconds: Vec<u64>,
    ratios: Vec<f64>,
}

impl Busy {
    /// A window that starts now, with nothing in it.
    fn new(shards: usize) -> Self {
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
        .route("/", get(page::page))
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "alive\n" }))
        .route("/readyz", get(readyz))
        .route("/status", get(status))
        .route("/tail", get(tail::tail))
        .route("/maintenance", post(maintenance))
        .route("/reload", post(reload))
        .route("/drain", post(drain))
        .layer(middleware::from_fn(refuse_foreign))
        .with_state(admin)
}

/// Keeps the pages of other sites, open in the browser of somebody who reaches this port, from asking anything of it.
/// What is no browser says nothing of sites (Fetch Metadata, `Sec-Fetch-Site`).
async fn refuse_foreign(request: Request, next: Next) -> Response {
    if request.method() == Method::POST && is_foreign(request.headers()) {
        return (StatusCode::FORBIDDEN, "a page of another site may not ask this\n").into_response();
    }
    next.run(request).await
}

fn is_foreign(headers: &HeaderMap) -> bool {
    let site = headers.get("sec-fetch-site").map(HeaderValue::as_bytes);
    !matches!(site, None | Some(b"same-origin" | b"none"))
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

async fn status(State(admin): State<Arc<Admin>>, RawQuery(query): RawQuery) -> Response {
    let query = match Query::parse(query.as_deref().unwrap_or_default()) {
        Ok(query) => query,
        Err(sentence) => return (StatusCode::BAD_REQUEST, format!("{sentence}\n")).into_response(),
    };
    let look = admin.looker.lock().await.look(&admin).await;
    let headers = [(header::CACHE_CONTROL, "no-store")];
    (headers, Json(look.status(&admin, &query))).into_response()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Maintenance {
    on: bool,
}

async fn maintenance(State(admin): State<Arc<Admin>>, body: String) -> (StatusCode, String) {
    // A list would be taken, too, field by field.
    let is_object = body.trim_start().starts_with('{');
    let wanted = serde_json::from_str::<Maintenance>(&body);
    match wanted {
        Ok(Maintenance { on }) if is_object => {
            if admin.lifecycle.set_maintenance(on) != on {
                tracing::info!("maintenance was turned {}", if on { "on" } else { "off" });
            }
            let config = admin.shared.config.load();
            let file = config.maintenance_file.as_ref();
            let file = file.filter(|_| !on && admin.lifecycle.is_in_maintenance());
            let answer = match file {
                Some(file) => format!("maintenance stays on as long as {} is there\n", file.display()),
                None => format!("maintenance is {}\n", if on { "on" } else { "off" }),
            };
            (StatusCode::OK, answer)
        }
        wrong => {
            let why = wrong.err().map_or_else(|| "it is not an object".to_owned(), |error| error.to_string());
            let sentence = format!("the body must be {{\"on\": true}} or {{\"on\": false}}: {why}\n");
            (StatusCode::BAD_REQUEST, sentence)
        }
    }
}

async fn reload(State(admin): State<Arc<Admin>>) -> (StatusCode, String) {
    let (status, answer) = match admin.reloader.reload().await {
        Ok(changes) => (StatusCode::OK, changes.to_string()),
        Err(refused @ Refused::Draining) => (StatusCode::CONFLICT, refused.to_string()),
        Err(refused) => (StatusCode::BAD_REQUEST, refused.to_string()),
    };
    (status, format!("{answer}\n"))
}

async fn drain(State(admin): State<Arc<Admin>>) -> (StatusCode, &'static str) {
    admin.lifecycle.ask_to_drain();
    (StatusCode::ACCEPTED, "draining\n")
}

impl Admin {
    /// Looks at these.
    pub fn new(parts: Parts) -> Self {
        let config = parts.shared.config.load_full();
        let endpoint = config
            .delivery_stream_defaults
            .endpoint_url
            .as_ref()
            .map(|url| format!(" at {url}"))
            .unwrap_or_default();
        Self {
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            destination_name: format!("{}{endpoint}", config.destination),
            busy: Mutex::new(Busy::new(parts.plan.shards)),
            looker: tokio::sync::Mutex::new(Looker::new(&parts.shared.metrics)),
            parts,
        }
    }

    /// What delivery looks like, with the ages of what has not come to it.
    async fn view(&self) -> View {
        let (answer, view) = oneshot::channel();
        if self.delivery.send(Command::Look(answer)).await.is_err() {
            return View::default();
        }
        let mut view = view.await.unwrap_or_default();
        self.shared.registry.note_ages(&mut view.ages, Instant::now());
        view
    }

    /// By label: of several lanes with one label the worst state, all calls, and the least rate.
    fn lanes(&self, views: &[LaneView]) -> BTreeMap<String, LaneFigures> {
        let mut lanes: BTreeMap<String, LaneFigures> = BTreeMap::new();
        for view in views {
            let counters = self.shared.metrics.lane(&view.delivery_stream);
            let lane = lanes.entry(counters.name().to_owned()).or_default();
            lane.state = (view.state as u8).max(lane.state);
            lane.in_flight += view.in_flight;
            lane.rate = [lane.rate, view.rate].into_iter().flatten().reduce(f64::min);
        }
        lanes
    }

    /// How busy each shard is.
    fn busy_ratios(&self, now: Instant) -> Vec<f64> {
        let shards = &self.shared.metrics.shards;
        let busy = shards.iter().map(|shard| shard.busy_nanoseconds.get()).collect();
        self.busy.lock().unwrap_or_else(PoisonError::into_inner).look(now, busy)
    }

    async fn live(&self) -> Live {
        let view = self.view().await;
        let now = Instant::now();
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
            ages: view.ages,
            credentials_expiry: self.destination.credentials_expiry(),
            busy_ratios: self.busy_ratios(now),
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
