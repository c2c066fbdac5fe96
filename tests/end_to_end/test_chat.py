"""The chat as a person has it: in a terminal, by its keys, read from the screen."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from bench.models import real_model
from localsteer.chat.transcript import load_transcript
from localsteer.vector.control_vector import ControlVector
from localsteer.vector.file import write_vector
from tests.end_to_end.chat_driver import (
    ALT_DOWN,
    ALT_ENTER,
    ALT_UP,
    CTRL_C,
    CTRL_D,
    ENTER,
    TAB,
    ChatTerminal,
    Terminal,
    pasted,
)
from tests.tiny_models import write_tiny_model

TinyPath = Callable[[str], Path]

LONG = "Write a list of ten animals, each with a sentence about where it lives."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with a vector and a text file."""
    folder = tmp_path_factory.mktemp("chat")
    write_vector(ControlVector({1: np.full(64, 3, np.float32)}), folder / "push.gguf")
    (folder / "notes.txt").write_text("Pigs can swim.\n")
    return folder


@pytest.fixture(autouse=True)
def _in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


@pytest.fixture(scope="module")
def shared(tiny_path: TinyPath, folder: Path) -> Iterator[ChatTerminal]:
    """One chat with a tiny model: starting one is what takes the time."""
    before = Path.cwd()
    os.chdir(folder)
    with ChatTerminal("-m", tiny_path("llama"), "-n", "6", "--seed", "2", "-s", "0.5 push.gguf") as terminal:
        os.chdir(before)
        terminal.wait_ready()
        yield terminal


@pytest.fixture
def chat(shared: ChatTerminal) -> ChatTerminal:
    shared.ask("/steer 0.5 push.gguf")
    shared.ask("/reset")
    shared.ask("/file off")
    shared.screen.reset()
    shared.type("\x0c")  # Ctrl-L draws it anew
    shared.wait_ready()
    return shared


def copied(terminal: Terminal) -> str:
    """What was put on the clipboard last."""
    (*_, last) = re.findall(rb"\x1b\]52;c;([A-Za-z0-9+/=]*)\x07", terminal.raw)
    return base64.b64decode(last).decode()


def words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text)


def shown_answer(terminal: Terminal, question: str) -> str:
    """What stands between a question, which fits in a line, and the prompt; "" while it is not there."""
    _, _, behind = terminal.everything.rpartition(f"> {question}\n")
    return behind.partition("\n>")[0] if len(behind) < len(terminal.everything) else ""


# With a tiny model, whose answers are six random letters


def test_several_lines_are_one_message(chat: ChatTerminal) -> None:
    for keys in (f"one{ALT_ENTER}two{ENTER}", pasted("one\ntwo") + ENTER, f'"""one{ENTER}two"""{ENTER}'):
        chat.type(keys)
        chat.see("two")
        chat.wait_ready()
        chat.ask("/undo")
        chat.see("Forgotten: one\ntwo")
        chat.screen.reset()
        chat.type("\x0c")


def test_tab_completes_commands_vectors_and_files(chat: ChatTerminal) -> None:
    for typed, completed in (("/vect", "/vectors"), ("/steer 0.5 pira", "/steer 0.5 pirate")):
        chat.type(typed)
        chat.see(f"  {completed.split()[-1]} ")  # in the menu
        chat.type(TAB)
        chat.wait(lambda completed=completed: f"> {completed}" in chat.text, completed)  # type: ignore[misc]
        chat.type(CTRL_C)
        chat.wait_ready()
    chat.type(f"/file {TAB}")
    chat.see("notes.txt", "push.gguf")
    chat.type("no")
    chat.wait(lambda: "push.gguf" not in chat.text.rpartition("> /file")[2].rpartition("\n")[0], "one file alone")
    chat.type(TAB)
    chat.see("> /file notes.txt")
    chat.type(ENTER)
    chat.see("notes.txt goes with your next message")


