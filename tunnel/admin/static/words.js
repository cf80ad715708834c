// How things are said. Pure: values in, text out. Figures as `trio-tunnel status` says them.

const UNITS = ["B", "kB", "MB", "GB", "TB", "PB"];
export const STATES = { healthy: "Healthy", unhealthy: "Unhealthy", bind_failed: "Bind failed" };

// Control and format characters, and those that turn the reading direction: shown as what they are, nothing.
const UNSEEN = /[\u0000-\u001f\u007f-\u009f\u00ad\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g;

export const clean = (text) => String(text ?? "").replace(UNSEEN, "\ufffd");

export function bytes(count) {
  let unit = 0;
  while (count >= 999.5 && unit < UNITS.length - 1) {
    count /= 1000;
    unit += 1;
  }
  return `${unit === 0 || count >= 9.95 ? count.toFixed(0) : count.toFixed(1)} ${UNITS[unit]}`;
}

export const rate = (perSecond) => `${bytes(perSecond)}/s`;
export const number = (count) => (count ?? 0).toLocaleString("en");
export const plural = (count, one, many = `${one}s`) => `${number(count)} ${count === 1 ? one : many}`;

export function seconds(count) {
  for (const [length, unit] of [[86400, "d"], [3600, "h"], [60, "min"]]) {
    if (count >= 2 * length) return `${Math.floor(count / length)} ${unit}`;
  }
  return `${Math.max(0, Math.floor(count))} s`;
}

// In two units, for what a person watches: 3 h 12 min.
export function uptime(count) {
  const whole = Math.max(0, Math.floor(count));
  const [d, h, min, s] = [whole / 86400, (whole % 86400) / 3600, (whole % 3600) / 60, whole % 60].map(Math.floor);
  if (d) return `${d} d ${h} h`;
  if (h) return `${h} h ${min} min`;
  return min ? `${min} min ${s} s` : `${s} s`;
}

export function clock(iso) {
  const at = new Date(iso);
  return Number.isNaN(at.getTime()) ? "" : at.toLocaleTimeString("en-GB");
}

export const day = (iso) => new Date(iso).toLocaleDateString("en-GB", { day: "numeric", month: "short" });

export function address(view) {
  const host = clean(view.publish_addr);
  if (!host) return "";
  return `${host.includes(":") ? `[${host}]` : host}:${view.publish_port}`;
}

// "retry 3/10 in 12 s", "gave up after 10 retries", or nothing. `left` is in seconds, null without a retry.
export function countdown(view, left) {
  if (view.status === "bind_failed") {
    return view.attempt > 1 ? `gave up after ${plural(view.attempt - 1, "retry", "retries")}` : "given up";
  }
  if (view.status !== "unhealthy" || left === null) return "";
  if (view.reason === "target_down") return left > 0 ? `checked again in ${seconds(left)}` : "checked again now";
  const which = view.attempt ? ` ${view.attempt}${view.max_retries ? `/${view.max_retries}` : ""}` : "";
  return left > 0 ? `retry${which} in ${seconds(left)}` : `retry${which} now`;
}

export const refusals = (refused) =>
  Object.entries(refused ?? {}).filter(([, count]) => count).map(([why, count]) => `${number(count)} ${clean(why)}`).join(", ");

const SESSION_ENDS = {
  goodbye: "said goodbye", lost: "lost", stopping: "the client stopped", draining: "drained", replaced: "replaced by a newer one",
  revoked: "the token was revoked", protocol_error: "protocol error", version_unsupported: "version not supported",
};

// Whether a retry is for a person to ask: not where the target, or the session, is what is waited for.
const WAITS_ITSELF = new Set(["target_down", "connecting", "session_lost", "draining", "pending"]);
export const canRetry = (view) => view.status !== "healthy" && !WAITS_ITSELF.has(view.reason);

// What happened: [state that colours it, subject, text].
export function eventWords(event) {
  const f = event.fields ?? {};
  const proxy = event.client ? `${event.client}/${event.proxy}` : event.proxy;
  switch (event.kind) {
    case "proxy.status": {
      const why = [f.reason, f.error_message].filter(Boolean).join(": ");
      return [f.status, proxy, `${(STATES[f.status] ?? clean(f.status)).toLowerCase()}${why ? ` — ${clean(why)}` : ""}`];
    }
    case "proxy.removed":
      return ["none", proxy, "no longer published"];
    case "session.started":
      return ["healthy", event.client, `session started${f.peer ? ` from ${clean(f.peer)}` : ""}`];
    case "session.ended": {
      const why = [SESSION_ENDS[f.reason] ?? f.reason, f.message].filter(Boolean).join(": ");
      return ["unhealthy", event.client, `session ended after ${seconds(f.seconds ?? 0)} — ${clean(why)}`];
    }
    case "session.connecting":
      return ["none", event.client || "session", `connecting${f.detail ? ` — ${clean(f.detail)}` : ""}`];
    case "session.connected":
      return ["healthy", event.client || "session", "connected to the server"];
    case "session.lost":
      return ["unhealthy", event.client || "session", `no session — ${clean(f.detail)}${f.retry_in >= 1 ? `; next try in ${seconds(f.retry_in)}` : ""}`];
    case "config.reloaded":
      return ["healthy", "configuration", `reloaded — ${clean([f.changes].flat().join("; "))}`];
    case "config.refused":
      return ["bind_failed", "configuration", `refused — ${clean([f.mistakes].flat().join("; "))}`];
    case "certificate.loaded":
      return ["healthy", "certificate", `loaded, valid until ${clean(f.not_after)}`];
    case "certificate.expiring":
      return ["unhealthy", "certificate", `expires in ${clean(f.days)} days`];
    default:
      return ["none", proxy || clean(event.kind), `${clean(event.kind)} ${clean(JSON.stringify(f))}`];
  }
}
