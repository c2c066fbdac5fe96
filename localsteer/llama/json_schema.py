"""Grammars of the JSON documents that a JSON schema (2020-12 and earlier drafts) describes."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import unquote

from localsteer.errors import LocalsteerError

# On one line, with a space behind a comma or a colon or none. Where a line break and 20 spaces were allowed, SmolLM2-135M often
# wrote them before a colon, too.
_LAYOUT = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
# Those that the specification defines; of others it says that they are annotations (OpenAPI's int32 and password, say).
FORMATS = re.compile(
    "date-time|date|time|duration|(idn-)?(email|hostname)|ipv4|ipv6|[iu]ri(-reference)?|uuid|uri-template|(relative-)?json-pointer|regex"
)
# Where schemas stand in a schema: by themselves, in a list, by names.
_ONE = ("items", "additionalItems", "additionalProperties")
_LISTS = ("items", "prefixItems", "allOf", "anyOf", "oneOf")
_NAMED = ("properties", "patternProperties", "$defs", "definitions")
_COMBINING = frozenset(("allOf", "anyOf", "oneOf", "$ref"))
_OF_OBJECTS = frozenset(("properties", "required", "additionalProperties", "patternProperties", "minProperties", "maxProperties"))
# llguidance's JSON reader takes 128.
_DEEPEST = 120
# Schemas come from outside. One of 1,000 properties has some 50,000.
MAX_CHARACTERS = 200_000
# In a row, each is a call within the one before.
_MAX_REFERENCES = 500
# Each is compared with each.
_MAX_ALTERNATIVES = 40
# Names and constants that are looked at for it in a schema: half a second. By references a short schema has them without end.
_MAX_COMPARED = 200_000
# Rounds in which it is asked what can be complete, given what can: a chain that needs more takes seconds, and is let through.
_MAX_ROUNDS = 50
# Numbers are floats in llguidance: not every whole number beyond this is one.
_EXACT = 2**53
# As close to a whole number as one need be.
_CLOSE = 1e-12

Schema = dict[str, Any]


def of_schema(schema: Mapping[str, Any] | bool) -> str:
    """The grammar of the documents that a schema describes, in llguidance's Lark, for `Grammar`.

    An object that lists its properties has no others, unless the schema speaks of others or is put together from several.

    Raises:
        LocalsteerError: it is no schema, nothing satisfies it, or it says what cannot be had.
    """
    return f"start: {rule_of(schema)}"


def rule_of(schema: Mapping[str, Any] | bool) -> str:
    """The same as a part of a rule.

    Raises:
        LocalsteerError: as `of_schema`.
    """
    try:
        text = json.dumps(schema, allow_nan=False)
        if len(text) > MAX_CHARACTERS:
            raise ValueError(f"it has {len(text):,} characters, and {MAX_CHARACTERS:,} are allowed")
        own = json.loads(text)
        parts = list(_parts(own))
        references = _References(own, parts)
        for part in parts:
            _prepare(part, references)
        _close(parts)
        if not references.has_end(own):
            raise ValueError("it has itself as a part that is required")
    except RecursionError as error:
        raise LocalsteerError("The JSON schema cannot be used: it is nested too deeply.") from error
    except (TypeError, ValueError, OverflowError) as error:
        raise LocalsteerError(f"The JSON schema cannot be used: {error}.") from error
    if isinstance(own, dict):
        own["x-guidance"] = _LAYOUT
    return f"%json {json.dumps(own)}"


def _parts(schema: object) -> Iterator[Schema]:
    """All schemas within a schema that are objects, itself first."""
    waiting = [(schema, 0)]
    while waiting:
        part, depth = waiting.pop()
        if depth > _DEEPEST:
            raise ValueError("it is nested too deeply")
        if isinstance(part, dict):
            yield part
            waiting += [(within, depth + 1) for within in _within(part)]


def _within(part: Schema) -> Iterator[object]:
    for key in _ONE:
        yield part.get(key)
    for key in _LISTS:
        yield from _list(part, key)
    for key in _NAMED:
        yield from _dict(part, key).values()


def _list(part: Schema, key: str) -> list[Any]:
    value = part.get(key)
    return value if isinstance(value, list) else []


def _dict(part: Schema, key: str) -> Schema:
    value = part.get(key)
    return value if isinstance(value, dict) else {}


def _prepare(part: Schema, references: _References) -> None:
    """Say what llguidance refuses or takes wrongly in a way that it takes right, or refuse it."""
    if "format" in part and not FORMATS.fullmatch(str(part["format"])):
        del part["format"]
    if part.get("uniqueItems") is False:
        del part["uniqueItems"]
    for value in [part.get("const"), *_list(part, "enum")]:
        _check_exact(value)
    for key, excluding, sign in (("minimum", "exclusiveMinimum", -1), ("maximum", "exclusiveMaximum", 1)):
        for name in (key, excluding):
            bound = part.get(name)
            if isinstance(bound, int) and abs(bound) > _EXACT:
                part[name] = sign * _exact_below(sign * bound)
        bound = part.get(excluding)
        if isinstance(bound, int | float) and not isinstance(bound, bool) and bound * sign <= 0 and part.get("type") != "integer":
            # A whole number that is excluded toward zero is let through by llguidance where the other bound is less than 1 away.
            part[excluding] = bound - sign * max(math.ulp(bound), _CLOSE)
    count = part.get("minProperties")
    if isinstance(count, int) and count > len(_list(part, "required")) + 1:
        raise ValueError(f"minProperties of {count} needs all but one of them to be required: names that are free may repeat")
    if "anyOf" not in part and references.are_apart(_list(part, "oneOf")):
        part["anyOf"] = part.pop("oneOf")


def _exact_below(bound: int) -> int:
    """The largest whole number up to a large bound that is a float, and within 64 bits, as llguidance wants it."""
    if bound < 0:
        raise ValueError(f"{-bound} is too large a number to be had exactly")
    bound = min(bound, 2**63 - 1)
    return int(float(bound)) if float(bound) <= bound else int(math.nextafter(float(bound), 0))


def _check_exact(value: object) -> None:
    if isinstance(value, float | int) and abs(value) > _EXACT:
        raise ValueError(f"{value} is too large a number to be had exactly")
    if isinstance(value, list | dict):
        for within in value.values() if isinstance(value, dict) else value:
            _check_exact(within)


def _close(parts: Sequence[Schema]) -> None:
    """Let objects have the properties only that they list; those that are put together from several stay open."""
    for part in parts:
        combining = part.keys() & _COMBINING
        if (combining and len(combining) + bool(part.keys() & _OF_OBJECTS) > 1) or len(_list(part, "allOf")) > 1:
            return
    for part in parts:
        listed = _dict(part, "properties")
        free = {"additionalProperties", "patternProperties", "minProperties"} & part.keys()
        if "properties" in part and not free and all(name in listed for name in _list(part, "required")):
            part["additionalProperties"] = False


def at_place(schema: object, reference: object) -> object:
    """What stands where a reference points to within a schema; True, which says nothing, where that is no place in it."""
    place, found = unquote(str(reference)), schema
    if not place.startswith("#"):
        return True
    for name in place[1:].split("/")[1:]:
        name = name.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and name.isdecimal() and int(name) < len(found):
            found = found[int(name)]
        elif isinstance(found, Mapping):
            found = found.get(name, True)
        else:
            return True
    return found if place == "#" or place.startswith("#/") else True


class _References:
    """What is referred to in a schema by its place."""

    def __init__(self, schema: object, parts: Sequence[Schema]) -> None:
        names = [part["$ref"] for part in parts if isinstance(part.get("$ref"), str)]
        # Within a part that has a name of its own, references begin there.
        own = any("$id" in part for part in parts[1:])
        self._found = {name: True if own else at_place(schema, name) for name in names}
        if len(self._found) > _MAX_REFERENCES:
            raise ValueError(f"it has {len(self._found)} references, and {_MAX_REFERENCES} are allowed")
        self._ending: set[str] = set()
        self._left_to_compare = _MAX_COMPARED

    def has_end(self, schema: object) -> bool:
        """Whether a document can ever be complete: what has itself as a part that is required goes on for ever."""
        for _ in range(_MAX_ROUNDS):
            open_ones = [reference for reference in reversed(self._found) if reference not in self._ending]
            ending = {reference for reference in open_ones if self._ends(self._found[reference])}
            if not ending:
                return self._ends(schema)
            self._ending |= ending
        return True

    def _ends(self, schema: object) -> bool:
        if not isinstance(schema, dict) or "const" in schema or "enum" in schema:
            return True
        reference = schema.get("$ref")
        if reference in self._found and reference not in self._ending:
            return False
        if not all(map(self._ends, _list(schema, "allOf"))):
            return False
        if not all(any(map(self._ends, schema[key])) for key in ("anyOf", "oneOf") if _list(schema, key)):
            return False
        if schema.get("type") == "object":
            listed = _dict(schema, "properties")
            return all(self._ends(listed.get(name)) for name in _list(schema, "required"))
        if schema.get("type") == "array" and isinstance(least := schema.get("minItems", 0), int):
            first = _list(schema, "prefixItems")[:least]
            return all(map(self._ends, first)) and (least == len(first) or self._ends(schema.get("items")))
        return True

    def are_apart(self, schemas: Sequence[object]) -> bool:
        """Whether no document satisfies two of these, as far as types and constants tell."""
        if not 1 < len(schemas) <= _MAX_ALTERNATIVES:
            return False
        return all(self._apart(one, other, 0) for one, other in itertools.combinations(schemas, 2))

    def _apart(self, one: object, other: object, depth: int) -> bool:
        one, other = self._followed(one), self._followed(other)
        if not isinstance(one, dict) or not isinstance(other, dict) or depth > 3:
            return False
        self._left_to_compare -= sum(1 + len(_list(each, "required")) + len(constants(each) or ()) for each in (one, other))
        if self._left_to_compare < 0:
            return False
        types = _types(one) & _types(other)
        if not types:
            return True
        values, others = constants(one), constants(other)
        if values is not None and others is not None and _texts(values).isdisjoint(_texts(others)):
            return True
        if types != {"object"}:
            return False
        required = set(_list(other, "required"))
        common = [name for name in _list(one, "required") if name in required]
        return any(
            self._apart(_dict(one, "properties").get(name), _dict(other, "properties").get(name), depth + 1) for name in common
        )

    def _followed(self, schema: object) -> object:
        for _ in self._found:
            if not isinstance(schema, dict) or schema.get("$ref") not in self._found:
                break
            schema = self._found[schema["$ref"]]
        return schema


TYPES = ("null", "boolean", "number", "string", "array", "object")


def _types(schema: Schema) -> set[str]:
    values = constants(schema)
    if values is not None:
        return {type_of(value) for value in values}
    given = schema.get("type", TYPES)
    return {"number" if name == "integer" else name for name in ([given] if isinstance(given, str) else given)}


def constants(schema: Schema) -> list[Any] | None:
    """The values that a schema lists; None where it lists none."""
    if "const" in schema:
        return [schema["const"]]
    return schema["enum"] if isinstance(schema.get("enum"), list) else None


def _texts(values: list[Any]) -> set[str]:
    """Constants as JSON, the same for those that are equal: 1 and 1.0, and objects whose properties stand in another order."""
    return {json.dumps(value, sort_keys=True) for value in json.loads(json.dumps(values), parse_int=float)}


def type_of(value: object) -> str:
    """The type of a value, one of `TYPES`."""
    kinds = {type(None): "null", bool: "boolean", int: "number", float: "number", str: "string", list: "array", dict: "object"}
    return kinds[type(value)]
