// Settings: each value, who changed it and when; API keys.
import { html, useState } from "../lib/dom.js";
import { remove } from "../lib/api.js";
import { shortPeer, time } from "../lib/format.js";
import { EventLink, Failure, useAction, useView } from "../lib/widgets.js";

export function Settings({ state }) {
  const { data, error, reload } = useView("/settings", [state.lastIndex]);
  const act = useAction(() => reload());
  const [row, setRow] = useState({ key: "", value: "" });
  const save = (event) => {
    event.preventDefault();
    act.run("/command/set", row);
  };
  const rows = data?.settings ?? [];
  return html`<section aria-labelledby="settings-title">
    <h1 id="settings-title">Settings</h1>
    <${Failure} error=${error} />
    <article class="card"><h2>Settings of the mesh</h2><p class="muted">They hold for every device, and each change is recorded.</p>
      ${rows.length === 0 ? html`<p class="muted">Nothing was changed so far: all have their defaults.</p>` : html`<div class="scroll"><table><thead><tr><th>Setting</th><th>Value</th><th>Before</th><th>Changed by</th><th>When</th><th>Event</th></tr></thead>
        <tbody>${rows.map((item) => html`<tr key=${item.key}><td>${item.key}</td><td>${String(item.value)}</td><td>${String(item.previous ?? "–")}</td><td>${shortPeer(item.changed_by)}</td><td>${time(item.changed_ms)}</td><td><${EventLink} index=${item.index} /></td></tr>`)}</tbody></table></div>`}
      <form class="row" onSubmit=${save}>
        <label>Setting <input value=${row.key} onInput=${(event) => setRow({ ...row, key: event.target.value })} placeholder="model.default" list="setting-keys" /></label>
        <datalist id="setting-keys">${["model.default", "auto.load", "plan.battery", "plan.metered", "plan.versions", "serve.elsewhere", "serve.meshes", "cache.prefix", "backends.discover", "device.engine", "device.schedule", "keep_texts"].map((key) => html`<option key=${key} value=${key} />`)}</datalist>
        <label>Value <input value=${row.value} onInput=${(event) => setRow({ ...row, value: event.target.value })} /></label>
        <button disabled=${!row.key || act.busy}>Change</button>
      </form><${Failure} error=${act.error} />
    </article>
    <${Start} />
    <${Keys} />
  </section>`;
}

function Start() {
  const { data } = useView("/settings/origins");
  if (!data?.settings?.length) return null;
  return html`<article class="card"><h2>How this node was started</h2><p class="muted">Flags win over the environment, that over the config file. They change with the next start.</p><div class="scroll"><table><thead><tr><th>Option</th><th>Value</th><th>Comes from</th></tr></thead>
    <tbody>${data.settings.map((item) => html`<tr key=${item.name}><td>${item.name}</td><td>${Array.isArray(item.value) ? item.value.join(", ") || "–" : String(item.value ?? "") || "–"}</td><td>${item.origin}</td></tr>`)}</tbody></table></div></article>`;
}

function Keys() {
  const { data, error, reload } = useView("/keys");
  const act = useAction(() => reload());
  const [wish, setWish] = useState({ label: "", scope: "use" });
  const create = (event) => {
    event.preventDefault();
    act.run("/keys", wish);
  };
  const revoke = async (id) => {
    await remove(`/keys/${id}`);
    reload();
  };
  return html`<article class="card"><h2>API keys</h2><p class="muted">Programs on this machine need none. Others send one as <code>Authorization: Bearer KEY</code>.</p><${Failure} error=${error} />
    <form class="row" onSubmit=${create}>
      <label>For whom <input value=${wish.label} maxlength="64" onInput=${(event) => setWish({ ...wish, label: event.target.value })} /></label>
      <label>May <select value=${wish.scope} onChange=${(event) => setWish({ ...wish, scope: event.target.value })}><option value="use">use models</option><option value="admin">change everything</option></select></label>
      <button disabled=${act.busy}>Create</button>
    </form>
    ${act.done && html`<p class="notice" role="status">Shown this once: <code>${act.done.key}</code></p>`}<${Failure} error=${act.error} />
    ${(data?.keys ?? []).length > 0 && html`<table><thead><tr><th>Key</th><th>For</th><th>Scope</th><th>Created</th><th></th></tr></thead>
      <tbody>${data.keys.map((key) => html`<tr key=${key.key_id} class=${key.revoked_ms ? "faded" : ""}><td><code>${key.key_id}</code></td><td>${key.label || "–"}</td><td>${key.scope}</td><td>${time(key.created_ms)}</td>
        <td>${key.revoked_ms ? "revoked" : html`<button type="button" class="danger" onClick=${() => revoke(key.key_id)}>Revoke</button>`}</td></tr>`)}</tbody></table>`}
  </article>`;
}
