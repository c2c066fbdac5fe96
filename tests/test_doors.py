"""Every door takes bad inputs by the thousand: what comes of one is a result or one clear error, in time and within 1 GB.

`make test` tries 400 at each; `make fuzz` 10,000. Vectors, adapters and models have tests of their own (tests/files/
test_mutated_files.py), and so have requests (tests/server/test_hostile_requests.py).
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from random import Random

import pytest

from localsteer.chat.history import History
from localsteer.chat.transcript import SavedMessage, Transcript, load_transcript, save_transcript, to_markdown
from localsteer.concepts.concept_file import load_concept
from localsteer.concepts.contrast import read_prompt_files
from localsteer.concepts.names import shipped_folder
from localsteer.discovery import OLLAMA_MODEL_LAYER, find_models, ollama_layers, resolve_model
from localsteer.errors import ExpressionError, LocalsteerError
from localsteer.files.json_values import json_text
from localsteer.policy.examples import read_examples
from localsteer.policy.policy_file import load_policy
from localsteer.server.steerings import load_presets, parse_requested
from localsteer.steering.expression import parse_steering
from tests.commands.runner import CONCEPT, run
from tests.door_report import Door
from tests.mutations import EXAMPLES, assert_clear, in_time, mutated, one_more_gigabyte

POLICIES = Path(__file__).parents[1] / "docs" / "policies"
PAIRS = """\
name: numbers
poles: {positive: more, negative: less}
templated: true
pairs:
  - {positive: "One\\nmore", negative: 'One less'}
  - positive: &again Two more
    negative: *again
held_out: {questions: [How many?]}
"""
POLICY = """\
version: 1
on_error: steer
stride: 4
audit: log.jsonl
classifiers:
  word: {type: rule, words: [pig, "api key"], patterns: ['(?i)api[_ -]?key', '^a{1,3}$'], watch: prompt}
  felt: {type: probe, vector: felt.gguf, threshold: 0.5, release: 0.25, watch: output}
  bad: {type: model, question: "Is it bad?", watch: prompt, threshold: 0.5}
rules:
  - {name: calm, when: word and not (felt or bad), steer: 0.5 happy - 0.3 "a b"@3-5, hold: 3, ramp: 2}
  - {name: back, when: felt, steer: "!mood", rewind: 8}
