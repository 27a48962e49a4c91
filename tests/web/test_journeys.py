"""What a person does in the panel, in Debian's Chromium; any message on the console is a failure.

P2PNODE_SCREENS=folder keeps a picture of every page there.
"""

from __future__ import annotations

import asyncio
import base64
import os
import re
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, Page, expect, sync_playwright

from p2pnode.api.keys import MemoryKeys
from p2pnode.api.security import ApiSecurity
from p2pnode.errors import StageLost
from p2pnode.events.fraud import fraud_from_trees, parse_fraud_file
from tests.kit.api_server import serving
from tests.kit.fake_node import PEER, PEER_TWO
from tests.kit.log_trees import Tree
from tests.kit.recorded_node import RecordedNode

pytestmark = pytest.mark.slow
ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
ANSWER = "The **mesh** computed this:\n\n1. layers\n2. tokens\n\n<img src=x onerror=alert(1)> [x](javascript:alert(1))"


@pytest.fixture
def node() -> RecordedNode:
    return RecordedNode(ANSWER)


@pytest.fixture
def security() -> ApiSecurity:
    return ApiSecurity(console=True)


@pytest.fixture
def url(node: RecordedNode, security: ApiSecurity, tmp_path: Path) -> Iterator[str]:
    with serving(node, security, inside=node.recording(tmp_path)) as url:
        yield url


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrowserContext]:
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            str(tmp_path_factory.mktemp("profile")),
            executable_path=os.environ.get("P2PNODE_CHROMIUM", "/usr/bin/chromium"),
            args=ARGUMENTS,
            viewport={"width": 1200, "height": 850},
        )
        yield context
        context.close()


@pytest.fixture
def page(browser: BrowserContext, url: str) -> Iterator[Page]:
    del url  # the server must outlive the page
    page = browser.new_page()
    page.set_default_timeout(10_000)
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    yield page
    if page.url.startswith("http"):
        page.evaluate("localStorage.clear()")
    page.close()
    assert said == []


def picture(page: Page, name: str) -> None:
    folder = os.environ.get("P2PNODE_SCREENS")
    if folder:
        page.screenshot(path=f"{folder}/{name}.png")


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


def test_a_trace_is_saved(page: Page, url: str, node: RecordedNode) -> None:
    """The way of an answer is a file for Perfetto; one that is not kept any more is said."""
    page.goto(f"{url}/#/chat")
    page.get_by_label("Your message").fill("hello")
    page.keyboard.press("Enter")
    page.get_by_text("Who computed this").click()
    node.trace = lambda request_id: {"traceEvents": []}  # type: ignore[method-assign]
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save the trace").click()
    assert saved.value.suggested_filename.endswith(".trace.json")


def test_attention(page: Page, url: str, node: RecordedNode) -> None:
    """A lost device is the one thing that needs a person, with a way there."""
    peers = node.peers()
    peers["peers"][1].update(state="offline", last_seen_ms=1)
    node.peers = lambda: peers  # type: ignore[method-assign]
    page.goto(url)
    notice = page.get_by_text(re.compile("kitchen is offline"))
    expect(notice).to_be_visible()
    page.get_by_role("link", name="Devices").last.click()
    expect(page.get_by_role("heading", name="kitchen offline")).to_be_visible()
    expect(page.get_by_role("button", name="Forget")).to_be_visible()


def test_chat(page: Page, url: str, node: RecordedNode) -> None:
    """An answer streams, is rendered safely, says its speed and who computed it."""
    page.goto(f"{url}/#/chat")
    page.get_by_label("Your message").fill("hello")
    page.keyboard.press("Enter")
    expect(page.locator(".markdown strong")).to_have_text("mesh")
    expect(page.locator(".markdown li")).to_have_count(2)
    assert page.locator(".markdown img, .markdown a").count() == 0
    expect(page.locator(".facts")).to_contain_text("tokens/s")
    page.get_by_text("Who computed this").click()
    expect(page.locator(".who")).to_contain_text("kitchen")
    picture(page, "chat")
    page.get_by_role("button", name="Regenerate").click()
    expect(page.get_by_role("button", name="Stop")).to_have_count(0)
    expect(page.get_by_text("Who computed this")).to_be_visible()
    assert len(node.requests) == 2
    page.reload()
    expect(page.locator(".markdown strong")).to_have_text("mesh")


