"""Documents that programs ask for every day, written by a real model, steered and not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator, FormatChecker

from localsteer.engine.generate import generate_many
from localsteer.engine.request import Request
from localsteer.llama.chat_template import Message
from localsteer.llama.grammar import Grammar
from localsteer.llama.model import Model
from localsteer.llama.sampling import Sampling
from localsteer.reading.prompt import prompt_tokens
from localsteer.steering.expression import parse_steering
from localsteer.steering.plan import resolve
from localsteer.vector.calibration import Mode
from localsteer.vector.control_vector import ControlVector

pytestmark = pytest.mark.models

Schema = dict[str, Any]
TEXT: Schema = {"type": "string", "maxLength": 60}
AMOUNT: Schema = {"type": "number", "exclusiveMinimum": 0, "maximum": 100}


def holding(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties)}


PERSON = holding(name=TEXT, children={"type": "array", "items": {"$ref": "#/$defs/person"}, "maxItems": 2})
ITEM = holding(item=TEXT, grams={"type": "number", "minimum": 0, "maximum": 2000})
TIME: Schema = {"type": "string", "pattern": "^([01][0-9]|2[0-3]):[0-5][0-9]$"}
SCHEMAS: dict[str, Schema] = {
    "Invent a person.": holding(
        name=TEXT,
        age={"type": "integer", "minimum": 0, "maximum": 120},
        email={"type": "string", "format": "email", "maxLength": 40},
    ),
    "How does this sound: I lost my keys again!": holding(
        label={"enum": ["positive", "negative", "neutral"]}, confidence={"type": "number", "minimum": 0, "maximum": 1}
    ),
    "Plan a birthday party.": holding(
        title=TEXT,
        date={"type": "string", "format": "date"},
        time=TIME,
        guests={"type": "array", "items": TEXT, "minItems": 1, "maxItems": 4},
    ),
    "Write a recipe for pancakes.": holding(
        name=TEXT, ingredients={"type": "array", "items": ITEM, "minItems": 1, "maxItems": 3}, vegan={"type": "boolean"}
    ),
    "Give me an address in Berlin.": holding(
        street=TEXT, zip={"type": "string", "pattern": "^[0-9]{5}$"}, city=TEXT, extra={"anyOf": [TEXT, {"type": "null"}]}
    ),
    "Draw a family tree.": {"$defs": {"person": PERSON}, "$ref": "#/$defs/person"},
    "Draw a shape.": {
        "oneOf": [holding(kind={"const": "circle"}, radius=AMOUNT), holding(kind={"const": "square"}, side=AMOUNT)],
    },
    "Count fruit.": {
        "type": "object",
        "additionalProperties": {"type": "integer", "minimum": 0, "maximum": 99},
        "maxProperties": 4,
    },
    "Name three colours.": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "minItems": 3, "maxItems": 3},
    "Write a line for the log.": holding(
        id={"type": "string", "format": "uuid"},
        level={"enum": ["info", "error"]},
        ip={"type": "string", "format": "ipv4"},
        message=TEXT,
    ),
}


@pytest.mark.parametrize("mode", [None, "response", "anchored"])
def test_they_are_valid(demo: Model, happy: ControlVector, mode: Mode | None) -> None:
    plan = resolve(parse_steering("happy"), demo.fingerprint, lambda _name: happy, mode) if mode is not None else None
    requests = [
        Request(
            prompt_tokens(demo, [Message("user", question)]),
            plan,
            Sampling(seed=seed),
            400,
            grammar=Grammar.from_schema(demo, schema),
            mode=mode,
        )
        for seed, (question, schema) in enumerate(SCHEMAS.items())
    ]
    answers = generate_many(demo, requests)
    whole = 0
    for answer, schema in zip(answers, SCHEMAS.values(), strict=True):
        if answer.finish_reason == "stop":
            Draft202012Validator(schema, format_checker=FormatChecker()).validate(json.loads(answer.text))
            whole += 1
        print(answer.finish_reason, answer.text)
    assert whole >= len(SCHEMAS) - 1  # a family tree may grow for ever
