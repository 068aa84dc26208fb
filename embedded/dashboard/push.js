// One push: the upload, and the answer to it line by line, which ends with the URL or with the cause of the failure. An answer
// that ends before it said how the push ended is asked for again, as the command line does.

import { Refused, call, refusal, request, session } from "./api.js";

const AGAIN = 1000;
const AWAY = 180_000;
const BROKEN = "The connection broke before all of it was sent, or a file was changed meanwhile. Nothing was pushed.";
const UNHEARD = "The connection broke before the daemon answered. Its builds tell whether it has begun.";

export class Push {
  #app;
  #body;
  #tell;
  #rest = "";
  #last = "";
  #sent = false;
  #whole = false;
  #timings = { timings: [] };
  #lines = 0;

  // `tell` gets `{ sent, size }`, `{ line }`, and `{ uploaded: true }`.
  constructor(app, body, tell) {
    this.#app = app;
    this.#body = body;
    this.#tell = tell;
  }

  // The URL and how long each phase took; fails with the cause.
  async run() {
    // A credential that is no good any more is noticed before the upload, and without a question of the browser.
    await call("GET", "/api/v1/me");
    await this.#upload();
    for (const until = Date.now() + AWAY; ; await new Promise((resolve) => setTimeout(resolve, AGAIN))) {
      const end = this.#end();
      if (end) return end;
      if (!this.staging) throw new Refused(0, this.#sent ? UNHEARD : BROKEN);
      if (Date.now() > until) throw new Refused(0, "The daemon does not answer any more; the push goes on when it is back.");
      await this.#ask();
    }
  }

  get #path() {
    return `/push/${encodeURIComponent(this.#app.namespace)}/${encodeURIComponent(this.#app.name)}`;
  }

  // `fetch` says nothing of the progress of an upload.
  #upload() {
    return new Promise((resolve, reject) => {
      const sending = new XMLHttpRequest();
      let read = 0;
      const take = () => {
        if (sending.status !== 200) return;
        this.#feed(sending.responseText.slice(read));
        read = sending.responseText.length;
      };
      sending.upload.onprogress = (event) => this.#tell({ sent: event.loaded, size: event.total });
      sending.upload.onload = () => {
        this.#sent = true;
        this.#tell({ uploaded: true });
      };
      sending.onreadystatechange = () => sending.readyState === 3 && take();
      sending.onprogress = take;
      sending.onerror = resolve;
      sending.onload = () => {
        if (sending.status !== 200) return reject(refusal(sending.status, sending.responseText));
        take();
        this.#whole = true;
        resolve();
      };
      sending.open("PUT", this.#path);
      sending.setRequestHeader("Authorization", session.authorization);
      sending.send(this.#body);
    });
  }

  // What was not heard yet.
  async #ask() {
    this.#rest = "";
    try {
      // The first line has no place in the log.
      const answer = await request("GET", `${this.#path}/${this.staging}?heard=${Math.max(0, this.#lines - 1)}`);
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      for (;;) {
        const { done, value } = await reader.read();
        if (done) break;
        this.#feed(value);
      }
      this.#whole = true;
    } catch (error) {
      if (error instanceof Refused && error.status) throw error;
    }
  }

  #feed(text) {
    const lines = (this.#rest + text).split("\n");
    this.#rest = lines.pop();
    for (const line of lines) {
      this.#lines += 1;
      this.#last = line;
      this.staging ??= /^staging ([0-9a-f]+) /.exec(line)?.[1];
      if (line.startsWith("phases: ")) this.#timings = timings(line);
      this.#tell({ line });
    }
  }

  #end() {
    if (this.#last.startsWith("error: ")) throw new Refused(200, this.#last.slice("error: ".length));
    return this.#whole && /^https?:\/\//.test(this.#last) && { url: this.#last, ...this.#timings };
  }
}

// `phases: upload 0.01 s, build 1.20 s, total 1.21 s`
function timings(line) {
  const all = [...line.matchAll(/(\w+) ([\d.]+) s/g)].map(([, phase, seconds]) => ({ phase, duration_ms: Math.round(seconds * 1000) }));
  return { timings: all.filter(({ phase }) => phase !== "total"), total: all.find(({ phase }) => phase === "total")?.duration_ms };
}
