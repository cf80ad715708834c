// The page of one running server or client: /events feeds the store, and each part of the page shows it.

import { Actions, confirm } from "./actions.js";
import { Details } from "./details.js";
import { $, icon, setAttribute, setText } from "./dom.js";
import { EventLog } from "./eventlog.js";
import { Feed } from "./feed.js";
import { Overview } from "./overview.js";
import { Gate, Pools, Sessions } from "./panels.js";
import { Proxies } from "./proxies.js";
import { setServerTime } from "./proxy_row.js";
import { forgetColours } from "./spark.js";
import { Store } from "./store.js";
import { clean, number, plural, STATES } from "./words.js";

const MAX_NAMED = 3; // proxies told one by one when many change at once

const store = new Store();
const log = new EventLog();
const actions = new Actions();
const details = new Details({ log });
const overview = new Overview();
const proxies = new Proxies({
  onRetry: (key) => store.rows.has(key) && actions.retry(store.rows.get(key)),
  onDetails: (key) => details.open(store, key),
});
const parts = [overview, proxies, new Sessions({ onClose: closeSession }), new Pools(), new Gate(), actions];
const feed = new Feed({
  state(message) {
    const { pid, version } = store.head;
    const isAnother = pid !== undefined && store.process !== `${message.pid} ${message.started}`;
    if (isAnother && version !== message.version) return location.reload(); // another version's page
    store.state(message);
    show();
    if (!isAnother) return undefined;
    log.clear(); // another process counts its events from 1 again
    feed.lastId = 0;
    return feed.open();
  },
  change(message) {
    store.change(message);
    show();
  },
  event: (message) => log.add(message),
  missed: (message) => log.miss(message.count),
});

setServerTime(() => store.serverTime(performance.now()));
$("again").addEventListener("click", () => actions.connectNow([...store.sessions.keys()][0] || "this client"));
setUpTheme();
setUpKeys();
feed.open();
setInterval(tick, 1000);
document.addEventListener("visibilitychange", () => document.hidden || show());

// In a tab nobody sees only the title is kept up to date.
function show() {
  if (document.hidden) return overview.show(store);
  for (const part of parts) part.show(store);
  announce(store.changedState);
  return tick();
}

function tick() {
  feed.check();
  showFeed();
  if (document.hidden) return;
  if (feed.silence) return overview.stale(store);
  overview.tick(store);
  proxies.tick();
  details.tick(store);
  return undefined;
}

function showFeed() {
  const silence = feed.silence;
  const state = silence ? "silent" : feed.isOpen ? "live" : "connecting";
  setAttribute($("feed"), "data-state", state);
  setText($("feed-text"), silence ? `No answer for ${number(silence)} s` : feed.isOpen ? "Live" : "Connecting …");
  document.body.classList.toggle("is-stale", Boolean(silence) && store.head.role !== undefined);
}

function announce(rows) {
  if (!rows.length) return;
  const named = rows.slice(0, MAX_NAMED).map((row) => `${clean(row.name)} is ${(STATES[row.view.status] ?? "").toLowerCase()}`);
  const more = rows.length - named.length;
  setText($("announcer"), named.join(", ") + (more > 0 ? `, and ${plural(more, "more proxy", "more proxies")} changed` : ""));
}

async function closeSession(client) {
  const session = store.sessions.get(client);
  if (!session) return;
  const visitors = session.totals.visitors;
  const cut = visitors ? ` ${plural(visitors, "visitor")} will be cut off.` : "";
  const text = `Its ${plural(session.rows.size, "proxy", "proxies")} will be gone until it connects again, which it does by itself.${cut}`;
  if (await confirm(`Close the session of ${clean(client)}?`, text, "Close the session")) await actions.close(client);
}

function setUpTheme() {
  const button = $("theme");
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const recolour = () => {
    forgetColours();
    overview.recolour();
    const isDark = (root.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
    setAttribute(button, "aria-label", isDark ? "Light colours" : "Dark colours");
    setAttribute(button, "title", isDark ? "Light colours" : "Dark colours");
  };
  button.append(icon("theme"));
  button.addEventListener("click", () => {
    const isDark = (root.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
    root.dataset.theme = isDark ? "light" : "dark";
    try { localStorage.setItem("theme", root.dataset.theme); } catch { /* not kept, then */ }
    recolour();
  });
  system.addEventListener("change", recolour);
  recolour();
}

function setUpKeys() {
  document.addEventListener("keydown", (event) => {
    const isTyping = event.target.matches("input, select, textarea");
    if (event.key !== "/" || isTyping || event.ctrlKey || event.metaKey || document.querySelector("dialog[open]")) return;
    event.preventDefault();
    $("search").focus();
  });
}
