"""Grammars from JSON schemas, followed by a tiny model that would write anything else by itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from localsteer.engine.generate import Generator
from localsteer.engine.request import Answer, Request
from localsteer.errors import LocalsteerError
from localsteer.llama import grammar
from localsteer.llama.model import Model
from localsteer.llama.sampling import Sampler, Sampling
from tests.conftest import random_tokens

PROMPT = random_tokens(20, seed=1)


@pytest.fixture(scope="module")
def generator(tiny: Model) -> Iterator[Generator]:
    with Generator(tiny) as generator:
        yield generator


def answer(generator: Generator, gbnf: str, seed: int = 0, max_tokens: int = 400) -> Answer:
    return generator.generate(Request(PROMPT, None, Sampling(temperature=2.0, top_k=0, seed=seed), max_tokens, grammar=gbnf))


def written(generator: Generator, schema: dict[str, Any], seed: int = 0) -> Any:
    """The document that the model writes by a schema."""
    found = answer(generator, grammar.of_schema(schema), seed)
    assert found.finish_reason == "stop", found.text
    return json.loads(found.text)


def assert_length(text: str, least: int, most: int) -> None:
    """The tiny model also writes halves of surrogates, each of which is read back as several characters."""
    assert least <= len(text)
    assert len(text) <= most or "\ufffd" in text


def test_any_json_is_an_object(generator: Generator) -> None:
    for seed in range(30):
        found = answer(generator, grammar.any_json(), seed)
        assert found.text.startswith("{")
        if found.finish_reason == "stop":
            break
    assert isinstance(json.loads(found.text), dict)


@pytest.mark.parametrize(
    "value",
    [
        "plain",
        'a "quoted" word',
        "back\\slash",
        "two\nlines\r\n",
        "\t\0\x1f\x7f",
        "é 漢字 😀",
        "\\n",
        "\\u0041",
        "/",
        "",
        12,
        -0.5,
        True,
        None,
        [1, "a\\b"],
        {"a": {"b": '"'}},
    ],
)
def test_constants_are_written_as_they_are(generator: Generator, value: object) -> None:
    assert written(generator, {"const": value}) == value
    assert written(generator, {"enum": [value]}) == value
    schema = {"type": "object", "properties": {"key": {"const": value}}, "required": ["key"]}
    assert written(generator, schema) == {"key": value}


@pytest.mark.parametrize("key", ["plain", 'a "quoted" key', "back\\slash", "two\nlines", "é", "root", "a-b", "a b", "a_b"])
def test_keys_are_written_as_they_are(generator: Generator, key: str) -> None:
    schema = {"type": "object", "properties": {key: {"type": "null"}, "other": {"type": "boolean"}}, "required": [key, "other"]}
    document = written(generator, schema)
    assert list(document) == [key, "other"]
    assert document[key] is None
    assert document["other"] in (True, False)


def test_a_string_is_valid_json_whatever_the_model_likes(generator: Generator) -> None:
    for seed in range(40):
        for schema in ({"type": "string", "minLength": 5, "maxLength": 20}, {"type": "string", "pattern": "^.{5,20}$"}):
            assert_length(written(generator, schema, seed), 5, 20)


@pytest.mark.parametrize(("least", "most"), [(0, 0), (0, 1), (1, 1), (0, 3), (2, 2), (2, 5), (3, 40), (990, 1000)])
def test_counts_are_kept(generator: Generator, least: int, most: int) -> None:
    for seed in range(3):
        if most <= 40:
            text = written(generator, {"type": "string", "minLength": least, "maxLength": most}, seed)
            assert_length(text, least, most)
            items = written(generator, {"type": "array", "items": {"type": "null"}, "minItems": least, "maxItems": most}, seed)
            assert items == [None] * len(items)
            assert least <= len(items) <= most
            words = written(generator, {"type": "string", "pattern": f"^[ab]{{{least},{most}}}c$"}, seed)
            assert least <= len(words) - 1 <= most
        else:
            gbnf = grammar.of_schema({"type": "array", "items": {"type": "null"}, "minItems": least, "maxItems": most})
            assert answer(generator, gbnf, seed, 60).text.count("null") > 5


def test_an_open_count_has_its_least(generator: Generator) -> None:
    assert len(written(generator, {"type": "array", "items": {"type": "null"}, "minItems": 3})) >= 3
    assert isinstance(written(generator, {"type": "array", "items": {"type": "null"}}), list)


def test_an_object_has_its_keys_and_kinds(generator: Generator) -> None:
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 8},
            "age": {"type": "integer"},
            "mood": {"enum": ["up", "down"]},
            "more": {"type": "object", "properties": {"x": {"type": ["boolean", "null"]}}, "required": ["x"]},
        },
        "required": ["name", "age", "mood", "more"],
        "additionalProperties": False,
    }
    for seed in range(10):
        document = written(generator, schema, seed)
        assert list(document) == ["name", "age", "mood", "more"]
        assert isinstance(document["name"], str)
        assert isinstance(document["age"], int)
        assert document["mood"] in ("up", "down")
        assert document["more"]["x"] in (True, False, None)


def test_a_definition_may_be_used_twice(generator: Generator) -> None:
    point = {"$ref": "#/$defs/point"}
    schema = {
        "$defs": {"point": {"type": "object", "properties": {"x": {"enum": [1, 2]}}, "required": ["x"]}},
        "type": "object",
        "properties": {"a": point, "b": point},
        "required": ["a", "b"],
    }
    document = written(generator, schema)
    assert {document["a"]["x"], document["b"]["x"]} <= {1, 2}
    assert schema["properties"] == {"a": {"$ref": "#/$defs/point"}, "b": {"$ref": "#/$defs/point"}}  # left as it was


# The first two ended the process: llama.cpp's parser overflowed its stack.
@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "maxLength": 30_000},
        {"type": "array", "items": {"type": "integer"}, "maxItems": 300_000},
        {"type": "string", "minLength": 10**12},
        {"type": "string", "pattern": "^a{1000000}$"},
        {"type": "string", "pattern": f"^{'a?' * 5000}$"},
        {"type": "string", "pattern": f"^{'(' * 5000}a{')' * 5000}$"},
        {"type": "string", "pattern": "^\ud800$"},
        {"type": "string", "pattern": "no anchors"},
        {"type": "string", "pattern": "^(?=a)$"},
        {"type": "string", "pattern": "^*$"},
        {"type": "string", "pattern": "^a{2,1}$"},
        {"type": "string", "pattern": 7},
        {"const": "\ud800"},
        {"enum": 7},
        {"enum": ["x" * 30_000]},
        {"type": "no type"},
        {"type": []},
        {"type": "string", "minLength": -1, "maxLength": "7"},
        {"type": "array", "items": {"type": "null"}, "minItems": 5, "maxItems": 2},
        {"properties": ["a"]},
        {"properties": {"a": None}},
        {"$ref": "https://127.0.0.1/schema.json"},
        {"$ref": "file:///etc/passwd"},
        {"$ref": "#/nowhere"},
        {"$ref": 7},
        {"anyOf": {}},
        {"allOf": [None]},
        {"type": "object", "properties": {"": {"type": "null"}}, "required": [""]},
        {"properties": {f"p{number}": {"type": "null"} for number in range(1500)}},
    ],
)
def test_what_cannot_be_a_grammar_is_an_error(tiny: Model, schema: dict[str, Any]) -> None:
    with pytest.raises(LocalsteerError), Sampler(Sampling(seed=0), tiny, grammar.of_schema(schema)):
        pass
