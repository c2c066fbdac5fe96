from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from localsteer.errors import PolicyError
from localsteer.llama.model import Model
from localsteer.policy.arm import arm_probe
from localsteer.policy.examples import Example
from localsteer.policy.fit import FitSettings, Fitted, choose_threshold, fit_probe
from localsteer.policy.reading import Reader
from localsteer.policy.replay import Replayed, measure_replayed, replay
from localsteer.probe import Metrics, Watch
from localsteer.vector_file import read_vector, write_vector
from tests.policy.made import alike, low_and_high, texts

BOTH: tuple[Watch, ...] = ("prompt", "output")


def same_choices(one: Fitted, other: Fitted) -> bool:
    """Whether everything but the report is the same."""
    probes = [replace(fitted.probe, unseen=one.probe.unseen) for fitted in (one, other)]
    first, second = (fitted.vector.directions[fitted.probe.layer] for fitted in (one, other))
    return (
        probes[0] == probes[1] and np.array_equal(first, second) and (one.chosen, one.by_layer) == (other.chosen, other.by_layer)
    )


def replayed(model: Model, fitted: Fitted, examples: Sequence[Example], path: Path) -> list[Replayed]:
    """What a probe file says of texts."""
    write_vector(fitted.vector, path)
    with arm_probe(path, model) as armed:
        return replay(armed.policy, model, examples)


def found_again(model: Model, fitted: Fitted, examples: Sequence[Example], path: Path) -> Metrics | None:
    results = replayed(model, fitted, examples, path)
    with arm_probe(path, model) as armed:
        (classifier,) = armed.policy.classifiers.values()
    return measure_replayed(results, classifier)


# What comes out


@pytest.mark.parametrize("watch", BOTH)
def test_texts_that_differ_are_told_apart(tiny: Model, watch: Watch) -> None:
    fitted = fit_probe(tiny, low_and_high(24), FitSettings(watch))
    unseen = fitted.probe.unseen
    assert unseen.auroc.mean == 1
    assert (unseen.positives, unseen.negatives) == (12, 12)
    assert unseen.recall.mean > 0.9
    assert unseen.false_positive_rate.mean < 0.1
    assert fitted.probe.fitted == (12, 12)
    assert fitted.probe.watch == watch


@pytest.mark.parametrize("watch", BOTH)
def test_texts_of_one_kind_are_not_told_apart_on_unseen_ones(tiny: Model, watch: Watch) -> None:
    same = [replace(one, label=bool(number % 2)) for number, one in enumerate(texts("abcdefgh", 80, None))]
    unseen = fit_probe(tiny, same, FitSettings(watch)).probe.unseen
    assert unseen.auroc.low < 0.5 < unseen.auroc.high


def test_a_typical_positive_text_scores_one_and_a_negative_one_minus_one(tiny: Model, tmp_path: Path) -> None:
    fitted = fit_probe(tiny, low_and_high(24), FitSettings())
    used = [one for one in low_and_high(24) if one not in fitted.unseen]
    results = replayed(tiny, fitted, used, tmp_path / "probe.gguf")
    for label, mean in ((True, 1), (False, -1)):
        scores = [one.scores["probe"] for one in results if one.example.label is label]
        assert len(scores) == 12
        assert np.mean(scores) == pytest.approx(mean, abs=0.01)


def test_the_direction_is_the_difference_of_the_class_means(tiny: Model) -> None:
    examples = low_and_high(12)
    fitted = fit_probe(tiny, examples, FitSettings(), unseen=low_and_high(4, seed=5))
    layer = fitted.probe.layer
    with Reader(tiny, [layer]) as reader:
        rows = {label: [reader.prompt(one.message)[0] for one in examples if one.label is label] for label in (True, False)}
    difference = np.mean(rows[True], axis=0) - np.mean(rows[False], axis=0)
    assert fitted.vector.directions[layer] == pytest.approx(difference, abs=0.02 * float(np.linalg.norm(difference)))
    assert fitted.vector.layers == (layer,)


@pytest.mark.parametrize("watch", BOTH)
def test_the_figures_of_the_report_are_found_again_by_a_replay(tiny: Model, watch: Watch, tmp_path: Path) -> None:
    fitted = fit_probe(tiny, alike(24), FitSettings(watch))
    # Not all right: figures of mistakes are harder to find again.
    assert 0.5 < fitted.probe.unseen.auroc.mean < 1
    assert found_again(tiny, fitted, fitted.unseen, tmp_path / "probe.gguf") == fitted.probe.unseen


