// What an application is: where it is reached, what runs of it, and how it is scaled and restarted.

import { call, place } from "./api.js";
import { badge, busy, bytes, h, idle, table, update, when } from "./dom.js";
import { certificate, routesOf, urlOf } from "./routes.js";

export function overview(area, signal, app, { look }) {
  const routes = table("Routes", ["Route", "Certificate"]);
  const instances = table("Instances", ["Instance", "State", "Restarts", "Memory", "CPU", "Started"]);
  const none = h("p", { class: "quiet" });
  const facts = h("dl");
  const { element, scaled } = controls(app, look);
  area.append(h("h2", {}, "Routes"), routes.element, h("h2", {}, "Instances"), element, instances.element, none, h("h2", {}, "About"), facts);
  return async (found) => {
    scaled(found.configuration.instances);
    const replicas = Object.values(found.deployment?.replicas ?? {});
    update(instances.body, replicas, ({ name }) => name, (replica) => instance(replica, instances.line));
    instances.element.hidden = !replicas.length;
    none.hidden = Boolean(replicas.length);
    none.textContent = found.image_url ? "Nothing of it runs. Scale it to 1 or more to start it." : "It was never deployed. Push it first.";
    update(facts, about(found), ([term]) => term, ([term, text]) => h("div", {}, h("dt", {}, term), h("dd", {}, text)));
    const known = (await routesOf().catch(() => null))?.of(found);
    if (known && !signal.aborted) {
      const row = (route) => routes.line(h("a", { href: urlOf(route), target: "_blank", rel: "noopener noreferrer" }, urlOf(route)), certificate(route.certificate));
      update(routes.body, known, ({ host, path }) => host + path, row);
    }
  };
}

function controls(app, look) {
  const count = h("input", { id: "instances", type: "number", min: 0, max: 100, required: true, inputmode: "numeric" });
  const scale = h("button", { "data-busy": "Scaling…" }, "Scale");
  const restart = h("button", { type: "button", "data-busy": "Restarting…" }, "Restart");
  const outcome = h("div");
  let touched = false;
  count.addEventListener("input", () => (touched = true));
  const submit = (event) => {
    event.preventDefault();
    if (!idle(scale)) return;
    busy(scale, outcome, async () => {
      const instances = count.valueAsNumber;
      await call("PATCH", place(app), { instances });
      touched = false;
      await look();
      return `Scaled to ${instances}.`;
    });
  };
  restart.addEventListener("click", () => {
    if (!idle(restart)) return;
    busy(restart, outcome, async () => {
      await call("POST", place(app, "/restart"), {});
      await look();
      return "Restarted.";
    });
  });
  const form = h("form", { class: "row controls", submit }, h("label", { for: "instances" }, "How many"), count, scale, restart);
  const scaled = (instances) => {
    if (!touched && document.activeElement !== count) count.value = instances;
  };
  return { element: h("div", {}, form, outcome), scaled };
}

function instance(replica, line) {
  const { name, ready, restarts, metricsOk, memoryBytes, millicpus, createdAt } = replica;
  const state = ready ? badge("good", "ready") : badge("warn", "not ready");
  return line(name, state, restarts, metricsOk ? bytes(memoryBytes) : "–", metricsOk ? `${Math.round(millicpus / 10)} %` : "–", when(createdAt));
}

function about(found) {
  const origin = found.origin.path ? [["Source", found.origin.path]] : [];
  return [
    ["Image", found.image_url || "–"],
    ["Builder", found.staging.builder ?? "embedded"],
    ...origin,
    ["Created", new Date(found.meta.createdAt).toLocaleString()],
    ["By", found.deployment?.username ?? "–"],
  ];
}
