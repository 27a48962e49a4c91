"""Pictures of the panel: P2PNODE_SCREENS=folder keeps one of every page there."""

from __future__ import annotations

import os

from playwright.sync_api import Page


def picture(page: Page, name: str) -> None:
    folder = os.environ.get("P2PNODE_SCREENS")
    if folder:
        page.screenshot(path=f"{folder}/{name}.png")
