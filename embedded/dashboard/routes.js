// Routes of applications, with their certificates where the daemon tells of them.

import { Refused, call } from "./api.js";
import { badge, h, relative } from "./dom.js";

const SOON = 14 * 86_400_000;

// Where applications are reached, as the daemon says it: this page may have come another way.
let outside = null;
let missing = false;

export async function routesOf() {
  outside ??= (await call("GET", "/api/v1/info")).epiniod.applications;
  let known = [];
  if (!missing) {
    try {
      known = await call("GET", "/daemon/routes");
    } catch (error) {
      // A role that may not see them, or a daemon that has none to tell of.
      if (!(error instanceof Refused) || !error.status) throw error;
      missing = error.status === 404;
    }
  }
  const certificates = new Map(known.map((route) => [route.host + route.path, route.certificate]));
  return {
    of: (app) => app.configuration.routes.map((text) => {
      const [host, ...path] = text.split("/");
      const route = { host, path: path.length ? `/${path.join("/")}` : "" };
      return { ...route, certificate: certificates.get(host + route.path) ?? null };
    }),
  };
}

export function urlOf({ host, path }) {
  const { scheme, port } = outside;
  const usual = (scheme === "http" && port === 80) || (scheme === "https" && port === 443);
  return `${scheme}://${host}${usual ? "" : `:${port}`}${path}`;
}

export function certificate(found) {
  if (!found?.expires) return found?.message ? badge("warn", found.message) : "–";
  const date = new Date(found.expires);
  const [left, title] = [date - Date.now(), `${date.toLocaleString()}, ${found.issuer ?? ""}`];
  const text = left > 0 ? `expires ${relative(date)}` : `expired ${relative(date)}`;
  const shown = left > SOON ? h("time", { datetime: found.expires, title }, text) : badge(left > 0 ? "warn" : "bad", text);
  return found.message ? h("span", {}, shown, h("div", { class: "quiet" }, found.message)) : shown;
}
