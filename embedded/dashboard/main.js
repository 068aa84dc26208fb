// Which page is shown, and for whom.

import { appPage } from "./app-page.js";
import { appsPage } from "./apps-page.js";
import { call, session } from "./api.js";
import { loginPage } from "./login.js";
import { dropFor, isUploading, pushPage } from "./push-page.js";

const main = document.getElementById("main");
const bar = document.getElementById("bar");
const offline = document.getElementById("offline");
const dropping = document.getElementById("dropping");

// What is shown: the page, the application that it is about, and how it is left.
let view = null;

async function begin() {
  if (!session.authorization) return login();
  try {
    enter((await call("GET", "/api/v1/me")).user);
  } catch (error) {
    // An expired session has asked for a login already.
    if (error.status !== 401) setTimeout(begin, 2000);
  }
}

function login(why) {
  open("login", null, (signal) => loginPage(main, enter, why));
  bar.hidden = true;
  document.title = "Log in – epiniod";
}

function enter(user) {
  document.getElementById("user").textContent = user;
  bar.hidden = false;
  route();
}

function route() {
  if (!session.authorization) return;
  const [page, namespace, name, part, detail] = location.hash.replace(/^#\/?/, "").split("/").filter(Boolean);
  const app = name && { namespace, name };
  if (page === "apps" && app) {
    open(`apps/${namespace}/${name}`, app, (signal) => appPage(main, signal, app));
    view.page.select(part, detail);
    document.title = `${name} – epiniod`;
  } else if (page === "push") {
    open(`push/${namespace}/${name}`, app, (signal) => pushPage(main, signal, app));
    document.title = "Push – epiniod";
  } else {
    open("apps", null, (signal) => appsPage(main, signal));
    document.title = "Applications – epiniod";
  }
  for (const link of bar.querySelectorAll("nav a")) {
    if (link.hash === (page === "push" ? "#/push" : "#/")) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

function open(key, app, show) {
  if (view?.key === key) return;
  const isFirst = !view;
  view?.leaving.abort();
  const leaving = new AbortController();
  main.replaceChildren();
  view = { key, app, leaving };
  view.page = show(leaving.signal);
  window.scrollTo(0, 0);
  // Whoever does not see it hears that it is another page.
  if (!isFirst && !main.contains(document.activeElement)) main.querySelector("h1")?.focus();
}

function dropAnywhere() {
  const takes = (event) => session.authorization && event.dataTransfer.types.includes("Files");
  const hover = (event) => {
    if (!takes(event)) return;
    // Both have to be taken: what is under the mouse may be replaced at any time, and is entered then, not dragged over.
    event.preventDefault();
    dropping.hidden = false;
  };
  window.addEventListener("dragenter", hover);
  window.addEventListener("dragover", hover);
  window.addEventListener("dragleave", (event) => event.relatedTarget || (dropping.hidden = true));
  // Mice are silent while something is dragged. What was left may have been replaced, and then nobody heard of it.
  window.addEventListener("pointermove", () => (dropping.hidden = true));
  window.addEventListener("drop", (event) => {
    event.preventDefault();
    dropping.hidden = true;
    if (!takes(event)) return;
    if (view.page?.drop) view.page.drop(event.dataTransfer);
    else dropFor(view.app, event.dataTransfer);
  });
}

document.getElementById("logout").addEventListener("click", () => {
  if (isUploading() && !confirm("An upload is on its way. Log out all the same?")) return;
  session.end();
  location.hash = "";
  login();
});
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
window.addEventListener("hashchange", route);
window.addEventListener("beforeunload", (event) => isUploading() && event.preventDefault());
window.addEventListener("daemon-expired", () => login("The daemon does not take this login any more. Please log in again."));
window.addEventListener("daemon-silent", () => {
  offline.textContent = "The daemon does not answer; trying again.";
  offline.hidden = false;
});
window.addEventListener("daemon-answered", () => (offline.hidden = true));
dropAnywhere();
begin();
