// Audit: the sealed record, entry by entry, each provable in this browser.
import { html, useEffect, useState } from "../lib/dom.js";
import { checkedWitnesses, verifiedCheckpoint, verifyEntry } from "../lib/audit.js";
import { get, post } from "../lib/api.js";
import { shortPeer, time } from "../lib/format.js";
import { namesOf, tell } from "../lib/facts.js";
import { NotSealed, toHex } from "../lib/tlog.js";
import { download, Failure, toCsv, useView } from "../lib/widgets.js";

const PAGE = 50;

export function Audit({ state, at }) {
  const chosen = /^\d+$/.test(at.rest[0] ?? "") ? Number(at.rest[0]) : null;
  const names = namesOf(state);
  const nameOf = (actor) => state.peers.find((peer) => peer.peer === actor)?.name || shortPeer(actor);
  const [end, setEnd] = useState(null); // time travel: show the log as it was at this size
  const [words, setWords] = useState(at.query.get("request") ?? "");
  useEffect(() => setWords(at.query.get("request") ?? ""), [at.query.get("request")]);
  const [type, setType] = useState("");
  const size = useView("/log/size", [state.lastIndex]);
  const whole = size.data?.size ?? 0;
  const shown = end ?? whole;
  const first = Math.max(0, shown - PAGE);
  const searching = Boolean(words || type);
  const { data, error } = useView(`/log/entries?first=${first}&limit=${Math.max(1, Math.min(PAGE, shown - first))}`, [whole]);
  const counts = useView("/log/audit", [whole]);
  const found = useSearch(searching, words, type, shown);
  const entries = (data?.entries ?? []).filter((entry) => entry.index < shown).reverse();
  const types = Object.keys(counts.data?.counts ?? {}).sort();
  const kept = searching ? found.entries : entries;
  return html`<section aria-labelledby="audit-title">
    <h1 id="audit-title">Audit</h1>
    <${Checkpoint} size=${whole} />
    <${Witnesses} size=${whole} peers=${state.peers} />
    <${Failure} error=${error ?? size.error} />
    ${chosen !== null && html`<${Entry} key=${chosen} index=${chosen} names=${names} />`}
    <article class="card">
      <div class="row">
        <label>Type <select value=${type} onChange=${(event) => setType(event.target.value)}>
          <option value="">all</option>${types.map((name) => html`<option key=${name}>${name}</option>`)}</select></label>
        <label>Contains <input type="search" value=${words} onInput=${(event) => setWords(event.target.value)} /></label>
        <button type="button" onClick=${() => exportAll(whole, "json")}>Export JSON</button>
        <button type="button" onClick=${() => exportAll(whole, "csv")}>Export CSV</button>
      </div>
      ${whole > 1 && html`<label class="slider">As it was at size ${shown}
        <input type="range" min="1" max=${whole} value=${shown} onInput=${(event) => setEnd(Number(event.target.value) === whole ? null : Number(event.target.value))} /></label>`}
      <div class="scroll"><table class="lines">
        <thead><tr><th class="num">Entry</th><th>Time</th><th>Fact</th><th>By</th><th>What it says</th></tr></thead>
        <tbody>${kept.map((entry) => html`<tr key=${entry.index} class=${entry.index === chosen ? "chosen" : ""}>
          <td class="num inline"><a href=${`#/audit/${entry.index}`}>${entry.index}</a></td>
          <td class="nowrap inline">${time(entry.time_ms)}</td><td class="inline">${entry.type}</td>
          <td class="inline">${nameOf(entry.actor)}</td><td class="says"><${Says} data=${entry.data} names=${names} /></td></tr>`)}</tbody>
      </table></div>
      ${searching && html`<p class="muted" role="status">${found.before > 0 ? `Looked back to entry ${found.before}.` : `${kept.length} found in all ${shown} entries.`}
        ${found.before > 0 && html` <button type="button" disabled=${found.busy} onClick=${found.more}>Look further back</button>`}</p>`}
      <${Failure} error=${found.error} />
      ${!searching && first > 0 && html`<button type="button" onClick=${() => setEnd(first)}>Older entries</button>`}
      ${end !== null && html` <button type="button" onClick=${() => setEnd(null)}>Back to now</button>`}
    </article>
  </section>`;
}