def test_an_answer_goes_on_behind_other_pages(page: Page, url: str, node: RecordedNode) -> None:
    """Whoever looks at the devices meanwhile finds the whole answer when they come back; Stop still stops it."""
    page.goto(f"{url}/#/chat")
    node.hold.clear()
    page.get_by_label("Your message").fill("hello")
    page.keyboard.press("Enter")
    expect(page.locator(".markdown")).to_contain_text("The")
    page.get_by_role("link", name="Home").click()
    expect(page.locator(".pulse")).to_be_visible()
    assert (len(node.requests), node.cancelled) == (1, 0)
    page.get_by_role("link", name="Chat").click()
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    node.loop.call_soon_threadsafe(node.hold.set)
    expect(page.locator(".markdown li")).to_have_count(2)
    expect(page.get_by_role("button", name="Stop")).to_have_count(0)


def test_a_second_tab_follows(page: Page, browser: BrowserContext, url: str) -> None:
    """Two tabs show one conversation, and neither overwrites what the other asked."""
    page.goto(f"{url}/#/chat")
    other = browser.new_page()
    other.goto(f"{url}/#/chat")
    for number, tab in enumerate((page, other, page)):
        tab.get_by_label("Your message").fill(f"question {number}")
        tab.keyboard.press("Enter")
        for each in (page, other):
            expect(each.locator(".message.assistant")).to_have_count(number + 1)
            expect(each.get_by_text(f"question {number}")).to_be_visible()
    other.close()


def test_a_failed_answer_is_not_told_again(page: Page, url: str, node: RecordedNode) -> None:
    """The next question goes out without the one that failed: templates want two sides that take turns."""
    page.goto(f"{url}/#/chat")
    node.fail_after = (0, StageLost("the device with layers 4-7 is gone"))
    page.get_by_label("Your message").fill("lost")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("layers 4-7")
    node.fail_after = None
    page.get_by_label("Your message").fill("found")
    page.keyboard.press("Enter")
    expect(page.locator(".markdown strong")).to_have_text("mesh")
    prompt = str(node.requests[-1].prompt)
    assert "found" in prompt
    assert "lost" not in prompt


def test_stop(page: Page, url: str, node: RecordedNode) -> None:
    """Stop ends the answer and the work behind it."""
    node.hold.clear()
    page.goto(f"{url}/#/chat")
    page.get_by_label("Your message").fill("hello")
    page.get_by_role("button", name="Send").click()
    expect(page.locator(".markdown")).to_be_visible()
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_text("Stopped.")).to_be_visible()
    for _ in range(50):
        if node.cancelled:
            break
        page.wait_for_timeout(20)
    assert node.cancelled == 1


def test_broken_answer(page: Page, url: str, node: RecordedNode) -> None:
    """A failure in the middle is said, and what came before stays."""
    node.fail_after = (2, StageLost("kitchen is gone", hint="try again"))
    page.goto(f"{url}/#/chat")
    page.get_by_label("Your message").fill("hello")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("kitchen is gone")
    expect(page.locator(".markdown")).to_be_visible()


def test_mode_is_kept(page: Page, url: str, node: RecordedNode) -> None:
    """The chosen mode is sent, and still chosen after a reload."""
    page.goto(f"{url}/#/chat")
    page.get_by_role("combobox", name="Mode", exact=True).select_option("pipeline")
    page.reload()
    expect(page.get_by_role("combobox", name="Mode", exact=True)).to_have_value("pipeline")
    page.get_by_label("Your message").fill("hello")
    page.keyboard.press("Enter")
    expect(page.locator(".facts")).to_be_visible()
    assert node.requests[-1].mode == "pipeline"


