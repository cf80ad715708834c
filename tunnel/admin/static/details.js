// All that is known of one proxy, in a dialog: its figures, why, its traffic, and what happened to it.

import { $, h, icon, setText } from "./dom.js";
import { eventItem } from "./eventlog.js";
import { showState, since, statePill } from "./proxy_row.js";
import { drawSpark } from "./spark.js";
import { address, bytes, clean, clock, countdown, day, number, rate, refusals } from "./words.js";

const MAX_EVENTS = 30;

export class Details {
  constructor({ log }) {
    this._log = log;
    this._dialog = $("details");
    this._key = null;
    this._pill = statePill();
    this._list = h("dl", { class: "facts-list" });
    this._spark = h("canvas", { class: "spark big", "aria-hidden": "true" });
    this._events = h("ol", { class: "events small" });
    $("details-state").append(this._pill);
    $("details-close").append(icon("close"));
    $("details-close").addEventListener("click", () => this._dialog.close());
    $("details-body").append(this._list, this._spark, h("h3", {}, "Events"), this._events);
    this._dialog.addEventListener("close", () => { this._key = null; });
    this._dialog.addEventListener("click", (event) => { if (event.target === this._dialog) this._dialog.close(); });
  }

  open(store, key) {
    this._key = key;
    this.tick(store);
    this._dialog.showModal();
    this.tick(store); // once more, for the graph has a size now
  }

  tick(store) {
    if (this._key === null) return;
    const row = store.rows.get(this._key);
    if (!row) return this._dialog.close();
    setText($("details-title"), clean(row.key));
    showState(this._pill, row.view.status);
    this._showFacts(facts(row));
    drawSpark(this._spark, row.history);
    this._spark.hidden = !row.history;
    const events = this._log.of(row.client, row.name).slice(0, MAX_EVENTS);
    const told = events.map((event) => event.id).join(" ");
    if (told === this._events.dataset.told) return undefined;
    this._events.dataset.told = told;
    this._events.replaceChildren(...(events.length ? events.map(eventItem) : [h("li", { class: "empty" }, "None that are still known.")]));
    return undefined;
  }

  _showFacts(pairs) {
    const names = pairs.map(([name]) => name).join("\n");
    if (names !== this._names) {
      this._names = names;
      this._list.replaceChildren(...pairs.flatMap(([name]) => [h("dt", {}, name), h("dd")]));
    }
    pairs.forEach(([, value], index) => setText(this._list.children[2 * index + 1], value));
  }
}

function facts(row) {
  const { view } = row;
  const all = [
    ["State", `${clean(view.status)} for ${since(view.since)}, since ${day(view.since)} ${clock(view.since)}`],
    ["Reason", clean(view.reason)],
    ["Message", clean(view.error_message)],
    ["Next", countdown(view, row.retryLeft(performance.now()))],
    ["Public address", address(view)],
    ["Target", clean(view.target)],
    ["Visitors", `${number(view.visitors)} now, ${number(view.visitors_total)} in all`],
    ["Visitors refused", refusals(view.refused)],
    ["From visitors", `${bytes(view.bytes_in)} · ${rate(row.rateIn)}`],
    ["To visitors", `${bytes(view.bytes_out)} · ${rate(row.rateOut)}`],
  ];
  return all.filter(([, value]) => value);
}
