"""JSON text that was not written here -> frozen dataclasses: every value is of the type that its field names, or refused.

And JSON text for people, which a terminal can show.
"""

from __future__ import annotations

import functools
import json
import math
import re
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Value = TypeVar("Value")

# JSON need not escape these; terminals take them for commands, or turn the direction of writing, and halves of characters cannot
# be written at all.
_RAW = re.compile("[\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def json_text(document: Any) -> str:
    """A document for people and programs: indented, letters as they are, and nothing in it that commands a terminal.

    Raises:
        ValueError: it holds a number that JSON has no word for.
    """
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, indent=2)
    return _RAW.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def read_json(text: str) -> Any:
    """The document of a text.

    Raises:
        ValueError: it is no JSON, holds what is no number (`NaN`, `Infinity`), or is nested too deep.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def build(kind: type[Value], document: Any) -> Value:
    """A dataclass from a document.

    Its fields may be texts, numbers, truth values, literals, tuples, mappings, other dataclasses, or None beside one of these.
    Null is NaN where a number must stand, and a key that is a tuple is written with slashes between its parts.

    Raises:
        ValueError: a key is missing or unknown, or a value of another type; the message names the place.
    """
    built: Value = _build(kind, document, "it")
    return built


def _build(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        (other,) = (one for one in arguments if one is not types.NoneType)
        return None if value is None else _build(other, value, where)
    if origin is Literal:
        return _check(value, isinstance(value, str) and value in arguments, where, f"one of {', '.join(map(str, arguments))}")
    if origin is tuple:
        _check(value, isinstance(value, list), where, "a list")
        kinds = [arguments[0]] * len(value) if arguments[1:] == (...,) else arguments
        _check(value, len(value) == len(kinds), where, f"a list of {len(kinds)}")
        return tuple(_build(one, item, f"{where}.{index}") for index, (one, item) in enumerate(zip(kinds, value, strict=True)))
    if origin is Mapping:
        _check(value, isinstance(value, dict), where, "an object")
        several = get_origin(arguments[0]) is tuple
        return {
            _build(arguments[0], key.split("/") if several else key, where): _build(arguments[1], item, f"{where}.{key}")
            for key, item in value.items()
        }
    if is_dataclass(kind):
        return _build_dataclass(kind, value, where)
    if kind is float:
        return math.nan if value is None else _number(value, where)
    return _check(value, type(value) is kind, where, {int: "a whole number", str: "a text", bool: "true or false"}[kind])


def _build_dataclass(kind: Any, value: Any, where: str) -> Any:
    _check(value, isinstance(value, dict), where, "an object")
    kinds = _kinds(kind)
    if unknown := sorted(value.keys() - kinds):
        raise ValueError(f"{where} has a key {unknown[0]}, which it should not")
    missing = [one.name for one in fields(kind) if one.default is MISSING and one.name not in value]
    if missing:
        raise ValueError(f"{where} lacks the key {missing[0]}")
    return kind(**{name: _build(kinds[name], item, name if where == "it" else f"{where}.{name}") for name, item in value.items()})


@functools.cache
def _kinds(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _number(value: Any, where: str) -> float:
    _check(value, type(value) in (int, float), where, "a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    return float(_check(number, math.isfinite(number), where, "a finite number"))


def _check(value: Any, right: bool, where: str, wanted: str) -> Any:
    if not right:
        raise ValueError(f"{where} is not {wanted}")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")
