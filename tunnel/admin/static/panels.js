// Sessions, connections kept ready, and the gate: what stands below the proxies.

import { $, h, setHidden, setText } from "./dom.js";
import { clean, number, plural, rate } from "./words.js";
import { since } from "./proxy_row.js";
import { VirtualList } from "./virtual.js";

// A server's sessions, with a button to close each.
export class Sessions {
  constructor({ onClose }) {
    const rows = h("div", { class: "rows session-rows", role: "list" });
    this._empty = h("p", { class: "empty" }, "No client is connected.");
    $("sessions").append(rows, this._empty);
    this._rows = rows;
    this._list = new VirtualList(rows, {
      make: (session) => this._make(session, onClose),
      update: (element, session) => this._update(element, session),
      heightOf: () => 64,
      keyOf: (session) => session.client,
    });
  }

  show(store) {
    setHidden($("sessions-panel"), store.head.role !== "server");
    this._head = store.head;
    const sessions = [...store.sessions.values()].sort((one, other) => one.client.localeCompare(other.client, "en", { numeric: true }));
    setText($("sessions-title"), sessions.length > 1 ? `Sessions (${number(sessions.length)})` : "Sessions");
    setHidden(this._rows, sessions.length === 0);
    setHidden(this._empty, sessions.length > 0);
    this._list.show(sessions);
  }

  _make(session, onClose) {
    const close = h("button", { type: "button", "aria-label": `Close the session of ${clean(session.client)}`, onclick: () => onClose(session.client) }, "Close");
    const element = h("div", { class: "session-row", role: "listitem" },
      h("div", { class: "grow" }, h("strong", { class: "name" }, clean(session.client)), h("span", { class: "second muted" })),
      h("div", { class: "right" }, h("span", {}, h("span"), h("span", { class: "traffic" })), h("span", { class: "second muted" })), close);
    element.close = close;
    return element;
  }

  _update(element, session) {
    const [left, right] = element.children;
    const { healthy, visitors, rate: traffic } = session.totals;
    const channels = this._head.channels?.[session.client];
    setText(left.lastChild, `for ${since(session.since)} · ${number(healthy)} of ${number(session.rows.size)} healthy`);
    setText(right.firstChild.firstChild, plural(visitors, "visitor"));
    setText(right.firstChild.lastChild, traffic ? ` · ${rate(traffic)}` : "");
    setText(right.lastChild, channels ? channelWords(channels) : "");
    setHidden(element.close, !this._head.can_write);
  }
}

function channelWords({ channels = 0, streams = 0, suspect = 0, retiring = 0 }) {
  const more = [suspect && `${suspect} silent`, retiring && `${retiring} retiring`].filter(Boolean).join(", ");
  return `${plural(channels, "data channel")}${more ? ` (${more})` : ""}, ${plural(streams, "stream")}`;
}

// A client's pools: data channels to the server, hot connections to targets. On a server, all data channels in sum.
export class Pools {
  show({ head }) {
    const pools = Object.entries(head.targets ?? {}).map(([name, pool]) => [`Targets of ${clean(name)}`, pool]);
    if (head.data_channels) pools.unshift(["Data channels to the server", head.data_channels]);
    setHidden($("pools-panel"), head.role === "server" || !head.role);
    const more = (head.targets_in_all ?? 0) - Object.keys(head.targets ?? {}).length;
    this._keep(pools.map(([title]) => title));
    for (const [title, pool] of pools) this._showPool(this._parts.get(title), pool, pool !== head.data_channels);
    setText(this._note, pools.length ? (more > 0 ? `and ${number(more)} more pools` : "") : "Without a session there are none.");
  }

  // The same pools as before are brought up to date; others make the list anew.
  _keep(titles) {
    if (this._titles === titles.join("\n")) return;
    this._titles = titles.join("\n");
    this._note = h("p", { class: "muted note" });
    this._parts = new Map(titles.map((title) => [title, h("div", { class: "pool" },
      h("div", { class: "pool-head" }, h("strong", {}, title), h("span", { class: "muted" })),
      h("div", { class: "bar", "aria-hidden": "true" }, ...BAR.map((state) => h("span", { class: `bar-${state}` }))),
      h("p", { class: "pool-words" }), h("ul", { class: "troubles" }))]));
    $("pools").replaceChildren(...this._parts.values(), this._note);
  }

