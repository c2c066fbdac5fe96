from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from localsteer.chat.history import History, history_path
from localsteer.chat.transcript import SavedMessage, Transcript, load_transcript, transcript_of
from tests.chat.made_transcript import TRANSCRIPT, asked
from tests.commands.runner import assert_one_clear_line, run

Capture = pytest.CaptureFixture[str]

EVIL = "\x1b]0;owned\x07\x9b31m\x7f"


@pytest.fixture
def _kept() -> None:
    with History() as history:
        history.begin(replace(asked("What is the weather?", "Rain.\n```py\nx = 1\n```"), model="Tiny", steering="0.5 happy"))
        history.begin(TRANSCRIPT)


def pretend_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that knows no escape codes: what there is of them is not rich's."""
    for stream in ("stdin", "stdout"):
        monkeypatch.setattr(f"sys.{stream}.isatty", lambda: True)
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("COLUMNS", "100")


@pytest.mark.parametrize("arguments", [(), ("list",), ("search", "x")], ids=" ".join)
def test_where_nothing_is_kept_nothing_is_made(arguments: tuple[str, ...], capfd: Capture) -> None:
    result = run(capfd, "history", *arguments)
    assert (result.code, result.out) == (0, "")
    assert run(capfd, "history", *arguments, "--json").document == []
    for command in (("show", "1"), ("export", "1", "x.md"), ("delete", "1", "--yes"), ("delete", "--all", "--yes")):
        assert_one_clear_line(run(capfd, "history", *command), "No conversations", "localsteer chat")
    assert not history_path().parent.exists()


@pytest.mark.usefixtures("_kept")
def test_a_pipe_gets_a_plain_line_for_each_newest_first(capfd: Capture) -> None:
    lines = [line.split("\t") for line in run(capfd, "history").out.splitlines()]
    assert [line[0] for line in lines] == ["2", "1"]
    assert lines[1][2:] == ["Tiny", "0.5 happy", "2", "What is the weather?"]
    assert run(capfd, "history", "list").out == run(capfd, "history").out


@pytest.mark.usefixtures("_kept")
def test_a_terminal_gets_a_table(capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_terminal(monkeypatch)
    out = run(capfd, "history").out
    assert out.split()[:5] == ["id", "when", "model", "steering", "messages"]
    assert "What is the weather?" in out
    assert "Rain." in run(capfd, "history", "search", "rain").out


@pytest.mark.usefixtures("_kept")
def test_the_list_as_json(capfd: Capture) -> None:
    newest, oldest = run(capfd, "history", "--json").document
    assert newest["id"] == 2
    assert newest["created"] == TRANSCRIPT.created
    assert (oldest["title"], oldest["model"], oldest["messages"]) == ("What is the weather?", "Tiny", 2)
    result = run(capfd, "history", "list", "--limit", "1", "--json")
    assert result.document == [newest]
    assert "--limit" in result.err  # that there are more is said


@pytest.mark.usefixtures("_kept")
def test_conversations_are_found_by_words(capfd: Capture) -> None:
    assert run(capfd, "history", "search", "RAIN", "weather").out.startswith("1\t")
    (found,) = run(capfd, "history", "search", "paris", "--json").document
    assert (found["id"], found["excerpt"]) == (2, "Paris, ça va!")
    assert run(capfd, "history", "search", "nowhere").out == ""


@pytest.mark.usefixtures("_kept")
def test_one_is_shown_as_markdown_or_json(capfd: Capture) -> None:
    out = run(capfd, "history", "show", "1").out
    assert out.startswith("# What is the weather?\n")
    assert "\n```py\nx = 1\n```\n" in out
    found = transcript_of(run(capfd, "history", "show", "2", "--json").document)
    assert replace(found, updated=TRANSCRIPT.updated) == TRANSCRIPT
    assert_one_clear_line(run(capfd, "history", "show", "7"), "no conversation 7", "localsteer history")
    assert run(capfd, "history", "show", "first").code == 2


@pytest.mark.usefixtures("_kept")
def test_one_is_exported_by_the_ending_of_the_file(tmp_path: Path, capfd: Capture) -> None:
    assert run(capfd, "history", "export", "2", tmp_path / "talk.json").code == 0
    assert load_transcript(tmp_path / "talk.json").messages == TRANSCRIPT.messages
    assert run(capfd, "history", "export", "1", tmp_path / "talk.MD").code == 0
    assert (tmp_path / "talk.MD").read_text() == run(capfd, "history", "show", "1").out
    assert_one_clear_line(run(capfd, "history", "export", "1", tmp_path / "talk.txt"), "talk.txt", ".md", ".json")
    assert_one_clear_line(run(capfd, "history", "export", "7", tmp_path / "seven.md"), "7")
    assert_one_clear_line(run(capfd, "history", "export", "1", tmp_path / "no" / "talk.md"), "cannot be written")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["talk.MD", "talk.json"]


def ids(capfd: Capture) -> list[int]:
    return [entry["id"] for entry in run(capfd, "history", "--json").document]


@pytest.mark.usefixtures("_kept")
def test_without_a_terminal_deleting_takes_yes(capfd: Capture) -> None:
    for arguments in (("1",), ("--all",)):
        result = run(capfd, "history", "delete", *arguments)
        assert result.code == 2
        assert "--yes" in result.err
    assert run(capfd, "history", "delete", "--yes").code == 2
    assert run(capfd, "history", "delete", "1", "--all", "--yes").code == 2
    assert_one_clear_line(run(capfd, "history", "delete", "1", "7", "--yes"), "7")
    assert ids(capfd) == [2, 1]
    assert "conversation 1" in run(capfd, "history", "delete", "1", "1", "--yes").out
    assert ids(capfd) == [2]
    assert b"weather" not in history_path().read_bytes()
    assert run(capfd, "history", "delete", "--all", "--yes").code == 0
    assert ids(capfd) == []


@pytest.mark.usefixtures("_kept")
def test_a_terminal_is_asked(capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_terminal(monkeypatch)
    for answer, left in (("n", [2, 1]), ("y", [])):
        monkeypatch.setattr("click.termui.visible_prompt_func", lambda _prompt, answer=answer: answer)
        run(capfd, "history", "delete", "1", "2")
        assert ids(capfd) == left


@pytest.mark.parametrize("arguments", [(), ("--json",), ("search", "owned"), ("show", "1"), ("show", "1", "--json")])
def test_nothing_of_a_conversation_commands_the_terminal(
    arguments: tuple[str, ...], capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_terminal(monkeypatch)
    messages = SavedMessage("user", f"a {EVIL}\rb"), SavedMessage("assistant", EVIL, EVIL, steering="happy")
    with History() as history:
        history.begin(Transcript(messages, system=EVIL, model=EVIL, steering=f"'{EVIL}'", policy=EVIL))
    result = run(capfd, "history", *arguments)
    assert result.code == 0
    assert "owned" in result.out
    assert all(character.isprintable() or character == "\n" for character in result.out)


def test_a_damaged_file_is_one_clear_error(capfd: Capture) -> None:
    history_path().parent.mkdir(parents=True)
    history_path().write_bytes(b"no database" * 100)
    assert_one_clear_line(run(capfd, "history"), "history.db", "Move it away")


def test_the_path_is_told(capfd: Capture) -> None:
    assert run(capfd, "history", "path").out.strip() == str(history_path())


def test_a_wrong_command_is_answered_with_the_nearest(capfd: Capture) -> None:
    result = run(capfd, "history", "serch", "x")
    assert result.code == 2
    assert "search" in result.err
    assert "Commands:" in run(capfd, "history", "-h").out
