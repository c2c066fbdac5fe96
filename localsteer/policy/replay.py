"""Try a policy on texts that exist already: the controller is shown them as if they were written now."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from localsteer.engine.draft import Draft
from localsteer.errors import PolicyError
from localsteer.llama.model import Model
from localsteer.policy.audit import Decision
from localsteer.policy.classifier import Classifier
from localsteer.policy.controller import AnswerGate, Controller
from localsteer.policy.examples import Example
from localsteer.policy.policy import Policy
from localsteer.policy.statistics import measure
from localsteer.policy.text_rows import Reader
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
    layers = policy.layers("prompt") | policy.layers("output")
    results = []
    with Reader(model, layers or {1}) as reader:
        for number, example in enumerate(examples, 1):
            results.append(_replay(policy, reader, example))
            if on_progress is not None:
                on_progress(number, len(examples))
    return results


def measure_replayed(results: Sequence[Replayed], classifier: Classifier) -> Metrics | None:
    """How well a classifier's scores go with the labels; None where not every text has both."""
    known = [one for one in results if one.example.label is not None and classifier.name in one.scores]
    if len(known) < len(results):
        return None
    labels = [bool(one.example.label) for one in known]
    return measure([one.scores[classifier.name] for one in known], labels, classifier.threshold)


def _replay(policy: Policy, reader: Reader, example: Example) -> Replayed:
    # A text that is there already cannot be taken back.
    rules = tuple(replace(rule, rewind=0) for rule in policy.rules)
    gate = Controller(replace(policy, rules=rules), thorough=True).answer(example.message)
    _show_prompt(gate, reader, example)
    _show_answer(gate, reader, example)
    fired = dict.fromkeys(one.rule for one in gate.decisions if one.action == "fire")
    return Replayed(example, dict(gate.scores), tuple(fired), tuple(gate.decisions), dict(gate.failures))


def _show_prompt(gate: AnswerGate, reader: Reader, example: Example) -> None:
    rows = {}
    if gate.prompt_layers and example.message:
        with contextlib.suppress(PolicyError):  # too long: the probe fails for want of rows, and says so
            layers = sorted(gate.prompt_layers)
            rows = dict(zip(layers, reader.prompt(example.message, layers), strict=True))
    gate.after_prompt(rows)


def _show_answer(gate: AnswerGate, reader: Reader, example: Example) -> None:
    if not example.answer:
        return
    rows = None
    if gate.output_layers:
        with contextlib.suppress(PolicyError):  # as above
            rows = reader.answer(example.message_before, example.answer)
    draft = Draft(reader.model.token_bytes, (), None)
    for position, token in enumerate(reader.tokens_of(example.answer)):
        draft.push(token)
        gate.after_token(draft, final=False)
        if gate.output_layers:
            gate.after_run(draft, {} if rows is None else dict(zip(reader.layers, rows[position], strict=True)))
    draft.finish()
    gate.after_token(draft, final=True)
