"""A conversation as it is kept: what was said, and under which settings; saved as JSON, exported as Markdown."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from localsteer.errors import ExpressionError, LocalsteerError, shown
from localsteer.files.atomic import atomic_path
from localsteer.files.json_values import build, json_text, read_json
from localsteer.files.text import readable
from localsteer.llama.fingerprint import Fingerprint
from localsteer.llama.sampling import MAX_SEED, Sampling
from localsteer.steering.expression import parse_steering
from localsteer.vector.calibration import MODE_NAMES, Mode

FORMAT = "localsteer conversation"
VERSION = 1
# A context of 16,384 tokens is some 70 kB of text, and what is dropped from it stays in the file.
MAX_BYTES = 32 * 2**20
TITLE_LENGTH = 60
# Characters of either end of a long message: five lines or so.
_BRIEF = 400

# What a terminal would act on, or show in another order than it stands in a file: all control characters but tab and line feed,
# line and paragraph separators, what turns the direction of writing, and halves of characters that no encoding can write.
_COMMANDING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})(.*)")

# What the sampler can take; a whole number must fit in the 32 bits that llama.cpp has for it.
_MOST = 2**31 - 1
_RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0, 1e6),
    "top_k": (0, _MOST),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "typical_p": (0, 1),
    "repeat_penalty": (1e-6, 1e6),
    "frequency_penalty": (-1e6, 1e6),
    "presence_penalty": (-1e6, 1e6),
    "repeat_last_n": (0, _MOST),
    "min_tokens": (0, _MOST),
}


@dataclass(frozen=True)
class SavedMessage:
    """A question or an answer.

    Attributes:
        role: whose.
        text: what was said; empty in an answer that was cut while the model still thought.
        reasoning: what the model thought before it; None for nothing.
        cut: whether an answer ended before its time: stopped, at the limit, or by the end of the process.
        steering: the expression that an answer was written under; None where that is not known.
    """

    role: Literal["user", "assistant"]
    text: str
    reasoning: str | None = None
    cut: bool = False
    steering: str | None = None


@dataclass(frozen=True)
class Transcript:
    """A conversation with its settings.

    Attributes:
        messages: questions and answers, one of each in turn; the last question may be without an answer.
        system: the system message, if any.
        steering: the expression that the next answer is steered by; empty for none.
        mode: what is steered.
        policy: the policy's file, if any.
        think: whether the model thinks before it answers; None leaves that to its template.
        max_tokens: longest answer.
        sampling: how tokens are drawn, the seed among it.
        model: the model's name, for people.
        model_path: its file.
        fingerprint: its identity.
        created: when it was begun, ISO 8601, UTC; empty where it was not kept yet.
        updated: when something was last said or set; likewise.
    """

    messages: tuple[SavedMessage, ...] = ()
    system: str | None = None
    steering: str = ""
    mode: Mode = "response"
    policy: str | None = None
    think: bool | None = None
    max_tokens: int = 512
    sampling: Sampling = field(default=Sampling())
    model: str = ""
    model_path: str = ""
    fingerprint: Fingerprint | None = None
    created: str = ""
    updated: str = ""

    @property
    def title(self) -> str:
        """The first words of the first question, in one line that any terminal can show."""
        line = one_line(self.messages[0].text[: 20 * TITLE_LENGTH]) if self.messages else ""
        if len(line) <= TITLE_LENGTH:
            return line
        return f"{line[:TITLE_LENGTH].rpartition(' ')[0] or line[: TITLE_LENGTH - 1]}…"

    def document(self) -> dict[str, Any]:
        """For JSON: the format and its version, and the attributes by their names, the messages last."""
        settings = asdict(self)
        messages = settings.pop("messages")
        return {"format": FORMAT, "version": VERSION, **settings, "messages": messages}


def now() -> str:
    """The time as a transcript tells it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def displayable(text: str) -> str:
    """A text without the characters that would command a terminal; its lines and tabs stay."""
    return _COMMANDING.sub("", text.replace("\r\n", "\n"))


