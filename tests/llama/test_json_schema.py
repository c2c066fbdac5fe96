"""What a schema lets through; tests/llama/test_made_schemas.py has a model write by schemas of all kinds."""

from __future__ import annotations

import json
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer

from localsteer.errors import LocalsteerError
from localsteer.llama.json_schema import of_schema, rule_of

Schema = dict[str, Any]
NULL = {"type": "null"}


def allows(lark: str, text: str) -> bool:
    """Whether a text follows a grammar that can be used."""
    matcher = LLMatcher(LLTokenizer("byte"), lark, log_level=0)
    if matcher.is_error():
        raise LocalsteerError(matcher.get_error())
    data = list(text.encode())
    return matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting()


def fits(schema: Schema, document: object) -> bool:
    return allows(of_schema(schema), json.dumps(document, ensure_ascii=False))


def test_an_object_has_whatever_is_in_it() -> None:
    anything = of_schema({"type": "object"})
    assert allows(anything, '{"a": [1, {"b": null}], "c": "é"}')
    assert not allows(anything, "[]")
    assert not allows(anything, "{'a': 1}")


@pytest.mark.parametrize(
    "value",
    [
        "plain",
        'a "quoted" word',
        "back\\slash",
        "two\nlines\r\n",
        "\t\0\x1f",
        "é 漢字 😀",
        "\\n",
        "\\u0041",
        "",
        12,
        -0.5,
        True,
        None,
        [1, "a\\b"],
    ],
)
def test_constants_are_written_as_they_are(value: object) -> None:
    for schema in ({"const": value}, {"enum": [value]}, {"enum": [value, "other"]}):
        assert allows(of_schema(schema), json.dumps(value, ensure_ascii=False))
        assert not fits(schema, "another")
    assert fits({"type": "object", "properties": {"key": {"const": value}}, "required": ["key"]}, {"key": value})


@pytest.mark.parametrize(
    "key", ["plain", 'a "quoted" key', "back\\slash", "two\nlines", "é", "start", "a-b", "", "$ref", "$defs", "x-guidance"]
)
def test_keys_are_written_as_they_are(key: str) -> None:
    schema = {"type": "object", "properties": {key: NULL, "other": {"type": "boolean"}}, "required": [key, "other"]}
    assert allows(of_schema(schema), json.dumps({key: None, "other": True}, ensure_ascii=False))
    assert not fits(schema, {key: 1, "other": True})


def test_a_document_is_on_one_line() -> None:
    schema = of_schema({"type": "array", "items": {"type": "object", "properties": {"a": {"type": "integer"}, "b": NULL}}})
    for text in ('[{"a": 1, "b": null}, {}]', '[{"a":1,"b":null},{}]', "[]"):
        assert allows(schema, text)
    for text in ("[ ]", '[{"a":  1}]', '[{"a" : 1}]', "[{},\n{}]", "[{}] "):
        assert not allows(schema, text)


def test_an_object_that_lists_its_properties_has_no_others() -> None:
    listed: Schema = {"type": "object", "properties": {"a": NULL}}
    assert fits(listed, {"a": None})
    assert fits(listed, {})
    assert not fits(listed, {"b": None})
    assert fits({**listed, "additionalProperties": True}, {"b": None})
    assert fits({**listed, "patternProperties": {"^b": NULL}}, {"b": None})
    assert not fits({"type": "array", "items": listed}, [{"b": 1}])
    assert not fits({"type": "object", "properties": {}}, {"b": 1})
    assert not fits({"anyOf": [listed, NULL]}, {"b": None})
    assert not fits({"$defs": {"x": listed}, "$ref": "#/$defs/x"}, {"b": None})


def test_an_object_that_is_put_together_has_the_properties_of_all() -> None:
    a: Schema = {"properties": {"a": NULL}, "required": ["a"]}
    b: Schema = {"properties": {"b": NULL}, "required": ["b"]}
    both = {"a": None, "b": None}
    assert fits({"allOf": [a, b]}, both)
    assert fits({**a, "allOf": [b]}, both)
    assert fits({**a, "anyOf": [b, {"required": ["c"]}]}, both)
    assert fits({"$defs": {"b": b}, **a, "$ref": "#/$defs/b"}, both)
    assert fits({**a, "required": ["a", "b"]}, both)
    assert not fits({"allOf": [a, b]}, {"a": None})


def test_references_lead_to_wherever_they_point() -> None:
    definitions = {
        "node": {"type": "array", "items": {"$ref": "#/$defs/node"}},
        "a/b c": NULL,
        "named": {"$anchor": "here", "type": "null"},
    }
    assert fits({"$defs": definitions, "$ref": "#/$defs/node"}, [[], [[]]])
    assert fits({"$defs": definitions, "$ref": "#/$defs/a~1b%20c"}, None)
    assert fits({"$defs": definitions, "$ref": "#here"}, None)
    assert fits({"properties": {"a": NULL, "b": {"$ref": "#/properties/a"}}}, {"b": None})


