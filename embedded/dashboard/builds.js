// The builds (stagings) of an application, and one of them with its phases and the log that is kept of it.

import { call, place } from "./api.js";
import { alarm, badge, duration, every, h, linkTo, table, update, when } from "./dom.js";
import { Log, followStaging } from "./log.js";
import { phases, sum } from "./phases.js";

const INTERVAL = 1500;
const KINDS = { done: "good", failed: "bad" };

export function builds(area, signal, app, { detail }) {
  const { element, body, line } = table("Builds", ["Begun", "State", "Took", "Build"]);
  const none = h("p", { class: "quiet", hidden: true }, "Nothing was built yet.");
  const one = h("section", { "aria-label": "Build" });
  area.append(h("h2", { class: "unseen" }, "Builds"), element, none, one);
  let shown = null;
  const show = (found) => {
    const wanted = found.find(({ id }) => id === detail) ?? found[0];
    const row = (staging) => entry(staging, app, line);
    update(body, found.map((staging) => ({ ...staging, current: staging === wanted })), ({ id }) => id, row);
    element.hidden = !found.length;
    none.hidden = Boolean(found.length);
    if (wanted && shown?.id !== wanted.id) {
      shown?.leave();
      shown = build(one, signal, app, wanted.id, Boolean(detail));
    }
    if (wanted) shown.tell(wanted);
  };
  every(INTERVAL, signal, async () => {
    try {
      const found = await call("GET", place(app, "/stagings", "/daemon"));
      if (!signal.aborted) show(found);
    } catch (error) {
      if (error.status && !signal.aborted) one.replaceChildren(alarm(error));
    }
  });
}

function entry({ id, createdAt, state, timings, current }, app, line) {
  const link = h("a", { href: linkTo(app, "builds", id), "aria-current": current && "true" }, h("code", {}, id));
  return line(when(createdAt), badge(KINDS[state] ?? "busy", state), timings.length ? duration(sum(timings)) : "–", link);
}

function build(one, signal, app, id, wanted) {
  const leaving = new AbortController();
  signal.addEventListener("abort", () => leaving.abort(), { once: true });
  const log = new Log(`Log of build ${id}`);
  const heading = h("h2", { tabindex: -1 }, "Build ", h("code", {}, id));
  const outcome = h("div");
  const timing = h("div");
  one.replaceChildren(heading, outcome, timing, log.element);
  if (wanted) heading.focus();
  followStaging(app.namespace, id, log, leaving.signal);
  let said = "";
  const tell = ({ cause, timings }) => {
    if (JSON.stringify([cause, timings]) === said) return;
    said = JSON.stringify([cause, timings]);
    outcome.replaceChildren(...(cause ? [alarm(new Error(cause))] : []));
    timing.replaceChildren(...(timings.length ? [phases(timings)] : []));
  };
  return { id, tell, leave: () => leaving.abort() };
}