def test_keys_turn_the_last_knob(chat: ChatTerminal) -> None:
    for key, status in ((ALT_UP, "0.6 push.gguf"), (ALT_UP, "0.7 push.gguf"), (ALT_DOWN, "0.6 push.gguf")):
        chat.type(key)
        chat.wait(lambda status=status: chat.toolbar.startswith(f" {status} |"), status)  # type: ignore[misc]
    chat.ask("Hello")
    chat.ask("/why")
    chat.see("Steering: 0.6 push.gguf")
    chat.ask("/steer off")
    chat.type(ALT_UP)
    chat.wait(lambda: "no knob to turn" in chat.toolbar, "what is wrong")


def test_an_answer_is_looked_at_compared_and_taken_back(chat: ChatTerminal) -> None:
    chat.ask("/compare")
    chat.see("nothing to compare yet")
    chat.ask("Hello")
    for command, seen in (
        ("/compare", ("─ -0.5 push.gguf ─", "─ unsteered ─", "─ 0.5 push.gguf ─")),
        ("/sweep push.gguf -1 1 3", ("─ -1 push.gguf ─", "─ 0 push.gguf ─", "─ 1 push.gguf ─")),
        ("/watch push.gguf", ("Watched: push.gguf", "push.gguf ")),
        ("/heat", ("in standard deviations of everyday text",)),
        ("/retry 9", ("> /retry 9",)),
        ("/why", ("seed 9",)),
        ("/undo", ("Forgotten: Hello",)),
    ):
        chat.ask(command)
        chat.see(*seen)
    assert any("─ -0.5 push.gguf ─" in line and "─ unsteered ─" in line for line in chat.everything.split("\n"))
    chat.ask("/undo")
    chat.see("nothing to undo")
    chat.ask("/watch off")


def test_in_sixty_columns_answers_are_stacked(chat: ChatTerminal) -> None:
    chat.resize(60)
    chat.ask("Hello")
    chat.ask("/compare")
    titles = [" -0.5 push.gguf ", " unsteered ", " 0.5 push.gguf "]

    def frames() -> list[str]:
        return [re.sub("[╭─╮ ]+", " ", line) for line in chat.everything.split("\n") if line.startswith("╭")]

    chat.wait(lambda: frames() == titles, "three frames")
    assert all(len(line) <= 60 for line in chat.text.split("\n"))
    chat.resize(100)


def test_ctrl_c_clears_the_line_and_says_how_to_leave(chat: ChatTerminal) -> None:
    chat.type("not this")
    chat.see("> not this")
    chat.type(CTRL_C)
    chat.wait_ready()
    chat.type(CTRL_C)
    chat.wait(lambda: "Ctrl-D leaves" in chat.toolbar, "how to leave")
    chat.ask("/undo")
    chat.see("nothing to undo")


def test_a_command_of_the_system_can_be_stopped(chat: ChatTerminal) -> None:
    chat.line("!sleep 600 | cat")
    chat.wait(lambda: chat.toolbar.endswith("working"), "that it works")
    chat.type(CTRL_C)
    chat.see("sleep 600 | cat was stopped.")
    chat.wait_ready()


def test_what_is_typed_cannot_command_the_terminal(chat: ChatTerminal) -> None:
    chat.type(pasted("a\x1b]0;title\x07\x1b[2Jb") + ENTER)
    chat.see("> a\ufffd]0;title\ufffd\ufffd[2Jb")
    chat.wait_ready()


def stty(chat: ChatTerminal) -> tuple[str, str]:
    """What the terminal was set to before and after."""
    before, _, after = re.sub(r"\r", "", chat.raw.decode(errors="replace")).partition("--begin--\n")[2].partition("--end--\n")
    return before.partition("--chat--")[0], after.partition("--over--")[0]


AROUND = "echo --begin--; stty -a; echo --chat--; {}; echo status $?; echo --end--; stty -a; echo --over--"


def test_that_a_pipe_was_empty_is_told(tiny_path: TinyPath) -> None:
    with ChatTerminal("-m", tiny_path("llama"), "-n", "6", shell="true | {}") as chat:
        chat.wait_ready()
        chat.see("Nothing was piped in.")
        chat.ask("Hello")


