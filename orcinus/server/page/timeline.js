// Iterations as columns: who was in each batch. A sequence keeps its row from the iteration it joins to the one it
// leaves; then the next newcomer may have it.

const SVG = "http://www.w3.org/2000/svg";
const COLUMN = 6;
const ROW = 20;
const BARS = 30;
const MAX_COLUMNS = 600;
const MAX_ROWS = 24;
const MIN_ROWS = 8;
const HUES = 12;
const IDLE_SECONDS = 0.25;

export class Timeline {
  constructor(scroller, svg, caption) {
    this.scroller = scroller;
    this.svg = svg;
    this.caption = caption;
    this.columns = [];
    this.numEver = 0;
    this.numRows = MIN_ROWS;
    this.members = new Map();
    this.rows = [];
    this.hueByLabel = new Map();
    this.owned = new Set();
    this.engine = null;
    this.last = null;
    this.isHeld = false;
    this.isFitted = false;
    this.held = [];
    this.cells = svg.appendChild(make("g", {}));
    this.labels = svg.appendChild(make("g", {}));
    this.resize();
  }

  /** Hold still, or go on with what came meanwhile. */
  hold() {
    this.isHeld = !this.isHeld;
    if (!this.isHeld) this.held.splice(0).forEach((event) => this.add(event));
    return this.isHeld;
  }

  /** All columns at once, or the latest at their full width. */
  fit() {
    this.isFitted = !this.isFitted;
    this.svg.classList.toggle("fitted", this.isFitted);
    this.resize();
    this.scroller.scrollLeft = this.scroller.scrollWidth;
    return this.isFitted;
  }

  /** The requests of a stream, from the id of one of its events: shown as yours. */
  own(eventId) {
    this.owned.add(labelOf(eventId));
  }

  add(event) {
    if (this.isHeld) {
      if (event.iterations.length) this.held.push(event);
      this.held.splice(0, this.held.length - MAX_COLUMNS);
      return;
    }
    if (this.engine !== null && event.engine !== this.engine) this.restart();
    this.engine = event.engine;
    for (const [key, label, index, numPromptTokens] of event.members) {
      if (!this.members.has(key)) this.members.set(key, { label, index, numPromptTokens, isShown: false });
    }
    const isAtEnd = this.scroller.scrollWidth - this.scroller.scrollLeft - this.scroller.clientWidth < 4 * COLUMN;
    for (const iteration of event.iterations) this.addIteration(iteration);
    if (!event.iterations.length) return;
    this.trim();
    this.resize();
    if (isAtEnd) this.scroller.scrollLeft = this.scroller.scrollWidth;
    this.caption.textContent = describe(this.last);
  }

  /** Another engine counts anew, and all its sequences join anew. */
  restart() {
    this.members.clear();
    this.rows = [];
    this.last = null;
    if (this.columns.length) this.addGap("restart", "another engine: what was running is computed again");
  }

  addIteration([number, beganAt, seconds, numSampled, parts]) {
    const last = this.last;
    if (last && number > last.number + 1) this.addGap("missed", `${number - last.number - 1} iterations not shown`);
    else if (last && beganAt - last.endedAt > IDLE_SECONDS) this.addGap("idle", `idle for ${(beganAt - last.endedAt).toFixed(1)} s`);
    this.last = { number, seconds, numSampled, parts, endedAt: beganAt + seconds };
    const column = this.addColumn({ "data-iteration": number });
    const rowByKey = this.place(parts.map(([key]) => key));
    const lines = [describe(this.last)];
    for (const part of parts) {
      const member = this.members.get(part[0]);
      const row = rowByKey.get(part[0]);
      lines.push(describePart(member, part));
      if (row < MAX_ROWS) this.addCell(column, row, part, member);
    }
    const height = barHeight(seconds);
    column.group.append(make("rect", { class: "bar", x: 0, y: BARS - 4 - height, width: COLUMN - 1, height }));
    const title = make("title", {});
    title.textContent = lines.join("\n");
    column.group.append(title);
  }

  addCell(column, row, [key, , numTokens, isPrefill], member) {
    const y = BARS + row * ROW;
    const hue = this.hue(member.label);
    const shape = isPrefill ? { y: y + 1, height: ROW - 2 } : { y: y + ROW / 2, height: ROW / 2 - 1 };
    const kind = isPrefill ? "cell prefill" : "cell decode";
    column.group.append(make("rect", { class: `${kind} hue-${hue}`, x: 0, width: COLUMN - 1, ...shape, "data-key": key }));
    if (member.isShown) return;
    member.isShown = true;
    const label = make("text", { class: `hue-${hue}`, x: column.x + COLUMN + 2, y: y + ROW / 2 - 2 });
    const answer = member.index ? `/${member.index}` : "";
    const owner = this.owned.has(member.label) ? "you · " : "";
    label.textContent = `${owner}${member.label}${answer} · ${member.numPromptTokens}`;
    if (owner) label.classList.add("own");
    this.labels.append(label);
    column.texts.push(label);
    this.numRows = Math.max(this.numRows, row + 1);
  }

