// One application, in parts: what it is, its log, its builds, releases and environment.

import { call, place } from "./api.js";
import { alarm, badge, every, h, linkTo } from "./dom.js";
import { builds } from "./builds.js";
import { environment } from "./environment.js";
import { Log, followApp } from "./log.js";
import { overview } from "./overview.js";
import { releases } from "./releases.js";
import { state } from "./apps-page.js";

const INTERVAL = 2000;
const PARTS = { overview: "Overview", log: "Log", builds: "Builds", releases: "Releases", environment: "Environment" };
const SHOW = { overview, log, builds, releases, environment };

export function appPage(main, signal, app) {
  const heading = h("h1", { tabindex: -1 }, app.name);
  const status = h("span");
  const trouble = h("div");
  const links = Object.entries(PARTS).map(([part, text]) => h("a", { href: linkTo(app, part), "data-part": part }, text));
  const area = h("div");
  const head = h("div", { class: "head" }, heading, status, h("span", { class: "quiet" }, `in ${app.namespace}`));
  const push = h("a", { class: "button", href: `#/push/${app.namespace}/${app.name}` }, "Push a new version");
  head.append(push);
  main.append(head, trouble, h("nav", { class: "parts", "aria-label": `Parts of ${app.name}` }, links), area);

  let [shown, latest, said, leaving] = [null, null, null, null];
  const tell = (found) => {
    latest = found;
    const now = JSON.stringify([state(found), found.statusmessage]);
    if (now !== said) {
      said = now;
      status.replaceChildren(badge(...state(found)));
      trouble.replaceChildren(...(found.statusmessage ? [alarm(new Error(`The last push failed: ${found.statusmessage}`))] : []));
    }
    shown?.(found);
  };
  const look = async () => {
    try {
      const found = await call("GET", place(app));
      if (!signal.aborted) tell(found);
    } catch (error) {
      if (error.status && !signal.aborted) trouble.replaceChildren(alarm(error));
    }
  };
  const select = (part = "overview", detail) => {
    leaving?.abort();
    leaving = new AbortController();
    signal.addEventListener("abort", () => leaving.abort(), { once: true });
    for (const link of links) {
      if (link.dataset.part === part) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    area.replaceChildren();
    shown = (SHOW[part] ?? overview)(area, leaving.signal, app, { look, detail });
    if (latest) shown?.(latest);
  };
  every(INTERVAL, signal, look);
  return { select };
}

function log(area, signal, app) {
  const lines = new Log(`Log of ${app.name}`);
  area.append(h("h2", { class: "unseen" }, "Log"), lines.element);
  let follows = false;
  return (found) => {
    if (!follows && (found.deployment || found.image_url || found.statusmessage)) {
      follows = true;
      lines.note("");
      followApp(app, lines, signal);
    } else if (!follows) {
      lines.note("It was never deployed: there is no log yet.");
    }
  };
}
