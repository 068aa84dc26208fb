// The releases of an application: which image each runs, and which of them serves.

import { call, place } from "./api.js";
import { alarm, badge, every, h, linkTo, table, update, when } from "./dom.js";

const INTERVAL = 3000;
const KINDS = { starting: "busy", active: "good", retired: "off", failed: "bad" };

export function releases(area, signal, app) {
  const { element, body, line } = table("Releases", ["Release", "State", "Made", "Image", "Build"]);
  const none = h("p", { class: "quiet", hidden: true }, "There are none yet: nothing was deployed.");
  const outcome = h("div");
  area.append(h("h2", { class: "unseen" }, "Releases"), outcome, element, none);
  every(INTERVAL, signal, async () => {
    try {
      const found = await call("GET", place(app, "/releases", "/daemon"));
      if (signal.aborted) return;
      update(body, found, ({ number }) => String(number), (release) => entry(release, app, line));
      element.hidden = !found.length;
      none.hidden = Boolean(found.length);
      outcome.replaceChildren();
    } catch (error) {
      if (error.status && !signal.aborted) outcome.replaceChildren(alarm(error));
    }
  });
}

function entry({ number, createdAt, state, cause, serves, image, stage_id }, app, line) {
  const status = h("div", {}, serves ? badge("good", "serves") : badge(KINDS[state] ?? "off", state), cause && h("div", { class: "quiet" }, cause));
  const digest = image.split("@")[1] ?? image;
  const short = h("code", { title: image }, `${digest.slice(0, 19)}…`);
  const build = stage_id ? h("a", { href: linkTo(app, "builds", stage_id) }, h("code", {}, stage_id)) : "–";
  return line(`#${number}`, status, when(createdAt), short, build);
}
