from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from localsteer.building.dosing import dose
from localsteer.building.extraction import ExtractionSettings, extract
from localsteer.concepts.contrast import Contrast, Pair, Prompt
from localsteer.engine.generate import generate_many
from localsteer.engine.request import Answer, Request
from localsteer.errors import CalibrationError, ModelError, VectorError
from localsteer.llama.context import Context
from localsteer.llama.model import Model
from localsteer.llama.residual import Edit
from localsteer.reading.kept import KeptPrompts
from localsteer.steering.dose import relative_dose
from localsteer.vector.calibration import POLES
from localsteer.vector.control_vector import ControlVector, Provenance
from tests.calibration.made import calibration
from tests.conftest import TinyModel

PAIRS = tuple(Pair(Prompt((), f"a good day {word}"), Prompt((), f"a bad day {word}")) for word in ("in", "on", "at"))
PERSONAS = (("Be glad.", "Be sad."), ("Cheer up.", "Weep."))
HAPPY = Contrast("happy", "", "happy", "sad", PAIRS, ("Who are you?", "Where is it?"), personas=PERSONAS)
UNDOSED = ExtractionSettings(dose=False)

Floats64 = NDArray[np.float64]


def doses(vector: ControlVector) -> dict[str, tuple[float, float]]:
    found = vector.provenance.dosing
    assert found is not None
    return {pole: (found.sides[pole].dose["response"], found.sides[pole].dose["prompt"]) for pole in POLES}


def measured(vector: ControlVector) -> dict[str, Any]:
    """All that a vector says of its dosing; null where there is no number."""
    found = vector.provenance.dosing
    assert found is not None
    return found.document()


def test_strength_one_is_the_measured_dose_whatever_the_vector_held_before(steerable: Model) -> None:
    plain = extract(steerable, HAPPY, UNDOSED)
    vector = dose(steerable, plain, HAPPY)
    norms = vector.provenance.hidden_norm
    assert norms is not None
    found = doses(vector)
    for strength, pole in ((1, "positive"), (-1, "negative")):
        for place, mode in enumerate(("response", "prompt")):
            added = vector.at(strength, mode).rows(steerable.n_layer)  # type: ignore[arg-type]
            assert relative_dose(added, norms) == pytest.approx(found[pole][place], rel=1e-4)
            assert (added[1] @ plain.directions[1]) * strength > 0
        assert 0 < found[pole][1] <= found[pole][0]
    calibrated = replace(plain * 7, provenance=replace(plain.provenance, calibration=calibration(steerable.fingerprint)))
    again = dose(steerable, calibrated, HAPPY)
    assert again.provenance.calibration is None
    np.testing.assert_allclose([*doses(again).values()], [*found.values()], rtol=0.05)


def test_the_same_seed_gives_the_same_doses(tiny: Model) -> None:
    vector = extract(tiny, HAPPY, UNDOSED)
    one, same, other = (dose(tiny, vector, HAPPY, seed=seed) for seed in (3, 3, 4))
    assert measured(one) == measured(same)
    assert doses(one) != doses(other)


def test_extraction_doses_unless_told_not_to(tiny: Model) -> None:
    assert measured(extract(tiny, HAPPY)) == measured(dose(tiny, extract(tiny, HAPPY, UNDOSED), HAPPY))
    assert extract(tiny, HAPPY, UNDOSED).provenance.dosing is None


def test_prompt_files_and_vectors_from_elsewhere_are_dosed_too(tiny: Model) -> None:
    vector = extract(tiny, replace(HAPPY, personas=(), held_out=()), UNDOSED)
    of_pairs = dose(tiny, vector, replace(HAPPY, personas=(), held_out=())).provenance.dosing
    foreign = ControlVector(vector.directions, Provenance(concept="foreign"))
    from_elsewhere = dose(tiny, foreign, None)
    assert from_elsewhere.provenance.hidden_norm is not None
    assert of_pairs is not None
    assert from_elsewhere.provenance.dosing is not None
    for side in from_elsewhere.provenance.dosing.sides.values():
        assert np.isnan(side.ratio.mean)
        assert not side.shown


