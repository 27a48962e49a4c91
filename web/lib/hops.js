// The hops of a running answer: which one is at work, and what each costs a token.
import { html, useEffect, useState } from "./dom.js";
import { layers } from "./format.js";
import { toneOf } from "./layers.js";

const FRESH_MS = 2500;
const ROUND_MS = 1800; // a token's way is much quicker: it is shown slowed down, its shares kept
const DWELL_MS_MIN = 90;

const still = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
export const isFresh = (view, now = Date.now()) => Boolean(view) && now - view.at < FRESH_MS;

// Stages in the order of the ring; the output belongs to the head and is no stop of its own.
export const stops = (view) => (view?.hops ?? []).filter((hop) => hop.stage !== "output").sort((a, b) => Number(a.stage) - Number(b.stage));

export function dwell(view, index) {
  const all = stops(view);
  const sum = all.reduce((total, hop) => total + hop.step_ms, 0) || 1;
  return Math.max(DWELL_MS_MIN, (all[index].step_ms / sum) * ROUND_MS);
}

// The stage at work now, moving on as tokens do; null when nothing runs or motion is not wanted.
export function useHop(view) {
  const [index, setIndex] = useState(null);
  const [, tick] = useState(0);
  const fresh = isFresh(view);
  const count = stops(view).length;
  useEffect(() => {
    if (!fresh || count < 2 || still()) {
      setIndex(null);
      return undefined;
    }
    const current = (index ?? -1) + 1 > count - 1 ? 0 : (index ?? -1) + 1;
    const wait = setTimeout(() => setIndex(current), index === null ? 0 : dwell(view, Math.min(index, count - 1)));
    return () => clearTimeout(wait);
  }, [index, fresh, count, view?.at]);
  useEffect(() => {
    if (!fresh) return undefined;
    const wait = setTimeout(() => tick((old) => old + 1), FRESH_MS); // it goes stale without news
    return () => clearTimeout(wait);
  }, [fresh, view?.at]);
  return fresh ? (index === null ? null : Number(stops(view)[Math.min(index, count - 1)].stage)) : null;
}

// One token's time, hop by hop, as a bar with its legend.
export function HopBar({ view, active = null }) {
  const all = view?.hops ?? [];
  if (!all.length) return null;
  const parts = all.map((hop) => ({
    ms: hop.step_ms,
    tone: hop.stage === "output" ? "tone-none" : toneOf(Number(hop.stage)),
    stage: hop.stage,
    words: hop.stage === "output" ? `${hop.name}, output and sampling` : `${hop.name}, layers ${layers(hop.layers)}`,
  }));
  if (view.rest_ms > 0) parts.push({ ms: view.rest_ms, tone: "rest", stage: "rest", words: "wires and waiting" });
  const total = parts.reduce((sum, part) => sum + part.ms, 0) || 1;
  let at = 0;
  const words = parts.map((part) => `${part.words}: ${part.ms.toFixed(2)} ms`).join("; ");
  return html`<figure class="hops" aria-label=${`One step: ${words}`}>
    <svg class="layer-bar" viewBox="0 0 1000 28" preserveAspectRatio="none" aria-hidden="true">${parts.map((part, index) => {
      const x = at;
      const width = (part.ms / total) * 1000;
      at += width;
      return html`<rect key=${index} x=${x} y="0" width=${Math.max(1, width - 2)} height="28" rx="3" class=${`${part.tone} ${String(active) === part.stage ? "is-active" : ""}`} />`;
    })}</svg>
    <figcaption>${parts.map((part, index) => html`<span key=${index}><span class=${`dot ${part.tone}`}></span>${part.words} <span class="num">${part.ms.toFixed(2)} ms</span></span>`)}</figcaption>
  </figure>`;
}
