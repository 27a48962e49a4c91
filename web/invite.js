// The page behind an invite's link. The ticket is after the # of the address, which a browser sends to no server.
import { get } from "./lib/api.js";
import { html, render } from "./lib/dom.js";
import { bytes, shortPeer, time } from "./lib/format.js";
import { readTicket } from "./lib/ticket.js";
import { CopyButton } from "./lib/widgets.js";
import encodeQR from "./vendor/qr.js";

const WHAT = {
  worker: "computes a part of the mesh's models, and may ask them",
  client: "may ask the mesh's models and computes nothing",
  guest: "is another mesh, whose devices may ask for whole answers and nothing else",
};

function Command({ title, text, note = "" }) {
  return html`<section class="card"><h2>${title}</h2>${note && html`<p class="muted">${note}</p>`}<pre>${text}</pre><${CopyButton} text=${text} label="Copy" /></section>`;
}

// Drawn as one path, so that nothing but an attribute comes from the text.
function Qr({ text }) {
  const rows = encodeQR(text, "raw", { ecc: "low", border: 3 });
  const path = rows.flatMap((row, y) => row.map((dark, x) => (dark ? `M${x} ${y}h1v1h-1z` : ""))).join("");
  return html`<svg class="qr" role="img" aria-label="This invite as a QR code" viewBox=${`0 0 ${rows.length} ${rows.length}`} shape-rendering="crispEdges"><rect width="100%" height="100%" fill="#fff" /><path d=${path} fill="#000" /></svg>`;
}

function install({ about, ticket, check, before }) {
  const at = location.href.split("#")[0];
  return [before, `curl -fsSo p2pnode.tar.gz ${at}/p2pnode.tar.gz`, `echo "${about.program.sha256}  p2pnode.tar.gz" | ${check}`, "mkdir -p p2pnode && tar -xzf p2pnode.tar.gz -C p2pnode && cd p2pnode && make setup", `.venv/bin/p2pnode join ${ticket.text}`].join(" &&\n");
}

function Page({ about, ticket }) {
  const guest = ticket.role === "guest";
  const word = guest ? "federation add" : "join";
  const size = about.program ? `Fetches p2pnode ${about.version} (${bytes(about.program.size_bytes)}) from ${about.device}, builds llama.cpp (some minutes), and joins. Python 3.11 or newer is needed.` : "";
  return html`<h1>Join ${ticket.meshName}</h1>
    <p><strong>${about.device}</strong> invites ${about.uses_left === 1 ? "one device" : `up to ${about.uses_left} devices`} into the mesh <strong>${ticket.meshName}</strong>, until ${time(ticket.expiresMs)}. With p2pnode several devices run language models together. Who joins with this link ${WHAT[ticket.role]}.</p>
    <p class="muted">Whoever has this link can join: pass it on to nobody else. The other side is checked by its key, ${shortPeer(about.peer_id)}, which stands in the ticket. The model's text is seen by every device that computes a part of it.</p>
    <${Command} title="p2pnode is installed here" text=${`p2pnode ${word} ${ticket.text}`} />
    ${about.program && !guest && html`<${Command} title="Linux (Debian, Ubuntu)" note=${size} text=${install({ about, ticket, check: "sha256sum -c", before: "sudo apt-get install -y python3-venv build-essential curl" })} />
    <${Command} title="macOS" note=${size} text=${install({ about, ticket, check: "shasum -a 256 -c", before: "xcode-select -p" })} />`}
    ${!about.program && html`<p class="notice">${about.device} runs an installed p2pnode ${about.version} and has no source to give: install the same version first.</p>`}
    ${!guest && about.address && html`<${Command} title="Without the ticket" note=${`Then the owner of ${about.device} approves this device: both screens show the same six digits.`} text=${`p2pnode join --ask --peer ${about.address}`} />`}
    <section class="card"><h2>On another device</h2><p class="muted">Opens this page there.</p><${Qr} text=${location.href} /></section>`;
}

function Trouble({ error }) {
  return html`<h1>This invite cannot be used</h1><p class="notice bad" role="alert">${error.message} ${error.hint ?? ""}</p>`;
}

async function show() {
  const root = document.getElementById("invite");
  const id = location.pathname.split("/")[2] ?? "";
  try {
    const ticket = await readTicket(decodeURIComponent(location.hash.slice(1)));
    if (ticket.inviteId !== id) throw new Error("The ticket belongs to another link.");
    const about = await get(`/invite/${id}/about`);
    render(html`<${Page} about=${about} ticket=${ticket} />`, root);
  } catch (error) {
    render(html`<${Trouble} error=${error} />`, root);
  }
}

window.addEventListener("hashchange", show);
show();