"""
PRESETS = 'presets:\n  cheerful: "0.6 happy"\n  stern: -0.5 happy + 0.5 formal@8-12\n  none: ""\n'
PROMPTS = "Be glad.\\nNow \\x41 \\\\ say:\n\nI am \\'very\\' glad\nEnd\t.\r\n"
EXPRESSIONS = [
    "0.5 happy + 0.3 formal",
    '-2 "a b.gguf"@8-23@thinking - !mood',
    "1e3*x@3 + .5 -y.gguf",
    "!a + !b@1",
    "2024-01.gguf",
]
TEXTS = {
    ".txt": ["Hello there.\nHow are you?\n"],
    ".jsonl": ['{"text": "Hello", "label": 1}\n{"prompt": "Hi", "answer": "Ho", "label": "no"}\n{"text": "\\u00e4"}\n'],
    ".csv": ['text,label\n"Hello, you",1\nHi,0\n', "prompt,answer,label\nHi,Ho,yes\n"],
}

Reader = Callable[[bytes], None]


def attack(read: Reader, originals: Sequence[bytes | str]) -> None:
    """Try a door with so many inputs; the first one that gets through says which it was."""
    sound = [one.encode() if isinstance(one, str) else one for one in originals]
    with one_more_gigabyte():
        for seed in range(EXAMPLES):
            data = mutated(sound, Random(seed)) if seed >= len(sound) else sound[seed]
            try:
                with in_time():
                    read(data)
            except LocalsteerError as error:
                assert_clear(error)
            except BaseException as error:
                error.add_note(f"seed {seed}: {data[:2000]!r}")
                raise


def from_file(path: Path, read: Callable[[Path], object]) -> Reader:
    def of_bytes(data: bytes) -> None:
        path.write_bytes(data)
        read(path)

    return of_bytes


def test_concepts(door: Door, tmp_path: Path) -> None:
    door("concepts", EXAMPLES)
    shipped = [(shipped_folder() / name / "concept.yaml").read_bytes()[:4000] for name in ("happy", "formal")]
    attack(from_file(tmp_path / "concept.yaml", load_concept), [CONCEPT, PAIRS, *shipped])


def test_policies(door: Door, tmp_path: Path) -> None:
    door("policies", EXAMPLES)
    attack(from_file(tmp_path / "policy.yaml", load_policy), [POLICY, *(one.read_bytes() for one in POLICIES.glob("*.yaml"))])


def test_presets(door: Door, tmp_path: Path) -> None:
    door("presets", EXAMPLES)
    attack(from_file(tmp_path / "presets.yaml", load_presets), [PRESETS])


def test_prompt_files(door: Door, tmp_path: Path) -> None:
    door("prompt files", EXAMPLES)
    other = tmp_path / "other.txt"
    other.write_text(PROMPTS, newline="")
    attack(from_file(tmp_path / "prompts.txt", lambda path: read_prompt_files(path, other, name="x")), [PROMPTS])


@pytest.mark.parametrize("parse", [parse_steering, parse_requested])
def test_expressions(door: Door, parse: Callable[[str], object]) -> None:
    door("expressions, in two ways", EXAMPLES)

    def read(data: bytes) -> None:
        steering = parse(data.decode("utf-8", "surrogateescape"))
        with contextlib.suppress(LocalsteerError):  # a name with both kinds of quotes
            assert parse(str(steering)) == steering

    attack(read, EXPRESSIONS)


@pytest.mark.parametrize("suffix", TEXTS)
def test_examples(door: Door, tmp_path: Path, suffix: str) -> None:
    door("examples for a policy, in three formats", EXAMPLES)
    attack(from_file(tmp_path / f"examples{suffix}", read_examples), TEXTS[suffix])


# Conversations

SAID = Transcript(
    (
        SavedMessage("user", "How are you?"),
        SavedMessage("assistant", "Fine.\n```py\nx\n```", reasoning="Hm.", cut=True, steering="0.5 happy"),
        SavedMessage("user", "And now?"),
    ),
    system="Be kind.",
    steering="0.5 happy - !mood",
    policy="p.yaml",
    think=True,
    model="demo",
    created="2026-01-31T12:00:00+00:00",
    updated="2026-01-31T12:00:01+00:00",
)


def test_saved_conversations(door: Door, tmp_path: Path) -> None:
    door("saved conversations", EXAMPLES)
    written = tmp_path / "written.json"

    def read(path: Path) -> None:
        transcript = load_transcript(path)
        assert all(line.isprintable() for line in to_markdown(transcript).replace("\t", "").split("\n"))
        save_transcript(transcript, written)
        assert load_transcript(written).messages == transcript.messages

    attack(from_file(tmp_path / "said.json", read), [json_text(SAID.document())])


def test_the_database_of_conversations(door: Door, tmp_path: Path) -> None:
    door("the database of conversations", EXAMPLES)
    path = tmp_path / "history.db"
    with History(path) as history:
        for _ in range(3):
            history.grow(history.begin(SAID), "More.")
    whole = path.read_bytes()

    def read(data: bytes) -> None:
        for other in tmp_path.iterdir():
            other.unlink()
        path.write_bytes(data)
        with History(path) as history:
            entries = []
            for words in ("", "fine"):
                with contextlib.suppress(LocalsteerError):
                    entries = history.entries(words)
            json_text([asdict(entry) for entry in entries])
            id = 1
            for step in (
                lambda: to_markdown(history.read(id)),
                lambda: history.write(id, SAID),
                lambda: history.grow(history.begin(SAID), "More."),
                lambda: history.delete([2]),
                history.delete_all,
            ):
                try:
                    step()
                except LocalsteerError as error:
                    assert_clear(error)

    attack(read, [whole])


# Models of other programs


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with a model of each program's."""
    digest = "sha256-" + "ab" * 32
    files = {
        f".ollama/models/blobs/{digest}": b"GGUF" + bytes(60),
        f".ollama/models/blobs/sha256-{'cd' * 32}": b"Be kind.",
        ".lmstudio/models/somebody/small/small.gguf": b"GGUF" + bytes(60),
        ".cache/huggingface/hub/models--a--b/snapshots/abc/one.gguf": b"GGUF" + bytes(60),
    }
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path


