
// Asks /status each second while somebody looks, keeps the last minutes, and shows them. It changes nothing.
const ASK_EVERY = 1000, ANSWER_WITHIN = 5000, HISTORY_SECONDS = 300, GAP_SECONDS = 6, ROWS = 20, LANES = 8, MORE_ROWS = 200;
const SVG = "http://www.w3.org/2000/svg";
const byId = (id) => document.getElementById(id);

const DROPPED = {
  memory: "their stream held all the memory it may, and on_full is “drop”",
  spool_full: "their stream held all the memory it may, and the spool is full",
  parked: "every delivery stream of theirs is parked, and memory was full",
  rejected: "the destination refused them for what they are",
  spool_damaged: "they were on disk, and can no longer be read",
  drain_deadline: "they were still here when the drain ended",
  max_age: "they were older than max_age",
  dead_letter: "they can never be delivered, and are kept in the dead letters",
  lost_downstream: "the relay that they were delivered to has lost them",
};
const REJECTED = {
  no_space: "no space parts a name from a payload; a line is STREAM, a space, PAYLOAD, also where the payload is JSON",
  bad_name: "the name of a stream is 1 to 64 of A-Z a-z 0-9 _ . -",
  empty_payload: "nothing stands behind the space",
  too_long: "the payload is longer than max_frame_bytes",
  too_many_streams: "the name is new, and max_streams names are known already",
  unknown_stream: "only configured streams are taken, and this one is not",
  truncated: "the connection ended before the line did; each ends with a line feed",
  bad_control: "a line that starts with ! and is no control frame",
};
const STATES = {
  active: ["good", "active"], backing_off: ["warn", "backing off"], parked: ["bad", "parked"],
  starting: ["", "starting"], ready: ["good", "ready"], maintenance: ["warn", "in maintenance"], draining: ["warn", "draining"],
};

// ---- words and figures

const whole = (n) => n.toLocaleString("en");
function scaled(n, base, units, digits = 3) {
  let unit = 0;
  while (n >= base * 0.9995 && unit < units.length - 1) { n /= base; unit += 1; }
  const places = n >= 100 || (unit === 0 && Number.isInteger(n)) ? 0 : n >= 10 ? 1 : digits - 1;
  return `${n.toFixed(places)}${units[unit]}`;
}
const many = (n) => (n < 100_000 ? whole(Math.round(n)) : scaled(n, 1000, ["", " k", " M", " G", " T"]));
const rate = (n) => (n > 0 && n < 10 ? n.toFixed(1) : scaled(Math.round(n), 1000, ["", " k", " M", " G"]));
const bytes = (n) => scaled(Math.round(n), 1024, [" B", " KiB", " MiB", " GiB", " TiB"]);
const percent = (part) => `${(100 * part).toFixed(part < 0.1 && part > 0 ? 1 : 0)} %`;
const counted = (n, one, more) => `${whole(n)} ${n === 1 ? one : more}`;
function duration(s) {
  if (s == null) return "–";
  if (s < 1) return `${Math.round(1000 * s)} ms`;
  if (s < 10) return `${s.toFixed(2)} s`;
  if (s < 120) return `${Math.round(s)} s`;
  if (s < 7200) return `${Math.round(s / 60)} min`;
  return s < 172_800 ? `${Math.floor(s / 3600)} h ${Math.round((s % 3600) / 60)} min` : `${Math.round(s / 86_400)} days`;
}
const age = (s) => (s == null ? "–" : s < 120 ? `${Math.round(s)} s` : duration(s));
const clock = (at) => new Date(1000 * at).toLocaleTimeString("en-GB");

// ---- the document: what is right already is left alone, so that it can be selected and read out

