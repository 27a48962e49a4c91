"""Credit: balance, top up, quota, statement."""

from __future__ import annotations

import secrets
from datetime import datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import click

from p2pnode.cli import complete
from p2pnode.cli.output import connect, node_options, print_json, print_table, units_text
from p2pnode.errors import RequestError
from p2pnode.units import MICRO_PER_UNIT


@click.command()
@click.option(
    "--earnings", is_flag=True, help="What was computed for whom, by device and layers, from receipts."
)
@node_options
def balance(earnings: bool, data: Path | None, api: str | None, as_json: bool) -> None:
    """Credit of every account of this node."""
    if earnings:
        show_earnings(connect(data, api).get("/log/earnings"), as_json=as_json)
        return
    view = connect(data, api).get("/billing")
    if as_json:
        print_json(view)
        return
    rows = [
        (
            account.get("name") or account.get("account", "-"),
            units_text(account.get("available_microunits")),
            units_text(account.get("held_microunits")),
            units_text(account.get("spent_microunits")),
            units_text(account.get("earned_microunits")),
        )
        for account in view.get("accounts", [])
    ]
    print_table("Accounts", ("ACCOUNT", "AVAILABLE", "HELD", "SPENT", "EARNED"), rows)


def show_earnings(view: Any, *, as_json: bool) -> None:
    if as_json:
        print_json(view)
        return
    rows = [
        (
            row["peer"][-6:],
            "computed for it" if row["direction"] == "given" else "computed by it",
            f"{row['layers'][0]}–{row['layers'][1] - 1}",
            str(row["receipts"]),
            str(row["layer_tokens"]),
            units_text(row["microunits"]),
        )
        for row in view.get("earnings", [])
    ]
    if not rows:
        click.echo("no receipts yet")
        return
    print_table(
        "Work between devices", ("DEVICE", "DIRECTION", "LAYERS", "RECEIPTS", "LAYER TOKENS", "UNITS"), rows
    )


@click.command()
@click.argument("units")
@click.option("--account", default="local", show_default=True, metavar="ACCOUNT", help="Account to credit.")
@click.option(
    "--reference", metavar="TEXT", help="Repeating a top up with the same reference changes nothing."
)
@node_options
def topup(
    units: str, account: str, reference: str | None, data: Path | None, api: str | None, as_json: bool
) -> None:
    """Add UNITS (a decimal number) to an account."""
    key = reference or secrets.token_hex(12)
    wanted = {"account": account, "amount_microunits": micro_units(units), "idempotency_key": key}
    answer = connect(data, api).post("/command/topup", wanted)
    if as_json:
        print_json(answer)
        return
    click.echo(f"{units} units added to {account}")


PERIODS_MS = {"hour": 3_600_000, "day": 86_400_000, "week": 7 * 86_400_000, "month": 30 * 86_400_000}
"""A month is thirty days: periods are counted from 1970, so that every node begins them at the same moment."""


@click.command()
@click.argument("account", shell_complete=complete.accounts)
@click.argument("units", required=False)
@click.option(
    "--per", type=click.Choice(list(PERIODS_MS)), default="day", show_default=True, help="How often."
)
@click.option("--lift", is_flag=True, help="No limit any more.")
@node_options
def quota(
    account: str,
    units: str | None,
    per: str,
    lift: bool,
    data: Path | None,
    api: str | None,
    as_json: bool,
) -> None:
    """Show what ACCOUNT (a key or a peer) may use, or let it use UNITS by list price in each period, free or not."""
    if lift and units is not None:
        raise click.UsageError("either UNITS or --lift")
    wanted: dict[str, Any] = {"account": account}
    if units is not None:
        wanted |= {"limit_microunits": micro_units(units), "period_ms": PERIODS_MS[per]}
    node = connect(data, api)
    if lift or units is not None:
        node.post("/command/quota", wanted)
    accounts = node.get("/billing").get("accounts", [])
    found: dict[str, Any] = next((a for a in accounts if a.get("account") == account), {"account": account})
    if as_json:
        print_json(found)
        return
    limit = found.get("quota")
    if not limit:
        click.echo(f"{account} has no quota")
        return
    click.echo(
        f"{account} may use {units_text(limit['limit_microunits'])} units in each {period_text(limit['period_ms'])}: "
        f"{units_text(limit['used_microunits'])} used, {units_text(limit['forecast_microunits'])} at this pace"
    )


def period_text(period_ms: int) -> str:
    name = next((name for name, length in PERIODS_MS.items() if length == period_ms), None)
    return name or f"{period_ms / 3_600_000:g} hours"


def micro_units(text: str) -> int:
    """Units with at most six decimals as whole micro-units."""
    try:
        micro = Decimal(text) * MICRO_PER_UNIT
        whole = int(micro)
    except (InvalidOperation, OverflowError, ValueError):
        raise RequestError(f"{text!r} is not a number of units", hint="write for example 5 or 0.25") from None
    if whole != micro or not 0 < whole < 1 << 53:
        raise RequestError(
            f"{text!r} is not an amount", hint="more than 0, with at most six decimals: 5 or 0.25"
        )
    return whole


@click.command()
@click.option("--account", default="local", show_default=True, metavar="ACCOUNT", help="Whose bookings.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True, help="Newest N.")
@click.option("--csv", "as_table", is_flag=True, help="Comma-separated values, for spreadsheets.")
@node_options
def statement(
    account: str, limit: int, as_table: bool, data: Path | None, api: str | None, as_json: bool
) -> None:
    """Every booking of an account, with the event behind it."""
    view = connect(data, api).get("/log/statement", {"account": account, "limit": limit})
    if as_json:
        print_json(view)
        return
    lines = view.get("lines", view.get("entries", [])) if isinstance(view, dict) else view
    if as_table:
        from p2pnode.projections.billing_view import StatementRow, as_csv

        click.echo(as_csv(StatementRow(**line) for line in lines or ()), nl=False)
        return
    if not lines:
        click.echo("no bookings yet")
        return
    rows = [
        (
            line.get("index", "-"),
            _when(line.get("wall_ms")),
            line.get("type", "-"),
            line.get("request_id") or line.get("note") or "-",
            units_text(line.get("amount_microunits")),
            units_text(line.get("balance_microunits")),
            units_text(line.get("held_microunits")),
        )
        for line in lines
        if line.get("account") == account
    ]
    print_table(
        f"Statement of {account}", ("EVENT", "TIME", "WHAT", "FOR", "AMOUNT", "BALANCE", "HELD"), rows
    )


def _when(ms: object) -> str:
    if not isinstance(ms, int):
        return "-"
    return datetime.fromtimestamp(ms / 1000).astimezone().strftime("%Y-%m-%d %H:%M:%S")
