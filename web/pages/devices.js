// Devices: who belongs to the mesh, invites with QR, pause, drain, forget.
import { html, useEffect, useState } from "../lib/dom.js";
import { ago, bytes, layers, rtt, shortPeer, time } from "../lib/format.js";
import { linksOf, linksSummary, linkWords, wayWords } from "../lib/links.js";
import { refresh } from "../lib/store.js";
import { CopyButton, Failure, Meter, useAction, useView } from "../lib/widgets.js";
import { isUp } from "./home.js";

export function Devices({ state, at }) {
  const act = useAction(refresh);
  const chosen = at.rest[0];
  const working = state.status.state ?? "active";
  const known = state.peers.some((peer) => peer.peer === chosen);
  useEffect(() => {
    if (known) document.querySelector(".card.chosen")?.scrollIntoView({ block: "nearest" });
  }, [chosen, known]);
  return html`<section aria-labelledby="devices-title">
    <h1 id="devices-title">Devices</h1>
    <${Failure} error=${act.error} />
    <${Invite} />
    ${state.joining.length > 0 && html`<article class="card" aria-labelledby="joining-title" aria-live="polite">
      <h2 id="joining-title">Who came to join</h2>
      <div class="grid">${state.joining.map((one) => html`<${Joining} key=${one.peer} one=${one} act=${act} />`)}</div>
    </article>`}
    <div class="grid">${state.peers.map((peer) => html`<article class=${`card ${isUp(peer) ? "" : "faded"} ${peer.peer === chosen ? "chosen" : ""}`} key=${peer.peer}>
      <h2>${peer.name || "unnamed"} <span class=${`chip ${isUp(peer) ? "active" : ""}`}>${peer.self ? "this device" : peer.state}</span>${rest(peer, working) && html` <span class="chip">${rest(peer, working)}</span>`}</h2>
      <dl>
        <dt>Role</dt><dd>${peer.role ?? "–"}</dd>
        ${!peer.self && html`<dt>Link</dt><dd>${link(peer)}</dd>
          <dt>Last seen</dt><dd>${ago(peer.last_seen_ms)}</dd>`}
        ${(peer.stages ?? []).length > 0 && html`<dt>Computes</dt><dd>${peer.stages.map((stage) => `layers ${layers(stage.layers)} of ${stage.model}`).join(", ")}</dd>`}
        ${power(peer, state) && html`<dt>Memory</dt><dd>${bytes(power(peer, state).memory_free_bytes)} of ${bytes(power(peer, state).memory_total_bytes)} free
            <${Meter} part=${1 - power(peer, state).memory_free_bytes / power(peer, state).memory_total_bytes} words="Memory in use" /></dd>
          <dt>Speed</dt><dd>${power(peer, state).cores ?? "–"} cores${power(peer, state).memory_bytes_per_s ? `, memory read at ${bytes(power(peer, state).memory_bytes_per_s)}/s` : ""}${power(peer, state).on_battery ? ", on battery" : ""}</dd>`}
        ${!peer.self && Number.isFinite(peer.bytes_sent) && html`<dt>Traffic</dt><dd>${bytes(peer.bytes_sent)} sent, ${bytes(peer.bytes_received)} received</dd>`}
        ${peer.lending && html`<dt>Hours</dt><dd>${peer.lending}</dd>`}
        ${peer.lost_reason && html`<dt>Lost</dt><dd>${peer.lost_reason}</dd>`}
        <dt>Peer id</dt><dd><a href=${`#/audit?request=${peer.peer}`} title=${`What is recorded of ${peer.peer}`}><code>${shortPeer(peer.peer)}</code></a> <${CopyButton} text=${peer.peer} quiet /></dd>
      </dl>
      <${Links} rows=${linksOf(state.links, peer.peer)} peers=${state.peers} open=${peer.peer === chosen} />
      <details open=${!isUp(peer)}><summary>Addresses</summary><ul>${addresses(peer).map((line, index) => html`<li key=${index}><code>${line}</code></li>`)}</ul></details>
      ${peer.self && html`<${Hours} schedule=${state.status.schedule} key=${state.status.schedule?.entries.join(";") ?? ""} />`}
      <div class="row">
        ${peer.state === "pending" && html`<strong class="code">${peer.match_code ?? ""}</strong><button type="button" class="primary" onClick=${() => act.run("/command/approve_peer", { peer: peer.peer })}>Approve</button>
          <button type="button" onClick=${() => act.run("/command/refuse_peer", { peer: peer.peer })}>Refuse</button>`}
        ${peer.self && (working === "active"
          ? html`<button type="button" onClick=${() => act.run("/command/pause", {})}>Pause</button><button type="button" onClick=${() => act.run("/command/drain", {})}>Drain</button>`
          : html`<button type="button" class="primary" onClick=${() => act.run("/command/resume", {})}>Resume</button>`)}
        ${!peer.self && !isUp(peer) && peer.state !== "pending" && html`<button type="button" class="danger" onClick=${() => confirm(`Forget ${peer.name}?`) && act.run("/command/forget_peer", { peer: peer.peer })}>Forget</button>`}
      </div>
    </article>`)}</div>
    <${OtherMeshes} meshes=${state.status.meshes ?? []} />
  </section>`;
}

