"""Pages and plots that programs write say what the code and the measurements say now."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import click
import pytest

import localsteer
from handbook import api, commands, comparison, plots

AGAIN = "is out of date: run `make handbook`."


def test_the_help_pages_are_those_of_the_commands() -> None:
    assert commands.PAGE.read_text(encoding="utf-8") == commands.page(), f"docs/commands.md {AGAIN}"


def test_every_command_and_every_option_is_on_the_page() -> None:
    page = commands.PAGE.read_text(encoding="utf-8")
    found = dict(commands.leaves())
    assert {
        "localsteer generate",
        "localsteer vectors import",
        "localsteer policy fit",
        "localsteer history path",
    } <= found.keys()
    for name, one in found.items():
        assert f"\n## {name}\n" in page
        for option in one.params:
            assert not isinstance(option, click.Option) or all(f"`{name}" in page for name in option.opts), option


def test_the_api_page_is_what_the_docstrings_say() -> None:
    assert api.PAGE.read_text(encoding="utf-8") == api.page(), f"docs/api.md {AGAIN}"


def test_every_public_name_is_explained() -> None:
    page = api.PAGE.read_text(encoding="utf-8")
    for name in localsteer.__all__:
        assert re.search(rf"### {name}\n\n(```python\n[^`]*```\n\n)?[\w`]", page), f"{name} says nothing"


def test_a_public_name_that_is_in_no_group_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(localsteer, "__all__", [*localsteer.__all__, "unheard_of"])
    with pytest.raises(ValueError, match="unheard_of"):
        api.page()


@pytest.mark.parametrize("name", plots.plots())
def test_the_plots_show_what_was_measured(name: str) -> None:
    text = (plots.FOLDER / name).read_text(encoding="utf-8")
    assert text == plots.plots()[name], f"docs/plots/{name} {AGAIN}"
    ElementTree.fromstring(text)
    assert len(text) < 40_000


def test_the_comparison_has_the_figures_that_were_measured() -> None:
    text = comparison.PAGE.read_text(encoding="utf-8")
    assert text == comparison.with_figures(text), f"docs/comparison.md {AGAIN}"
