"""The chat and its commands from a pipe, as a user with a script has them."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from localsteer.chat import history
from localsteer.chat.commands import COMMANDS, carry_out
from localsteer.chat.conversation import Conversation
from localsteer.chat.history import History
from localsteer.chat.keeping import Keeper, go_on
from localsteer.chat.screen import PlainScreen, ShouldStop, harmless
from localsteer.chat.session import Opened, Session
from localsteer.chat.transcript import SavedMessage, Transcript
from localsteer.commands.output import interrupt_stops_answer, progress_bar
from localsteer.engine.generate import Generator
from localsteer.errors import LocalsteerError
from localsteer.llama.model import Model
from localsteer.llama.sampling import Sampling
from localsteer.policy.arm import ArmedPolicy, arm
from localsteer.policy.controller import Controller
from localsteer.vector.calibration import Mode
from localsteer.vector.control_vector import ControlVector
from localsteer.vector.file import write_vector
from tests.calibration.made import calibrated_on
from tests.commands.runner import Result, run

TinyPath = Callable[[str], Path]
Chat = Callable[..., Result]


@pytest.fixture
def chat(tiny_path: TinyPath, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Chat:
    def talk(*lines: str, options: tuple[str, ...] = ()) -> Result:
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        return run(capfd, "chat", "-m", tiny_path("llama"), "-n", "6", "--seed", "2", *options)

    return talk


def session_with(generator: Generator, *, screen: PlainScreen | None = None, armed: ArmedPolicy | None = None) -> Session:
    """A chat of short answers."""
    conversation = Conversation(generator, sampling=Sampling(seed=2), max_tokens=6)

    @contextlib.contextmanager
    def other(_name: str | None, _mode: Mode) -> Iterator[Opened]:
        raise LocalsteerError("There is no other model.")
        yield

    opened = Opened(generator.model, generator, armed=armed)
    return Session(
        screen or PlainScreen(progress_bar, interrupt_stops_answer), opened, conversation, other, contextlib.ExitStack()
    )


@pytest.fixture
def vector(tmp_path: Path) -> Path:
    path = tmp_path / "push.gguf"
    write_vector(ControlVector({1: np.full(64, 3, np.float32)}), path)
    return path


@pytest.fixture
def loud(tiny: Model, tmp_path: Path) -> Path:
    path = tmp_path / "loud.gguf"
    write_vector(calibrated_on(tiny), path)
    return path


def test_answers_each_line_until_the_input_ends(chat: Chat) -> None:
    one = chat("Hello")
    assert one.code == 0
    assert one.out.strip()
    assert chat("Hello", "", "Again").out.startswith(one.out)


def test_commands_in_hints_are_for_the_model_that_is_open(chat: Chat, vector: Path, tiny_path: TinyPath) -> None:
    other = tiny_path("qwen2")
    told = chat(f"/steer {vector}", f"/model {other}", f"/steer {vector}", options=("--anchored",)).err
    commands = re.findall(r"`localsteer calibrate ([^`]*)`", told)
    assert commands == [f"{vector} --anchored -m {model}" for model in (tiny_path("llama"), other)]


def test_quit_ends_before_the_next_line(chat: Chat) -> None:
    assert chat("/quit", "Hello").out == ""


def test_steer_changes_and_shows_the_steering(chat: Chat, vector: Path) -> None:
    plain = chat("Hello").out
    steered = chat("Hello", options=("-s", str(vector))).out
    assert plain != steered
    result = chat("/steer", f"/steer {vector}", "Hello", "/reset", "/steer off", "Hello")
    assert result.out.startswith("Steering: unsteered\n")
    assert f"Steering: {vector}" in result.out
    assert steered in result.out
    assert result.out.endswith(f"Steering: unsteered\n{plain}")


def test_anchored_may_be_switched_on_and_off(chat: Chat, vector: Path) -> None:
    steering = ("-s", str(vector))
    plain, anchored = chat("Hello", options=steering).out, chat("Hello", options=(*steering, "--anchored")).out
    assert plain != anchored
    result = chat("/anchored on", "Hello", "/reset", "/anchored off", "Hello", "/anchored", options=steering)
    assert result.out.startswith(f"Anchored answers: on\nSteering: {vector}, anchored\n{anchored}")
    assert result.out.endswith(f"{plain}Anchored answers: off\nSteering: {vector}\n")
    assert '"on" or "off", not "maybe"' in chat("/anchored maybe").err


def test_anchored_answers_have_doses_of_their_own(chat: Chat, loud: Path) -> None:
    result = chat("/anchored on", "/steer off", f"/steer -{loud}", "/anchored off", options=("-s", str(loud)))
    on, off = "Anchored answers: on\n", "Anchored answers: off\n"
    assert result.out == (
        f"{on}Steering: {loud}, relative dose 0.60, anchored\nSteering: unsteered\n"
        f"Steering: -{loud}, relative dose 0.70, anchored\n{off}Steering: -{loud}, relative dose 0.40\n"
    )


def test_a_dose_that_is_not_allowed_leaves_the_chat_as_it_is(chat: Chat, loud: Path, tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(
        "version: 1\nclassifiers:\n  pigs: {type: rule, words: [pig], watch: prompt}\n"
        f"rules:\n  - {{name: calm, when: pigs, steer: {loud.name}}}\n"
    )
    for steering in (("-s", str(loud)), ("--policy", str(policy))):
        result = chat("/anchored on", "/anchored", options=(*steering, "--max-dose", "0.5"))
        assert "0.6" in result.err
        assert result.out.startswith("Anchored answers: off\n")


def test_who_draws_from_everything_cannot_anchor(chat: Chat, vector: Path) -> None:
    everything = ("-s", str(vector), "--min-p", "0", "--top-p", "1", "--top-k", "0")
    result = chat("/anchored on", "/anchored", options=everything)
    assert "needs top-k, top-p or min-p" in result.err
    assert result.out == f"Anchored answers: off\nSteering: {vector}\n"
    refused = chat("Hello", options=(*everything, "--anchored"))
    assert (refused.code, refused.out) == (1, "")
    assert "needs top-k, top-p or min-p" in refused.err


def test_a_mistake_is_said_and_the_chat_goes_on(chat: Chat) -> None:
    result = chat("/steer 0.5 hapy", "/steer 1 happy sad", "/ster x", "/compare", "/sweep happy", "Hello", "/compare")
    assert result.code == 0
    assert "Did you mean happy?" in result.err
    assert "^" in result.err
    assert "Did you mean /steer?" in result.err
    assert "Nothing is steered" in result.err
    assert result.err.count("nothing to compare") == 2
    assert result.out == chat("Hello").out


def test_compare_shows_three_ways(chat: Chat, vector: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(vector.parent)  # a title must fit its column
    result = chat("Hello", "/compare", options=("-s", vector.name))
    assert result.out.count("unsteered") == 1
    assert result.out.count("push.gguf") >= 2


def test_system_message_is_set_and_removed(chat: Chat) -> None:
    result = chat("/system You are a pirate.", "/system", "/system off")
    assert result.out == "System message: You are a pirate.\nSystem message: You are a pirate.\nSystem message: none\n"
    assert chat("Hello").out != chat("/system You are a pirate.", "Hello").out.partition("\n")[2]


def test_that_the_context_is_full_is_said_when_it_happens_and_not_again(chat: Chat) -> None:
    err = chat(*["Question"] * 12, options=("--context", "256")).err
    told = [int(count) for count in re.findall(r"the oldest (\d+) messages are left out", err)]
    assert 1 <= len(told) <= 5
    assert told == sorted(set(told))


def test_that_an_answer_had_no_text_is_said(tiny: Model, capfd: pytest.CaptureFixture[str]) -> None:
    class Impatient(PlainScreen):
        @contextlib.contextmanager
        def stoppable(self) -> Iterator[Callable[[], bool]]:
            yield lambda: True

    with Generator(tiny) as generator:
        session_with(generator, screen=Impatient(progress_bar, interrupt_stops_answer)).ask("Hello")
    assert "[stopped; without text: your message is not kept either]" in capfd.readouterr().err


def test_help_lists_every_command(chat: Chat) -> None:
    out = chat("/help").out
    for name in COMMANDS:
        assert f"\n{name} " in f"\n{out}", name


# A policy


@pytest.fixture
def policy(tmp_path: Path, vector: Path) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text(
        "version: 1\n"
        "classifiers:\n"
        "  pigs: {type: rule, words: [pig], watch: prompt}\n"
        "  third: {type: rule, patterns: ['.{3}'], watch: output}\n"
        "rules:\n"
        "  - {name: calm, when: pigs, steer: 0.5 push.gguf}\n"
        "  - {name: back, when: pigs and third, steer: push.gguf, rewind: 2}\n"
        "audit: audit.jsonl\n"
    )
    return path


def test_what_the_policy_did_is_remarked_after_the_answer(chat: Chat, policy: Path) -> None:
    result = chat("A hen", "A pig", options=("--policy", str(policy)))
    calm, hen = result.err.index("policy: calm fired after the prompt (pigs 1.00, true from 0.50)"), result.err.index("/help")
    assert hen < calm
    assert result.err.count("calm") == 1
    assert "policy: back rewind at token" in result.err
    assert "did not fire" not in result.err
    assert "policy" not in result.out


def test_what_the_policy_lets_pass_is_answered_as_without_it(chat: Chat, policy: Path) -> None:
    assert chat("A hen", "Hello", options=("--policy", str(policy))).out == chat("A hen", "Hello").out


def test_policy_shows_what_is_armed_and_what_was_decided(chat: Chat, policy: Path) -> None:
    armed = (
        "pigs: watches the prompt, true from 0.50, false below 0.50\n"
        "third: watches the output, true from 0.50, false below 0.50\n"
        "calm: when pigs, steer 0.5 push.gguf\n"
        "back: when pigs and third, steer push.gguf\n"
    )
    assert chat("/policy", options=("--policy", str(policy))).out == f"{armed}Nothing was decided yet.\n"
    passed = chat("A hen", "/policy", options=("--policy", str(policy))).out
    shown = armed + (
        "  policy: calm did not fire after the prompt (pigs 0.00, true from 0.50)\n"
        "  policy: back did not fire at token 6 (third 1.00, true from 0.50)\n"
    )
    assert passed.endswith(shown)
    fired = chat("A hen", "A pig", "/policy", "/reset", "/policy", options=("--policy", str(policy))).out
    assert f"{armed}  policy: calm fired after the prompt (pigs 1.00, true from 0.50)\n  policy: back rewind at token" in fired
    assert fired.endswith(f"The conversation begins anew.\n{armed}Nothing was decided yet.\n")


def test_policy_without_one_says_how_to_get_one(chat: Chat) -> None:
    result = chat("/policy", "Hello")
    assert "There is no policy. Start the chat with --policy FILE." in result.err
    assert result.out == chat("Hello").out


def test_the_status_shows_the_steering_and_what_the_policy_did(tiny: Model, policy: Path) -> None:
    with arm(policy, tiny) as armed, Generator(tiny) as generator:
        session = session_with(generator)
        assert (session.status(), session.policy_state) == ("unsteered", None)
        session.conversation.controller = Controller(armed.policy)
        assert session.policy_state == "policy: armed"
        session.ask("A pig")
        assert session.policy_state == "policy: calm, back"
        session.ask("A hen")
        assert session.policy_state == "policy: armed"


def test_a_policy_changes_its_doses_with_anchored_answers(tiny: Model, policy: Path) -> None:
    with arm(policy, tiny) as armed, Generator(tiny) as generator:
        session = session_with(generator, armed=armed)
        conversation = session.conversation
        conversation.controller = Controller(armed.policy)
        carry_out(session, "/anchored on")
        assert (session.status(), session.policy_state) == ("unsteered, anchored", "policy: armed")
        assert (conversation.mode, conversation.controller.policy) == ("anchored", armed.for_answers("anchored"))
        carry_out(session, "/anchored off")
        assert (conversation.mode, conversation.controller.policy) == ("response", armed.policy)


def test_a_chat_writes_one_conversation_into_the_audit_log(chat: Chat, policy: Path, tmp_path: Path) -> None:
    chat("A pig", "A hen", "/reset", "A pig", options=("--policy", str(policy)))
    written = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    ids = [(one["conversation"], one["answer"]) for one in written]
    assert [answer for _, answer in dict.fromkeys(ids)] == [1, 2, 1]
    assert len({conversation for conversation, _ in ids}) == 2
    assert not any("text" in one for one in written)


def test_help_and_the_hint_for_a_slip_know_the_policy(chat: Chat) -> None:
    assert "/policy" in chat("/help").out
    assert "Did you mean /policy?" in chat("/polcy").err
    assert "Did you mean" not in chat("/nope").err


def test_help_for_one_command_and_nothing_behind_those_that_take_nothing(chat: Chat) -> None:
    result = chat("/help sweep", "/help /clear", "/help swep", "Hello", "/undo 3", "/undo")
    sweep, reset, *_ = result.out.split("\n")
    assert sweep.startswith("/sweep NAME [FROM TO [COUNT]]: the last message at several strengths")
    assert reset.startswith("/reset: forget the conversation")
    assert "Did you mean /sweep?" in result.err
    assert "/undo takes nothing behind it, and there is: 3" in result.err
    assert result.out.endswith("Forgotten: Hello\n")


def test_several_lines_are_one_message_between_quotes(chat: Chat) -> None:
    assert chat('"""One', "", 'two"""', "/undo").out.endswith("Forgotten: One\n\ntwo\n")


def test_undo_and_retry(chat: Chat) -> None:
    first = chat("Hello").out
    assert chat("Hello", "/retry").out == first * 2
    other = chat("Hello", "/retry 9").out
    assert other.startswith(first)
    assert other != first * 2
    result = chat("/undo", "/retry", "/retry seven", "Hello", "/undo", "/undo")
    assert result.out == f"{first}Forgotten: Hello\n"
    for said in ("nothing to undo", "no question yet", '"seven" is no seed'):
        assert said in result.err


def test_the_last_knob_is_turned_by_steps(chat: Chat, vector: Path) -> None:
    result = chat("/steer +0.1", f"/steer 0.5 {vector}", "/steer +0.25", "/steer -1")
    assert "no knob to turn" in result.err
    assert result.out == f"Steering: 0.5 {vector}\nSteering: 0.75 {vector}\nSteering: -0.25 {vector}\n"


def test_a_sweep_shows_every_strength(chat: Chat, vector: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(vector.parent)
    out = chat("Hello", "/sweep push.gguf -1 1 3").out
    for title in ("-1 push.gguf", "0 push.gguf", "1 push.gguf"):
        assert f" {title} " in out
    err = chat("Hello", "/sweep", "/sweep push.gguf 1", "/sweep push.gguf a 1", "/sweep push.gguf -1 1 90", "/sweep hapy").err
    for said in ("takes a vector", '"a" is no number', "2 to 9 strengths, not 90", "Did you mean happy?"):
        assert said in err


def test_the_course_of_a_trait_is_shown_after_every_answer(chat: Chat, vector: Path) -> None:
    result = chat(f"/watch {vector}", "Hello", "/watch off", "Hello", f"/heat {vector}", "/heat")
    assert result.out.startswith(f"Watched: {vector}\n")
    assert result.err.count(f"{vector} ") == 1
    assert any(bar in result.err for bar in "▁▂▃▄▅▆▇█")
    assert "standard deviations of everyday text" in result.out.replace("\n", " ")
    assert "/heat needs a vector" in result.err


def test_why_tells_what_was_added(chat: Chat, vector: Path) -> None:
    result = chat("/why", "Hello", "/why", options=("-s", f"0.5 {vector}"))
    assert "no answer yet" in result.err
    assert f"  0.5 {vector}: added at layers 1\n" in result.out
    assert "seed 2" in result.out
    assert "Nothing was added" in chat("Hello", "/why").out


def test_a_file_and_a_command_go_with_the_next_message(chat: Chat, tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("Pigs can swim.")
    result = chat(f"/file {file}", "!echo two words", "/file", "What can pigs do?", "/undo", "/file")
    assert f"With the next message: {file}, $ echo two words\n" in result.out
    assert f"Forgotten: {file}:\n\nPigs can swim.\n\n$ echo two words:\n\ntwo words\n\nWhat can pigs do?\n" in result.out
    assert result.out.endswith("With the next message: nothing\n")
    assert "/notes.txt\n" in chat("What?", f"/file {file}", "/retry", "/file").out  # that was asked before
    (tmp_path / "picture").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "empty").write_text(" \n")
    refused = chat(f"/file {tmp_path}/none", f"/file {tmp_path}/picture", f"/file {tmp_path}/empty", "/file")
    for said in ("No such file", "no text in UTF-8", "is empty"):
        assert said in refused.err
    assert refused.out == "With the next message: nothing\n"


def test_what_a_model_says_cannot_command_a_terminal() -> None:
    assert harmless("a\x1b[2Jb\x9b31mc\td\r\ne") == "a\ufffd[2Jb\ufffd31mc\td\ne"


def test_another_model_goes_on_with_the_conversation(chat: Chat, tiny_path: TinyPath) -> None:
    result = chat("Hello", f"/model {tiny_path('qwen2')}", "And now?", "/undo", "/undo", "/model nosuchmodel", "/model")
    assert "Forgotten: And now?\nForgotten: Hello\n" in result.out
    assert "nosuchmodel" in result.err
    assert result.out.rstrip().endswith("unsteered")


def test_how_tokens_are_drawn_can_be_set(chat: Chat) -> None:
    plain, other = chat("Hello").out, chat("Hello", options=("--seed", "5")).out
    result = chat("/set seed 5", "Hello", "/clear", "/set max-tokens 2", "/set seed 2", "/set", "/set think maybe")
    assert result.out.startswith(f"seed 5\n{other}The conversation begins anew.\nmax_tokens 2\nseed 2\n")
    assert other != plain
    assert "temperature 0.7\n" in result.out
    assert 'think is on, off or auto (as the template says), not "maybe"' in result.err
    for line, said in (
        ("/set temprature 1", "Did you mean temperature?"),
        ("/set top_p 2", "from 0 to 1, not 2"),
        ("/set top_k 1.5", "a whole number"),
        ("/set temperature inf", "from 0, not inf"),
        ("/set seed", "needs a value"),
        ("/set colour red", "What can: temperature"),
        ("/set parameter num_predict 9", "Did you mean max_tokens?"),
        ("/set parameter num_ctx 9", "--context"),
        ("/show info", "/model, /system, /set and /steer alone"),
    ):
        assert said in chat(line).err


def test_what_ollamas_chat_takes_is_taken(chat: Chat) -> None:
    lines = (
        "/set parameter temperature 0.3",
        "/set system Be brief.",
        "/set nothink",
        "/?",
        "/clear",
        "/bye",
        "no",
    )
    out = chat(*lines).out
    assert out.startswith("temperature 0.3\nSystem message: Be brief.\nthink off\n")
    assert out.endswith("The conversation begins anew.\n")


def test_a_command_that_the_system_has_not_is_no_context(chat: Chat) -> None:
    result = chat("!nosuchcommand", "/file", "!echo out; exit 3", "/file")
    assert "nosuchcommand" in result.err
    assert result.out == "With the next message: nothing\nout\nWith the next message: $ echo out; exit 3\n"


def test_a_model_that_cannot_think_is_not_made_to(chat: Chat, tiny: Model, vector: Path, tmp_path: Path) -> None:
    result = chat("/set think", f"/steer {vector}", "Hello", "/set")
    assert result.err.count("The model does not think before it answers") == 1
    assert "think auto\n" in result.out
    refused = chat("Hello", options=("--think",))
    assert refused.code == 1
    assert "does not think before it answers" in refused.err
    with Generator(tiny) as generator:
        session = session_with(generator)
        told = list(go_on(session, Transcript((SavedMessage("user", "Hi"), SavedMessage("assistant", "Ho")), think=True)))
    assert any("does not think before it answers" in line for line in told)
    assert session.conversation.think is None
    assert len(session.conversation.turns) == 2


def test_a_conversation_is_saved_and_loaded(chat: Chat, vector: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved, page = tmp_path / "talk.json", tmp_path / "talk.md"
    said = chat("Hello", "/system Be brief.", f"/save {saved}", f"/export {page}", options=("-s", f"0.5 {vector}"))
    assert f"Saved: {saved}\nWritten: {page}\n" in said.out
    assert "## Question\n\nHello\n" in page.read_text()
    result = chat(f"/load {saved}", "/system", "/undo", "/undo")
    assert f"Steering: 0.5 {vector}\nSystem message: Be brief.\nForgotten: Hello\n" in result.out
    assert "Hello: 1 question and answer." in result.err
    assert "nothing to undo" in result.err
    (tmp_path / "other.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    refused = chat("Hello", "/load", f"/load {tmp_path}", f"/load {tmp_path}/other.json", "/save", "/undo")
    for words in ("needs a file", "is a folder", "is not a saved conversation"):
        assert words in refused.err
    assert refused.out.endswith("Forgotten: Hello\n")
    assert "Nothing was said yet" in chat(f"/save {saved}").err


def test_a_conversation_whose_steering_is_not_here_is_not_loaded(chat: Chat, vector: Path, tmp_path: Path) -> None:
    saved = tmp_path / "talk.json"
    chat("Other", f"/save {saved}", options=("-s", f"0.5 {vector}"))
    vector.unlink()
    result = chat("Hello", f"/load {saved}", "/steer", "/undo")
    assert "push.gguf" in result.err
    assert result.out.endswith("Steering: unsteered\nForgotten: Hello\n")


def test_a_kept_conversation_goes_on(chat: Chat, tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "history_path", lambda: tmp_path / "history.db")
    with Generator(tiny) as generator:
        session = session_with(generator)
        session.keeper = keeper = Keeper()
        carry_out(session, "/reset")
        session.ask("Hello")
        answer = session.conversation.turns[1].content
        session.begin_anew()
        session.ask("Another")
        session.ask("And more")
        carry_out(session, "/undo")
        keeper.close()
    assert chat("/undo", "/undo", options=("--resume",)).out == "Forgotten: Another\n"
    first = chat("/undo", options=("--resume", "1"))
    assert first.out == "Forgotten: Hello\n"
    assert "Hello: 1 question and answer." in first.err
    assert answer
    assert "There is no conversation 7" in chat(options=("--resume", "7")).err
    assert chat(options=("--resume", "x")).code == 2
    assert chat(options=("--resume", "--no-log")).code == 2


def test_what_fails_to_take_the_place_of_an_answer_leaves_the_kept_one(tiny: Model, tmp_path: Path) -> None:
    class Impatient(PlainScreen):
        def stoppable(self) -> contextlib.AbstractContextManager[ShouldStop]:
            return contextlib.nullcontext(lambda: True)

    with Generator(tiny) as generator, History(tmp_path / "history.db") as kept:
        session = session_with(generator)
        session.keeper = Keeper(tmp_path / "history.db")
        session.ask("Hello")
        before = kept.read(1).messages
        session.screen = Impatient(progress_bar, interrupt_stops_answer)
        carry_out(session, "/retry")
        assert kept.read(1).messages == before
        carry_out(session, "/why")


def test_a_long_message_is_shown_by_its_beginning_and_its_end(chat: Chat, tmp_path: Path) -> None:
    file = tmp_path / "long.txt"
    file.write_text("Once upon a time.\n" + "filler " * 100 + "\nThe end.")
    result = chat(f"/file {file}", "What happens?", "/undo", options=("--context", "4096"))
    forgotten = result.out.partition("Forgotten: ")[2]
    assert "Once upon a time." in forgotten
    assert "The end.\n\nWhat happens?" in forgotten
    assert len(forgotten) < 900


def test_that_nothing_can_be_kept_is_told_and_ends_nothing(
    tiny: Model, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "history.db").write_text("This is no database, whatever it is called.")
    monkeypatch.setattr(history, "history_path", lambda: tmp_path / "history.db")
    with Generator(tiny) as generator:
        session = session_with(generator)
        session.keeper = Keeper()
        session.ask("Hello")
        session.ask("And now?")
    assert capfd.readouterr().err.count("This conversation is not kept: ") == 1
    assert len(session.conversation.turns) == 4
