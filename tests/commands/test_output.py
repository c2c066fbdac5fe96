from __future__ import annotations

import io
import logging
import threading

import pytest

from localsteer.commands.output import Thoughts, print_folded_table, warnings_told

HEADERS = ("name", "from", "description")
TEXT = "Cheerful, delighted and hopeful against sad, gloomy and hopeless."


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line.strip() for line in capsys.readouterr().out.splitlines() if line.strip()]


def test_a_table_that_fits_has_one_line_a_row(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    print_folded_table(HEADERS, [("happy", "shipped", TEXT)])
    assert lines(capsys)[-1].split() == ["happy", "shipped", *TEXT.split()]
    print_folded_table(HEADERS, [])
    assert lines(capsys)[0].split() == list(HEADERS)


def test_the_last_column_goes_below_where_it_does_not_fit(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    print_folded_table(HEADERS, [("happy", "shipped", TEXT), ("[b]odd", "yours", "")])
    header, _, *rows = lines(capsys)
    assert header.split() == ["name", "from"]
    assert rows[0].split() == ["happy", "shipped"]
    assert " ".join(rows[1:-1]) == TEXT
    assert rows[-1].split() == ["[b]odd", "yours"]


def test_no_word_is_cut_where_columns_must_be_narrower(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    row = ("a-weary-sea-captain", "weary sea captain", "ordinary person", "yours, hides the shipped one", "not built yet", TEXT)
    print_folded_table(("name", "+", "-", "from", "vector", "description"), [row])
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert set(" ".join(row).split()) <= set(printed.split())
    assert max(map(len, printed.splitlines())) <= 80


@pytest.mark.parametrize(
    ("shown", "parts", "out", "remark"),
    [
        (True, (["So", " on."], ["Be", "cause."]), "Thinking...\nSo on.\n...done thinking.\n\nBecause.\n", False),
        (False, (["So", " on."], ["Be", "cause."]), "Because.\n", False),
        (True, ([], ["Because."]), "Because.\n", False),
        (True, (["So"], []), "Thinking...\nSo\n...done thinking.\n\n", True),
        (False, (["So"], []), "", True),
        (False, ([], []), "\n", False),
    ],
)
def test_thoughts_are_apart_from_the_answer(
    capsys: pytest.CaptureFixture[str], shown: bool, parts: tuple[list[str], list[str]], out: str, remark: bool
) -> None:
    thoughts = Thoughts(shown=shown)
    for piece in parts[0]:
        thoughts.think(piece)
    for piece in parts[1]:
        thoughts.answer(piece)
    thoughts.end()
    printed = capsys.readouterr()
    assert printed.out == out
    assert ("--max-tokens" in printed.err) == remark


def test_beside_a_prompt_warnings_are_told_and_details_are_not() -> None:
    logger, written, told = logging.getLogger("localsteer"), io.StringIO(), list[str]()
    handler, level = logging.StreamHandler(written), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        with warnings_told(told.append):
            logger.warning("Mind the gap.")
            logger.debug("A detail")
        logger.warning("Afterwards")
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    assert told == ["Mind the gap."]
    assert written.getvalue() == "A detail\nAfterwards\n"


def test_who_waits_while_a_warning_is_told_may_warn_as_well() -> None:
    """As the thread of a prompt, which shows what another one tells."""
    logger, told, waited = logging.getLogger("localsteer"), list[str](), list[bool]()

    def tell(text: str) -> None:
        told.append(text)
        if text == "first":
            prompt = threading.Thread(target=logger.warning, args=("second",), daemon=True)
            prompt.start()
            prompt.join(10)
            waited.append(prompt.is_alive())

    with warnings_told(tell):
        logger.warning("first")
    assert told == ["first", "second"]
    assert waited == [False]
