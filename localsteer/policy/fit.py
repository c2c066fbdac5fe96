"""Fit a probe: from positive and negative texts to a direction, a layer and a threshold, and how well they do on other texts.

The direction is a linear discriminant of the class means. Layer and threshold are chosen by the scores of
texts that the direction was not fitted to (5-fold cross-validation), all on one part of the texts. What is reported comes from
the other part, which nothing was fitted to or chosen on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from localsteer.errors import LocalsteerError, PolicyError
from localsteer.llama.fingerprint import hash_texts
from localsteer.llama.model import Model
from localsteer.policy.examples import Example
from localsteer.policy.probe_classifier import Scores, moving_mean, projection
from localsteer.policy.statistics import auroc, measure
from localsteer.policy.text_rows import answer_span, message_span
from localsteer.reading.rows import Progress, read_means, read_tokens
from localsteer.reading.span import Span
from localsteer.vector.control_vector import ControlVector, Floats, Provenance
from localsteer.vector.probe import Metrics, Probe, Watch

# Below this nothing can be fitted and tried; the interval of an AUROC of 1 on 4 + 4 texts reaches down to 0.58.
LEAST_TEXTS = 4
# Below this the intervals are so wide that a user should be told: that of no false positive among 20 reaches up to 16 %.
FEW_TEXTS = 20
_FOLDS = 5
_UNSEEN_SHARE = 0.5  # of the texts, kept for the report
# Of the covariance toward the diagonal. In cross-validation on 40 + 40 hostile and friendly messages at the demo model's layers
# 13 to 27 the AUROC was 0.93 to 0.98 with 0.9, 0.93 to 0.97 with 0.5, and 0.90 to 0.95 for the bare difference of the means.
_SHRINKAGE = 0.9
DEFAULT_WINDOW = 16


@dataclass(frozen=True)
class FitSettings:
    """How a probe is fitted.

    Attributes:
        watch: messages, or answers.
        target: the most false positives, as a share of negative texts; None where both kinds of mistakes count alike.
        layers: first and last layer to choose from, both inclusive; None for all.
        window: answers only: tokens that are averaged.
        seed: of the split.
    """

    watch: Watch = "prompt"
    target: float | None = None
    layers: tuple[int, int] | None = None
    window: int = DEFAULT_WINDOW
    seed: int = 0


@dataclass(frozen=True)
class Fitted:
    """A fitted probe.

    Attributes:
        vector: with the probe.
        chosen: how texts did in cross-validation on the part that the layer and threshold were chosen on.
        by_layer: the AUROC of each layer in the same way.
        unseen: the texts of the report.
        notes: what the user should know, such as too few texts.
    """

    vector: ControlVector
    chosen: Metrics
    by_layer: dict[int, float]
    unseen: tuple[Example, ...]
    notes: tuple[str, ...]

    @property
    def probe(self) -> Probe:
        """What the vector carries."""
        assert self.vector.provenance.probe is not None
        return self.vector.provenance.probe


def fit_probe(
    model: Model,
    examples: Sequence[Example],
    settings: FitSettings | None = None,
    *,
    unseen: Sequence[Example] | None = None,
    name: str = "probe",
    on_progress: Callable[[str, int, int], None] | None = None,
) -> Fitted:
    """Fit a probe.

    Args:
        model: the model that it will read.
        examples: texts with labels.
        settings: how.
        unseen: texts for the report; by default a share of the examples.
        name: of the probe.
        on_progress: told what is read, how many tokens of it are done, and of how many.

    Raises:
        PolicyError: too few texts of a kind, a text that is too long, or texts that no layer tells apart.
        ModelError: the model's residual stream cannot be read.
    """
    settings = settings if settings is not None else FitSettings()
    # The last block shows no more of a prompt than its last token.
    highest = model.n_layer - (2 if settings.watch == "prompt" else 1)
    first, last = settings.layers if settings.layers is not None else (1, highest)
    if highest < 1:
        raise PolicyError(f"{model.name} has too few layers for a probe.")
    if not 1 <= first <= last <= highest:
        raise PolicyError(f"{model.name} has layers 1 to {highest} to choose from, not {first}-{last}.")
    _check_labels(examples, settings.watch)
    fitted, reported = (list(examples), list(unseen)) if unseen is not None else _split(examples, settings)
    _check(fitted, reported, settings.watch)
    layers = range(first, last + 1)
    spans, unseen_spans = ([_span(model, one, settings.watch) for one in part] for part in (fitted, reported))
    values = read_means(model, spans, layers, progress=_told("fitting", on_progress)).values
    truth = np.array([bool(one.label) for one in fitted])
    folds = _folds(truth, settings.seed)
    scores = [_unfitted_scores(values[:, index], truth, folds) for index in range(len(layers))]
    best = max(range(len(layers)), key=lambda index: (auroc(scores[index], truth), _separation(scores[index], truth)))
    layer = layers[best]
    weights, bias = _line(values[:, best], truth)
    # The weights are 2d / ‖d‖², and so the other way round; what is reported is what the file will hold.
    direction = (2 * weights / (weights @ weights)).astype(np.float32)
    weights = projection(direction)
    chosen_scores = scores[best]
    if settings.watch == "output":
        # A text counts by the highest mean on its way, as an answer does while it is written.
        lines = [_line(values[folds != fold, best], truth[folds != fold]) for fold in range(folds.max() + 1)]
        chosen_scores = _scores(model, spans, layer, lines, folds, settings, _told("choosing", on_progress))
    threshold = choose_threshold(chosen_scores, truth, settings.target)
    one_line = np.zeros(len(reported), np.intp)
    told = _told("reporting", on_progress)
    unseen_scores = _scores(model, unseen_spans, layer, [(weights, bias)], one_line, settings, told)
    positive = [bool(one.label) for one in reported]
    probe = Probe(
        layer,
        bias,
        threshold,
        settings.watch,
        settings.window,
        (int(truth.sum()), int((~truth).sum())),
        settings.target,
        measure(unseen_scores, positive, threshold),
    )
    provenance = Provenance(
        concept=name,
        description=f"A probe that watches the {settings.watch}.",
        method="discriminant",
        position=settings.watch,
        model=model.fingerprint,
        dataset_sha256=hash_texts(f"{one.label} {one.message} {one.answer}".encode("utf-8", "replace") for one in fitted),
        probe=probe,
    )
    return Fitted(
        ControlVector({layer: direction}, provenance),
        measure(chosen_scores, truth, threshold),
        {one: auroc(score, truth) for one, score in zip(layers, scores, strict=True)},
        tuple(reported),
        tuple(_notes(fitted, reported, settings)),
    )


def choose_threshold(scores: Scores, positive: NDArray[np.bool_], target: float | None) -> float:
    """A threshold between two neighbouring scores.

    Args:
        scores: (n,).
        positive: (n,) whether each is of a positive text.
        target: the most false positives, as a share of the negative texts; None weighs both kinds of mistakes alike.
    """
    ordered = np.unique(scores)
    middles = (ordered[:-1] + ordered[1:]) / 2
    # Above all scores by as much as the highest two are apart: a threshold that calls nothing positive must be possible.
    above = ordered[-1] + (ordered[-1] - ordered[-2] if len(ordered) > 1 else 1.0)
    above = max(above, np.nextafter(ordered[-1], np.inf))  # a gap may be too small to be added
    candidates = np.concatenate((middles, [above]))
    false = np.array([(scores[~positive] >= one).mean() for one in candidates])
    if target is not None:
        return float(candidates[int(np.argmax(false <= target))])
    missed = np.array([(scores[positive] < one).mean() for one in candidates])
    wrong = false + missed
    best = np.flatnonzero(wrong <= wrong.min() + 1e-12)
    # Of several equally good ones the middle: it is furthest from either kind of mistake.
    return float(candidates[best[len(best) // 2]])


def _folds(truth: NDArray[np.bool_], seed: int) -> NDArray[np.intp]:
    """(n,) the fold of each text, for cross-validation; each fold has its share of either kind."""
    of = np.empty(len(truth), np.intp)
    generator = np.random.default_rng(seed)
    for kind in (truth, ~truth):
        places = generator.permutation(np.flatnonzero(kind))
        of[places] = np.arange(len(places)) % _FOLDS
    return of


def _unfitted_scores(values: Floats, truth: NDArray[np.bool_], folds: NDArray[np.intp]) -> Scores:
    """(n,) each text's score by a direction from the other folds."""
    scores = np.empty(len(truth), np.float64)
    for fold in range(folds.max() + 1):
        fitted = folds != fold
        weights, bias = _line(values[fitted], truth[fitted])
        scores[~fitted] = values[~fitted] @ weights + bias
    return scores


