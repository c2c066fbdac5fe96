"""What the Tab key offers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

from localsteer.chat.commands import COMMANDS
from localsteer.chat.completion import SessionCompleter
from localsteer.engine.generate import Generator
from localsteer.llama.model import Model
from tests.chat.test_commands import session_with


@pytest.fixture
def completer(tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SessionCompleter]:
    (tmp_path / "notes.txt").write_text("text")
    monkeypatch.chdir(tmp_path)
    with Generator(tiny) as generator:
        yield SessionCompleter(session_with(generator))


def offered(completer: SessionCompleter, text: str) -> list[str]:
    """The lines that may come of a line."""
    document = Document(text)
    return [text[: len(text) + one.start_position] + one.text for one in completer.get_completions(document, CompleteEvent())]


def test_commands_at_the_beginning(completer: SessionCompleter) -> None:
    assert offered(completer, "/") == list(COMMANDS)
    assert offered(completer, "/und") == ["/undo"]
    assert offered(completer, "/nosuch") == []
    assert offered(completer, "undo /un") == []
    assert offered(completer, "/undo\n/un") == []


def test_names_of_vectors_wherever_one_may_stand(completer: SessionCompleter) -> None:
    for begun in ("/steer ", "/steer 0.5 ", "/steer -", "/steer happy + 0.3 ", "/steer !", "/watch ", "/sweep ", "/heat "):
        assert offered(completer, f"{begun}pira") == [f"{begun}pirate"]
    assert offered(completer, "/undo pira") == []
    (one,) = completer.get_completions(Document("/steer pira"), CompleteEvent())
    assert one.display_meta_text == "built at first use"


def test_files_where_one_is_asked_for(completer: SessionCompleter) -> None:
    assert offered(completer, "/file no") == ["/file notes.txt"]
    assert offered(completer, "/steer ./no") == ["/steer ./notes.txt"]
    assert offered(completer, "/file nosuch/") == []


def test_models_that_are_there(completer: SessionCompleter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert offered(completer, "/model nosuch") == []
