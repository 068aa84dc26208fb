// How long each phase of a staging took, as bars.

import { duration, h } from "./dom.js";

export function phases(timings, total = sum(timings)) {
  const most = Math.max(1, ...timings.map(({ duration_ms }) => duration_ms));
  const rows = timings.map(({ phase, duration_ms }) => {
    const bar = h("span", { class: "bar", "aria-hidden": "true" });
    bar.style.width = `${(100 * duration_ms) / most}%`;
    return h("li", {}, h("span", {}, phase), h("span", { class: "track" }, bar), h("span", { class: "number" }, duration(duration_ms)));
  });
  if (timings.length > 1) rows.push(h("li", { class: "total" }, h("span", {}, "total"), h("span"), h("span", { class: "number" }, duration(total))));
  return h("ol", { class: "phases", "aria-label": "Phases" }, rows);
}

export function sum(timings) {
  return timings.reduce((sum, { duration_ms }) => sum + duration_ms, 0);
}
