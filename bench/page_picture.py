"""The picture of the server's page in the README: `python -m bench.page_picture -m MODEL`, of a real answer of that model."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).parent.parent
TARGET = ROOT / "docs" / "page.png"
SIZE = {"width": 1400, "height": 900}
QUESTION = "Give me three short tips for a rainy Sunday, as a list, and one line of Python that prints the best one."
# What the picture shows is one conversation, not a choice among many: the first seed, and what fits on it.
SEED, LONGEST = 1, 150
# An answer on two slow cores, and a vector that has to be built first.
PATIENCE = 900_000


@contextlib.contextmanager
def server(model: str) -> Iterator[str]:
    """Serve a model; gives the page's address."""
    command = [sys.executable, str(ROOT / "cli.py"), "serve", "-m", model, "--port", "0", "--json", "--context", "4096"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as running:
        assert running.stdout is not None
        try:
            document = "".join(iter(running.stdout.readline, "}\n"))
            yield json.loads(f"{document}}}")["url"]
        finally:
            running.terminate()


def take(page: Page, expression: str) -> None:
    """Ask side by side, and take the picture when all is answered."""
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Longest answer, tokens").fill(str(LONGEST))
    page.get_by_label("Seed").fill(str(SEED))
    page.keyboard.press("Escape")
    page.get_by_label("Expression").fill(expression)
    page.get_by_label("Side by side").check()
    page.get_by_label("Message", exact=True).fill(QUESTION)
    page.keyboard.press("Enter")
    page.locator("#log[aria-busy=true]").wait_for()
    page.locator("#log[aria-busy=false]").wait_for(timeout=PATIENCE)
    page.get_by_role("button", name="Why").last.click()
    page.locator("#log").evaluate("log => (log.scrollTop = 0)")
    page.screenshot(path=TARGET)


def main() -> None:
    """Take it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("-s", "--steering", default="happy")
    options = parser.parse_args()
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with server(options.model) as url, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
        page = browser.new_page(viewport=SIZE, color_scheme="light")  # type: ignore[arg-type]
        page.goto(url)
        page.locator(".knob").nth(3).wait_for()
        take(page, options.steering)
        browser.close()


if __name__ == "__main__":
    main()
