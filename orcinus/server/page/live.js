// The live view: figures, a sparkline, and the iterations, from the events of /v1/live.

import { ApiError, events, pause, request } from "./api.js";
import { Timeline } from "./timeline.js";

const byId = (id) => document.getElementById(id);
const BINS_PER_SECOND = 4;
const SPARK_SECONDS = 60;

export class Live {
  /** @param onRefusal told of each error that isn't a lost connection. */
  constructor(onRefusal) {
    this.onRefusal = onRefusal;
    this.timeline = new Timeline(byId("timeline"), byId("columns"), byId("latest"));
    this.bins = new Map();
    switches("hold", () => this.timeline.hold());
    switches("fit", () => this.timeline.fit());
  }

  /** For as long as the page is open; ends at a refusal. */
  async follow() {
    for (let attempt = 0; ; attempt++) {
      try {
        for await (const { data } of events(await request("/v1/live"))) {
          attempt = 0;
          this.show(data);
        }
      } catch (error) {
        if (error instanceof ApiError && error.status === 401) {
          this.onRefusal(error);
          return;
        }
      }
      status("lost", "connection lost; trying again");
      await pause(Math.min(500 * 2 ** Math.min(attempt, 4), 5000));
    }
  }

  /** Point out the requests of this stream. */
  own(eventId) {
    this.timeline.own(eventId);
  }

  show(event) {
    if (event.is_alive) status("good", "serving");
    else status("busy", "the engine is being started; answers go on when it is there");
    byId("running").textContent = event.num_running;
    byId("waiting").textContent = event.num_waiting;
    byId("preemptions").textContent = event.preemptions;
    showBlocks(event);
    showLatency("ttft", event.ttft);
    showLatency("tpot", event.tpot);
    this.showRate(event);
    this.timeline.add(event);
  }

  showRate({ at, iterations }) {
    const binOf = (instant) => Math.floor(instant * BINS_PER_SECOND);
    for (const [, beganAt, seconds, numSampled] of iterations) {
      const bin = binOf(beganAt + seconds);
      this.bins.set(bin, (this.bins.get(bin) ?? 0) + numSampled);
    }
    // The newest bin isn't full yet.
    const newest = binOf(at) - 1;
    const oldest = newest - SPARK_SECONDS * BINS_PER_SECOND;
    for (const bin of this.bins.keys()) if (bin <= oldest) this.bins.delete(bin);
    const points = Array.from({ length: SPARK_SECONDS }, (_, index) => {
      const last = newest - (SPARK_SECONDS - 1 - index) * BINS_PER_SECOND;
      return Array.from({ length: BINS_PER_SECOND }, (_, back) => this.bins.get(last - back) ?? 0).reduce((a, b) => a + b);
    });
    byId("rate").textContent = points.at(-1);
    const highest = Math.max(1, ...points);
    const place = (value, index) => `${(index * 120) / (SPARK_SECONDS - 1)},${(31 - (30 * value) / highest).toFixed(1)}`;
    byId("sparkline").firstElementChild.setAttribute("points", points.map(place).join(" "));
  }
}

/** A button that is in or out; `press` says which it is now. */
function switches(id, press) {
  byId(id).addEventListener("click", () => byId(id).setAttribute("aria-pressed", String(press())));
}

export function status(kind, text) {
  byId("status").dataset.kind = kind;
  const shown = byId("status-text");
  // Said again it would be read out again.
  if (shown.textContent !== text) shown.textContent = text;
}

function showBlocks({ free_blocks: free, total_blocks: total }) {
  const used = total - free;
  const percent = total ? Math.round((100 * used) / total) : 0;
  byId("kv").textContent = total ? `${used} of ${total}` : "–";
  byId("kv-meter").setAttribute("aria-valuenow", percent);
  byId("kv-meter").firstElementChild.style.width = `${total ? (100 * used) / total : 0}%`;
}

function showLatency(name, { count, p50, p90, p99 }) {
  const cells = byId(name).querySelectorAll("td");
  [p50, p90, p99].forEach((seconds, index) => {
    cells[index].textContent = seconds === null ? "–" : inWords(seconds);
  });
  cells[3].textContent = count;
}

export function inWords(seconds) {
  if (seconds >= 10) return `${seconds.toFixed(1)} s`;
  const milliseconds = seconds * 1000;
  return `${milliseconds.toFixed(milliseconds < 100 ? 1 : 0)} ms`;
}
