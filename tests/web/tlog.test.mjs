// The browser's proof checker against the same vectors as the node's: every valid proof, every corrupted one.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { BadProof, checkBinding, checkConsistency, checkCosignature, checkInclusion, checkSignature, fromBase64, fromHex, leafHash, peerIdOf, parseCheckpoint, rootOf, toHex } from "../../web/lib/tlog.js";

const vectors = JSON.parse(readFileSync(new URL("../../specs/vectors/merkle.json", import.meta.url)));

async function run(name, input) {
  if (name.startsWith("inclusion")) {
    return checkInclusion({ index: input.index, size: input.size, leaf: fromHex(input.leaf), root: fromHex(input.root), proof: input.proof.map(fromHex) });
  }
  return checkConsistency({ sizeFirst: input.size_first, sizeSecond: input.size_second, rootFirst: fromHex(input.root_first), rootSecond: fromHex(input.root_second), proof: input.proof.map(fromHex) });
}

test("every vector has its expected end", async () => {
  let count = 0;
  for (const { name, expect, input, output } of vectors) {
    if (name === "source") continue;
    count += 1;
    if (name.startsWith("root")) assert.equal(toHex(await rootOf(input.entries.map(fromHex))), output, name);
    else if (expect === "ok") await run(name, input);
    else await assert.rejects(() => run(name, input), BadProof, name);
  }
  assert.ok(count > 100);
});

test("the plain hash equals WebCrypto's", async () => {
  const { sha256 } = await import("../../web/vendor/noble-hashes/sha2.js");
  for (const text of ["", "abc", "p2pnode".repeat(1000)]) {
    const bytes = new TextEncoder().encode(text);
    assert.equal(toHex(sha256(bytes)), toHex(new Uint8Array(await crypto.subtle.digest("SHA-256", bytes))));
  }
});

// A checkpoint made with Node's own Ed25519, so that two implementations must agree.
async function signed({ origin = "p2pnode/test", size = 3, change = (text) => text } = {}) {
  const { generateKeyPairSync, sign, createHash } = await import("node:crypto");
  const { publicKey, privateKey } = generateKeyPairSync("ed25519");
  const raw = publicKey.export({ format: "der", type: "spki" }).subarray(-32);
  const root = Buffer.alloc(32, 7).toString("base64");
  const text = `${origin}\n${size}\n${root}\n`;
  const hash = createHash("sha256").update(`${origin}\n`).update(Buffer.of(1)).update(raw).digest().subarray(0, 4);
  const line = Buffer.concat([hash, sign(null, Buffer.from(text), privateKey)]).toString("base64");
  return { key: new Uint8Array(raw), note: `${change(text)}\n— ${origin} ${line}\n` };
}

test("a signed checkpoint verifies, a changed one does not", async () => {
  const { key, note } = await signed();
  const checkpoint = parseCheckpoint(note);
  assert.equal(checkpoint.size, 3);
  await checkSignature(checkpoint, key);
  const other = await signed();
  await assert.rejects(() => checkSignature(checkpoint, other.key), BadProof);
  const changed = await signed({ change: (text) => text.replace("\n3\n", "\n4\n") });
  await assert.rejects(() => checkSignature(parseCheckpoint(changed.note), changed.key), BadProof);
});

// The node's own vectors of notes: who signed and cosigned them, and each way in which they do not. The rest of that
// file is about keys written as text and notes that are no checkpoints, which the panel never reads.
test("every vector of a checkpoint has its expected end", async () => {
  const vectors = JSON.parse(readFileSync(new URL("../../specs/vectors/notes.json", import.meta.url)));
  let count = 0;
  for (const { name, expect, input, output } of vectors) {
    if (!input.note || name.startsWith("vkey-") || !input.vkey.startsWith("p2pnode/")) continue;
    count += 1;
    const [, signer, encoded] = /^([^+]+)\+[0-9a-f]{8}\+(.+)$/.exec(input.vkey);
    const key = fromBase64(encoded);
    const check = async () => {
      const checkpoint = parseCheckpoint(input.note);
      if (key[0] === 4) return checkCosignature(checkpoint, signer, key.slice(1));
      return checkSignature({ ...checkpoint, origin: signer }, key.slice(1));
    };
    if (expect !== "ok" || !output.signed) await assert.rejects(check, BadProof, name);
    else assert.equal(await check(), output.time_s, name);
  }
  assert.ok(count > 20, `${count}`);
});

test("what is no checkpoint is refused", () => {
  const root = Buffer.alloc(32).toString("base64");
  for (const note of [null, "", "x", "o\n1\nAA==\n\n", `o\n01\n${root}\n\n`, `o\n-1\n${root}\n\n`, `\n1\n${root}\n\n`, `o\n1\n${root}\n\nnot a line\n`, `o\n1\n${root}\n\n— o %%%\n`]) {
    assert.throws(() => parseCheckpoint(note), BadProof);
  }
});

async function binding({ forge = (hex) => hex } = {}) {
  const { generateKeyPairSync, sign } = await import("node:crypto");
  const { publicKey, privateKey } = generateKeyPairSync("ed25519");
  const key = publicKey.export({ format: "der", type: "spki" }).subarray(-32).toString("hex");
  const hex = (text) => Buffer.from(text).toString("hex");
  const peer = peerIdOf(fromHex(key));
  const body = (signature) => `89aa${hex("generation")}00ac${hex("identity_key")}c420${key}a7${hex("log_key")}c420${"ab".repeat(32)}a4${hex("peer")}d934${hex(peer)}a9${hex("signature")}c440${signature}`;
  const message = Buffer.concat([Buffer.from("p2pnode log keys v1\n"), Buffer.from(body("00".repeat(64)), "hex")]);
  const signature = sign(null, message, privateKey).toString("hex");
  const data = { identity_key: key, log_key: "ab".repeat(32), peer, origin: `p2pnode/${peer}`, signature };
  return { entry: forge(`9b01${body(signature)}`), data };
}

test("the log's key is bound to the peer id, or refused", async () => {
  const good = await binding();
  assert.match(good.data.peer, /^12D3KooW/);
  assert.equal(toHex(await checkBinding(good.entry, good.data)), good.data.log_key);
  const other = await binding();
  for (const change of [{ log_key: "cd".repeat(32) }, { identity_key: other.data.identity_key }, { signature: other.data.signature }, { peer: other.data.peer }, { origin: "p2pnode/else" }]) {
    await assert.rejects(() => checkBinding(good.entry, { ...good.data, ...change }), BadProof);
  }
  const forged = await binding({ forge: (hex) => hex.replaceAll("ab".repeat(32), "cd".repeat(32)) });
  await assert.rejects(() => checkBinding(forged.entry, { ...forged.data, log_key: "cd".repeat(32) }), BadProof);
  await assert.rejects(() => checkBinding("00", good.data), BadProof);
});

test("leaves and nodes cannot be confused", async () => {
  const a = await leafHash(Uint8Array.of(1));
  const b = await leafHash(Uint8Array.of(2));
  const inner = new Uint8Array([...a, ...b]);
  assert.notEqual(toHex(await leafHash(inner)), toHex(await rootOf([Uint8Array.of(1), Uint8Array.of(2)])));
});
