// Numbers and names as people read them.

export function bytes(count) {
  if (!Number.isFinite(count)) return "–";
  const units = ["B", "KB", "MB", "GB", "TB"];
  let value = count;
  let index = 0;
  while (value >= 1000 && index < units.length - 1) {
    value /= 1000;
    index += 1;
  }
  return index === 0 ? `${value} B` : `${value.toFixed(1)} ${units[index]}`;
}

export function units(micro) {
  if (!Number.isFinite(micro)) return "–";
  const sign = micro < 0 ? "−" : "";
  const whole = Math.floor(Math.abs(micro) / 1e6);
  const part = String(Math.abs(micro) % 1e6).padStart(6, "0").replace(/0+$/, "");
  return `${sign}${whole.toLocaleString("en")}${part ? `.${part}` : ""}`;
}

export function layers(range) {
  if (!Array.isArray(range) || range.length !== 2) return "–";
  if (range[1] === range[0] + 1) return `${range[0]}`;
  return range[1] > range[0] ? `${range[0]}–${range[1] - 1}` : "none";
}

export function shortPeer(peer) {
  const text = String(peer ?? "");
  return text.length > 12 ? `…${text.slice(-8)}` : text;
}

export function ago(ms, now = Date.now()) {
  if (!Number.isFinite(ms) || ms <= 0) return "–";
  const seconds = Math.max(0, Math.round((now - ms) / 1000));
  if (seconds < 3) return "now";
  if (seconds < 60) return `${seconds} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ago`;
  if (seconds > 3650 * 86400) return "long ago"; // a clock that was never set
  return `${Math.floor(seconds / 86400)} d ago`;
}

export function duration(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

export function plural(count, word) {
  return `${count} ${word}${count === 1 ? "" : "s"}`;
}

export function rtt(ms) {
  return Number.isFinite(ms) ? `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms` : "–";
}

// A moment as short as it can be said: the hour today, with its day otherwise; twenty-four hours, as no AM is then needed.
export function time(ms, now = Date.now()) {
  if (!Number.isFinite(ms) || ms <= 0) return "–";
  const [at, today] = [new Date(ms), new Date(now)];
  const hour = at.toLocaleTimeString("en-GB");
  if (at.toDateString() === today.toDateString()) return hour;
  const day = at.toLocaleDateString("en-GB", { day: "numeric", month: "short", ...(at.getFullYear() === today.getFullYear() ? {} : { year: "numeric" }) });
  return `${day}, ${hour}`;
}

// Tokens a second: a decimal only where it says something.
export function speed(perS) {
  if (!Number.isFinite(perS) || perS <= 0) return "–";
  return `${perS < 100 ? perS.toFixed(1) : Math.round(perS).toLocaleString("en")} tokens/s`;
}

// A rate behind one decimal is noise, a delay below a tenth of a millisecond is not nothing.
export function delay(ms) {
  if (!Number.isFinite(ms)) return "–";
  if (ms < 1) return `${ms.toFixed(2)} ms`;
  return ms < 1000 ? `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;
}
