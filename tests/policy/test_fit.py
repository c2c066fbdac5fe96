from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from localsteer.errors import PolicyError
from localsteer.llama.model import Model
from localsteer.policy import fit
from localsteer.policy.arm import arm_probe
from localsteer.policy.examples import Example
from localsteer.policy.fit import FitSettings, Fitted, _line, choose_threshold, fit_probe
from localsteer.policy.probe_classifier import projection
from localsteer.policy.replay import Replayed, measure_replayed, replay
from localsteer.policy.statistics import auroc
from localsteer.policy.text_rows import message_span
from localsteer.reading import rows
from localsteer.reading.rows import read_means
from localsteer.vector.file import read_vector, write_vector
from localsteer.vector.probe import Metrics, Watch
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


def test_the_direction_in_the_file_scores_as_the_discriminant(tiny: Model) -> None:
    examples = low_and_high(12)
    fitted = fit_probe(tiny, examples, FitSettings(), unseen=low_and_high(4, seed=5))
    layer = fitted.probe.layer
    values = read_means(tiny, [message_span(tiny, one.message) for one in examples], [layer]).values[:, 0]
    weights, bias = _line(values, np.array([bool(one.label) for one in examples]))
    found = projection(fitted.vector.directions[layer])
    assert found == pytest.approx(weights, abs=0.02 * float(np.linalg.norm(weights)))
    assert fitted.probe.bias == pytest.approx(bias, abs=0.01)
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


@pytest.mark.parametrize("watch", BOTH)
def test_any_model_whose_hidden_states_can_be_read_is_fitted_to(steerable: Model, watch: Watch, tmp_path: Path) -> None:
    fitted = fit_probe(steerable, low_and_high(8), FitSettings(watch))
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


# The discriminant


