// A list of many rows, of which only those in sight exist. Rows are kept by key, so that focus and
// selection stay with a proxy while others come and go around it.

const SPARE = 6; // rows beyond either edge, for a scroll that is faster than a frame

export class VirtualList {
  // `make(item)` gives an element, `update(element, item, index)` brings it up to date; `heightOf(item)` is in pixels.
  constructor(container, { make, update, heightOf, keyOf }) {
    this._container = container;
    this._make = make;
    this._update = update;
    this._heightOf = heightOf;
    this._keyOf = keyOf;
    this._items = [];
    this._tops = new Float64Array(1); // where each row begins, and where the last one ends
    this._shown = new Map(); // key → element
    this._space = document.createElement("div");
    this._space.className = "virtual-space";
    container.append(this._space);
    container.addEventListener("scroll", () => this.draw(), { passive: true });
    container.addEventListener("keydown", (event) => this._move(event));
    container.addEventListener("focusin", (event) => this._focused(event));
    new ResizeObserver(() => this.draw()).observe(container);
    this._current = null; // key of the row that Tab goes to
  }

  get items() {
    return this._items;
  }

  show(items) {
    this._items = items;
    this.measure();
  }

  // Again after anything that changes heights.
  measure() {
    this._tops = new Float64Array(this._items.length + 1);
    this._items.forEach((item, index) => { this._tops[index + 1] = this._tops[index] + this._heightOf(item); });
    this.draw();
  }

  draw() {
    const { scrollTop, clientHeight } = this._container;
    const first = Math.max(0, this._indexAt(scrollTop) - SPARE);
    const last = Math.min(this._items.length, this._indexAt(scrollTop + clientHeight) + 1 + SPARE);
    const height = `${this._tops.at(-1)}px`;
    if (this._space.style.height !== height) this._space.style.height = height;
    const wanted = new Map();
    for (let index = first; index < last; index += 1) wanted.set(this._keyOf(this._items[index]), index);
    this._keepFocused(wanted);
    for (const [key, element] of this._shown) {
      if (wanted.has(key)) continue;
      element.remove();
      this._shown.delete(key);
    }
    if (!wanted.has(this._current)) this._current = wanted.keys().next().value ?? null;
    for (const [key, index] of wanted) this._place(key, index);
    this._inOrder(wanted);
  }

  // The row at so many pixels from the top; by halving.
  _indexAt(pixels) {
    let [low, high] = [0, Math.max(0, this._items.length - 1)];
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this._tops[middle] <= pixels) low = middle;
      else high = middle - 1;
    }
    return low;
  }

  // Who is read to hears the rows in the order in which they are seen.
  _inOrder(wanted) {
    const keys = [...wanted].sort((one, other) => one[1] - other[1]).map(([key]) => key);
    keys.forEach((key, place) => {
      const element = this._shown.get(key);
      const there = this._space.children[place];
      if (there !== element && !element.contains(document.activeElement)) this._space.insertBefore(element, there);
    });
  }

  _place(key, index) {
    let element = this._shown.get(key);
    if (!element) {
      element = this._make(this._items[index]);
      element.dataset.key = key;
      this._shown.set(key, element);
      this._space.append(element);
    }
    const top = `translateY(${this._tops[index]}px)`;
    if (element.style.transform !== top) element.style.transform = top;
    element.setAttribute("aria-rowindex", index + 2);
    this._update(element, this._items[index], index);
    const reach = key === this._current ? 0 : -1;
    for (const button of element.querySelectorAll("button")) if (button.tabIndex !== reach) button.tabIndex = reach;
  }

  // The row with the focus stays, wherever it has gone: removing it would throw the person back to the page's top.
  _keepFocused(wanted) {
    const key = this._rowOf(document.activeElement)?.dataset.key;
    if (key === undefined || wanted.has(key)) return;
    const index = this._items.findIndex((item) => this._keyOf(item) === key);
    if (index >= 0) wanted.set(key, index);
  }

  _rowOf(element) {
    if (!element || !this._space.contains(element)) return null;
    while (element.parentElement !== this._space) element = element.parentElement;
    return element;
  }

  _focused(event) {
    const key = this._rowOf(event.target)?.dataset.key;
    if (key === undefined || key === this._current) return;
    this._current = key;
    this.draw();
  }

  _move(event) {
    const row = this._rowOf(event.target);
    const index = this._items.findIndex((item) => this._keyOf(item) === row?.dataset.key);
    const page = Math.max(1, Math.floor((this._container.clientHeight * this._items.length) / this._tops.at(-1)) - 1);
    const step = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity }[event.key];
    if (step === undefined || index < 0) return;
    event.preventDefault();
    const to = Math.min(this._items.length - 1, Math.max(0, index + step));
    const { scrollTop, clientHeight } = this._container;
    const [top, bottom] = [this._tops[to], this._tops[to + 1]];
    if (top < scrollTop) this._container.scrollTop = top;
    else if (bottom > scrollTop + clientHeight) this._container.scrollTop = bottom - clientHeight;
    this._current = this._keyOf(this._items[to]);
    this.draw();
    this._shown.get(this._current)?.querySelector("button")?.focus({ preventScroll: true });
  }
}
