// Requests to the daemon. The credential is in the session storage of this tab and in the header of requests, nowhere else.

const KEY = "epiniod.authorization";

export const session = {
  get authorization() {
    return sessionStorage.getItem(KEY);
  },
  begin(authorization) {
    sessionStorage.setItem(KEY, authorization);
  },
  end() {
    sessionStorage.removeItem(KEY);
  },
};

export function basic(user, password) {
  return "Basic " + btoa(String.fromCharCode(...new TextEncoder().encode(`${user}:${password}`)));
}

export function bearer(token) {
  return "Bearer " + token;
}

// The daemon said no, and why; status 0 when it said nothing.
export class Refused extends Error {
  constructor(status, message, details = "") {
    super(message);
    this.status = status;
    this.details = details;
  }
}

// JSON there and back.
export async function call(method, path, body) {
  const answer = await request(method, path, body === undefined ? undefined : JSON.stringify(body));
  return answer.json();
}

export async function request(method, path, body, authorization = session.authorization) {
  let answer;
  try {
    // Without `omit` the browser asks for a password itself when one was wrong.
    answer = await fetch(path, { method, body, headers: { Authorization: authorization }, credentials: "omit", cache: "no-store" });
  } catch {
    tell("silent");
    throw new Refused(0, "The daemon does not answer.");
  }
  tell("answered");
  if (answer.ok) return answer;
  if (answer.status === 401 && authorization === session.authorization) {
    session.end();
    tell("expired");
  }
  throw refusal(answer.status, await answer.text());
}

// Events of the window: the daemon is silent or has answered, or no longer takes the credential.
function tell(what) {
  window.dispatchEvent(new Event(`daemon-${what}`));
}

// Epinio's form of errors, or the text of a push that was refused.
export function refusal(status, text) {
  try {
    const [{ title, details }] = JSON.parse(text).errors;
    return new Refused(status, title, details);
  } catch {
    return new Refused(status, text.trim().replace(/^error: /, "") || `The daemon answered with status ${status}.`);
  }
}

// A websocket, with the short-lived token that is its credential: browsers send no header with one.
export async function socket(path, parameters) {
  const { token } = await call("GET", "/api/v1/authtoken");
  const url = new URL(path, location.href);
  url.protocol = url.protocol.replace("http", "ws");
  url.search = new URLSearchParams({ ...parameters, authtoken: token });
  return new WebSocket(url);
}

// The path of an application in Epinio's API, or in ours.
export function place(app, more = "", root = "/api/v1") {
  return `${root}/namespaces/${encodeURIComponent(app.namespace)}/applications/${encodeURIComponent(app.name)}${more}`;
}