def test_plan(page: Page, url: str, node: RecordedNode) -> None:
    """A preview with reasons and rejections, sliders that ask again, and one button to apply."""
    page.goto(f"{url}/#/plans")
    expect(page.get_by_text("fits on two devices")).to_be_visible()
    page.get_by_text("Not chosen, and why").click()
    expect(page.get_by_text("needs 9.1 GB, 6.2 free")).to_be_visible()
    page.get_by_label(re.compile("^Stages")).fill("2")
    page.get_by_role("checkbox", name="kitchen").check()
    page.get_by_role("button", name="Apply this plan").click()
    expect(page.get_by_text("In use.")).to_be_visible()
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
    node.models = lambda: models  # type: ignore[method-assign]
    page.goto(f"{url}/#/models")
    expect(page.get_by_text("Loading on studio")).to_be_visible()
    expect(page.get_by_text("42 %", exact=True)).to_be_visible()
    expect(page.get_by_text("50 % · 4.5 MB of 9.0 MB · 1 min 15 s to go")).to_be_visible()
    picture(page, "models")
    page.get_by_label("Copy to").select_option("kitchen")
    page.get_by_role("button", name="Copy", exact=True).click()
    expect(page.get_by_text(re.compile("^On "))).to_be_visible()
    assert node.commands[-1] == ("copy_model", {"model": "p2pnode-demo", "device": PEER_TWO})


def test_a_cold_model_in_chat(page: Page, url: str, node: RecordedNode) -> None:
    """While the model loads, the answer's place says where and how far; then the answer comes."""
    view = {"state": "loading", "node": "kitchen", "progress": 0.25, "eta_s": None}
    node.loading_views["p2pnode-demo"] = view
    page.goto(f"{url}/#/chat")
    page.get_by_label("Your message").fill("hello")
    page.keyboard.press("Enter")
    expect(page.get_by_text("Loading on kitchen")).to_be_visible()
    expect(page.get_by_role("progressbar")).to_have_js_property("value", 0.25)
    node.loading_views.clear()
    node.loop.call_soon_threadsafe(node.loaded.set)
    expect(page.locator(".markdown strong")).to_have_text("mesh")


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


def test_audit(page: Page, url: str) -> None:
    """The checkpoint and an entry are verified in the browser; the path is drawn; time travel works."""
    page.goto(f"{url}/#/audit")
    expect(
        page.get_by_text(re.compile("identity, keys and signature verified in this browser"))
    ).to_be_visible()
    page.get_by_role("link", name="3", exact=True).click()
    expect(page.get_by_role("heading", name=re.compile("✓ Entry 3"))).to_be_visible()
    expect(page.locator(".path li")).to_have_count(5)
    picture(page, "audit")
    page.get_by_label(re.compile("^As it was at size")).fill("4")
    expect(page.locator("tbody tr")).to_have_count(4)
    page.get_by_label("Contains").fill("nothing like this")
    expect(page.locator("tbody tr")).to_have_count(0)


