// Reads MessagePack, so that what an entry says is taken from its proven bytes and not from the node's words.
// Bytes become hexadecimal text; whole numbers beyond 2^53 become decimal text.
import { BadProof, toHex } from "./tlog.js";

const DEPTH_MAX = 32;

export function decode(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const utf8 = new TextDecoder("utf-8", { fatal: true });
  let at = 0;

  const take = (count) => {
    if (count > bytes.length - at) throw new BadProof("an entry is cut short");
    at += count;
    return at - count;
  };
  const unsigned = (size) => {
    const from = take(size);
    if (size === 1) return view.getUint8(from);
    if (size === 2) return view.getUint16(from);
    if (size === 4) return view.getUint32(from);
    return whole(view.getBigUint64(from));
  };
  const signed = (size) => {
    const from = take(size);
    if (size === 1) return view.getInt8(from);
    if (size === 2) return view.getInt16(from);
    if (size === 4) return view.getInt32(from);
    return whole(view.getBigInt64(from));
  };
  const whole = (big) => (big <= Number.MAX_SAFE_INTEGER && big >= Number.MIN_SAFE_INTEGER ? Number(big) : String(big));
  const slice = (count) => {
    const from = take(count);
    return bytes.subarray(from, from + count);
  };
  const text = (count) => {
    try {
      return utf8.decode(slice(count));
    } catch (error) {
      throw error instanceof BadProof ? error : new BadProof("an entry has text that is none");
    }
  };
  const list = (count, depth) => {
    const items = [];
    for (let index = 0; index < count; index += 1) items.push(value(depth + 1));
    return items;
  };
  const map = (count, depth) => {
    const entries = [];
    for (let index = 0; index < count; index += 1) entries.push([String(value(depth + 1)), value(depth + 1)]);
    return Object.fromEntries(entries);
  };

  function value(depth) {
    if (depth > DEPTH_MAX) throw new BadProof("an entry is nested too deep");
    const tag = unsigned(1);
    if (tag <= 0x7f) return tag;
    if (tag >= 0xe0) return tag - 256;
    if (tag <= 0x8f) return map(tag & 0x0f, depth);
    if (tag <= 0x9f) return list(tag & 0x0f, depth);
    if (tag <= 0xbf) return text(tag & 0x1f);
    if (tag === 0xc0) return null;
    if (tag === 0xc2 || tag === 0xc3) return tag === 0xc3;
    if (tag >= 0xc4 && tag <= 0xc6) return toHex(slice(unsigned(1 << (tag - 0xc4))));
    if (tag === 0xca) return view.getFloat32(take(4));
    if (tag === 0xcb) return view.getFloat64(take(8));
    if (tag >= 0xcc && tag <= 0xcf) return unsigned(1 << (tag - 0xcc));
    if (tag >= 0xd0 && tag <= 0xd3) return signed(1 << (tag - 0xd0));
    if (tag >= 0xd9 && tag <= 0xdb) return text(unsigned(1 << (tag - 0xd9)));
    if (tag === 0xdc || tag === 0xdd) return list(unsigned(tag === 0xdc ? 2 : 4), depth);
    if (tag === 0xde || tag === 0xdf) return map(unsigned(tag === 0xde ? 2 : 4), depth);
    throw new BadProof("an entry has a value of an unknown kind");
  }

  const result = value(0);
  if (at !== bytes.length) throw new BadProof("an entry has bytes after its end");
  return result;
}

// What a log entry says: its envelope is an array, in this order.
export function readEntry(bytes) {
  const fields = decode(bytes);
  if (!Array.isArray(fields) || fields.length !== 11 || fields[0] !== 1) throw new BadProof("this is no log entry");
  const [, id, type, version, actor, timeMs, lamport, requestId, cause, , data] = fields;
  return { id, type, version, actor, time_ms: timeMs, lamport, request_id: requestId, cause, data };
}
