// The table of proxies: which rows, in what order, and how one looks. Rows are drawn by a VirtualList.

import { $, h, setAttribute, setHidden, setText } from "./dom.js";
import { hasWords, makeRow, updateRow } from "./proxy_row.js";
import { VirtualList } from "./virtual.js";
import { plural, STATES } from "./words.js";

const [ROW, CARD, WORDS] = [68, 112, 38]; // pixels; as in proxies.css
const SEVERITY = { bind_failed: 0, unhealthy: 1, healthy: 2 };
const byName = (one, other) => one.rank - other.rank;
const COLUMNS = {
  name: { title: "Proxy", compare: byName },
  state: { title: "State", compare: (one, other) => (SEVERITY[one.view.status] ?? 0) - (SEVERITY[other.view.status] ?? 0) },
  address: { title: "Public address and target", compare: (one, other) => one.view.publish_port - other.view.publish_port },
  visitors: { title: "Visitors", compare: (one, other) => one.view.visitors - other.view.visitors, isFallingFirst: true },
  rate: { title: "Traffic", compare: (one, other) => one.rate - other.rate, isFallingFirst: true },
};

export class Proxies {
  constructor({ onRetry, onDetails }) {
    this._container = $("proxies-rows");
    this._sort = { column: "state", isFalling: false };
    this._filter = "";
    this._words = [];
    this._rows = new Map();
    this._canWrite = false;
    this._narrow = matchMedia("(max-width: 899px)");
    this._list = new VirtualList(this._container, {
      make: (row) => makeRow(row, { onRetry, onDetails }),
      update: (element, row) => updateRow(element, row, performance.now(), this._canWrite),
      heightOf: (row) => (!this._narrow.matches ? ROW : hasWords(row) ? CARD + WORDS : CARD),
      keyOf: (row) => row.key,
    });
    this._narrow.addEventListener("change", () => this._list.measure());
    this._buildHead();
    this._buildFilters();
    $("search").addEventListener("input", (event) => {
      this._words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
      this._container.scrollTop = 0;
      this._arrange();
    });
  }

  // After each change. While somebody points at the list or stands in it, rows keep their places.
  show(store) {
    this._rows = store.rows;
    this._totals = store.totals;
    this._canWrite = Boolean(store.head.can_write);
    this._role = store.head.role;
    this._arrange(this._container.matches(":hover, :focus-within"));
    this._showFilters();
  }

  // Each second: countdowns.
  tick() {
    this._list.draw();
  }

  _arrange(isHeld = false) {
    const matching = [...this._rows.values()].filter((row) => this._matches(row));
    this._list.show(isHeld ? this._inOldOrder(matching) : matching.sort(this._comparison()));
    setAttribute($("proxies"), "aria-rowcount", matching.length + 1);
    setHidden($("proxies"), matching.length === 0);
    setHidden($("proxies-empty"), matching.length > 0);
    this._sayNothing(matching.length ? "" : this._rows.size ? "No proxy matches. Clear the search, or show all." : this._noneYet());
  }

  _noneYet() {
    if (!this._role) return "Waiting for the first word …";
    if (this._role === "client") return "This client publishes nothing. Add a proxy to its configuration, or start it with one: `-p NAME=PUBLISH:TARGET`";
    return "Nothing is published yet. A client does it so: `trio-tunnel connect SERVER -p NAME=PUBLISH:TARGET`";
  }

  // What stands between backticks is code.
  _sayNothing(text) {
    const place = $("proxies-empty");
    if (place.dataset.text === text) return;
    place.dataset.text = text;
    place.replaceChildren(...text.split("`").map((part, index) => (index % 2 ? h("code", {}, part) : part)));
  }

  _matches(row) {
    return (!this._filter || row.view.status === this._filter) && this._words.every((word) => row.searched.includes(word));
  }

  _comparison() {
    const { compare } = COLUMNS[this._sort.column];
    const sign = this._sort.isFalling ? -1 : 1;
    return (one, other) => sign * compare(one, other) || byName(one, other);
  }

  _inOldOrder(rows) {
    const before = new Map(this._list.items.map((row, index) => [row.key, index]));
    const placeOf = (row) => before.get(row.key) ?? Infinity;
    return rows.sort((one, other) => (placeOf(one) === placeOf(other) ? 0 : placeOf(one) - placeOf(other)));
  }

  // Sorting

  _buildHead() {
    const header = (id) => h("span", { role: "columnheader", class: `cell-${id}`, id: `column-${id}` },
      h("button", { type: "button", onclick: () => this._sortBy(id) }, COLUMNS[id].title));
    $("proxies-head").append(...Object.keys(COLUMNS).map(header),
      h("span", { role: "columnheader", class: "cell-action" }, h("span", { class: "visually-hidden" }, "Action")));
    const select = $("sort-by");
    select.append(...Object.entries(COLUMNS).map(([id, { title }]) => h("option", { value: id }, title)));
    select.addEventListener("change", () => this._sortBy(select.value, false));
    this._showSort();
  }

  _sortBy(column, turns = true) {
    const isSame = column === this._sort.column;
    const isFalling = isSame && turns ? !this._sort.isFalling : Boolean(COLUMNS[column].isFallingFirst);
    this._sort = { column, isFalling };
    this._showSort();
    this._container.scrollTop = 0;
    this._arrange();
  }

  _showSort() {
    for (const id of Object.keys(COLUMNS)) {
      const order = id === this._sort.column ? (this._sort.isFalling ? "descending" : "ascending") : "none";
      $(`column-${id}`).setAttribute("aria-sort", order);
    }
    $("sort-by").value = this._sort.column;
  }

  // Filters

  _buildFilters() {
    const chip = (state, title) => h("button", { type: "button", class: "chip", "data-state": state, onclick: () => this._filterBy(state) },
      h("span", {}, title), h("b", {}, "0"));
    $("filters").append(chip("", "All"), ...Object.entries(STATES).map(([state, title]) => chip(state, title)));
    this._showFilters();
  }

  _filterBy(state) {
    this._filter = this._filter === state ? "" : state;
    this._container.scrollTop = 0;
    this._showFilters();
    this._arrange();
  }

  _showFilters() {
    for (const chip of $("filters").children) {
      const { state } = chip.dataset;
      const count = state ? (this._totals?.[state] ?? 0) : this._rows.size;
      chip.setAttribute("aria-pressed", String(state === this._filter));
      setText(chip.lastChild, count.toLocaleString("en"));
      setAttribute(chip, "title", state ? plural(count, "proxy is", "proxies are") + ` ${STATES[state].toLowerCase()}` : null);
      chip.classList.toggle("is-none", count === 0);
    }
  }
}