def one_line(text: str) -> str:
    """The same in a single line, each space of it one."""
    return " ".join(displayable(" ".join(text.split())).split())


def brief(text: str) -> str:
    """A message for somebody who knows it: its beginning and its end where it is long, such as one that a file was given with."""
    if len(text) <= 2 * _BRIEF:
        return text
    return f"{text[:_BRIEF].rstrip()}\n[... {len(text) - 2 * _BRIEF:,} characters ...]\n{text[-_BRIEF:].lstrip()}"


def transcript_of(document: Any) -> Transcript:
    """The transcript of a document that may come from anywhere.

    Raises:
        ValueError: it is none; the message names the place.
    """
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError(f'it does not say "format": "{FORMAT}"')
    version = document.get("version")
    if type(version) is not int or version != VERSION:
        newer = " (a newer localsteer wrote it)" if type(version) is int and version > VERSION else ""
        raise ValueError(f"its version is {version}{newer}, and only version {VERSION} can be read")
    # JSON can name halves of characters, which no tokenizer, database or file takes.
    whole = json.loads(json.dumps(document, ensure_ascii=False).encode("utf-8", "replace"))
    transcript = build(Transcript, {key: value for key, value in whole.items() if key not in ("format", "version")})
    for where, problem in _problems(transcript):
        raise ValueError(f"{where} {problem}")
    return transcript


def save_transcript(transcript: Transcript, path: Path) -> None:
    """Write a transcript as JSON, whole or not at all.

    The file holds `"format": "localsteer conversation"`, `"version": 1`, and the attributes of `Transcript` by their names, with
    its messages, its sampling and its model's fingerprint as objects of their attributes; UTF-8.

    Raises:
        LocalsteerError: it cannot be written.
    """
    moment = now()
    dated = replace(transcript, created=transcript.created or moment, updated=transcript.updated or moment)
    _write(path, lambda: json_text(dated.document()) + "\n")


def load_transcript(path: Path) -> Transcript:
    """Read a transcript that `save_transcript` wrote, or somebody else: every value is checked.

    Keys may be missing, but for the format and the version; an unknown one is refused.

    Raises:
        LocalsteerError: there is no such file, or it is no conversation; the message names the place in it.
    """
    try:
        hint = "/save writes one; /model NAME opens a model."
        with readable(path, LocalsteerError, kind="saved conversation", hint=hint, ordinary=True), path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ValueError(f"it is larger than {MAX_BYTES:,} bytes")
        return transcript_of(read_json(data.decode("utf-8-sig")))
    except UnicodeDecodeError as problem:
        raise LocalsteerError(f"{path} is not UTF-8 text (byte {problem.start}).") from problem
    except ValueError as problem:
        raise LocalsteerError(
            shown(f"{path} is not a saved conversation: {problem}."), hint="/save FILE in a chat writes one."
        ) from problem


def export_markdown(transcript: Transcript, path: Path) -> None:
    """Write a transcript as Markdown, whole or not at all.

    Raises:
        LocalsteerError: it cannot be written.
    """
    _write(path, lambda: to_markdown(transcript))


def to_markdown(transcript: Transcript) -> str:
    """A transcript for people: the settings, then question and answer in turn.

    Texts stay as they are, their code blocks with them; a block that an answer did not come to close is closed. Characters that
    would command a terminal are left out.
    """
    parts = [f"# {transcript.title or 'A conversation'}", "\n".join(f"- {fact}" for fact in _facts(transcript))]
    if transcript.system:
        parts += ["## System message", _closed(transcript.system)]
    for message in transcript.messages:
        if message.role == "user":
            parts += ["## Question", _closed(message.text)]
            continue
        other = message.steering is not None and message.steering != transcript.steering
        parts.append(f"## Answer ({_steering(message.steering or '')})" if other else "## Answer")
        if message.reasoning:
            thought = "\n".join(f"> {line}".rstrip() for line in _closed(message.reasoning).splitlines())
            parts += ["*Thinking:*", thought]
        parts += [_closed(message.text), *(["*(cut here)*"] if message.cut else [])]
    return "\n\n".join(part for part in parts if part) + "\n"


