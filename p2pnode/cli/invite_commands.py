"""Commands about invites: make one, list those there were, end one."""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path

import click

from p2pnode import limits
from p2pnode.cli import complete
from p2pnode.cli.device_commands import say
from p2pnode.cli.output import connect, node_options, one_line, print_json, print_table
from p2pnode.errors import ConfigError


@click.command()
@click.option(
    "--uses",
    type=click.IntRange(1, 10_000),
    default=1,
    show_default=True,
    metavar="N",
    help="How many devices may use it.",
)
@click.option(
    "--expires", default="1h", show_default=True, metavar="TIME", help="How long it is valid: 15m, 1h, 7d."
)
@click.option(
    "--role",
    type=click.Choice(["worker", "client", "guest"]),
    default="worker",
    show_default=True,
    help="A client asks but does not compute. A guest is another mesh: it gets whole answers and nothing else.",
)
@click.option("--label", default="", metavar="TEXT", help="Note for yourself.")
@click.option("--link", is_flag=True, help="As the link of a page that shows how to install and join.")
@click.option("--qr", is_flag=True, help="Show it as a QR code too.")
@node_options
def invite(
    uses: int,
    expires: str,
    role: str,
    label: str,
    link: bool,
    qr: bool,
    data: Path | None,
    api: str | None,
    as_json: bool,
) -> None:
    """Make a ticket; the other device runs `p2pnode join TICKET`."""
    from p2pnode.config import parse_duration_s

    expires_s = parse_duration_s(expires)
    if expires_s > limits.INVITE_S_MAX:
        days = limits.INVITE_S_MAX // 86_400
        raise ConfigError(
            f"a ticket is valid for at most {days}d, not {expires}", hint="write for example 15m, 1h or 7d"
        )
    wanted = {"uses": uses, "expires_s": expires_s, "role": role, "label": label}
    made = connect(data, api).post("/invites?link=1" if link else "/invites", wanted)
    if as_json:
        print_json(made)
        return
    shown = made.get("link") or made["ticket"]
    click.echo(shown)
    if qr:
        import segno

        segno.make(shown, error="l").terminal(compact=True)
    if sys.stderr.isatty():
        until = datetime.fromtimestamp(made["expires_ms"] / 1000).astimezone()
        how = "p2pnode federation add TICKET" if role == "guest" else "p2pnode join TICKET"
        click.echo(f"valid until {until:%H:%M on %d %B} for {uses} device(s): {how}", err=True)


@click.group(invoke_without_command=True)
@node_options
@click.pass_context
def invites(context: click.Context, data: Path | None, api: str | None, as_json: bool) -> None:
    """Invites so far; `p2pnode invites revoke ID` ends one."""
    if context.invoked_subcommand is not None:
        return
    view = connect(data, api).get("/log/invites")
    if as_json:
        print_json(view)
        return
    rows = [
        (
            invite["invite_id"],
            one_line(invite["label"]) or "-",
            invite["role"],
            invite["state"],
            f"{invite['uses_left']} of {invite['uses']}",
            f"{datetime.fromtimestamp(invite['expires_ms'] / 1000).astimezone():%Y-%m-%d %H:%M}",
        )
        for invite in view["invites"]
    ]
    print_table("Invites", ("ID", "LABEL", "ROLE", "STATE", "USES LEFT", "EXPIRES"), rows)


@invites.command("revoke")
@click.argument("invite_id", metavar="ID", shell_complete=complete.invites)
@node_options
def revoke_invite(invite_id: str, data: Path | None, api: str | None, as_json: bool) -> None:
    """End the invite ID: nobody joins with its ticket any more; who did stays a member."""
    answer = connect(data, api).post("/command/revoke_invite", {"invite_id": invite_id})
    say(answer, f"{one_line(invite_id)} is revoked", as_json=as_json)