@pytest.mark.parametrize(("leave", "status"), [(CTRL_D, 0), (f"/quit{ENTER}", 0), (f"exit{ENTER}", 0), ("", 143)])
def test_the_terminal_is_left_as_it_was_found(tiny_path: TinyPath, leave: str, status: int) -> None:
    shell = AROUND if leave else AROUND.replace("{}", "{} & echo pid $! ; fg").replace("echo --begin--", "set -m; echo --begin--")
    with ChatTerminal("-m", tiny_path("llama"), "-n", "300", "--seed", "2", shell=shell) as chat:
        chat.wait_ready()
        chat.type("Hello" + ENTER + leave)
        if not leave:
            found = re.search(rb"pid (\d+)", chat.raw)
            assert found is not None
            os.kill(int(found[1]), signal.SIGTERM)
        assert chat.end() == 0
        chat.see(f"status {status}", "--over--")
        assert "Traceback" not in chat.everything
        before, after = stty(chat)
        assert "icanon" in before
        assert before == after
        assert not chat.screen.cursor.hidden
        assert chat.raw.count(b"\x1b[?2004h") == chat.raw.count(b"\x1b[?2004l")  # pasting


def test_a_killed_chat_says_nothing(tiny_path: TinyPath) -> None:
    with ChatTerminal("-m", tiny_path("llama"), "-n", "300") as chat:
        chat.wait_ready()
        chat.line("Hello")
        chat.process.kill(signal.SIGKILL)
        assert chat.end() == -signal.SIGKILL
        assert "Traceback" not in chat.everything


def test_what_fails_unexpectedly_ends_the_chat_with_an_error(tiny_path: TinyPath) -> None:
    program = (
        "from localsteer.chat import tables\n"
        "def broken(*_): raise TypeError('spoiled')\n"
        "tables.vector_table = broken\n"
        "from localsteer.commands import main\n"
        f"main(['chat', '-m', {str(tiny_path('llama'))!r}])\n"
    )
    with Terminal([sys.executable, "-c", program]) as terminal:
        terminal.see("context 0/")
        terminal.type(f"/vectors{ENTER}")
        assert terminal.end() == 1
        assert "localsteer: The chat failed: TypeError: spoiled" in terminal.everything
        assert "Traceback" not in terminal.everything


@pytest.fixture
def opening_slowly(tiny_path: TinyPath) -> Iterator[Terminal]:
    """A chat in which a second model is being opened, which takes a minute."""
    program = (
        "import time\n"
        "from localsteer.llama import library\n"
        "llama = library.load()\n"
        "load, loads = llama.llama_model_load_from_file, []\n"
        "def load_slowly(path, params):\n"
        "    loads.append(path)\n"
        "    end = time.monotonic() + 60\n"
        "    while len(loads) == 2 and time.monotonic() < end and params.progress_callback(0.5, None):\n"
        "        time.sleep(0.05)\n"
        "    return load(path, params)\n"
        "llama.llama_model_load_from_file = load_slowly\n"
        "from localsteer.commands import main\n"
        f"main(['chat', '-n', '6', '--threads', '1', '--trust', '-m', {str(tiny_path('llama'))!r}])\n"
    )
    with Terminal([sys.executable, "-c", program]) as terminal:
        terminal.see("context 0/")
        terminal.line(f"/model {tiny_path('gemma3')}")
        terminal.wait(lambda: terminal.toolbar.endswith("| working"), "working")
        yield terminal


def test_ctrl_c_gives_up_another_model(opening_slowly: Terminal) -> None:
    opening_slowly.type(CTRL_C)
    opening_slowly.see("[stopped]")
    opening_slowly.line("Hello")
    opening_slowly.wait(lambda: re.search(r"context [1-9]\d*/\d+$", opening_slowly.toolbar) is not None, "an answer")
    opening_slowly.type(CTRL_D)
    assert opening_slowly.end() == 0


@pytest.mark.parametrize(("leave", "status"), [(CTRL_D, 0), ("", 143)])
def test_a_chat_that_opens_another_model_ends_at_once(opening_slowly: Terminal, leave: str, status: int) -> None:
    begun = time.monotonic()
    if leave:
        opening_slowly.type(leave)
    else:
        opening_slowly.process.kill(signal.SIGTERM)
    assert opening_slowly.end() == status
    assert time.monotonic() - begun < 30
    assert "Traceback" not in opening_slowly.everything


