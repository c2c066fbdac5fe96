"""How to answer: the options that `generate`, `chat` and `serve` share, and what they come to for a model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from localsteer.building.library import loader, telling
from localsteer.building.own_answers import Progress
from localsteer.commands.options import Command, Number, gathered, with_options
from localsteer.commands.output import note, progress_bar
from localsteer.engine.generate import Generator
from localsteer.errors import ModelError
from localsteer.llama.model import Model
from localsteer.llama.sampling import MAX_SEED, Sampling
from localsteer.policy.controller import Controller
from localsteer.reading.hidden_norm import read_hidden_norm
from localsteer.steering.dose import DoseLimit
from localsteer.steering.expression import Steering, parse_steering
from localsteer.steering.plan import Plan, resolve, resolve_opposite
from localsteer.vector.calibration import Mode

if TYPE_CHECKING:
    from localsteer.policy.arm import ArmedPolicy


@dataclass(frozen=True)
class AnswerOptions:
    """How to answer, and under which steering."""

    steering: Steering
    policy_file: str | None
    system: str | None
    think: bool | None
    max_tokens: int
    anchored: bool
    max_dose: float | None
    n_ctx: int | None
    sampling: Sampling


def _add_up(_context: click.Context, _parameter: click.Parameter, given: Sequence[str]) -> Steering:
    # A short option takes all that is behind it: of -s=happy also the sign, which begins no expression.
    return Steering(tuple(term for one in given for term in parse_steering(one.removeprefix("=")).terms))


def steer_option(text: str) -> Callable[[Command], Command]:
    """-s with a help text; the command gets the sum of all that are given as `steering: Steering`."""
    return click.option("-s", "--steer", "steering", multiple=True, callback=_add_up, help=text)


def _checked_policy(_context: click.Context, _parameter: click.Parameter, file: str | None) -> str | None:
    """A mistake in it is told before the model is loaded."""
    if file is not None:
        from localsteer.policy.policy_file import load_policy

        load_policy(file)
    return file


policy_option = click.option(
    "--policy",
    "policy_file",
    type=click.Path(dir_okay=False),
    callback=_checked_policy,
    help="Steer when the classifiers of this policy say so (see docs/policy.md).",
)
max_dose_option = click.option(
    "--max-dose",
    type=Number(0, min_open=True),
    help="Never steer by more than this relative dose (`localsteer vectors show` tells a vector's).",
)


def _sampling_option(name: str, kind: Number | click.IntRange, text: str | None = None) -> Callable[[Any], Any]:
    default = getattr(Sampling(), name.removeprefix("--").replace("-", "_"))
    return click.option(name, type=kind, default=default, show_default=True, help=text)


think_option = click.option(
    "--think/--no-think",
    default=None,
    help="Whether a model that can think does so first. Default: as its template says.",
)


def with_sampling_options(function: Command) -> Command:
    """How tokens are drawn; the command gets `sampling: Sampling`."""
    penalty = Number(-2, 2)
    return with_options(
        gathered("sampling", Sampling)(function),
        _sampling_option("--temperature", Number(0), "0: no chance."),
        _sampling_option("--top-k", click.IntRange(0, 10**6), "0: all."),
        _sampling_option("--top-p", Number(0, 1)),
        _sampling_option("--min-p", Number(0, 1)),
        _sampling_option(
            "--repeat-penalty",
            Number(0, min_open=True),
            "The logits of the last 64 tokens, of prompt and answer, are divided by this.",
        ),
        _sampling_option("--frequency-penalty", penalty, "Taken off their logits for each time they occurred."),
        _sampling_option("--presence-penalty", penalty, "Likewise, once however often they occurred."),
        click.option("--seed", type=click.IntRange(0, MAX_SEED), help="Draw the same answer again."),
    )


def with_answer_options(function: Command) -> Command:
    """What is said, how, and under which steering; the command gets `answering: AnswerOptions`."""
    return with_options(
        with_sampling_options(gathered("answering", AnswerOptions)(function)),
        steer_option('What to steer by, such as "0.5 happy - 0.3 formal@10-20"; several add up.'),
        policy_option,
        click.option("--system", help="A system message."),
        think_option,
        click.option("-n", "--max-tokens", type=click.IntRange(1, 10**7), default=512, show_default=True, help="Longest answer."),
        click.option(
            "--anchored",
            is_flag=True,
            help="Let the unsteered model read along: what it would never say is not said. Takes stronger doses; slower.",
        ),
        max_dose_option,
        click.option(
            "--context",
            "n_ctx",
            type=click.IntRange(8, 10**8),
            help="Tokens of context. Default: what the model and the memory allow, up to 16,384.",
        ),
    )


def limit_for(model: Model, max_dose: float | None) -> DoseLimit | None:
    """What --max-dose means on this model, whose hidden norms are measured for it; None for any dose.

    Raises:
        ModelError: they cannot be measured.
    """
    if max_dose is None:
        return None
    try:
        return DoseLimit(max_dose, read_hidden_norm(model))
    except ModelError as error:
        raise ModelError(f"No dose can be told on this model: {error.message}", hint="Leave out --max-dose.") from error


def make_plan(steering: Steering, model: Model, *, mode: Mode = "response", limit: DoseLimit | None = None) -> Plan | None:
    """The plan of an expression for this model, its vectors found by name or path; None for the empty expression.

    Args:
        steering: the expression.
        model: the model to steer.
        mode: what is steered.
        limit: the largest relative dose; None for any.

    Raises:
        LocalsteerError: the limit does not allow it.
    """
    if not steering:
        return None
    built: list[str] = []
    with progress_bar() as progress:
        plan = resolve(steering, model.fingerprint, loader(model, progress, telling(built, model)), mode, limit)
    note(*built, *(said for said in plan.notes if not any(said in line for line in built)))
    return plan


def make_opposite(steering: Steering, model: Model, *, mode: Mode, limit: DoseLimit | None) -> Plan | None:
    """The plan of an expression with all signs turned, to compare with; None where there is none.

    Raises:
        LocalsteerError: the limit does not allow it.
    """
    return resolve_opposite(steering, model.fingerprint, loader(model), mode, limit) if steering else None


@contextlib.contextmanager
def armed_policy(
    path: str | None,
    model: Model,
    limit: DoseLimit | None,
    mode: Mode,
    *,
    tell: Callable[[str], None] = note,
    progress: Callable[[], AbstractContextManager[Progress]] = progress_bar,
) -> Iterator[ArmedPolicy | None]:
    """A policy file armed for a model; None without one.

    Args:
        path: the file.
        model: the model.
        limit: the largest dose; None for any.
        mode: what is steered.
        tell: is told what is to be known.
        progress: shows how far the work is.

    Raises:
        LocalsteerError: the policy cannot be used, or the limit does not allow it.
    """
    if path is None:
        yield None
        return
    from localsteer.policy.arm import arm

    with contextlib.ExitStack() as stack:
        with progress() as shown:
            armed = stack.enter_context(arm(path, model, shown, limit=limit, mode=mode))
        for text in armed.notes:
            tell(text)
        yield armed


def new_controller(armed: ArmedPolicy | None, mode: Mode) -> Controller | None:
    """The controller of a new conversation under a policy; None without one."""
    return Controller(armed.for_answers(mode), audit=armed.audit) if armed is not None else None


def open_generator(model: Model, n_ctx: int | None, *, tell: Callable[[str], None] = note) -> Generator:
    """A generator with this context; what is to be known of it is told."""
    if n_ctx is not None and model.n_ctx_train and n_ctx > model.n_ctx_train:
        tell(f"{model.name} was trained for a context of {model.n_ctx_train} tokens; beyond that it loses the thread.")
    return Generator(model, n_ctx=n_ctx)
