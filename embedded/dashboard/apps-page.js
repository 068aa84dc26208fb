// All applications: their state, instances, routes, and how long the certificates of those are good.

import { call } from "./api.js";
import { alarm, badge, every, h, linkTo, table, update } from "./dom.js";
import { certificate, routesOf, urlOf } from "./routes.js";

const INTERVAL = 3000;
const FILTER_FROM = 8;

export function appsPage(main, signal) {
  const { element, body, line } = table("Applications", ["Application", "State", "Instances", "Route", "Certificate"]);
  const filter = h("input", { type: "search", id: "filter", "aria-label": "Filter applications", placeholder: "Filter", input: () => show() });
  const empty = h("p", { class: "quiet", hidden: true });
  const outcome = h("div");
  const head = h("div", { class: "head" }, h("h1", { tabindex: -1 }, "Applications"), filter, h("a", { class: "button main", href: "#/push" }, "Push"));
  main.append(head, outcome, empty, element);
  let apps = [];
  const show = () => {
    const wanted = filter.value.trim().toLowerCase();
    const found = apps.filter(({ namespace, name }) => `${namespace}/${name}`.includes(wanted));
    update(body, found, ({ namespace, name }) => `${namespace}/${name}`, (app) => row(app, line));
    filter.hidden = apps.length < FILTER_FROM;
    element.hidden = !found.length;
    empty.hidden = Boolean(found.length);
    empty.textContent = apps.length ? "None has that in its name." : "There are none yet. Drop a folder anywhere on this page to push the first one.";
  };
  const load = async () => {
    try {
      const [all, routes] = await Promise.all([call("GET", "/api/v1/applications"), routesOf()]);
      if (signal.aborted) return;
      apps = all.map((app) => summary(app, routes));
      outcome.replaceChildren();
      show();
    } catch (error) {
      if (error.status) outcome.replaceChildren(alarm(error));
    }
  };
  every(INTERVAL, signal, load);
}

// What is shown of an application, and nothing that changes without being seen.
function summary(app, routes) {
  const { name, namespace } = app.meta;
  return { name, namespace, state: state(app), instances: app.deployment?.status ?? "–", routes: routes.of(app) };
}

export function state(app) {
  const { desiredreplicas: wanted, readyreplicas: ready } = app.deployment ?? {};
  if (app.status === "staging") return ["busy", "staging"];
  if (app.status === "running" && ready < wanted) return ["bad", ready ? "degraded" : "not ready"];
  if (app.status === "running") return app.statusmessage ? ["warn", "running, last push failed"] : ["good", "running"];
  if (app.statusmessage) return ["bad", "failed"];
  return ["off", app.image_url ? "stopped" : "never deployed"];
}

function row(app, line) {
  const name = h("a", { class: "name", href: linkTo(app) }, app.name);
  return line(
    h("div", {}, name, h("div", { class: "quiet" }, app.namespace)),
    badge(...app.state),
    app.instances,
    h("ul", {}, app.routes.map((route) => h("li", {}, h("a", { href: urlOf(route), target: "_blank", rel: "noopener noreferrer" }, route.host + route.path)))),
    h("ul", {}, app.routes.map((route) => h("li", {}, certificate(route.certificate)))),
  );
}
