// The panel's pure parts: streams, numbers, amounts, exports.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { SseParser } from "../../web/lib/api.js";
import { namesOf, tell } from "../../web/lib/facts.js";
import { ago, bytes, delay, layers, rtt, shortPeer, speed, time, units } from "../../web/lib/format.js";
import { decode, readEntry } from "../../web/lib/msgpack.js";
import { BadProof, fromHex } from "../../web/lib/tlog.js";
import { toCsv } from "../../web/lib/widgets.js";
import { microUnits } from "../../web/pages/billing.js";
import { told } from "../../web/pages/chat.js";
import { recall } from "../../web/pages/launch.js";
import { linkOf, linksOf, linksSummary, openWay, wayWords } from "../../web/lib/links.js";
import { arrow, edges, labelAt, positions } from "../../web/lib/topology.js";
import { attention, pulse, shownPlan, tiles } from "../../web/pages/home.js";
import { splitByHand } from "../../web/pages/plans.js";

test("events split anywhere are the same events", () => {
  const text = ': hello\n\nid: 7\ndata: {"a":1}\n\nevent: error\ndata: x\ndata: y\n\n';
  const whole = new SseParser().feed(text);
  assert.deepEqual(whole, [{ id: "7", event: "message", data: '{"a":1}' }, { id: null, event: "error", data: "x\ny" }]);
  const parser = new SseParser();
  assert.deepEqual([...text].flatMap((char) => parser.feed(char)), whole);
});

test("a model is told whole turns only", () => {
  const turn = (role, content, more = {}) => ({ role, content, tokens: 3, ...more });
  const talk = [
    turn("user", "one"), turn("assistant", "first"), turn("user", "two"), turn("assistant", "half", { error: { message: "gone" } }),
    turn("user", "three"), turn("assistant", "", { stopped: true }), turn("user", "four"),
  ];
  assert.deepEqual(told(talk), [{ role: "user", content: "one" }, { role: "assistant", content: "first" }, { role: "user", content: "four" }]);
  assert.deepEqual(told([]), []);
});

test("entries say in the browser what they say at the node", () => {
  const vectors = JSON.parse(readFileSync(new URL("../../specs/vectors/events.json", import.meta.url)));
  let count = 0;
  for (const { name, expect, input, output } of vectors) {
    if (expect !== "ok" || typeof input !== "string") continue;
    const entry = readEntry(fromHex(input));
    assert.equal(entry.type, name.split("/")[0]);
    assert.deepEqual(entry.data, output, name);
    count += 1;
    for (let cut = 0; cut < input.length / 2; cut += 7) assert.throws(() => readEntry(fromHex(input).subarray(0, cut)), BadProof);
  }
  assert.ok(count > 20);
});

test("hostile bytes are refused", () => {
  for (const hex of ["", "c1", "dbffffffff", "ddffffffff", "dfffffffff", "c6ffffffff", "a1ff", "0000", "91".repeat(100) + "00", "d400"]) {
    assert.throws(() => decode(fromHex(hex)), BadProof, hex);
  }
  assert.deepEqual(decode(fromHex("87a161cfffffffffffffffffa162d0ffa163cb3ff8000000000000a164c3a165c0a166c402beefa167ca3fc00000")), {
    a: "18446744073709551615", b: -1, c: 1.5, d: true, e: null, f: "beef", g: 1.5,
  });
});

test("numbers read well", () => {
  assert.equal(bytes(999), "999 B");
  assert.equal(bytes(9.1e9), "9.1 GB");
  assert.equal(bytes(undefined), "–");
  assert.equal(units(1_250_000), "1.25");
  assert.equal(units(-33), "−0.000033");
  assert.equal(layers([4, 8]), "4–7");
  assert.equal(layers([4, 5]), "4");
  assert.equal(layers([4, 4]), "none");
  assert.equal(shortPeer("12D3KooWabcdefgh"), "…abcdefgh");
  assert.equal(rtt(2.44), "2.4 ms");
  assert.equal(rtt(null), "–");
  assert.equal(ago(1000, 66_000), "1 min ago");
  assert.equal(ago(1000, 1.8e12), "long ago");
  assert.equal(speed(7184.66), "7,185 tokens/s");
  assert.equal(speed(41.27), "41.3 tokens/s");
  assert.equal(speed(0), "–");
  assert.equal(delay(0.283), "0.28 ms");
  assert.equal(delay(421), "421 ms");
  assert.equal(delay(12_300), "12.3 s");
});

test("a moment is said as short as it can be", () => {
  const at = (year, month, day, hour) => new Date(year, month, day, hour, 5, 9).getTime();
  const now = at(2026, 10, 28, 14);
  assert.equal(time(at(2026, 10, 28, 0), now), "00:05:09");
  assert.match(time(at(2026, 10, 27, 23), now), /^27 Nov, 23:05:09$/);
  assert.match(time(at(2025, 0, 2, 3), now), /^2 Jan 2025, 03:05:09$/);
  assert.equal(time(0, now), "–");
});

