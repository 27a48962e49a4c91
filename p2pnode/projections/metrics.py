"""Numbers for `/metrics` that come from the log: counters survive a restart, because the log does."""

from __future__ import annotations

from p2pnode.projections import billing, peers
from p2pnode.projections.fold import JsonObject
from p2pnode.projections.state import MeshState

PREFIX = "p2pnode_"


def view(state: MeshState, now_ms: int) -> JsonObject:
    """{"metrics": [{"name", "type", "help", "samples": [{"labels": {}, "value": int}]}]}; `type` is
    counter or gauge.
    """
    total = state.usage.total
    held = sum(v for account, v in state.billing.balances.items() if account.startswith(billing.HELD))
    states: dict[str, int] = {}
    for entry in state.peers.peers.values():
        name = peers.state_of(entry)
        states[name] = states.get(name, 0) + 1
    ledger = state.billing.balances
    metrics = [
        _many("events_total", "counter", "Facts in the log.", "type", state.audit.counts),
        _one("log_size", "gauge", "Events in the log.", state.size),
        _many("peers", "gauge", "Known peers.", "state", states),
        _one("requests_accepted_total", "counter", "Requests admitted.", state.sessions.accepted),
        _one("requests_finished_total", "counter", "Requests answered.", state.sessions.finished),
        _one("requests_failed_total", "counter", "Requests that ended in an error.", state.sessions.failed),
        _one("requests_running", "gauge", "Requests in work.", _running(state)),
        _one("prompt_tokens_total", "counter", "Tokens read.", total.prompt_tokens),
        _one("completion_tokens_total", "counter", "Tokens written.", total.completion_tokens),
        _one("cached_tokens_total", "counter", "Tokens found in a cache.", total.cached_tokens),
        _one("compute_ms_total", "counter", "Time in prefill and decode.", total.compute_ms),
        _one("stages_lost_total", "counter", "Devices lost in a request.", state.sessions.stages_lost),
        _one("stages_recovered_total", "counter", "Requests resumed.", state.sessions.stages_recovered),
        _one("engine_deaths_total", "counter", "Engine processes lost.", state.node.engine_deaths),
        _one("crashes_total", "counter", "Starts without a stop before.", state.node.crashes),
        _one("credit_held_microunits", "gauge", "Credit set aside.", held),
        _one("credit_minted_microunits", "counter", "Credit given out.", -_minted(ledger)),
        _one("witnesses", "gauge", "Peers that cosigned this log.", len(state.audit.cosigned)),
        _one("frauds_total", "counter", "Logs proven to have forked.", len(state.audit.frauds)),
    ]
    return {"metrics": metrics}


def _running(state: MeshState) -> int:
    return sum(entry.state == "running" for entry in state.sessions.requests.values())


def _minted(ledger: dict[str, int]) -> int:
    return ledger.get(billing.MINT_WELCOME, 0) + ledger.get(billing.MINT_TOPUP, 0)


def _one(name: str, kind: str, text: str, value: int) -> JsonObject:
    return {"name": PREFIX + name, "type": kind, "help": text, "samples": [{"labels": {}, "value": value}]}


def _many(name: str, kind: str, text: str, label: str, values: dict[str, int]) -> JsonObject:
    samples = [{"labels": {label: key}, "value": value} for key, value in sorted(values.items())]
    return {"name": PREFIX + name, "type": kind, "help": text, "samples": samples}
