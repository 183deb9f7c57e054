"use strict";
const runs = JSON.parse(document.getElementById("data").textContent);
const NS = "http://www.w3.org/2000/svg";
const CURVES = [
  ["ttft", "TTFT", "arrival to first token"],
  ["itl", "ITL", "gap between tokens"],
  ["tpot", "TPOT", "mean gap of a request"],
  ["e2el", "E2EL", "arrival to end of answer"],
];
const colour = (i) => `var(--run${i % 4})`;
const tip = document.getElementById("tip");

function svg(name, attributes, parent, text) {
  const element = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  if (parent) parent.append(element);
  return element;
}
function html(name, attributes, parent, ...content) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...content);
  if (parent) parent.append(element);
  return element;
}
function say(event, text) {
  tip.hidden = !text;
  if (!text) return;
  tip.textContent = text;
  const left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8);
  tip.style.left = `${left}px`;
  tip.style.top = `${event.clientY + 16}px`;
}
const count = (n) => n.toLocaleString("en", { maximumFractionDigits: n < 10 ? 2 : n < 100 ? 1 : 0 });
function time(seconds) {
  if (seconds === null || Number.isNaN(seconds)) return "–";
  return seconds >= 1 ? `${+seconds.toPrecision(3)} s` : `${+(seconds * 1000).toPrecision(3)} ms`;
}
function ticks(high, most = 5) {
  if (!(high > 0)) return [0];
  const raw = high / most, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw);
  return Array.from({ length: Math.floor(high / step + 1e-9) + 1 }, (_, i) => i * step);
}

// A frame with a grid; x and y map values to pixels.
function frame(parent, { width, height, left, right, top, bottom, xs, ys, xLow = 0, xHigh, yHigh, xName, yName }) {
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" }, parent);
  const x = (v) => left + ((v - xLow) / (xHigh - xLow || 1)) * (width - left - right);
  const y = (v) => height - bottom - (v / (yHigh || 1)) * (height - top - bottom);
  for (const v of ys) {
    svg("line", { class: "rule", x1: left, x2: width - right, y1: y(v), y2: y(v) }, root);
    svg("text", { x: left - 6, y: y(v) + 4, "text-anchor": "end" }, root, yName(v));
  }
  for (const v of xs) svg("text", { x: x(v), y: height - bottom + 16, "text-anchor": "middle" }, root, xName(v));
  return { root, x, y };
}

function drawTiles() {
  const tiles = [
    ["Output", (r) => [count(r.duration ? r.total_output / r.duration : 0), "tokens/s"]],
    ["Requests", (r) => [count(r.duration ? r.completed / r.duration : 0), "/s"]],
    ["TTFT, median", (r) => [time(r.ttft.p50), ""]],
    ["TTFT, p99", (r) => [time(r.ttft.p99), ""]],
    ["TPOT, median", (r) => [time(r.tpot.p50), ""]],
    ["Met every target", (r) => (r.good === null ? null : [`${((100 * r.good) / Object.values(r.ended).reduce((a, b) => a + b, 0)).toFixed(1)} %`, ""])],
    ["KV blocks, peak", (r) => (r.num_blocks > 1 ? [`${Math.round((100 * r.peak_blocks) / r.num_blocks)} %`, `of ${count(r.num_blocks)}`] : null)],
    ["Preemptions", (r) => [count(r.preemptions), ""]],
  ];
  const parent = document.getElementById("tiles");
  for (const [name, value] of tiles) {
    const values = runs.map(value);
    if (values.every((v) => v === null)) continue;
    const tile = html("div", { class: "tile" }, parent, html("small", {}, null, name));
    values.forEach((v, i) => {
      const style = runs.length > 1 ? `color: ${colour(i)}` : "";
      html("b", { style }, tile, v ? v[0] : "–", " ", html("em", {}, null, v ? v[1] : ""));
    });
  }
}

