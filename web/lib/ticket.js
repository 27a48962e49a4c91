// Reads a ticket (specs/02-invites.md) in the browser: it never leaves it.
import { decode } from "./msgpack.js";
import { equal, sha256, toHex } from "./tlog.js";

const PREFIX = "p2p1-";
const DIGITS = "abcdefghijklmnopqrstuvwxyz234567";
const CHARACTERS_MAX = 2048;
const CHECKSUM_BYTES = 4;
const ROLES = ["worker", "client", "guest"];
const utf8 = new TextEncoder();

function fromBase32(text) {
  const out = [];
  let bits = 0;
  let held = 0;
  for (const character of text) {
    const value = DIGITS.indexOf(character);
    if (value < 0) throw new Error("the ticket has a character that no ticket has");
    held = ((held << 5) | value) & 0xfff;
    bits += 5;
    if (bits >= 8) {
      bits -= 8;
      out.push((held >> bits) & 0xff);
    }
  }
  return Uint8Array.from(out);
}

async function hashOf(words, bytes) {
  const head = utf8.encode(words);
  const all = new Uint8Array(head.length + bytes.length);
  all.set(head);
  all.set(bytes, head.length);
  return sha256(all);
}

// Who invites to what, until when; an Error with words for a person when it is damaged.
export async function readTicket(text) {
  const bare = text.toLowerCase().replace(/[\s-]/g, "");
  const prefix = PREFIX.replace("-", "");
  if (text.length > CHARACTERS_MAX || !bare.startsWith(prefix)) throw new Error("the link holds no ticket");
  const raw = fromBase32(bare.slice(prefix.length));
  const body = raw.subarray(0, Math.max(0, raw.length - CHECKSUM_BYTES));
  if (!equal((await hashOf(PREFIX, body)).subarray(0, CHECKSUM_BYTES), raw.subarray(body.length))) throw new Error("the ticket is damaged or cut short");
  const [meshKey, inviterKey, secret, expiresS, role, meshName] = decode(body);
  const bytes = Uint8Array.from(secret.match(/../g) ?? [], (pair) => Number.parseInt(pair, 16));
  return {
    text: PREFIX + bare.slice(prefix.length).toUpperCase(), // as it is written, so that a command holds nothing else
    meshKey,
    inviterKey: inviterKey || meshKey,
    inviteId: toHex(await hashOf("p2pnode-invite-v1:", bytes)).slice(0, 32),
    expiresMs: expiresS * 1000,
    role: ROLES[role] ?? "",
    meshName,
  };
}
