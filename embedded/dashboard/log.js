// A log on the page: it follows its end, and keeps a bounded number of lines.

import { place, socket } from "./api.js";
import { h } from "./dom.js";

const MOST = 2000;
const AGAIN = 2000;
// Colours and movements of a terminal.
const ESCAPES = /\x1b(\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)|.)/g;

export class Log {
  #waiting = [];
  #lost = 0;
  #lines;
  #note;
  #follow;

  constructor(label, empty) {
    this.#lines = h("div", { class: "log", role: "log", "aria-live": "polite", "aria-label": label, tabindex: 0 });
    this.#note = h("span", { class: "quiet" }, empty ?? "");
    this.#follow = h("input", { type: "checkbox", checked: true, change: () => this.#scroll() });
    // Whoever scrolls up wants to read; at the end it follows again.
    this.#lines.addEventListener("scroll", () => {
      const { scrollTop, clientHeight, scrollHeight } = this.#lines;
      this.#follow.checked = scrollTop + clientHeight >= scrollHeight - 8;
    });
    const bar = h("div", { class: "logbar" }, this.#note, h("label", {}, this.#follow, " Follow"));
    this.element = h("div", {}, bar, this.#lines);
  }

  note(text) {
    this.#note.textContent = text;
  }

  clear() {
    this.#waiting = [];
    this.#lost = 0;
    this.#lines.replaceChildren();
  }

  // Lines are shown together, once for each frame: a program that floods its log does not stop the page.
  add(text, origin = "") {
    if (!this.#waiting.length) requestAnimationFrame(() => this.#show());
    this.#waiting.push([text, origin]);
    if (this.#waiting.length > MOST) {
      this.#waiting.shift();
      this.#lost += 1;
    }
  }

  #show() {
    const lines = this.#waiting.map(([text, origin]) =>
      h("div", {}, origin && h("span", { class: "origin" }, `${origin} `), text.replace(ESCAPES, "")),
    );
    this.#waiting = [];
    this.#lines.append(...lines);
    const surplus = this.#lines.childElementCount - MOST;
    for (let index = 0; index < surplus; index += 1) this.#lines.firstChild.remove();
    if (surplus > 0 || this.#lost) this.note(`The last ${MOST} lines; all of them: epiniod apps logs`);
    this.#scroll();
  }

  #scroll() {
    if (this.#follow.checked) this.#lines.scrollTop = this.#lines.scrollHeight;
  }
}

// Shows the log of an application until the view is left; a connection that ends is made anew.
export function followApp(app, log, signal) {
  return follow(place(app, "/logs", "/wapi/v1"), { follow: true, tail: 500 }, (line) => log.add(line.Message, line.PodName.replace(`${app.namespace}_`, "")), log, signal);
}

// The log of a staging, to its end.
export function followStaging(namespace, id, log, signal) {
  const path = `/wapi/v1/namespaces/${encodeURIComponent(namespace)}/staging/${encodeURIComponent(id)}/logs`;
  return follow(path, { follow: true }, (line) => log.add(line.Message), log, signal);
}

async function follow(path, parameters, show, log, signal) {
  while (!signal.aborted) {
    try {
      log.clear();
      if ((await listen(path, parameters, show, signal)) === 1000) return log.note("The log has ended.");
      log.note("The connection was lost; connecting again…");
    } catch (error) {
      log.note(error.message);
    }
    await new Promise((resolve) => setTimeout(resolve, AGAIN));
  }
}

// The code that the connection ended with.
async function listen(path, parameters, show, signal) {
  const connection = await socket(path, parameters);
  return new Promise((resolve) => {
    const leave = () => connection.close();
    signal.addEventListener("abort", leave);
    if (signal.aborted) leave();
    connection.onmessage = (event) => show(JSON.parse(event.data));
    connection.onclose = (event) => {
      signal.removeEventListener("abort", leave);
      resolve(event.code);
    };
  });
}
