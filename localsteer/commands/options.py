"""Options that several commands share: one letter means one thing throughout."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

if TYPE_CHECKING:
    from localsteer.engine.generate import Generator
    from localsteer.llama.model import Model
    from localsteer.policy.arm import ArmedPolicy
    from localsteer.policy.controller import Controller
    from localsteer.policy.policy import Policy
    from localsteer.steering.dose import DoseLimit
    from localsteer.steering.expression import Steering
    from localsteer.steering.plan import Plan
    from localsteer.vector.calibration import Mode

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True)
class ModelOptions:
    """How to open a model."""

    model: str | None
    gpu_layers: int | None
    threads: int | None
    rpc: str | None

    def open(self, path: Path | None = None) -> Model:
        """The model, or the default one (LOCALSTEER_MODEL, then the demo model); or in the same way the one in a file."""
        from localsteer.llama import rpc
        from localsteer.llama.model import Model

        rpc.connect([server.strip() for server in (self.rpc or "").split(",") if server.strip()])
        return Model(path if path is not None else self.path(), gpu_layers=self.gpu_layers, threads=self.threads)

    def path(self) -> Path:
        """The file of the model that `open` opens.

        Raises:
            LocalsteerError: there is none, or more than one fits.
        """
        from localsteer.discovery import resolve_model

        return resolve_model(self.model)

    def name(self) -> str:
        """What the model is called: as it was asked for, or by its file where that was a path."""
        from localsteer.discovery import find_models
        from localsteer.llama.model_file import model_stem

        path = self.path()
        listed = next((found.name for found in find_models() if found.path == path), None)
        return listed or model_stem(path)

    def default_problem(self) -> str | None:
        """Why there is no model to open without being told one; None where there is."""
        from localsteer.errors import LocalsteerError

        try:
            self.path()
        except LocalsteerError as error:
            return error.message
        return None


def _gathering(function: Command, options: Sequence[Callable[[Any], Any]], name: str, kind: type) -> Command:
    """A command with these options, whose values it gets as one argument, `name=kind(...)`.

    Args:
        function: the command's function.
        options: click options, the last one listed first in the help; their parameters are the fields of `kind`.
        name: of the function's parameter.
        kind: a dataclass.
    """
    keys = [field.name for field in fields(kind)]

    @functools.wraps(function)
    def command(**given: Any) -> Any:
        return function(**{name: kind(**{key: given.pop(key) for key in keys}), **given})

    for option in options:
        command = option(command)
    return cast(Command, command)


def with_model_options(function: Command) -> Command:
    """-m, --gpu-layers, --threads, --rpc; the command gets `model_options: ModelOptions`."""
    options = (
        click.option(
            "--rpc", metavar="HOST:PORT,...", help="Spread the layers over machines that run ggml-rpc-server (docs/rpc.md)."
        ),
        click.option("--threads", type=click.IntRange(1), help="CPU threads; by default one for each physical core allowed."),
        click.option("--gpu-layers", type=click.IntRange(0), help="Layers on the GPU; by default all, where there is one."),
        click.option(
            "-m",
            "--model",
            help="A GGUF file, or a name that `localsteer models list` shows. Default: $LOCALSTEER_MODEL, then the demo model.",
        ),
    )
    return _gathering(_with_hints_for_the_model(function), options, "model_options", ModelOptions)


def _with_hints_for_the_model(function: Command) -> Command:
    from localsteer.commands.output import for_this_model
    from localsteer.errors import LocalsteerError

    @functools.wraps(function)
    def command(**given: Any) -> Any:
        try:
            return function(**given)
        except LocalsteerError as error:
            error.args = (for_this_model(str(error)),)
            raise

    return cast(Command, command)


def json_option(function: Command) -> Command:
    """--json."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")(function)


def force_option(function: Command) -> Command:
    """--force."""
    text = "Replace a vector that is calibrated, or was made for another model."
    return click.option("--force", is_flag=True, help=text)(function)


def refuse_to_replace(path: Path, content: str | None = None, *, calibrates: bool = False) -> None:
    """Find out before the work that a vector would be lost which cannot be had again as fast.

    Args:
        path: where a new vector shall be.
        content: hash of the model's file (`model_file.content_hash`) that the new one is for; None where that is unknown.
        calibrates: the new one will be calibrated for that model, so only doses for another one would be lost.

    Raises:
        VectorError: what is there is calibrated, or was made for another model.
    """
    from localsteer.errors import VectorError
    from localsteer.vector.file import read_vector

    if not path.is_file():
        return
    try:
        own = read_vector(path).provenance
    except VectorError:  # an empty file, or one that was cut short
        return
    calibration, model = own.calibration, own.model
    if calibration is not None and not (calibrates and calibration.content == content):
        known = f"is calibrated for {calibration.model}"
    elif not calibrates and model is not None and content is not None and model.content != content:
        known = f"was made for {model.name}"
    else:
        return
    raise VectorError(f"{path} {known}.", hint="Give the new vector another name with -o, or --force to replace it.")


def steer_option(function: Command) -> Command:
    """-s."""
    return steer_option_with('What to steer by, such as "0.5 happy - 0.3 formal@10-20"; several add up.')(function)


def steer_option_with(text: str) -> Callable[[Command], Command]:
    """-s with another help text; the command gets the sum of all that are given as `steering: Steering`."""
    return click.option("-s", "--steer", "steering", multiple=True, callback=_add_up, help=text)


def _add_up(_context: click.Context, _parameter: click.Parameter, given: Sequence[str]) -> Steering:
    from localsteer.steering.expression import Steering, parse_steering

    return Steering(tuple(term for one in given for term in parse_steering(one).terms))


