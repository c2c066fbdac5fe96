"""Why the latest answer is as it is: what was added to it, where, how much, and who decided that."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from localsteer.chat.conversation import Exchange
from localsteer.errors import LocalsteerError
from localsteer.steering.expression import Steering
from localsteer.steering.plan import Plan
from localsteer.vector.calibration import MODE_NAMES
from localsteer.vector.control_vector import format_layers


def why(exchange: Exchange, plan_of: Callable[[Steering], Plan | None]) -> Iterator[str]:
    """What is known of an answer, a line each.

    Args:
        exchange: the answer.
        plan_of: the plan of one term by itself, in the same mode.
    """
    request, answer = exchange.request, exchange.answer
    plan = request.plan
    if plan is None:
        yield "Nothing was added by an expression."
    else:
        yield f"Steering: {plan.steering}"
        for term in plan.steering.terms:
            yield f"  {term}: {_of_term(Steering((term,)), plan_of)}"
        if len(plan.steering.terms) > 1 and plan.relative_dose is not None:
            yield f"  together: relative dose {plan.relative_dose:.2f}"
        for said in (*plan.worth, *plan.notes, *request.unheard):
            yield f"  {said}"
    assert request.mode is not None
    yield f"Steered: {MODE_NAMES[request.mode]}" if plan is not None or exchange.decisions else "Steered: nothing"
    for decision in exchange.decisions:
        yield str(decision)
    timing = answer.timing
    yield (
        f"{len(answer.tokens)} tokens at {timing.tokens_per_second:.0f}/s, seed {answer.seed}; of the prompt "
        f"{timing.prompt_tokens} tokens were read and {timing.reused_tokens} known"
    )


def _of_term(steering: Steering, plan_of: Callable[[Steering], Plan | None]) -> str:
    try:
        plan = plan_of(steering)
    except LocalsteerError as error:
        return error.message
    assert plan is not None
    edits = [edit for edit in (plan.edit, plan.thinking) if edit is not None]
    layers = {int(layer) for edit in edits for layer in [*np.flatnonzero(edit.added.any(axis=1)), *edit.removed]}
    if not layers:
        return "nothing"
    dose = f", relative dose {plan.relative_dose:.2f}" if plan.relative_dose is not None else ""
    verb = "removed from" if steering.terms[0].ablate else "added at"
    return f"{verb} layers {format_layers(sorted(layers))}{dose}"
