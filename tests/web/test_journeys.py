"""What a person does in the panel, in Debian's Chromium; any message on the console is a failure."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from p2pnode.api.keys import MemoryKeys
from p2pnode.api.security import ApiSecurity
from p2pnode.units import PeerId
from tests.kit.api_server import serving
from tests.kit.fake_node import PEER, PEER_TWO, link_row
from tests.kit.pictures import picture
from tests.kit.recorded_node import RecordedNode

pytestmark = pytest.mark.slow

BEYOND_ITS_CARD = """[...document.querySelectorAll(".card *")].filter((one) => {
  const edge = one.closest(".card").getBoundingClientRect().right;
  return one.getBoundingClientRect().right > edge + 1 && !one.closest(".scroll, svg, .sr");
}).map((one) => one.outerHTML.slice(0, 80))"""


def test_home(page: Page, url: str) -> None:
    """The pulse, both devices, and who holds which layers."""
    page.goto(url)
    expect(page.get_by_role("status").first).to_contain_text("2 devices · 1 plan")
    expect(page.get_by_role("img", name=re.compile("^Devices: studio, kitchen"))).to_be_visible()
    expect(page.get_by_role("img", name="studio: layers 0–3; kitchen: layers 4–7").first).to_be_visible()
    picture(page, "home")


def test_the_active_hop_moves(page: Page, url: str, node: RecordedNode) -> None:
    """While an answer is written, the stage at work moves along the ring and each hop says what it takes."""
    hops = [
        {
            "stage": "0",
            "peer": PEER,
            "name": "studio",
            "layers": [0, 4],
            "steps": 9,
            "step_ms": 1.5,
            "busy": 0.4,
        },
        {
            "stage": "1",
            "peer": PEER_TWO,
            "name": "kitchen",
            "layers": [4, 8],
            "steps": 9,
            "step_ms": 3.25,
            "busy": 0.6,
        },
        {
            "stage": "output",
            "peer": PEER,
            "name": "studio",
            "layers": [0, 0],
            "steps": 9,
            "step_ms": 0.25,
            "busy": 0.1,
        },
    ]
    data = {"plan_id": "p1", "model": "p2pnode-demo", "hops": hops, "token_ms": 6.0, "rest_ms": 1.0}
    node.live_items = [{"kind": "hops", "data": data}]
    page.goto(url)
    expect(page.get_by_text("layers 4–7 · 3.3 ms")).to_be_visible()
    expect(page.get_by_role("figure", name=re.compile("wires and waiting: 1.00 ms"))).to_be_visible()
    expect(page.locator(".device.tone-0.is-active")).to_be_visible()
    expect(page.locator(".device.tone-1.is-active")).to_be_visible()
    picture(page, "hops")
    expect(page.get_by_text("Where the time went")).to_be_visible()
    expect(page.locator(".device.is-active")).to_have_count(0)


def test_attention(page: Page, url: str, node: RecordedNode) -> None:
    """A lost device is the one thing that needs a person, with a way there."""
    peers = node.peers()
    peers["peers"][1].update(state="offline", last_seen_ms=1)
    node.shown["peers"] = peers
    page.goto(url)
    notice = page.get_by_text(re.compile("kitchen is offline"))
    expect(notice).to_be_visible()
    page.get_by_role("link", name="Devices").last.click()
    expect(page.get_by_role("heading", name="kitchen offline")).to_be_visible()
    expect(page.get_by_role("button", name="Forget")).to_be_visible()


def test_a_link_that_works_one_way_only(page: Page, url: str, node: RecordedNode) -> None:
    """Said in words, drawn with an arrow, and explained on the device's card with what was tried."""
    third = PeerId("12D3KooWFakeNodeFakeNodeFakeNodeFakeNodeFakeNodeFake3")
    peers = node.peers()
    peers["peers"].append({**peers["peers"][1], "peer": third, "name": "attic", "rtt_ms": 21.0})
    tried = [{"address": "/ip4/192.168.1.9/udp/9481/quic-v1", "reason": "no answer within 3 s"}]
    peers["links"] = [
        link_row(PEER, PEER_TWO),
        link_row(third, PEER, "unreachable", tried=tried),
        link_row(third, PEER_TWO, "unknown", told_ms=None, told_by=None),
    ]
    node.shown["peers"] = peers
    page.goto(url)
    drawing = page.get_by_role("img", name=re.compile("attic; one way only: attic to studio$"))
    expect(drawing).to_be_visible()
    expect(drawing.locator("polygon.arrow")).to_have_count(1)
    expect(drawing.get_by_text("one way", exact=True)).to_be_visible()
    picture(page, "one-way")
    page.get_by_role("link", name="one way").click()
    card = page.locator("article.chosen")
    with_studio = card.get_by_role("region", name="Link with studio")
    expect(with_studio.locator("li.ok")).to_contain_text("to studio: works, 2.4 ms, last answered")
    expect(with_studio.locator("li.unreachable")).to_contain_text("from studio: not reachable")
    expect(with_studio.locator("li.unreachable")).to_contain_text(
        "/ip4/192.168.1.9/udp/9481/quic-v1 no answer within 3 s"
    )
    expect(card.get_by_role("region", name="Link with kitchen")).to_contain_text("nothing is told of it")
    picture(page, "links")


