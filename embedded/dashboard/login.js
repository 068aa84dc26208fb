// The form that asks who it is.

import { basic, bearer, request, session } from "./api.js";
import { busy, h, idle } from "./dom.js";

export function loginPage(main, entered, why) {
  const user = h("input", { id: "login-user", name: "username", autocomplete: "username", required: true, autocapitalize: "none", spellcheck: "false" });
  const password = h("input", { id: "login-password", name: "password", type: "password", autocomplete: "current-password", required: true });
  const token = h("input", { id: "login-token", type: "password", autocomplete: "off", required: true, spellcheck: "false" });
  const passwords = h("div", { class: "fields" }, h("label", { for: "login-user" }, "User"), user, h("label", { for: "login-password" }, "Password"), password);
  const tokens = h("div", { class: "fields" }, h("label", { for: "login-token" }, "API token"), token);
  const outcome = h("div");
  const button = h("button", { class: "main", "data-busy": "Logging in…" }, "Log in");
  const other = h("button", { class: "plain", type: "button", click: () => choose(!passwords.hidden) });
  const choose = (byToken) => {
    passwords.hidden = byToken;
    tokens.hidden = !byToken;
    user.disabled = password.disabled = byToken;
    token.disabled = !byToken;
    other.textContent = byToken ? "With user and password" : "With an API token";
    (byToken ? token : user).focus();
  };
  const enter = async () => {
    const authorization = passwords.hidden ? bearer(token.value.trim()) : basic(user.value, password.value);
    const { user: name } = await (await request("GET", "/api/v1/me", undefined, authorization)).json();
    session.begin(authorization);
    entered(name);
  };
  const submit = (event) => {
    event.preventDefault();
    if (idle(button)) busy(button, outcome, enter);
  };
  main.append(
    h(
      "form",
      { class: "card login", submit },
      h("h1", {}, "epiniod"),
      why && h("p", { role: "status" }, why),
      passwords,
      tokens,
      outcome,
      h("div", { class: "row" }, button, other),
    ),
  );
  choose(false);
}