// Entries with these words, newest first: the node looks through a few thousand at a time.
function useSearch(wanted, words, type, size) {
  const [state, setState] = useState({ entries: [], before: 0, busy: false, error: null });
  const look = async (before, entries, isCurrent) => {
    setState((old) => ({ ...old, busy: true }));
    try {
      const query = new URLSearchParams({ before, limit: 200, ...(words ? { words } : {}), ...(type ? { type } : {}) });
      const answer = await get(`/log/find?${query}`);
      if (isCurrent()) setState({ entries: [...entries, ...answer.entries], before: answer.before, busy: false, error: null });
    } catch (error) {
      if (isCurrent()) setState((old) => ({ ...old, busy: false, error }));
    }
  };
  useEffect(() => {
    let current = true;
    const wait = setTimeout(() => wanted && size && look(size, [], () => current), 200);
    return () => { current = false; clearTimeout(wait); };
  }, [wanted, words, type, size]);
  return { ...state, more: () => look(state.before, state.entries, () => true) };
}

const SAID_MAX = 8;

function Says({ data, names }) {
  const said = tell(data, names);
  return html`${said.slice(0, SAID_MAX).map(([what, how]) => html`<span key=${what}><i>${what}</i> ${how.length > 90 ? `${how.slice(0, 90)}…` : how}</span>`)}${said.length > SAID_MAX ? "…" : ""}`;
}

function Checkpoint({ size }) {
  const [result, setResult] = useState(null);
  useEffect(() => {
    let current = true;
    if (size) verifiedCheckpoint().then((ok) => current && setResult({ ok }), (error) => current && setResult({ error }));
    return () => { current = false; };
  }, [size]);
  if (!result) return html`<p class="muted">Checking the signed checkpoint in this browser…</p>`;
  if (result.error) return html`<${Failure} error=${result.error} tone=${result.error.code === "bad_proof" ? "bad" : "warn"} />`;
  const { ok } = result;
  return html`<p class="notice" role="status"><span><strong class="tick">✓</strong> Checkpoint of ${ok.size} entries: identity, keys and signature verified in this browser.
    ${ok.since !== null && ` It contains everything this browser saw before (${ok.since}).`}</span></p>`;
}

// Who vouches that this log was never changed, whose logs this device vouches for, and who was caught with two.
function Witnesses({ size, peers }) {
  const [result, setResult] = useState(null);
  const [asked, setAsked] = useState(0);
  useEffect(() => {
    let current = true;
    if (size) checkedWitnesses().then((ok) => current && setResult({ ok }), (error) => current && setResult({ error }));
    return () => { current = false; };
  }, [size, asked]);
  const name = (peer) => peers.find((one) => one.peer === peer)?.name ?? shortPeer(peer);
  const ask = () => post("/command/witness").then(() => setAsked(asked + 1), (error) => setResult({ error }));
  if (!result) return null;
  if (result.error) return html`<${Failure} error=${result.error} />`;
  const { cosigned_by: by, cosigned, equivocations, doubts } = result.ok;
  return html`<article class="card" aria-labelledby="witnesses-title">
    <div class="row"><h2 id="witnesses-title">Witnesses</h2><button type="button" onClick=${ask}>Ask them now</button></div>
    ${equivocations.map((one) => html`<p class="notice bad" role="alert" key=${one.index}><strong>${name(one.peer)}</strong> signed ${one.origin.includes(">") ? `two receipts with the number ${one.sizes[0]}` : `two histories of its log
      (${one.sizes[0]} and ${one.sizes[1]} entries)`} and gets no credit any more. <a href=${`#/audit/${one.index}`}>Entry ${one.index}</a> holds the proof.
      <button type="button" onClick=${() => saveProof(one)}>Save the proof</button></p>`)}
    ${doubts.map((one) => html`<p class="notice warn" key=${one.origin}><strong>${name(one.peer)}</strong> showed checkpoints of ${one.sizes[0]} and
      ${one.sizes[1]} entries that do not fit together, without proof so far: ${one.why}</p>`)}
    ${by.length === 0
      ? html`<p class="muted">Nobody has cosigned this log yet: whoever owns this device could still rewrite it unnoticed. Members of the mesh cosign by themselves.</p>`
      : html`<div class="scroll"><table><thead><tr><th>Cosigned by</th><th class="num">Entries</th><th>When</th><th>Checked here</th></tr></thead>
        <tbody>${by.map((row) => html`<tr key=${row.witness}><td>${name(row.peer)}</td><td class="num">${row.size}</td><td>${time(row.time_ms)}</td><td class="nowrap">${checked(row)}</td></tr>`)}</tbody></table></div>`}
    ${cosigned.length > 0 && html`<details><summary>Logs this device cosigned: ${cosigned.length}</summary>
      <ul>${cosigned.map((row) => html`<li key=${row.origin}>${name(row.peer)}: ${row.size} entries, root <code>${row.root.slice(0, 16)}</code></li>`)}</ul></details>`}
  </article>`;
}

