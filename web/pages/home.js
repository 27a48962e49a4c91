// Home: one line that says how things are, the one thing that needs you, devices and their layers.
import { html } from "../lib/dom.js";
import { ago, plural, rtt, shortPeer } from "../lib/format.js";
import { HopBar, isFresh, useHop } from "../lib/hops.js";
import { LayerBar, StageTable, toneOf } from "../lib/layers.js";
import { Topology } from "../lib/topology.js";
import { Progress } from "../lib/widgets.js";

const UP = new Set(["connected", "ready", "online", "active", "self", "admitted"]);
export const isUp = (peer) => peer.self || UP.has(peer.state);

export function pulse({ peers, plans, running, telemetry = {} }) {
  const up = peers.filter(isUp).length;
  const active = plans.filter((plan) => plan.state === "active").length;
  const speed = running.reduce((sum, session) => sum + (session.tokens_per_s ?? 0), 0);
  const parts = [plural(up, "device"), active ? plural(active, "plan") : "no plan yet"];
  const hops = isFresh(telemetry.hops) ? telemetry.hops : null; // quicker news than the list of answers
  parts.push(running.length ? `${plural(running.length, "answer")} being written` : hops ? "answering" : "idle");
  if (!speed && hops?.token_ms) parts.push(`${(1000 / hops.token_ms).toFixed(1)} tokens/s`);
  if (speed > 0) parts.push(`${speed.toFixed(1)} tokens/s`);
  return parts.join(" · ");
}

// The one thing that most needs a person, or nothing.
export function attention({ connected, error, peers, models, status }) {
  if (connected === false) return { tone: "bad", text: error?.message ?? "The node does not answer.", hint: error?.hint };
  const rebuilding = status.log?.rebuilding;
  if (rebuilding && !rebuilding.decides) {
    const part = rebuilding.size ? Math.floor((100 * rebuilding.folded) / rebuilding.size) : 100;
    return { tone: "warn", text: `A newer version reads the record anew, ${part} % so far. Until then this is what was known before, and nothing is changed.`, link: "#/audit", label: "Audit" };
  }
  const waiting = peers.find((peer) => peer.state === "pending");
  if (waiting) return { tone: "warn", text: `${waiting.name} waits for your approval.`, link: "#/devices", label: "Devices" };
  const gone = peers.find((peer) => !isUp(peer));
  if (gone) return { tone: "warn", text: `${gone.name || shortPeer(gone.peer)} is ${gone.state}, last seen ${ago(gone.last_seen_ms)}.`, link: "#/devices", label: "Devices" };
  if (status.ready === false) return { tone: "warn", text: "The node is still getting ready." };
  if (connected && models.length === 0) return { tone: "warn", text: "There is no model yet.", link: "#/models", label: "Models" };
  if (connected && peers.length === 1) return { tone: "calm", text: "This is the only device. Invite another to share the work.", link: "#/devices", label: "Invite" };
  return null;
}

// The plan in use; without one, how the newest answer was computed.
export function shownPlan({ plans, running, sessions }) {
  const active = plans.find((item) => item.state === "active");
  if (active) return active;
  const last = running[0] ?? sessions[0];
  return last?.stages?.length ? { ...last, state: running.length ? "at work" : "last answer" } : plans[0];
}

export function Home({ state }) {
  const notice = attention(state);
  const plan = shownPlan(state);
  const hops = state.telemetry.hops;
  const hop = useHop(hops);
  const fresh = isFresh(hops);
  return html`<section aria-labelledby="home-title">
    <h1 id="home-title">${state.status.mesh?.name ?? "Your mesh"}</h1>
    <p class="pulse" role="status"><span class=${`beat ${state.connected ? "ok" : "bad"}`} aria-hidden="true"></span><span>${pulse(state)}${state.status.log?.size ? html` · <a href="#/audit">${plural(state.status.log.size, "fact")} recorded</a>` : ""}</span></p>
    ${notice &&
    html`<p class=${`notice ${notice.tone}`}><span>${notice.text} ${notice.hint ?? ""}</span>
      ${notice.link && html`<a class="button" href=${notice.link}>${notice.label}</a>`}</p>`}
    ${state.models.map((model) => html`<div key=${model.name}><${Progress} view=${model.loading} /><${Progress} view=${model.transfer} /></div>`)}
    <div class="grid">
      <article class="card wide">
        <h2>Devices</h2>
        <${Topology} peers=${state.peers} plan=${plan} hop=${hop} hops=${fresh ? hops : null} busy=${fresh || state.running.length > 0} />
        <${PeerTable} peers=${state.peers} plan=${plan} />
      </article>
      <article class="card wide">
        <h2>${plan ? `Who holds ${plan.model}` : "No plan yet"}</h2>
        ${plan
          ? html`<p class="muted">${plan.mode} · ${plan.state}${plan.tokens_per_s ? ` · ${plan.tokens_per_s.toFixed(1)} tokens/s` : ""}
                ${plan.plan_id && html` · <a href=${`#/audit?request=${plan.plan_id}`}>what is recorded of it</a>`}</p>
              <${LayerBar} stages=${plan.stages} active=${hop} />
              ${hops?.model === plan.model && html`<h3>${fresh ? "Where the time goes now" : "Where the time went"}</h3><${HopBar} view=${hops} active=${hop} />`}
              <${StageTable} stages=${plan.stages} />`
          : html`<p class="muted">Ask something in <a href="#/chat">Chat</a> and a plan is made.</p>`}
      </article>
    </div>
  </section>`;
}

function PeerTable({ peers, plan }) {
  const stageOf = (peer) => (plan?.stages ?? []).findIndex((stage) => stage.peer === peer.peer);
  return html`<div class="scroll"><table>
    <thead><tr><th>Device</th><th>State</th><th class="wide-only">Layers</th><th class="num">Round trip</th><th>Seen</th></tr></thead>
    <tbody>
      ${peers.map((peer) => {
        const index = stageOf(peer);
        return html`<tr key=${peer.peer} class=${isUp(peer) ? "" : "faded"}>
          <td class="nowrap"><span class=${`dot ${index >= 0 ? toneOf(index) : ""}`}></span><a href=${`#/devices/${peer.peer}`}>${peer.name || shortPeer(peer.peer)}</a></td>
          <td>${peer.self ? "this device" : peer.state}</td>
          <td class="wide-only">${index >= 0 ? html`<${LayerBar} stages=${onlyStage(plan.stages, index)} />` : "–"}</td>
          <td class="num">${peer.self ? "–" : rtt(peer.rtt_ms)}</td>
          <td class="nowrap">${peer.self ? "now" : ago(peer.last_seen_ms)}</td>
        </tr>`;
      })}
    </tbody>
  </table></div>`;
}

// The bar of one device: its own segment in place, the others left empty.
function onlyStage(stages, index) {
  const total = Math.max(...stages.map((stage) => stage.layers?.[1] ?? 0));
  return stages.map((stage, at) => (at === index ? stage : { ...stage, layers: [total, total] }));
}