def test_the_figures_are_found_again_for_answers_to_messages(tiny: Model, tmp_path: Path) -> None:
    answers = [replace(one, message=f"What is {one.answer[: number % 5]}") for number, one in enumerate(alike(24))]
    fitted = fit_probe(tiny, answers, FitSettings("output"))
    assert found_again(tiny, fitted, fitted.unseen, tmp_path / "probe.gguf") == fitted.probe.unseen


def test_any_model_whose_hidden_states_can_be_read_is_fitted_to(steerable: Model, tmp_path: Path) -> None:
    # The end of a prompt is the template's, and mamba has nearly forgotten what came before it; not what an answer is made of.
    fitted = fit_probe(steerable, low_and_high(8), FitSettings("output"))
    assert fitted.probe.unseen.auroc.mean == 1
    assert found_again(steerable, fitted, fitted.unseen, tmp_path / "probe.gguf") == fitted.probe.unseen


@pytest.mark.parametrize("watch", BOTH)
def test_the_probe_survives_writing_and_reading(tiny: Model, watch: Watch, tmp_path: Path) -> None:
    fitted = fit_probe(tiny, alike(12), FitSettings(watch, target=0.2, window=3), name="shouting")
    write_vector(fitted.vector, tmp_path / "probe.gguf")
    read = read_vector(tmp_path / "probe.gguf")
    assert read.provenance.probe == fitted.probe
    assert (read.provenance.concept, read.provenance.model) == ("shouting", tiny.fingerprint)
    assert np.array_equal(read.directions[fitted.probe.layer], fitted.vector.directions[fitted.probe.layer])
    assert (fitted.probe.window, fitted.probe.target) == (3, 0.2)


def test_the_same_texts_and_seed_give_the_same_probe(tiny: Model) -> None:
    first, again = (fit_probe(tiny, alike(12), FitSettings(seed=3)) for _ in range(2))
    other = fit_probe(tiny, alike(12), FitSettings(seed=4))
    assert same_choices(first, again)
    assert first.probe.unseen == again.probe.unseen
    assert first.unseen == again.unseen != other.unseen


# Layers


def test_the_layer_is_one_of_those_asked_for(tiny: Model) -> None:
    for layers in ((1, 1), (2, 3), (3, 3)):
        fitted = fit_probe(tiny, low_and_high(10), FitSettings(layers=layers))
        assert layers[0] <= fitted.probe.layer <= layers[1]
        assert set(fitted.by_layer) == set(range(layers[0], layers[1] + 1))


def test_the_layer_is_one_that_sorts_best_in_cross_validation(tiny: Model) -> None:
    for seed in range(3):
        fitted = fit_probe(tiny, alike(16, seed=seed))
        assert fitted.by_layer[fitted.probe.layer] == max(fitted.by_layer.values())


@pytest.mark.parametrize("layers", [(0, 2), (2, 4), (3, 2)])
def test_layers_that_the_model_does_not_have_are_told(tiny: Model, layers: tuple[int, int]) -> None:
    with pytest.raises(PolicyError, match="layers 1 to 3 to choose from"):
        fit_probe(tiny, low_and_high(10), FitSettings(layers=layers))


# Seen and unseen


@pytest.mark.parametrize("watch", BOTH)
def test_unseen_texts_have_no_part_in_any_choice(tiny: Model, watch: Watch) -> None:
    examples = alike(16)
    first = fit_probe(tiny, examples, FitSettings(watch, target=0.2))
    # The same split, but other texts in the unseen part: turned around, and of other letters.
    unseen = set(first.unseen)
    changed = [replace(one, message=f"{one.message} zz", answer=f"zz {one.answer}") if one in unseen else one for one in examples]
    second = fit_probe(tiny, changed, FitSettings(watch, target=0.2))
    assert {one.place for one in second.unseen} == {one.place for one in unseen}
    assert not set(second.unseen) & unseen
    assert same_choices(first, second)
    assert second.probe.unseen != first.probe.unseen


@pytest.mark.parametrize("watch", BOTH)
def test_unseen_texts_of_ones_own_have_no_part_in_any_choice(tiny: Model, watch: Watch) -> None:
    examples = alike(10)
    right, wrong = (low_and_high(10), [replace(one, label=not one.label) for one in low_and_high(10)])
    fits = [fit_probe(tiny, examples, FitSettings(watch), unseen=unseen) for unseen in (right, wrong)]
    assert same_choices(*fits)
    assert fits[0].probe.fitted == (10, 10)
    assert fits[0].unseen == tuple(right)
    assert fits[0].probe.unseen.auroc.mean == pytest.approx(1 - fits[1].probe.unseen.auroc.mean)


