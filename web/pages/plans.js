// Plans: who would compute what, why, and what else was thought of; applied with one button.
import { html, useEffect, useState } from "../lib/dom.js";
import { post } from "../lib/api.js";
import { plural, speed } from "../lib/format.js";
import { LayerBar, StageTable } from "../lib/layers.js";
import { Failure, Progress, useAction } from "../lib/widgets.js";
import { refresh } from "../lib/store.js";
import { MODES } from "./chat.js";

export function Plans({ state }) {
  const release = useAction(refresh);
  return html`<section aria-labelledby="plans-title">
    <h1 id="plans-title">Plans</h1>
    <p class="muted">How a model is divided among your devices.</p>
    <${WhatIf} state=${state} />
    <h2>Plans so far</h2>
    <${Failure} error=${release.error} />
    ${state.plans.length === 0 && html`<p class="muted">None yet: the first answer makes one, or apply one above.</p>`}
    ${state.plans.map((plan) => html`<article class="card" key=${plan.plan_id}>
      <h2>${plan.model} <span class="chip">${plan.mode}</span><span class=${`chip ${plan.state}`}>${plan.state}</span></h2>
      ${plan.lost && html`<p class="notice warn">${plan.lost}</p>`}
      <${LayerBar} stages=${plan.stages} /><${StageTable} stages=${plan.stages} />
      <p class="muted">${speed(plan.predicted_tokens_per_s)} expected${plan.measured_tokens_per_s ? `, ${speed(plan.measured_tokens_per_s)} measured` : ""},
        ${" "}<a href=${`#/audit?request=${plan.plan_id}`}>${plural(plan.requests ?? 0, "request")}</a> ${plan.reason ? `· ${plan.reason}` : ""}</p>
      ${plan.state === "active" && html`<button type="button" disabled=${release.busy} onClick=${() => release.run("/command/release_plan", { plan_id: plan.plan_id })}>Release</button>`}
    </article>`)}
  </section>`;
}

