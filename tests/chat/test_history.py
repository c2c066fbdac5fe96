from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from localsteer.chat import history_database
from localsteer.chat.history import History, history_path
from localsteer.chat.transcript import SavedMessage
from localsteer.errors import LocalsteerError
from tests.chat.made_transcript import TRANSCRIPT, asked


@pytest.fixture
def history() -> Iterator[History]:
    with History() as opened:
        yield opened


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_database, "_PATIENCE", 20)


def files() -> list[str]:
    return sorted(path.name for path in history_path().parent.iterdir())


def stored() -> bytes:
    """All bytes on the disk."""
    return b"".join(path.read_bytes() for path in history_path().parent.iterdir())


def test_a_conversation_is_read_back_as_it_was_written(history: History) -> None:
    number = history.begin(TRANSCRIPT)
    found = history.read(number)
    assert replace(found, updated=TRANSCRIPT.updated) == TRANSCRIPT
    assert found.updated > TRANSCRIPT.updated  # the time of writing
    changed = replace(TRANSCRIPT, steering="", messages=TRANSCRIPT.messages[:2])  # /undo
    assert history.write(number, changed) == number
    assert history.read(number).messages == changed.messages
    assert history.read(number).created == TRANSCRIPT.created


def test_only_its_owner_can_read_it_and_nothing_is_left_beside_it(history: History) -> None:
    history.begin(asked("Hi"))
    for path in history_path().parent.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    history.close()
    assert files() == ["history.db"]


def test_an_answer_grows_until_it_is_written(history: History) -> None:
    number = history.begin(asked("Hi"))
    history.grow(number, "Let me see.", thought=True)
    for piece in ("Hel", "lo", " there"):
        history.grow(number, piece)
    with History() as other:  # what another process sees
        assert other.read(number).messages[1] == SavedMessage("assistant", "Hello there", "Let me see.", cut=True)
        assert other.entries()[0].messages == 2
    history.write(number, asked("Hi", "Hello there."))
    assert history.read(number).messages == asked("Hi", "Hello there.").messages


def test_an_answer_that_was_left_is_a_message_that_is_cut(history: History) -> None:
    number = history.begin(asked("Hi"))
    history.grow(number, "Hello")
    history.finish(number)
    assert history.read(number).messages[1] == SavedMessage("assistant", "Hello", cut=True)
    assert [entry.id for entry in history.entries("hello")] == [number]
    history.finish(number)  # once more changes nothing
    assert len(history.read(number).messages) == 2


def test_an_empty_conversation_is_not_kept(history: History) -> None:
    with pytest.raises(ValueError, match="without messages"):
        history.begin(asked())
    number = history.begin(asked("A secret"))
    history.write(number, asked())
    assert history.entries() == []
    history.write(number, asked("Another question"))
    assert [(entry.id, entry.title) for entry in history.entries()] == [(number, "Another question")]


def test_the_newest_comes_first(history: History) -> None:
    first, second = history.begin(asked("one")), history.begin(replace(asked("two", "2"), model="Tiny", steering="happy"))
    entry = history.entries()[0]
    assert (entry.id, entry.title, entry.model, entry.steering, entry.messages) == (second, "two", "Tiny", "happy", 2)
    assert [entry.id for entry in history.entries(limit=1)] == [second]
    assert (first, second) == (1, 2)