def test_plan(page: Page, url: str, node: RecordedNode) -> None:
    """A preview with reasons and rejections, sliders that ask again, and one button to apply."""
    page.goto(f"{url}/#/plans")
    expect(page.get_by_text("fits on two devices")).to_be_visible()
    page.get_by_text("Not chosen, and why").click()
    expect(page.get_by_text("needs 9.1 GB, 6.2 free")).to_be_visible()
    page.get_by_label(re.compile("^Stages")).fill("2")
    page.get_by_role("checkbox", name="kitchen").check()
    page.get_by_label(re.compile("^Layers by hand")).fill("studio:0-3, kitch")
    expect(page.get_by_text(re.compile("^Each device with its layers"))).to_be_visible()
    page.get_by_label(re.compile("^Layers by hand")).fill("studio:0-3, kitchen:4-7")
    page.get_by_role("button", name="Apply this plan").click()
    expect(page.get_by_text("In use.")).to_be_visible()
    assert node.plans_asked[-1]["blocks"] == [("studio", 0, 4), ("kitchen", 4, 8)]
    assert node.plans_asked[-1] | {"stages": 2, "devices": ["kitchen"], "apply": True} == node.plans_asked[-1]
    picture(page, "plans")


def test_models(page: Page, url: str) -> None:
    """Each model says its size and who holds it."""
    page.goto(f"{url}/#/models")
    card = page.locator("article", has_text="p2pnode-demo")
    expect(card).to_contain_text("9.0 MB, 8 layers")
    expect(card).to_contain_text("studio, kitchen")
    picture(page, "models")


def test_a_model_is_copied(page: Page, url: str, node: RecordedNode) -> None:
    """A device that lacks a model is told to fetch it; what loads or is fetched says how far it is."""
    models = node.models()
    models["models"][0].update(
        holders=[PEER],
        loading={"state": "loading", "node": "studio", "progress": 0.425, "eta_s": None},
        transfer={"state": "fetching", "node": "kitchen", "progress": 0.5, "eta_s": 75.0, "done_bytes": 4_500_000,
                  "total_bytes": 9_000_000},
    )  # fmt: skip
    node.shown["models"] = models
    page.goto(f"{url}/#/models")
    expect(page.get_by_text("Loading on studio")).to_be_visible()
    expect(page.get_by_text("42 %", exact=True)).to_be_visible()
    expect(page.get_by_text("50 % · 4.5 MB of 9.0 MB · 1 min 15 s to go")).to_be_visible()
    picture(page, "models")
    page.get_by_label("Copy to").select_option("kitchen")
    page.get_by_role("button", name="Copy", exact=True).click()
    expect(page.get_by_text(re.compile("^On "))).to_be_visible()
    assert node.commands[-1] == ("copy_model", {"model": "p2pnode-demo", "device": PEER_TWO})


def test_billing(page: Page, url: str) -> None:
    """A top up changes the balance, and its booking leads to the event."""
    page.goto(f"{url}/#/billing")
    expect(page.locator(".figure").first).to_contain_text("5 units")
    top_up = page.locator("form").filter(has_text="Top up")
    top_up.get_by_label("Units").fill("0.25")
    top_up.get_by_role("button", name="Add").click()
    expect(page.locator(".figure").first).to_contain_text("5.25 units")
    limit = page.locator("form").filter(has_text="Quota of local")
    limit.get_by_label("Units").fill("0.5")
    limit.get_by_label("each").select_option("week")
    limit.get_by_role("button", name="Limit").click()
    expect(page.get_by_text("of 0.5 left")).to_be_visible()
    picture(page, "billing")
    limit.get_by_role("button", name="Lift").click()
    expect(page.get_by_text("of 0.5 left")).to_have_count(0)
    page.locator("td a[href^='#/audit/']").last.click()
    expect(page.get_by_role("heading", name=re.compile("Entry .* CreditToppedUp"))).to_be_visible()


def test_invite(page: Page, url: str) -> None:
    """An invite shows the command to copy and a QR code."""
    page.goto(f"{url}/#/devices")
    page.get_by_role("button", name="Make an invite").click()
    expect(page.locator("pre")).to_have_text("p2pnode join p2p1-TEST")
    expect(page.get_by_alt_text("The ticket as a QR code")).to_be_visible()
    assert page.locator(".qr").evaluate("image => image.naturalWidth") > 50
    picture(page, "devices")