  // Lent is what each visitor takes one of; data channels are shared by all, so how many were ready says nothing.
  _showPool(element, pool, isLent) {
    const [head, bar, words, troubles] = element.children;
    const states = pool.states ?? {};
    const count = { ready: states.available, used: states.in_use, coming: (states.connecting ?? 0) + (states.validating ?? 0), ill: (states.unhealthy ?? 0) + (states.quarantined ?? 0) };
    BAR.forEach((state, index) => {
      bar.children[index].style.flexGrow = count[state] ?? 0;
      setHidden(bar.children[index], !count[state]);
    });
    const asked = (pool.hits ?? 0) + (pool.misses ?? 0);
    const share = asked ? `${percent(pool.hits, asked)} of ${number(asked)} found one ready` : "not asked for yet";
    setText(head.lastChild, isLent ? share : "");
    const parts = [`${number(count.ready)} ready`, `${number(count.used)} in use`];
    if (count.coming) parts.push(`${count.coming} coming`);
    if (count.ill) parts.push(`${count.ill} in quarantine`);
    if (pool.waiting) parts.push(`${plural(pool.waiting, "visitor")} waiting`);
    if (pool.failures) parts.push(plural(pool.failures, "failure"));
    if (pool.leaks) parts.push(`${pool.leaks} kept too long`);
    if (pool.wait_p95) parts.push(`95 % waited under ${(pool.wait_p95 * 1000).toFixed(pool.wait_p95 < 0.01 ? 1 : 0)} ms`);
    setText(words, parts.join(" · "));
    const lines = Object.entries(pool.troubles ?? {}).map(([address, why]) => `${clean(address)} is ${clean(why)}`);
    if (pool.troubles_in_all > lines.length) lines.push(`and ${pool.troubles_in_all - lines.length} more`);
    if (troubles.dataset.lines === lines.join("\n")) return;
    troubles.dataset.lines = lines.join("\n");
    troubles.replaceChildren(...lines.map((line) => h("li", {}, line)));
  }
}

// Rounded down: only all is 100 %.
const percent = (part, whole) => (part === whole ? "100 %" : `${(Math.floor((part / whole) * 1000) / 10).toFixed(1)} %`);

const BAR = ["ready", "used", "coming", "ill"];

const REFUSALS = {
  penalty: "closed unheard: failed too often", source_full: "too many from one source", crowd: "too many at the gate",
  proxy_header: "PROXY header missing or wrong", crowded_out: "made room for others", silent: "said nothing",
  slow_handshake: "TLS handshake too slow", slow_head: "HTTP head too slow", slow_upgrade: "upgrade too slow",
  tls: "not TLS, or another TLS", bad_request: "not an HTTP request", not_found: "no such path", left: "left by itself",
  token_refused: "wrong token", ticket_refused: "wrong or old ticket", upgrade_required: "not a WebSocket",
  too_many_channels: "too many data channels", server_busy: "server busy", server_stopping: "server stopping",
  identity_held: "name in use elsewhere", session_gone: "session gone", attach_under_way: "attach under way",
};

// Who stands before a server unproved, and why connections came to nothing.
export class Gate {
  show({ head }) {
    const { gate } = head;
    setHidden($("gate-panel"), !gate);
    if (!gate) return;
    const facts = [`${plural(gate.logins ?? 0, "login")}`, `${number(gate.strangers)} unproved now`, `${plural(gate.penalised_sources ?? 0, "source")} penalised`];
    const refused = Object.entries(gate.refusals ?? {}).filter(([, count]) => count).sort((one, other) => other[1] - one[1]);
    const told = JSON.stringify([facts, refused]);
    if (told === this._told) return;
    this._told = told;
    $("gate").replaceChildren(
      h("p", { class: "note" }, facts.join(" · ")),
      refused.length
        ? h("dl", { class: "refusals" }, ...refused.flatMap(([why, count]) => [h("dt", { title: clean(why) }, REFUSALS[why] ?? clean(why)), h("dd", {}, number(count))]))
        : h("p", { class: "empty" }, "No connection was refused."));
  }
}
