"""JSON schemas of all kinds, made by chance: keyword by keyword as the public JSON-Schema-Test-Suite goes through them."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

Schema = dict[str, Any]

_WORDS = ("a", "b", "name", "size", "a b", "é", 'q"', "back\\", "type", "$ref", "1")
_PATTERNS = (
    "^a+$",
    "b",
    "^[a-z]{2,4}$",
    r"^\d{3}-\d{2}$",
    "^(yes|no)$",
    r"^\w+ \w+$",
    "^.{3}$",
    "x$",
    "^(ab)*$",
    "[^aeiou]",
    "^é{1,3}$",
)
_FORMATS = ("date", "date-time", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri", "iri", "regex", "int32")


def make_schema(seed: int) -> Schema | bool:
    """A schema; most of them can be satisfied, some cannot, and some say what no grammar can."""
    random = Random(seed)
    if random.random() < 0.01:
        return random.random() < 0.5
    made = _with_definitions(random) if random.random() < 0.15 else _schema(random, 3)
    if random.random() < 0.1:
        made["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return made


def _schema(random: Random, depth: int) -> Schema:
    kinds: list[Callable[[Random, int], Schema]] = [_null, _boolean, _number, _number, _string, _string, _constant]
    if depth > 0:
        kinds += [_array, _array, _object, _object, _object, _combined]
    made = random.choice(kinds)(random, depth)
    if random.random() < 0.1:
        made |= random.choice(
            ({"title": "T"}, {"description": "what"}, {"default": 5}, {"x-order": 1}, {"examples": [1]}, {"deprecated": True})
        )
    if random.random() < 0.03:
        made |= random.choice(_UNUSUAL)
    return made


_UNUSUAL: tuple[Schema, ...] = (
    {"not": {"type": "null"}},
    {"if": {"type": "string"}, "then": {"maxLength": 3}},
    {"contains": {"type": "null"}},
    {"uniqueItems": True},
    {"uniqueItems": False},
    {"propertyNames": {"maxLength": 3}},
    {"dependentRequired": {"a": ["b"]}},
    {"unevaluatedProperties": False},
    {"unevaluatedItems": False},
    {"$dynamicRef": "#x"},
    {"$anchor": "here"},
    {"type": "no type"},
)


def _null(_random: Random, _depth: int) -> Schema:
    return {"type": "null"}


def _boolean(_random: Random, _depth: int) -> Schema:
    return {"type": "boolean"}


def _number(random: Random, _depth: int) -> Schema:
    made: Schema = {"type": random.choice(("integer", "number", "integer"))}
    low = random.choice((0, 1, -5, 100, -0.5, 2.75, -(2**63), 10**6))
    for key, bound in (("minimum", low), ("exclusiveMinimum", low)):
        if random.random() < 0.3:
            made[key] = bound
    high = low + random.choice((0, 1, 3, 10, 1000, 0.25))
    for key, bound in (("maximum", high), ("exclusiveMaximum", high), ("maximum", 2**63 - 1)):
        if random.random() < 0.2:
            made[key] = bound
    if random.random() < 0.15:
        made["multipleOf"] = random.choice((1, 2, 5, 7, 0.5, 0.01))
    return made


def _string(random: Random, _depth: int) -> Schema:
    made: Schema = {"type": "string"}
    if random.random() < 0.4:
        made["maxLength"] = random.choice((0, 1, 3, 8, 20))
    if random.random() < 0.2:
        made["minLength"] = random.choice((0, 1, 2, 5))
    if random.random() < 0.3:
        made["pattern"] = random.choice(_PATTERNS)
    elif random.random() < 0.3:
        made["format"] = random.choice(_FORMATS)
    return made


def _value(random: Random, depth: int = 2) -> Any:
    plain = (
        None,
        True,
        False,
        0,
        1,
        -17,
        2.5,
        1e-7,
        10**12,
        2**60 + 1,
        "",
        "a",
        'say "hi"',
        "back\\slash",
        "two\nlines",
        "é漢🙂",
        "\x00\x7f",
    )
    if depth and random.random() < 0.2:
        return [_value(random, depth - 1) for _ in range(random.randrange(3))]
    if depth and random.random() < 0.2:
        return {random.choice(_WORDS): _value(random, depth - 1) for _ in range(random.randrange(3))}
    return random.choice(plain)


def _constant(random: Random, _depth: int) -> Schema:
    if random.random() < 0.4:
        return {"const": _value(random)}
    return {"enum": [_value(random) for _ in range(random.randrange(1, 5))]}


def _array(random: Random, depth: int) -> Schema:
    made: Schema = {"type": "array"}
    if random.random() < 0.8:
        made["items"] = random.choice((False, _schema(random, depth - 1), _schema(random, depth - 1), _schema(random, depth - 1)))
    if random.random() < 0.25:
        made["prefixItems"] = [_schema(random, depth - 1) for _ in range(random.randrange(1, 3))]
    if random.random() < 0.3:
        made["minItems"] = random.randrange(4)
    if random.random() < 0.4:
        made["maxItems"] = random.randrange(5)
    return made


def _object(random: Random, depth: int) -> Schema:
    made: Schema = {"type": "object"}
    names = random.sample(_WORDS, random.randrange(4))
    if names:
        made["properties"] = {name: _schema(random, depth - 1) for name in names}
    if random.random() < 0.6:
        made["required"] = [name for name in names if random.random() < 0.6]
    if random.random() < 0.1:
        made.setdefault("required", []).append("else")
    if random.random() < 0.4:
        made["additionalProperties"] = random.choice((False, True, _schema(random, depth - 1)))
    if random.random() < 0.15:
        made["patternProperties"] = {random.choice(("^x", "^[a-c]$", "z")): _schema(random, depth - 1)}
    if random.random() < 0.1:
        made["minProperties"] = random.randrange(4)
    if random.random() < 0.1:
        made["maxProperties"] = random.randrange(4)
    return made


def _combined(random: Random, depth: int) -> Schema:
    parts = [_schema(random, depth - 1) for _ in range(random.randrange(1, 4))]
    made: Schema = {random.choice(("anyOf", "anyOf", "allOf", "oneOf")): parts}
    if random.random() < 0.2:
        made |= _object(random, depth - 1)
    return made


def _with_definitions(random: Random) -> Schema:
    """With references, some of them to what they stand in."""
    leaf = _schema(random, 1)
    more: Schema = random.choice(({"type": "null"}, leaf, {"$ref": "#/$defs/leaf"}))
    node: Schema = {
        "type": "object",
        "properties": {"value": {"$ref": "#/$defs/leaf"}, "next": {"anyOf": [more, {"$ref": "#/$defs/node"}]}},
        "required": random.choice((["value"], ["value", "next"], [])),
        "additionalProperties": False,
    }
    tree: Schema = {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": random.randrange(1, 3)}
    endless: Schema = {"type": "object", "properties": {"more": {"$ref": "#/$defs/endless"}}, "required": ["more"]}
    definitions = {"leaf": leaf, "node": node, "tree": tree, "endless": endless, "a/b c": {"$ref": "#/$defs/leaf"}}
    reference = random.choice(("leaf", "node", "node", "tree", "tree", "endless", "a~1b%20c", "nowhere"))
    return {"$defs": definitions, "$ref": f"#/$defs/{reference}"}
