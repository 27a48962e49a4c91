// The node's HTTP API as the panel uses it. Every failure is an ApiError with words for a person.

const KEY = "p2pnode.key";

export class ApiError extends Error {
  constructor(message, { code = "", hint = "", status = 0, details = {} } = {}) {
    super(message);
    this.code = code;
    this.hint = hint;
    this.status = status;
    this.details = details;
  }
}

export const getKey = () => sessionStorage.getItem(KEY) ?? "";
export const setKey = (key) => (key ? sessionStorage.setItem(KEY, key) : sessionStorage.removeItem(KEY));

function headers(body) {
  const out = { Accept: "application/json" };
  if (body !== undefined) out["Content-Type"] = "application/json";
  if (getKey()) out.Authorization = `Bearer ${getKey()}`;
  return out;
}

async function send(method, path, body, signal) {
  let response;
  try {
    response = await fetch(path, {
      method,
      headers: headers(body),
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The node does not answer.", { code: "unreachable", hint: "Is it still running?" });
  }
  if (!response.ok) throw await failure(response);
  return response;
}

async function failure(response) {
  try {
    const { error } = await response.json();
    return new ApiError(error.message, { ...error, status: response.status });
  } catch {
    return new ApiError(`The node answered with status ${response.status}.`, { status: response.status });
  }
}

export async function get(path) {
  return (await send("GET", path)).json();
}

export async function post(path, body = {}) {
  return (await send("POST", path, body)).json();
}

export async function remove(path) {
  return (await send("DELETE", path)).json();
}

// Splits a byte stream into server-sent events. Pure: feed it text, it returns complete events.
export class SseParser {
  constructor() {
    this.rest = "";
  }

  feed(text) {
    this.rest += text;
    const events = [];
    for (;;) {
      const end = this.rest.indexOf("\n\n");
      if (end < 0) return events;
      const block = this.rest.slice(0, end);
      this.rest = this.rest.slice(end + 2);
      const event = { id: null, event: "message", data: [] };
      for (const line of block.split("\n")) {
        if (line.startsWith("data:")) event.data.push(line.slice(5).replace(/^ /, ""));
        else if (line.startsWith("id:")) event.id = line.slice(3).trim();
        else if (line.startsWith("event:")) event.event = line.slice(6).trim();
      }
      if (event.data.length) events.push({ ...event, data: event.data.join("\n") });
    }
  }
}

// Yields the JSON documents of a stream; an error document is thrown.
export async function* stream(path, body, signal) {
  const response = await send(body === undefined ? "GET" : "POST", path, body, signal);
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  const parser = new SseParser();
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      for (const event of parser.feed(decoder.decode(value, { stream: true }))) {
        if (event.data === "[DONE]") return;
        const document = JSON.parse(event.data);
        if (document.error) throw new ApiError(document.error.message, document.error);
        yield { ...document, eventId: event.id };
      }
    }
  } catch (error) {
    if (error instanceof ApiError || error.name === "AbortError") throw error;
    throw new ApiError("The connection to the node broke in the middle of an answer.", { code: "broken" });
  } finally {
    reader.cancel().catch(() => {});
  }
}