def two_kinds(generator: np.random.Generator, count: int, width: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Values (2 * count, width) of two kinds, whose dimensions vary in different amounts and together."""
    mixed = generator.standard_normal((width, width)) * np.exp(generator.standard_normal(width))
    truth = np.arange(2 * count) % 2 == 0
    values = generator.standard_normal((2 * count, width)) @ mixed + np.outer(truth, generator.standard_normal(width)) + 3
    return values.astype(np.float32), truth


@pytest.mark.parametrize(("count", "width"), [(4, 64), (3, 8), (40, 8), (30, 300), (1, 5)])
def test_the_kinds_score_one_and_minus_one_on_average(count: int, width: int) -> None:
    for seed in range(5):
        values, truth = two_kinds(np.random.default_rng(seed), count, width)
        weights, bias = _line(values, truth)
        scores = values @ weights + bias
        assert scores[truth].mean() == pytest.approx(1, abs=1e-4)
        assert scores[~truth].mean() == pytest.approx(-1, abs=1e-4)


def test_the_line_is_the_shrunk_discriminant() -> None:
    values, truth = two_kinds(np.random.default_rng(0), 10, 30)
    weights, _ = _line(values, truth)
    # By the book: the covariance within the kinds, all of it but a share moved to its diagonal.
    wide = values.astype(np.float64)
    high, low = wide[truth].mean(axis=0), wide[~truth].mean(axis=0)
    within = np.concatenate([wide[truth] - high, wide[~truth] - low])
    covariance = within.T @ within / len(within)
    shrunk = (1 - fit._SHRINKAGE) * covariance + fit._SHRINKAGE * np.diag(np.diag(covariance))
    expected = np.linalg.solve(shrunk, high - low)
    np.testing.assert_allclose(weights, 2 * expected / ((high - low) @ expected), rtol=1e-6, atol=1e-9)


def test_a_loud_dimension_does_not_hide_the_quiet_ones_that_tell_the_kinds_apart() -> None:
    generator = np.random.default_rng(0)
    planted = np.zeros(64)
    planted[10:18] = 1.5

    def drawn(count: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        truth = np.arange(count) % 2 == 0
        values = generator.standard_normal((count, 64)) + np.outer(truth, planted)
        values[:, 3] *= 1000
        return values.astype(np.float32), truth

    values, truth = drawn(60)
    unseen, unseen_truth = drawn(400)
    weights, bias = _line(values, truth)
    difference = values[truth].mean(axis=0) - values[~truth].mean(axis=0)
    assert auroc(unseen @ weights + bias, unseen_truth) > 0.95
    assert auroc(np.asarray(unseen @ difference, np.float64), unseen_truth) < 0.6


def test_dimensions_that_never_vary_do_no_harm() -> None:
    values, truth = two_kinds(np.random.default_rng(0), 10, 20)
    values[:, 3], values[:, 7] = 0, 5
    values[:, 9] = np.where(truth, 2, 1)  # another value for each kind
    # With others, by themselves, and where all texts of a kind are the same.
    for part in (values, values[:, [3, 7, 9]], np.where(truth[:, np.newaxis], values[0], values[1])):
        weights, bias = _line(part, truth)
        scores = part @ weights + bias
        assert (scores[truth].mean(), scores[~truth].mean()) == pytest.approx((1, -1), abs=1e-4)


def test_texts_that_are_the_same_to_the_model_are_told() -> None:
    with pytest.raises(PolicyError, match="same to the model"):
        _line(np.ones((8, 5), np.float32), np.arange(8) < 4)


# Layers


@pytest.mark.parametrize(
    ("watch", "layers"),
    [("prompt", (1, 1)), ("prompt", (1, 2)), ("prompt", (2, 2)), ("output", (1, 1)), ("output", (2, 3)), ("output", (3, 3))],
)
def test_the_layer_is_one_of_those_asked_for(tiny: Model, watch: Watch, layers: tuple[int, int]) -> None:
    fitted = fit_probe(tiny, low_and_high(10), FitSettings(watch, layers=layers))
    assert layers[0] <= fitted.probe.layer <= layers[1]
    assert set(fitted.by_layer) == set(range(layers[0], layers[1] + 1))


# The last block shows the last token of a prompt only.
@pytest.mark.parametrize(("watch", "highest"), [("prompt", 2), ("output", 3)])
def test_all_layers_that_can_be_read_are_tried(tiny: Model, watch: Watch, highest: int) -> None:
    assert set(fit_probe(tiny, low_and_high(10), FitSettings(watch)).by_layer) == set(range(1, highest + 1))


def test_the_layer_is_one_that_sorts_best_in_cross_validation(tiny: Model) -> None:
    for seed in range(3):
        fitted = fit_probe(tiny, alike(16, seed=seed))
        assert fitted.by_layer[fitted.probe.layer] == max(fitted.by_layer.values())


@pytest.mark.parametrize(
    ("watch", "layers"),
    [
        *(("prompt", layers) for layers in ((0, 2), (2, 3), (3, 3), (2, 4), (2, 1))),
        *(("output", layers) for layers in ((0, 2), (2, 4), (3, 2))),
    ],
)
def test_layers_that_cannot_be_read_are_told(tiny: Model, watch: Watch, layers: tuple[int, int]) -> None:
    highest = 2 if watch == "prompt" else 3
    with pytest.raises(PolicyError, match=f"layers 1 to {highest} to choose from, not {layers[0]}-{layers[1]}"):
        fit_probe(tiny, low_and_high(10), FitSettings(watch, layers=layers))


# Seen and unseen


@pytest.mark.parametrize("watch", BOTH)
def test_unseen_texts_have_no_part_in_any_choice(tiny: Model, watch: Watch) -> None:
    examples = alike(16)
    first = fit_probe(tiny, examples, FitSettings(watch, target=0.2))
    # The same split, but other texts in the unseen part: each mostly of letters that only the other kind has.
    unseen = set(first.unseen)
    other = {True: "mn" * 12, False: "ab" * 12}
    changed = [
        replace(one, message=one.message + (letters := other[bool(one.label)]), answer=one.answer + letters)
        if one in unseen
        else one
        for one in examples
    ]
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


def test_a_threshold_that_calls_nothing_positive_lies_as_far_above_all_as_the_highest_two_are_apart() -> None:
    for scores, threshold in (([0.0, 1.0, 3.0], 5.0), ([-4.0, -3.0, -2.5], -2.0), ([2.0, 2.0, 2.0], 3.0)):
        assert choose_threshold(np.array(scores), np.array([True, True, False]), 0.1) == threshold


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
    unseen = [*texts("abc", 6, True), *texts("STU", 8, False)]
    assert (
        fit_probe(tiny, low_and_high(40), unseen=unseen).notes[0].startswith("Few texts: reported on 6 positive and 8 negative")
    )
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


@pytest.mark.parametrize("watch", BOTH)
def test_progress_counts_the_tokens_of_each_reading(tiny: Model, watch: Watch) -> None:
    told: list[tuple[str, int, int]] = []
    fit_probe(tiny, low_and_high(100), FitSettings(watch), on_progress=lambda *what: told.append(what))
    kinds = {"prompt": ["fitting", "reporting"], "output": ["fitting", "choosing", "reporting"]}[watch]
    assert list(dict.fromkeys(what for what, _, _ in told)) == kinds
    for kind in kinds:
        done = [count for what, count, _ in told if what == kind]
        (total,) = {of for what, _, of in told if what == kind}
        assert len(done) > 1
        assert done == sorted(done)
        assert done[-1] == total


def test_what_is_kept_of_each_token_of_an_answer_is_its_scores(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[tuple[int, ...]] = []

    def watched(*args: Any, **options: Any) -> Iterator[tuple[int, NDArray[np.float64]]]:
        for number, found in rows.read_tokens(*args, **options):
            kept.append(found.shape)
            yield number, found

    monkeypatch.setattr(fit, "read_tokens", watched)
    fit_probe(tiny, low_and_high(10), FitSettings("output"))
    # By a line from each of five folds, then by the probe's own; never all layers' rows, 2.1 GB for 4,000 tokens of an 8B model.
    assert {shape[1:] for shape in kept} == {(5,), (1,)}