def test_alternatives_of_which_one_must_hold_may_be_told_apart_by_type_or_constant() -> None:
    def animal(kind: object) -> Schema:
        return {"type": "object", "properties": {"kind": kind, "age": {"type": "integer"}}, "required": ["kind"]}

    definitions = {"cat": animal({"const": "cat"}), "dog": animal({"enum": ["dog", "wolf"]})}
    either = {"$defs": definitions, "oneOf": [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}, NULL]}
    assert fits(either, {"kind": "wolf", "age": 3})
    assert fits(either, None)
    assert not fits(either, {"kind": "cow"})
    with pytest.raises(LocalsteerError, match="oneOf"):
        fits({"oneOf": [animal({"type": "string"}), animal({"const": "cat"})]}, None)


@pytest.mark.parametrize(("one", "other"), [(1, 1.0), ({"a": 1, "b": [2]}, {"b": [2.0], "a": 1}), ("é", "\u00e9")])
def test_alternatives_with_equal_constants_are_not_apart(one: object, other: object) -> None:
    with pytest.raises(LocalsteerError, match="oneOf"):
        fits({"oneOf": [{"const": one}, {"enum": ["x", other]}]}, None)


def test_alternatives_of_long_enums_are_told_apart() -> None:
    enums = [{"enum": [f"{number}{letter}" for number in range(8000)]} for letter in "ab"]
    assert '"anyOf"' in rule_of({"oneOf": enums})


def test_alternatives_that_refer_to_others_again_and_again_are_not_compared_for_ever() -> None:
    names = [f"a{number}" for number in range(300)]

    def defined(depth: int) -> Schema:
        return {"type": "object", "required": names, "properties": {name: {"$ref": f"#/$defs/{depth + 1}"} for name in names}}

    definitions = {str(depth): defined(depth) if depth < 4 else NULL for depth in range(5)}
    assert '"oneOf"' in rule_of({"oneOf": [{"$ref": "#/$defs/0"}, {"$ref": "#/$defs/0"}], "$defs": definitions})


def test_formats_are_kept_and_what_is_none_says_nothing() -> None:
    assert fits({"type": "string", "format": "date"}, "2026-11-29")
    assert not fits({"type": "string", "format": "date"}, "2026-13-29")
    assert fits({"type": "string", "format": "password"}, "secret")
    assert fits({"type": "integer", "format": "int32"}, 7)
    with pytest.raises(LocalsteerError, match="iri"):
        fits({"type": "string", "format": "iri"}, "x")


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        (
            {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
            ["7", str(-(2**62))],
            [str(2**63), str(-(2**63) - 1), "1.0"],
        ),
        (
            {"type": "number", "exclusiveMinimum": 1, "exclusiveMaximum": 1.25},
            ["1.1", "1.249"],
            ["1", "1.0", "1.25"],
        ),
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 1}, ["0.5", "1", "1.0"], ["0", "0.0", "1.1"]),
        ({"type": "number", "minimum": -0.5, "exclusiveMaximum": 0}, ["-0.1", "-0.5"], ["0", "-0", "-0.0", "-0.6"]),
        ({"type": "number", "exclusiveMaximum": 100}, ["99.9", "-7"], ["100", "100.0"]),
        ({"type": "number", "minimum": 2, "exclusiveMinimum": 1}, ["2", "2.5"], ["1.5"]),
        ({"type": "integer", "exclusiveMaximum": 3, "minimum": 1}, ["1", "2"], ["3", "0"]),
        ({"type": "integer", "multipleOf": 7}, ["14", "-7", "0"], ["15"]),
        ({"type": "string", "minLength": 2, "maxLength": 3}, ['"ab"', '"é🙂x"'], ['"a"', '"abcd"']),
        ({"type": "string", "pattern": r"\d{2}"}, ['"a12b"'], ['"a1b2"']),
        (
            {"type": "array", "prefixItems": [NULL], "items": {"type": "integer"}, "maxItems": 2},
            ["[null,1]", "[]"],
            ["[1]", "[null,1,2]"],
        ),
        ({"uniqueItems": False, "type": "array"}, ["[1,1]"], ["1"]),
        ({"type": "object", "minProperties": 1}, ['{"a":1}'], ["{}"]),
        ({"type": "object", "x-guidance": {"lenient": True}, "properties": {"a": NULL}}, ['{"a":null}'], ['{"a":1}']),
    ],
)
def test_what_a_schema_counts_and_measures(schema: Schema, good: list[str], bad: list[str]) -> None:
    assert [text for text in good if not allows(of_schema(schema), text)] == []
    assert [text for text in bad if allows(of_schema(schema), text)] == []