def test_a_piped_text_is_context_and_a_full_context_is_told(tiny_path: TinyPath) -> None:
    shell = "echo Pigs can swim. | {}"
    with ChatTerminal("-m", tiny_path("llama"), "-n", "6", "--context", "256", shell=shell) as chat:
        chat.wait_ready()
        chat.see("the piped text goes with your next message")
        for number in range(4):
            chat.ask(f"Question {number}{' and so on' * 4}")
        chat.see("the context is full: the oldest")
        chat.ask("word" + " word" * 79)
        chat.see("the context holds 256")
        chat.type(CTRL_D)
        assert chat.end() == 0


def test_what_is_told_of_another_model_stands_above_the_prompt(
    tiny_path: TinyPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "ollama"
    keep_as_ollama(store, "sailor", model=tiny_path("llama"), system="You are a sailor.")
    keep_as_ollama(store, "broken", model=tiny_path("llama"))
    (store / "manifests" / "registry.ollama.ai" / "library" / "broken" / "latest").write_text("{")
    monkeypatch.setenv("OLLAMA_MODELS", str(store))
    with ChatTerminal("-m", tiny_path("llama"), "-n", "6", "--context", "700") as chat:
        chat.wait_ready()
        for letter in "/model sail":
            chat.type(letter)
            chat.look()
        chat.type(TAB)
        chat.see("> /model sailor")
        assert chat.everything.count("Skipped") == 1  # not with every letter
        chat.type(ENTER)
        # Each in a line of its own, for nothing else has moved the cursor.
        said = "Ollama keeps a system text with this model, which is not used here: give one with --system."
        chat.see(f"\n{said}\n", "Skipped the Ollama model broken", "trained for a context of 512 tokens", "Model: ")
        chat.wait_ready()
        lines = chat.everything.split("\n")
        assert lines.index("> /model sailor:latest") < lines.index(said)
        assert sum(line.startswith(" unsteered") for line in lines) == 1
        chat.ask("Hello")


def keep_as_ollama(store: Path, name: str, *, model: Path, system: str = "") -> None:
    """Put a model into a folder of Ollama's, as it keeps them."""
    layers = []
    for kind, data in (("model", model.read_bytes()), ("system", system.encode())):
        digest = hashlib.sha256(data).hexdigest()
        if data:
            (store / "blobs").mkdir(parents=True, exist_ok=True)
            (store / "blobs" / f"sha256-{digest}").write_bytes(data)
            layers.append({"mediaType": f"application/vnd.ollama.image.{kind}", "digest": f"sha256:{digest}"})
    manifest = store / "manifests" / "registry.ollama.ai" / "library" / name / "latest"
    manifest.parent.mkdir(parents=True)
    manifest.write_text(json.dumps({"layers": layers}))


def test_without_colours(tiny_path: TinyPath) -> None:
    environment = {"NO_COLOR": "1"}
    with ChatTerminal("-m", tiny_path("llama"), "-n", "6", "-s", "push.gguf", environment=environment) as chat:
        chat.wait_ready()
        for line in ("Hello", "/heat", "/compare", "/nonsense"):
            chat.ask(line)
        # Bold and dim are no colours.
        assert not re.search(rb"\x1b\[(?:[0-9;]*;)?(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])[;m]", chat.raw)


@pytest.mark.parametrize("leave", [CTRL_D, "exit\n"])
def test_a_dumb_terminal_gets_plain_lines(leave: str, tmp_path: Path) -> None:
    base = write_tiny_model(tmp_path / "base.gguf", "llama", chat_template=None)
    with ChatTerminal("-m", base, "-n", "6", "--seed", "2", environment={"TERM": "dumb"}) as chat:
        chat.see("A base model without a chat template", "/help lists the commands.")
        chat.wait(lambda: chat.prompt == ">", "the prompt")
        chat.type("Hello\n")
        chat.wait(lambda: chat.prompt == ">" and "> Hello" in chat.text, "the next prompt")
        chat.type(f"/save {tmp_path / 'chat.json'}\n/undo\n")
        chat.see("Forgotten: Hello")
        before = chat.everything.count("> Hello")
        chat.type(f"/load {tmp_path / 'chat.json'}\n")
        chat.see_again("> Hello", before + 1)  # what was said last
        chat.type(leave)
        assert chat.end() == 0
        assert chat.everything.count("> Hello") == before + 1
        assert b"\x1b" not in chat.raw


# With the demo model


@pytest.mark.models
def test_an_answer_streams_and_what_is_typed_meanwhile_waits() -> None:
    with ChatTerminal("-m", "demo", "-n", "60", "--seed", "3", "-s", "0.8 happy") as chat:
        chat.wait_ready()
        chat.line("How was your day?")
        chat.wait(lambda: chat.answering, "the beginning")
        chat.type(f"/undo{ENTER}half a li")
        chat.see("> half a li")
        assert chat.answering
        chat.type(ALT_UP)
        chat.wait(lambda: chat.toolbar.startswith(" 0.9 happy"), "the knob")
        chat.see("Forgotten: How was your day?", "> half a li")
        answering = [state for state in chat.states if state.endswith("| answering")]
        assert len({shown.partition("\n\n\n")[0] for shown in answering}) > 5
        chat.type(CTRL_C)
        chat.ask("And yours?")
        chat.ask("/why")
        chat.see("Steering: 0.9 happy")


@pytest.mark.models
def test_ctrl_c_keeps_what_was_said() -> None:
    with ChatTerminal("-m", "demo", "-n", "400", "--seed", "3", lines=20) as chat:
        chat.wait_ready()
        chat.line(LONG)
        chat.wait(lambda: chat.answering and len(words(shown_answer(chat, LONG))) > 20, "some words")
        chat.type(CTRL_C)
        chat.see("[stopped]")
        chat.wait_ready()
        chat.ask("/copy")
        assert words(shown_answer(chat, LONG).partition("[stopped]")[0]) == words(copied(chat))
        chat.ask("/undo")
        chat.see(f"Forgotten: {LONG}")


def check_nothing_torn(chat: ChatTerminal, question: str, *, columns: int | None) -> str:
    chat.wait_ready()
    chat.line(question)
    chat.wait(lambda: chat.answering and len(words(shown_answer(chat, question))) > 12, "some words")
    if columns is not None:
        chat.resize(columns)
    chat.wait_ready()
    answer = shown_answer(chat, question)
    chat.ask("/copy")
    return answer


@pytest.mark.models
@pytest.mark.parametrize(("columns", "lines"), [(60, 30), (60, 12), (None, 12)])
def test_nothing_of_a_long_answer_is_torn(columns: int | None, lines: int) -> None:
    with ChatTerminal("-m", "demo", "-n", "300", "--seed", "5", lines=lines) as chat:
        answer = check_nothing_torn(chat, LONG, columns=columns)
        said = copied(chat)
        assert words(answer.partition("[cut")[0]) == words(said)


@pytest.mark.models
def test_nothing_flickers_while_an_answer_streams() -> None:
    with ChatTerminal("-m", "demo", "-n", "60", "--seed", "3") as chat:
        chat.wait_ready()
        chat.ask(LONG)
        whole = words(shown_answer(chat, LONG))
        behind = [text.rpartition(f"> {LONG}\n")[2] for text in chat.drawn if f"> {LONG}\n" in text]
    grown = [words(text.partition("\n>")[0]) for text in behind if "\n>" in text]
    assert len(grown) > 20
    # The last word of what grows may be half of one.
    assert [some for some in grown if some[:-1] != whole[: max(len(some) - 1, 0)]] == []


@pytest.mark.models
def test_compare_streams_in_columns() -> None:
    with ChatTerminal("-m", "demo", "-n", "40", "--seed", "3", "-s", "0.8 happy") as chat:
        chat.wait_ready()
        chat.ask("How was your day?")
        chat.states.clear()
        chat.ask("/compare")
        streamed = [state for state in chat.states if "─ unsteered ─" in state and state.endswith("| answering")]
        assert len(streamed) > 3
        assert chat.everything.count("─ unsteered ─") == 1
        chat.line("/sweep happy -1 1 5")
        chat.wait(lambda: "─ -1 happy ─" in chat.text and chat.answering, "the sweep")
        chat.type(CTRL_C)
        chat.wait_ready()
        chat.see("─ -0.5 happy ─", "─ 0 happy ─", "─ 1 happy ─")


@pytest.mark.models
@pytest.mark.parametrize("columns", [90, 60])
def test_compare_is_whole_where_the_terminal_breaks_lines_anew(columns: int) -> None:
    environment = {"VTE_VERSION": "7600"}
    with ChatTerminal("-m", "demo", "-n", "60", "--seed", "3", "-s", "0.8 happy", lines=40, environment=environment) as chat:
        chat.wait_ready()
        chat.ask("How was your day?")
        chat.line("/compare")
        chat.wait(lambda: "─ unsteered ─" in chat.text and chat.answering, "the frames")
        chat.reflow(columns)
        chat.wait_ready()
        assert "> How was your day?" in chat.everything
        assert chat.everything.count("─ unsteered ─") == 1
        frames = chat.everything.rpartition("> /compare\n")[2].partition("\n>")[0]
        assert frames.count("╭") == frames.count("╮") == frames.count("╰") == frames.count("╯") == 3
        assert all(line[:1] in "╭│╰ " and line[-1:] in "╮│╯" for line in frames.strip().split("\n"))


@pytest.mark.models
def test_a_killed_chat_loses_nothing_but_the_token_that_was_being_written(tmp_path: Path) -> None:
    options = ("-n", "300", "--seed", "3")
    with ChatTerminal("-m", "demo", "-s", "0.5 happy", *options) as chat:
        chat.wait_ready()
        chat.ask("/system You are a zoologist.")
        chat.ask("How was your day?")
        chat.ask("/copy")
        first = copied(chat)
        chat.line(LONG)
        chat.wait(lambda: chat.answering and len(words(shown_answer(chat, LONG))) > 20, "some words")
        chat.process.kill(signal.SIGKILL)
        assert chat.end() == -signal.SIGKILL
        seen = words(shown_answer(chat, LONG))
    with ChatTerminal("--resume", *options) as chat:
        chat.wait_ready()
        chat.see("How was your day?: 2 questions and answers.", "The last answer was cut; /retry answers once more.")
        assert words(shown_answer(chat, LONG))[:10] == seen[:10]  # where it was
        assert chat.toolbar.startswith(" 0.5 happy")
        chat.ask(f"/save {tmp_path / 'talk.json'}")
        kept = load_transcript(tmp_path / "talk.json")
        assert kept.system == "You are a zoologist."
        assert [one.text for one in kept.messages[:3]] == ["How was your day?", first, LONG]
        assert kept.messages[3].cut
        # The last word on the screen may have been half of one.
        assert words(kept.messages[3].text)[: len(seen) - 1] == seen[:-1]
        assert len(seen) > 20
        chat.ask("Which of them is the largest?")
        chat.see("Which of them is the largest?")
        chat.ask("/undo")
        chat.ask("/retry")
        chat.ask(f"/save {tmp_path / 'again.json'}")
        again = load_transcript(tmp_path / "again.json")
        assert [one.text for one in again.messages[:3]] == ["How was your day?", first, LONG]
        assert again.messages[3] != kept.messages[3]
        assert again.created == kept.created


@pytest.mark.models
@pytest.mark.skipif(real_model() is None, reason="LOCALSTEER_REAL_MODEL names no model")
def test_code_and_markdown_of_a_real_model() -> None:
    question = "Write a Python class Stack: five methods, docstrings. Then list the methods in a Markdown table."
    path = real_model()
    assert path is not None
    with ChatTerminal("-m", path, "-n", "500", "--seed", "1", lines=24) as chat:
        answer = check_nothing_torn(chat, question, columns=60)
        code = copied(chat)
        assert "class" in code
        assert "```" not in answer
        shown = [line.rstrip() for line in answer.split("\n")]
        # Every line of the code that fits is there once, in its order, as it can be copied with the mouse.
        place = shown.index(code.split("\n")[0])
        lines = [line.rstrip() for line in code.split("\n\n")[0].split("\n")]
        assert shown[place : place + len(lines)] == lines
