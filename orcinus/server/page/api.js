// Requests to this server: the key, errors in OpenAI's shape, and server-sent events that survive a broken connection.

const KEY = "orcinus.key";
const MAX_RETRIES = 8;

export class ApiError extends Error {
  constructor(status, message, code) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

export function keepKey(key) {
  sessionStorage.setItem(KEY, key);
}

/** A response with status 200, or an ApiError. `options` as for fetch; `options.json` becomes the body. */
export async function request(path, { json, headers, ...options } = {}) {
  const all = new Headers(headers);
  const key = sessionStorage.getItem(KEY);
  if (key) all.set("authorization", `Bearer ${key}`);
  if (json !== undefined) {
    all.set("content-type", "application/json");
    Object.assign(options, { method: "POST", body: JSON.stringify(json) });
  }
  const response = await fetch(path, { ...options, headers: all, cache: "no-store", credentials: "omit" });
  if (response.ok) return response;
  const { error } = await response.json().catch(() => ({ error: null }));
  throw new ApiError(response.status, error?.message ?? `the server answered ${response.status}`, error?.code);
}

/** The events of a response, as { id, data }; data is parsed, but for the last one, "[DONE]". */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) yield parse(block);
    }
  } finally {
    // Whoever stops reading stops the work.
    reader.cancel().catch(() => {});
  }
}

function parse(block) {
  let id = "";
  let data = "";
  for (const line of block.split("\n")) {
    if (line.startsWith("id: ")) id = line.slice(4);
    if (line.startsWith("data: ")) data = line.slice(6);
  }
  return { id, data: data === "[DONE]" ? data : JSON.parse(data) };
}

/**
 * A streamed answer up to its "[DONE]". When the connection breaks, it goes on after the last event that came: the
 * server keeps what it has said. `onBreak` is called with the number of the attempt each time.
 */
export async function* stream(path, json, { signal, onBreak = () => {} } = {}) {
  let response = await request(path, { json, signal });
  let last = "";
  let attempt = 0;
  let isWhole = false;
  for (;;) {
    try {
      for await (const event of events(response)) {
        attempt = 0;
        // Read to the end of the body: leaving it would cost the connection.
        isWhole ||= event.data === "[DONE]";
        if (event.id) last = event.id;
        if (!isWhole) yield event;
      }
      if (isWhole) return;
      throw new TypeError("the stream ended before its end");
    } catch (error) {
      if (isWhole) return;
      if (signal?.aborted || error instanceof ApiError || !last || attempt >= MAX_RETRIES) throw error;
    }
    response = await again(last, signal, onBreak, () => ++attempt);
  }
}

async function again(last, signal, onBreak, count) {
  for (;;) {
    const attempt = count();
    onBreak(attempt);
    await pause(Math.min(250 * 2 ** (attempt - 1), 8000), signal);
    try {
      return await request(`/v1/streams/${last.split(":")[0]}`, { headers: { "last-event-id": last }, signal });
    } catch (error) {
      // A server that can't be reached may come back; one that says no has said it.
      if (signal?.aborted || error instanceof ApiError || attempt >= MAX_RETRIES) throw error;
    }
  }
}

export function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}