def test_witnesses(page: Page, url: str, node: RecordedNode) -> None:
    """Who cosigned is checked in the browser; a forged line, a fraud and a doubt are seen."""
    page.goto(f"{url}/#/audit")
    expect(page.get_by_text("Nobody has cosigned this log yet")).to_be_visible()

    def do(work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, node.loop).result(10)

    witness = do(node.cosign(2))
    do(node.ledger.log.seal())
    do(node.cosign(2))
    page.reload()
    row = page.get_by_role("article", name="Witnesses").get_by_role("row").nth(1)
    expect(row).to_contain_text("✓ signature")
    picture(page, "witnesses")
    honest = node.queries.ask

    def forged(name: str, arguments: dict) -> object:
        answer = honest(name, arguments)
        if name == "witnesses":
            note, last = answer["checkpoint"].rstrip("\n").rsplit(" ", 1)
            line = bytearray(base64.b64decode(last))
            line[-1] ^= 1
            return {**answer, "checkpoint": f"{note} {base64.b64encode(line).decode()}\n"}
        return answer

    node.log_query = forged  # type: ignore[method-assign]
    page.reload()
    expect(row).to_contain_text("is false")
    node.log_query = honest  # type: ignore[method-assign]
    honest_tree, forked_tree = Tree(40), Tree(40, fork_at=10)
    proof = fraud_from_trees(honest_tree.signed(20), forked_tree.signed(37), honest_tree, forked_tree)
    assert do(node.ledger.log.convict(proof))
    node.doubts.append(
        {"peer": witness.peer, "origin": "p2pnode/x", "sizes": [3, 9], "why": "no tree", "time_ms": 0}
    )
    page.reload()
    expect(page.get_by_role("alert")).to_contain_text("signed two histories of its log")
    expect(page.get_by_text("do not fit together")).to_be_visible()
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save the proof").click()
    assert parse_fraud_file(saved.value.path().read_text()) == proof


def test_rotated_keys(page: Page, url: str, node: RecordedNode) -> None:
    """The browser follows the log to its new keys, and still proves what the old ones sealed."""
    page.goto(f"{url}/#/audit")
    expect(page.get_by_text(re.compile("verified in this browser"))).to_be_visible()
    for _ in range(2):
        asyncio.run_coroutine_threadsafe(node.ledger.log.rotate_keys(), node.loop).result(10)
    page.goto(f"{url}/#/audit/3")
    page.reload()
    expect(page.get_by_text("It contains everything this browser saw before")).to_be_visible()
    expect(page.get_by_role("heading", name=re.compile("✓ Entry 3"))).to_be_visible()


def test_forged_record(page: Page, url: str, node: RecordedNode) -> None:
    """A changed entry is caught by the browser, not by the node."""
    honest = node.queries.ask

    def forged(name: str, arguments: dict) -> object:
        answer = honest(name, arguments)
        if name == "event" and arguments.get("index") == 3:
            return {**answer, "entry": answer["entry"][:-2] + "00"}
        return answer

    node.log_query = forged  # type: ignore[method-assign]
    page.goto(f"{url}/#/audit/3")
    expect(page.get_by_role("alert")).to_contain_text("another root")


def test_rollback(page: Page, url: str, tmp_path: Path) -> None:
    """A log that is shorter than what this browser saw is an alarm."""
    page.goto(f"{url}/#/audit")
    expect(page.get_by_text(re.compile("verified in this browser"))).to_be_visible()
    page.evaluate(
        "for (const key of Object.keys(localStorage)) if (key.startsWith('p2pnode.checkpoint.'))"
        " localStorage.setItem(key, JSON.stringify({...JSON.parse(localStorage.getItem(key)), size: 9999}))"
    )
    page.reload()
    expect(page.get_by_role("alert")).to_contain_text("had 9999 entries before")


def test_invite(page: Page, url: str) -> None:
    """An invite shows the command to copy and a QR code."""
    page.goto(f"{url}/#/devices")
    page.get_by_role("button", name="Make an invite").click()
    expect(page.locator("pre")).to_have_text("p2pnode join p2p1-TEST")
    expect(page.get_by_alt_text("The ticket as a QR code")).to_be_visible()
    assert page.locator(".qr").evaluate("image => image.naturalWidth") > 50
    picture(page, "devices")


def test_approval(page: Page, url: str, node: RecordedNode) -> None:
    """A device that asks to be let in is named with its match code, and let in by one button."""
    peers = node.peers()
    peers["peers"].append(
        {"peer": "12D3KooWPhone", "name": "phone", "state": "pending", "match_code": "417 902", "self": False}
    )
    node.peers = lambda: peers  # type: ignore[method-assign]
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
    node.options = lambda: {"settings": [row]}  # type: ignore[method-assign]
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