const MARKS = { ok: ["✓", "done"], waiting: ["…", "under way"], failed: ["✗", "failed"] };

// How far a device came, as its own screen says it too.
function Joining({ one, act }) {
  const waits = one.steps.some((step) => step.step === "approval" && step.state === "waiting");
  return html`<section class="joining" aria-label=${`How ${one.name} joins`}>
    <h3>${one.name} <span class="muted small">${ago(one.at_ms)}</span></h3>
    <ol class="steps">${one.steps.map((step, index) => html`<li key=${index} class=${step.state}><span aria-hidden="true">${MARKS[step.state][0]}</span><span><span class="sr">${MARKS[step.state][1]}: </span>${step.text}</span></li>`)}</ol>
    ${waits && html`<div class="row"><button type="button" class="primary" onClick=${() => act.run("/command/approve_peer", { peer: one.peer })}>Approve ${one.name}</button></div>`}
  </section>`;
}

// What keeps a device from computing for others now, if anything.
function rest(peer, working) {
  const told = peer.self ? working : peer.device_state ?? "active";
  return told === "active" ? "" : told;
}

// The hours in which this device lends itself; an entry is a line.
function Hours({ schedule }) {
  const [text, setText] = useState((schedule?.entries ?? []).join("\n"));
  const [zone, setZone] = useState(schedule?.zone ?? Intl.DateTimeFormat().resolvedOptions().timeZone ?? "");
  const act = useAction(refresh);
  const send = (event) => {
    event.preventDefault();
    const entries = text.split("\n").map((line) => line.trim()).filter(Boolean);
    act.run(entries.length ? "/command/schedule_set" : "/command/schedule_clear", entries.length ? { entries, zone } : {});
  };
  return html`<details class="hours"><summary>Lend it only at certain hours</summary>
    <form onSubmit=${send}>
      <label>Hours, one entry a line <textarea rows="3" maxlength="400" placeholder="mon-fri 20:00-08:00\nsat,sun all" value=${text} onInput=${(event) => setText(event.target.value)}></textarea></label>
      <label>Time zone <input value=${zone} maxlength="64" onInput=${(event) => setZone(event.target.value)} /></label>
      <div class="row"><button class="primary" disabled=${act.busy}>Set the hours</button>
        ${schedule && html`<button type="button" disabled=${act.busy} onClick=${() => act.run("/command/schedule_clear", {})}>Lend it always</button>`}</div>
      <p class="muted small">Outside of them its work moves to other devices, then it is paused. A pause or resume by hand holds until the hours change next${schedule?.overridden ? ", as one does now" : ""}.</p>
    </form>
    <${Failure} error=${act.error} />
  </details>`;
}

// Both directions of each link of a device, as each side tells its own.
function Links({ rows, peers, open }) {
  if (!rows.length) return null;
  const nameOf = (id) => peers.find((peer) => peer.peer === id)?.name || shortPeer(id);
  const trouble = rows.some(({ link }) => link.state === "one_way" || link.state === "none");
  return html`<details class="links" open=${open || trouble}><summary>${linksSummary(rows)}</summary>
    ${rows.map(({ link, other, there, back }) => html`<section key=${other} aria-label=${`Link with ${nameOf(other)}`}>
      <h3>${nameOf(other)} <span class="muted small">${linkWords(link)}</span></h3>
      <ul class="ways"><${Way} way=${there} words=${`to ${nameOf(other)}`} /><${Way} way=${back} words=${`from ${nameOf(other)}`} /></ul>
    </section>`)}
  </details>`;
}

function Way({ way, words }) {
  const [mark, said] = wayWords(way);
  return html`<li class=${way.state}><span aria-hidden="true">${mark}</span><span>${words}: ${said}
    ${way.tried.map((item, index) => html`<br key=${index} /><code>${item.address}</code> ${item.reason}`)}</span></li>`;
}

// Round trip, way and throughput of a link; what is not known is not said.
function link(peer) {
  const parts = [Number.isFinite(peer.rtt_ms) ? rtt(peer.rtt_ms) : "", peer.path, peer.link?.bytes_per_s ? `${bytes(peer.link.bytes_per_s)}/s measured` : ""];
  return parts.filter(Boolean).join(", ") || "no way there now";
}

