// What the server said, kept up to date by its merge patches, with the rates that follow from two of them.

export const HISTORY_SECONDS = 300; // of the graphs above
export const ROW_HISTORY = 60; // looks kept of one proxy's rate, for its small graph

const NOTHING = {
  healthy: 0, unhealthy: 0, bind_failed: 0, retrying: 0, targetDown: 0,
  visitors: 0, visitorsTotal: 0, bytesIn: 0, bytesOut: 0, rateIn: 0, rateOut: 0,
};

// RFC 7396. `target` is changed and returned.
export function mergePatch(target, patch) {
  for (const [key, value] of Object.entries(patch)) {
    if (value === null) delete target[key];
    else if (typeof value === "object" && !Array.isArray(value)) target[key] = mergePatch(isTable(target[key]) ? target[key] : {}, value);
    else target[key] = value;
  }
  return target;
}

const isTable = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

class Row {
  constructor(client, name) {
    this.client = client;
    this.name = name;
    this.key = `${client}/${name}`;
    this.view = {};
    this.retryAt = null; // on performance.now()'s clock
    this.rateIn = 0;
    this.rateOut = 0;
    this.history = null; // a ring of bytes per second, once it had any
    this.searched = "";
    this.rank = 0; // among all by name; comparing numbers is quick, and names seldom change
  }

  get rate() {
    return this.rateIn + this.rateOut;
  }

  retryLeft(now) {
    return this.retryAt === null ? null : Math.max(0, Math.ceil((this.retryAt - now) / 1000));
  }

  merge(patch, seconds, now) {
    const { bytes_in: wasIn = 0, bytes_out: wasOut = 0 } = this.view;
    mergePatch(this.view, patch);
    if ("retry_after_seconds" in patch) {
      this.retryAt = patch.retry_after_seconds === null ? null : now + patch.retry_after_seconds * 1000;
    }
    // A session that began afresh counts from nothing again.
    this.rateIn = seconds > 0 ? Math.max(0, (this.view.bytes_in ?? 0) - wasIn) / seconds : 0;
    this.rateOut = seconds > 0 ? Math.max(0, (this.view.bytes_out ?? 0) - wasOut) / seconds : 0;
    this.searched = `${this.key} ${this.view.status} ${this.view.reason ?? ""} ${this.view.publish_addr}:${this.view.publish_port} ${this.view.target} ${this.view.error_message ?? ""}`.toLowerCase();
  }

  remember() {
    this.history ??= new Float32Array(ROW_HISTORY);
    this.history.copyWithin(0, 1);
    this.history[ROW_HISTORY - 1] = this.rate;
  }
}

export class Store {
  constructor() {
    this.head = {}; // all but the sessions
    this.sessions = new Map(); // client → {client, since, rows: Map by name}
    this.rows = new Map(); // key → Row
    this.totals = { ...NOTHING };
    this.graph = { at: [], rateIn: [], rateOut: [], visitors: [] };
    this.changedState = []; // rows whose status another one than before the last change
    this._moving = new Set();
    this._graphed = new Set();
    this._isRanked = true;
    this._told = 0; // performance.now() of the last message
  }

  get process() {
    return `${this.head.pid} ${this.head.started}`;
  }

  // Seconds since the start of what is shown, as of now.
  uptime(now) {
    return (this.head.uptime ?? 0) + (now - this._told) / 1000;
  }

  // The server's wall clock, whatever the browser's says.
  serverTime(now) {
    return Date.parse(this.head.at) + (now - this._told);
  }

  state(message) {
    const before = this.rows;
    const process = this.process;
    [this.head, this.sessions, this.rows] = [{}, new Map(), new Map()];
    this._moving.clear();
    this._graphed.clear();
    this.change(message, 0);
    if (process !== this.process) return;
    for (const [key, row] of this.rows) {
      const history = before.get(key)?.history;
      if (!history) continue;
      row.history = history;
      this._graphed.add(row);
    }
  }

