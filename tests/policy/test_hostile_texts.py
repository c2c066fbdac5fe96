"""Texts, random and adversarial, through every kind of classifier: whatever they hold, an answer comes to its end.

`make test` tries 1,500 of them; LOCALSTEER_EXAMPLES=10100 that many.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from localsteer.engine.draft import Draft
from localsteer.engine.generate import Generator
from localsteer.engine.request import Request
from localsteer.llama.chat_template import Message
from localsteer.llama.model import Model
from localsteer.llama.sampling import Sampling
from localsteer.policy.arm import ArmedPolicy, arm
from localsteer.policy.controller import Controller
from localsteer.policy.examples import Example, read_examples
from localsteer.policy.replay import Replayed, replay
from localsteer.reading.prompt import prompt_tokens
from localsteer.vector.control_vector import ControlVector
from localsteer.vector.file import write_vector
from tests.door_report import Door
from tests.policy.made import EXAMPLES, probe_vector, yes_and_no_are_letters
from tests.tiny_models import write_tiny_model

PIECES = (
    *("<|im_end|>", "<|im_start|>assistant\n", "<|endoftext|>", "<s>", "</s>", "[INST]", "<<SYS>>", "<|im_", "\x01text\x01"),
    *("{{ 7 * 7 }}", "{% endfor %}", "${jndi:x}", "%s%n", "'; --", "\\", "\\u0000", "&#0;", "yes", "no", "Answer: y"),
    *("pig", "PIG", "pi", "g", "api_key", "API  KEY", "api", "key", "password", "pass\u00adword", "p\u0456g", "(a+)+$", "!" * 40),
    *(
        "\0",
        "\0\0\0",
        "\x1b[2J",
        "\r\n",
        "\n" * 20,
        "\t",
        " " * 30,
        "\u2028",
        "\x85",
        "\x0c",
        "\x7f",
        "\ufeff",
        "\ufffe",
        "\uffff",
    ),
    *("\ud800", "\udfff", "\ud83d", "\udc00\ud800", "\U0010ffff", "\ue000", "\u202e", "\u200b", "\u200d", "\u00a0"),
    *(
        "🙂",
        "👩‍👩‍👧‍👦",
        "🇩🇪",
        "👍🏽",
        "é",
        "e\u0301",
        "Z" + "\u0301\u0316" * 30,
        "ﷺ",
        "İ",
        "ß",
        "ﬁ",
        "语言",
        "пароль",
        "كلمة",
        "ก็",
    ),
)
KINDS = 6


def hostile(count: int, seed: int) -> Iterator[str]:
    """Texts of all kinds, one after the other."""
    generator = np.random.default_rng(seed)
    for number in range(count):
        kind = number % KINDS
        if kind == 0:  # any characters at all, halves of them included
            yield "".join(map(chr, generator.integers(0, 0x110000, generator.integers(1, 8))))
        elif kind == 1:  # any bytes
            yield generator.bytes(int(generator.integers(1, 16))).decode("utf-8", "replace")
        elif kind == 2:  # control characters and ASCII
            yield "".join(map(chr, generator.integers(0, 128, generator.integers(1, 24))))
        elif kind == 3:  # long runs of one thing
            piece = PIECES[generator.integers(len(PIECES))]
            yield piece * int(generator.integers(1, 4) ** 2 if number % 500 != 3 else 4000 / len(piece))
        else:  # bad pieces in bad company
            yield "".join(PIECES[index] for index in generator.integers(0, len(PIECES), generator.integers(1, 4)))


RULES = """\
  word: {type: rule, words: [pig, password, "api key", пароль], watch: prompt}
  pattern: {type: rule, patterns: ['(?i)api[_ -]?key', '(a+)+$', '^\\W*$', '.{3,5}\\x00'], words: [c++, "yes"], watch: output}
"""
PROBES = """\
  felt: {type: probe, vector: felt.gguf}
  meant: {type: probe, vector: meant.gguf}
"""
JUDGES = """\
  bad: {type: model, question: "Bad?", watch: prompt}
  worse: {type: model, question: "Bad?", watch: output}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """As small as can be: what counts is the texts."""
    path = write_tiny_model(tmp_path_factory.mktemp("smallest") / "smallest.gguf", n_layer=4, n_embd=8)
    with Model(path, threads=1) as model:
        yield model