function drawCurve(parent, [key, name, meaning]) {
  const box = html("div", {}, parent);
  html("h3", {}, box, name, " ", html("span", {}, null, meaning));
  const shown = runs.map((run) => run[key]).filter((d) => d.curve.length);
  if (!shown.length) { html("p", { class: "note" }, box, "nothing measured"); return; }
  // A single straggler shall not press everybody else against the axis.
  const xHigh = Math.max(...shown.map((d) => Math.min(d.maximum * 1.02, d.p99 * 1.4))) || 1e-9;
  const { root, x, y } = frame(box, {
    width: 460, height: 230, left: 42, right: 12, top: 10, bottom: 26, xHigh, yHigh: 1,
    xs: ticks(xHigh), ys: [0, 0.25, 0.5, 0.75, 1], xName: time, yName: (v) => `${v * 100} %`,
  });
  runs.forEach((run, i) => {
    const d = run[key], last = d.curve.length - 1;
    if (last < 1) return;
    const points = d.curve.map((v, j) => [x(Math.min(v, xHigh)), y(j / last)]);
    const line = points.map(([a, b]) => `${a.toFixed(1)} ${b.toFixed(1)}`).join("L");
    svg("path", { d: `M${line}L${x(xHigh)} ${y(1)}L${x(xHigh)} ${y(0)}L${points[0][0]} ${y(0)}Z`, fill: colour(i), opacity: 0.07 }, root);
    svg("path", { d: `M${line}`, fill: "none", stroke: colour(i), "stroke-width": 2, "stroke-linejoin": "round" }, root);
    for (const [p, share] of [["p50", 0.5], ["p99", 0.99]])
      svg("circle", { cx: x(d[p]), cy: y(share), r: 4, fill: colour(i), stroke: "var(--card)", "stroke-width": 1.5 }, root);
  });
  const cursor = svg("line", { class: "cursor", y1: y(0), y2: y(1), visibility: "hidden" }, root);
  follow(root, (px, event) => {
    const value = ((px - x(0)) / (x(xHigh) - x(0))) * xHigh;
    const inside = value >= 0 && value <= xHigh;
    cursor.setAttribute("visibility", inside ? "visible" : "hidden");
    cursor.setAttribute("x1", px); cursor.setAttribute("x2", px);
    say(event, inside && [`≤ ${time(value)}`, ...runs.map((run) => `${(100 * shareBelow(run[key].curve, value)).toFixed(1)} %  ${run.label}`)].join("\n"));
  });
}
function shareBelow(curve, value) {
  let low = 0, high = curve.length;
  while (low < high) { const mid = (low + high) >> 1; if (curve[mid] <= value) low = mid + 1; else high = mid; }
  return curve.length > 1 ? Math.min(1, Math.max(0, low - 1) / (curve.length - 1)) : 0;
}
function follow(root, moved) {
  root.addEventListener("pointermove", (event) => {
    const box = root.getBoundingClientRect();
    moved(((event.clientX - box.left) / box.width) * root.viewBox.baseVal.width, event);
  });
  root.addEventListener("pointerleave", (event) => { moved(-1e9, event); say(event, ""); });
}

const COLUMNS = [["Waiting", 1], ["Running", 2], ["KV blocks in use", 3], ["Tokens an iteration", 4]];
function drawSeries() {
  const parent = document.getElementById("series");
  const start = Math.min(...runs.flatMap((r) => (r.series.length ? [r.series[0][0]] : [])));
  const end = Math.max(...runs.flatMap((r) => (r.series.length ? [r.series[0][0] + r.duration] : []))) - start;
  for (const [name, column] of COLUMNS) {
    const limit = column === 3 ? Math.max(...runs.map((r) => r.num_blocks)) : 0;
    const yHigh = Math.max(1, limit, ...runs.flatMap((r) => r.series.map((p) => p[column])));
    if (column === 3 && limit <= 1) continue;
    html("h3", {}, parent, name);
    const { root, x, y } = frame(parent, {
      width: 1060, height: 128, left: 52, right: 8, top: 8, bottom: 24, xHigh: end || 1, yHigh,
      xs: ticks(end || 1, 9), ys: ticks(yHigh, 3), xName: time, yName: count,
    });
    runs.forEach((run, i) => {
      if (!run.series.length) return;
      let line = "", before = y(0);
      for (const p of run.series) {
        const px = x(p[0] - start).toFixed(1), py = y(p[column]).toFixed(1);
        line += line ? `H${px}V${py}` : `M${px} ${py}`;
        before = py;
      }
      const first = x(run.series[0][0] - start), last = x(run.series[0][0] - start + run.duration);
      line += `H${last.toFixed(1)}`;
      if (runs.length === 1) svg("path", { d: `${line}V${y(0)}H${first}Z`, fill: colour(i), opacity: 0.14 }, root);
      svg("path", { d: line, fill: "none", stroke: colour(i), "stroke-width": 1.3, opacity: 0.9 }, root);
    });
    follow(root, (px, event) => {
      const at = ((px - x(0)) / (x(end || 1) - x(0))) * end + start;
      const lines = runs.map((run) => {
        const p = run.series.filter((q) => q[0] <= at).at(-1);
        return p && `${count(p[column])}  ${run.label}`;
      }).filter(Boolean);
      say(event, at >= start && lines.length ? [`at ${time(at - start)}`, ...lines].join("\n") : "");
    });
  }
}

