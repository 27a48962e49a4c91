// The panel: routes by the address's hash, one store, no build step.
import { html, render, useEffect, useState } from "./lib/dom.js";
import { get, getKey, setKey } from "./lib/api.js";
import { refresh, start, store } from "./lib/store.js";
import { Icon } from "./lib/icons.js";
import { Home } from "./pages/home.js";
import { Chat } from "./pages/chat.js";
import { Plans } from "./pages/plans.js";
import { Models } from "./pages/models.js";
import { Billing } from "./pages/billing.js";
import { Audit } from "./pages/audit.js";
import { Devices } from "./pages/devices.js";
import { Settings } from "./pages/settings.js";
import { Launch } from "./pages/launch.js";

const PAGES = {
  home: ["Home", Home],
  chat: ["Chat", Chat],
  plans: ["Plans", Plans],
  models: ["Models", Models],
  billing: ["Billing", Billing],
  audit: ["Audit", Audit],
  devices: ["Devices", Devices],
  settings: ["Settings", Settings],
  launch: ["Launch", Launch],
};

function route() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const [name, ...rest] = path.split("/").map(decodeURIComponent);
  return { name: name in PAGES ? name : "home", rest, query: new URLSearchParams(query) };
}

function App() {
  const [state, setState] = useState(store.get());
  const [at, setAt] = useState(route());
  useEffect(() => store.subscribe(setState), []);
  useEffect(() => {
    const change = () => setAt(route());
    addEventListener("hashchange", change);
    return () => removeEventListener("hashchange", change);
  }, []);
  const [hasConsole, setConsole] = useState(false);
  useEffect(() => {
    if (state.connected) get("/settings/origins").then((answer) => setConsole(answer.settings.some((item) => item.name === "console" && item.value === true)), () => setConsole(false));
  }, [state.connected]);
  const [title, Page] = PAGES[at.name];
  useEffect(() => {
    document.title = `${title} · p2pnode`;
    const link = document.querySelector(".nav [aria-current]"); // on a phone the row is longer than the screen (scrollIntoView would move the start of Tab)
    if (link) link.parentElement.scrollLeft = link.offsetLeft - (innerWidth - link.offsetWidth) / 2;
    scrollTo(0, 0);
  }, [title]);
  return html`
    <a class="skip" href="#main" onClick=${(event) => { event.preventDefault(); document.getElementById("main").focus(); }}>Skip to content</a>
    <nav class="nav" aria-label="Pages">
      <span class="brand"><img src="/web/icon.svg" alt="" width="26" height="26" />p2pnode</span>
      ${Object.entries(PAGES).filter(([name]) => name !== "launch" || name === at.name || hasConsole).map(([name, [label]]) => html`<a key=${name} href=${`#/${name}`} aria-current=${name === at.name ? "page" : undefined}><${Icon} name=${name} />${label}</a>`)}
      <span class="nav-foot"><span class=${`beat ${state.connected ? "ok" : ""}`} aria-hidden="true"></span>${state.status.name ?? ""}${state.status.version ? html`<small>version ${state.status.version}</small>` : ""}</span>
    </nav>
    <main id="main" tabindex="-1">
      ${state.error?.status === 401 && html`<${KeyForm} />`}
      ${state.connected === false && state.error?.status !== 401 && html`<p class="notice bad" role="alert">${state.error.message} Trying again…</p>`}
      <${Page} state=${state} at=${at} />
    </main>`;
}

function KeyForm() {
  const [key, set] = useState(getKey());
  const save = (event) => {
    event.preventDefault();
    setKey(key.trim());
    refresh();
  };
  return html`<form class="card key" onSubmit=${save}>
    <label for="key">This node wants an API key (on the node: <code>p2pnode keys create --scope admin</code>)</label>
    <input id="key" type="password" autocomplete="off" value=${key} onInput=${(event) => set(event.target.value)} />
    <button class="primary">Use it</button>
  </form>`;
}

render(html`<${App} />`, document.getElementById("app"));
document.querySelector(".boot")?.remove();
start();
