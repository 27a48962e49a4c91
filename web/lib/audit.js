// One entry from the node to a green tick: entry, leaf, path, root, signature, and what was seen before.
import { get } from "./api.js";
import { decode, readEntry } from "./msgpack.js";
import {
  BadProof, NotSealed, checkBinding, checkConsistency, checkCosignature, checkInclusion, checkSignature, fromHex, leafHash, parseCheckpoint, toHex,
} from "./tlog.js";

const SEEN = "p2pnode.checkpoint.";

// The log's keys are in its first entry, and again wherever they were rotated. The last such entry below the checkpoint
// must be in the tree and signed by the identity behind the peer id.
async function logKey(checkpoint) {
  const { indexes } = await get("/log/bindings");
  const index = Math.max(...indexes.filter((at) => at < checkpoint.size));
  if (!Number.isSafeInteger(index)) throw new BadProof("the log does not begin with its keys");
  const bound = await get(`/log/event?index=${index}`);
  if (bound.type !== "KeysBound") throw new BadProof(`entry ${index} does not bind the log's keys`);
  const answer = await get(`/log/proof/inclusion?index=${index}&size=${checkpoint.size}`);
  const leaf = await leafHash(fromHex(bound.entry));
  await checkInclusion({ index, size: checkpoint.size, leaf, root: checkpoint.root, proof: answer.proof.map(fromHex) });
  if (bound.data.origin !== checkpoint.origin) throw new BadProof("the keys are of another log");
  return checkBinding(bound.entry, bound.data);
}

export async function verifiedCheckpoint() {
  const checkpoint = parseCheckpoint((await get("/log/checkpoint")).checkpoint);
  await checkSignature(checkpoint, await logKey(checkpoint));
  return { ...checkpoint, since: await checkSeen(checkpoint) };
}

// The key a witness cosigns with: its identity signed the binding that holds it.
async function witnessKey({ binding, peer, witness }) {
  const data = decode(fromHex(binding));
  await checkBinding(binding, data);
  if (data.peer !== peer || witness !== `p2pnode/${peer}/witness`) throw new BadProof("these keys are of another device");
  return fromHex(data.witness_key);
}

// Who cosigned, and which of these lines under the newest checkpoint this browser could check itself.
export async function checkedWitnesses() {
  const view = await get("/log/witnesses");
  const checkpoint = view.checkpoint ? parseCheckpoint(view.checkpoint) : null;
  const rows = view.cosigned_by.map(async (row) => {
    if (!row.binding || !checkpoint || row.size !== checkpoint.size) return { ...row, checked: null };
    try {
      const timeS = await checkCosignature(checkpoint, row.witness, await witnessKey(row));
      return { ...row, checked: true, time_ms: timeS * 1000 };
    } catch (error) {
      if (!(error instanceof BadProof)) throw error;
      return { ...row, checked: false, why: error.message };
    }
  });
  return { ...view, cosigned_by: await Promise.all(rows) };
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
  if (index >= checkpoint.size) throw new NotSealed(`Entry ${index} is newer than the last checkpoint (size ${checkpoint.size}). It is sealed within 30 seconds.`);
  const [event, answer] = await Promise.all([get(`/log/event?index=${index}`), get(`/log/proof/inclusion?index=${index}&size=${checkpoint.size}`)]);
  const bytes = fromHex(event.entry);
  const leaf = await leafHash(bytes);
  const path = await checkInclusion({ index, size: checkpoint.size, leaf, root: checkpoint.root, proof: answer.proof.map(fromHex) });
  return { event: readEntry(bytes), checkpoint, path }; // its own bytes say what it says, not the node
}
