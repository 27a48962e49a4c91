// Models: what the mesh has, where, and how much of it.
import { html, useState } from "../lib/dom.js";
import { bytes, plural, shortPeer } from "../lib/format.js";
import { refresh } from "../lib/store.js";
import { Failure, Progress, useAction } from "../lib/widgets.js";
import { isUp } from "./home.js";

export function Models({ state }) {
  const act = useAction(refresh);
  const [source, setSource] = useState("");
  const nameOf = (holder) => {
    const peer = holder.peer ?? holder;
    return state.peers.find((item) => item.peer === peer)?.name || shortPeer(peer);
  };
  const pull = (event) => {
    event.preventDefault();
    act.run("/command/pull", { model: source.trim() });
  };
  return html`<section aria-labelledby="models-title">
    <h1 id="models-title">Models</h1>
    <${Failure} error=${act.error} />
    ${state.connected && state.models.length === 0 && html`<div class="notice"><span>There is no model in this mesh yet. Add one below, or <code>p2pnode pull</code> it on any device.</span></div>`}
    <div class="grid">${state.models.map((model) => html`<article class="card" key=${model.name}>
      <h2>${model.name} ${model.default && html`<span class="chip active">default</span>`}</h2>
      <dl>
        <dt>Kind</dt><dd>${model.architecture}, ${model.quantisation}</dd>
        <dt>Size</dt><dd>${bytes(model.size_bytes)}, ${plural(model.layers ?? 0, "layer")}</dd>
        <dt>Context</dt><dd>${model.context_length ? `${model.context_length.toLocaleString("en")} tokens` : "–"}</dd>
        <dt>Here</dt><dd>${{ complete: "whole", part: "a part of it", no: "nothing of it" }[model.here] ?? model.here ?? "–"}${model.loaded ? ", in memory" : ""}</dd>${model.license && html`<dt>Licence</dt><dd>${model.license}</dd>`}
        <dt>Whole on</dt><dd>${(model.holders ?? []).map(nameOf).join(", ") || "no device"}</dd>
      </dl>
      <${Progress} view=${model.loading} /><${Progress} view=${model.transfer} />
      <${CopyTo} model=${model} peers=${state.peers} />
      <div class="row">
        <a class="button" href="#/chat">Chat</a><a class="button" href="#/plans">Plan</a>
        ${!model.default && html`<button type="button" disabled=${act.busy} onClick=${() => act.run("/command/set", { key: "model.default", value: model.name })}>Make default</button>
          <button type="button" class="danger" disabled=${act.busy} onClick=${() => confirm(`Remove ${model.name} from this device?`) && act.run("/command/remove_model", { model: model.name })}>Remove here</button>`}
      </div>
    </article>`)}</div>
    <form class="card row" onSubmit=${pull}>
      <label class="grow">Add a model: a GGUF file on this device, or a name on the hub <input placeholder="/models/my-model.gguf or hf:owner/name:Q4_K_M" value=${source} onInput=${(event) => setSource(event.target.value)} /></label>
      <button disabled=${!source.trim() || act.busy}>${act.busy ? "Fetching…" : "Add"}</button>
    </form>
  </section>`;
}

// Devices that do not hold the model may be told to fetch it from those that do.
function CopyTo({ model, peers }) {
  const act = useAction(refresh);
  const [device, setDevice] = useState("");
  const holders = new Set((model.holders ?? []).map((holder) => holder.peer ?? holder));
  const targets = peers.filter((peer) => isUp(peer) && !holders.has(peer.peer));
  if (!targets.length || !holders.size) return null;
  const chosen = device || targets[0].peer;
  const copy = (event) => {
    event.preventDefault();
    act.run("/command/copy_model", { model: model.name, device: chosen });
  };
  return html`<form class="row" onSubmit=${copy}>
    <label>Copy to <select value=${chosen} onChange=${(event) => setDevice(event.target.value)}>${targets.map((peer) => html`<option key=${peer.peer} value=${peer.peer}>${peer.self ? "this device" : peer.name || shortPeer(peer.peer)}</option>`)}</select></label>
    <button disabled=${act.busy}>${act.busy ? "Copying…" : "Copy"}</button>
    ${act.done && html`<span role="status">On ${act.done.name}.</span>`}<${Failure} error=${act.error} />
  </form>`;
}
