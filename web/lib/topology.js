// The mesh as a drawing: devices on a ring, links with their round trip, the stage at work marked.
import { html } from "./dom.js";
import { layers, rtt, shortPeer } from "./format.js";
import { toneOf } from "./layers.js";

const heightFor = (count) => (count < 3 ? 110 : count < 6 ? 220 : 320);
const widthNow = () => (typeof matchMedia === "function" && matchMedia("(max-width: 760px)").matches ? 380 : 640);

export function positions(count, width = 640, height = heightFor(count)) {
  if (count === 1) return [{ x: width / 2, y: height / 2 }];
  return Array.from({ length: count }, (_, index) => {
    const angle = Math.PI + (index / count) * 2 * Math.PI;
    return { x: width / 2 + Math.cos(angle) * (width / 2 - width * 0.31), y: height / 2 + Math.sin(angle) * (height / 2 - 54) };
  });
}

const isLost = (peer) => !peer.self && ["lost", "offline", "pending", "gone"].includes(peer.state);

// What a step of a stage takes now, where that is known.
function took(hops, stage) {
  const hop = hops?.hops.find((item) => item.stage === String(stage));
  return hop ? ` · ${hop.step_ms.toFixed(1)} ms` : "";
}

// Where the words of a device stand: away from the middle, where no line crosses them.
export function labelAt({ x, y }, width, height) {
  const side = x - width / 2;
  if (Math.abs(side) > width / 12) return { x: x + Math.sign(side) * 28, y: y - 1, anchor: side > 0 ? "start" : "end" };
  return { x, y: y < height / 2 ? y - 40 : y + 36, anchor: "middle" };
}

export function Topology({ peers, plan, hop, hops = null, busy = false }) {
  if (!peers.length) return null;
  const ordered = [...peers].sort((a, b) => Number(Boolean(b.self)) - Number(Boolean(a.self)));
  const width = widthNow();
  const at = positions(ordered.length, width);
  const place = new Map(ordered.map((peer, index) => [peer.peer, at[index]]));
  const stages = plan?.stages ?? [];
  const words = ordered.map((peer) => peer.name || shortPeer(peer.peer)).join(", ");
  return html`<svg class="topology" viewBox=${`0 0 ${width} ${heightFor(ordered.length)}`} role="img" aria-label=${`Devices: ${words}`}>
    ${ordered.slice(1).map((peer, index) => {
      const [from, to] = [at[0], at[index + 1]];
      return html`<g key=${peer.peer}>
        <line class=${isLost(peer) ? "link lost" : "link"} x1=${from.x} y1=${from.y} x2=${to.x} y2=${to.y} />
      </g>`;
    })}
    ${stages.slice(1).map((stage, index) => {
      const [from, to] = [place.get(stages[index].peer), place.get(stage.peer)];
      return from && to && from !== to && html`<line key=${index} class=${`flow ${busy ? "moving" : ""} ${hop === index ? "is-active" : ""}`} x1=${from.x} y1=${from.y} x2=${to.x} y2=${to.y} />`;
    })}
    ${ordered.slice(1).map((peer, index) => {
      const [from, to] = [at[0], at[index + 1]];
      return html`<text class="link-text" x=${(from.x + to.x) / 2} y=${(from.y + to.y) / 2 - 5}>${rtt(peer.rtt_ms)}</text>`; // over the lines, also over those that move
    })}
    ${ordered.map((peer, index) => {
      const stage = stages.findIndex((item) => item.peer === peer.peer);
      const { x, y, anchor } = labelAt(at[index], width, heightFor(ordered.length));
      const name = peer.name || shortPeer(peer.peer);
      const part = stage >= 0 ? `layers ${layers(stages[stage].layers)}${took(hops, stage)}` : peer.self ? "this device" : peer.state;
      return html`<a key=${peer.peer} href=${`#/devices/${peer.peer}`} class=${`device ${stage >= 0 ? toneOf(stage) : "tone-none"} ${hop === stage && stage >= 0 ? "is-active" : ""} ${isLost(peer) ? "is-lost" : ""}`}>
        <circle class="halo" cx=${at[index].x} cy=${at[index].y} r="24" /><circle class="disc" cx=${at[index].x} cy=${at[index].y} r="18" />
        <path class="glyph" d=${`M${at[index].x - 8} ${at[index].y - 6}h16v10h-16zM${at[index].x - 4} ${at[index].y + 8}h8`} />
        <text x=${x} y=${y} text-anchor=${anchor}>${name}</text>
        <text class="small" x=${x} y=${y + 15} text-anchor=${anchor}>${part}</text>
      </a>`;
    })}
  </svg>`;
}
