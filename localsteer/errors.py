"""Errors that are meant for a person: what is wrong, where, and what to do next."""

from __future__ import annotations

import re
import shlex

# Of a message, and of an expression that is shown around a mistake: what quotes a file may quote megabytes.
_LONGEST = 1500
_AROUND = 400
# Commands whose result depends on the model.
_OF_A_MODEL = re.compile(r"`localsteer (?:calibrate|extract|vectors build|policy fit)\b(?![^`]* -m )[^`]*(?=`)")


class LocalsteerError(Exception):
    """A mistake or a missing thing that the user can do something about.

    The command line prints it as one line and exits with `exit_code`. What it quotes may come from a stranger: characters that
    would command a terminal are left out, and the middle of what is too long.

    Args:
        message: what is wrong, and where (the file, the layer, the column).
        hint: what to do next, where that is not plain from the message.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        message, hint = _told(message), _told(hint) if hint is not None else None
        super().__init__(message if hint is None else f"{message} {hint}")
        self.message = message
        self.hint = hint


def shown(text: object) -> str:
    """What a damaged or hostile file says, without the characters that would command a terminal."""
    return "".join(character if character.isprintable() else "?" for character in str(text))


def shown_lines(text: object) -> str:
    """The same of several lines."""
    return "\n".join(map(shown, str(text).split("\n")))


def for_model(text: str, model: str | None) -> str:
    """A text whose `commands` are for a model, by the name that -m takes: pasted, they would take the default one (None)."""
    if model is None:
        return text
    name = shlex.quote(model)
    return _OF_A_MODEL.sub(lambda found: f"{found[0]} -m {name}", text).replace("-m MODEL`", f"-m {name}`")


def _told(text: str) -> str:
    told = shown_lines(text)
    return told if len(told) <= _LONGEST else f"{told[: _LONGEST // 2]} … {told[-_LONGEST // 2 :]}"


class ModelError(LocalsteerError):
    """A model file that cannot be opened, run, read or steered."""


class ContrastError(LocalsteerError):
    """Contrastive prompts that cannot be used: a broken concept file, unequal or empty prompt files."""


class VectorError(LocalsteerError):
    """A control vector that is damaged, or does not fit the model or another vector."""


class ExpressionError(LocalsteerError):
    """A steering expression that does not parse.

    Args:
        expression: the whole expression.
        column: 0-based place of the mistake in it.
        problem: what is wrong there.
    """

    def __init__(self, expression: str, column: int, problem: str, *, hint: str | None = None) -> None:
        first = max(0, column - _AROUND)
        part = "".join(character if character.isprintable() else " " for character in expression[first : column + _AROUND])
        super().__init__(f"{problem}\n  {part}\n  {' ' * (column - first)}^", hint=hint)
        self.expression = expression
        self.column = column


class CalibrationError(LocalsteerError):
    """A calibration cannot be made, or found nothing."""


class PolicyError(LocalsteerError):
    """A policy that cannot be used, or examples that no probe can be fitted to."""


class ExportError(LocalsteerError):
    """Steering that cannot be put into a file for another program, or that does not come out of it as it went in."""
