// Elements, and how numbers and times are written. What the daemon says becomes text nodes, never markup.

// `h("a", { href: "#/" }, "text", another)`; a function is a listener, `false` and `null` are left out.
export function h(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child != null && child !== false));
  return element;
}

// Puts rows in place of those that are there, but for those that say the same: what has the focus keeps it.
export function update(parent, items, key, row) {
  const known = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  const rows = items.map((item) => {
    const [id, said] = [key(item), JSON.stringify(item)];
    const old = known.get(id);
    if (old?.said === said) return old;
    const fresh = row(item);
    fresh.dataset.key = id;
    fresh.said = said;
    return fresh;
  });
  const focused = parent.contains(document.activeElement) && document.activeElement;
  const links = (row) => [...row.querySelectorAll("a, button")];
  const at = focused && [focused.closest("[data-key]")?.dataset.key, links(focused.closest("[data-key]") ?? parent).indexOf(focused)];
  if (rows.length !== parent.children.length || rows.some((row, index) => row !== parent.children[index])) {
    parent.replaceChildren(...rows);
    if (at) links(rows.find((row) => row.dataset.key === at[0]) ?? parent)[at[1]]?.focus();
  }
}

// A table; on a narrow screen its rows become cards, and roles keep it a table for those who do not see it.
export function table(label, heads) {
  const body = h("tbody", { role: "rowgroup" });
  const row = h("tr", { role: "row" }, heads.map((head) => h("th", { role: "columnheader", scope: "col" }, head)));
  const element = h("table", { role: "table", "aria-label": label }, h("thead", { role: "rowgroup" }, row), body);
  const line = (...cells) =>
    h("tr", { role: "row" }, cells.map((cell, index) => h("td", { role: "cell", "data-label": heads[index] }, h("div", {}, cell))));
  return { element, body, line };
}

// The page of an application, or a part of it.
export function linkTo({ namespace, name }, ...more) {
  return `#/apps/${[namespace, name, ...more].join("/")}`;
}

export function badge(kind, text) {
  return h("span", { class: `badge ${kind}` }, text);
}

// Runs now and again while the view is there and somebody can see it.
export function every(millis, signal, action) {
  const run = async () => {
    if (signal.aborted) return;
    if (!document.hidden) await action();
    setTimeout(run, millis);
  };
  return run();
}

// "4 minutes ago", with the date for those who point at it.
export function when(text) {
  const date = new Date(text);
  if (!text || Number.isNaN(date.getTime())) return "–";
  return h("time", { datetime: text, title: date.toLocaleString() }, relative(date));
}

export function relative(date) {
  const seconds = (date - Date.now()) / 1000;
  const units = [["day", 86400], ["hour", 3600], ["minute", 60], ["second", 1]];
  const [unit, size] = units.find(([, size]) => Math.abs(seconds) >= size) ?? units[3];
  return new Intl.RelativeTimeFormat("en", { numeric: "auto" }).format(Math.round(seconds / size), unit);
}

export function duration(millis) {
  if (millis < 60_000) return `${(millis / 1000).toFixed(millis < 10_000 ? 2 : 1)} s`;
  return `${Math.floor(millis / 60_000)} min ${Math.round((millis % 60_000) / 1000)} s`;
}

export function bytes(count) {
  const units = ["B", "KB", "MB", "GB"];
  let power = 0;
  while (count >= 1000 && power < units.length - 1) {
    count /= 1000;
    power += 1;
  }
  return `${power && count < 100 ? count.toFixed(1) : Math.round(count)} ${units[power]}`;
}

// What went wrong, for the user; `details` are often the last words of an application.
export function alarm(error) {
  return h("div", { role: "alert", class: "alarm" }, h("p", {}, error.message), error.details && h("pre", {}, error.details));
}

// A form or button that works on something: it says so, cannot be pressed again meanwhile, and shows what came of it.
export async function busy(button, outcome, action) {
  const text = button.textContent;
  button.setAttribute("aria-disabled", "true");
  button.textContent = button.dataset.busy ?? "Working…";
  outcome.replaceChildren();
  try {
    const said = await action();
    if (said) outcome.replaceChildren(h("p", { role: "status", class: "done" }, said));
  } catch (error) {
    outcome.replaceChildren(alarm(error));
  }
  button.textContent = text;
  button.removeAttribute("aria-disabled");
}

// `busy` is no use when the button can be pressed all the same.
export function idle(button) {
  return button.getAttribute("aria-disabled") !== "true";
}