  change({ sessions = {}, ...head }, seconds = head.seconds) {
    const now = performance.now();
    this._told = now;
    mergePatch(this.head, head);
    for (const row of this._moving) row.rateIn = row.rateOut = 0;
    this._moving.clear();
    this.changedState = [];
    for (const [client, patch] of Object.entries(sessions)) {
      if (patch === null) this._removeSession(client);
      else this._mergeSession(client, patch, seconds, now);
    }
    for (const row of this._moving) this._graphed.add(row);
    for (const row of this._graphed) this._remember(row);
    this._rank();
    this._sum();
    if (seconds > 0) this._extend(); // a rate is known from the second word on
  }

  _removeSession(client) {
    for (const row of this.sessions.get(client)?.rows.values() ?? []) this._removeRow(row);
    this.sessions.delete(client);
  }

  _mergeSession(client, { since, proxies = {} }, seconds, now) {
    let session = this.sessions.get(client);
    if (!session) this.sessions.set(client, (session = { client, rows: new Map() }));
    if (since) session.since = since;
    for (const [name, patch] of Object.entries(proxies)) {
      let row = session.rows.get(name);
      if (patch === null) {
        if (row) this._removeRow(row);
        session.rows.delete(name);
        continue;
      }
      const isNew = !row;
      if (isNew) {
        row = new Row(client, name);
        session.rows.set(name, row);
        this.rows.set(row.key, row);
        this._isRanked = false;
      }
      const status = row.view.status;
      row.merge(patch, isNew ? 0 : seconds, now);
      if (!isNew && status !== row.view.status) this.changedState.push(row);
      if (row.rate > 0) this._moving.add(row);
    }
  }

  _rank() {
    if (this._isRanked) return;
    this._isRanked = true;
    const { compare } = new Intl.Collator("en", { numeric: true });
    [...this.rows.values()].sort((one, other) => compare(one.key, other.key)).forEach((row, rank) => { row.rank = rank; });
  }

  _removeRow(row) {
    this.rows.delete(row.key);
    this._moving.delete(row);
    this._graphed.delete(row);
  }

  _remember(row) {
    row.remember();
    if (!row.history.some((rate) => rate > 0)) {
      this._graphed.delete(row);
      row.history = null;
    }
  }

  _sum() {
    const totals = { ...NOTHING };
    for (const session of this.sessions.values()) {
      session.totals = { healthy: 0, visitors: 0, rate: 0 };
      for (const row of session.rows.values()) {
        const { view } = row;
        totals[view.status] = (totals[view.status] ?? 0) + 1;
        totals.retrying += row.retryAt === null || view.reason === "target_down" ? 0 : 1;
        totals.targetDown += view.reason === "target_down" ? 1 : 0;
        totals.visitors += view.visitors;
        totals.visitorsTotal += view.visitors_total;
        totals.bytesIn += view.bytes_in;
        totals.bytesOut += view.bytes_out;
        totals.rateIn += row.rateIn;
        totals.rateOut += row.rateOut;
        session.totals.healthy += view.status === "healthy" ? 1 : 0;
        session.totals.visitors += view.visitors;
        session.totals.rate += row.rate;
      }
    }
    this.totals = totals;
  }

  _extend() {
    const { graph, totals } = this;
    const at = Date.parse(this.head.at) / 1000;
    if (graph.at.length && at <= graph.at.at(-1)) {
      if (graph.at.at(-1) - at < 5) return; // a clock that was set a little
      for (const values of Object.values(graph)) values.length = 0;
    }
    graph.at.push(at);
    graph.rateIn.push(totals.rateIn);
    graph.rateOut.push(totals.rateOut);
    graph.visitors.push(totals.visitors);
    const old = graph.at.findIndex((time) => time >= at - HISTORY_SECONDS);
    if (old > 0) for (const values of Object.values(graph)) values.splice(0, old);
  }
}
