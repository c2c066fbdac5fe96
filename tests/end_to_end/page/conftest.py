"""The page in a real browser, against a server with canned answers."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from tests.server.fake_page_api import FakeApi, serve

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from tests.end_to_end.page.driver import CHROMIUM, playwright  # which skips a module's tests where it cannot be had

    with playwright.sync_playwright() as started:
        # A sandbox inside a container that runs as root cannot be had.
        args = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = started.chromium.launch(executable_path=CHROMIUM, args=args)
        yield browser
        browser.close()


@pytest.fixture
def api() -> FakeApi:
    return FakeApi()


@pytest.fixture
def page_url(api: FakeApi) -> Iterator[str]:
    with serve(api) as url:
        yield url


Opened = Callable[..., "Page"]


@pytest.fixture
def opened(browser: Browser, page_url: str) -> Iterator[Opened]:
    """Opens the page; what it complains about, and whom else it asks, fails the test."""
    complaints: list[str] = []
    contexts: list[BrowserContext] = []

    def hear(message: ConsoleMessage) -> None:
        if message.type == "error":
            complaints.append(message.text)

    def watch(request: Request) -> None:
        if not request.url.startswith(page_url):
            complaints.append(f"asked {request.url}")

    def open_page(**options: Any) -> Page:
        context = browser.new_context(**{"permissions": ["clipboard-read", "clipboard-write"], **options})
        contexts.append(context)
        page = context.new_page()
        page.on("console", hear)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", watch)
        page.goto(page_url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    # A browser writes every refusal into its console; those that a test asks for are no mistake.
    assert [text for text in complaints if not re.search(r"status of (400|401|429)", text)] == []


@pytest.fixture
def page(opened: Opened) -> Page:
    page = opened()
    page.locator(".knob").nth(3).wait_for()
    return page