@pytest.fixture
def armed(model: Model, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[ArmedPolicy]:
    """A policy of these classifiers, each with a rule of its own, and one that takes back where none is true."""
    classifiers, stride = request.param
    yes_and_no_are_letters(monkeypatch)
    write_vector(probe_vector(model, watch="prompt", layer=1), tmp_path / "felt.gguf")
    write_vector(probe_vector(model, watch="output", layer=2), tmp_path / "meant.gguf")
    write_vector(ControlVector({1: np.full(8, 3, np.float32)}), tmp_path / "push.gguf")
    names = [line.split(":")[0].strip() for line in classifiers.splitlines()]
    rules = [f"  - {{name: r{name}, when: {name}, steer: push.gguf, hold: 3, ramp: 2}}" for name in names]
    rules.append(f"  - {{name: all, when: not {' and not '.join(names)}, steer: 2 push.gguf, rewind: {max(stride, 3)}}}")
    path = tmp_path / "policy.yaml"
    lines = "\n".join(rules)
    path.write_text(f"version: 1\non_error: pass\nstride: {stride}\nclassifiers:\n{classifiers}rules:\n{lines}\n")
    with arm(path, model) as policy:
        yield policy


def through_a_file(texts: Iterator[str], path: Path) -> list[Example]:
    """What `policy run` makes of them. A text of nothing but space is none there."""
    with path.open("w") as file:
        for number, text in enumerate(texts):
            text = text if text.strip() else "."
            keys = {"text": text} if number % 2 else {"prompt": text, "answer": text[::-1]}
            file.write(json.dumps(keys) + "\n")
    return read_examples(path)


def replayed(armed: ArmedPolicy, model: Model, count: int, seed: int, path: Path) -> list[Replayed]:
    results = replay(armed.policy, model, through_a_file(hostile(count, seed), path))
    assert len(results) == count
    for one in results:
        assert one.scores.keys() | one.failures.keys() == armed.policy.classifiers.keys()
        assert all(math.isfinite(score) for score in one.scores.values())
    return results


@pytest.mark.parametrize("armed", [(RULES, 1)], indirect=True, ids=["rules"])
def test_no_text_breaks_a_rule(door: Door, armed: ArmedPolicy, model: Model, tmp_path: Path) -> None:
    door("messages that a policy looks at", EXAMPLES * 82 // 100)
    results = replayed(armed, model, EXAMPLES * 82 // 100, 1, tmp_path / "texts.jsonl")
    assert all(one.failures == {} for one in results)
    for name in armed.policy.classifiers:
        assert {one.scores[name] for one in results} == {0, 1}


@pytest.mark.parametrize("armed", [(PROBES, 1)], indirect=True, ids=["probes"])
def test_no_text_breaks_a_probe(door: Door, armed: ArmedPolicy, model: Model, tmp_path: Path) -> None:
    door("messages that a policy looks at", EXAMPLES * 12 // 100)
    results = replayed(armed, model, EXAMPLES * 12 // 100, 2, tmp_path / "texts.jsonl")
    reasons = {reason for one in results for reason in one.failures.values()}
    assert reasons == {"There are no activations to read: no text, or too long a one."}
    assert sum(bool(one.failures) for one in results) < len(results) / 10


@pytest.mark.parametrize("armed", [(JUDGES, 32)], indirect=True, ids=["judges"])
def test_no_text_breaks_a_judge(door: Door, armed: ArmedPolicy, model: Model, tmp_path: Path) -> None:
    door("messages that a policy looks at", EXAMPLES * 6 // 100)
    results = replayed(armed, model, EXAMPLES * 6 // 100, 3, tmp_path / "texts.jsonl")
    assert all(one.failures == {} for one in results)
    assert all(0 < score < 1 for one in results for score in one.scores.values())


@pytest.mark.parametrize("armed", [(RULES + JUDGES, 1)], indirect=True, ids=["both"])
def test_half_characters_that_no_file_let_through_end_in_no_exception(armed: ArmedPolicy, model: Model) -> None:
    for text in ("\ud800", "pig \udfff", "a\ud83db", "\udc00\ud800"):
        gate = Controller(armed.policy).answer(text)
        assert not gate.after_prompt({}).stop
        assert "not valid Unicode" in gate.failures["bad"]
        assert gate.scores["word"] == float("pig" in text)
        assert not gate.after_token(Draft(model.token_bytes, (), None), final=True).stop


@pytest.mark.parametrize("armed", [(RULES + PROBES + JUDGES, 1)], indirect=True, ids=["all"])
def test_an_answer_to_any_text_comes_to_its_end(door: Door, armed: ArmedPolicy, model: Model) -> None:
    door("messages that a policy looks at", EXAMPLES // 100)
    controller = Controller(armed.policy)
    with Generator(model) as generator:
        for number, text in enumerate(hostile(EXAMPLES // 100, 4)):
            text = text.encode("utf-8", "replace").decode()[:300]
            tokens = prompt_tokens(model, [Message("user", text)])[-400:]
            request = Request(tokens, None, Sampling(temperature=1.5, seed=number), max_tokens=6)
            shown: list[str] = []
            answer = generator.generate(request, gate=controller.answer(text), on_text=shown.append)
            assert answer.finish_reason in ("length", "stop")
            assert len(answer.tokens) == 6 or answer.finish_reason == "stop"
            assert "".join(shown) == answer.text
            assert controller.latest is not None
            assert controller.latest.failures == {}