def anchored_option(function: Command) -> Command:
    """--anchored."""
    text = "Let the unsteered model read along: what it would never say is not said. Takes stronger doses; slower."
    return click.option("--anchored", is_flag=True, help=text)(function)


def max_dose_option(function: Command) -> Command:
    """--max-dose."""
    return click.option(
        "--max-dose",
        type=click.FloatRange(0, min_open=True),
        help="Never steer by more than this relative dose (`localsteer vectors show` tells a vector's).",
    )(function)


def policy_option(function: Command) -> Command:
    """--policy."""
    return click.option(
        "--policy",
        "policy_file",
        type=click.Path(dir_okay=False),
        help="Steer when the classifiers of this policy say so (see docs/policy.md).",
    )(function)


def context_option(function: Command) -> Command:
    """--context."""
    return click.option(
        "--context", "n_ctx", type=click.IntRange(8), help="Tokens of context. Default: 4096, or what the model allows."
    )(function)


def with_sampling_options(function: Command) -> Command:
    """How tokens are drawn; the command gets `sampling: Sampling`."""
    from localsteer.llama.sampling import MAX_SEED, Sampling

    default = Sampling()
    options = (
        click.option("--seed", type=click.IntRange(0, MAX_SEED), help="Draw the same answer again."),
        click.option(
            "--presence-penalty",
            type=click.FloatRange(-2, 2),
            default=default.presence_penalty,
            show_default=True,
            help="Likewise, once however often they occurred.",
        ),
        click.option(
            "--frequency-penalty",
            type=click.FloatRange(-2, 2),
            default=default.frequency_penalty,
            show_default=True,
            help="Taken off their logits for each time they occurred.",
        ),
        click.option(
            "--repeat-penalty",
            type=click.FloatRange(0, min_open=True),
            default=default.repeat_penalty,
            show_default=True,
            help="The logits of the last 64 tokens, of prompt and answer, are divided by this.",
        ),
        click.option("--min-p", type=click.FloatRange(0, 1), default=default.min_p, show_default=True),
        click.option("--top-p", type=click.FloatRange(0, 1), default=default.top_p, show_default=True),
        click.option("--top-k", type=click.IntRange(0), default=default.top_k, show_default=True, help="0: all."),
        click.option(
            "--temperature",
            type=click.FloatRange(0),
            default=default.temperature,
            show_default=True,
            help="0: no chance.",
        ),
    )
    return _gathering(function, options, "sampling", Sampling)


def layers_option(function: Command) -> Command:
    """--layers A-B."""
    return click.option("--layers", callback=_parse_layers, help="First and last layer, both inclusive, such as 8-23.")(function)


def _parse_layers(_context: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    first, _, last = value.partition("-")
    try:
        return int(first), int(last or first)
    except ValueError:
        raise click.BadParameter(f'"{value}" is not a range of layers such as 8-23.') from None


def limit_for(model: Model, max_dose: float | None) -> DoseLimit | None:
    """What --max-dose means on this model, whose hidden norms are measured for it; None for any dose.

    Raises:
        ModelError: they cannot be measured.
    """
    if max_dose is None:
        return None
    from localsteer.errors import ModelError
    from localsteer.reading.hidden_norm import read_hidden_norm
    from localsteer.steering.dose import DoseLimit

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
    from localsteer.building.library import loader
    from localsteer.commands.output import note, progress_bar
    from localsteer.steering.plan import resolve

    if not steering:
        return None
    with progress_bar() as progress:
        plan = resolve(steering, model.fingerprint, loader(model, progress), mode, limit)
    for text in plan.notes:
        note(text)
    return plan


def make_opposite(steering: Steering, model: Model, *, mode: Mode, limit: DoseLimit | None) -> Plan | None:
    """The plan of an expression with all signs turned, to compare with; None where there is none.

    Raises:
        LocalsteerError: the limit does not allow it.
    """
    from localsteer.building.library import loader
    from localsteer.steering.plan import resolve_opposite

    return resolve_opposite(steering, model.fingerprint, loader(model), mode, limit) if steering else None


@contextlib.contextmanager
def armed_policy(path: str | None, model: Model, limit: DoseLimit | None, mode: Mode) -> Iterator[ArmedPolicy | None]:
    """A policy file armed for a model; None without one.

    Raises:
        LocalsteerError: the policy cannot be used, or the limit does not allow it.
    """
    if path is None:
        yield None
        return
    from localsteer.commands.output import note, progress_bar
    from localsteer.policy.arm import arm

    with contextlib.ExitStack() as stack:
        with progress_bar() as progress:
            armed = stack.enter_context(arm(path, model, progress, limit=limit, mode=mode))
        for text in armed.notes:
            note(text)
        yield armed


def policy_for(armed: ArmedPolicy, mode: Mode) -> Policy:
    """The policy with the doses that answers of a mode take; what the user should know of them is shown.

    Raises:
        LocalsteerError: the limit does not allow them.
    """
    from localsteer.commands.output import note

    policy = armed.for_answers(mode)
    for text in dict.fromkeys(text for rule in policy.rules for text in rule.plan.notes):
        if text not in armed.notes:
            note(text)
    return policy


def new_controller(armed: ArmedPolicy | None, mode: Mode) -> Controller | None:
    """The controller of a new conversation under a policy; None without one."""
    from localsteer.policy.controller import Controller

    return Controller(armed.for_answers(mode), audit=armed.audit) if armed is not None else None


def open_generator(model: Model, n_ctx: int | None) -> Generator:
    """A generator with this context."""
    from localsteer.engine.generate import Generator

    if n_ctx is not None and model.n_ctx_train and n_ctx > model.n_ctx_train:
        from localsteer.commands.output import note

        note(f"{model.name} was trained for a context of {model.n_ctx_train} tokens; beyond that it loses the thread.")
    return Generator(model, n_ctx=n_ctx)
