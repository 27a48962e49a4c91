// What is between two devices, each of the two ways for itself.
import { ago, rtt } from "./format.js";

export const linkOf = (links, one, other) => (links ?? []).find(({ peers }) => peers.includes(one) && peers.includes(other));

const STATES = { both: "both ways", one_way: "one way only", none: "no way", half: "one way known", unknown: "not known" };
export const linkWords = (link) => STATES[link?.state] ?? STATES.unknown;

// The direction that works, of a link that works one way only.
export const openWay = (link) => (link?.state === "one_way" ? link.directions.find((way) => way.state === "ok") : undefined);

// Every link of a device: the other one, the way there and the way back; trouble first.
export function linksOf(links, peer) {
  const rank = (link) => ["none", "one_way", "unknown", "half", "both"].indexOf(link.state);
  return (links ?? []).filter(({ peers }) => peers.includes(peer)).sort((a, b) => rank(a) - rank(b)).map((link) => ({
    link,
    other: link.peers.find((one) => one !== peer),
    there: link.directions.find((way) => way.from === peer),
    back: link.directions.find((way) => way.to === peer),
  }));
}

// [mark, words] of one direction; the mark alone says whether it works.
export function wayWords(way, now = Date.now()) {
  const last = way.last_good_ms ? `last answered ${ago(way.last_good_ms, now)}` : "never answered";
  if (way.state === "ok") return ["✓", ["works", Number.isFinite(way.rtt_ms) ? rtt(way.rtt_ms) : "", last, way.opened ? "opened the connection" : ""].filter(Boolean).join(", ")];
  if (way.state === "unreachable") return ["✗", `not reachable, ${last}`];
  const said = way.told_ms ? `, heard of ${ago(way.told_ms, now)}` : "";
  return ["?", way.state === "untried" ? `never tried, ${last}` : `nothing is told of it${said}, ${last}`];
}

// "2 links, 1 one way only, 1 no way": what a person wants to know before looking closer.
export function linksSummary(rows) {
  const trouble = ["one_way", "none"].map((state) => [rows.filter(({ link }) => link.state === state).length, STATES[state]]);
  return [`${rows.length} link${rows.length === 1 ? "" : "s"}`, ...trouble.filter(([count]) => count).map(([count, words]) => `${count} ${words}`)].join(", ");
}