function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}
function mark(node, name) {
  if (node.className !== name) node.className = name;
}
function make(tag, name, text) {
  const node = document.createElement(tag);
  if (name) node.className = name;
  if (text != null) node.textContent = text;
  return node;
}
/** Makes the children of a node those of a list, in its order, and leaves those that are there. */
function list(parent, items, keyOf, build, fill) {
  const old = new Map([...parent.children].map((node) => [node.dataset.key, node]));
  items.forEach((item, index) => {
    const key = String(keyOf(item));
    let node = old.get(key);
    if (node) old.delete(key);
    else { node = build(item); node.dataset.key = key; }
    if (parent.children[index] !== node) parent.insertBefore(node, parent.children[index] ?? null);
    fill(node, item);
  });
  for (const node of old.values()) node.remove();
}
/** Rows of a table: each cell is [class, text]. */
function table(body, items, keyOf, cells) {
  list(body, items, keyOf, () => make("tr"), (row, item) => {
    cells(item).forEach(([name, text], index) => {
      const cell = row.children[index] ?? row.appendChild(make("td"));
      mark(cell, name);
      say(cell, text);
    });
  });
}
function terms(node, pairs) {
  const flat = pairs.filter(Boolean).flatMap(([term, text]) => [["dt", term], ["dd", text]]);
  list(node, flat.map((item, index) => [...item, index]), (item) => item[2], ([tag]) => make(tag), (child, [, text]) => say(child, text));
}
function meter(node, part, high) {
  const shown = Math.min(1, Math.max(0, part || 0));
  node.firstElementChild.style.width = `${(100 * shown).toFixed(1)}%`;
  node.setAttribute("aria-valuenow", (100 * shown).toFixed(0));
  node.classList.toggle("high", shown >= high);
}

// ---- plots

function shape(svg, name) {
  const path = svg.appendChild(document.createElementNS(SVG, "path"));
  path.setAttribute("class", name);
  return path;
}
/** A plot of two series of the history: `a`, filled, and `b`. */
class Plot {
  constructor(figure, a, b, unit, label, least, base = 1000) {
    Object.assign(this, { a, b, unit, label, figure, least, base });
    const plot = figure.appendChild(make("div", "plot"));
    this.svg = plot.appendChild(document.createElementNS(SVG, "svg"));
    this.svg.setAttribute("viewBox", "0 0 1000 100");
    this.svg.setAttribute("preserveAspectRatio", "none");
    this.svg.setAttribute("role", "img");
    this.paths = Object.fromEntries(["grid", "fill", "a", "b", "cursor"].map((name) => [name, shape(this.svg, name)]));
    this.marks = [0, 1].map(() => plot.appendChild(make("span", "y")));
    if (!figure.classList.contains("spark")) {
      const times = figure.appendChild(make("div", "times"));
      this.since = times.appendChild(make("span"));
      times.append(make("span", "", "now"));
      plot.addEventListener("pointermove", (event) => this.point(event));
      plot.addEventListener("pointerleave", () => { this.pointed = null; this.draw(); });
    }
  }
  /** The next round figure above, in the unit that it will be shown in. */
  top(value) {
    const unit = this.base ** Math.max(0, Math.floor(Math.log(value) / Math.log(this.base)));
    const power = unit * 10 ** Math.floor(Math.log10(value / unit));
    return [1, 1.5, 2, 3, 4, 5, 6, 8, 10, 12].map((step) => step * power).find((step) => step >= value);
  }
  draw() {
    const now = history.at(-1)?.t ?? 0;
    const span = Math.min(HISTORY_SECONDS, Math.max(60, now - (history[0]?.t ?? now)));
    const top = this.top(Math.max(...history.flatMap((one) => [one[this.a] ?? 0, one[this.b] ?? 0]), this.least / 1.02) * 1.02);
    const x = (one) => (1000 * (1 - (now - one.t) / span)).toFixed(1);
    const y = (value) => (100 - (100 * value) / top).toFixed(2);
    const runs = (key) => {
      const all = [];
      let before = -Infinity;
      for (const one of history) {
        if (one[key] == null) { before = -Infinity; continue; }
        if (one.t - before > GAP_SECONDS) all.push([]);
        all.at(-1).push(one);
        before = one.t;
      }
      return all;
    };
    const line = (run, key) => run.map((one, index) => `${index ? "L" : "M"}${x(one)} ${y(one[key])}`).join("");
    const lines = (key) => runs(key).map((run) => line(run, key)).join("");
    this.paths.grid.setAttribute("d", "M0 100H1000M0 50H1000M0 0H1000");
    this.paths.fill.setAttribute("d", runs(this.a).map((run) => `${line(run, this.a)}L${x(run.at(-1))} 100L${x(run[0])} 100Z`).join(""));
    this.paths.a.setAttribute("d", lines(this.a));
    this.paths.b.setAttribute("d", lines(this.b));
    this.marks.forEach((node, index) => { say(node, this.unit(top / (index + 1))); node.style.top = index ? "50%" : "0"; });
    if (this.since) say(this.since, span < 90 ? `${Math.round(span)} s ago` : `${Math.round(span / 60)} min ago`);
    this.scale = { now, span };
    this.tell(this.pointed ? history.findLast((one) => one.t <= this.pointed) : null);
  }
  point(event) {
    const box = this.svg.getBoundingClientRect();
    const { now, span } = this.scale ?? { now: 0, span: 1 };
    this.pointed = now - span * (1 - (event.clientX - box.left) / box.width) + 0.5;
    this.draw();
  }
  /** Says the figures of the moment that is pointed at, or else the last. */
  tell(one) {
    const { now, span } = this.scale;
    const at = one ? (1000 * (1 - (now - one.t) / span)).toFixed(1) : null;
    this.paths.cursor.setAttribute("d", at ? `M${at} 0V100` : "");
    const shown = one ?? history.at(-1) ?? {};
    const words = [this.a, this.b].map((key) => (shown[key] == null ? "–" : this.unit(shown[key])));
    this.figure.querySelectorAll("[data-now]").forEach((node, index) => say(node, words[index]));
    this.svg.setAttribute("aria-label", `${this.label}: ${words[0]} and ${words[1]}`);
  }
}

