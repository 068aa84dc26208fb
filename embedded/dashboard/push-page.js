// The page that pushes: a folder or an archive is dropped or chosen, named, sent, and its log shown until there is a URL.

import { call } from "./api.js";
import { alarm, bytes, h, linkTo } from "./dom.js";
import { appName, chosen, dropped, isArchive, ofArchive } from "./folder.js";
import { Log } from "./log.js";
import { phases } from "./phases.js";
import { Push } from "./push.js";
import { pack } from "./tar.js";

// The last push of this tab, and all whose upload is on its way: they go on while other pages are looked at.
let current = null;
const uploading = new Set();
// What was dropped on another page.
let waiting = null;

export function pushPage(main, signal, app) {
  const area = h("div");
  const show = (...children) => area.replaceChildren(...children);
  main.append(h("h1", { tabindex: -1 }, app ? `Push a new version of ${app.name}` : "Push an application"), area);
  const choose = () => show(chooser(app, offer));
  const offer = async (promise) => {
    show(h("p", { role: "status" }, "Looking through it…"));
    try {
      const handed = await promise;
      if (handed.files && !handed.files.length) throw new Error("There is nothing in it to send.");
      show(await form(handed, app, (named) => begin(named, handed, show, choose), choose));
      area.querySelector("input").focus();
    } catch (error) {
      show(alarm(error), chooser(app, offer));
    }
  };
  if (waiting) {
    const handed = waiting;
    waiting = null;
    offer(handed);
  } else if (current?.isRunning) {
    show(current.element);
  } else {
    choose();
  }
  return { drop: (transfer) => offer(dropped(transfer)) };
}

// Dropped where it is no page of its own: it is looked through there.
export function dropFor(app, transfer) {
  waiting = dropped(transfer);
  waiting.catch(() => {});
  location.hash = app ? `#/push/${app.namespace}/${app.name}` : "#/push";
}

// Whether leaving the page would lose something: what has arrived goes on without it.
export function isUploading() {
  return uploading.size > 0;
}

function chooser(app, offer) {
  const input = (text, attributes, read) => {
    const field = h("input", { type: "file", ...attributes, change: () => field.files.length && offer(read(field)) });
    return h("label", { class: "button" }, text, field);
  };
  const archive = ({ files: [file] }) =>
    isArchive(file) ? ofArchive(file) : Promise.reject(new Error(`${file.name} is no archive: tar (plain, gz, xz, bz2, zst) and zip are.`));
  return h(
    "section",
    { class: "drop", "aria-label": "Source" },
    h("p", {}, "Drop a folder or an archive here, or"),
    h(
      "div",
      { class: "row" },
      input("Choose a folder", { webkitdirectory: true, id: "folder" }, async ({ files }) => chosen(files)),
      input("Choose an archive", { id: "archive" }, async (field) => archive(field)),
    ),
    h("p", { class: "quiet" }, "Of a folder .git, node_modules and what .epinioignore names are left out. Archives go as they are."),
  );
}

async function form(handed, app, send, back) {
  const spaces = (await call("GET", "/api/v1/namespaces")).map((space) => space.meta.name);
  const fixed = Boolean(app);
  const rule = "[a-z]([a-z0-9\\-]{0,61}[a-z0-9])?";
  const name = h("input", { id: "name", required: true, pattern: rule, maxlength: 63, readonly: fixed, autocomplete: "off", spellcheck: "false" });
  name.value = app?.name ?? handed.name;
  name.title = "Lower-case letters, digits and '-', beginning with a letter";
  const space = h("select", { id: "namespace", disabled: fixed }, spaces.map((space) => h("option", {}, space)));
  space.value = app?.namespace ?? (spaces.includes("workspace") ? "workspace" : spaces[0]);
  const submit = (event) => {
    event.preventDefault();
    send({ namespace: space.value, name: appName(name.value) });
  };
  return h(
    "form",
    { class: "card", submit },
    h("p", {}, summary(handed)),
    Boolean(handed.left?.length) && h("p", { class: "quiet" }, `Left out: ${handed.left.join(", ")}.`),
    h("div", { class: "fields" }, h("label", { for: "name" }, "Application"), name, h("label", { for: "namespace" }, "Namespace"), space),
    h("div", { class: "row" }, h("button", { class: "main" }, "Push"), h("button", { type: "button", click: back }, "Something else")),
  );
}

function summary({ archive, files }) {
  if (archive) return `${archive.name}, ${bytes(archive.size)}, as it is`;
  const size = files.reduce((sum, { file }) => sum + (file?.size ?? 0), 0);
  return `${files.length} file${files.length === 1 ? "" : "s"}, ${bytes(size)}`;
}

async function begin(app, handed, show, again) {
  const bar = h("progress", { max: 1, value: 0, "aria-label": "Upload" });
  const said = h("p", { role: "status" }, "Packing…");
  const log = new Log(`Log of the push of ${app.name}`);
  const outcome = h("div");
  const element = h("div", {}, h("h2", {}, `${app.name} in ${app.namespace}`), said, bar, outcome, log.element);
  const mine = { element, isRunning: true };
  current = mine;
  uploading.add(mine);
  show(element);
  const tell = ({ sent, size, uploaded, line }) => {
    if (size) {
      bar.value = sent / size;
      said.textContent = `Uploading: ${bytes(sent)} of ${bytes(size)}`;
    }
    if (uploaded) said.textContent = "Uploaded; waiting for the daemon…";
    if (line === undefined) return;
    uploading.delete(mine);
    bar.hidden = true;
    log.add(line);
    const step = /^(?:\[\w+\] )?===> (\w+)/.exec(line)?.[1];
    if (step) said.textContent = `${step[0]}${step.slice(1).toLowerCase()}…`;
  };
  try {
    const body = handed.archive ?? (await pack(handed.files));
    const { url, timings, total } = await new Push(app, body, tell).run();
    said.textContent = "It runs.";
    outcome.append(h("p", { class: "url" }, h("a", { href: url, target: "_blank", rel: "noopener noreferrer" }, url)), phases(timings, total));
  } catch (error) {
    said.textContent = "The push failed.";
    outcome.append(alarm(error));
  }
  bar.hidden = true;
  mine.isRunning = false;
  uploading.delete(mine);
  outcome.append(
    h("div", { class: "row" }, h("a", { class: "button", href: linkTo(app) }, `Show ${app.name}`), h("button", { type: "button", click: again }, "Push something else")),
  );
}