def _line(values: Floats, truth: NDArray[np.bool_]) -> tuple[Scores, float]:
    """Weights and bias that give the positive texts (n, n_embd) a mean score of 1 and the negative ones -1.

    Fisher's discriminant S⁻¹ (m₊ - m₋), with the covariance S within the classes shrunk toward that of independent dimensions.
    """
    wide = values.astype(np.float64)
    high, low = wide[truth].mean(axis=0), wide[~truth].mean(axis=0)
    if not (high - low).any():
        raise PolicyError("The positive and the negative texts are the same to the model.", hint="Give texts that differ.")
    within = np.where(truth[:, None], wide - high, wide - low)
    scale = within.std(axis=0)
    scale[scale <= 1e-6 * scale.max()] = scale.max() or 1.0  # a dimension that never varies tells nothing of how it might
    within /= scale
    difference = (high - low) / scale
    # (a ZᵀZ / n + b I)⁻¹ by Woodbury's identity: there are fewer texts than dimensions.
    gram = within @ within.T / len(within) * (1 - _SHRINKAGE) + _SHRINKAGE * np.eye(len(within))
    part = within.T @ np.linalg.solve(gram, within @ difference) * (1 - _SHRINKAGE) / len(within)
    weights = (difference - part) / scale
    weights *= 2 / float((high - low) @ weights)
    return weights, -float((high + low) @ weights / 2)