const history = [];
const plots = [
  new Plot(byId("chart-events"), "received", "delivered", (n) => `${rate(n)}/s`, "Events a second, in and out", 10),
  new Plot(byId("chart-bytes"), "bytesIn", "bytesOut", (n) => `${bytes(n)}/s`, "Bytes a second, in and out", 1024, 1024),
  new Plot(byId("chart-latency"), "p50", "p99", duration, "Latency over the last minutes, median and 99th percentile", 0.001),
];

/** What was seen before the page was loaded anew, of the same process. */
function recall(status) {
  try {
    const kept = JSON.parse(sessionStorage.getItem("history") ?? "{}");
    if (kept.process === processOf(status)) history.push(...kept.history);
  } catch { /* Somebody else's, or none may be kept. */ }
}
function remember(status) {
  const { rates, latency } = status;
  // The first rates are those since the start, or since somebody else looked.
  if (status.window_seconds > GAP_SECONDS) return;
  history.push({
    t: status.at, received: rates.received, delivered: rates.delivered,
    bytesIn: rates.received_bytes, bytesOut: rates.payload_bytes_delivered,
    p50: latency.p50_seconds, p99: latency.p99_seconds,
  });
  while (history.length > 2 && history[1].t < status.at - HISTORY_SECONDS) history.shift();
  try {
    sessionStorage.setItem("history", JSON.stringify({ process: processOf(status), history }));
  } catch { /* Then a reload starts anew. */ }
}
const processOf = (status) => `${status.host} ${status.pid} ${Math.round(status.started_at / 10)}`;

// ---- what is shown

function showHead(status) {
  const [name, words] = STATES[status.stage] ?? ["", status.stage];
  mark(byId("stage"), `pill ${name}`);
  say(byId("stage"), words);
  say(byId("identity"), `${status.host}, process ${status.pid} · version ${status.version} · up ${age(status.uptime_seconds)} · io ${status.io_driver} · to ${status.destination}`);
}

