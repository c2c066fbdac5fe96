"""Why the latest answer is as it is: what was added to it, where, how much, and who decided that."""

from __future__ import annotations

from collections.abc import Iterator

from localsteer.chat.conversation import Exchange
from localsteer.steering.plan import Part
from localsteer.vector.calibration import MODE_NAMES
from localsteer.vector.control_vector import format_layers


def why(exchange: Exchange) -> Iterator[str]:
    """What is known of an answer, a line each."""
    request, answer = exchange.request, exchange.answer
    plan = request.plan
    if plan is None:
        yield "Nothing was added by an expression."
    else:
        yield f"Steering: {plan.steering}"
        for part in plan.parts:
            yield f"  {part.term}: {_of_part(part)}"
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


def _of_part(part: Part) -> str:
    if not part.layers:
        return "nothing"
    dose = f", relative dose {part.relative_dose:.2f}" if part.relative_dose is not None else ""
    return f"{'removed from' if part.term.ablate else 'added at'} layers {format_layers(part.layers)}{dose}"
