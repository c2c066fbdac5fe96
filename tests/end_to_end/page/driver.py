"""What tests of the page have in common; without a browser they are skipped."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("The page is tried in Debian's chromium, which is not installed.", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api", reason="The page is driven by playwright, which is not installed.")
expect = playwright.expect
expect.set_options(timeout=15_000)  # of a machine that is busy

QUESTION = "How was your day?"


def ask(page: Page, text: str = QUESTION) -> None:
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")
    expect(page.locator(".turn").last.locator(".facts").last).to_contain_text("seed")


def knob(page: Page, name: str) -> Any:
    return page.locator(".knob").filter(has=page.get_by_role("slider", name=name, exact=True))
