"""From a request to its answers under way: what all APIs do alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from fastapi.concurrency import run_in_threadpool
from starlette.requests import Request as HTTPRequest

from localsteer.engine.request import Answer
from localsteer.server.answers import Answers, Prompt, Service, Wishes
from localsteer.server.jobs import Job
from localsteer.server.reply import Reading
from localsteer.steering.plan import Part, Plan
from localsteer.vector.calibration import Mode


class Asking(Protocol):
    """The part of a request that says which model answers, and how it is steered."""

    model: str | None
    steering: str | None
    steer_prompt: bool
    anchored: bool | None


@dataclass(frozen=True)
class Asked:
    """Answers that are under way.

    Attributes:
        name: what the model is called.
        prompts: how many.
        prompt_tokens: of all of them.
        reading: how the replies are to be read.
        steering: what is told of the steering.
        answers: those.
    """

    name: str
    prompts: int
    prompt_tokens: int
    reading: Reading
    steering: dict[str, Any] = field(repr=False)
    answers: Answers


async def ask(
    service: Service,
    body: Asking,
    header: str | None,
    http: HTTPRequest,
    make: Callable[[], tuple[Sequence[Prompt], Wishes]],
    *notes: str | None,
) -> Asked:
    """Have a request answered.

    Args:
        service: by this.
        body: the request.
        header: its steering by header.
        http: it, as it came.
        make: makes the prompts, and how they are to be answered; called in a thread, as schemas may have to be converted.
        notes: what else is to be told.

    Raises:
        LocalsteerError: it asks for what cannot be had.
        ClientDisconnect: the client has gone away meanwhile.
    """
    mode = service.mode(steer_prompt=body.steer_prompt, anchored=body.anchored)
    plan: Plan | None = await service.plan(body.steering, header, body.model, mode, http)

    def prepare() -> tuple[Sequence[Prompt], list[Job]]:
        prompts, wishes = make()
        return prompts, service.jobs(prompts, plan, wishes, mode)

    prompts, jobs = await run_in_threadpool(prepare)
    name, note = service.called(body.model)
    request = jobs[0].request
    steering = applied(plan, request.mode, note, *notes, *request.unheard)
    read = sum(len(prompt.tokens) for prompt in prompts)
    return Asked(name, len(prompts), read, prompts[0].reading, steering, Answers(service.engine, jobs))


def timing_document(answers: Sequence[Answer]) -> dict[str, float]:
    """What is told of the time that answers took."""
    slowest = max(answers, key=lambda answer: answer.timing.seconds)
    return {
        "prompt_tokens_per_second": slowest.timing.prompt_tokens_per_second,
        "tokens_per_second": slowest.timing.tokens_per_second,
        "seconds": slowest.timing.seconds,
    }


def applied(plan: Plan | None, mode: Mode | None = None, *notes: str | None) -> dict[str, Any]:
    """What an answer says of its steering; without a plan, a policy may have steered it, in this mode."""
    told = [note for note in notes if note is not None]
    if plan is None:
        return {"expression": "", "scope": mode or "response", "relative_dose": 0.0, "notes": told, "terms": []}
    return {
        "expression": str(plan.steering),
        "scope": plan.mode,
        "relative_dose": plan.relative_dose,
        "notes": [*told, *plan.notes],
        "terms": [_term(part) for part in plan.parts],
    }


def _term(part: Part) -> dict[str, Any]:
    return {
        "term": str(part.term),
        "vector": part.term.vector,
        "strength": None if part.term.ablate else part.term.strength,
        "removed": part.term.ablate,
        "phase": part.term.phase,
        "layers": list(part.layers),
        "relative_dose": part.relative_dose,
        "worth": part.worth,
    }
