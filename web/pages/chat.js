// Chat: streams an answer, says how fast and by whom it was computed, and stops when told.
import { html, useEffect, useRef, useState } from "../lib/dom.js";
import { get, stream } from "../lib/api.js";
import { speed as spoken, units } from "../lib/format.js";
import { LayerBar, StageTable } from "../lib/layers.js";
import { toSafeHtml } from "../lib/markdown.js";
import { Failure, Progress, download } from "../lib/widgets.js";

export const MODES = [
  ["auto", "Auto"],
  ["local", "Local"],
  ["pipeline", "Pipeline"],
  ["tensor_rpc", "Tensor RPC"],
  ["tensor", "Tensor Native"],
  ["hybrid", "Hybrid"],
];
const SUGGESTIONS = ["Tell me a story about three small computers.", "Why is the sky blue?", "Write a haiku about a kitchen."];
const MODE_KEY = "p2pnode.mode";
const HISTORY_KEY = "p2pnode.chat";

const load = (key, fallback) => {
  try {
    return JSON.parse(localStorage.getItem(key)) ?? fallback;
  } catch {
    return fallback;
  }
};

// What is left after a reply that cost something; a panel whose key may not see accounts says nothing.
const balance = () => get("/billing").then((view) => view.accounts.find((item) => item.account === view.own_account || item.account === "local")?.available_microunits, () => undefined);

// The conversation outlives this page: an answer goes on while somebody looks at the devices that compute it.
const talk = { messages: load(HISTORY_KEY, []), live: null, abort: null, seen: new Set() };

function change(part) {
  Object.assign(talk, part);
  if (part.messages) localStorage.setItem(HISTORY_KEY, JSON.stringify(talk.messages.slice(-100)));
  talk.seen.forEach((look) => look({}));
}

// Another tab said something: this one follows, unless it is in the middle of an answer itself.
globalThis.addEventListener?.("storage", (event) => {
  if (event.key !== HISTORY_KEY || talk.live) return;
  talk.messages = load(HISTORY_KEY, []);
  talk.seen.forEach((look) => look({}));
});

// What a model is told of a conversation: without answers that failed, and without the questions they were for,
// because many templates want the two sides to take turns.
export function told(history) {
  const failed = (message) => message?.role === "assistant" && (message.error || !message.content);
  return history.filter((message, index) => !failed(message) && !failed(history[index + 1])).map(({ role, content }) => ({ role, content }));
}

export function Chat({ state }) {
  const [draft, setDraft] = useState("");
  const [mode, setMode] = useState(() => load(MODE_KEY, "auto"));
  const [model, setModel] = useState("");
  const [, look] = useState({});
  const log = useRef(null);
  const { messages, live } = talk;
  const setMessages = (said) => change({ messages: said });
  const setLive = (answer) => change({ live: answer });

  useEffect(() => {
    talk.seen.add(look);
    return () => talk.seen.delete(look);
  }, []);
  useEffect(() => log.current?.scrollTo({ top: log.current.scrollHeight }), [messages, live]);

  async function ask(history) {
    const controller = new AbortController();
    const answer = { role: "assistant", content: "", prefill: null, tokens: 0, started: performance.now() };
    change({ abort: controller, messages: history, live: { ...answer } });
    const body = {
      messages: told(history),
      stream: true,
      stream_options: { include_usage: true },
      return_progress: true,
      mode,
      ...(model ? { model } : {}),
    };
    try {
      for await (const chunk of stream("/v1/chat/completions", body, controller.signal)) {
        const choice = chunk.choices?.[0];
        answer.loading = chunk.loading ?? null;
        if (chunk.prompt_progress) answer.prefill = chunk.prompt_progress;
        if (choice?.delta?.content) {
          if (!answer.tokens) answer.first = performance.now();
          answer.content += choice.delta.content;
          answer.tokens += 1;
          answer.speed = answer.tokens > 1 ? (answer.tokens - 1) / ((performance.now() - answer.first) / 1000) : null;
        }
        if (choice?.finish_reason) answer.finish = choice.finish_reason;
        if (chunk.p2pnode) answer.by = chunk.p2pnode;
        if (chunk.usage) answer.usage = chunk.usage;
        setLive({ ...answer });
      }
    } catch (error) {
      if (error.name === "AbortError") answer.stopped = true;
      else answer.error = { message: error.message, hint: error.hint };
    }
    if (answer.by?.cost_microunits) answer.balance = await balance();
    change({ abort: null, live: null, messages: [...history, answer] });
  }

  function submit(event) {
    event?.preventDefault();
    const text = draft.trim();
    if (!text || live) return;
    setDraft("");
    ask([...messages, { role: "user", content: text }]);
  }

  function regenerate() {
    const last = messages.findLastIndex((message) => message.role === "user");
    if (last >= 0) ask(messages.slice(0, last + 1));
  }

  const shown = live ? [...messages, { ...live, live: true }] : messages;
  return html`<section class="chat" aria-labelledby="chat-title">
    <header class="chat-head">
      <h1 id="chat-title">Chat</h1>
      <label>Model
        <select value=${model} onChange=${(event) => setModel(event.target.value)}>
          <option value="">default</option>
          ${state.models.map((item) => html`<option key=${item.name} value=${item.name}>${item.name}</option>`)}
        </select>
      </label>
      <label>Mode
        <select value=${mode} onChange=${(event) => { setMode(event.target.value); localStorage.setItem(MODE_KEY, JSON.stringify(event.target.value)); }}>
          ${MODES.map(([value, label]) => html`<option key=${value} value=${value}>${label}</option>`)}
        </select>
      </label>
      <button type="button" onClick=${() => setMessages([])} disabled=${Boolean(live) || !messages.length}>New chat</button>
    </header>
    <div class="messages" ref=${log} role="log" aria-live="polite" aria-busy=${Boolean(live)} tabindex="0">
      ${shown.length === 0 && html`<div class="empty"><h2>Ask your mesh something</h2>
        <p class="muted">${state.models.length ? "Every answer says which devices computed it, how fast, and what it cost." : html`There is no model yet: <a href="#/models">add one</a> first.`}</p>
        ${state.models.length > 0 && html`<div class="row">${SUGGESTIONS.map((words) => html`<button type="button" key=${words} onClick=${() => ask([{ role: "user", content: words }])}>${words}</button>`)}</div>`}</div>`}
      ${shown.map((message, index) => html`<${Message} key=${index} message=${message} />`)}
    </div>
    <form class="composer" onSubmit=${submit}>
      <label class="sr" for="prompt">Your message</label>
      <textarea id="prompt" rows="2" value=${draft} placeholder="Message (Enter sends, Shift+Enter breaks the line)"
        onInput=${(event) => setDraft(event.target.value)}
        onKeyDown=${(event) => event.key === "Enter" && !event.shiftKey && !event.isComposing && submit(event)}></textarea>
      ${live
        ? html`<button type="button" class="stop" onClick=${() => talk.abort?.abort()}>Stop</button>`
        : html`<button type="submit" class="primary" disabled=${!draft.trim()}>Send</button>`}
      ${!live && messages.length > 0 && html`<button type="button" onClick=${regenerate}>Regenerate</button>`}
    </form>
  </section>`;
}

