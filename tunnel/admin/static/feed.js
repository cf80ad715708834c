// The stream of /events: kept open, opened again when it ends or falls silent. Tells how old what is shown has become.

const SILENT_SECONDS = 12; // something comes every second, or every few with many thousand proxies
const GIVE_UP_SECONDS = 25; // then the connection is taken for dead
const RETRY_SECONDS = [1, 2, 3, 5]; // the last one again and again

export class Feed {
  // `on` has state, change, event, missed: each is called with the message.
  constructor(on) {
    this._on = on;
    this._source = null;
    this._timer = 0;
    this._failures = 0;
    this._heard = performance.now();
    this.lastId = 0;
    this.isOpen = false;
  }

  open() {
    clearTimeout(this._timer);
    this._source?.close();
    const source = (this._source = new EventSource(`events?after=${this.lastId}`));
    this._opened = performance.now();
    for (const kind of ["state", "change", "event", "missed"]) {
      source.addEventListener(kind, (message) => this._take(kind, message));
    }
    source.addEventListener("error", () => this._lost());
  }

  // Whole seconds since the last word, once that is worth telling.
  get silence() {
    const passed = Math.floor((performance.now() - this._heard) / 1000);
    return passed >= (this.isOpen ? SILENT_SECONDS : 2) ? passed : 0;
  }

  // Call it now and then: a connection that neither speaks nor ends is replaced.
  check() {
    const quiet = (performance.now() - Math.max(this._heard, this._opened)) / 1000;
    if (this._source && quiet > GIVE_UP_SECONDS) this._lost();
  }

  _take(kind, message) {
    this._heard = performance.now();
    this._failures = 0;
    this.isOpen = true;
    if (message.lastEventId && kind === "event") this.lastId = Number(message.lastEventId);
    this._on[kind](JSON.parse(message.data));
  }

  _lost() {
    this._source?.close();
    this._source = null;
    this.isOpen = false;
    const wait = RETRY_SECONDS[Math.min(this._failures, RETRY_SECONDS.length - 1)];
    this._failures += 1;
    clearTimeout(this._timer);
    this._timer = setTimeout(() => this.open(), wait * 1000);
  }
}
