// Which device holds which layers, from a plan: the bars of Home, Plans and the chat's drawer.
import { html } from "./dom.js";
import { bytes, layers } from "./format.js";

export function layerCount(stages) {
  return Math.max(1, ...stages.map((stage) => stage.layers?.[1] ?? 0));
}

export const toneOf = (index) => `tone-${index % 6}`;

// The segments of one bar in the order of their layers: [index of the stage or null for a gap, layers].
function segments(stages, total, only) {
  const parts = [];
  let at = 0;
  stages.forEach((stage, index) => {
    const [first, end] = stage.layers ?? [0, total];
    if (only !== null && only !== index) return;
    if (first > at) parts.push([null, first - at]);
    if (end > first) parts.push([index, end - first]);
    at = Math.max(at, end);
  });
  if (at < total) parts.push([null, total - at]);
  return parts;
}

// One bar per plan: a segment per stage, as wide as its share of the layers, with its name where there is room.
// Stages that share layers (a tensor group) stand below each other. `only` leaves the others of a bar empty.
export function LayerBar({ stages, active = null, only = null }) {
  const total = layerCount(stages);
  const shared = only === null && stages.some((stage, index) => index > 0 && (stage.layers?.[0] ?? 0) < (stages[index - 1].layers?.[1] ?? total));
  const words = stages.map((stage) => `${stage.name}: layers ${layers(stage.layers)}`).join("; ");
  const rows = shared ? stages.map((_, index) => index) : [only];
  return html`<div class="layer-bars" role="img" aria-label=${words}>${rows.map((row) => html`<div class="layer-bar" key=${row}>
    ${segments(stages, total, row).map(([index, count], at) => html`<span key=${at} style=${{ flexGrow: String(count) }}
      class=${index === null ? "gap" : `segment ${toneOf(index)} ${active === index ? "is-active" : ""}`}
      title=${index === null ? undefined : `${stages[index].name}: layers ${layers(stages[index].layers)}`}>
      ${index !== null && only === null && html`<b>${stages[index].name}</b> <i>${layers(stages[index].layers)}</i>`}</span>`)}
  </div>`)}</div>`;
}

export function StageTable({ stages }) {
  const weight = (stage) => stage.bytes ?? stage.model_bytes;
  const sized = stages.some((stage) => Number.isFinite(weight(stage)) || stage.fetch_bytes);
  const needs = stages.some((stage) => Number.isFinite(stage.memory_bytes));
  return html`<table class="stages">
    <thead><tr><th>Device</th><th>Layers</th>${sized && html`<th class="num">Weights</th>`}${needs && html`<th class="num">Memory</th>`}</tr></thead>
    <tbody>
      ${stages.map(
        (stage, index) => html`<tr key=${index}>
          <td><span class=${`dot ${toneOf(index)}`}></span>${stage.name ?? stage.peer}</td>
          <td>${layers(stage.layers)}</td>
          ${sized && html`<td class="num">${stage.bytes_wanted > stage.bytes_fetched ? html`<progress value=${stage.bytes_fetched} max=${stage.bytes_wanted} aria-label="fetched"></progress> ` : ""}${Number.isFinite(weight(stage)) ? bytes(weight(stage)) : stage.fetch_bytes ? `${bytes(stage.fetch_bytes)} to fetch` : "–"}</td>`}
          ${needs && html`<td class="num">${bytes(stage.memory_bytes)}</td>`}
        </tr>`,
      )}
    </tbody>
  </table>`;
}