function checked(row) {
  if (row.checked === null) return html`<span class="muted">told by the node</span>`;
  return row.checked ? html`<strong class="tick">✓</strong> signature` : html`<strong class="bad">✗ ${row.why}</strong>`;
}

const saveProof = (fraud) => download(`fraud-${shortPeer(fraud.peer)}.json`, `${JSON.stringify({ format: "p2pnode-fraud-1", document: fraud.proof }, null, 2)}\n`);

function Entry({ index, names }) {
  const [result, setResult] = useState(null);
  useEffect(() => {
    let current = true;
    verifyEntry(index).then((ok) => current && setResult({ ok }), (error) => current && setResult({ error }));
    return () => { current = false; };
  }, [index]);
  if (!result) return html`<article class="card"><p class="muted">Proving entry ${index}…</p></article>`;
  if (result.error instanceof NotSealed) return html`<article class="card"><h2>Entry ${index}</h2><p class="notice">${result.error.message}</p></article>`;
  if (result.error) return html`<article class="card"><h2>Entry ${index}</h2><${Failure} error=${result.error} /></article>`;
  const { event, checkpoint, path } = result.ok;
  return html`<article class="card proof" aria-live="polite">
    <h2><strong class="tick">✓</strong> Entry ${index}: ${event.type}</h2>
    <p class="muted">${time(event.time_ms)}. Its bytes hash to a leaf, ${path.length - 1} hashes lead to the root, and the root is signed.</p>
    <${Path} path=${path} />
    <p class="says"><${Says} data=${event.data} names=${names} /></p>
    <details><summary>Every field</summary><pre>${JSON.stringify(event.data, null, 2)}</pre></details>
    <p class="muted small">Root <code>${toHex(checkpoint.root)}</code> of ${checkpoint.size} entries, origin <code>${checkpoint.origin}</code></p>
  </article>`;
}

// The hash path as steps upwards: ours in the middle, beside it the sibling it is hashed with, on its side.
function Path({ path }) {
  const last = path.length - 1;
  const sibling = (index, side) => (path[index + 1]?.side === side ? toHex(path[index + 1].sibling).slice(0, 10) : "");
  return html`<ol class="path" aria-label="Hash path from entry to root">
    ${path.map((step, index) => html`<li key=${index}>
      <span class="hash sibling">${sibling(index, "left")}</span>
      <span class=${`hash ours ${index === last ? "root" : ""}`}>${index === 0 ? "leaf " : index === last ? "root " : ""}${toHex(step.hash).slice(0, 10)}</span>
      <span class="hash sibling">${sibling(index, "right")}</span></li>`)}
  </ol>`;
}

async function exportAll(size, kind) {
  const entries = [];
  for (let first = 0; first < size; first += 500) {
    const page = await get(`/log/entries?first=${first}&limit=500`);
    entries.push(...page.entries);
    if (!page.entries.length) break;
  }
  if (kind === "json") download("p2pnode-log.json", JSON.stringify(entries, null, 1));
  else download("p2pnode-log.csv", toCsv(entries.map(({ data, kind: _, ...rest }) => ({ ...rest, data: JSON.stringify(data) }))), "text/csv");
}