def _write(path: Path, text: Callable[[], str]) -> None:
    try:
        with atomic_path(path) as temporary:
            temporary.write_text(text(), encoding="utf-8", errors="replace", newline="\n")
    except ValueError as problem:  # a name that no system takes, or an infinite temperature
        raise LocalsteerError(shown(f"{path} cannot be written: {problem}.")) from problem


def _problems(transcript: Transcript) -> Iterator[tuple[str, str]]:
    """What is wrong with values that have the right types: the places, and what is wrong there."""
    for index, message in enumerate(transcript.messages):
        expected = "assistant" if index % 2 else "user"
        if message.role != expected:
            yield f"messages.{index}.role", f"is not {expected}: questions and answers take turns"
        if not message.text.strip() and not message.cut:
            yield f"messages.{index}.text", "is empty"
        if message.steering is not None:
            yield from _steering_problem(f"messages.{index}.steering", message.steering)
    yield from _steering_problem("steering", transcript.steering)
    if not 1 <= transcript.max_tokens <= _MOST:
        yield "max_tokens", f"is not from 1 to {_MOST}"
    for name, (low, high) in _RANGES.items():
        if not low <= getattr(transcript.sampling, name) <= high:
            yield f"sampling.{name}", f"is not from {low:g} to {high:g}"
    seed = transcript.sampling.seed
    if seed is not None and not 0 <= seed <= MAX_SEED:
        yield "sampling.seed", f"is not from 0 to {MAX_SEED}"
    for name in ("created", "updated"):
        try:
            if time := getattr(transcript, name):
                datetime.fromisoformat(time)
        except ValueError:
            yield name, "is not a time such as 2026-01-31T12:00:00+00:00"


def _steering_problem(where: str, expression: str) -> Iterator[tuple[str, str]]:
    try:
        parse_steering(expression)
    except ExpressionError as error:
        yield where, f"is no steering expression ({error.message.splitlines()[0].rstrip('.')})"


def _facts(transcript: Transcript) -> Iterator[str]:
    yield f"Model: {_code(transcript.model) if transcript.model else 'unknown'}"
    yield f"Steering: {_steering(transcript.steering)}"
    if transcript.mode != "response":
        yield f"Steered: {MODE_NAMES[transcript.mode]}"
    if transcript.policy:
        yield f"Policy: {_code(transcript.policy)}"
    if transcript.think is not None:
        yield f"Thinking: {'on' if transcript.think else 'off'}"
    default = Sampling()
    named = [(one.name.replace("_", " "), getattr(transcript.sampling, one.name), one.name) for one in fields(Sampling)]
    told = [f"{name} {value}" for name, value, key in named if key == "temperature" or value != getattr(default, key)]
    yield f"Sampling: {', '.join(told)}"
    if transcript.created:
        yield f"Begun: {one_line(transcript.created)}"


def _steering(expression: str) -> str:
    return _code(expression) if expression else "none"


def _code(text: str) -> str:
    """A text as a code span, whatever backticks it holds."""
    line = one_line(text)
    ticks = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    space = " " if "`" in line else ""
    return f"{ticks}{space}{line}{space}{ticks}"


def _closed(text: str) -> str:
    """A text that can be shown, with its last code block closed: what stands after it is none of it."""
    text = displayable(text).strip("\n").rstrip()
    opened = ""
    for line in text.splitlines():
        if (fence := _FENCE.fullmatch(line)) is None:
            continue
        marks, rest = fence.groups()
        if not opened:
            opened = marks if marks[0] == "~" or "`" not in rest else ""
        elif marks.startswith(opened) and not rest.strip():
            opened = ""
    return f"{text}\n{opened}" if opened else text
