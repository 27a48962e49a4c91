// Billing: balances, holds, every booking with the event behind it, earnings, export.
import { html, useState } from "../lib/dom.js";
import { layers, plural, shortPeer, time, units } from "../lib/format.js";
import { download, EventLink, Failure, toCsv, useAction, useView } from "../lib/widgets.js";

export function Billing({ state }) {
  const { data, error, reload } = useView("/billing", [state.lastIndex]);
  const [account, setAccount] = useState("local");
  const statement = useView(`/log/statement?account=${encodeURIComponent(account)}&limit=200`, [state.lastIndex]);
  const earned = useView("/log/earnings", [state.lastIndex]);
  const lines = (statement.data?.lines ?? []).filter((line) => line.account === account).reverse();
  const accounts = data?.accounts ?? [];
  return html`<section aria-labelledby="billing-title">
    <h1 id="billing-title">Billing</h1>
    <${Failure} error=${error} />
    <div class="grid">${accounts.map((item) => html`<article class="card" key=${item.account}>
      <h2>${item.account === "local" ? "This device" : item.name} <span class="chip">${item.account === "local" ? "local" : item.account === data.own_account ? "what it earns" : "account"}</span></h2>
      <p class="figure">${units(item.available_microunits)} <small>units available</small></p>
      <dl><dt>Held</dt><dd>${units(item.held_microunits)} units</dd><dt>Spent</dt><dd>${units(item.spent_microunits)} units in ${plural(item.requests, "request")}</dd>
        <dt>Earned</dt><dd>${units(item.earned_microunits)} units</dd><dt>Topped up</dt><dd>${units(item.topped_up_microunits)} units</dd>
        ${item.quota && html`<dt>Quota</dt><dd>${units(item.quota.left_microunits)} of ${units(item.quota.limit_microunits)} left${item.quota.forecast_microunits ? `; about ${units(Math.round(item.quota.forecast_microunits / 1e4) * 1e4)} at this pace` : ""}</dd>`}</dl>
      <button type="button" aria-pressed=${item.account === account} onClick=${() => setAccount(item.account)}>Statement</button>
    </article>`)}
    <div class="stack"><${TopUp} account=${account} after=${() => { reload(); statement.reload(); }} />
    <${Quota} account=${account} quota=${accounts.find((item) => item.account === account)?.quota} after=${reload} /></div></div>
    ${(data?.holds ?? []).length > 0 && html`<article class="card"><h2>Held now</h2><div class="scroll"><table><thead><tr><th>Request</th><th>Payer</th><th class="num">Amount</th><th>Until</th></tr></thead>
      <tbody>${data.holds.map((hold) => html`<tr key=${hold.hold_id}><td><a href=${`#/audit?request=${hold.request_id}`}>${hold.request_id}</a></td><td>${shortPeer(hold.payer)}</td><td class="num">${units(hold.amount_microunits)}</td><td>${time(hold.expires_ms)}</td></tr>`)}</tbody></table></div></article>`}
    ${(data?.channels ?? []).length > 0 && html`<article class="card"><h2>Work between devices</h2><div class="scroll"><table><thead><tr><th>Device</th><th>Direction</th><th class="num">Layer tokens</th><th class="num">Units</th><th class="num">Agreed</th></tr></thead>
      <tbody>${data.channels.map((row, index) => html`<tr key=${index}><td>${state.peers.find((peer) => peer.peer === row.peer)?.name ?? shortPeer(row.peer)}</td><td>${row.direction === "given" ? "computed for it" : "computed by it"}</td><td class="num">${row.layer_tokens}</td><td class="num">${units(row.microunits)}</td><td class="num">${units(row.agreed_microunits)}</td></tr>`)}</tbody></table></div></article>`}
    ${(earned.data?.earnings ?? []).length > 0 && html`<article class="card"><h2>Earned by layers</h2><div class="scroll"><table><thead><tr><th>Device</th><th>Direction</th><th>Layers</th><th class="num">Receipts</th><th class="num">Layer tokens</th><th class="num">Units</th></tr></thead>
      <tbody>${earned.data.earnings.map((row, index) => html`<tr key=${index}><td>${state.peers.find((peer) => peer.peer === row.peer)?.name ?? shortPeer(row.peer)}</td><td>${row.direction === "given" ? "computed for it" : "computed by it"}</td><td>${layers(row.layers)}</td><td class="num">${row.receipts}</td><td class="num">${row.layer_tokens}</td><td class="num">${units(row.microunits)}</td></tr>`)}</tbody></table></div></article>`}
    <article class="card"><div class="row"><h2>Statement of ${accounts.find((item) => item.account === account)?.name ?? account}</h2>
      <button type="button" disabled=${!lines.length} onClick=${() => download(`statement-${account}.csv`, toCsv(lines), "text/csv")}>Export CSV</button></div>
      <${Failure} error=${statement.error} />
      ${lines.length === 0 ? html`<p class="muted">No bookings yet.</p>` : html`<div class="scroll"><table><thead><tr><th class="num">Event</th><th>Time</th><th>What</th><th>For</th><th class="num">Amount, units</th><th class="num">Balance, units</th></tr></thead>
        <tbody>${lines.map((line, index) => html`<tr key=${index}><td class="num"><${EventLink} index=${line.index}>${line.index}<//></td><td class="nowrap">${time(line.wall_ms)}</td><td>${booking(line.type)}</td><td class="says id">${line.request_id || line.note || "–"}</td><td class="num">${units(line.amount_microunits)}</td><td class="num">${units(line.balance_microunits)}</td></tr>`)}</tbody></table></div>`}
    </article>
  </section>`;
}

const BOOKINGS = { CreditHeld: "held for a request", CreditSettled: "settled", CreditToppedUp: "topped up", CreditReleased: "released", CreditGranted: "granted" };
const booking = (type) => BOOKINGS[type] ?? type;

// Units with at most six decimals as whole micro-units, or null.
export function microUnits(text) {
  const match = /^(\d{1,9})(?:\.(\d{1,6}))?$/.exec(text.trim());
  if (!match) return null;
  const micro = Number(match[1]) * 1e6 + Number((match[2] ?? "").padEnd(6, "0"));
  return micro > 0 ? micro : null;
}

const PERIODS = { hour: 3_600_000, day: 86_400_000, week: 7 * 86_400_000, month: 30 * 86_400_000 };

function Quota({ account, quota, after }) {
  const [amount, setAmount] = useState("5");
  const [per, setPer] = useState("day");
  const act = useAction(after);
  const micro = microUnits(amount);
  const send = (event) => {
    event.preventDefault();
    act.run("/command/quota", { account, limit_microunits: micro, period_ms: PERIODS[per] });
  };
  return html`<form class="card" onSubmit=${send}><h2>Quota of ${account}</h2>
    <div class="row"><label>Units <input inputmode="decimal" value=${amount} onInput=${(event) => setAmount(event.target.value)} aria-invalid=${micro === null} /></label>
    <label>each <select value=${per} onChange=${(event) => setPer(event.target.value)}>${Object.keys(PERIODS).map((name) => html`<option key=${name}>${name}</option>`)}</select></label>
    <button class="primary" disabled=${micro === null || act.busy}>Limit</button>
    ${quota && html`<button type="button" disabled=${act.busy} onClick=${() => act.run("/command/quota", { account })}>Lift</button>`}</div>
    <p class="muted">Counts the list price, free requests too.</p>
    <${Failure} error=${act.error} /></form>`;
}

function TopUp({ account, after }) {
  const [amount, setAmount] = useState("1");
  const act = useAction(after);
  const micro = microUnits(amount);
  const send = (event) => {
    event.preventDefault();
    act.run("/command/topup", { account, amount_microunits: micro, idempotency_key: `panel-${Date.now()}-${Math.random().toString(36).slice(2)}` });
  };
  return html`<form class="card" onSubmit=${send}><h2>Top up ${account}</h2>
    <div class="row"><label>Units <input inputmode="decimal" value=${amount} onInput=${(event) => setAmount(event.target.value)} aria-invalid=${micro === null} /></label>
    <button class="primary" disabled=${micro === null || act.busy}>Add</button></div>
    ${act.done && html`<p role="status" class="muted">Added.</p>`}<${Failure} error=${act.error} /></form>`;
}
