// The mesh as a drawing: devices on a ring, links with their round trip, the stage at work marked.
import { html } from "./dom.js";
import { layers, rtt, shortPeer } from "./format.js";
import { toneOf } from "./layers.js";
import { linkOf, openWay } from "./links.js";

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

// An arrow head in the middle of a line, pointing where it goes.
export function arrow(from, to) {
  const [dx, dy] = [to.x - from.x, to.y - from.y];
  const length = Math.hypot(dx, dy) || 1;
  const [ux, uy] = [dx / length, dy / length];
  const tip = { x: from.x + dx * 0.8, y: from.y + dy * 0.8 };
  const base = { x: tip.x - ux * 13, y: tip.y - uy * 13 };
  const points = [tip, { x: base.x - uy * 7, y: base.y + ux * 7 }, { x: base.x + uy * 7, y: base.y - ux * 7 }];
  return points.map(({ x, y }) => `${x.toFixed(1)},${y.toFixed(1)}`).join(" ");
}

// The lines to draw: this device to each other one, and what is told of links among those.
export function edges(ordered, links) {
  const [me, ...others] = ordered.map((peer) => peer.peer);
  const place = new Map(ordered.map((peer, index) => [peer.peer, index]));
  const rest = links.filter(({ peers }) => !peers.includes(me) && peers.every((peer) => place.has(peer)));
  const pairs = [...others.map((peer) => ({ peers: [me, peer], own: true, link: linkOf(links, me, peer) })), ...rest.map((link) => ({ peers: link.peers, own: false, link }))];
  return pairs.map(({ peers, own, link }) => {
    const open = openWay(link); // drawn from who reaches the other one
    const [from, to] = open ? [open.from, open.to] : peers;
    return { from: place.get(from), to: place.get(to), own, link, isOneWay: Boolean(open) };
  });
}

function lineClass({ own, link, isOneWay }, lost) {
  if (isOneWay) return "link one-way";
  if (lost || link?.state === "none") return "link lost";
  return own ? "link" : "link between";
}

export function Topology({ peers, links = [], plan, hop, hops = null, busy = false }) {
  if (!peers.length) return null;
  const ordered = [...peers].sort((a, b) => Number(Boolean(b.self)) - Number(Boolean(a.self)));
  const width = widthNow();
  const at = positions(ordered.length, width);
  const place = new Map(ordered.map((peer, index) => [peer.peer, at[index]]));
  const stages = plan?.stages ?? [];
  const nameOf = (peer) => peer.name || shortPeer(peer.peer);
  const lines = edges(ordered, links);
  const oneWay = lines.filter(({ isOneWay }) => isOneWay);
  const words = ordered.map(nameOf).join(", ") + oneWay.map(({ from, to }) => `; one way only: ${nameOf(ordered[from])} to ${nameOf(ordered[to])}`).join("");
  return html`<svg class="topology" viewBox=${`0 0 ${width} ${heightFor(ordered.length)}`} role="img" aria-label=${`Devices: ${words}`}>
    ${lines.map((edge, index) => html`<line key=${index} class=${lineClass(edge, isLost(ordered[edge.from]) || isLost(ordered[edge.to]))}
      x1=${at[edge.from].x} y1=${at[edge.from].y} x2=${at[edge.to].x} y2=${at[edge.to].y} />`)}
    ${stages.slice(1).map((stage, index) => {
      const [from, to] = [place.get(stages[index].peer), place.get(stage.peer)];
      return from && to && from !== to && html`<line key=${index} class=${`flow ${busy ? "moving" : ""} ${hop === index ? "is-active" : ""}`} x1=${from.x} y1=${from.y} x2=${to.x} y2=${to.y} />`;
    })}
    ${ordered.slice(1).map((peer, index) => {
      const [from, to] = [at[0], at[index + 1]];
      return html`<text class="link-text" x=${(from.x + to.x) / 2} y=${(from.y + to.y) / 2 + 4}>${rtt(peer.rtt_ms)}</text>`; // over the lines, also over those that move
    })}
    ${oneWay.map(({ from, to }) => html`<g key=${`${from}-${to}`}><polygon class="arrow" points=${arrow(at[from], at[to])} />
      <text class="link-text one-way" x=${(at[from].x + at[to].x) / 2} y=${(at[from].y + at[to].y) / 2 + 18}>one way</text></g>`)}
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
