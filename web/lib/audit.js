// One entry from the node to a green tick: entry, leaf, path, root, signature, and what was seen before.
import { get } from "./api.js";
import { readEntry } from "./msgpack.js";
import { BadProof, checkBinding, checkConsistency, checkInclusion, checkSignature, fromHex, leafHash, parseCheckpoint, toHex } from "./tlog.js";

const SEEN = "p2pnode.checkpoint.";

// The log's key is in its first entry, which must be in the tree and signed by the identity behind the peer id.
async function logKey(checkpoint) {
  const first = await get("/log/event?index=0");
  if (first.type !== "KeysBound") throw new BadProof("the log does not begin with its keys");
  const answer = await get(`/log/proof/inclusion?index=0&size=${checkpoint.size}`);
  const leaf = await leafHash(fromHex(first.entry));
  await checkInclusion({ index: 0, size: checkpoint.size, leaf, root: checkpoint.root, proof: answer.proof.map(fromHex) });
  if (first.data.origin !== checkpoint.origin) throw new BadProof("the keys are of another log");
  return checkBinding(first.entry, first.data);
}

export async function verifiedCheckpoint() {
  const checkpoint = parseCheckpoint((await get("/log/checkpoint")).checkpoint);
  await checkSignature(checkpoint, await logKey(checkpoint));
  return { ...checkpoint, since: await checkSeen(checkpoint) };
}

// A log that this browser saw before must contain what it saw: a shorter or different one is an alarm.
async function checkSeen(checkpoint) {
  const stored = JSON.parse(localStorage.getItem(SEEN + checkpoint.origin) ?? "null");
  if (stored) {
    if (stored.size > checkpoint.size) throw new BadProof(`this log had ${stored.size} entries before, now it shows ${checkpoint.size}`);
    const answer = stored.size < checkpoint.size && stored.size > 0
      ? await get(`/log/proof/consistency?first=${stored.size}&second=${checkpoint.size}`)
      : { proof: [] };
    await checkConsistency({
      sizeFirst: stored.size, sizeSecond: checkpoint.size,
      rootFirst: fromHex(stored.root), rootSecond: checkpoint.root, proof: answer.proof.map(fromHex),
    });
  }
  localStorage.setItem(SEEN + checkpoint.origin, JSON.stringify({ size: checkpoint.size, root: toHex(checkpoint.root) }));
  return stored?.size ?? null;
}

export async function verifyEntry(index) {
  const checkpoint = await verifiedCheckpoint();
  if (index >= checkpoint.size) throw new BadProof(`entry ${index} is newer than the last checkpoint (size ${checkpoint.size}); it is sealed within 30 seconds`);
  const [event, answer] = await Promise.all([get(`/log/event?index=${index}`), get(`/log/proof/inclusion?index=${index}&size=${checkpoint.size}`)]);
  const bytes = fromHex(event.entry);
  const leaf = await leafHash(bytes);
  const path = await checkInclusion({ index, size: checkpoint.size, leaf, root: checkpoint.root, proof: answer.proof.map(fromHex) });
  return { event: readEntry(bytes), checkpoint, path }; // its own bytes say what it says, not the node
}
