"""Every number of every request at its edges, and past them: an answer in valid JSON, or a refusal.

`make test` tries a third of the numbers in each field, another third in the next; LOCALSTEER_EXAMPLES=40 all of them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from localsteer.llama.model import Model
from tests.door_report import Door
from tests.server.conftest import HELLO, Served, serving

# As they stand in a body: JSON's own, those that only some programs write, and texts that stand for numbers.
NUMBERS = ["0", "-0", "-0.0", "1", "-1", "-2", "0.5", "1e-320", "5e-324", "1e30", "-1e30", "1e308", "1e400", "-1e400"]
NUMBERS += [str(value) for power in (31, 32, 53, 63, 64) for value in (2**power - 1, 2**power, -(2**power))]
NUMBERS += ["1" + "0" * 400, "1" + "0" * 5000, "NaN", "Infinity", "-Infinity", "true", '"1"', '"NaN"', '"1e999"', "[1]", "{}"]
STEP = 1 if "LOCALSTEER_EXAMPLES" in os.environ else 3

BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": HELLO},
    "/v1/completions": {"prompt": "good day"},
    "/v1/responses": {"input": "good day"},
    "/v1/messages": {"messages": HELLO, "max_tokens": 2},
    "/completion": {"prompt": "good day"},
    "/infill": {"input_prefix": "a", "input_suffix": "b"},
    "/api/chat": {"model": "demo", "messages": HELLO, "stream": False},
    "/api/generate": {"model": "demo", "prompt": "good day", "stream": False},
    "/v1/embeddings": {"input": "good day"},
    "/embedding": {"input": "good day"},
    "/api/embed": {"model": "demo", "input": "good day"},
    "/api/embeddings": {"model": "demo", "prompt": "good day"},
    "/detokenize": {},
}


@pytest.fixture(scope="module")
def small(tiny: Model, folder: Path) -> Iterator[Served]:
    """A context so small that answers without a limit take no time."""
    with serving(tiny, folder) as make:
        yield make(n_ctx=48)


def no_number(text: str) -> None:
    raise AssertionError(f"{text} is no JSON")


def is_number(schema: dict[str, Any]) -> bool:
    kinds = [schema, *schema.get("anyOf", [])]
    return any(kind.get("type") in ("integer", "number") or (kind.get("items") or {}).get("type") == "integer" for kind in kinds)


def numbers_of(served: Served, path: str) -> list[str]:
    """The fields that take numbers; those of Ollama's options with a dot."""
    document = served.client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    content = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    properties = schemas[content["$ref"].rpartition("/")[2]]["properties"]
    names = [name for name, schema in properties.items() if is_number(schema)]
    if "options" in properties:
        names += [f"options.{name}" for name, schema in schemas["Options"]["properties"].items() if is_number(schema)]
    if path == "/v1/chat/completions":
        names += ["logit_bias.97", "seed"]
    return names


def raw(body: dict[str, Any], name: str, number: str) -> str:
    """The body with a field as it is written."""
    marked: dict[str, Any] = {**body}
    place, _, inner = name.partition(".")
    marked[place] = {inner: "@@"} if inner else "@@"
    return json.dumps(marked).replace('"@@"', number)


@pytest.mark.parametrize("path", BODIES)
def test_any_number_in_any_field_is_an_answer_or_a_refusal(door: Door, small: Served, path: str) -> None:
    names = numbers_of(small, path)
    assert names or path in ("/detokenize",)
    tried = [(name, number) for place, name in enumerate(names or ["tokens"]) for number in NUMBERS[place % STEP :: STEP]]
    door("numbers at their edges, in every numeric field of every route", len(tried))
    for name, number in tried:
        answer = small.client.post(path, content=raw(BODIES[path], name, number))
        assert answer.status_code in (200, 400), (name, number, answer.text)
        json.loads(answer.text, parse_constant=no_number)
    assert small.client.get("/health").json()["status"] == "ok"


@pytest.mark.parametrize("strength", ["1e30", "1e400", "8.0001", "nan", "-inf", "9" * 400])
def test_a_strength_that_is_no_sense_is_refused(small: Served, strength: str) -> None:
    status, error = small.refused({"steering": f"{strength} happy"})
    assert status == 400
    assert "happy" in error["message"] or "strength" in error["message"].lower()


@pytest.mark.parametrize("strength", ["0", "-0", "1e-320", "-8", "8"])
def test_a_strength_at_an_edge_is_an_answer(small: Served, strength: str) -> None:
    told = small.chat(steering=f"{strength} happy", max_tokens=2)["steering"]
    assert told["relative_dose"] is not None


@pytest.mark.parametrize(("more", "status"), [(-1, 200), (0, 400), (1, 400)])
def test_a_prompt_of_about_the_context(small: Served, more: int, status: int) -> None:
    prompt = [97] * (small.engine.n_ctx + more)
    answer = small.client.post("/v1/completions", json={"prompt": prompt})
    assert answer.status_code == status
    assert status == 200 or answer.json()["error"]["code"] == "context_length_exceeded"


def test_no_tokens_are_an_empty_answer(small: Served) -> None:
    choice = small.chat(max_tokens=0)["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("", "length")
