"""When a rule fires: classifiers joined by `and`, `or`, `not` and parentheses."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

# Far beyond what anyone writes, and far below what Python's stack holds.
_DEEPEST = 100


class ConditionError(ValueError):
    """A condition that does not parse."""


@dataclass(frozen=True)
class Condition:
    """A parsed condition.

    Attributes:
        text: as it was written.
        names: the classifiers in it, in their order.
    """

    text: str
    names: tuple[str, ...]
    _root: ast.expr = field(compare=False, repr=False)

    def holds(self, value_of: Callable[[str], bool]) -> bool:
        """Whether it is true. As in Python, what cannot change the outcome any more is not asked for."""
        return _holds(self._root, value_of)


def parse_condition(text: str) -> Condition:
    """Parse a condition: Python's own grammar and precedence, but nothing of it than these four.

    Raises:
        ConditionError: anything else stands in it.
    """
    text = text.strip()
    try:
        with warnings.catch_warnings():
            for kind in (SyntaxWarning, DeprecationWarning):
                warnings.simplefilter("ignore", kind)  # from Python 3.12 on it also prints what it thinks of '\d' and 1or
            root = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ConditionError(f'"{text}" is no condition such as "leaking and not friendly"') from error
    names: dict[str, None] = {}
    waiting: list[tuple[ast.expr, int]] = [(root, 0)]
    while waiting:
        node, depth = waiting.pop(0)
        if depth > _DEEPEST:
            raise ConditionError("the condition is nested too deeply")
        if isinstance(node, ast.Name):
            names[node.id] = None
        elif isinstance(node, ast.BoolOp):
            waiting = [*((value, depth + 1) for value in node.values), *waiting]
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            waiting = [(node.operand, depth + 1), *waiting]
        else:
            shown = ast.get_source_segment(text, node)
            raise ConditionError(
                f'"{shown}" has no place in a condition: join names of classifiers by "and", "or", "not" and ( )'
            )
    return Condition(text, tuple(names), root)


def _holds(node: ast.expr, value_of: Callable[[str], bool]) -> bool:
    if isinstance(node, ast.BoolOp):
        values = (_holds(value, value_of) for value in node.values)
        return all(values) if isinstance(node.op, ast.And) else any(values)
    if isinstance(node, ast.UnaryOp):
        return not _holds(node.operand, value_of)
    assert isinstance(node, ast.Name)
    return value_of(node.id)
