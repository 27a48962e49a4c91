// Launch: the console, when the operator enabled it. It needs an admin key even on this machine.
import { html, useEffect, useRef, useState } from "../lib/dom.js";
import { getKey, post, setKey } from "../lib/api.js";
import { Failure } from "../lib/widgets.js";

const HISTORY = "p2pnode.console";
const KEPT = 100;

// Walks a list of earlier commands: up goes back, down comes forward to the draft.
export function recall(history, position, step) {
  const next = Math.min(history.length, Math.max(0, position + step));
  return { position: next, text: history[next] ?? "" };
}

export function Launch() {
  const [history, setHistory] = useState(() => JSON.parse(sessionStorage.getItem(HISTORY) ?? "[]"));
  const [position, setPosition] = useState(history.length);
  const [command, setCommand] = useState("");
  const [runs, setRuns] = useState([]);
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState(null);
  const [key, set] = useState(getKey());
  const out = useRef(null);
  useEffect(() => sessionStorage.setItem(HISTORY, JSON.stringify(history)), [history]);
  useEffect(() => out.current?.scrollTo({ top: out.current.scrollHeight }), [runs]);

  async function run(event) {
    event.preventDefault();
    const text = command.trim();
    if (!text || busy) return;
    const kept = [...history.filter((item) => item !== text), text].slice(-KEPT);
    setHistory(kept);
    setPosition(kept.length);
    setCommand("");
    setBusy(true);
    setError(null);
    try {
      const result = await post("/shell/exec", { command: text });
      setRuns((old) => [...old, { text, ...result }]);
    } catch (failure) {
      setError(failure);
    }
    setBusy(false);
  }

  function keys(event) {
    if (event.key !== "ArrowUp" && event.key !== "ArrowDown") return;
    event.preventDefault();
    const found = recall(history, position, event.key === "ArrowUp" ? -1 : 1);
    setPosition(found.position);
    setCommand(found.text);
  }

  return html`<section aria-labelledby="launch-title">
    <h1 id="launch-title">Launch</h1>
    <p class="muted">Commands run as the node's own user, with its rights, and each run is recorded. The console works only when the node
      was started with <code>--console</code>, from this machine, with an admin key.</p>
    <form class="row" onSubmit=${(event) => { event.preventDefault(); setKey(key.trim()); }}>
      <label class="grow">Admin key (kept in this tab only) <input type="password" autocomplete="off" value=${key} onInput=${(event) => set(event.target.value)} /></label>
      <button>Use it</button>
    </form>
    <article class="card">
      <div class="terminal" ref=${out} role="log" aria-live="polite" tabindex="0">
        ${runs.length === 0 && html`<p class="muted">Nothing was run yet. ↑ and ↓ walk through earlier commands.</p>`}
        ${runs.map((item, index) => html`<div key=${index}><p><strong>$ ${item.text}</strong></p><pre>${item.output}</pre>
          <p class="muted">exit code ${item.exit_code}, ${item.duration_ms} ms${item.truncated ? ", output cut" : ""}${item.timed_out ? ", out of time" : ""}</p></div>`)}
      </div>
      <${Failure} error=${error} />
      <form class="composer" onSubmit=${run}>
        <label class="sr" for="command">Command</label>
        <input id="command" class="grow" autocomplete="off" spellcheck="false" value=${command} onInput=${(event) => setCommand(event.target.value)} onKeyDown=${keys} />
        <button class="primary" disabled=${busy || !command.trim()}>${busy ? "Running…" : "Run"}</button>
      </form>
    </article>
  </section>`;
}
