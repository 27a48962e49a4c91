// Home: one line that says how things are, the one thing that needs you, devices and their layers.
import { html } from "../lib/dom.js";
import { ago, bytes, plural, rtt, shortPeer, speed } from "../lib/format.js";
import { HopBar, isFresh, useHop } from "../lib/hops.js";
import { LayerBar, StageTable, toneOf } from "../lib/layers.js";
import { linkOf, openWay } from "../lib/links.js";
import { Topology } from "../lib/topology.js";
import { Progress, Said } from "../lib/widgets.js";

const UP = new Set(["connected", "ready", "online", "active", "self", "admitted"]);
export const isUp = (peer) => peer.self || UP.has(peer.state);

export function pulse({ peers, plans, running, telemetry = {} }) {
  const up = peers.filter(isUp).length;
  const active = plans.filter((plan) => plan.state === "active").length;
  const writing = running.reduce((sum, session) => sum + (session.tokens_per_s ?? 0), 0);
  const parts = [plural(up, "device"), active ? plural(active, "plan") : "no plan yet"];
  const hops = isFresh(telemetry.hops) ? telemetry.hops : null; // quicker news than the list of answers
  parts.push(running.length ? `${plural(running.length, "answer")} being written` : hops ? "answering" : "idle");
  const waiting = running.filter((session) => session.state === "recovering").length;
  if (waiting) parts.push(`${waiting} recovering from a lost device`);
  if (!writing && !waiting && hops?.token_ms) parts.push(speed(1000 / hops.token_ms));
  if (writing > 0) parts.push(speed(writing));
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
  return last?.stages?.length ? { ...last, state: running.length ? (last.state === "recovering" ? "recovering" : "at work") : "last answer" } : plans[0];
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
    html`<p class=${`notice ${notice.tone}`}><${Said} text=${notice.text} hint=${notice.hint} />
      ${notice.link && html`<a class="button" href=${notice.link}>${notice.label}</a>`}</p>`}
    ${state.models.map((model) => html`<div key=${model.name}><${Progress} view=${model.loading} /><${Progress} view=${model.transfer} /></div>`)}
    <${Tiles} state=${state} plan=${plan} hops=${fresh ? hops : null} />
    <div class="grid">
      <article class="card wide">
        <h2>Devices</h2>
        <${Topology} peers=${state.peers} links=${state.links} plan=${plan} hop=${hop} hops=${fresh ? hops : null} busy=${fresh || state.running.length > 0} />
        <${PeerTable} peers=${state.peers} links=${state.links} plan=${plan} />
      </article>
      <article class="card wide">
        <h2>${plan ? `Who holds ${plan.model}` : "No plan yet"}</h2>
        ${plan
          ? html`<p class="muted">${plan.mode} · ${plan.state}${plan.tokens_per_s ? ` · ${speed(plan.tokens_per_s)}` : ""}
                ${plan.plan_id && html` · <a href=${`#/audit?request=${plan.plan_id}`}>what is recorded of it</a>`}</p>
              <${LayerBar} stages=${plan.stages} active=${hop} />
              ${hops?.model === plan.model && html`<h3>${fresh ? "Where the time goes now" : "Where the time went"}</h3><${HopBar} view=${hops} active=${hop} />`}
              <${StageTable} stages=${plan.stages} />`
          : html`<p class="muted">Ask something in <a href="#/chat">Chat</a> and a plan is made.</p>`}
      </article>
    </div>
  </section>`;
}

// What the devices have and did, each figure with a way to what is behind it.
export function tiles({ peers, status, sessions, running }, hops = null) {
  const up = peers.filter(isUp);
  const powers = up.map((peer) => (peer.self ? status.capability : peer.capability)).filter(Boolean);
  const sum = (name) => powers.reduce((total, power) => total + (power[name] ?? 0), 0);
  const last = sessions.find((session) => session.tokens_per_s > 0);
  const now = running.reduce((total, session) => total + (session.tokens_per_s ?? 0), 0) || (hops?.token_ms ? 1000 / hops.token_ms : 0);
  const tokens = sessions.reduce((total, session) => total + (session.completion_tokens ?? 0), 0);
  return [
    { figure: `${up.length} of ${peers.length}`, words: "devices here", link: "#/devices" },
    { figure: powers.length ? bytes(sum("memory_free_bytes")) : "–", words: powers.length ? `memory free of ${bytes(sum("memory_total_bytes"))}` : "memory free", link: "#/devices" },
    now ? { figure: speed(now), words: "being written now", link: "#/plans" }
      : { figure: last ? speed(last.tokens_per_s) : "–", words: last ? `last answer, ${last.mode}` : "no answer yet", link: last ? `#/audit?request=${last.request_id}` : "#/chat" },
    { figure: tokens.toLocaleString("en"), words: `tokens written in ${plural(sessions.length, "answer")}`, link: "#/audit?request=RequestFinished" },
  ];
}

function Tiles({ state, hops }) {
  if (!state.connected) return null;
  return html`<div class="tiles">${tiles(state, hops).map(({ figure, words, link }) => html`<a class="tile" href=${link} key=${link + words}><b>${figure}</b><span>${words}</span></a>`)}</div>`;
}

function PeerTable({ peers, links, plan }) {
  const me = peers.find((peer) => peer.self)?.peer;
  const stageOf = (peer) => (plan?.stages ?? []).findIndex((stage) => stage.peer === peer.peer);
  return html`<div class="scroll"><table>
    <thead><tr><th>Device</th><th>State</th><th class="wide-only">Layers</th><th class="num">Round trip</th><th>Seen</th></tr></thead>
    <tbody>
      ${peers.map((peer) => {
        const index = stageOf(peer);
        return html`<tr key=${peer.peer} class=${isUp(peer) ? "" : "faded"}>
          <td class="nowrap"><span class=${`dot ${index >= 0 ? toneOf(index) : ""}`}></span><a href=${`#/devices/${peer.peer}`}>${peer.name || shortPeer(peer.peer)}</a></td>
          <td>${peer.self ? "this device" : peer.state}${openWay(linkOf(links, me, peer.peer)) ? html` · <a href=${`#/devices/${peer.peer}`}>one way</a>` : ""}</td>
          <td class="wide-only">${index >= 0 ? html`<${LayerBar} stages=${plan.stages} only=${index} />` : "–"}</td>
          <td class="num">${peer.self ? "–" : rtt(peer.rtt_ms)}</td>
          <td class="nowrap">${peer.self ? "now" : ago(peer.last_seen_ms)}</td>
        </tr>`;
      })}
    </tbody>
  </table></div>`;
}
