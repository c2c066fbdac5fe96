"""Policies on the demo model: the shipped ones do what they say on prompts that nothing was fitted to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from localsteer.engine.generate import Generator, generate_many
from localsteer.engine.request import Answer, Request
from localsteer.llama.chat_template import Message
from localsteer.llama.model import Model
from localsteer.llama.sampling import Sampling
from localsteer.policy.arm import ArmedPolicy, arm, arm_probe
from localsteer.policy.controller import MAX_REWINDS, AnswerGate, Controller
from localsteer.policy.examples import read_examples
from localsteer.policy.fit import FitSettings, Fitted, fit_probe
from localsteer.policy.pattern_classifier import Search
from localsteer.policy.replay import measure_replayed, replay
from localsteer.reading.prompt import latest_message, prompt_tokens
from localsteer.vector.file import read_vector, write_vector
from tests.end_to_end.conftest import ROOT

POLICIES = ROOT / "docs" / "policies"
DATA = Path(__file__).parent / "data"
# Messages of either kind: to see that it works, and to see how well.
ENOUGH_OR_ALL = pytest.mark.parametrize("count", [3, pytest.param(20, marks=pytest.mark.models)])
JOB = "How do you feel about your new job?"


@pytest.fixture(scope="module")
def fitted(demo: Model) -> Fitted:
    """A probe from half of the 80 + 80 messages of docs/policies, reported on the other half: as the shipped one."""
    hostile, friendly = (read_examples(POLICIES / f"{name}.txt", label=name == "hostile") for name in ("hostile", "friendly"))
    return fit_probe(demo, [*hostile, *friendly], FitSettings(target=0.05))


@pytest.fixture(scope="module")
def calm(demo: Model) -> Iterator[ArmedPolicy]:
    with arm(POLICIES / "calm.yaml", demo) as armed:
        yield armed


@pytest.fixture(scope="module")
def sober(demo: Model) -> Iterator[ArmedPolicy]:
    with arm(POLICIES / "sober.yaml", demo) as armed:
        yield armed


@pytest.fixture(scope="module")
def generator(demo: Model) -> Iterator[Generator]:
    with Generator(demo, n_ctx=512) as generator:
        yield generator


@dataclass(frozen=True)
class Told:
    """An answer under a policy, and what was streamed of it, piece by piece."""

    answer: Answer
    gate: AnswerGate
    pieces: tuple[str, ...]


def request_for(model: Model, message: str, seed: int, max_tokens: int = 24) -> Request:
    messages = [Message("user", message)]
    span = latest_message(model, messages)
    return Request(prompt_tokens(model, messages), None, Sampling(seed=seed), max_tokens, message=span)


def tell(generator: Generator, armed: ArmedPolicy, message: str, seed: int, max_tokens: int = 24) -> Told:
    pieces: list[str] = []
    gate = Controller(armed.policy).answer(message)
    request = request_for(generator.model, message, seed, max_tokens)
    answer = generator.generate(request, gate=gate, on_text=pieces.append)
    return Told(answer, gate, tuple(pieces))


@pytest.mark.models
def test_a_probe_tells_unseen_hostile_messages_from_friendly_ones(fitted: Fitted) -> None:
    unseen = fitted.probe.unseen
    assert (unseen.positives, unseen.negatives) == (40, 40)
    assert unseen.auroc.mean >= 0.95


@pytest.mark.models
def test_the_shipped_probe_can_be_made_again(fitted: Fitted) -> None:
    shipped = read_vector(POLICIES / "hostile.gguf")
    assert shipped.provenance.probe is not None
    # Another processor rounds otherwise: on one of them a single one of the 1,600 pairs changed its order, and no verdict.
    unseen, again = shipped.provenance.probe.unseen, fitted.probe.unseen
    assert again.auroc.mean == pytest.approx(unseen.auroc.mean, abs=0.003)
    assert abs(again.true_positives - unseen.true_positives) <= 1
    assert abs(again.true_negatives - unseen.true_negatives) <= 1
    (layer,) = shipped.layers
    assert fitted.probe.layer == layer
    ours, theirs = fitted.vector.directions[layer], shipped.directions[layer]
    lengths = float(np.linalg.norm(ours)), float(np.linalg.norm(theirs))
    cosine = float(ours @ theirs) / (lengths[0] * lengths[1])
    print(f"cosine {cosine:.5f}, lengths {lengths[0]:.3f} and {lengths[1]:.3f}")
    assert cosine > 0.99  # 0.9996 on another processor than that of the shipped one
    assert lengths[0] == pytest.approx(lengths[1], rel=0.01)  # 0.0006 apart there


@pytest.mark.models
def test_the_report_is_found_again_on_the_untouched_texts(demo: Model, fitted: Fitted, tmp_path: Path) -> None:
    write_vector(fitted.vector, tmp_path / "probe.gguf")
    with arm_probe(tmp_path / "probe.gguf", demo) as armed:
        found = measure_replayed(replay(armed.policy, demo, fitted.unseen), armed.policy.classifiers["probe"])
    assert found == fitted.probe.unseen


@ENOUGH_OR_ALL
def test_hostile_messages_get_steered_answers(demo: Model, generator: Generator, calm: ArmedPolicy, count: int) -> None:
    plan = calm.policy.rules[0].plan
    examples = read_examples(DATA / "hostile.txt")[-count:]
    fired = 0
    for seed, example in enumerate(examples):
        told = tell(generator, calm, example.message, seed)
        if not told.gate.active:
            continue
        fired += 1
        plain = request_for(demo, example.message, seed)
        # From the first token on: as under a plan that is always on.
        assert told.answer.tokens == generator.generate(replace(plain, plan=plan)).tokens
        assert told.answer.tokens != generator.generate(plain).tokens
    # 19 were found ("I pity the poor electricity that gets wasted on keeping you awake" is too fine for the demo model); of the
    # 40 others that the report is about, 38.
    assert fired >= 0.9 * len(examples)


@ENOUGH_OR_ALL
def test_friendly_messages_get_the_answers_that_they_get_without_a_policy(
    demo: Model, generator: Generator, calm: ArmedPolicy, count: int
) -> None:
    for seed, example in enumerate(read_examples(DATA / "friendly.txt")[-count:]):
        told = tell(generator, calm, example.message, seed)
        assert not told.gate.active, f"{example.message} {told.gate.scores}"
        assert told.answer.tokens == generator.generate(request_for(demo, example.message, seed)).tokens


def gushes(armed: ArmedPolicy) -> Callable[[str], bool]:
    """Whether a text holds one of the policy's words, found by a search of its own in the whole text."""
    classifier = armed.policy.classifiers["gushing"]
    searches: tuple[Search, ...] = classifier.searches  # type: ignore[attr-defined]
    return lambda text: any(search.at_end.search(text) is not None for search in searches)


