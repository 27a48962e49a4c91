"""A page of the panel in Debian's Chromium, served by a node with a record; what its console says is a failure."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Page, sync_playwright

from p2pnode.api.security import ApiSecurity
from tests.kit.api_server import serving
from tests.kit.recorded_node import RecordedNode

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
