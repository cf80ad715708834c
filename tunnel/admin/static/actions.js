// What changes something: retrying a proxy, closing a session. Both need the admin token, which is asked for once.

import { $, icon, setHidden, setText } from "./dom.js";

const KEY = "admin-token"; // in sessionStorage: this tab's alone, and gone with it

export class Actions {
  constructor() {
    this._after = null; // what was wanted when the token was asked for
    $("unlock").addEventListener("click", () => (this.token ? this._lock() : this._ask()));
    $("token-cancel").addEventListener("click", () => $("token-dialog").close());
    $("token-dialog").addEventListener("close", () => { $("token").value = ""; });
    $("token-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this._try($("token").value.trim());
    });
    this._showLock();
  }

  get token() {
    return sessionStorage.getItem(KEY) ?? "";
  }

  show({ head }) {
    setHidden($("unlock"), !head.can_write);
    setText($("token-role"), head.role ?? "process");
  }

  async retry(row) {
    await this._do(async () => {
      const answer = await this._post("retry", { name: row.client ? `${row.client}/${row.name}` : row.name });
      return answer.restarted?.length ? `${row.name} starts afresh.` : `${row.name} needs no retry now.`;
    });
  }

  async close(client) {
    await this._do(async () => {
      await this._post("close", { client });
      return `The session of ${client} is closed.`;
    });
  }

  // A client's, while it waits for its next try.
  async connectNow(client) {
    await this._do(async () => {
      await this._post("close", { client });
      return "Trying again now.";
    });
  }

  async _do(action) {
    if (!this.token) return this._ask(action);
    try {
      toast(await action());
    } catch (problem) {
      if (problem.status === 401) this._ask(action, "This token is not accepted any more. Paste the one of now.");
      else toast(problem.message, true);
    }
  }

  _ask(after = null, problem = "") {
    this._after = after;
    setText($("token-problem"), problem);
    if (!$("token-dialog").open) $("token-dialog").showModal();
    $("token").focus();
  }

  // An empty request changes nothing: with the right token it is answered 400, with a wrong one 401.
  async _try(token) {
    if (!token) return setText($("token-problem"), "Paste the token first.");
    try {
      await this._post("retry", {}, token);
    } catch (problem) {
      if (problem.status === 401) {
        $("token").select();
        return setText($("token-problem"), "This is not the admin token of this process. Nothing was changed.");
      }
      if (problem.status !== 400) return setText($("token-problem"), problem.message);
    }
    sessionStorage.setItem(KEY, token);
    this._showLock();
    $("token-dialog").close();
    const after = this._after;
    this._after = null;
    if (after) await this._do(after);
    else toast("Unlocked until this tab is closed.");
    return undefined;
  }

  _lock() {
    sessionStorage.removeItem(KEY);
    this._showLock();
    toast("Locked. The token is forgotten.");
  }

  _showLock() {
    $("unlock").replaceChildren(icon("lock"), this.token ? "Lock" : "Unlock");
    $("unlock").title = this.token ? "Forget the admin token" : "Give the admin token, to retry proxies and close sessions";
  }

  async _post(path, body, token = this.token) {
    let response;
    try {
      response = await fetch(path, {
        method: "POST",
        headers: { Authorization: `Bearer ${token}`, "Content-Type": "application/json" },
        body: JSON.stringify(body),
        credentials: "omit",
      });
    } catch {
      throw Object.assign(new Error("No answer. Is the process still running?"), { status: 0 });
    }
    const answer = await response.json().catch(() => ({}));
    if (response.ok) return answer;
    throw Object.assign(new Error(answer.error ?? `refused with ${response.status}`), { status: response.status });
  }
}

// Asks before something that cuts visitors off. Resolves to true or false.
export function confirm(title, text, button) {
  const dialog = $("confirm-dialog");
  setText($("confirm-title"), title);
  setText($("confirm-text"), text);
  setText($("confirm-yes"), button);
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.onclose = () => resolve(dialog.returnValue === "yes");
    dialog.returnValue = "";
    $("confirm-no").onclick = () => dialog.close("no");
    $("confirm-yes").onclick = () => dialog.close("yes");
  });
}

let fading = 0;
export function toast(text, isProblem = false) {
  const element = $("toast");
  clearTimeout(fading);
  element.hidden = false;
  element.classList.toggle("is-problem", isProblem);
  setText(element, text);
  fading = setTimeout(() => { element.hidden = true; }, isProblem ? 10000 : 4000);
}
