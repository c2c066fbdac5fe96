"""Documents that a tiny model with random weights writes by schemas made by chance, read by the jsonschema package."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from random import Random

import numpy as np
import pytest
from jsonschema import FormatChecker
from jsonschema.validators import validator_for

from localsteer.engine.generate import Generator
from localsteer.engine.request import Request
from localsteer.errors import LocalsteerError
from localsteer.llama.grammar import Grammar
from localsteer.llama.model import Model
from localsteer.llama.sampling import Sampling
from tests.conftest import random_tokens
from tests.door_report import Door
from tests.llama.made_schemas import Schema, make_schema

# make test-models runs 2,000.
EXAMPLES = int(os.environ.get("LOCALSTEER_EXAMPLES", "40"))
PROMPT = random_tokens(12, seed=1)
# What a refusal names: a keyword, or why nothing satisfies the schema.
NAMED = re.compile(
    r'\["[$\w]+"|oneOf|(min|max)Properties|multipleOf|pattern ?[pP]roperties|Unknown format|Invalid type|exactly|range|'
    r"Unsatisfiable|itself|does not exist|intersect"
)

formats = FormatChecker()


@formats.checks("date-time", raises=ValueError)
@formats.checks("time", raises=ValueError)
def _is_moment(text: object) -> bool:
    if isinstance(text, str):
        whole = text.upper() if "T" in text.upper() else f"2000-01-01T{text.upper()}"
        # A second may be a leap second; of its fraction Python takes six digits.
        datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", re.sub(r"(:\d\d):60", r"\1:59", whole)))
    return True


@pytest.fixture(scope="module")
def generator(tiny: Model) -> Iterator[Generator]:
    with Generator(tiny) as generator:
        yield generator


def assert_valid(schema: Schema | bool, text: str) -> None:
    kind = validator_for(schema)
    errors = [error.message for error in kind(schema, format_checker=formats).iter_errors(json.loads(text))]
    assert not errors, (schema, text, errors)


def walk(grammar: Grammar, model: Model, seed: int) -> str | None:
    """A text that follows a grammar by chance, and ends soon where it can; None where it goes on."""
    random, matcher = Random(seed), grammar.matcher()
    data = b""
    for step in range(600):
        if matcher.is_complete:
            return data.decode()
        allowed = np.flatnonzero(matcher.allowed()).tolist()
        ends = [token for token in allowed if model.is_end(token)]
        others = [token for token in allowed if token not in ends]
        if ends and (step > 20 or not others or random.random() < 0.5):
            return data.decode()
        closing = [token for token in others if chr(token) in '"]}bx '] if step > 20 else []
        token = random.choice(closing or others)
        data += model.token_bytes(token)
        matcher.accept(token)
    return None


def outcome(generator: Generator, seed: int) -> str:
    """What became of one schema: "refused", or "valid" with a document that was read, or "endless", or what should not be."""
    schema, model = make_schema(seed), generator.model
    try:
        grammar = Grammar.from_schema(model, schema)
    except LocalsteerError as error:
        return "refused" if NAMED.search(str(error)) else f"refused: {error}"
    request = Request(PROMPT, None, Sampling(temperature=1.5, top_k=0, seed=seed), 200, grammar=grammar)
    answer = generator.generate(request)
    texts = [answer.text] if answer.finish_reason == "stop" else []
    texts += [text for each in range(3) if (text := walk(grammar, model, seed + each)) is not None]
    for text in texts:
        assert_valid(schema, text)
    return "valid" if texts else "endless"


def test_what_is_written_by_a_schema_is_valid(door: Door, generator: Generator) -> None:
    door("JSON schemas", EXAMPLES)
    outcomes = [outcome(generator, seed) for seed in range(EXAMPLES)]
    counts = Counter(outcomes)
    print(counts)
    assert counts.keys() <= {"valid", "refused", "endless"}
    assert counts["valid"] > 0.6 * EXAMPLES
    assert counts["endless"] < 0.03 * EXAMPLES