  /** Rows of these sequences: who was there stays, newcomers take the first free ones. */
  place(keys) {
    const present = new Set(keys);
    this.rows = this.rows.map((key) => (present.has(key) ? key : null));
    const rowByKey = new Map(this.rows.map((key, row) => [key, row]));
    for (const key of keys) {
      if (rowByKey.has(key)) continue;
      const free = this.rows.indexOf(null);
      const row = free < 0 ? this.rows.length : free;
      this.rows[row] = key;
      rowByKey.set(key, row);
      // One that comes back from preemption joins anew.
      const member = this.members.get(key);
      if (member) member.isShown = false;
    }
    return rowByKey;
  }

  addGap(kind, text) {
    const { group } = this.addColumn({ class: `gap ${kind}` });
    const x = COLUMN / 2;
    group.append(make("line", { x1: x, x2: x, y1: 0, y2: BARS + MAX_ROWS * ROW }));
    const title = make("title", {});
    title.textContent = text;
    group.append(title);
  }

  addColumn(attributes) {
    const x = this.numEver++ * COLUMN;
    const group = make("g", { transform: `translate(${x} 0)`, ...attributes });
    // Something to point at where there is no cell.
    group.append(make("rect", { class: "ground", width: COLUMN, height: BARS + MAX_ROWS * ROW }));
    this.cells.append(group);
    const column = { x, group, texts: [] };
    this.columns.push(column);
    return column;
  }

  trim() {
    const dropped = this.columns.splice(0, Math.max(0, this.columns.length - MAX_COLUMNS));
    for (const { group, texts } of dropped) [group, ...texts].forEach((node) => node.remove());
    this.scroller.scrollLeft -= dropped.length * COLUMN;
    const running = new Set(this.rows);
    if (this.members.size > 4 * MAX_COLUMNS) {
      for (const key of this.members.keys()) if (!running.has(key)) this.members.delete(key);
    }
  }

  resize() {
    const first = this.columns[0]?.x ?? 0;
    const width = Math.max(this.columns.length * COLUMN + 80, 1);
    const height = BARS + Math.min(this.numRows, MAX_ROWS) * ROW + 2;
    this.svg.setAttribute("viewBox", `${first} 0 ${width} ${height}`);
    this.svg.setAttribute("width", this.isFitted ? "100%" : width);
    this.svg.setAttribute("height", height);
  }

  hue(label) {
    if (!this.hueByLabel.has(label)) this.hueByLabel.set(label, this.hueByLabel.size % HUES);
    return this.hueByLabel.get(label);
  }
}

/** Of `chatcmpl-3f2a…:0:17`: the label that the server gives to its request. */
function labelOf(eventId) {
  return eventId.split(":")[0].split("-")[1].slice(0, 4);
}

function describe({ number, seconds, numSampled, parts }) {
  const prefills = parts.filter((part) => part[3]).length;
  const tokens = parts.reduce((sum, part) => sum + part[2], 0);
  const hidden = Math.max(0, parts.length - MAX_ROWS);
  const more = hidden ? `, ${hidden} of them not drawn` : "";
  const sequences = parts.length === 1 ? "sequence" : "sequences";
  return (
    `Iteration ${number}: ${parts.length} ${sequences} (${prefills} prefill, ${parts.length - prefills} decode${more}), ` +
    `${tokens} tokens in, ${numSampled} sampled, ${(seconds * 1000).toFixed(1)} ms`
  );
}

function describePart(member, [, start, numTokens, isPrefill]) {
  const name = member.index ? `${member.label}/${member.index}` : member.label;
  return isPrefill ? `${name}: prefill, positions ${start} to ${start + numTokens - 1}` : `${name}: decode, position ${start}`;
}

/** Logarithmic, from half a millisecond to a second: otherwise one prefill would flatten all the rest. */
function barHeight(seconds) {
  const share = Math.log(Math.max(seconds, 0.0005) / 0.0005) / Math.log(2000);
  return 2 + Math.min(share, 1) * (BARS - 8);
}

function make(name, attributes) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
}
