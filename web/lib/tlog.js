// The transparency log's proofs, checked in the browser: RFC 6962 hashing, RFC 9162 proof algorithms,
// C2SP signed notes. It trusts nothing the node says except through these checks.
//
// Hashing uses WebCrypto where the page may (https, localhost) and a plain implementation otherwise, so that a
// panel opened over a home network's http can verify too.

import { sha256 as plainSha256, sha512 as plainSha512 } from "../vendor/noble-hashes/sha2.js";
import * as ed25519 from "../vendor/noble-ed25519.js";

const HASH_BYTES = 32;
const PROOF_HASHES_MAX = 130; // twice the levels of a tree of 2^64 leaves, rounded up

const NOTE_BYTES_MAX = 16384;
const SIGNATURES_MAX = 100;

// What cannot be checked yet, because it was not sealed yet.
export class NotSealed extends Error {}

export class BadProof extends Error {
  constructor(message) {
    super(message);
    this.code = "bad_proof";
  }
}

export function fromHex(text) {
  if (typeof text !== "string" || text.length % 2 || /[^0-9a-f]/.test(text)) throw new BadProof("not hexadecimal");
  const out = new Uint8Array(text.length / 2);
  for (let i = 0; i < out.length; i += 1) out[i] = Number.parseInt(text.slice(2 * i, 2 * i + 2), 16);
  return out;
}