function showConditions(conditions, status) {
  const quiet = status && !conditions.length && status.totals.received + status.totals.recovered > 0;
  const missed = status?.totals.rejected ? ` ${counted(status.totals.rejected, "line was", "lines were")} not taken so far: the end of this page says why.` : "";
  const shown = quiet ? [{ severity: "good", kind: "well", sentence: `All is well: what comes is delivered.${missed}` }] : conditions;
  list(byId("conditions"), shown, (one) => one.kind, () => make("p"), (node, one) => {
    mark(node, `condition ${one.severity}`);
    say(node, one.sentence);
  });
  const worst = conditions.find((one) => one.severity !== "info");
  document.title = `${worst ? `(${conditions.length}) ` : ""}Standpipe${status ? ` · ${status.host}` : ""}`;
}

function showPipe(status) {
  const { totals, rates, held_by_place: held } = status;
  const figures = { ...held, received: totals.received, delivered: totals.delivered, dropped: totals.dropped };
  for (const node of byId("pipe").children) {
    const value = figures[node.dataset.key];
    say(node.querySelector("b"), many(value));
    node.querySelector("b").title = whole(value);
    node.classList.toggle("some", value > 0);
    const small = node.querySelector("small");
    if (small) say(small, `${rate(rates[node.dataset.key])}/s`);
  }
  byId("pipe").classList.toggle("flowing", rates.received > 0 || rates.delivered > 0);
  const left = totals.received + totals.recovered, right = totals.delivered + totals.dropped + status.held;
  const recovered = totals.recovered ? ` + ${whole(totals.recovered)} recovered from disk` : "";
  const sum = `${whole(totals.received)} received${recovered} = ${whole(totals.delivered)} delivered + ${whole(totals.dropped)} dropped + ${whole(status.held)} held`;
  // While events move, the figures are read one after the other.
  say(byId("ledger"), left === right ? `${sum} ✓` : sum.replace("=", "≈"));
}

function showTiles(status) {
  const { latency, memory, spool, connections, totals } = status;
  say(byId("p50"), duration(latency.p50_seconds));
  terms(byId("quantiles"), [["90 %", duration(latency.p90_seconds)], ["99 %", duration(latency.p99_seconds)], ["99.9 %", duration(latency.p999_seconds)]]);
  byId("drops").classList.toggle("some", totals.dropped > 0);
  say(byId("dropped"), whole(totals.dropped));
  const dead = status.dropped.dead_letter ?? 0, lost = totals.dropped - dead;
  const what = lost ? `${totals.dropped === 1 ? "event" : "events"}${dead ? `, ${whole(lost)} of them lost` : " lost"}` : "events, all of them in the dead letters";
  say(byId("dropped-unit"), totals.dropped ? what : "events: nothing is lost");
  const reasons = Object.entries(status.dropped).filter(([, count]) => count > 0);
  list(byId("drop-reasons"), reasons, ([reason]) => reason, () => { const node = make("li"); node.append(make("span"), make("b")); return node; }, (node, [reason, count]) => {
    say(node.children[0], `${reason}: ${DROPPED[reason] ?? ""}`);
    say(node.children[1], whole(count));
  });
  const used = memory.events_bytes / memory.events_limit_bytes;
  say(byId("memory"), bytes(memory.events_bytes));
  say(byId("memory-of"), `of ${bytes(memory.events_limit_bytes)} (${percent(used)})`);
  meter(byId("memory-meter"), used, 0.9);
  terms(byId("memory-more"), [["half-received frames", bytes(memory.partial_bytes)], ["resident, in all", `${bytes(memory.resident_bytes)} of ${bytes(memory.limit_bytes)}`]]);
  showSpool(spool, status.rates.spool_bytes);
  say(byId("connections"), whole(connections.open));
  terms(byId("connections-more"), [
    ...connections.listeners.map((one) => [one.listener, counted(one.open, "connection", "connections")]),
    ["paused for memory", whole(connections.paused)],
    ["accepted since the start", whole(connections.opened)],
    connections.refused ? ["refused", whole(connections.refused)] : null,
    connections.failed ? ["reset or failed", whole(connections.failed)] : null,
  ]);
}