function OtherMeshes({ meshes }) {
  const [wish, setWish] = useState({ ticket: "", name: "" });
  const act = useAction(() => {
    setWish({ ticket: "", name: "" });
    refresh();
  });
  const send = (event) => {
    event.preventDefault();
    act.run("/command/federation_add", wish);
  };
  return html`<article class="card" aria-labelledby="meshes-title">
    <h2 id="meshes-title">Other meshes</h2>
    <p class="muted">They answer whole requests for their models, called MODEL@MESH. Nothing else goes there or comes from there.</p>
    ${meshes.length > 0 && html`<div class="scroll"><table><thead><tr><th>Mesh</th><th>State</th><th>Models</th><th>Devices</th><th></th></tr></thead>
      <tbody>${meshes.map((mesh) => html`<tr key=${mesh.mesh_id}><td>${mesh.name}</td><td>${mesh.trouble || "can be asked"}</td><td>${mesh.models.join(", ") || "–"}</td>
        <td>${mesh.members.map((member) => member.name || member.peer.slice(-6)).join(", ") || "–"}</td>
        <td><button type="button" onClick=${() => confirm(`Ask ${mesh.name} no more?`) && act.run("/command/federation_remove", { name: mesh.name })}>Remove</button></td></tr>`)}</tbody></table></div>`}
    <form class="row" onSubmit=${send}>
      <label>Ticket for guests <input value=${wish.ticket} maxlength="2048" autocomplete="off" required onInput=${(event) => setWish({ ...wish, ticket: event.target.value })} /></label>
      <label>Call it <input value=${wish.name} maxlength="64" onInput=${(event) => setWish({ ...wish, name: event.target.value })} /></label>
      <button disabled=${act.busy}>Ask this mesh, too</button>
    </form>
    <${Failure} error=${act.error} />
  </article>`;
}

const power = (peer, state) => (peer.self ? state.status.capability : peer.capability);

function addresses(peer) {
  if (peer.tried?.length) return peer.tried.map((item) => `${item.address}: ${item.reason || "ok"}`);
  return peer.addresses?.length ? peer.addresses : ["none known"];
}

function Invite() {
  const [wish, setWish] = useState({ uses: 1, expires_s: 3600, role: "worker", label: "" });
  const [asLink, setAsLink] = useState(false);
  const { data, reload } = useView("/log/invites");
  const act = useAction(() => reload());
  const revoke = useAction(() => reload());
  const set = (change) => setWish({ ...wish, ...change });
  const send = (event) => {
    event.preventDefault();
    act.run(asLink ? "/invites?qr=1&link=1" : "/invites?qr=1", wish);
  };
  const command = act.done ? `p2pnode ${act.done.role === "guest" ? "federation add" : "join"} ${act.done.ticket}` : "";
  return html`<article class="card invite" aria-labelledby="invite-title">
    <h2 id="invite-title">Invite a device</h2>
    <form class="row" onSubmit=${send}>
      <label>How many devices <input type="number" min="1" max="1000" value=${wish.uses} onInput=${(event) => set({ uses: Math.max(1, Number(event.target.value)) })} /></label>
      <label>Valid <select value=${wish.expires_s} onChange=${(event) => set({ expires_s: Number(event.target.value) })}>
        <option value="900">15 minutes</option><option value="3600">1 hour</option><option value="86400">1 day</option><option value="604800">7 days</option></select></label>
      <label>Role <select value=${wish.role} onChange=${(event) => set({ role: event.target.value })}><option value="worker">computes</option><option value="client">only asks</option><option value="guest">another mesh</option></select></label>
      <label>Note for yourself <input value=${wish.label} maxlength="64" onInput=${(event) => set({ label: event.target.value })} /></label>
      <label class="check"><input type="checkbox" checked=${asLink} onChange=${(event) => setAsLink(event.target.checked)} /> As a link to a page with all commands</label>
      <button class="primary" disabled=${act.busy}>Make an invite</button>
    </form>
    <${Failure} error=${act.error} />
    ${act.done && html`<div class="ticket">
      ${act.done.qr && html`<img class="qr" alt=${act.done.link ? "The link as a QR code" : "The ticket as a QR code"} src=${`data:image/svg+xml;base64,${btoa(act.done.qr)}`} />`}
      <div>${act.done.link && html`<p>Open on the other device, until ${time(act.done.expires_ms)}; whoever has it can join:</p><pre>${act.done.link}</pre><${CopyButton} text=${act.done.link} label="Copy the link" />`}<p>On the other device, until ${time(act.done.expires_ms)}, run:</p><pre>${command}</pre><${CopyButton} text=${command} label="Copy the command" /></div>
    </div>`}
    ${(data?.invites ?? []).length > 0 && html`<details><summary>Invites so far (${data.invites.length})</summary><div class="scroll"><table><thead><tr><th>Note</th><th>Role</th><th>State</th><th class="num">Uses left</th><th>Expires</th><th></th></tr></thead>
      <tbody>${data.invites.map((item) => html`<tr key=${item.invite_id}><td>${item.label || "–"}</td><td>${item.role}</td><td>${item.state}</td><td class="num">${item.uses_left}</td><td>${time(item.expires_ms)}</td>
        <td>${item.state === "open" && html`<button type="button" onClick=${() => revoke.run("/command/revoke_invite", { invite_id: item.invite_id })}>Revoke</button>`}</td></tr>`)}</tbody></table></div></details>`}
  </article>`;
}