function Message({ message }) {
  const { role, content, by, error } = message;
  if (role === "user") return html`<div class="message user"><p>${content}</p></div>`;
  const waiting = message.live && !content;
  return html`<div class="message assistant">
    ${content && html`<div class="markdown" dangerouslySetInnerHTML=${{ __html: toSafeHtml(content) }}></div>`}
    ${waiting && (message.loading ? html`<${Progress} view=${message.loading} />` : html`<${Prefill} progress=${message.prefill} />`)}
    <${Failure} error=${error} />
    ${message.stopped && html`<p class="muted">Stopped.</p>`}
    <${Facts} message=${message} />
    ${by && html`<details class="who"><summary>Who computed this</summary>
      <p class="muted">${by.mode}, ${by.stages.length === 1 ? "one device" : `${by.stages.length} devices in turn`};
        ${" "}request <a href=${`#/audit?request=${by.request_id}`}>${by.request_id}</a></p>
      <${LayerBar} stages=${by.stages} /><${StageTable} stages=${by.stages} /><${TraceButton} request=${by.request_id} /></details>`}
  </div>`;
}

// The way of one request for Perfetto or chrome://tracing; the node keeps the newest ones only.
function TraceButton({ request }) {
  const [error, setError] = useState(null);
  const save = () => get(`/sessions/${encodeURIComponent(request)}/trace`).then((trace) => download(`${request}.trace.json`, JSON.stringify(trace)), setError);
  return html`<p><button type="button" onClick=${save}>Save the trace</button> ${error && html`<span class="muted">${error.message}</span>`}</p>`;
}

function Prefill({ progress }) {
  if (!progress?.total) return html`<p class="muted">Waiting for the first token…</p>`;
  return html`<p class="muted">Reading the prompt <progress value=${progress.processed} max=${progress.total}></progress> ${progress.processed} of ${progress.total} tokens</p>`;
}

function Facts({ message }) {
  const { usage, by } = message;
  const speed = by?.tokens_per_s ?? message.speed;
  const facts = [];
  if (by) facts.push(by.stages?.length > 1 ? `${by.mode}, ${by.stages.length} devices` : by.mode);
  if (usage) facts.push(`${usage.prompt_tokens} tokens read, ${usage.completion_tokens} written`);
  if (speed) facts.push(spoken(speed));
  if (by) facts.push(by.cost_microunits ? `${units(by.cost_microunits)} units` : "free");
  if (by?.cost_microunits && Number.isFinite(message.balance)) facts.push(`${units(message.balance)} left`);
  if (message.finish === "length") facts.push("cut at the length limit");
  return facts.length ? html`<p class="facts">${facts.join(" · ")}</p>` : null;
}
