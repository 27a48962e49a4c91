// What the panel knows of the node: views fetched when something happened, and the live feed.
import { get, getKey, stream } from "./api.js";

export function createStore(initial) {
  let state = initial;
  const listeners = new Set();
  return {
    get: () => state,
    set(change) {
      state = { ...state, ...change };
      for (const listener of listeners) listener(state);
    },
    subscribe(listener) {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
  };
}

const VIEWS = ["status", "peers", "models", "plans", "sessions"];
const EVENTS_KEPT = 200;
const REFRESH_MS = 4000;
const RETRY_MS_MAX = 15000;

export const store = createStore({
  connected: null,
  error: null,
  status: {},
  peers: [],
  joining: [],
  links: [],
  models: [],
  plans: [],
  sessions: [],
  running: [],
  events: [],
  telemetry: {},
  lastIndex: null,
});

let pending = null;

export async function refresh() {
  try {
    const answers = await Promise.all(VIEWS.map((view) => get(`/${view}`)));
    const change = { connected: true, error: null };
    VIEWS.forEach((view, index) => {
      change[view] = view === "status" ? answers[index] : (answers[index][view] ?? []);
    });
    const { joining, links } = answers[VIEWS.indexOf("peers")];
    Object.assign(change, { joining: joining ?? [], links: links ?? [] });
    store.set(change);
  } catch (error) {
    store.set({ connected: false, error });
  }
}

function refreshSoon() {
  if (pending !== null) return;
  pending = setTimeout(() => {
    pending = null;
    refresh();
  }, 150);
}

function take(item) {
  if (item.kind === "event") {
    const events = [item, ...store.get().events].slice(0, EVENTS_KEPT);
    store.set({ events, lastIndex: item.index ?? store.get().lastIndex });
    refreshSoon();
  } else if (item.kind === "pulse") {
    const running = item.data.running ?? [];
    const change = { running };
    if (item.data.peers) change.peers = item.data.peers;
    store.set(change);
  } else if (item.kind === "joining" || item.kind === "approvals") {
    refreshSoon();
  } else if (item.kind === "loading" || item.kind === "transfer") {
    // The models' rows show it; when it is over they are asked for again.
    const { model, ...view } = item.data;
    store.set({ models: store.get().models.map((row) => (row.name === model ? { ...row, [item.kind]: view.state === "over" ? null : view } : row)) });
    if (view.state === "over") refreshSoon();
  } else if (item.kind) {
    store.set({ telemetry: { ...store.get().telemetry, [item.kind]: { ...item.data, at: Date.now() } } });
  }
}

export async function follow() {
  let wait = 500;
  for (;;) {
    try {
      const after = store.get().lastIndex;
      for await (const item of stream(`/api/live${after === null ? "" : `?after=${after}`}`)) {
        wait = 500;
        take(item);
      }
    } catch (error) {
      if (error.status === 401) store.set({ connected: false, error });
    }
    await new Promise((resolve) => setTimeout(resolve, wait));
    wait = Math.min(wait * 2, RETRY_MS_MAX);
    if (store.get().connected === false || getKey()) refresh();
  }
}

export function start() {
  refresh();
  follow();
  setInterval(() => document.visibilityState === "visible" && refresh(), REFRESH_MS);
}