def nested(depth: int) -> Schema:
    schema: Schema = NULL
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"not": {}}, "not"),
        ({"if": {}}, "if"),
        ({"uniqueItems": True}, "uniqueItems"),
        ({"contains": {}}, "contains"),
        ({"propertyNames": {"maxLength": 3}}, "propertyNames"),
        ({"dependentRequired": {"a": ["b"]}}, "dependentRequired"),
        ({"unevaluatedProperties": False}, "unevaluatedProperties"),
        ({"x-guidance": {"lenient": True}, "not": {}}, "not"),
        ({"type": "object", "minProperties": 2}, "minProperties"),
        ({"type": "string", "pattern": "(?=a)"}, "look"),
        ({"type": "no type"}, "no type"),
        ({"type": 7}, "type"),
        ({"type": [[]]}, "type"),
        ({"enum": 7}, "enum"),
        ({"enum": []}, "empty"),
        ({"anyOf": {}}, "anyOf"),
        ({"allOf": [None]}, "schema"),
        ({"properties": ["a"]}, "properties"),
        ({"required": 7}, "required"),
        ({"$ref": 7}, "ref"),
        ({"$ref": "#/nowhere"}, "nowhere"),
        ({"$ref": "https://127.0.0.1/schema.json"}, "127.0.0.1"),
        ({"$ref": "file:///etc/passwd"}, "retriev"),
        ({"const": 2**53 + 1}, "9007199254740993"),
        ({"enum": [{"a": [1e300]}]}, "1e"),
        ({"minimum": 2**60}, "exactly"),
        ({"type": "string", "minLength": 10**12}, "1000000000000"),
        ({"type": "string", "minLength": -1}, "minLength"),
        ({"const": float("nan")}, "JSON"),
        ({"enum": ["x" * 200_000]}, "200,000"),
        (nested(5000), "nested"),
        (nested(500), "nested"),
        ({"$defs": {f"d{n}": {"$ref": f"#/$defs/d{n + 1}"} for n in range(1000)}, "$ref": "#/$defs/d0"}, "references"),
    ],
)
def test_what_cannot_be_had_is_refused_by_its_name(schema: Schema, named: str) -> None:
    with pytest.raises(LocalsteerError) as caught:
        fits(schema, None)
    assert named in str(caught.value)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "const": 5},
        {"type": "integer", "minimum": 5, "maximum": 3},
        {"type": "string", "minLength": 3, "maxLength": 2},
        {"type": "string", "pattern": "^abc$", "maxLength": 2},
        {"allOf": [{"type": "string"}, NULL]},
        {"type": "object", "properties": {"a": False}, "required": ["a"]},
        {"type": "array", "items": False, "minItems": 1},
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
        {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
        {"type": "array", "prefixItems": [{"$ref": "#"}], "minItems": 1},
        {"$ref": "#"},
        {"$defs": {f"d{n}": {"$ref": f"#/$defs/d{(n + 1) % 40}"} for n in range(40)}, "$ref": "#/$defs/d0"},
        {
            "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"anyOf": [{"$ref": "#/$defs/a"}, {"allOf": [{"$ref": "#/$defs/b"}]}]}},
            "$ref": "#/$defs/a",
        },
    ],
)
def test_what_nothing_satisfies_is_an_error(schema: Schema) -> None:
    with pytest.raises(LocalsteerError):
        fits(schema, None)


def test_a_long_chain_of_references_is_followed_in_either_order() -> None:
    for step in (1, -1):
        chain: Schema = {f"d{n}": {"$ref": f"#/$defs/d{n + step}"} for n in range(100)}
        first, last = ("d0", "d100") if step > 0 else ("d99", "d-1")
        assert fits({"$defs": {**chain, last: NULL}, "$ref": f"#/$defs/{first}"}, None)


def test_what_is_part_of_itself_may_end() -> None:
    node = {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#"}, NULL]}}, "required": ["next"]}
    assert fits(node, {"next": {"next": None}})
    assert fits({"type": "array", "items": {"$ref": "#"}, "maxItems": 3}, [[], [[]]])


def test_a_schema_is_left_as_it_was_and_may_be_a_part_of_a_grammar() -> None:
    schema: Schema = {"type": "object", "properties": {"a": {"type": "string", "format": "password"}}}
    before = json.loads(json.dumps(schema))
    assert allows(f'start: "(" {rule_of(schema)} ")"', '({"a": "b"})')
    assert schema == before
