"""Options that several commands share: one letter means one thing throughout."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from localsteer.commands.output import for_this_model, note
from localsteer.discovery import find_models, ollama_layers, resolve_model
from localsteer.errors import LocalsteerError, VectorError
from localsteer.llama import rpc
from localsteer.llama.model import Model
from localsteer.llama.model_file import content_hash, model_stem
from localsteer.steering.expression import Steering, parse_steering
from localsteer.vector.file import check_vector_path, read_vector

Command = TypeVar("Command", bound=Callable[..., Any])


class Number(click.FloatRange):
    """A number within limits, and one that there is: click takes "nan" for a number in any range."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number that a text stands for."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is no finite number.", param, ctx)
        return number


@dataclass(frozen=True)
class ModelOptions:
    """How to open a model."""

    model: str | None
    gpu_layers: int | None
    threads: int | None
    rpc: str | None
    trust: bool = False

    def open(self, path: Path | None = None, *, parse_special: bool = False, tell: Callable[[str], None] = note) -> Model:
        """The model, or the default one (LOCALSTEER_MODEL, then the demo model); or in the same way the one in a file.

        Args:
            path: the file.
            parse_special: whether control tokens in messages count as such.
            tell: is told what is to be known.
        """
        rpc.connect([server.strip() for server in (self.rpc or "").split(",") if server.strip()])
        path = path if path is not None else self.path()
        ollama = ollama_layers(path, self.model)
        if ollama.system is not None:
            tell("Ollama keeps a system text with this model, which is not used here: give one with --system.")
        return Model(
            path,
            gpu_layers=self.gpu_layers,
            threads=self.threads,
            parse_special=parse_special,
            ollama_template=ollama.template,
            trusted=self.trust,
        )

    def path(self) -> Path:
        """The file of the model that `open` opens.

        Raises:
            LocalsteerError: there is none, or more than one fits.
        """
        return resolve_model(self.model)

    def name(self) -> str:
        """What the model is called: as it was asked for, or by its file where that was a path."""
        path = self.path()
        return next((found.name for found in find_models() if found.path == path), model_stem(path))


def gathered(name: str, kind: type) -> Callable[[Command], Command]:
    """For a command that gets the values of some options as one argument, `name=kind(...)`.

    Args:
        name: of the function's parameter.
        kind: a dataclass, whose fields are the parameters of the options; those that no option is for keep their defaults.
    """
    keys = [field.name for field in fields(kind)]

    def wrapped(function: Command) -> Command:
        @functools.wraps(function)
        def command(**given: Any) -> Any:
            return function(**{name: kind(**{key: given.pop(key) for key in keys if key in given}), **given})

        return cast(Command, command)

    return wrapped


def with_options(function: Command, *options: Callable[[Any], Any]) -> Command:
    """A command with these options, in the order of its help."""
    for option in reversed(options):
        function = option(function)
    return function


def with_model_options(function: Command) -> Command:
    """-m, --gpu-layers, --threads, --rpc, --trust; the command gets `model_options: ModelOptions`."""
    return with_options(
        gathered("model_options", ModelOptions)(_with_hints_for_the_model(function)),
        click.option(
            "-m",
            "--model",
            help="A GGUF file, or a name that `localsteer models list` shows. Default: $LOCALSTEER_MODEL, then the demo model.",
        ),
        click.option(
            "--gpu-layers", type=click.IntRange(0, 10**6), help="Layers on the GPU; by default all, where there is one."
        ),
        click.option(
            "--threads", type=click.IntRange(1, 4096), help="CPU threads; by default one for each physical core allowed."
        ),
        click.option(
            "--rpc", metavar="HOST:PORT,...", help="Spread the layers over machines that run ggml-rpc-server (docs/rpc.md)."
        ),
        click.option(
            "--trust",
            is_flag=True,
            envvar="LOCALSTEER_TRUST",
            help="Open a model file that is new here at once, without trying it in a process of its own first.",
        ),
    )


def _with_hints_for_the_model(function: Command) -> Command:
    @functools.wraps(function)
    def command(**given: Any) -> Any:
        try:
            return function(**given)
        except LocalsteerError as error:
            error.args = (for_this_model(str(error)),)
            raise

    return cast(Command, command)


parse_special_option = click.option(
    "--parse-special",
    is_flag=True,
    help="Let control tokens in messages count as such, as llama-server does: they can forge turns.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
force_option = click.option("--force", is_flag=True, help="Replace a vector that is calibrated, or was made for another model.")
output_option = click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The new file.")


def _parse_expression(_context: click.Context, _parameter: click.Parameter, given: str) -> Steering:
    steering = parse_steering(given)
    if not steering:
        raise click.UsageError("The expression is empty.")
    return steering


expression_argument = click.argument("steering", metavar="EXPRESSION", callback=_parse_expression)


def _parse_layers(_context: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    first, _, last = value.partition("-")
    try:
        return int(first), int(last or first)
    except ValueError:
        raise click.BadParameter(f'"{value}" is not a range of layers such as 8-23.') from None


layers_option = click.option("--layers", callback=_parse_layers, help="First and last layer, both inclusive, such as 8-23.")


def check_output(
    path: Path,
    *,
    force: bool,
    model: ModelOptions | None = None,
    calibrates: bool = False,
    error: type[LocalsteerError] = VectorError,
) -> None:
    """Find out before the work that a vector cannot be written, or that one would be lost which cannot be had again as fast.

    Args:
        path: where a new vector shall be.
        force: whether any vector may be replaced.
        model: how the model is named that the new one is for; None where that is unknown.
        calibrates: the new one will be calibrated for that model, so only doses for another one would be lost.
        error: what to raise where it cannot be written.

    Raises:
        LocalsteerError: of the class `error`.
        VectorError: what is there is calibrated, tells texts apart for a policy, or was made for another model.
    """
    check_vector_path(path, error)
    if force or not path.is_file():
        return
    try:
        own = read_vector(path).provenance
    except VectorError:  # an empty file, or one that was cut short
        return
    content = content_hash(model.path()) if model is not None else None
    calibration, made_for = own.calibration, own.model
    if calibration is not None and not (calibrates and calibration.content == content):
        known = f"is calibrated for {calibration.model}"
    elif own.probe is not None:
        known = "is a probe, which policies need to tell texts apart; the new vector would be none"
    elif not calibrates and made_for is not None and content is not None and made_for.content != content:
        known = f"was made for {made_for.name}"
    else:
        return
    raise VectorError(f"{path} {known}.", hint="Give the new vector another name with -o, or --force to replace it.")
