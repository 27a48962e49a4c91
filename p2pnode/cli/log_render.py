"""What `p2pnode log ...` prints: pure text from plain dicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

JsonObject = Mapping[str, Any]
_LINE_CHARACTERS_MAX = 160


def time_text(unix_ms: int) -> str:
    """UTC, to the millisecond."""
    moment = datetime.fromtimestamp(unix_ms / 1000, tz=UTC)
    return f"{moment:%Y-%m-%d %H:%M:%S}.{unix_ms % 1000:03d}Z"


def record_line(record: JsonObject, width: int = _LINE_CHARACTERS_MAX) -> str:
    """One event on one line of at most so many characters."""
    fields = " ".join(f"{name}={_short(value)}" for name, value in record["data"].items() if value != "")
    line = f"{record['index']:>8}  {time_text(record['time_ms'])}  {record['type']:<20} {fields}"
    return line if len(line) <= width else line[: width - 1] + "…"


def record_text(record: JsonObject) -> str:
    """One event in full."""
    envelope = [(key, value) for key, value in record.items() if key not in ("data", "time_ms")]
    envelope.insert(2, ("time", time_text(record["time_ms"])))
    lines = [f"{key:<16} {value}" for key, value in envelope if value is not None]
    lines += [f"  {name:<24} {value}" for name, value in record["data"].items()]
    return "\n".join(lines)


def blocks_table(blocks: Sequence[JsonObject]) -> str:
    """Blocks, one on a line of 80 characters at most; --json has roots and hashes whole."""
    lines = [f"{'block':>7} {'events':>17}  {'sealed':<20}  {'root':<8}  {'log root':<8}  hash"]
    lines += [
        f"{b['number']:>7} {b['first']:>8}–{b['end'] - 1:<8}  {time_text(b['sealed_ms'])[:-5]}Z  "
        f"{b['block_root'][:8]}  {b['log_root'][:8]}  {b['hash'][:8]}"
        for b in blocks
    ]
    return "\n".join(lines)


def report_text(report: JsonObject) -> str:
    """The verdict first, then what supports it."""
    lines = []
    if report["ok"]:
        lines.append(f"ok: {report['size']} events, {report['sealed']} of them in {report['blocks']} blocks")
        lines.append(f"    origin {report['origin']}")
        lines.append(f"    root   {report['root']}")
    else:
        lines.append(f"NOT OK: {report['first_bad']}")
        others = [item for item in report["findings"] if item["what"] != report["first_bad"]]
        lines += [f"  {item['what']}" for item in others]
    if report["unknown_events"]:
        lines.append(f"    {report['unknown_events']} events of a newer version were proved but not read")
    lines += [f"note: {warning}" for warning in report["warnings"]]
    if "policy" in report:
        lines.append(policy_text(report["policy"]))
    return "\n".join(lines)


def policy_text(found: JsonObject) -> str:
    """Whether the policy accepts a checkpoint, and who is missing."""
    who = ", ".join(found["cosigned"]) or "nobody"
    if found["ok"]:
        return f"policy: met by the checkpoint of {found['size']} events, cosigned by {who}"
    missing = f"; missing: {', '.join(found['missing'])}" if found["missing"] else ""
    return f"POLICY NOT MET by the checkpoint of {found['size']} events, cosigned by {who}{missing}"


def summary_text(summary: JsonObject, indent: str = "") -> str:
    """Nested counts, one a line."""
    lines = []
    for key, value in summary.items():
        if isinstance(value, Mapping):
            lines.append(f"{indent}{key}:")
            lines.append(summary_text(value, indent + "  "))
        else:
            lines.append(f"{indent}{key}: {value}")
    return "\n".join(line for line in lines if line)


def rebuilding_text(progress: JsonObject) -> str:
    """How far a newer version is with folding the record, and what is answered meanwhile."""
    waits = "" if progress["decides"] else "; nothing is decided before"
    unreadable = progress["unreadable"]
    lines = [f"{progress['folded']} of {progress['size']} events are folded anew by this version{waits}"]
    old = [part for part in progress["parts"] if part not in unreadable]
    if old:
        lines.append(f"  as they were after {progress['as_of']} events: {', '.join(old)}")
    if unreadable:
        lines.append(f"  not shown until then: {', '.join(unreadable)}")
    return "\n".join(lines)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:10]}…{text[-6:]}"


def witnesses_text(view: JsonObject) -> str:
    """Cosignatures received and given; frauds last, since they matter most."""
    lines = [f"log {view['origin']}, {view['size']} events"]
    for witness in view["cosigned_by"]:
        when = time_text(witness["time_ms"])
        lines.append(f"  cosigned by {witness['witness']} at size {witness['size']}, {when}")
    if not view["cosigned_by"]:
        lines.append("  nobody has cosigned it yet")
    lines += [f"  cosigned {log['origin']} at size {log['size']}" for log in view["cosigned"]]
    for fraud in view["equivocations"]:
        first, second = fraud["sizes"]
        told = f"two histories as {fraud['origin']}: {first} and {second} events"
        if ">" in fraud["origin"]:
            told = f"two receipts with the number {first} of {fraud['origin']}"
        where = f"event {fraud['index']}; p2pnode log fraud export {fraud['index']}"
        lines.append(f"FRAUD: {fraud['peer']} signed {told} ({where})")
    return "\n".join(lines)


def fraud_text(found: JsonObject) -> str:
    """The verdict on a fraud proof, and the two statements that contradict each other."""
    if not found["ok"]:
        return f"NOT OK: {found['problem']}"
    first, second = found["sizes"]
    if found["kind"] == "receipts":
        return f"ok: {found['peer']} signed two receipts with the number {first} of {found['origin']}"
    lines = [f"ok: {found['peer']} signed two histories as {found['origin']}"]
    where = f"event {found['event']} is not the same in both" if found["event"] is not None else ""
    lines.append(f"    one of {first} events, one of {second}" + (f"; {where}" if where else ""))
    for note in found["checkpoints"]:
        lines += ["", *(f"    {line}" for line in note.splitlines())]
    return "\n".join(lines)


def proof_text(found: JsonObject) -> str:
    """Whether an entry is in a log, and who vouches for that."""
    if not found["ok"]:
        return f"NOT OK: {found['problem']}"
    by = f", cosigned by {', '.join(found['cosigned']) or 'nobody'}" if "cosigned" in found else ""
    return f"ok: it is event {found['index']} of {found['origin']}, by its checkpoint of {found['size']} events{by}"


def comparison_text(found: JsonObject) -> str:
    """How two copies of a log stand to each other."""
    one, other, index = found["size"], found["other_size"], found["first_difference"]
    if index is not None:
        told = f"; the proof is in {found['proof']}" if "proof" in found else ""
        return f"THEY PART at event {index} (of {one} and {other}){told}"
    if one == other:
        return f"the same {one} events by their hashes; p2pnode log verify says whether each log's events have them"
    longer = "this log goes on" if one > other else "the other one goes on"
    return f"the first {min(one, other)} events are the same; {longer} to {max(one, other)}"


def receipts_text(found: JsonObject) -> str:
    """The verdict on a receipt file."""
    if not found["ok"]:
        return "\n".join(["NOT OK", *(f"  {problem}" for problem in found["problems"])])
    lines = [
        f"{'ok' if r['proved'] else 'not proved'}: number {r['sequence']}: {r['provider']} computed "
        f"{r['layer_tokens']} layer-tokens for {r['consumer']} at {r['microunits']} micro-units, "
        f"logged by {', '.join(r['logged_by'])}"
        for r in found["receipts"]
    ]
    if not all(r["proved"] for r in found["receipts"]):
        lines.append(
            "what is not proved needs the file of its other device: p2pnode log receipt export --with"
        )
    return "\n".join(lines)


def rerun_text(found: JsonObject) -> str:
    """Whether an answer came out the same."""
    if found["same"]:
        return f"same: {found['request_id']} gives the answer that was recorded"
    where = found["diverged_at"]
    place = "the old answer was not kept, so where is unknown" if where is None else f"at character {where}"
    return f"DIFFERS: {found['request_id']} gives another answer ({place})"