def test_both_parts_have_their_share_of_either_kind(tiny: Model) -> None:
    examples = [*texts("abcdefgh", 30, True), *texts("STUVWXYZ", 12, False)]
    fitted = fit_probe(tiny, examples)
    assert fitted.probe.fitted == (15, 6)
    assert (fitted.probe.unseen.positives, fitted.probe.unseen.negatives) == (15, 6)


@pytest.mark.parametrize("watch", BOTH)
def test_a_text_that_occurs_twice_is_never_on_both_sides(tiny: Model, watch: Watch) -> None:
    examples = low_and_high(10)
    several = [replace(one, place=f"{one.place}, copy {copy}") for copy in range(3) for one in examples]
    fitted = fit_probe(tiny, several, FitSettings(watch))
    kept = [one.message for one in fitted.unseen]
    assert len(set(kept)) == len(kept) == 10
    assert fitted.probe.fitted == (5, 5)


def test_a_message_with_several_answers_is_one_text_for_a_probe_of_messages(tiny: Model) -> None:
    examples = [replace(one, answer=f"Answer {copy}") for copy in range(3) for one in low_and_high(10)]
    fitted = fit_probe(tiny, examples, FitSettings("prompt"))
    assert (fitted.probe.fitted, len(fitted.unseen)) == ((5, 5), 10)
    # Not so for one of answers, but for the copies.
    answers = [replace(one, message=str(copy)) for copy in range(3) for one in low_and_high(10)]
    assert fit_probe(tiny, [*answers, *answers], FitSettings("output")).probe.fitted == (15, 15)


@pytest.mark.parametrize("watch", BOTH)
def test_unseen_texts_that_were_fitted_to_are_refused(tiny: Model, watch: Watch) -> None:
    unseen = [*low_and_high(6, seed=9), replace(low_and_high(6)[3], place="unseen.txt, line 13")]
    with pytest.raises(PolicyError, match=r"unseen\.txt, line 13: this text is also used for fitting"):
        fit_probe(tiny, low_and_high(6), FitSettings(watch), unseen=unseen)


# The threshold


def test_a_target_is_kept_on_the_choosing_part(tiny: Model) -> None:
    free = fit_probe(tiny, alike(40), FitSettings(layers=(1, 1)))
    assert free.chosen.false_positive_rate.mean > 0.05
    thresholds = []
    for target in (0.3, 0.1, 0.05, 0.01):
        fitted = fit_probe(tiny, alike(40), FitSettings(layers=(1, 1), target=target))
        assert fitted.chosen.false_positive_rate.mean <= target
        assert fitted.probe.target == target
        thresholds.append(fitted.probe.threshold)
    assert thresholds == sorted(thresholds)
    assert thresholds[0] < thresholds[-1]


def test_a_target_that_so_few_texts_cannot_show_is_noted(tiny: Model) -> None:
    (told,) = [note for note in fit_probe(tiny, low_and_high(20), FitSettings(target=0.01)).notes if "rate" in note]
    assert "0.01 cannot be told from 10 negative texts" in told
    assert "100 would be needed" in told
    assert not any("rate" in note for note in fit_probe(tiny, low_and_high(20), FitSettings(target=0.1)).notes)


SCORES = st.lists(
    st.tuples(
        st.floats(-1e9, 1e9, allow_subnormal=False) | st.sampled_from([0.0, 1.0, np.nextafter(1.0, 0), 1e-300]), st.booleans()
    ),
    min_size=2,
    max_size=30,
).filter(lambda pairs: len({label for _, label in pairs}) == 2)


