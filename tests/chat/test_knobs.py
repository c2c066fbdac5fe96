"""Knobs without a terminal, by their keys, and as they are seen."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pexpect
import pyte
import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.data_structures import Size
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from prompt_toolkit.output.vt100 import Vt100_Output

from localsteer.chat.commands import carry_out
from localsteer.chat.knob_screen import application, slider
from localsteer.chat.knobs import Knobs
from localsteer.chat.screen import harmless
from localsteer.chat.session import Session
from localsteer.concepts.names import user_folder
from localsteer.engine.generate import Generator
from localsteer.errors import LocalsteerError
from localsteer.llama.model import Model
from localsteer.reading.hidden_norm import read_hidden_norm
from localsteer.steering.dose import DoseLimit
from localsteer.steering.expression import parse_steering
from localsteer.vector.control_vector import ControlVector
from localsteer.vector.file import write_vector
from tests.calibration.made import calibrated_on
from tests.chat.test_commands import session_with
from tests.commands.runner import CONCEPT

TinyPath = Callable[[str], Path]

RIGHT, LEFT, DOWN, SHIFT_RIGHT, ESC, ENTER = "\x1b[C", "\x1b[D", "\x1b[B", "\x1b[1;2C", "\x1b", "\r"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def session(tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    """A chat in a folder with a calibrated vector (doses 0.4 and 0.3) and one that was never measured."""
    monkeypatch.chdir(tmp_path)
    write_vector(calibrated_on(tiny), Path("loud.gguf"))
    write_vector(ControlVector({1: np.full(64, 3, np.float32)}), Path("push.gguf"))
    with Generator(tiny) as generator:
        yield session_with(generator)


def knobs_at(session: Session, expression: str, quiet: float = 0.01) -> Knobs:
    session.steer(parse_steering(expression))
    return Knobs(session, quiet=quiet)


@contextlib.contextmanager
def previewed(knobs: Knobs) -> Iterator[Callable[[Callable[[], object]], None]]:
    """With the other thread at work; yields what waits until something holds."""
    failed: list[BaseException] = []

    def work() -> None:
        try:
            knobs.preview()
        except BaseException as error:
            failed.append(error)

    def wait(until: Callable[[], object]) -> None:
        end = time.monotonic() + 20
        while not until():
            assert time.monotonic() < end
            assert not failed, failed
            time.sleep(0.002)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        yield wait
    finally:
        knobs.leave()
        worker.join()
    assert not failed, failed


# ---- turning


def test_what_is_set_comes_first_and_what_is_no_knob_is_not_turned(session: Session) -> None:
    knobs = knobs_at(session, "!push.gguf + 0.5 loud.gguf + push.gguf@1")
    assert [str(term) for term in knobs.terms[:3]] == ["!push.gguf", "0.5 loud.gguf", "push.gguf@1-1"]
    assert {term.vector for term in knobs.terms[3:]} >= {"happy", "formal"}
    assert knobs.chosen == 1
    knobs.turn(0.1)
    assert str(knobs.steering) == "!push.gguf + 0.6 loud.gguf + push.gguf@1-1"
    knobs.choose(1)
    knobs.turn(0.1)
    assert "/steer changes it" in knobs.problem
    assert str(knobs.steering) == "!push.gguf + 0.6 loud.gguf + push.gguf@1-1"
    assert str(session.steering) == "!push.gguf + 0.5 loud.gguf + push.gguf@1-1"
    knobs.choose(-100)
    assert knobs.chosen == 0
    knobs.choose(100)
    assert knobs.chosen == len(knobs.terms) - 1


def test_a_knob_ends_at_twice_what_was_measured_or_where_it_was(session: Session) -> None:
    knobs = knobs_at(session, "0.3 loud.gguf + 3 push.gguf")
    for _ in range(30):
        knobs.turn(0.1)
    assert knobs.terms[0].strength == 2
    assert "past what was measured" in knobs.worth()
    for _ in range(20):
        knobs.turn(-0.1)
    assert str(knobs.steering) == "3 push.gguf"
    knobs.choose(1)
    knobs.turn(0.5)
    assert knobs.terms[1].strength == 3
    knobs.reset()
    assert not knobs.steering


def test_doses_are_told_of_one_and_of_all(session: Session) -> None:
    knobs = knobs_at(session, "0.5 loud.gguf")
    assert np.allclose(np.array(knobs.doses("loud.gguf"), float), (0.4, 0.3))
    assert knobs.weigh()[0] == pytest.approx(0.15)
    assert knobs.worth().startswith("-1 quiet, +1 loud; +0.5 is a relative dose of 0.15\n")
    knobs.turn(-1.0)
    assert knobs.weigh()[0] == pytest.approx(0.2)
    assert "-0.5 is a relative dose of 0.20" in knobs.worth()


# ---- the answer


def test_the_last_question_is_answered_and_the_conversation_stays(session: Session) -> None:
    session.steer(parse_steering("loud.gguf"))
    session.ask("Hello")
    latest, turns = session.conversation.latest, list(session.conversation.turns)
    assert latest is not None
    heard = harmless(latest.text)
    knobs = Knobs(session, quiet=0.01)
    assert knobs.question == "Hello"
    with previewed(knobs) as wait:
        wait(lambda: len(knobs.said) > len(heard))
        assert knobs.said.startswith(heard)
        knobs.turn(-2.0)
        assert knobs.stale
        wait(lambda: not knobs.stale)
        wait(lambda: len(knobs.said) > len(heard))
        assert not knobs.said.startswith(heard)
    assert (session.conversation.latest, session.conversation.turns) == (latest, turns)
    session.ask("And now?")
    told = session.conversation.turns[-1]
    carry_out(session, "/reset")
    session.ask("Hello")
    session.ask("And now?")
    assert session.conversation.turns[-1] == told


def test_a_turn_ends_the_answer_and_several_at_once_begin_one(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    knobs = knobs_at(session, "0.5 loud.gguf", quiet=0.2)
    begun = []

    def endless(plan: Any, _text: str, *, should_stop: Callable[[], bool], **_settings: object) -> None:
        begun.append(str(plan.steering))
        while not should_stop():
            time.sleep(0.001)

    monkeypatch.setattr(session.conversation, "preview", endless)
    with previewed(knobs) as wait:
        wait(lambda: begun == ["0.5 loud.gguf"])
        for _ in range(3):
            knobs.turn(0.1)
        wait(lambda: len(begun) == 2)
    assert begun == ["0.5 loud.gguf", "0.8 loud.gguf"]


def test_a_vector_is_built_when_it_is_first_turned(session: Session) -> None:
    (user_folder() / "loud").mkdir(parents=True)
    (user_folder() / "loud" / "concept.yaml").write_text(CONCEPT)  # a tiny model sees no difference there
    knobs = Knobs(session, quiet=0.01)
    names = [term.vector for term in knobs.terms]
    assert not knobs.is_built("cautious")
    told = []
    knobs.redraw = lambda: told.append(knobs.building)
    with previewed(knobs) as wait:
        knobs.choose(names.index("cautious"))
        assert "is built for this model when it is first turned" in knobs.worth()
        knobs.turn(0.5)
        wait(lambda: knobs.is_built("cautious") and not knobs.stale)
        assert any(re.fullmatch(r"Building cautious: .+ \d+/\d+", one) for one in told)
        assert (knobs.building, knobs.problem) == ("", "")
        assert knobs.weigh()[0]
        knobs.choose(names.index("loud") - knobs.chosen)
        knobs.turn(0.5)
        assert knobs.stale
        wait(lambda: not knobs.stale)
        assert "do not differ" in knobs.problem
    assert str(knobs.steering) == "0.5 cautious"
    assert Knobs(session).terms[0].vector == "cautious"


# ---- keys


@pytest.mark.parametrize(
    ("keys", "kept", "steering"),
    [
        (f"{RIGHT}{RIGHT}{LEFT}{RIGHT}{ENTER}", True, "0.7 loud.gguf"),
        (f"{SHIFT_RIGHT}{ENTER}", True, "loud.gguf"),
        (f"\x1b[5~{RIGHT}\x1b[6~\x1b[6~{ENTER}", True, "0.1 loud.gguf"),
        (f"0{DOWN}?{ENTER}", True, ""),
        (f"{RIGHT}q", False, "0.5 loud.gguf"),
        (f"{RIGHT}\x03", False, "0.5 loud.gguf"),
        (f"{RIGHT}{ESC}", False, "0.5 loud.gguf"),
    ],
)
def test_keys_turn_keep_and_leave(session: Session, keys: str, kept: bool, steering: str) -> None:
    knobs = knobs_at(session, "0.5 loud.gguf")
    with create_pipe_input() as typed, create_app_session(input=typed, output=DummyOutput()):
        typed.send_text(keys)
        application(knobs).run()
    assert knobs.kept is kept
    assert not kept or str(knobs.steering) == steering


def test_what_the_limit_does_not_allow_is_not_kept(session: Session, tiny: Model) -> None:
    session.opened = replace(session.opened, limit=DoseLimit(0.2, read_hidden_norm(tiny)))
    knobs = knobs_at(session, "0.01 loud.gguf")
    with create_pipe_input() as typed, create_app_session(input=typed, output=DummyOutput()):
        typed.send_text(f"{SHIFT_RIGHT * 4}{ENTER}q")
        application(knobs).run()
    assert knobs.kept is False
    assert "--max-dose allows 0.2" in knobs.weigh()[1]


# ---- what is seen


def drawn(knobs: Knobs, columns: int, lines: int, keys: str = "") -> list[str]:
    """The screen when these keys and a q were pressed."""
    written = io.StringIO()
    output = Vt100_Output(written, lambda: Size(rows=lines, columns=columns), term="xterm")
    with create_pipe_input() as typed, create_app_session(input=typed, output=output):
        shown = application(knobs)
        typed.send_text(f"{keys}q")
        shown.run()
    # At its end it goes to a line below the last one.
    screen = pyte.Screen(columns, lines + 1)
    pyte.Stream(screen).feed(written.getvalue().partition("\x1b[?1049l")[0])
    return [line.rstrip() for line in screen.display[:lines]]


def test_everything_fits_sixty_columns_and_24_lines(session: Session) -> None:
    knobs = knobs_at(session, "0.5 loud.gguf + !push.gguf")
    lines = drawn(knobs, 60, 24, SHIFT_RIGHT * 2)
    assert lines[0].startswith("relative dose 0.45, text may suffer  1.5 loud.gguf + !push.g")
    assert lines[2] == "> loud.gguf    ────┊───┃━━━┊━●──  +1.5! 0.40  0.30"
    assert lines[3] == "  !push.gguf, which stays as it is"
    assert any("built at first use" in line for line in lines)
    assert f"> {knobs.question}" in lines
    assert lines[-1] == "Enter keeps, Esc leaves all as it was, ? tells the keys"
    assert drawn(knobs, 60, 24, "?")[-1].startswith("↑↓ choose")


def test_more_knobs_than_lines_scroll(session: Session) -> None:
    knobs = Knobs(session)
    last = knobs.terms[-1].vector
    assert not any(line.startswith(f"  {last}") for line in drawn(knobs, 80, 20))
    assert any(line.startswith(f"> {last}") for line in drawn(Knobs(session), 80, 20, "\x1b[F"))


def test_a_slider_is_filled_from_nothing_to_the_strength() -> None:
    def text(strength: float) -> str:
        return "".join(fragment[1] for fragment in slider(strength, 17))

    assert text(0) == "────┊───┃───┊────"
    assert text(-1) == "────●━━━┃───┊────"
    assert text(5) == "────┊───┃━━━┊━━━●"
    warned = [fragment[1] for fragment in slider(2, 17) if fragment[0] == "class:strong"]
    assert warned == ["━", "━", "━", "●"]


def test_a_pipe_has_no_knobs(session: Session) -> None:
    with pytest.raises(LocalsteerError, match=r"^This fills a terminal, and there is none here\.$"):
        carry_out(session, "/knobs")


def test_knobs_in_a_terminal(tiny_path: TinyPath, session: Session) -> None:
    command = [str(ROOT / "cli.py"), "chat", "-m", str(tiny_path("llama")), "-n", "6", "-s", "0.5 loud.gguf", "--threads", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color"}
    process = pexpect.spawn(sys.executable, command, dimensions=(24, 60), env=environment)
    screen = pyte.Screen(60, 24)
    stream = pyte.ByteStream(screen)

    def see(text: str) -> None:
        end = time.monotonic() + 60
        while text not in "\n".join(screen.display):
            assert time.monotonic() < end, screen.display
            with contextlib.suppress(pexpect.TIMEOUT):
                data = process.read_nonblocking(65536, timeout=0.05)
                stream.feed(data)
                if b"\x1b[6n" in data:  # where the cursor is
                    process.send(f"\x1b[{screen.cursor.y + 1};{screen.cursor.x + 1}R")

    with contextlib.closing(process):
        see("context 0/")
        process.send("/knobs\r")
        see("> loud.gguf    ────┊───┃━●─┊────   +0.5 0.40  0.30")
        process.send(f"{RIGHT}{RIGHT}")
        see("> loud.gguf    ────┊───┃━━●┊────   +0.7 0.40  0.30")
        process.send(ENTER)
        see("Steering: 0.7 loud.gguf")
        process.send("\x04")
        process.expect(pexpect.EOF)
    assert process.exitstatus == 0