function showSpool(spool, growth) {
  const used = spool ? spool.bytes / spool.limit_bytes : 0;
  say(byId("spool"), spool ? bytes(spool.bytes) : "none");
  say(byId("spool-of"), spool ? `of ${bytes(spool.limit_bytes)} (${percent(used)})` : "is configured; --spool DIR keeps on disk what memory cannot");
  byId("spool-meter").hidden = !spool;
  meter(byId("spool-meter"), used, 0.7);
  terms(byId("spool-more"), spool ? [
    ["events on disk alone", whole(spool.events)],
    ["the oldest of them", spool.oldest_seconds == null ? "–" : `${age(spool.oldest_seconds)} old`],
    ["grows by", `${growth < 0 ? "−" : ""}${bytes(Math.abs(growth))}/s`],
    spool.damaged_segments ? ["damaged files", whole(spool.damaged_segments)] : null,
  ] : []);
}

function showShards(shards) {
  list(byId("shards"), shards, (one) => one.shard, () => {
    const node = make("li"), bar = make("div", "meter");
    bar.setAttribute("role", "meter");
    bar.setAttribute("aria-valuemin", "0");
    bar.setAttribute("aria-valuemax", "100");
    bar.append(make("i"));
    node.append(make("span"), bar, make("span"), make("span", "muted"));
    return node;
  }, (node, one) => {
    say(node.children[0], String(one.shard));
    node.children[1].setAttribute("aria-label", `shard ${one.shard}`);
    meter(node.children[1], one.busy_ratio, 0.9);
    say(node.children[2], percent(one.busy_ratio));
    say(node.children[3], `${bytes(one.received_bytes_per_second)}/s, ${whole(one.connections)} conn.`);
  });
  const busy = shards.map((one) => one.busy_ratio), mean = busy.reduce((sum, one) => sum + one, 0) / (busy.length || 1);
  const uneven = mean > 0.02 && busy.length > 1 ? `the busiest has ${(Math.max(...busy) / mean).toFixed(1)} × the mean` : "";
  say(byId("shards-more"), uneven);
}

function showLanes(status) {
  const states = Object.entries(status.lanes_by_state).filter(([, count]) => count > 0);
  say(byId("lanes-count"), states.map(([state, count]) => `${whole(count)} ${STATES[state][1]}`).join(", "));
  const node = byId("lanes");
  list(node, status.lanes, (one) => one.delivery_stream, () => {
    const row = make("tr");
    const state = row.appendChild(make("td")) && row.appendChild(make("td"));
    state.append(make("span"));
    for (let cell = 0; cell < 5; cell += 1) row.append(make("td"));
    return row;
  }, (row, one) => {
    const [name, words] = STATES[one.state], pill = row.children[1].firstElementChild;
    const error = one.last_error ? `${one.last_error} (${one.last_error_seconds_ago < 1 ? "just now" : `${age(one.last_error_seconds_ago)} ago`})` : "";
    say(row.children[0], one.delivery_stream);
    mark(pill, `pill ${name}`);
    say(pill, words);
    [["number", one.records_per_second == null ? "–" : rate(one.records_per_second)],
      ["number wide", one.calls_per_second == null ? "–" : rate(one.calls_per_second)],
      ["number wide", one.rate_limit_bytes_per_second == null ? "–" : `${bytes(one.rate_limit_bytes_per_second)}/s`],
      ["number wide", whole(one.calls_in_flight)], ["mid error", error]].forEach(([kind, text], index) => {
      mark(row.children[index + 2], kind);
      say(row.children[index + 2], text);
    });
  });
  const more = status.lanes_known - status.lanes.length;
  say(byId("lanes-note"), more > 0 ? `and ${counted(more, "lane", "lanes")} more, in no worse state` : status.lanes_known ? "" : "A lane appears with the first events for its delivery stream.");
  byId("more-lanes").hidden = !(more > 0 && view.lanes < MORE_ROWS);
}