@pytest.fixture(params=[True, False], ids=["with FTS5", "without"])
def searched(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[History]:
    if not request.param:
        monkeypatch.setattr(history_database, "_FULL_TEXT", "no such module")
    with History() as opened:
        opened.begin(asked("The weather in MÜNCHEN", "Rain, 100 %, foo.bar() and 天気予報"))
        opened.begin(asked("Weather elsewhere", "Sun"))
        opened.grow(2, "un")
        opened.begin(asked("Is it growing"))
        opened.grow(3, "The har")
        opened.grow(3, "vest")
        yield opened


@pytest.mark.parametrize(
    ("words", "ids"),
    [
        ("weather", [2, 1]),
        ("wea münchen", [1]),
        ("rain weather", [1]),  # of a question and its answer
        ("weather sun rain", []),
        ("oo.bar(", [1]),
        ("予報", [1]),
        ("100 %", [1]),
        ("harvest", [3]),
        ("growing harvest", [3]),
        ('"', []),
        ("* OR NEAR( ^ : -", []),
        ("_", []),
        ("a\0b\ud83d", []),
        ("  ", [3, 2, 1]),
    ],
)
def test_conversations_are_found_by_their_words(words: str, ids: list[int], searched: History) -> None:
    assert [entry.id for entry in searched.entries(words)] == ids


def test_what_was_found_is_shown_with_what_is_around_it(history: History) -> None:
    history.begin(asked("Hi", f"{'far away ' * 20}the\n\x1b[31mNeedle and {'more ' * 30}"))
    (entry,) = history.entries("needle")
    assert "Needle and more" in entry.excerpt
    assert entry.excerpt.startswith("…")
    assert len(entry.excerpt) <= 82
    assert entry.excerpt.isprintable()


def test_what_is_deleted_is_gone_from_the_disk(history: History) -> None:
    for word in ("xylophone", "zeppelin"):
        history.begin(replace(asked(f"{word} question", f"{word} answer"), system=f"{word} system", steering=f"{word}.gguf"))
    history.begin(asked("a question"))
    history.grow(1, "xylophone piece")
    with History() as other:  # a chat that is open meanwhile
        other.grow(3, "an answer")
        assert b"xylophone" in stored()
        history.delete([1])
        assert b"xylophone" not in stored()
        assert b"zeppelin" in stored()
        assert [entry.id for entry in other.entries()] == [3, 2]
        assert history.entries("zeppelin")
        assert history.delete_all() == 2
        assert b"zeppelin" not in stored()
        assert history.entries() == []


def test_a_missing_conversation_is_one_clear_error_and_nothing_is_deleted(history: History) -> None:
    number = history.begin(asked("Hi"))
    with pytest.raises(LocalsteerError, match="conversation 7"):
        history.delete([number, 7])
    for missing in (7, 0, -1, 10**30):
        with pytest.raises(LocalsteerError, match="no conversation"):
            history.read(missing)
        with pytest.raises(LocalsteerError, match="no conversation"):
            history.write(missing, asked("Hi"))
    assert [entry.id for entry in history.entries()] == [number]


def test_a_conversation_that_was_deleted_meanwhile_does_not_come_back(history: History) -> None:
    number = history.begin(asked("Hi"))
    with History() as other:
        other.delete([number])
        assert other.begin(asked("Another")) > number
    with pytest.raises(LocalsteerError, match="no longer"):
        history.grow(number, "Hello")
    with pytest.raises(LocalsteerError, match="no longer"):
        history.write(number, asked("Hi", "Hello"))
    assert [entry.title for entry in history.entries()] == ["Another"]


def test_of_two_chats_that_go_on_with_one_conversation_neither_loses_anything(history: History) -> None:
    number = history.begin(asked("Hi", "Hello"))
    with History() as other:
        other.read(number)
        history.write(number, asked("Hi", "Hello", "From here"))
        history.grow(number, "mine")
        own = other.write(number, asked("Hi", "Hello", "From there"))
        assert own != number
        other.grow(own, "theirs")
        assert other.write(own, asked("Hi", "Hello", "From there", "theirs")) == own
        assert [message.text for message in history.read(number).messages[2:]] == ["From here", "mine"]
        assert [message.text for message in history.read(own).messages[2:]] == ["From there", "theirs"]


def test_a_chat_whose_conversation_was_taken_on_does_not_write_into_it(history: History) -> None:
    number = history.begin(asked("Hi"))
    with History() as other:
        other.read(number)
        other.write(number, asked("Hi", "Hello", "More"))
        history.grow(number, "stray")
        assert other.read(number).messages == asked("Hi", "Hello", "More").messages


def _chat(name: str, turns: int) -> None:
    with History() as history:
        texts = [f"{name} asks"]
        number = history.begin(asked(*texts))
        for turn in range(turns):
            for _ in range(100):
                history.grow(number, f"{name} ")
            history.write(number, asked(*texts, f"{name} {turn}"))
            texts += [f"{name} {turn}", f"{name} asks again"]
            history.write(number, asked(*texts))


def test_several_processes_write_at_once() -> None:
    """They also make the database at once."""
    context = multiprocessing.get_context("spawn")
    chats = [context.Process(target=_chat, args=(name, 3)) for name in ("ann", "ben", "cid")]
    for chat in chats:
        chat.start()
    for chat in chats:
        chat.join()
    assert [chat.exitcode for chat in chats] == [0] * 3
    with History() as history:
        entries = history.entries()
        assert sorted(entry.title for entry in entries) == ["ann asks", "ben asks", "cid asks"]
        for entry in entries:
            messages = history.read(entry.id).messages
            assert len(messages) == 7
            assert {message.text[:3] for message in messages} == {entry.title[:3]}


_GROWING = """
import itertools
from localsteer.chat.history import History
from tests.chat.made_transcript import asked
history = History()
number = history.begin(asked("Hi", "Hello", "Count"))
for n in itertools.count():
    print(n, flush=True)
    history.grow(number, f"{n} ")
"""


def test_a_killed_chat_loses_only_the_token_being_written() -> None:
    with subprocess.Popen([sys.executable, "-c", _GROWING], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) == 500:
                process.send_signal(signal.SIGKILL)
                break
        begun = int((process.stdout.read().split() or ["500"])[-1])
    with History() as history:
        (entry,) = history.entries()
        question, answer = history.read(entry.id).messages[-2:]
        assert question.text == "Count"
        assert answer.cut
        numbers = [int(number) for number in answer.text.split()]
        assert numbers == list(range(len(numbers)))
        assert len(numbers) in (begun, begun + 1)
        # It is gone on with as any other.
        history.write(entry.id, replace(history.read(entry.id), steering="happy"))
        assert history.read(entry.id).messages[-1] == answer
    assert files() == ["history.db"]


@pytest.mark.usefixtures("_impatient")
def test_a_token_does_not_wait_for_another_program_and_is_written_with_the_next(history: History) -> None:
    number = history.begin(asked("Hi"))
    lock = sqlite3.connect(history_path(), isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    history.grow(number, "Hel")
    history.grow(number, "lo")
    assert len(history.read(number).messages) == 1  # reading goes on, too
    with pytest.raises(LocalsteerError, match="another program"):
        history.write(number, asked("Hi", "Hello"))
    lock.execute("ROLLBACK")
    lock.close()
    history.grow(number, "!")
    assert history.read(number).messages[1].text == "Hello!"


@pytest.mark.usefixtures("_impatient")
def test_a_database_that_another_program_holds_is_one_clear_error(history: History) -> None:
    history.close()
    lock = sqlite3.connect(history_path(), isolation_level=None)
    lock.execute("PRAGMA locking_mode = EXCLUSIVE")
    lock.execute("BEGIN EXCLUSIVE")
    with pytest.raises(LocalsteerError, match="another program"):
        History()
    lock.close()


def test_threads_may_share_it(history: History) -> None:
    number = history.begin(asked("Hi"))

    def grow() -> None:
        for _ in range(50):
            history.grow(number, "x")

    threads = [threading.Thread(target=grow) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        history.read(number)
    for thread in threads:
        thread.join()
    assert history.read(number).messages[1].text == "x" * 200


_FULL = """
import resource, signal
from localsteer.chat.history import History
from localsteer.errors import LocalsteerError
from tests.chat.made_transcript import asked
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
history = History()
number = history.begin(asked("Hi"))
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
told = 0
for _ in range(30):
    for call in (lambda: history.grow(number, "token " * 100), lambda: history.write(number, asked("Hi", "long " * 100_000))):
        try:
            call()
        except LocalsteerError as error:
            told += 1
            assert "history.db" in str(error) and "\\n" not in str(error), error
assert told
"""


def test_a_full_disk_is_one_clear_error_and_what_was_kept_stays() -> None:
    subprocess.run([sys.executable, "-c", _FULL], check=True)
    with History() as history:
        assert history.read(1).messages[0].text == "Hi"


@pytest.mark.parametrize("data", [b"no database at all" * 100, b"SQLite format 3\0" + os.urandom(5000)])
def test_a_damaged_file_is_one_clear_error_and_stays_as_it_is(data: bytes) -> None:
    history_path().parent.mkdir(parents=True)
    history_path().write_bytes(data)
    with pytest.raises(LocalsteerError, match=r"history\.db"):
        History()
    assert history_path().read_bytes() == data
    assert files() == ["history.db"]


def test_damage_anywhere_is_a_clear_error_or_none(history: History) -> None:
    for number in range(20):
        history.begin(asked(f"question {number}", "answer " * 500))
    history.close()
    whole = history_path().read_bytes()
    for place in range(0, len(whole), 3777):
        history_path().write_bytes(whole[:place] + b"\xa5" * 64 + whole[place + 64 :])
        with contextlib.suppress(LocalsteerError), History() as damaged:
            damaged.entries("answer")
            damaged.read(3)
            damaged.grow(3, "piece")
            damaged.write(3, asked("question", "another"))
            damaged.delete([4])
            damaged.delete_all()


def test_a_newer_or_foreign_database_is_left_alone(history: History) -> None:
    history.begin(asked("Hi"))
    history.close()
    for statement, said in (("PRAGMA user_version = 2", "newer"), ("PRAGMA application_id = 7", "another program")):
        database = sqlite3.connect(history_path())
        database.execute(statement)
        database.close()
        before = history_path().read_bytes()
        with pytest.raises(LocalsteerError, match=said):
            History()
        assert history_path().read_bytes() == before


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LocalsteerError, match="cannot be written"):
        History(tmp_path / "file" / "history.db")
    with pytest.raises(LocalsteerError, match="cannot be opened"):
        History(tmp_path)


def test_settings_that_somebody_changed_are_checked(history: History) -> None:
    number = history.begin(asked("Hi"))
    database = sqlite3.connect(history_path())
    with database:
        database.execute("UPDATE conversations SET settings = '{}'")
    database.close()
    with pytest.raises(LocalsteerError, match=f"conversation {number}"):
        history.read(number)


def test_halves_of_characters_are_replaced(history: History) -> None:
    """A terminal can bring them, and no database takes them."""
    half = "a\ud83db"
    number = history.begin(replace(asked(half), system=half, model=half))
    history.grow(number, half)
    found = history.read(number)
    assert (found.messages[0].text, found.messages[1].text, found.system, found.model) == ("a?b",) * 4


def test_a_conversation_that_is_not_there_once_it_is_written_is_damage_and_nothing_is_changed() -> None:
    with History() as before:
        before.begin(TRANSCRIPT)
    with contextlib.closing(sqlite3.connect(history_path())) as database:
        database.execute(
            "CREATE TRIGGER loses AFTER INSERT ON conversations BEGIN DELETE FROM conversations WHERE id = new.id; END"
        )
        database.commit()
    with History() as history:
        with pytest.raises(LocalsteerError, match=r"cannot be written: it is damaged\. Move it away"):
            history.begin(TRANSCRIPT)
        assert len(history.entries()) == 1
