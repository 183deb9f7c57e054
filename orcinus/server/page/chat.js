// The conversation: asks, shows the answer as it comes, and what it took.

import { stream } from "./api.js";

const byId = (id) => document.getElementById(id);
const SAMPLING = { temperature: "temperature", top_p: "top-p", max_tokens: "max-tokens", seed: "seed" };
const WHY_ENDED = { length: "cut at the limit of tokens" };

export class Chat {
  /**
   * @param onStream told the id of each answer's stream, so that others can point it out.
   * @param onRefusal told of each error.
   */
  constructor(onStream, onRefusal) {
    this.turns = [];
    this.running = null;
    this.onStream = onStream;
    this.onRefusal = onRefusal;
    byId("ask").addEventListener("submit", (event) => {
      event.preventDefault();
      this.ask();
    });
    byId("prompt").addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.ask();
    });
    byId("stop").addEventListener("click", () => this.running?.abort());
    byId("new-chat").addEventListener("click", () => this.clear());
  }

  clear() {
    this.running?.abort();
    this.turns = [];
    byId("messages").replaceChildren(byId("empty"));
    byId("empty").hidden = false;
    byId("prompt").focus();
  }

  async ask() {
    const text = byId("prompt").value.trim();
    const fields = [...byId("controls").querySelectorAll("input")];
    const wrong = fields.find((field) => !field.checkValidity());
    if (wrong) {
      byId("controls").open = true;
      wrong.reportValidity();
      return;
    }
    if (!text || this.running) return;
    const turns = [...this.turns, { role: "user", content: text }];
    byId("empty").hidden = true;
    byId("prompt").value = "";
    show("user", text);
    const answer = new Answer();
    this.setRunning(new AbortController());
    try {
      await this.read(answer, turns, this.running.signal);
    } finally {
      this.setRunning(null);
    }
    // A question without an answer would confuse the next one.
    if (answer.text) this.turns = [...turns, { role: "assistant", content: answer.text }];
  }

  async read(answer, turns, signal) {
    try {
      for await (const { id, data } of stream("/v1/chat/completions", body(turns), {
        signal,
        onBreak: () => answer.note("the connection broke; going on from the last event"),
      })) {
        if (data.error) throw new Error(data.error.message);
        if (id && !answer.hasBegun) this.onStream(id);
        answer.take(id, data);
      }
      answer.end();
    } catch (error) {
      answer.end(signal.aborted ? "stopped" : error.message, !signal.aborted);
      if (!signal.aborted) this.onRefusal(error);
    }
  }

  setRunning(controller) {
    this.running = controller;
    const [shown, hidden] = controller ? [byId("stop"), byId("send")] : [byId("send"), byId("stop")];
    const hadFocus = document.activeElement === hidden;
    shown.hidden = false;
    hidden.hidden = true;
    // The two are one place for the keyboard; whoever was typing goes on typing.
    if (hadFocus) shown.focus();
  }
}

function body(turns) {
  const system = byId("system").value.trim();
  const given = Object.entries(SAMPLING)
    .map(([name, id]) => [name, byId(id).value])
    .filter(([, value]) => value !== "")
    .map(([name, value]) => [name, Number(value)]);
  return {
    messages: system ? [{ role: "system", content: system }, ...turns] : turns,
    stream: true,
    stream_options: { include_usage: true },
    ...Object.fromEntries(given),
  };
}

/** One answer on the page, with its figures. */
class Answer {
  constructor() {
    this.text = "";
    this.numTokens = 0;
    this.askedAt = performance.now();
    this.firstAt = null;
    this.lastAt = null;
    this.reason = "";
    this.hasBegun = false;
    this.element = show("assistant", "");
    this.element.setAttribute("aria-busy", "true");
    this.figures = document.createElement("p");
    this.figures.className = "figures";
    this.figures.textContent = "waiting for the first token";
    this.element.append(this.figures);
  }

  take(id, data) {
    this.hasBegun = true;
    // The third part of an event's id counts the tokens delivered with it.
    const numTokens = Math.max(this.numTokens, parseInt(id.split(":")[2] ?? "0", 10) || 0);
    if (numTokens > this.numTokens) {
      this.lastAt = performance.now();
      this.firstAt ??= this.lastAt;
      this.numTokens = numTokens;
    }
    const choice = data.choices[0];
    this.reason = choice?.finish_reason ?? this.reason;
    follow(() => {
      this.text += choice?.delta.content ?? "";
      this.element.firstElementChild.textContent = this.text;
      this.figures.textContent = this.measured();
    });
  }

  measured() {
    if (this.firstAt === null) return "waiting for the first token";
    const seconds = (this.lastAt - this.firstAt) / 1000;
    const rate = this.numTokens > 1 && seconds > 0 ? ` · ${((this.numTokens - 1) / seconds).toFixed(0)} tokens/s` : "";
    return `TTFT ${(this.firstAt - this.askedAt).toFixed(0)} ms · ${this.numTokens} tokens${rate}`;
  }

  note(text) {
    this.figures.textContent = `${this.measured()} · ${text}`;
  }

  /** `why` it ended other than by itself. */
  end(why = WHY_ENDED[this.reason] ?? "", isError = false) {
    this.element.removeAttribute("aria-busy");
    this.element.classList.toggle("failed", isError);
    const figures = this.firstAt === null && why ? "" : this.measured();
    follow(() => {
      this.figures.textContent = [figures, why].filter(Boolean).join(" · ");
    });
  }
}

function show(role, text) {
  const element = document.createElement("article");
  element.className = `message ${role}`;
  const content = document.createElement("div");
  content.className = "content";
  // Never as markup: what a model writes is not to be trusted.
  content.textContent = text;
  element.append(content);
  byId("messages").append(element);
  element.scrollIntoView({ block: "nearest" });
  return element;
}

/** Change the conversation; whoever was at its end stays there. */
function follow(change) {
  const log = byId("messages");
  const wasAtEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  change();
  if (wasAtEnd) log.scrollTop = log.scrollHeight;
}
