"""The page behind an invite's link in a browser: what it shows, and that the ticket goes to nobody."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from p2pnode.transport.invite import Ticket, encode_ticket, secret_hash
from p2pnode.units import UnixMs
from tests.kit.pictures import picture
from tests.kit.recorded_node import RecordedNode

pytestmark = pytest.mark.slow

SECRET = bytes(range(16))
INVITE = secret_hash(SECRET).hex()[:32]
TICKET = encode_ticket(
    Ticket(
        bytes(32), bytes([1]) * 32, SECRET, UnixMs(2_000_000_000_000), "worker", "Fritz' <b>Netz</b>",
        ("/ip4/192.168.1.20/udp/9481/quic-v1",),
    )
)  # fmt: skip


@pytest.fixture
def refused(browser: BrowserContext, url: str) -> Iterator[Page]:
    """A page whose questions may be refused, of which the browser's console tells; anything else there is a failure."""
    del url
    page = browser.new_page()
    page.set_default_timeout(10_000)
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    yield page
    page.close()
    assert [text for text in said if not text.startswith("Failed to load resource")] == []


def opened(node: RecordedNode, state: str = "open") -> None:
    """The node's record has this invite."""
    row = {
        "invite_id": INVITE,
        "state": state,
        "role": "worker",
        "uses_left": 1,
        "expires_ms": 2_000_000_000_000,
    }
    node.forge = lambda name, arguments, answer: {"invites": [row]} if name == "invites" else answer


def test_an_invite_is_opened(page: Page, url: str, node: RecordedNode) -> None:
    opened(node)
    sent: list[str] = []
    page.on(
        "request", lambda asked: sent.append(f"{asked.url.split('#')[0]} {asked.headers} {asked.post_data}")
    )
    page.goto(f"{url}/invite/{INVITE}#{TICKET}")
    expect(page.get_by_role("heading", name="Join Fritz' <b>Netz</b>")).to_be_visible()
    expect(page.get_by_text("studio invites one device")).to_be_visible()
    commands = page.locator("pre")
    expect(commands.first).to_have_text(f"p2pnode join {TICKET}")
    linux = commands.nth(1)
    expect(linux).to_contain_text(f"curl -fsSo p2pnode.tar.gz {url}/invite/{INVITE}/p2pnode.tar.gz")
    expect(linux).to_contain_text("sha256sum -c")
    expect(linux).to_contain_text(f".venv/bin/p2pnode join {TICKET}")
    expect(commands.nth(2)).to_contain_text("shasum -a 256 -c")
    expect(page.get_by_role("img", name="This invite as a QR code")).to_be_visible()
    assert page.locator("svg.qr path").get_attribute("d")
    picture(page, "invite")
    assert len(sent) > 5
    assert TICKET[10:40] not in "".join(sent)


@pytest.mark.parametrize(
    ("link", "state", "words"),
    [
        (f"{INVITE}#{TICKET}", "used", "used up, expired or revoked"),
        (f"{INVITE}#{TICKET[:-3]}", "open", "damaged or cut short"),
        (f"{INVITE}#", "open", "holds no ticket"),
        (f"{'0' * 32}#{TICKET}", "open", "belongs to another link"),
    ],
)
def test_a_link_that_leads_nowhere_says_why(
    refused: Page, url: str, node: RecordedNode, link: str, state: str, words: str
) -> None:
    opened(node, state)
    refused.goto(f"{url}/invite/{link}")
    expect(refused.get_by_role("alert")).to_contain_text(words)
    expect(refused.locator("pre")).to_have_count(0)


def test_the_panel_makes_a_link_or_says_what_to_open(refused: Page, url: str) -> None:
    page = refused
    page.goto(f"{url}/#/devices")
    page.get_by_label("As a link to a page").check()
    with page.expect_response("**/invites?*") as answered:
        page.get_by_role("button", name="Make an invite").click()
    assert answered.value.status == 400
    expect(page.get_by_role("alert")).to_contain_text("so no other device can open a page of it")
    expect(page.get_by_role("alert")).to_contain_text("--api 0.0.0.0:")