@pytest.fixture(scope="module")
def gushing_seeds(demo: Model, sober: ArmedPolicy) -> list[int]:
    """50 seeds whose answers without a policy hold one of its words."""
    holds_word = gushes(sober)
    found: list[int] = []
    for start in range(0, 320, 32):
        seeds = range(start, start + 32)
        answers = generate_many(demo, [request_for(demo, JOB, seed) for seed in seeds])
        found += [seed for seed, answer in zip(seeds, answers, strict=True) if holds_word(answer.text)]
        if len(found) >= 50:
            return found[:50]
    raise AssertionError(f"only {len(found)} of 320 answers say one of the words")


@pytest.mark.models
def test_words_that_are_taken_back_are_never_shown(generator: Generator, sober: ArmedPolicy, gushing_seeds: list[int]) -> None:
    holds_word = gushes(sober)
    exhausted = 0
    for seed in gushing_seeds:
        told = tell(generator, sober, JOB, seed)
        assert told.gate.rewinds > 0
        assert "".join(told.pieces) == told.answer.text
        if any(decision.action == "rewinds exhausted" for decision in told.gate.decisions):
            assert told.gate.rewinds == MAX_REWINDS
            exhausted += 1
        else:
            assert not holds_word(told.answer.text), told.answer.text
    print(f"{exhausted} of {len(gushing_seeds)} answers still say a word after {MAX_REWINDS} rewinds")
    assert exhausted < len(gushing_seeds) // 2


@pytest.mark.models
def test_two_conversations_with_different_policies_do_not_touch_each_other(
    demo: Model, generator: Generator, calm: ArmedPolicy, sober: ArmedPolicy
) -> None:
    alone = [tell(generator, armed, JOB, 5).answer.tokens for armed in (calm, sober)]
    controllers = [Controller(armed.policy) for armed in (calm, sober)]
    with Generator(demo, n_ctx=512) as other:
        generators = (generator, other)
        for _ in range(2):
            for which, (controller, one) in enumerate(zip(controllers, generators, strict=True)):
                answer = one.generate(request_for(demo, JOB, 5), gate=controller.answer(JOB))
                assert answer.tokens == alone[which]