test("an entry is told in names and units, without its hashes", () => {
  const peer = "12D3KooWRWWnEZ9BgJk6zhimQMsAuzQUMXTKBWEATvyySWBAFcK6";
  const names = namesOf({ peers: [{ peer, name: "kitchen" }], models: [{ manifest: `baf${"k".repeat(56)}`, name: "demo" }] });
  const data = {
    peer, model: `baf${"k".repeat(56)}`, rtt_us: 283, bytes_per_s: 30_749_026, size_bytes: 6_211_136, amount_microunits: 250_000, duration_ms: 994,
    tokens_per_s_milli: 88_489, free: true, stages: [[peer, 0, 4], ["12D3KooWMuj4T7GBGR7k3tMB7mv2yeN1Gk7qnrZ119y8bbzYxXVu", 4, 6]], label: "",
    prompt_commitment: "0e256f6c", countersignature: "a3595a", seed: null, shares: [], prompt_tokens: 1017,
  };
  assert.deepEqual(tell(data, names), [
    ["peer", "kitchen"], ["model", "demo"], ["round trip", "0.28 ms"], ["speed", "30.7 MB/s"], ["size", "6.2 MB"], ["amount", "0.25 units"], ["duration", "994 ms"],
    ["tokens a second", "88.5"], ["free", "yes"], ["layers", "kitchen 0–3, …bbzYxXVu 4–5"], ["prompt tokens", "1,017"],
  ]);
  assert.deepEqual(tell(null), []);
  assert.deepEqual(tell({ request_id: "r1", receipts: [["dc00", "97e0"], ["dc01", "482f"]], keys: [["a", "b"]] }), [["request", "r1"], ["receipts", "2"]]);
});

test("a split by hand is what the command line takes", () => {
  assert.deepEqual(splitByHand("kitchen:0-3, study:4–7"), [["kitchen", 0, 4], ["study", 4, 8]]);
  assert.deepEqual(splitByHand("attic:7"), [["attic", 7, 8]]);
  assert.deepEqual(splitByHand("  "), []);
  for (const half of ["kitchen", "kitchen:", "kitchen:3-1", "kitchen:0-3, st"]) assert.equal(splitByHand(half), null, half);
});

test("no name stands on another device or outside the drawing", () => {
  for (const [count, width] of [[1, 640], [2, 380], [3, 380], [5, 640], [8, 640]]) {
    const at = positions(count, width);
    const height = count < 3 ? 110 : count < 6 ? 220 : 320;
    for (const place of at) {
      const label = labelAt(place, width, height);
      assert.ok(label.x > 60 && label.x < width - 60 && label.y > 10 && label.y + 15 < height, `${count}: ${JSON.stringify(label)}`);
      for (const other of at) if (other !== place) assert.ok(Math.hypot(other.x - label.x, other.y - label.y) > 24);
    }
  }
});

test("earlier commands come back with the arrows", () => {
  const history = ["ls", "pwd"];
  assert.deepEqual(recall(history, 2, -1), { position: 1, text: "pwd" });
  assert.deepEqual(recall(history, 0, -1), { position: 0, text: "ls" });
  assert.deepEqual(recall(history, 1, 1), { position: 2, text: "" });
  assert.deepEqual(recall([], 0, 1), { position: 0, text: "" });
});

test("amounts are exact or refused", () => {
  assert.equal(microUnits("1"), 1_000_000);
  assert.equal(microUnits("0.25"), 250_000);
  assert.equal(microUnits("0.000001"), 1);
  for (const wrong of ["", "0", "-1", "1e3", "0.0000001", "1,5"]) assert.equal(microUnits(wrong), null);
});

test("a spreadsheet runs no formula from an export", () => {
  assert.equal(toCsv([{ a: "=1+1", b: 'say "hi", twice', c: -5 }]), 'a,b,c\r\n\'=1+1,"say ""hi"", twice",-5\r\n');
  assert.equal(toCsv([]), "");
});

const calm = { connected: true, peers: [{ peer: "a", name: "studio", self: true }, { peer: "b", name: "kitchen", state: "online" }], plans: [], models: [{}], running: [], sessions: [], status: {} };

