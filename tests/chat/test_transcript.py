from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localsteer.chat import transcript as module
from localsteer.chat.transcript import (
    SavedMessage,
    Transcript,
    displayable,
    export_markdown,
    load_transcript,
    save_transcript,
    to_markdown,
    transcript_of,
)
from localsteer.errors import LocalsteerError
from localsteer.llama.sampling import Sampling
from tests.chat.made_transcript import TRANSCRIPT, asked

Change = Callable[[dict[str, Any]], object]


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    save_transcript(TRANSCRIPT, path)
    assert load_transcript(path) == TRANSCRIPT
    assert list(tmp_path.iterdir()) == [path]
    document = json.loads(path.read_text())
    assert (document["format"], document["version"]) == ("localsteer conversation", 1)
    assert list(document)[-1] == "messages"


def test_a_person_may_write_one_with_the_messages_alone(tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    path.write_text(
        '\ufeff{"format": "localsteer conversation", "version": 1, "messages": [{"role": "user", "text": "Hi"}]}',
        encoding="utf-8",
    )
    assert load_transcript(path) == asked("Hi")


def test_a_new_conversation_gets_its_times_when_it_is_saved(tmp_path: Path) -> None:
    save_transcript(asked("Hi"), tmp_path / "talk.json")
    found = load_transcript(tmp_path / "talk.json")
    assert found.created
    assert found.updated


def test_the_title_is_the_first_words_of_the_first_question() -> None:
    assert Transcript().title == ""
    assert asked("  Hello \n\t there\x1b]0;evil\x07  ", "no").title == "Hello there]0;evil"
    long = asked("word " * 50).title
    assert len(long) <= 60
    assert long.endswith("word…")
    assert len(asked("字" * 200).title) == 60


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda it: it.update(format="other"), "format"),
        (lambda it: it.pop("version"), "version"),
        (lambda it: it.update(version=2), "newer"),
        (lambda it: it.update(version=True), "version"),
        (lambda it: it.update(version=10**400), "version"),
        (lambda it: it.update(surprise=1), "surprise"),
        (lambda it: it.update(mode="loud"), "mode"),
        (lambda it: it.update(steering="happy +"), "steering"),
        (lambda it: it.update(system=["a"]), "system"),
        (lambda it: it.update(created="yesterday"), "created"),
        (lambda it: it.update(max_tokens=0), "max_tokens"),
        (lambda it: it["sampling"].update(top_k=2**40), "sampling.top_k"),
        (lambda it: it["sampling"].update(temperature=None), "sampling.temperature"),
        (lambda it: it["sampling"].update(temperature=10**400), "sampling.temperature"),
        (lambda it: it["sampling"].update(seed=-1), "sampling.seed"),
        (lambda it: it["fingerprint"].pop("content"), "fingerprint"),
        (lambda it: it.update(messages={}), "messages"),
        (lambda it: it["messages"].pop(0), "messages.0.role"),
        (lambda it: it["messages"][2].update(role="assistant"), "messages.2.role"),
        (lambda it: it["messages"][2].update(role="system"), "messages.2.role"),
        (lambda it: it["messages"][1].update(text=" "), "messages.1.text"),
        (lambda it: it["messages"][1].update(text=3), "messages.1.text"),
        (lambda it: it["messages"][1].update(steering="@"), "messages.1.steering"),
        (lambda it: it["messages"][1].update({"\x1b[2J": 1}), "?[2J"),
    ],
)
def test_a_wrong_value_is_one_clear_error_with_its_place(change: Change, where: str, tmp_path: Path) -> None:
    document = json.loads(json.dumps(TRANSCRIPT.document()))
    change(document)
    path = tmp_path / "talk.json"
    path.write_text(json.dumps(document))
    with pytest.raises(LocalsteerError) as refused:
        load_transcript(path)
    assert str(path) in str(refused.value)
    assert where in str(refused.value)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"version": NaN}', b"1" * 5000, b"\0" * 100]
)
def test_what_is_no_conversation_is_one_clear_error(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    path.write_bytes(data)
    with pytest.raises(LocalsteerError, match=r"talk\.json"):
        load_transcript(path)


def test_what_is_no_ordinary_file_or_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    save_transcript(TRANSCRIPT, tmp_path / "talk.json")
    monkeypatch.setattr(module, "MAX_BYTES", 100)
    for name in ("pipe", "", "talk.json", "missing", "a\0b"):
        with pytest.raises(LocalsteerError):
            load_transcript(tmp_path / name)
    for name in ("", "missing/talk.json", "a\0b"):
        with pytest.raises(LocalsteerError):
            save_transcript(TRANSCRIPT, tmp_path / name)
    with pytest.raises(LocalsteerError):
        save_transcript(replace(TRANSCRIPT, sampling=Sampling(temperature=math.inf)), tmp_path / "hot.json")
    assert not (tmp_path / "hot.json").exists()


VALUES = st.none() | st.booleans() | st.floats() | st.integers() | st.text()


@settings(max_examples=30)
@given(VALUES | st.lists(VALUES, max_size=3))
def test_any_value_anywhere_is_taken_or_refused(value: Any) -> None:
    for path in [(key,) for key in TRANSCRIPT.document()] + [("sampling", "top_p"), ("fingerprint", "n_embd"), ("messages", 1)]:
        document = json.loads(json.dumps(TRANSCRIPT.document()))
        place = document
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        with contextlib.suppress(ValueError):
            to_markdown(transcript_of(document)).encode()


def test_halves_of_characters_are_replaced(tmp_path: Path) -> None:
    """A terminal can bring them, JSON can name them, and no tokenizer takes them."""
    path = tmp_path / "talk.json"
    save_transcript(replace(asked("a\ud83db"), system="\udcff"), path)
    found = load_transcript(path)
    assert (found.messages[0].text, found.system) == ("a?b", "?")
    export_markdown(asked("a\ud83db"), tmp_path / "talk.md")
    assert "ab" in (tmp_path / "talk.md").read_text()


def test_a_saved_file_can_be_looked_at_in_a_terminal(tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    save_transcript(asked("a\x1b[2J\x9b2J\x7f"), path)
    assert not set("\x1b\x9b\x7f") & set(path.read_text())
    assert load_transcript(path).messages[0].text == "a\x1b[2J\x9b2J\x7f"


def test_markdown_tells_the_settings_and_leaves_code_as_it_is() -> None:
    text = to_markdown(TRANSCRIPT)
    assert text.startswith("# What is the capital of France?\n")
    for told in ("`Tiny 1B`", "`0.5 happy`", "anchored", "`calm.yaml`", "seed 7", "Be brief.", "> An easy one."):
        assert told in text
    assert "## Answer (`-0.5 happy`)" in text  # another steering than that of the head
    assert "```python\nfor n in range(3):\n    print(n)\n```\n\n*(cut here)*" in text


def test_markdown_without_settings_says_that_nothing_was_steered() -> None:
    text = to_markdown(asked("Hi", "Hello."))
    assert "Steering: none" in text
    assert text.endswith("## Question\n\nHi\n\n## Answer\n\nHello.\n")


@pytest.mark.parametrize(
    ("answer", "end"),
    [
        ("```\na", "a\n```"),
        ("~~~~\n```\na\n~~~", "~~~\n~~~~"),
        ("```\na\n```", "a\n```"),
        ("```\na\n``` b", "``` b\n```"),
        ("an ``` in a line", "an ``` in a line"),
        ("``` is `not` one", "``` is `not` one"),
    ],
)
def test_an_open_code_block_is_closed_once(answer: str, end: str) -> None:
    assert to_markdown(asked("Hi", answer)).endswith(f"\n{end}\n")


def test_nothing_of_a_conversation_commands_the_terminal() -> None:
    evil = "\x1b]0;x\x07\x9b31m\x08\r\x7f\u202e"
    messages = SavedMessage("user", f"a{evil}"), SavedMessage("assistant", evil, evil, steering=evil)
    text = to_markdown(Transcript(messages, evil, evil, "prompt", evil, model=evil, created=evil))
    assert all(character.isprintable() or character == "\n" for character in text)
    assert displayable("a\r\nb\tc 👨‍👩‍👧") == "a\nb\tc 👨‍👩‍👧"


def test_backticks_in_a_name_stay_in_its_code_span() -> None:
    assert "Model: `` a`b ``" in to_markdown(replace(asked("Hi"), model="a`b"))
