"""Every link between the Markdown files leads somewhere, and every page is led to."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from handbook.links import ROOT, anchors, links, reached, slug

PAGES = [file for file in reached() if file.suffix == ".md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_a_file_and_a_heading(page: Path) -> None:
    for link in links(page):
        where = f"{page.relative_to(ROOT)}, line {link.line}: {link.target}"
        if link.file is None:
            assert link.target.startswith(("https://", "http://127.0.0.1:", "mailto:")), where
            continue
        assert link.file.is_relative_to(ROOT), where
        assert link.file.is_file(), f"{where} is no file"
        if link.anchor and link.file.suffix == ".md":
            assert link.anchor in anchors(link.file), f"{where} has no such heading"


def test_every_page_of_the_documentation_can_be_reached_from_the_readme() -> None:
    alone = set((ROOT / "docs").glob("*.md")) - set(PAGES)
    assert not alone


def test_every_picture_is_shown_somewhere() -> None:
    pictures = {file for kind in ("svg", "png") for file in (ROOT / "docs").rglob(f"*.{kind}")}
    assert not pictures - set(reached())


def test_the_site_has_every_page_in_its_menu() -> None:
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    missing = [page for page in PAGES if str(page.relative_to(ROOT)) not in menu and page.parent.parent.name != "vectors"]
    assert not missing


def test_a_heading_becomes_the_anchor_that_code_hosts_make() -> None:
    assert slug("Anthropic's messages") == "anthropics-messages"
    assert slug("`llama.cpp`, and others") == "llamacpp-and-others"
    assert slug("What is lost - and what not") == "what-is-lost---and-what-not"


def test_a_broken_link_and_a_missing_heading_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One\n\n[there](#one) [gone](#two) ![picture](gone.png) [out](https://example.org/#x)\n", encoding="utf-8")
    there, gone, picture, out = links(page)
    assert there.file == page
    assert there.anchor in anchors(page)
    assert gone.anchor not in anchors(page)
    assert picture.file is not None
    assert not picture.file.exists()
    assert out.file is None


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no checkout")
def test_no_page_names_a_registry_of_packages() -> None:
    found = subprocess.run(
        ["git", "-C", str(ROOT), "grep", "--line-number", "-E", r"pypi\.org|npmjs\.com|pythonhosted", "--", "*.md"],
        capture_output=True,
        text=True,
    )
    assert (found.returncode, found.stdout) == (1, "")  # 1: nothing found
