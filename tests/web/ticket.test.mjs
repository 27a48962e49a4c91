// Tickets in the browser say what specs/vectors/invites.json says of them.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import test from "node:test";
import { readTicket } from "../../web/lib/ticket.js";

const vectors = JSON.parse(readFileSync(new URL("../../specs/vectors/invites.json", import.meta.url)));

// What only the command line checks: forms of single fields, and the time.
const LEFT_TO_JOIN = new Set(["short mesh key", "long inviter key", "short secret", "negative expiry", "expiry as text", "boolean expiry", "unknown role",
  "negative role", "long name", "binary name", "nine addresses", "address of 5 bytes", "address is a number", "address text without slash",
  "addresses not a list", "expired", "a map", "six fields"]);

for (const { name, expect, input, output } of vectors) {
  if (expect !== "ok" && LEFT_TO_JOIN.has(name)) continue;
  test(`ticket: ${name}`, async () => {
    const text = typeof input === "string" ? input : input.ticket;
    if (expect !== "ok") return assert.rejects(readTicket(text));
    const read = await readTicket(text);
    assert.equal(read.meshName, output.mesh_name);
    assert.equal(read.role, output.role);
    assert.equal(read.expiresMs, output.expires_ms);
    assert.equal(read.inviterKey, output.inviter_key);
    assert.match(read.text, /^p2p1-[A-Z2-7]+$/);
    assert.deepEqual((await readTicket(read.text)).inviteId, read.inviteId);
    assert.match(read.inviteId, /^[0-9a-f]{32}$/);
  });
}
