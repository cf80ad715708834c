// The page's top: who this is, whether all is well, and the figures over all proxies with their graphs.

import { $, icon, setAttribute, setHidden, setText } from "./dom.js";
import { Graph } from "./graphs.js";
import { bytes, clean, clock, number, plural, rate, seconds, uptime } from "./words.js";

export class Overview {
  constructor() {
    this._graphs = [
      [new Graph($("graph-in"), { lines: ["--in"], say: rate, highestAtLeast: 1000 }), "rateIn"],
      [new Graph($("graph-out"), { lines: ["--out"], say: rate, highestAtLeast: 1000 }), "rateOut"],
      [new Graph($("graph-visitors"), { lines: ["--people"], say: (value) => (Number.isInteger(value) ? number(value) : ""), highestAtLeast: 4 }), "visitors"],
    ];
  }

  show(store) {
    const { head, totals } = store;
    setText($("role"), head.role);
    setAttribute($("role"), "data-role", head.role);
    setText($("rate-in"), rate(totals.rateIn));
    setText($("rate-out"), rate(totals.rateOut));
    setText($("visitors"), number(totals.visitors));
    setText($("total-in"), `${bytes(totals.bytesIn)} in all`);
    setText($("total-out"), `${bytes(totals.bytesOut)} in all`);
    setText($("visitors-total"), `${number(totals.visitorsTotal)} in all`);
    for (const [graph, key] of this._graphs) graph.show(store.graph.at, store.graph[key]);
    this._showHeadline(store);
    this.tick(store);
  }

  // While nobody answers nothing is known of now.
  stale(store) {
    if (!store.head.role) return;
    setText($("subline"), `Nothing was heard since ${clock(store.head.at)}. What you see is from then; trying again.`);
  }

  tick(store) {
    if (!store.head.role) return;
    const { version, pid, ready } = store.head;
    setText($("facts"), [`version ${version}`, `up ${uptime(store.uptime(performance.now()))}`, `process ${pid}`, ready ? "ready" : "not ready"].join(" · "));
  }

  recolour() {
    for (const [graph] of this._graphs) graph.rebuild();
  }

  _showHeadline(store) {
    const [state, text] = headline(store);
    setText($("headline"), text);
    setText($("subline"), subline(store) || "\u00a0");
    setHidden($("again"), !store.head.can_write || (store.head.connection?.state ?? "connected") === "connected");
    const place = $("headline-icon");
    if (place.dataset.state !== state) {
      place.dataset.state = state;
      place.replaceChildren(icon(state));
    }
    const ill = store.rows.size - store.totals.healthy;
    document.title = `${ill ? `(${ill}) ` : ""}trio-tunnel ${store.head.role}`;
  }
}

function headline({ head, rows, totals }) {
  if (head.connection && head.connection.state !== "connected") return ["unhealthy", "No session with the server"];
  if (!head.ready) return ["unhealthy", head.role === "client" ? "Takes no new visitors" : "Not ready for clients"];
  if (rows.size === 0) return ["none", head.role === "client" ? "Connected, and nothing is published" : "No proxies yet"];
  const ill = rows.size - totals.healthy;
  if (!ill) return ["healthy", rows.size === 1 ? "The proxy is healthy" : `All ${number(rows.size)} proxies are healthy`];
  const state = totals.bind_failed ? "bind_failed" : "unhealthy";
  return [state, `${number(ill)} of ${plural(rows.size, "proxy", "proxies")} ${ill === 1 ? "is" : "are"} not healthy`];
}

function subline({ head, sessions, totals }) {
  const connection = head.connection;
  if (head.role === "client" && connection) {
    const server = (connection.servers ?? []).map(clean).join(", ");
    const but = head.ready ? "" : `; ${clean(head.why_not_ready)}`;
    if (connection.state === "connected") return `Connected to ${server} as ${clean(connection.detail)}${but}`;
    const left = connection.retry_after_seconds;
    const next = left ? `; trying again in ${seconds(left)}` : "";
    return `${connection.state === "lost" ? "Lost" : "Connecting to"} ${server}${connection.detail ? `: ${clean(connection.detail)}` : ""}${next}`;
  }
  const parts = [plural(sessions.size, "session")];
  if (!head.ready && head.why_not_ready) parts.unshift(clean(head.why_not_ready));
  if (totals.retrying) parts.push(`${number(totals.retrying)} retrying`);
  if (totals.targetDown) parts.push(plural(totals.targetDown, "target is down", "targets are down"));
  if (totals.bind_failed) parts.push(`${number(totals.bind_failed)} given up`);
  return parts.join(" · ");
}