test("home says how things are and what needs you", () => {
  assert.equal(pulse(calm), "2 devices · no plan yet · idle");
  const recovering = { state: "recovering", recovering_s: 2.5, tokens_per_s: null, stages: [{}] };
  assert.equal(pulse({ ...calm, running: [recovering] }), "2 devices · no plan yet · 1 answer being written · 1 recovering from a lost device");
  assert.equal(pulse({ ...calm, running: [{ ...recovering, state: "running", tokens_per_s: 8 }] }), "2 devices · no plan yet · 1 answer being written · 8.0 tokens/s");
  assert.equal(shownPlan({ ...calm, running: [recovering] }).state, "recovering");
  assert.equal(attention(calm), null);
  assert.match(attention({ ...calm, connected: false, error: { message: "The node does not answer." } }).text, /does not answer/);
  const lost = { ...calm, peers: [calm.peers[0], { peer: "b", name: "kitchen", state: "offline", last_seen_ms: 1 }] };
  assert.match(attention(lost).text, /kitchen is offline/);
  assert.match(attention({ ...calm, peers: [{ peer: "c", name: "phone", state: "pending" }, ...calm.peers] }).text, /phone waits/);
  assert.match(attention({ ...calm, models: [] }).text, /no model/);
  assert.match(attention({ ...calm, peers: calm.peers.slice(0, 1) }).text, /only device/);
  const rebuilding = { folded: 500, size: 2000, decides: false };
  assert.match(attention({ ...calm, status: { ...calm.status, log: { rebuilding } } }).text, /25 % so far/);
  assert.equal(attention({ ...calm, status: { ...calm.status, log: { rebuilding: { ...rebuilding, decides: true } } } }), null);
});

test("each figure of home leads to what is behind it", () => {
  const sessions = [{ request_id: "r1", mode: "pipeline", tokens_per_s: 41.25, completion_tokens: 1200 }, { request_id: "r0", mode: "local", completion_tokens: 34 }];
  const state = { ...calm, sessions, status: { capability: { memory_free_bytes: 6e9, memory_total_bytes: 8e9 } } };
  assert.deepEqual(tiles(state).map(({ figure, words }) => `${figure} ${words}`), [
    "2 of 2 devices here", "6.0 GB memory free of 8.0 GB", "41.3 tokens/s last answer, pipeline", "1,234 tokens written in 2 answers",
  ]);
  assert.ok(tiles(state).every(({ link }) => link.startsWith("#/")));
  assert.equal(tiles({ ...calm, running: [{ tokens_per_s: 12 }] })[2].words, "being written now");
  assert.equal(tiles(calm)[2].words, "no answer yet");
});

test("without an active plan the newest answer is shown", () => {
  const stages = [{ peer: "a", layers: [0, 8] }];
  assert.equal(shownPlan({ ...calm, sessions: [{ model: "m", mode: "local", stages }] }).state, "last answer");
  assert.equal(shownPlan({ ...calm, plans: [{ state: "active", stages }] }).state, "active");
  assert.equal(shownPlan(calm), undefined);
});

const way = (from, to, state, more = {}) => ({ from, to, state, rtt_ms: 2.4, last_good_ms: 1000, opened: false, tried: [], told_by: from, told_ms: 1000, ...more });
const link = (state, there, back) => ({ peers: [there.from, there.to], state, directions: [there, back] });

test("a link is told from each side, trouble first", () => {
  const good = link("both", way("a", "b", "ok", { opened: true }), way("b", "a", "ok"));
  const bad = link("one_way", way("c", "a", "unreachable", { last_good_ms: null }), way("a", "c", "ok"));
  const links = [good, bad];
  assert.equal(linkOf(links, "c", "a"), bad);
  assert.equal(linkOf(links, "b", "c"), undefined);
  assert.equal(linkOf(undefined, "a", "b"), undefined);
  const rows = linksOf(links, "a");
  assert.deepEqual(rows.map(({ other, there, back }) => [other, there.from, back.to]), [["c", "a", "a"], ["b", "a", "a"]]);
  assert.equal(linksSummary(rows), "2 links, 1 one way only");
  assert.equal(linksSummary(linksOf(links, "b")), "1 link");
  assert.equal(openWay(bad).from, "a");
  assert.equal(openWay(good), undefined);
  assert.deepEqual(wayWords(good.directions[0], 61_000), ["✓", "works, 2.4 ms, last answered 1 min ago, opened the connection"]);
  assert.deepEqual(wayWords(bad.directions[0], 61_000), ["✗", "not reachable, never answered"]);
  assert.deepEqual(wayWords(way("a", "b", "untried", { last_good_ms: null })), ["?", "never tried, never answered"]);
  assert.deepEqual(wayWords(way("a", "b", "unknown", { told_ms: 31_000 }), 61_000), ["?", "nothing is told of it, heard of 30 s ago, last answered 1 min ago"]);
});

test("lines go to every device, and between others where something is told", () => {
  const ordered = ["a", "b", "c"].map((peer) => ({ peer }));
  const between = link("one_way", way("b", "c", "unreachable"), way("c", "b", "ok"));
  const drawn = edges(ordered, [between, link("both", way("b", "gone", "ok"), way("gone", "b", "ok"))]);
  assert.deepEqual(drawn.map(({ from, to, own, isOneWay }) => [from, to, own, isOneWay]), [[0, 1, true, false], [0, 2, true, false], [2, 1, false, true]]);
  assert.equal(arrow({ x: 0, y: 0 }, { x: 100, y: 0 }), "80.0,0.0 67.0,7.0 67.0,-7.0");
});
