"""The panel of a real node whose mesh asks another mesh: a wrong ticket, the right one, a chat, and the end of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Dialog, Page, expect

from tests.kit.mesh import NodeProcess
from tests.kit.pictures import picture

pytestmark = pytest.mark.slow

DEMO = "p2pnode-demo"


@pytest.fixture
def meshes(tmp_path: Path) -> Iterator[tuple[NodeProcess, NodeProcess]]:
    home, office = NodeProcess(tmp_path, "home"), NodeProcess(tmp_path, "office")
    yield home, office
    home.stop()
    office.stop()


def test_another_mesh_is_added_asked_and_removed(
    browser: BrowserContext, meshes: tuple[NodeProcess, NodeProcess]
) -> None:
    home, office = meshes
    said: list[str] = []
    page = browser.new_page()
    page.set_default_timeout(20_000)
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    try:
        walk(page, home, office)
    finally:
        page.evaluate("localStorage.clear()")
        page.close()
    # The browser itself reports each request that is answered with an error.
    assert [line for line in said if "status of 4" not in line] == []
    assert len(said) == 2


def walk(page: Page, home: NodeProcess, office: NodeProcess) -> None:
    page.goto(f"{home.api.url}/#/devices")
    go = page.get_by_role("navigation", name="Pages")
    section = page.get_by_role("article").filter(has=page.get_by_role("heading", name="Other meshes"))
    ticket, name = section.get_by_label("Ticket for guests"), section.get_by_label("Call it")
    add = section.get_by_role("button", name="Ask this mesh, too")
    for wrong, words in (
        ("p2p1-NONSENSE", "ticket"),
        (home.invite(role="guest"), "the mesh this device is in"),
    ):
        ticket.fill(wrong)
        add.click()
        expect(section.get_by_role("alert")).to_contain_text(re.compile(words))
    expect(section.get_by_role("row")).to_have_count(0)
    ticket.fill(office.invite(role="guest"))
    name.fill("office")
    add.click()
    row = section.get_by_role("row").filter(has_text="office")
    expect(row).to_contain_text("can be asked")
    expect(row).to_contain_text(DEMO)
    expect(section.get_by_role("alert")).to_have_count(0)
    expect(ticket).to_have_value("")
    picture(page, "meshes")
    go.get_by_role("link", name="Models").click()
    expect(page.locator("article", has_text=f"{DEMO}@office")).to_be_visible()
    go.get_by_role("link", name="Chat").click()
    page.get_by_label("Model").select_option(f"{DEMO}@office")
    page.get_by_label("Message").fill("What is a mesh?")
    page.keyboard.press("Enter")
    answer = page.locator(".message.assistant")
    expect(answer.get_by_text("Who computed this")).to_be_visible()
    answer.get_by_text("Who computed this").click()
    expect(answer).to_contain_text("office of office")
    assert office.events("RequestFinished")[-1]["data"]["completion_tokens"] > 0
    go.get_by_role("link", name="Devices").click()
    page.once("dialog", lambda dialog: accept(dialog))
    row.get_by_role("button", name="Remove").click()
    expect(row).to_have_count(0)
    go.get_by_role("link", name="Models").click()
    expect(page.locator("article", has_text=DEMO).first).to_be_visible()
    expect(page.locator("article", has_text=f"{DEMO}@office")).to_have_count(0)


def accept(dialog: Dialog) -> None:
    assert dialog.message == "Ask office no more?"
    dialog.accept()