function showStreams(status) {
  say(byId("streams-count"), view.search ? `${whole(status.streams_found)} of ${whole(status.streams_known)} found` : whole(status.streams_known));
  table(byId("streams"), status.streams, (one) => one.stream, (one) => {
    const held = Object.values(one.held).reduce((sum, count) => sum + count, 0);
    return [["", one.stream], ["number", rate(Math.max(one.received_per_second, one.delivered_per_second))],
      ["number wide", whole(one.received)], ["number wide", whole(one.delivered)],
      [held ? "number amber" : "number zero", whole(held)], ["number mid", age(one.oldest_held_seconds)],
      [one.dropped ? "number red" : "number zero", whole(one.dropped)]];
  });
  const more = status.streams_found - status.streams.length;
  const note = more > 0 ? `and ${counted(more, "stream", "streams")} more` : status.streams_known ? "" : "A stream appears with its first event.";
  say(byId("streams-note"), note);
  byId("more").hidden = !(more > 0 && view.rows < MORE_ROWS);
}

function showRejected(status) {
  const reasons = Object.entries(status.rejected).filter(([, one]) => one.count > 0);
  say(byId("rejected-count"), status.totals.rejected ? `${counted(status.totals.rejected, "line was", "lines were")} not taken` : "every line that came was taken");
  list(byId("rejected"), reasons, ([reason]) => reason, () => {
    const node = make("details"), summary = node.appendChild(make("summary"));
    summary.append(make("b"), make("span"));
    node.append(make("ul", "frames"));
    node.open = true;
    return node;
  }, (node, [reason, { count, frames }]) => {
    say(node.firstElementChild.children[0], `${whole(count)} × ${reason}`);
    say(node.firstElementChild.children[1], `: ${REJECTED[reason] ?? ""}`);
    list(node.children[1], frames, (one) => `${one.at} ${one.frame}`, (one) => {
      const item = make("li"), from = one.peer ?? "a Unix socket, or gone";
      item.append(make("span", "", clock(one.at)), make("span", "muted", from), make("code", "", `${one.frame}${one.is_cut ? "…" : ""}` || " "));
      return item;
    }, () => {});
  });
}

// ---- the first event

let welcome = null;
function showWelcome(status) {
  const { totals } = status;
  welcome ??= totals.received + totals.recovered === 0 ? "open" : "closed";
  if (welcome === "open" && totals.received > 10_000) welcome = "closed";
  byId("welcome").hidden = welcome !== "open";
  if (welcome !== "open") return;
  const listener = status.connections.listeners.map((one) => one.listener).find((one) => !one.startsWith("unix:"));
  if (listener) {
    const [, host, port] = listener.match(/^\[?(.*?)\]?:(\d+)$/);
    const to = ["0.0.0.0", "::"].includes(host) ? location.hostname.replace(/[[\]]/g, "") : host;
    say(byId("command-nc"), `printf 'clicks hello\\n' | nc -q1 ${to} ${port}`);
    say(byId("command-bash"), `printf 'clicks hello\\n' > /dev/tcp/${to}/${port}`);
  } else {
    say(byId("command-nc"), `printf 'clicks hello\\n' | nc -q1 -U ${status.connections.listeners[0]?.listener.slice(5)}`);
  }
  const steps = [totals.received > 0, totals.received > 0 && status.held_by_place.open < totals.received, totals.delivered > 0];
  [...byId("steps").children].forEach((node, index) => node.classList.toggle("done", steps[index]));
  byId("welcome-close").hidden = !steps[2];
  const first = status.streams[0]?.stream ?? "";
  const arrived = steps[2] ? "Your first event has arrived" : "Your first event is here";
  say(byId("welcome-title"), steps[0] ? arrived : totals.rejected ? "A line has come, but it was not taken" : "Nothing has arrived yet");
  say(byId("welcome-text"), steps[2] ? `${counted(totals.delivered, "event", "events")} delivered, stream ${first}, to ${status.destination}. Send more:`
    : steps[0] ? `Stream ${first}: it waits for others of its stream, then it is delivered.`
      : totals.rejected ? "At the end of this page stands what came, and what is wrong with it. A line is the name of a stream, a space, and a payload:"
        : "An event is a line: the name of a stream, a space, and a payload. Send the first one from another terminal:");
}

