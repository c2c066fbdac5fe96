"""Try a policy on texts that exist already: the controller is shown them as if they were written now."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from localsteer.engine.draft import Draft
from localsteer.errors import PolicyError
from localsteer.llama.model import Model
from localsteer.llama.residual import Rows
from localsteer.policy.audit import Decision
from localsteer.policy.classifier import Classifier
from localsteer.policy.controller import Controller
from localsteer.policy.examples import Example
from localsteer.policy.policy import Policy
from localsteer.policy.statistics import measure
from localsteer.policy.text_rows import answer_span, answer_tokens, message_span
from localsteer.reading.rows import read_tokens
from localsteer.reading.span import Part, Span
from localsteer.vector.probe import Metrics


@dataclass(frozen=True)
class Replayed:
    """What a policy says of one text.

    Attributes:
        example: the text.
        scores: by classifier the score of the message, or the highest one of the answer.
        fired: the rules that fired.
        decisions: all decisions.
        failures: by classifier what went wrong.
    """

    example: Example
    scores: dict[str, float]
    fired: tuple[str, ...]
    decisions: tuple[Decision, ...]
    failures: dict[str, str]


def replay(
    policy: Policy, model: Model, examples: Sequence[Example], *, on_progress: Callable[[int, int], None] | None = None
) -> list[Replayed]:
    """What a policy says of texts; nothing is generated, and each text is a conversation of its own.

    Args:
        policy: the armed policy.
        model: the model that it is armed for.
        examples: the texts.
        on_progress: told how many are done, and of how many.

    Raises:
        ModelError: the model's residual stream cannot be read.
    """
    prompt_layers, output_layers = (sorted(policy.layers(watch)) for watch in ("prompt", "output"))
    told = [(number, one) for number, one in enumerate(examples) if prompt_layers and one.message]
    messages = _spans(told, lambda one: message_span(model, one.message))
    answered = [(number, one) for number, one in enumerate(examples) if output_layers and one.answer]
    answers = _spans(answered, lambda one: answer_span(model, one.message_before, one.answer))
    results: dict[int, Replayed] = {}
    means: dict[int, Rows] = {}

    def show(number: int, rows: Rows | None = None) -> None:
        mean = dict(zip(prompt_layers, means.pop(number, ()), strict=False))
        by_token = None if rows is None else [dict(zip(output_layers, row, strict=True)) for row in rows]
        results[number] = _replay(policy, model, examples[number], mean, by_token)
        if on_progress is not None:
            on_progress(len(results), len(examples))

    for number, rows in _rows(model, messages, prompt_layers):
        means[number] = rows.mean(axis=0)
        if number not in answers:
            show(number)
    for number, rows in _rows(model, answers, output_layers):
        show(number, rows)
    for number in range(len(examples)):
        if number not in results:  # nothing of it could be read, or needed to be
            show(number)
    return [results[number] for number in range(len(examples))]


def _spans(examples: Sequence[tuple[int, Example]], span_of: Callable[[Example], Span]) -> dict[int, Span]:
    """What is read of texts. One that is too long is missing: its probe fails for want of rows, and says so."""
    spans = {}
    for number, example in examples:
        with contextlib.suppress(PolicyError):
            spans[number] = span_of(example)
    return spans


def _rows(model: Model, spans: Mapping[int, Span], layers: Sequence[int]) -> Iterator[tuple[int, Rows]]:
    """(n_tokens, n_layers, n_embd) of each text by its number, in the order in which they are read."""
    numbers = list(spans)

    def keep(part: Part) -> Rows:
        return np.stack([part.rows(layer) for layer in layers], axis=1)

    for place, rows in read_tokens(model, list(spans.values()), layers, keep):
        yield numbers[place], rows


def measure_replayed(results: Sequence[Replayed], classifier: Classifier) -> Metrics | None:
    """How well a classifier's scores go with the labels; None where not every text has both."""
    known = [one for one in results if one.example.label is not None and classifier.name in one.scores]
    if len(known) < len(results):
        return None
    labels = [bool(one.example.label) for one in known]
    return measure([one.scores[classifier.name] for one in known], labels, classifier.threshold)


def _replay(
    policy: Policy, model: Model, example: Example, mean: Mapping[int, Rows], rows: Sequence[Mapping[int, Rows]] | None
) -> Replayed:
    """Shows a text to the controller, with the mean rows of its message and the rows of each token of its answer."""
    # A text that is there already cannot be taken back.
    rules = tuple(replace(rule, rewind=0) for rule in policy.rules)
    gate = Controller(replace(policy, rules=rules), thorough=True).answer(example.message)
    gate.after_prompt(mean)
    if example.answer:
        draft = Draft(model.token_bytes, (), None)
        for position, token in enumerate(answer_tokens(model, example.answer)):
            draft.push(token)
            gate.after_token(draft, final=False)
            if gate.output_layers:
                gate.after_run(draft, {} if rows is None else rows[position])
        draft.finish()
        gate.after_token(draft, final=True)
    fired = dict.fromkeys(one.rule for one in gate.decisions if one.action == "fire")
    return Replayed(example, dict(gate.scores), tuple(fired), tuple(gate.decisions), dict(gate.failures))