export function toHex(bytes) {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export function fromBase64(text) {
  let binary;
  try {
    binary = atob(text);
  } catch {
    throw new BadProof("not base64");
  }
  if (btoa(binary) !== text) throw new BadProof("not canonical base64");
  return Uint8Array.from(binary, (char) => char.charCodeAt(0));
}

export function equal(a, b) {
  return a.length === b.length && a.every((byte, index) => byte === b[index]);
}

export async function sha256(bytes) {
  const subtle = globalThis.crypto?.subtle;
  return subtle ? new Uint8Array(await subtle.digest("SHA-256", bytes)) : plainSha256(bytes);
}

function concat(...parts) {
  const out = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}

export const leafHash = (entry) => sha256(concat(Uint8Array.of(0), entry));
export const nodeHash = (left, right) => sha256(concat(Uint8Array.of(1), left, right));

function checkSize(value, what) {
  if (!Number.isSafeInteger(value) || value < 0) throw new BadProof(`${what} is not a size`);
}

function checkHashes(...hashes) {
  if (hashes.some((hash) => !(hash instanceof Uint8Array) || hash.length !== HASH_BYTES)) {
    throw new BadProof("a hash has the wrong length");
  }
}

// Root of a whole tree, for small ones: the largest power of two to the left, as RFC 6962 cuts it.
export async function rootOf(entries) {
  if (entries.length === 0) return sha256(new Uint8Array());
  if (entries.length === 1) return leafHash(entries[0]);
  let split = 1;
  while (split * 2 < entries.length) split *= 2;
  return nodeHash(await rootOf(entries.slice(0, split)), await rootOf(entries.slice(split)));
}

const half = (number) => Math.floor(number / 2);

// RFC 9162 section 2.1.3.2. Returns the path for drawing; throws BadProof. `leaf` is the entry's leaf hash.
export async function checkInclusion({ index, size, leaf, root, proof }) {
  checkSize(index, "the index");
  checkSize(size, "the size");
  checkHashes(leaf, root, ...proof);
  if (index >= size) throw new BadProof("the entry is outside the tree");
  if (proof.length > PROOF_HASHES_MAX) throw new BadProof("the proof is too long");
  let first = index;
  let last = size - 1;
  let hash = leaf;
  const path = [{ hash: leaf, side: "leaf" }];
  for (const sibling of proof) {
    if (last === 0) throw new BadProof("the proof has too many hashes");
    if (first % 2 === 1 || first === last) {
      hash = await nodeHash(sibling, hash);
      path.push({ hash, sibling, side: "left" });
      while (first % 2 === 0 && first !== 0) {
        first = half(first);
        last = half(last);
      }
    } else {
      hash = await nodeHash(hash, sibling);
      path.push({ hash, sibling, side: "right" });
    }
    first = half(first);
    last = half(last);
  }
  if (last !== 0) throw new BadProof("the proof has too few hashes");
  if (!equal(hash, root)) throw new BadProof("the proof leads to another root");
  return path;
}

// RFC 9162 section 2.1.4.2: the smaller tree is a prefix of the larger one.
export async function checkConsistency({ sizeFirst, sizeSecond, rootFirst, rootSecond, proof }) {
  checkSize(sizeFirst, "the first size");
  checkSize(sizeSecond, "the second size");
  if (sizeFirst === 0) throw new BadProof("nothing can be shown from an empty tree");
  if (sizeFirst > sizeSecond) throw new BadProof("the first tree is larger than the second");
  if (proof.length > PROOF_HASHES_MAX) throw new BadProof("the proof is too long");
  if (sizeFirst === sizeSecond) {
    if (proof.length) throw new BadProof("equal trees need no proof");
    if (!equal(rootFirst, rootSecond)) throw new BadProof("one size, two roots");
    return;
  }
  checkHashes(rootFirst, rootSecond, ...proof);
  if (proof.length === 0) throw new BadProof("the proof is empty");
  let first = sizeFirst - 1;
  let last = sizeSecond - 1;
  while (first % 2 === 1) {
    first = half(first);
    last = half(last);
  }
  const hashes = [...proof];
  let small = first === 0 ? rootFirst : hashes.shift(); // a complete subtree is its own first hash
  let large = small;
  for (const sibling of hashes) {
    if (last === 0) throw new BadProof("the proof has too many hashes");
    if (first % 2 === 1 || first === last) {
      small = await nodeHash(sibling, small);
      large = await nodeHash(sibling, large);
      while (first % 2 === 0 && first !== 0) {
        first = half(first);
        last = half(last);
      }
    } else {
      large = await nodeHash(large, sibling);
    }
    first = half(first);
    last = half(last);
  }
  if (last !== 0) throw new BadProof("the proof has too few hashes");
  if (!equal(small, rootFirst)) throw new BadProof("the proof leads to another first root");
  if (!equal(large, rootSecond)) throw new BadProof("the proof leads to another second root");
}

// A C2SP checkpoint: origin, size, root, and the signatures under it, not yet checked.
export function parseCheckpoint(note) {
  const split = typeof note === "string" ? note.lastIndexOf("\n\n") : -1;
  if (split < 0 || new TextEncoder().encode(note).length > NOTE_BYTES_MAX) throw new BadProof("this is no checkpoint");
  if (/[\u0000-\u0009\u000b-\u001f]/.test(note) || !note.endsWith("\n")) throw new BadProof("a checkpoint is lines of text");
  const text = note.slice(0, split + 1);
  const [origin, sizeText, rootText, ...extensions] = text.slice(0, -1).split("\n");
  if (!origin || !/^(0|[1-9][0-9]{0,15})$/.test(sizeText) || extensions.includes("")) throw new BadProof("this is no checkpoint");
  const root = fromBase64(rootText);
  const size = Number(sizeText);
  checkSize(size, "the size");
  checkHashes(root);
  const lines = note.slice(split + 2, -1).split("\n");
  if (lines.length > SIGNATURES_MAX) throw new BadProof("a checkpoint has too many signatures");
  return { origin, size, root, text, signatures: lines.map(parseSignature) };
}

function parseSignature(line) {
  const match = /^— ([^\s+]+) (\S+)$/.exec(line);
  if (!match) throw new BadProof("a signature line is malformed");
  const bytes = fromBase64(match[2]);
  if (bytes.length <= 4) throw new BadProof("a signature is too short");
  return { name: match[1], keyHash: bytes.slice(0, 4), signature: bytes.slice(4) };
}

async function keyHash(name, algorithm, publicKey) {
  const head = new TextEncoder().encode(`${name}\n`);
  return (await sha256(concat(head, Uint8Array.of(algorithm), publicKey))).slice(0, 4);
}

export async function verifyEd25519(signature, message, publicKey) {
  ed25519.hashes.sha512 ??= plainSha512;
  try {
    return ed25519.verify(signature, message, publicKey);
  } catch {
    return false;
  }
}

// Throws unless the checkpoint is signed by this key under its own origin; every line that says so must be good.
export async function checkSignature(checkpoint, publicKey) {
  const wanted = await keyHash(checkpoint.origin, 1, publicKey);
  const message = new TextEncoder().encode(checkpoint.text);
  const own = checkpoint.signatures.filter((line) => line.name === checkpoint.origin && equal(line.keyHash, wanted));
  for (const line of own) {
    if (!(await verifyEd25519(line.signature, message, publicKey))) throw new BadProof("the checkpoint's signature is false");
  }
  if (own.length === 0) throw new BadProof("the checkpoint is not signed by this log's key");
}

// When a witness cosigned this checkpoint, in seconds since 1970; throws unless its line is there and every line of it is
// good. Type 0x04 of c2sp.org/tlog-cosignature: eight bytes of time, then the signature over time and text.
export async function checkCosignature(checkpoint, name, publicKey) {
  const wanted = await keyHash(name, 4, publicKey);
  let found = null;
  for (const line of checkpoint.signatures) {
    if (line.name !== name || !equal(line.keyHash, wanted)) continue;
    if (line.signature.length !== 72) throw new BadProof(`the cosignature of ${name} has another length`);
    const timeS = Number(new DataView(line.signature.buffer, line.signature.byteOffset, 8).getBigUint64(0));
    const message = new TextEncoder().encode(`cosignature/v1\ntime ${timeS}\n${checkpoint.text}`);
    const holds = Number.isSafeInteger(timeS) && timeS > 0 && (await verifyEd25519(line.signature.slice(8), message, publicKey));
    if (!holds) throw new BadProof(`the cosignature of ${name} is false`);
    found ??= timeS;
  }
  if (found === null) throw new BadProof(`${name} has not cosigned this checkpoint`);
  return found;
}

const ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";

// The libp2p peer id of an Ed25519 key: its protobuf form as an identity multihash, in base58.
export function peerIdOf(publicKey) {
  const bytes = concat(Uint8Array.of(0x00, 0x24, 0x08, 0x01, 0x12, 0x20), publicKey);
  let number = BigInt(`0x${toHex(bytes)}`);
  let text = "";
  for (; number > 0n; number /= 58n) text = ALPHABET[Number(number % 58n)] + text;
  return "1" + text; // the leading zero byte
}

const hexOf = (text) => toHex(new TextEncoder().encode(text));
const BINDING_START = `89aa${hexOf("generation")}`;
const BINDING_CONTEXT = "p2pnode log keys v1\n";

// The first entry binds the log's key to the node's identity: the peer id is that of the identity key, and this
// key signed the entry's fields (with the signature itself as zeros). Returns the log key.
export async function checkBinding(entry, data) {
  const start = entry.indexOf(BINDING_START);
  if (start < 0) throw new BadProof("the log does not begin with its keys");
  const body = entry.slice(start);
  for (const name of ["identity_key", "log_key"]) {
    if (!body.includes(`${hexOf(name)}c420${data[name]}`)) throw new BadProof(`the shown ${name} is not the one in the entry`);
  }
  const parts = body.split(`${hexOf("signature")}c440${data.signature}`);
  if (parts.length !== 2) throw new BadProof("the keys are not signed");
  const message = fromHex(hexOf(BINDING_CONTEXT) + parts.join(`${hexOf("signature")}c440${"00".repeat(64)}`));
  const identity = fromHex(data.identity_key);
  if (!(await verifyEd25519(fromHex(data.signature), message, identity))) throw new BadProof("the log's keys are not signed by its identity");
  const peer = peerIdOf(identity);
  if (data.peer !== peer || !body.includes(hexOf(peer)) || !(data.origin === `p2pnode/${peer}` || data.origin.startsWith(`p2pnode/${peer}/`))) {
    throw new BadProof("the identity is not that of the peer");
  }
  return fromHex(data.log_key);
}