function WhatIf({ state }) {
  const [wish, setWish] = useState({ model: "", mode: "auto", stages: 0, context: 0, devices: [], anyway: false, split: "" });
  const split = splitByHand(wish.split);
  const [answer, setAnswer] = useState(null);
  const [error, setError] = useState(null);
  const apply = useAction(refresh);
  const names = state.peers.map((peer) => peer.name).filter(Boolean);
  const body = {
    mode: wish.mode, why: true,
    ...(wish.model ? { model: wish.model } : {}),
    ...(wish.stages ? { stages: wish.stages } : {}),
    ...(wish.context ? { context: wish.context } : {}),
    ...(wish.devices.length ? { devices: wish.devices } : {}),
    ...(wish.anyway ? { anyway: true } : {}),
    ...(split?.length ? { blocks: split } : {}),
  };
  const key = JSON.stringify(body);
  useEffect(() => {
    if (split === null) return undefined; // half a word of it is no wish yet
    let current = true;
    const wait = setTimeout(() => {
      post("/plan", body).then(
        (made) => { if (current) { setAnswer(made.plan ? { ...made, ...made.plan } : made); setError(null); } },
        (failed) => { if (current) { setError(failed); setAnswer(null); } },
      );
    }, 250);
    return () => { current = false; clearTimeout(wait); };
  }, [key, names.join()]);
  const set = (change) => setWish({ ...wish, ...change });
  const toggle = (name) => set({ devices: wish.devices.includes(name) ? wish.devices.filter((item) => item !== name) : [...wish.devices, name] });
  const rejections = answer?.rejections ?? error?.details?.rejections ?? [];
  return html`<article class="card" aria-labelledby="what-if">
    <h2 id="what-if">What if</h2>
    <div class="row">
      <label>Model <select value=${wish.model} onChange=${(event) => set({ model: event.target.value })}><option value="">default</option>
        ${state.models.map((model) => html`<option key=${model.name}>${model.name}</option>`)}</select></label>
      <label>Mode <select value=${wish.mode} onChange=${(event) => set({ mode: event.target.value })}>
        ${MODES.map(([value, label]) => html`<option key=${value} value=${value}>${label}</option>`)}</select></label>
      <label>Stages: ${wish.stages || "any"} <input type="range" min="0" max=${Math.max(1, state.peers.length)} value=${wish.stages} onInput=${(event) => set({ stages: Number(event.target.value) })} /></label>
      <label>Context: ${wish.context ? `${wish.context.toLocaleString("en")} tokens` : "default"} <input type="range" min="0" max="32768" step="512" value=${wish.context} onInput=${(event) => set({ context: Number(event.target.value) })} /></label>
    </div>
    ${names.length > 1 && html`<fieldset class="row"><legend>Only these devices</legend>${names.map((name) => html`<label key=${name}><input type="checkbox" checked=${wish.devices.includes(name)} onChange=${() => toggle(name)} /> ${name}</label>`)}</fieldset>`}
    <div class="row"><label class="grow">Layers by hand, instead of the planner's choice <input value=${wish.split} placeholder=${example(state)} aria-invalid=${split === null} spellcheck="false" onInput=${(event) => set({ split: event.target.value })} /></label></div>
    ${split === null && html`<p class="muted" role="status">Each device with its layers: ${example(state)}</p>`}
    <div class="row"><label><input type="checkbox" checked=${wish.anyway} onChange=${() => set({ anyway: !wish.anyway })} /> Load anyway: do not count memory that other programs hold now</label></div>
    <${Failure} error=${error} />
    ${answer && html`<div class="preview">
      <p><strong>${answer.mode}</strong> is what would be used: ${speed(answer.prediction?.tokens_per_s)} expected</p>
      <${LayerBar} stages=${answer.stages} /><${StageTable} stages=${answer.stages} />
      <ul>${(answer.reasons ?? []).map((reason, index) => html`<li key=${index}>${text(reason)}</li>`)}</ul>
      <button type="button" class="primary" disabled=${apply.busy} onClick=${() => apply.run("/plan", { ...body, apply: true })}>${apply.busy ? "Applying…" : "Apply this plan"}</button>
      ${apply.busy && html`<${Progress} view=${state.models.find((model) => model.name === answer.model)?.loading} />`}
      ${apply.done && html` <span role="status">In use.</span>`}<${Failure} error=${apply.error} />
    </div>`}
    ${rejections.length > 0 && html`<details open=${!answer}><summary>Not chosen, and why (${rejections.length})</summary><ul class="why">${rejections.map((item, index) => html`<li key=${index}><b>${text(item.candidate ?? item.mode ?? item.name ?? "")}</b><span>${text(item)}</span></li>`)}</ul></details>`}
  </article>`;
}

const example = ({ peers }) => (peers.length > 1 ? `${peers[0].name}:0-3, ${peers[1].name}:4-7` : `${peers[0]?.name ?? "kitchen"}:0-7`);

// "kitchen:0-3, study:4-7" as the API takes it; [] for nothing said, null for what cannot be meant.
export function splitByHand(words) {
  const parts = words.split(",").map((part) => part.trim()).filter(Boolean);
  const blocks = parts.map((part) => /^(.+):(\d{1,4})(?:[-–](\d{1,4}))?$/.exec(part)).map((match) => match && [match[1].trim(), Number(match[2]), Number(match[3] ?? match[2]) + 1]);
  return blocks.some((block) => !block || block[2] <= block[1]) ? null : blocks;
}

function text(item) {
  if (typeof item === "string") return item.replace(/\[(\d+), (\d+)\)/g, (_, first, end) => (end - first > 1 ? `layers ${first}–${end - 1}` : `layer ${first}`));
  return item.reason ?? item.message ?? item.text ?? JSON.stringify(item);
}
