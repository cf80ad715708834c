// One proxy's row: made once, then brought up to date. On a narrow screen the same cells stand as a card.

import { h, icon, setAttribute, setHidden, setText } from "./dom.js";
import { drawSpark } from "./spark.js";
import { address, canRetry, clean, countdown, number, plural, rate, refusals, seconds, STATES } from "./words.js";

export function makeRow(row, { onRetry, onDetails }) {
  const cells = {
    name: h("button", { type: "button", class: "link name", title: clean(row.key), onclick: () => onDetails(row.key) }, clean(row.name)),
    client: h("span", { class: "second muted" }, clean(row.client)),
    state: statePill(),
    next: h("span", { class: "next" }),
    why: h("span", { class: "second why" }),
    address: h("span", { class: "mono address" }),
    target: h("span", { class: "second mono muted" }),
    visitors: h("span", { class: "count" }),
    visitorsTotal: h("span", { class: "second muted" }),
    rates: h("span", { class: "rates" }, h("span", { title: "From visitors" }), h("span", { title: "To visitors" })),
    spark: h("canvas", { class: "spark", "aria-hidden": "true" }),
    retry: h("button", { type: "button", class: "retry", "aria-label": `Retry ${clean(row.name)}`, onclick: () => onRetry(row.key) }, "Retry"),
  };
  const element = h("div", { class: "proxy-row", role: "row" },
    h("div", { role: "cell", class: "cell-name" }, cells.name, cells.client),
    h("div", { role: "cell", class: "cell-state" }, h("span", { class: "state-line" }, cells.state, cells.next), cells.why),
    h("div", { role: "cell", class: "cell-address" }, cells.address, cells.target),
    h("div", { role: "cell", class: "cell-visitors" }, cells.visitors, cells.visitorsTotal),
    h("div", { role: "cell", class: "cell-rate" }, cells.spark, cells.rates),
    h("div", { role: "cell", class: "cell-action" }, cells.retry));
  element.cells = cells;
  return element;
}

export function updateRow(element, row, now, canWrite) {
  const { cells } = element;
  const { view } = row;
  const isHealthy = view.status === "healthy";
  setAttribute(element, "data-state", view.status);
  showState(cells.state, view.status);
  setText(cells.next, countdown(view, row.retryLeft(now)) || `for ${since(view.since)}`);
  const why = words(view);
  setText(cells.why, why);
  setAttribute(cells.why, "title", why || null);
  setHidden(cells.why, !why);
  setText(cells.address, address(view));
  setText(cells.target, view.target ? `→ ${clean(view.target)}` : "");
  setAttribute(cells.target, "title", view.target ? clean(view.target) : null);
  setText(cells.visitors, view.visitors ? plural(view.visitors, "visitor") : "–");
  setText(cells.visitorsTotal, `${number(view.visitors_total)} in all`);
  setText(cells.rates.firstChild, row.rateIn ? `↓ ${rate(row.rateIn)}` : "");
  setText(cells.rates.lastChild, row.rateOut ? `↑ ${rate(row.rateOut)}` : "");
  drawSpark(cells.spark, row.history);
  setHidden(cells.retry, !canWrite || !canRetry(view));
}

export const statePill = () => h("span", { class: "pill" }, icon("none"), h("span"));

export function showState(pill, state) {
  if (pill.dataset.state === state) return;
  pill.dataset.state = state;
  pill.firstChild.replaceWith(icon(state));
  setText(pill.lastChild, STATES[state] ?? clean(state));
}

// Whether there is anything to say of it beyond its state.
export const hasWords = ({ view }) => view.status !== "healthy" || Object.values(view.refused ?? {}).some(Boolean);

function words(view) {
  const lost = refusals(view.refused);
  const why = view.status === "healthy" ? "" : [view.reason, view.error_message].filter(Boolean).map(clean).join(": ");
  return [why, lost && `visitors refused: ${lost}`].filter(Boolean).join("; ");
}

let serverTime = () => Date.now();
export const setServerTime = (read) => { serverTime = read; };
export const since = (iso) => seconds((serverTime() - Date.parse(iso)) / 1000);