def test_answers_that_are_empty_are_left_out(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def mostly_silent(model: Model, requests: Sequence[Request]) -> list[Answer]:
        answers = generate_many(model, requests)
        return [answer if number % 8 == 7 else replace(answer, tokens=(), logprobs=()) for number, answer in enumerate(answers)]

    monkeypatch.setattr("localsteer.building.own_answers.generate_many", mostly_silent)
    found = dose(tiny, extract(tiny, HAPPY, UNDOSED), HAPPY).provenance.dosing
    assert found is not None
    assert not any(side.shown for side in found.sides.values())
    assert all(0 < side.dose["response"] <= 4 for side in found.sides.values())


@pytest.mark.parametrize(
    ("costs", "times"),
    [
        ((0.5,), 1),  # the text holds
        ((2.0, 0.5), 1),  # the first three were bad luck
        ((5.0, 5.0, 0.5), 0.75),
        ((5.0, 0.9, 0.5), 0.75),
        ((5.0, 5.0, 3.0, 0.5), 0.75**2),
        ((5.0, 5.0, 4.9, 0.5), 0.75**2),  # one step that helps nothing does not end it
        ((5.0, 5.0, 4.9, 4.8), 1),  # too weak is no cure for what is not too strong
        ((float("nan"), float("nan"), 0.5), 0.75),  # nothing said is no sense
    ],
)
def test_a_dose_at_which_sampled_answers_make_no_sense_is_weakened(
    tiny: Model, monkeypatch: pytest.MonkeyPatch, costs: tuple[float, ...], times: float
) -> None:
    vector = extract(tiny, HAPPY, UNDOSED)
    monkeypatch.setattr("localsteer.building.dosing.answer_nll", lambda _model, pairs, _kept: np.zeros(len(pairs)))
    whole = dose(tiny, vector, HAPPY)
    told = iter(costs)
    costing = "localsteer.building.dosing.answer_nll"
    monkeypatch.setattr(costing, lambda _model, pairs, _kept: np.full(len(pairs), 10.0 + next(told)))

    def likely(model: Model, requests: Sequence[Request]) -> list[Answer]:
        """As they are, but that each token of a persona's costs 10 nats."""
        return [
            replace(answer, logprobs=tuple(replace(entry, logprob=-10.0) for entry in answer.logprobs))
            for answer in generate_many(model, requests)
        ]

    monkeypatch.setattr("localsteer.building.own_answers.generate_many", likely)
    found = dose(tiny, vector, HAPPY)
    assert next(told, None) is None
    for pole in POLES:
        assert doses(found)[pole][0] == pytest.approx(times * doses(whole)[pole][0])
        # What is told of a dose was read there.
        there, before = measured(found)["sides"][pole], measured(whole)["sides"][pole]
        assert there["kl"] == before["kl"] if times == 1 else there["kl"] < 0.8 * before["kl"]
        assert (there["ratio"] == before["ratio"]) == (times == 1)


def test_all_prompts_of_a_dosing_are_computed_in_its_first_pass(
    tiny: Model, monkeypatch: pytest.MonkeyPatch, decoded: list[int]
) -> None:
    """What each reading pass adds to what is kept: the first one all prompts, the others nothing."""
    refusing(monkeypatch, lambda _edit: 0.0)
    vector = extract(tiny, HAPPY, UNDOSED)
    passes: list[int] = []
    read_pass = KeptPrompts.empty

    def counted(self: KeptPrompts, context: Context) -> None:
        before = len(decoded)
        read_pass(self, context)
        passes.append(sum(decoded[before:]))

    monkeypatch.setattr(KeptPrompts, "empty", counted)
    dose(tiny, vector, HAPPY)
    assert len(passes) > 4
    assert passes[0] > 100
    assert not any(passes[1:])


@pytest.mark.parametrize("ends", ["well", "while the personas answer", "at the end of that", "in the search", "when confirming"])
def test_a_dosing_leaves_no_context_behind(tiny: Model, monkeypatch: pytest.MonkeyPatch, ends: str) -> None:
    vector = extract(tiny, HAPPY, UNDOSED)
    contexts: list[Context] = []
    made = Context.__init__

    def making(self: Context, *args: Any, **named: Any) -> None:
        made(self, *args, **named)
        contexts.append(self)

    monkeypatch.setattr(Context, "__init__", making)
    where = {
        "while the personas answer": ("answering as each persona", 0),
        "at the end of that": ("answering as each persona", 16),
        "in the search": ("dosing", 1),
        "when confirming": ("dosing", 2),
    }

    def tell(what: str, done: int, _total: int) -> None:
        if (what, done) == where.get(ends):
            raise KeyboardInterrupt

    with nullcontext() if ends == "well" else pytest.raises(KeyboardInterrupt):
        dose(tiny, vector, HAPPY, progress=tell)
    assert contexts or ends == "while the personas answer"
    assert [context for context in contexts if context.handle] == []


def refusing(monkeypatch: pytest.MonkeyPatch, chances: Callable[[Edit | None], float]) -> None:
    """Let a model begin refusals with so much of a chance under an edit."""
    monkeypatch.setattr("localsteer.building.own_answers.refusal_openings", lambda _model: ((1, 2),))

    def found(
        _model: Model, openings: Sequence[object], prompts: Sequence[object], edits: Sequence[Edit | None], _kept: KeptPrompts
    ) -> Floats64:
        assert openings
        assert prompts
        return np.array([chances(edit) for edit in edits])

    monkeypatch.setattr("localsteer.building.refusal.chances_of_refusal", found)


@pytest.mark.parametrize(
    ("chance", "share"),
    [
        (0.04, 0.5),  # of what the dose makes likely, half is allowed: straight between no dose and this one
        (0.02 / 0.75, 0.75),
        (0.2, 0.2),  # and no less than a fifth of the dose
        (0.9, 0.2),
    ],
)
def test_a_pole_whose_dose_makes_refusals_likely_is_weakened_and_says_so(
    tiny: Model, monkeypatch: pytest.MonkeyPatch, chance: float, share: float
) -> None:
    vector = extract(tiny, HAPPY, UNDOSED)
    monkeypatch.setattr("localsteer.building.dosing.answer_nll", lambda _model, pairs, _kept: np.zeros(len(pairs)))
    refusing(monkeypatch, lambda _edit: 0.0)  # the same is read, in the same order
    whole = dose(tiny, vector, HAPPY).provenance.dosing
    assert whole is not None
    least = whole.sides["negative"].dose["response"]

    def rising(edit: Edit | None) -> float:
        """In proportion to the dose toward the negative pole, beside what is refused anyway."""
        return 0.1 + (chance * -edit.scale / least if edit is not None and edit.scale < 0 else 0)

    refusing(monkeypatch, rising)
    found = dose(tiny, vector, HAPPY).provenance.dosing
    assert found is not None
    assert found.document()["sides"]["positive"] == whole.document()["sides"]["positive"]
    assert np.isnan(found.sides["positive"].most)
    weakened, before = found.sides["negative"], whole.sides["negative"]
    assert weakened.most == weakened.dose["response"] == pytest.approx(share * before.dose["response"])
    assert weakened.dose["prompt"] == pytest.approx(share * before.dose["prompt"])
    # What is told of it is what was read there.
    assert weakened.kl < before.kl
    assert weakened.ratio != before.ratio
    assert weakened.tried == before.tried


def test_refusals_that_a_dose_makes_no_likelier_do_not_weaken_it(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    vector = extract(tiny, HAPPY, UNDOSED)
    refusing(monkeypatch, lambda _edit: 0.0)  # the same is read, in the same order
    whole = measured(dose(tiny, vector, HAPPY))
    # A model that refuses much anyway, and a little more often or less so under steering.
    refusing(monkeypatch, lambda edit: 0.5 if edit is None else 0.51 if edit.scale > 0 else 0.1)
    assert measured(dose(tiny, vector, HAPPY)) == whole


def test_a_vector_that_is_about_refusing_may_refuse(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    vector = extract(tiny, HAPPY, UNDOSED)
    refusing(monkeypatch, lambda _edit: 0.0)  # the same is read, in the same order
    whole = measured(dose(tiny, vector, HAPPY))
    refusing(monkeypatch, lambda edit: 0.0 if edit is None else 0.9)
    rows = vector.rows(tiny.n_layer)[list(vector.layers)]
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    monkeypatch.setattr("localsteer.building.dosing.read_refusal", lambda _model, _layers: unit)
    assert measured(dose(tiny, vector, HAPPY)) == whole


def test_refusals_that_come_and_go_count_from_where_they_first_come(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    vector = extract(tiny, HAPPY, UNDOSED)
    monkeypatch.setattr("localsteer.building.dosing.answer_nll", lambda _model, pairs, _kept: np.zeros(len(pairs)))
    refusing(monkeypatch, lambda _edit: 0.0)  # the same is read, in the same order
    whole = doses(dose(tiny, vector, HAPPY))["positive"][0]

    def chances(edit: Edit | None) -> float:
        share = 0 if edit is None or edit.scale < 0 else edit.scale / whole
        return 0.3 if 0.45 < share < 0.55 or share > 0.9 else 0.0

    refusing(monkeypatch, chances)
    found = dose(tiny, vector, HAPPY).provenance.dosing
    assert found is not None
    assert 0.2 * whole <= found.sides["positive"].most <= 0.5 * whole


def test_what_is_going_on_is_told(tiny: Model) -> None:
    told: list[tuple[str, int, int]] = []
    dose(tiny, extract(tiny, HAPPY, UNDOSED), HAPPY, progress=lambda *now: told.append(now))
    assert [what for what, done, total in told if done == total] == ["answering as each persona", "dosing"]
    assert told[0] == ("answering as each persona", 0, 16)


def test_nothing_to_dose_and_nothing_to_dose_by_are_errors(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    vector = extract(tiny, HAPPY, UNDOSED)
    with pytest.raises(CalibrationError, match="zero at every layer"):
        dose(tiny, ControlVector({1: np.zeros(tiny.n_embd, np.float32)}, Provenance()), None)
    with pytest.raises(VectorError, match="does not fit this model"):
        dose(tiny, ControlVector({1: np.ones(tiny.n_embd + 1, np.float32)}, Provenance()), None)

    def silent(model: Model, requests: Sequence[Request]) -> list[Answer]:
        return [replace(answer, tokens=(), logprobs=()) for answer in generate_many(model, requests)]

    monkeypatch.setattr("localsteer.building.own_answers.generate_many", silent)
    with pytest.raises(CalibrationError, match="gives no answers"):
        dose(tiny, vector, HAPPY)


def test_a_model_that_cannot_be_read_cannot_be_dosed(tiny_model: TinyModel) -> None:
    model = tiny_model("plamo2")
    with pytest.raises(ModelError):
        dose(model, ControlVector({1: np.ones(model.n_embd, np.float32)}, Provenance()), None)
