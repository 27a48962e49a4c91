"""Conversations in the panel: answers that stream, load, stop, break and go on behind other pages."""

from __future__ import annotations

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from p2pnode.errors import StageLost
from tests.kit.pictures import picture
from tests.kit.recorded_node import RecordedNode

pytestmark = pytest.mark.slow


def test_a_trace_is_saved(page: Page, url: str, node: RecordedNode) -> None:
    """The way of an answer is a file for Perfetto; one that is not kept any more is said."""
    page.goto(f"{url}/#/chat")
    page.get_by_label("Your message").fill("hello")
    page.keyboard.press("Enter")
    page.get_by_text("Who computed this").click()
    node.shown["trace"] = {"traceEvents": []}
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save the trace").click()
    assert saved.value.suggested_filename.endswith(".trace.json")


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
    assert node.was_cancelled.wait(10), "the work goes on"
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
