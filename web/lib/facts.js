// What an entry of the record says, for a person: names for ids, units for numbers, no hashes. The proof below it shows the bytes.
import { bytes, delay, layers, shortPeer, time, units } from "./format.js";

const SEALS = /(_commitment|_key|^grant|^receipt|^keys|signature$|^root|^proof|^origin|^channel)$/;
const UNITS = [
  [/_microunits$/, (value) => `${units(value)} units`],
  [/bytes_per_s$/, (value) => `${bytes(value)}/s`, "speed"],
  [/_?bytes$/, bytes],
  [/_us$/, (value) => delay(value / 1000)],
  [/_ms$/, (value) => (value > 1e11 ? time(value) : delay(value))],
  [/_milli$/, (value) => (value / 1000).toLocaleString("en", { maximumFractionDigits: 1 })],
];
const PEER = /^12D3Koo[1-9A-HJ-NP-Za-km-z]{20,}$/;
const CID = /^baf[a-z2-7]{40,}$/;
const WORDS = { rtt: "round trip", tokens_per_s: "tokens a second", invite_id: "invite", plan_id: "plan", request_id: "request", hold_id: "hold", mesh_id: "mesh" };

function named(text, names) {
  if (PEER.test(text)) return names.get(text) ?? shortPeer(text);
  if (CID.test(text)) return names.get(text) ?? `${text.slice(0, 6)}…${text.slice(-6)}`;
  return text.replace(/[A-Za-z0-9+/]{24,}/g, (word) => `${word.slice(0, 6)}…${word.slice(-6)}`);
}

// [[what, how much], …] of one entry's data; `names` knows devices by peer id and models by content id.
export function tell(data, names = new Map()) {
  const said = [];
  for (const [key, value] of Object.entries(data ?? {})) {
    if (SEALS.test(key) || value === null || value === "" || (Array.isArray(value) && !value.length)) continue;
    const [suffix, show, word] = UNITS.find(([ending]) => ending.test(key) && Number.isFinite(value)) ?? [];
    const stem = word ?? (suffix ? key.replace(suffix, "") : key);
    const what = WORDS[stem] ?? (stem || key).replaceAll("_", " ");
    if (key === "receipts" && Array.isArray(value)) said.push(["receipts", String(value.length)]);
    else if (show) said.push([what, show(value)]);
    else if (key === "stages" && value.every?.((stage) => Array.isArray(stage) && stage.length >= 3)) {
      said.push(["layers", value.map(([peer, first, end]) => `${named(String(peer), names)} ${layers([first, end])}`).join(", ")]);
    } else if (typeof value === "boolean") said.push([what, value ? "yes" : "no"]);
    else if (typeof value === "number") said.push([what, value.toLocaleString("en")]);
    else said.push([what, named(typeof value === "object" ? JSON.stringify(value) : value, names)]);
  }
  return said;
}

// What `tell` calls things by: the devices and models the panel knows.
export const namesOf = ({ peers = [], models = [] }) => new Map([
  ...peers.filter((peer) => peer.name).map((peer) => [peer.peer, peer.name]),
  ...models.map((model) => [model.manifest, model.name]),
]);
