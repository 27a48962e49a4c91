"""`p2pnode log fraud|compare`: two histories of one log, as a file that convinces anybody."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from p2pnode.cli import log_render as render
from p2pnode.cli.log_folder import folder_options, open_reader
from p2pnode.cli.output import connect, node_options, print_json
from p2pnode.errors import NotFound

if TYPE_CHECKING:
    from p2pnode.events.fraud import Signed
    from p2pnode.events.reader import LogReader

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
NEW_FILE = click.Path(dir_okay=False, path_type=Path)


@click.group()
def fraud() -> None:
    """Take proofs that a peer signed two histories out of the record and check them without it."""


@fraud.command("export")
@click.argument("peer")
@click.option("--output", type=NEW_FILE, help="A file, instead of stdout.")
@folder_options
def fraud_export(data: Path, as_json: bool, peer: str, output: Path | None) -> None:
    """Write the proof against a PEER (its id, its log's name, or the index of the event)."""
    del as_json  # it is JSON in any case
    from p2pnode.events.fraud import fraud_file
    from p2pnode.events.types import PeerEquivocated

    for record in open_reader(data).frauds():
        event = record.event
        if isinstance(event, PeerEquivocated) and peer in (event.peer, event.origin, str(record.index)):
            _write(output, fraud_file(event.proof))
            return
    raise NotFound(f"the record has no fraud of {peer!r}", hint="p2pnode log witnesses lists those it has")


@fraud.command("verify")
@click.argument("file", type=FILE)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def fraud_verify(file: Path, as_json: bool) -> None:
    """Check a proof offline: both checkpoints are signed by one device, and cannot both be true."""
    from p2pnode.errors import BadCheckpoint, BadReceipt
    from p2pnode.events.fraud import parse_fraud_file

    try:
        found = _fraud_view(parse_fraud_file(file.read_text(encoding="utf-8", errors="replace")))
    except (BadCheckpoint, BadReceipt) as error:
        found = {"ok": False, "problem": error.message}
    if as_json:
        print_json(found)
    else:
        click.echo(render.fraud_text(found))
    if not found["ok"]:
        raise click.exceptions.Exit(1)


@click.command()
@click.argument("other", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="OTHER_DIR")
@click.option("--proof", type=NEW_FILE, metavar="FILE", help="Where they part, write the proof of it here.")
@folder_options
def compare(data: Path, as_json: bool, other: Path, proof: Path | None) -> None:
    """Compare the log with that of another data folder (a backup, a copy): does one begin the other?

    Exit status 1 where they part.
    """
    from p2pnode.events.merkle import first_difference

    one, two = open_reader(data), open_reader(other)
    peers = [_newest(reader).binding.peer for reader in (one, two)]
    if peers[0] != peers[1]:
        raise NotFound(
            f"{other} has the log of another device ({peers[1]})", hint="compare copies of one log"
        )
    sizes = (one.size, two.size)
    index = first_difference(one, two, min(sizes))
    document: dict[str, Any] = {"size": sizes[0], "other_size": sizes[1], "first_difference": index}
    if index is not None and proof is not None:
        from p2pnode.events.fraud import fraud_file, fraud_from_trees

        first, second = sorted(((_newest(one), one), (_newest(two), two)), key=lambda s: s[0].checkpoint.size)
        _write(proof, fraud_file(fraud_from_trees(first[0], second[0], first[1], second[1])))
        document["proof"] = str(proof)
    if as_json:
        print_json(document)
    else:
        click.echo(render.comparison_text(document))
    if index is not None:
        raise click.exceptions.Exit(1)


@click.command()
@click.option(
    "--need", type=click.IntRange(min=0), help="How many of them must cosign (default: more than half)."
)
@click.option("--output", type=NEW_FILE, help="A file, instead of stdout.")
@node_options
def policy(data: Path | None, api: str | None, as_json: bool, need: int | None, output: Path | None) -> None:
    """Write a trust policy (c2sp.org/tlog-policy) of this log and the members that cosigned it lately.

    Give it to whoever verifies this log; as log/policy in the data folder it tells the node whom to ask.
    """
    from p2pnode.events.keys import decode_binding, verifiers_of
    from p2pnode.events.policy import policy_text

    node = connect(data, api)
    view = node.get("/log/witnesses")
    raw = [row["binding"] for row in view["cosigned_by"] if row["binding"]]
    witnesses = [verifiers_of(decode_binding(bytes.fromhex(binding)))[1] for binding in raw]
    log = verifiers_of(decode_binding(bytes.fromhex(view["binding"])))[0]
    text = policy_text(log, witnesses, len(witnesses) // 2 + 1 if need is None and witnesses else need or 0)
    if as_json:
        print_json({"policy": text, "witnesses": [str(key) for key in witnesses]})
    else:
        _write(output, text)


@click.command("check-proof")
@click.argument("proof_file", type=FILE)
@click.argument("entry_file", type=FILE)
@click.option("--key", metavar="VKEY", help="The log's verifier key.")
@click.option(
    "--policy",
    "policy_file",
    type=FILE,
    help="A trust policy: its logs' keys, and whose cosignatures it wants.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def check_proof(
    proof_file: Path, entry_file: Path, key: str | None, policy_file: Path | None, as_json: bool
) -> None:
    """Check a proof of `p2pnode log proof` offline: is this entry (its bytes, or these in hexadecimal) in that log?"""
    from p2pnode.errors import BadCheckpoint

    if key is None and policy_file is None:
        raise click.UsageError("a proof is checked with the log's --key, or a --policy that names the log")
    try:
        found = _checked_proof(proof_file, entry_file, key, policy_file)
    except BadCheckpoint as error:
        found = {"ok": False, "problem": error.message}
    if as_json:
        print_json(found)
    else:
        click.echo(render.proof_text(found))
    if not found["ok"]:
        raise click.exceptions.Exit(1)


def _checked_proof(
    proof_file: Path, entry_file: Path, key: str | None, policy_file: Path | None
) -> dict[str, Any]:
    from p2pnode.errors import BadCheckpoint
    from p2pnode.events.note import is_signed, parse_note, parse_verifier
    from p2pnode.events.policy import check_policy, parse_policy
    from p2pnode.events.proof import check_proof, parse_proof

    proof = parse_proof(proof_file.read_text(encoding="utf-8", errors="replace"))
    note = parse_note(proof.checkpoint)
    wanted = None if policy_file is None else parse_policy(policy_file.read_bytes())
    keys = [parse_verifier(key)] if key is not None else list(wanted.logs) if wanted else []
    signer = next((one for one in keys if is_signed(note, one)), None)
    if signer is None:
        raise BadCheckpoint("the checkpoint is not signed by a log of that key or policy")
    checkpoint = check_proof(proof, _entry_bytes(entry_file.read_bytes()), signer)
    found: dict[str, Any] = {
        "ok": True,
        "origin": checkpoint.origin,
        "index": proof.index,
        "size": checkpoint.size,
    }
    if wanted is not None:
        verdict = check_policy(wanted, note)
        found |= {"ok": verdict.ok, "cosigned": list(verdict.cosigned), "missing": list(verdict.missing)}
        if not verdict.ok:
            found["problem"] = f"the policy is not met; missing: {', '.join(verdict.missing)}"
    return found


def _entry_bytes(raw: bytes) -> bytes:
    """An entry begins with its array of eleven; text in hexadecimal does not."""
    try:
        return bytes.fromhex(raw.decode("ascii"))
    except ValueError:
        return raw


def _newest(reader: LogReader) -> Signed:
    """The newest checkpoint with the keys that signed it."""
    from p2pnode.events.fraud import Signed
    from p2pnode.events.note import parse_checkpoint, parse_note
    from p2pnode.events.types import KeysBound

    note = reader.checkpoint()
    if note is None:
        raise NotFound("nothing was sealed yet")
    size = parse_checkpoint(parse_note(note).text).size
    binding = reader.record(max(index for index in reader.bindings() if index < size)).event
    assert isinstance(binding, KeysBound), "the table of bindings names bindings"
    return Signed(note, binding)


def _fraud_view(document: bytes) -> dict[str, Any]:
    from p2pnode.events import receipt as receipts
    from p2pnode.events.fraud import check_fraud

    if receipts.is_fraud(document):
        first, second, _ = receipts.check_fraud(document)
        return {
            "ok": True,
            "kind": "receipts",
            "peer": first.provider,
            "origin": receipts.channel_of(first.consumer, first.provider),
            "sizes": [first.sequence, second.sequence],
        }
    found = check_fraud(document)
    return {
        "ok": True,
        "kind": "log",
        "peer": found.peer,
        "origin": found.origin,
        "sizes": [found.size_first, found.size_second],
        "event": found.index,
        "checkpoints": [found.first, found.second],
    }


def _write(output: Path | None, text: str) -> None:
    with click.open_file(str(output) if output else "-", "w", encoding="utf-8") as file:
        file.write(text)
