// What happened lately, newest first.

import { $, h, icon, setText } from "./dom.js";
import { clean, clock, day, eventWords, number, plural } from "./words.js";

const MAX_SHOWN = 300;

export class EventLog {
  constructor() {
    this._list = $("events");
    this._missed = 0;
    this._waiting = []; // not drawn yet
    this._isAwaited = false;
    this.events = []; // newest last
    this.clear();
  }

  clear() {
    this.events = [];
    this._waiting = [];
    this._missed = 0;
    this._latest = new Map(); // by proxy or session
    this._list.replaceChildren(h("li", { class: "empty" }, "Nothing yet."));
    setText($("events-note"), "");
  }

  // Many come at once after a start; they are drawn together.
  add(event) {
    this.events.push(event);
    if (this.events.length > MAX_SHOWN) this.events.shift();
    this._waiting.push(event);
    if (this._waiting.length > MAX_SHOWN) this._waiting.shift(); // a tab that nobody sees draws nothing
    if (!this._isAwaited) requestAnimationFrame(() => this._draw());
    this._isAwaited = true;
  }

  miss(count) {
    this._missed += count;
    setText($("events-note"), `${plural(this._missed, "event")} not told: too many at once`);
  }

  of(client, proxy) {
    return this.events.filter((event) => event.client === client && (!proxy || event.proxy === proxy)).reverse();
  }

  // What is said of one proxy again and again stands there once, with how often.
  _put(event) {
    const about = `${event.client}/${event.proxy}`;
    const words = eventWords(event).join("\n");
    const before = this._latest.get(about);
    const isAgain = before?.words === words && before.item.isConnected;
    const times = isAgain ? before.times + 1 : 1;
    if (isAgain) before.item.remove();
    const item = eventItem(event, times);
    this._list.prepend(item);
    this._latest.delete(about); // so that the oldest stands first
    this._latest.set(about, { words, item, times });
    if (this._latest.size > MAX_SHOWN) this._latest.delete(this._latest.keys().next().value);
  }

  _draw() {
    this._isAwaited = false;
    const fresh = this._waiting.splice(0);
    this._list.querySelector(".empty")?.remove();
    for (const event of fresh) this._put(event);
    while (this._list.children.length > MAX_SHOWN) this._list.lastChild.remove();
  }
}

export function eventItem(event, times = 1) {
  const [state, subject, text] = eventWords(event);
  return h("li", { class: "event", "data-state": state },
    h("time", { datetime: event.at, title: `${day(event.at)} ${clock(event.at)}` }, clock(event.at)),
    icon(state),
    h("span", { class: "event-words" }, h("strong", {}, clean(subject)), ` ${text}`, times > 1 ? h("span", { class: "times", title: `${times} times, last at ${clock(event.at)}` }, `× ${number(times)}`) : null));
}