function drawGantt(which) {
  const parent = document.getElementById("gantt");
  parent.replaceChildren();
  const tabs = html("div", { class: "tabs" }, parent);
  if (runs.length > 1) runs.forEach((run, i) => {
    const button = html("button", { "aria-pressed": i === which }, tabs, run.label);
    button.addEventListener("click", () => drawGantt(i));
  });
  const bars = runs[which].bars;
  document.getElementById("window-note").textContent = bars.length
    ? `${bars.length} iterations around the longest queue (or from --window-at); a row is a request, a column an iteration, its width the time that it took.`
    : "";
  if (!bars.length) { html("p", { class: "note" }, parent, "This run has no iterations to show."); return; }
  const legend = html("div", { class: "legend" }, parent);
  html("span", {}, legend, html("i", { style: "background: var(--prefill)" }), "prefill (more of the prompt at once is taller)");
  html("span", {}, legend, html("i", { style: "background: var(--decode)" }), "decode");
  html("span", {}, legend, html("i", { style: "background: var(--mark)" }), "starts over: preempted");
  const numbers = [...new Set(bars.flatMap((bar) => bar[3].map((w) => w[0])))].sort((a, b) => a - b);
  const row = new Map(numbers.map((n, i) => [n, i]));
  const high = Math.max(7, Math.min(16, 560 / numbers.length)), height = numbers.length * high + 34;
  const xLow = bars[0][1], xHigh = bars.at(-1)[2];
  const { root, x } = frame(parent, {
    width: 1060, height, left: 56, right: 8, top: 4, bottom: 26, xLow, xHigh, yHigh: 1, xs: [], ys: [], xName: time, yName: count,
  });
  for (const v of ticks(xHigh - xLow, 9)) svg("text", { x: x(xLow + v), y: height - 6, "text-anchor": "middle" }, root, time(v));
  const every = Math.ceil(11 / high);
  numbers.forEach((n, i) => { if (i % every === 0) svg("text", { x: 48, y: i * high + high / 2 + 8, "text-anchor": "end" }, root, `#${n}`); });
  const most = Math.max(...bars.flatMap((bar) => bar[3].map((w) => w[2])));
  const reached = new Map();
  for (const [iteration, began, done, work] of bars) for (const [number, start, tokens] of work) {
    const again = start === 0 && reached.get(number) > 0;
    reached.set(number, start + tokens);
    const prefills = tokens > 1 || start === 0;
    const tall = prefills ? Math.max(0.45, Math.sqrt(tokens / most)) * (high - 1.5) : 0.45 * (high - 1.5);
    const cell = svg("rect", {
      x: x(began), width: Math.max(0.6, x(done) - x(began) - 0.7), y: 4 + row.get(number) * high + (high - tall) / 2, height: tall, rx: 1,
      fill: again ? "var(--mark)" : prefills ? "var(--prefill)" : "var(--decode)",
    }, root);
    cell.tip = `request #${number}\niteration ${iteration}, ${time(done - began)}, ${work.length} in the batch\n${prefills ? `prefill: tokens ${start} to ${start + tokens - 1}` : `decode at position ${start}`}`;
  }
  root.addEventListener("pointermove", (event) => say(event, event.target.tip || ""));
  root.addEventListener("pointerleave", (event) => say(event, ""));
}

function drawTable() {
  const parent = document.getElementById("table");
  const rows = [["Latency", "run", "mean", "p50", "p90", "p95", "p99", "max"]];
  const table = html("table", {}, parent);
  const add = (tag, cells, i) => {
    const line = html("tr", {}, table);
    cells.forEach((cell, j) => {
      const box = html(tag, {}, line);
      if (j === 1 && i !== undefined) html("i", { style: `background: ${colour(i)}` }, box);
      box.append(j === 1 && i !== undefined ? ` ${cell}` : cell);
    });
  };
  add("th", rows[0]);
  for (const [key, name] of [...CURVES, ["normalised", "E2EL by output token"]])
    runs.forEach((run, i) => {
      const d = run[key];
      add("td", [i ? "" : name, run.label, ...[d.mean, d.p50, d.p90, d.p95, d.p99, d.maximum].map(time)], i);
    });
  const totals = html("table", {}, parent);
  const line = (tag, cells) => { const tr = html("tr", {}, totals); cells.forEach((c) => html(tag, {}, tr, c)); };
  line("th", ["", ...runs.map((r) => r.label)]);
  const facts = {
    "Completed requests": (r) => count(r.completed),
    "Ended": (r) => Object.entries(r.ended).map(([k, v]) => `${k} ${count(v)}`).join(", "),
    "Duration": (r) => time(r.duration),
    "Input tokens": (r) => count(r.total_input),
    "Found computed": (r) => (r.total_input ? `${((100 * r.total_cached) / r.total_input).toFixed(1)} %` : "–"),
    "Output tokens": (r) => count(r.total_output),
    "Tokens run": (r) => count(r.tokens_run),
    "Iterations": (r) => count(r.iterations),
    "Tokens an iteration": (r) => count(r.iteration_tokens),
    "Most waiting": (r) => count(r.peak_waiting),
    "Most running": (r) => count(r.peak_running),
    "Stages idle": (r) => `${(100 * r.stage_idle).toFixed(1)} %`,
  };
  for (const [name, value] of Object.entries(facts)) line("td", [name, ...runs.map(value)]);
  const settings = html("table", {}, document.getElementById("settings"));
  for (const key of [...new Set(runs.flatMap((r) => Object.keys(r.settings)))]) {
    const tr = html("tr", {}, settings);
    html("td", {}, tr, key);
    runs.forEach((r) => html("td", {}, tr, r.settings[key] ?? ""));
  }
}

runs.forEach((run, i) => html("span", {}, document.getElementById("runs"), html("i", { style: `background: ${colour(i)}` }), run.label));
drawTiles();
CURVES.forEach((curve) => drawCurve(document.getElementById("curves"), curve));
drawSeries();
drawGantt(0);
drawTable();