MANIFEST = json.dumps(
    {
        "schemaVersion": 2,
        "layers": [
            {"mediaType": OLLAMA_MODEL_LAYER, "digest": "sha256:" + "ab" * 32, "size": 64},
            {"mediaType": "application/vnd.ollama.image.system", "digest": "sha256:" + "cd" * 32, "size": 8},
        ],
    }
)


@pytest.mark.parametrize(
    ("name", "original"),
    [
        (".ollama/models/manifests/registry.ollama.ai/library/tiny/latest", MANIFEST),
        (".lmstudio/settings.json", '{"downloadsFolder": "~/models", "x": [1, 2]}'),
        (".lmstudio-home-pointer", "/somewhere/else\n"),
        (".cache/huggingface/hub/models--a--b/refs/main", "abc"),
        (f".ollama/models/blobs/sha256-{'cd' * 32}", "Be kind."),
    ],
)
def test_what_other_programs_say_of_their_models(
    door: Door, home: Path, caplog: pytest.LogCaptureFixture, name: str, original: str
) -> None:
    door("manifests, settings, pointer, reference and system text of other programs", EXAMPLES)
    path = home / name
    path.parent.mkdir(parents=True, exist_ok=True)
    blob = home / ".ollama" / "models" / "blobs" / f"sha256-{'ab' * 32}"

    def read(_path: Path) -> None:
        caplog.clear()
        found = find_models({}, home)
        assert {"lm-studio", "hugging-face"} <= {one.source for one in found}
        ollama_layers(blob, "tiny")
        with contextlib.suppress(LocalsteerError):
            resolve_model("tiny", {}, home)
        assert all(record.getMessage().isprintable() and len(record.getMessage()) < 3000 for record in caplog.records)

    with caplog.at_level(logging.WARNING, "localsteer"):
        attack(from_file(path, read), [original])


# Names of files: a stranger's folder


NAMES = ["a\x1b[2Jb", "a\x9b2Jb", "a\u202eb", "a\nb", "\udcff", "x" * 200, " ", "a'\"b"]


@pytest.mark.parametrize("name", NAMES)
def test_names_of_files_command_no_terminal(
    door: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    door("names of files, seven commands each", 7)
    (tmp_path / f"{name}.gguf").write_bytes(b"GGUF" + bytes(60))
    monkeypatch.setenv("LOCALSTEER_MODELS", str(tmp_path))
    for arguments in (
        ("models", "list"),
        ("models", "list", "--json"),
        ("vectors", "show", tmp_path / f"{name}.gguf"),
        ("generate", "hi", "-m", tmp_path / f"{name}.gguf"),
        ("generate", "hi", "-m", "nothing-like-it"),
        ("policy", "check", tmp_path / f"{name}.yaml"),
        ("history", "export", "1", tmp_path / f"{name}.md"),
    ):
        shown = run(capfd, *arguments)
        assert "Traceback" not in shown.err
        text = shown.out + shown.err
        assert all(line.isprintable() for line in text.replace("\t", "").split("\n")), (arguments, text)


@pytest.mark.parametrize("expression", ["0.5 \x1b[2J happy", "0.5 a\x9b2J b", '"\u202e', "x" * 5000 + " y"])
def test_a_mistake_in_an_expression_is_shown_without_what_commands_a_terminal(expression: str) -> None:
    with pytest.raises(ExpressionError) as told:
        parse_steering(expression)
    assert_clear(told.value)
