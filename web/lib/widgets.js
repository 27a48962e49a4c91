// Small parts that several pages share.
import { html, useCallback, useEffect, useState } from "./dom.js";
import { get, post } from "./api.js";
import { bytes, duration } from "./format.js";

export function Failure({ error, tone = "bad" }) {
  return error ? html`<p class=${`notice ${tone}`} role="alert"><${Said} text=${error.message} hint=${error.hint} /></p>` : null;
}

// What is wrong, and below it what can be done: two sentences, neither of which ends with a stop.
export const Said = ({ text, hint }) => html`<span>${text}${hint && html`<br /><span class="hint">${hint}</span>`}</span>`;

// What a GET says, again whenever `deps` change; reload() asks once more.
export function useView(path, deps = []) {
  const [view, setView] = useState({ data: null, error: null });
  const load = useCallback(() => {
    let current = true;
    get(path).then(
      (data) => current && setView({ data, error: null }),
      (error) => current && setView((old) => ({ ...old, error })),
    );
    return () => { current = false; };
  }, [path]);
  useEffect(load, [load, ...deps]);
  return { ...view, reload: load };
}

// A POST behind a button: says when it is busy and what went wrong.
export function useAction(after = () => {}) {
  const [state, setState] = useState({ busy: false, error: null, done: null });
  const run = async (path, body) => {
    setState({ busy: true, error: null, done: null });
    try {
      const done = await post(path, body);
      setState({ busy: false, error: null, done });
      after(done);
    } catch (error) {
      setState({ busy: false, error, done: null });
    }
  };
  return { ...state, run };
}

// How much of something is in use.
export function Meter({ part, words }) {
  const share = Math.min(1, Math.max(0, part));
  return Number.isFinite(share) ? html`<span class="meter" role="img" aria-label=${`${words}: ${Math.round(share * 100)} %`}><span style=${{ width: `${Math.round(share * 100)}%` }}></span></span>` : null;
}

export function CopyButton({ text, label = "Copy", quiet = false }) {
  const [copied, setCopied] = useState(false);
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text);
      setCopied(true);
      setTimeout(() => setCopied(false), 1500);
    } catch {
      setCopied(false); // no clipboard over plain http: the text can be selected
    }
  };
  return html`<button type="button" class=${quiet ? "link-like" : undefined} onClick=${copy}>${copied ? "Copied" : label}</button>`;
}

const STATES = { preparing: "Preparing", fetching: "Fetching", loading: "Loading" };

// How far a model is on its way into memory or onto a disk; says no time that is not known.
export function Progress({ view }) {
  if (!view || view.state === "over") return null;
  const known = Number.isFinite(view.progress);
  const parts = [known ? `${Math.floor(view.progress * 100)} %` : "", view.total_bytes ? `${bytes(view.done_bytes)} of ${bytes(view.total_bytes)}` : "", Number.isFinite(view.eta_s) ? `${duration(view.eta_s)} to go` : ""];
  return html`<p class="muted progress" role="status"><span>${STATES[view.state] ?? view.state} on ${view.node}</span>
    <progress max="1" value=${known ? view.progress : undefined} aria-label=${`${STATES[view.state] ?? view.state} on ${view.node}`}></progress>
    <span class="num">${parts.filter(Boolean).join(" · ")}</span></p>`;
}

// A number that leads to the events behind it.
export const EventLink = ({ index, children }) =>
  Number.isInteger(index) ? html`<a href=${`#/audit/${index}`}>${children ?? `#${index}`}</a>` : html`<span>${children ?? "–"}</span>`;

export function download(name, text, type = "application/json") {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

export function toCsv(rows) {
  if (!rows.length) return "";
  const columns = Object.keys(rows[0]);
  const cell = (value) => {
    const text = String(value ?? "");
    const safe = /^[=+\-@\t\r]/.test(text) && !/^-?\d+(\.\d+)?$/.test(text) ? `'${text}` : text; // spreadsheets run formulas
    return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  return [columns, ...rows.map((row) => columns.map((name) => row[name]))].map((line) => line.map(cell).join(",")).join("\r\n") + "\r\n";
}