// ---- asking

const view = { sort: "rate", search: "", rows: ROWS, lanes: LANES };
let last = null, lostSince = null, timer = null, asking = 0;

async function ask() {
  clearTimeout(timer);
  if (document.hidden) return;
  const turn = ++asking;
  const query = new URLSearchParams({ streams: view.rows, lanes: view.lanes, sort: view.sort, search: view.search });
  try {
    const answer = await fetch(`status?${query}`, { cache: "no-store", signal: AbortSignal.timeout(ANSWER_WITHIN) });
    if (!answer.ok) throw new Error(`${answer.status}`);
    const status = await answer.json();
    if (turn !== asking) return;
    lostSince = null;
    if (last && processOf(last) !== processOf(status)) { history.length = 0; welcome = null; }
    else if (!last) recall(status);
    last = status;
    remember(status);
    show(status);
  } catch {
    if (turn !== asking) return;
    lostSince ??= Date.now();
    showLost();
  }
  timer = setTimeout(ask, ASK_EVERY);
}

function show(status) {
  mark(document.body, "live");
  say(byId("link-text"), "live");
  showHead(status);
  showConditions(status.conditions, status);
  showWelcome(status);
  showPipe(status);
  showTiles(status);
  showShards(status.shards);
  showLanes(status);
  showStreams(status);
  showRejected(status);
  plots.forEach((plot) => plot.draw());
}

/** The last figures stay, and it is said that they are old. */
function showLost() {
  mark(document.body, "lost");
  say(byId("link-text"), "no answer");
  const seconds = Math.round((Date.now() - lostSince) / 1000);
  const since = last ? ` What stands below is as it was at ${clock(last.at)}.` : "";
  const drained = last?.stage === "draining" ? " It was draining, so it has probably ended." : "";
  const sentence = `The relay gives no answer${seconds > 2 ? `, for ${age(seconds)} now` : ""}.${drained}${since}`;
  showConditions([{ severity: "critical", kind: "lost", sentence }], last);
}

byId("streams-head").addEventListener("click", (event) => {
  const sort = event.target.dataset?.sort;
  if (!sort) return;
  view.sort = sort;
  for (const head of byId("streams-head").children) {
    const own = head.firstElementChild.dataset.sort;
    if (own === sort) head.setAttribute("aria-sort", sort === "name" ? "ascending" : "descending");
    else head.removeAttribute("aria-sort");
  }
  ask();
});
byId("search").addEventListener("input", (event) => { view.search = event.target.value.trim(); ask(); });
byId("more").addEventListener("click", () => { view.rows = MORE_ROWS; ask(); });
byId("more-lanes").addEventListener("click", () => { view.lanes = MORE_ROWS; ask(); });
byId("welcome-close").addEventListener("click", () => { welcome = "closed"; byId("welcome").hidden = true; });
document.addEventListener("click", async (event) => {
  const from = event.target.dataset?.copy;
  if (!from) return;
  try {
    await navigator.clipboard.writeText(byId(from).textContent);
    say(event.target, "Copied");
  } catch {
    getSelection().selectAllChildren(byId(from));
  }
});
document.addEventListener("visibilitychange", () => { if (!document.hidden) ask(); });
ask();
