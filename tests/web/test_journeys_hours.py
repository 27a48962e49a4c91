"""Hours of a device in the panel: why one rests, until when, and how its owner says when it lends itself."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from tests.kit.pictures import picture
from tests.kit.recorded_node import RecordedNode

pytestmark = pytest.mark.slow

SAYS = "lends itself again at 20:00 CET"


def test_hours_of_a_device(page: Page, url: str, node: RecordedNode) -> None:
    """The hours are set by lines of text; a device outside of its own says when it is back; a wrong line says why."""
    peers, status = node.peers(), node.status()
    node.shown.update(peers=peers, status=status)
    page.goto(f"{url}/#/devices")
    page.get_by_text("Lend it only at certain hours").click()
    page.get_by_label("Hours, one entry a line").fill("mon-fri 20:00-08:00\n\nsat,sun all\n")
    page.get_by_label("Time zone").fill("Europe/Berlin")
    page.get_by_role("button", name="Set the hours").click()
    expect(page.get_by_role("button", name="Set the hours")).to_be_enabled()
    wanted = {"entries": ["mon-fri 20:00-08:00", "sat,sun all"], "zone": "Europe/Berlin"}
    expect(page.get_by_role("alert")).to_have_count(0)
    assert node.commands[-1] == ("schedule_set", wanted)

    status.update(state="paused", schedule={**wanted, "open": False, "says": SAYS, "overridden": True})
    peers["peers"][0].update(device_state="paused", lending=SAYS)
    peers["peers"][1].update(device_state="draining", lending="lends itself again at mon 08:00 CET")
    studio, kitchen = (
        page.locator("article.card", has_text="studio"),
        page.locator("article.card", has_text="kitchen"),
    )
    expect(studio.get_by_text(SAYS)).to_be_visible()
    expect(kitchen.get_by_text("draining")).to_be_visible()
    expect(kitchen.get_by_text("again at mon 08:00 CET")).to_be_visible()
    page.get_by_text("Lend it only at certain hours").click()
    expect(page.get_by_text("as one does now")).to_be_visible()
    picture(page, "hours")
    page.get_by_role("button", name="Lend it always").click()
    expect(page.get_by_role("button", name="Lend it always")).to_be_enabled()
    assert node.commands[-1] == ("schedule_clear", {})
