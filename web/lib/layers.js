// Which device holds which layers, from a plan: the bars of Home, Plans and the chat's drawer.
import { html } from "./dom.js";
import { bytes, layers } from "./format.js";

export function layerCount(stages) {
  return Math.max(1, ...stages.map((stage) => stage.layers?.[1] ?? 0));
}

export const toneOf = (index) => `tone-${index % 6}`;

// One bar per plan: a segment per stage, as wide as its share of the layers.
export function LayerBar({ stages, active = null }) {
  const total = layerCount(stages);
  const words = stages.map((stage) => `${stage.name}: layers ${layers(stage.layers)}`).join("; ");
  return html`<svg class="layer-bar" viewBox="0 0 1000 28" preserveAspectRatio="none" role="img" aria-label=${words}>
    ${stages.map((stage, index) => {
      const [first, end] = stage.layers ?? [0, total];
      const x = (first / total) * 1000;
      const width = Math.max(2, ((end - first) / total) * 1000 - 3);
      return html`<rect key=${index} x=${x} y="0" width=${width} height="28" rx="4"
        class=${`${toneOf(index)} ${active === index ? "is-active" : ""}`}><title>${stage.name}: ${layers(stage.layers)}</title></rect>`;
    })}
  </svg>`;
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