def _separation(scores: Scores, truth: NDArray[np.bool_]) -> float:
    """How far apart the kinds are in standard deviations: it tells layers apart where all sort the texts without a mistake."""
    spread = math.sqrt((scores[truth].var() + scores[~truth].var()) / 2)
    return float((scores[truth].mean() - scores[~truth].mean()) / spread) if spread > 0 else math.inf


def _span(model: Model, example: Example, watch: Watch) -> Span:
    """The tokens of a text that are read."""
    try:
        if watch == "prompt":
            return message_span(model, example.message)
        return answer_span(model, example.message_before, example.answer)
    except LocalsteerError as error:
        raise PolicyError(f"{example.place}: {error.message}", hint=error.hint) from error


def _scores(
    model: Model,
    spans: Sequence[Span],
    layer: int,
    lines: Sequence[tuple[Scores, float]],
    of: NDArray[np.intp],
    settings: FitSettings,
    progress: Progress | None,
) -> Scores:
    """(n,) what the controller would find of each text by its line (`of` says which): of an answer the highest moving mean."""
    weights = np.stack([line for line, _ in lines], axis=1)
    bias = np.array([one for _, one in lines])
    scores = np.empty(len(spans), np.float64)
    for number, found in read_tokens(model, spans, [layer], lambda part: part.rows(layer) @ weights + bias, progress=progress):
        own = found[:, of[number]]
        scores[number] = own.mean() if settings.watch == "prompt" else moving_mean(own, settings.window).max()
    return scores


def _split(examples: Sequence[Example], settings: FitSettings) -> tuple[list[Example], list[Example]]:
    """What is fitted to, and what is reported on, with the same share of either kind. The same text is never in both."""
    generator = np.random.default_rng(settings.seed)
    fitted: list[Example] = []
    reported: list[Example] = []
    for label in (True, False):
        alike = {_watched(one, settings.watch): one for one in examples if one.label is label}
        kind = list(alike.values())
        count = round(len(kind) * _UNSEEN_SHARE)
        order = generator.permutation(len(kind))
        reported += [kind[index] for index in sorted(order[:count])]
        fitted += [kind[index] for index in sorted(order[count:])]
    return fitted, reported


def _watched(example: Example, watch: Watch) -> tuple[str, ...]:
    """What the model reads of a text."""
    return (example.message,) if watch == "prompt" else (example.message_before, example.answer)


def _check_labels(examples: Sequence[Example], watch: Watch) -> None:
    labels: dict[tuple[str, ...], bool] = {}
    for one in examples:
        if one.label is None:
            raise PolicyError(f"{one.place}: this text has no label.", hint='Give each a "label", or use two files.')
        if labels.setdefault(_watched(one, watch), one.label) is not one.label:
            raise PolicyError(f"{one.place}: this text is called both positive and negative.", hint="Leave it out.")


def _check(fitted: Sequence[Example], reported: Sequence[Example], watch: Watch) -> None:
    _check_labels(reported, watch)
    for part, use in ((fitted, "fit to"), (reported, "report on")):
        for label, kind in ((True, "positive"), (False, "negative")):
            count = sum(one.label is label for one in part)
            if count < LEAST_TEXTS:
                raise PolicyError(
                    f"There are {count} {kind} texts to {use}; at least {LEAST_TEXTS} are needed.",
                    hint=f"Give more examples; {FEW_TEXTS} of a kind tell much more.",
                )
    known = {_watched(one, watch) for one in fitted}
    if same := next((one for one in reported if _watched(one, watch) in known), None):
        raise PolicyError(f"{same.place}: this text is also used for fitting, so a report on it would mean nothing.")


def _notes(fitted: Sequence[Example], reported: Sequence[Example], settings: FitSettings) -> Iterator[str]:
    for part, use in ((fitted, "fitted to"), (reported, "reported on")):
        counts = [sum(one.label is label for one in part) for label in (True, False)]
        if min(counts) < FEW_TEXTS:
            yield f"Few texts: {use} {counts[0]} positive and {counts[1]} negative ones. Mind the width of the intervals."
    negatives = sum(one.label is False for one in fitted)
    if settings.target is not None and settings.target * negatives < 1:
        yield (
            f"A false positive rate of {settings.target:g} cannot be told from {negatives} negative texts: the threshold lies "
            f"above all of them, and {math.ceil(1 / settings.target)} would be needed."
        )


def _told(what: str, on_progress: Callable[[str, int, int], None] | None) -> Progress | None:
    return None if on_progress is None else lambda done, total: on_progress(what, done, total)