def test_who_came_to_join(page: Page, url: str, node: RecordedNode) -> None:
    """Each step of a device that joins, with the reason where it failed, as it happens."""
    steps = [
        {"step": "connected", "state": "ok", "text": "connected from 192.168.1.9, its identity is proven"}
    ]
    row = {"peer": PEER_TWO, "name": "kitchen", "at_ms": 1, "failed": False, "done": False, "steps": steps}
    why = {
        "step": "ticket",
        "state": "failed",
        "text": "this ticket expired (make a new one with: p2pnode invite)",
    }
    failed = {**row, "peer": PEER, "name": "attic", "steps": [*steps, why]}
    view = node.peers()
    node.shown["peers"] = view
    page.goto(f"{url}/#/devices")
    expect(page.get_by_role("heading", name="Devices")).to_be_visible()
    expect(page.get_by_text("Who came to join")).to_have_count(0)
    view["joining"] = [row, failed]
    kitchen = page.get_by_role("region", name="How kitchen joins")
    expect(kitchen.get_by_role("listitem")).to_have_count(1)
    steps.append({"step": "status", "state": "waiting", "text": "waiting for it to connect as a member"})
    expect(kitchen.locator(".waiting")).to_contain_text("waiting for it to connect")
    attic = page.get_by_role("region", name="How attic joins")
    expect(attic.locator(".failed")).to_contain_text("p2pnode invite")
    picture(page, "joining")


def test_approval(page: Page, url: str, node: RecordedNode) -> None:
    """A device that asks to be let in is named with its match code, and let in by one button."""
    peers = node.peers()
    peers["peers"].append(
        {"peer": "12D3KooWPhone", "name": "phone", "state": "pending", "match_code": "417 902", "self": False}
    )
    node.shown["peers"] = peers
    page.goto(url)
    expect(page.get_by_text("phone waits for your approval.")).to_be_visible()
    page.goto(f"{url}/#/devices")
    expect(page.get_by_text("417 902")).to_be_visible()
    page.get_by_role("button", name="Approve").click()
    expect(page.get_by_role("button", name="Approve")).to_be_enabled()
    for _ in range(50):
        if node.commands[-1][0] == "approve_peer":
            break
        page.wait_for_timeout(20)
    assert node.commands[-1] == ("approve_peer", {"peer": "12D3KooWPhone"})


def test_settings_and_keys(page: Page, url: str) -> None:
    """A setting is changed with its history; a key is shown once and revoked."""
    page.goto(f"{url}/#/settings")
    expect(page.get_by_role("cell", name="flag --threads")).to_be_visible()
    page.get_by_role("combobox", name="Setting").fill("model.default")
    page.get_by_label("Value").fill("p2pnode-demo")
    page.get_by_role("button", name="Change").click()
    expect(page.get_by_role("cell", name="p2pnode-demo", exact=True)).to_be_visible()
    page.get_by_role("button", name="Create").click()
    expect(page.get_by_text("Shown this once")).to_be_visible()
    picture(page, "settings")
    page.get_by_role("button", name="Revoke").click()
    expect(page.get_by_text("revoked")).to_be_visible()


def test_launch(page: Page, url: str, node: RecordedNode, security: ApiSecurity) -> None:
    """The console runs a command for an admin key, and the arrows bring it back."""
    _, secret = security.keys.create("panel", "admin", 1)
    row = {"name": "console", "value": True, "origin": "flag --console"}
    node.shown["options"] = {"settings": [row]}
    page.goto(url)
    page.get_by_role("link", name="Launch").click()
    page.get_by_label("Admin key").fill(secret)
    page.get_by_role("button", name="Use it").click()
    page.get_by_label("Command").fill("echo mesh")
    page.keyboard.press("Enter")
    expect(page.locator(".terminal pre")).to_have_text("mesh\n")
    expect(page.get_by_text("exit code 0")).to_be_visible()
    page.get_by_label("Command").press("ArrowUp")
    expect(page.get_by_label("Command")).to_have_value("echo mesh")
    picture(page, "launch")
    page.evaluate("sessionStorage.clear()")


def test_keyboard_and_small_screen(page: Page, url: str) -> None:
    """Everything is reached by keyboard; nothing overflows on a phone; dark is dark."""
    page.emulate_media(color_scheme="dark", reduced_motion="reduce")
    page.set_viewport_size({"width": 390, "height": 800})
    for name in ("home", "chat", "plans", "models", "billing", "audit", "devices", "settings"):
        page.goto(f"{url}/#/{name}")
        expect(page.locator("h1")).to_be_visible()
        page.wait_for_timeout(150)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
        assert page.evaluate(BEYOND_ITS_CARD) == [], name
    page.goto(f"{url}/#/home")
    expect(page.locator(".pulse")).to_contain_text("2 devices")
    picture(page, "phone-dark")
    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to content")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Home")).to_be_focused()


def test_key_is_sent(page: Page, tmp_path: Path) -> None:
    """A node that wants a key is shown the one this tab holds."""
    keys = MemoryKeys()
    _, secret = keys.create("panel", "admin", 1)
    (tmp_path / "guarded").mkdir()
    node = RecordedNode()

    class Guarded(ApiSecurity):
        __slots__ = ()

        @property
        def loopback_only(self) -> bool:
            return False

    with serving(node, Guarded(keys=keys), inside=node.recording(tmp_path / "guarded")) as url:
        page.goto(f"{url}/web/icon.svg")
        page.evaluate(f"sessionStorage.setItem('p2pnode.key', '{secret}')")
        page.goto(url)
        expect(page.get_by_role("status").first).to_contain_text("2 devices")
        page.goto("about:blank")  # the server ends before the page: nothing of it may be left asking
