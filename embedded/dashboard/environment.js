// The environment of an application. Values are covered until somebody wants to see them: many are secrets.

import { call, place } from "./api.js";
import { busy, h, idle, table, update } from "./dom.js";

export function environment(area, signal, app, { look }) {
  const { element, body, line } = table("Environment", ["Variable", "Value", ""]);
  const none = h("p", { class: "quiet", hidden: true }, "No variable is set.");
  const outcome = h("div");
  const name = h("input", { id: "variable", required: true, pattern: "[A-Za-z_][A-Za-z0-9_]*", autocomplete: "off", autocapitalize: "none", spellcheck: "false" });
  name.title = "Letters, digits and '_', not beginning with a digit";
  const value = h("textarea", { id: "value", rows: 1, autocomplete: "off", spellcheck: "false" });
  const set = h("button", { class: "main", "data-busy": "Restarting with it…" }, "Set");
  const seen = h("input", { type: "checkbox", change: () => show(latest) });
  let latest = null;
  const show = (found) => {
    latest = found;
    const variables = Object.entries(found?.configuration.environment ?? {}).map(([name, value]) => ({ name, value, seen: seen.checked }));
    update(body, variables, ({ name }) => name, row);
    element.hidden = !variables.length;
    none.hidden = Boolean(variables.length) || !found;
  };
  const row = (variable) => {
    const remove = h("button", { type: "button", "data-busy": "Removing…", "aria-label": `Remove ${variable.name}` }, "Remove");
    remove.addEventListener("click", () => idle(remove) && busy(remove, outcome, () => unset(variable.name)));
    const edit = () => {
      [name.value, value.value] = [variable.name, variable.value];
      value.focus();
    };
    const change = h("button", { type: "button", "aria-label": `Change ${variable.name}`, click: edit }, "Change");
    return line(h("code", {}, variable.name), h("code", { class: "value" }, variable.seen ? variable.value : "••••••"), h("div", { class: "row" }, change, remove));
  };
  const unset = async (variable) => {
    await call("DELETE", place(app, `/environment/${encodeURIComponent(variable)}`));
    await look();
    name.focus();
    return `${variable} is removed.`;
  };
  const submit = (event) => {
    event.preventDefault();
    if (!idle(set)) return;
    busy(set, outcome, async () => {
      const variable = name.value;
      await call("POST", place(app, "/environment"), { [variable]: value.value });
      name.value = value.value = "";
      await look();
      name.focus();
      return `${variable} is set.`;
    });
  };
  area.append(
    h("h2", { class: "unseen" }, "Environment"),
    h("label", { class: "line" }, seen, " Show values"),
    element,
    none,
    h(
      "form",
      { class: "card", submit },
      h("div", { class: "fields" }, h("label", { for: "variable" }, "Variable"), name, h("label", { for: "value" }, "Value"), value),
      h("p", { class: "quiet" }, "A running application is restarted with it."),
      h("div", { class: "row" }, set),
      outcome,
    ),
  );
  return show;
}