def split(pairs: Sequence[tuple[float, bool]]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    return np.array([score for score, _ in pairs], np.float64), np.array([label for _, label in pairs], bool)


def mistakes(scores: NDArray[np.float64], positive: NDArray[np.bool_], threshold: float) -> tuple[float, float]:
    """The shares of negative texts called positive, and of positive ones that are missed."""
    return float((scores[~positive] >= threshold).mean()), float((scores[positive] < threshold).mean())


@settings(max_examples=300, deadline=None)
@given(SCORES, st.floats(1e-6, 0.999))
def test_a_threshold_for_a_target_keeps_it_and_misses_as_few_as_can_be(pairs: list[tuple[float, bool]], target: float) -> None:
    scores, positive = split(pairs)
    false, missed = mistakes(scores, positive, choose_threshold(scores, positive, target))
    assert false <= target
    # A threshold just above a score, or at the lowest: no other kinds of choices are there.
    others = [mistakes(scores, positive, np.nextafter(score, np.inf)) for score in scores]
    assert missed <= min(other_missed for other_false, other_missed in others if other_false <= target) + 1e-12


@settings(max_examples=300, deadline=None)
@given(SCORES)
def test_a_threshold_without_a_target_makes_as_few_mistakes_as_can_be(pairs: list[tuple[float, bool]]) -> None:
    scores, positive = split(pairs)
    chosen = sum(mistakes(scores, positive, choose_threshold(scores, positive, None)))
    others = [sum(mistakes(scores, positive, np.nextafter(score, np.inf))) for score in scores]
    assert chosen <= min(others) + 1e-9


def test_the_threshold_lies_in_the_middle_of_the_gap() -> None:
    scores, positive = np.array([-3.0, -1.0, 2.0, 5.0]), np.array([False, False, True, True])
    assert choose_threshold(scores, positive, None) == 0.5
    assert choose_threshold(scores, positive, 0.01) == 0.5
    # One false positive of two may be lived with.
    assert choose_threshold(scores, positive, 0.5) == -2.0
    assert choose_threshold(np.array([1.0, 2.0]), np.array([True, False]), 0.1) > 2


# Texts that cannot be used


def test_too_few_texts_are_refused(tiny: Model) -> None:
    with pytest.raises(PolicyError, match=r"3 positive texts to fit to; at least 4 are needed\..*Give more examples"):
        fit_probe(tiny, [*texts("abc", 6, True), *texts("STU", 20, False)])
    with pytest.raises(PolicyError, match="0 negative texts to fit to"):
        fit_probe(tiny, texts("abc", 20, True))
    with pytest.raises(PolicyError, match="2 negative texts to report on"):
        fit_probe(tiny, low_and_high(10), unseen=[*texts("abc", 8, True), *texts("STU", 2, False)])


def test_few_texts_are_noted_and_enough_are_not(tiny: Model) -> None:
    few = fit_probe(tiny, low_and_high(12)).notes
    assert few[0].startswith("Few texts: fitted to 6 positive and 6 negative ones.")
    assert few[1].startswith("Few texts: reported on 6 positive and 6 negative ones.")
    assert fit_probe(tiny, low_and_high(40)).notes == ()


def test_a_text_without_a_label_is_told(tiny: Model) -> None:
    unlabelled = Example("Hello", "Hello", None, "all.jsonl, line 7")
    with pytest.raises(PolicyError, match=r"all\.jsonl, line 7: this text has no label"):
        fit_probe(tiny, [*low_and_high(12), unlabelled])
    with pytest.raises(PolicyError, match=r"all\.jsonl, line 7: this text has no label"):
        fit_probe(tiny, low_and_high(12), unseen=[*low_and_high(12, seed=5), unlabelled])


def test_a_text_of_both_kinds_is_told_wherever_the_split_puts_it(tiny: Model) -> None:
    examples = low_and_high(12)
    both = replace(examples[2], label=False, place="all.jsonl, line 30")
    for seed in range(4):
        with pytest.raises(PolicyError, match=r"all\.jsonl, line 30: this text is called both positive and negative"):
            fit_probe(tiny, [*examples, both], FitSettings(seed=seed))


@pytest.mark.parametrize("watch", BOTH)
def test_a_text_that_is_too_long_is_named(tiny: Model, watch: Watch) -> None:
    examples = low_and_high(12)
    long = "x" * 600
    for number in (3, 15):
        there = [
            replace(one, message=long, answer=long, place="mine.txt, line 9") if one is examples[number] else one
            for one in examples
        ]
        with pytest.raises(PolicyError, match=r"mine\.txt, line 9: A text is too long to be read"):
            fit_probe(tiny, there, FitSettings(watch))


def test_a_text_without_what_is_watched_is_named(tiny: Model) -> None:
    lone = Example("", "An answer", True, "mine.jsonl, line 4")
    with pytest.raises(PolicyError, match=r"mine\.jsonl, line 4: The prompt is empty"):
        fit_probe(tiny, [lone, *low_and_high(12)], unseen=low_and_high(12, seed=5))
    with pytest.raises(PolicyError, match=r"mine\.jsonl, line 4: An answer is empty"):
        fit_probe(
            tiny,
            [replace(lone, message="Hi", answer=""), *low_and_high(12)],
            FitSettings("output"),
            unseen=low_and_high(12, seed=5),
        )


def test_progress_counts_the_texts(tiny: Model) -> None:
    told: list[tuple[str, int, int]] = []
    fit_probe(tiny, low_and_high(10), FitSettings("output"), on_progress=lambda *what: told.append(what))
    assert [(what, done) for what, done, _ in told] == [
        (what, done) for what in ("fitting", "choosing", "reporting") for done in range(1, 11)
    ]
    assert {of for _, _, of in told} == {10}
