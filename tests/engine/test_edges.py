"""Numbers, prompts and ends at their edges: each is said, or done right."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader

from localsteer.engine.generate import Generator
from localsteer.engine.request import Answer, Request
from localsteer.errors import LocalsteerError
from localsteer.llama.grammar import Grammar
from localsteer.llama.model import Model
from localsteer.llama.sampling import Sampling
from localsteer.steering.expression import parse_steering
from localsteer.steering.plan import Plan, resolve
from localsteer.vector.control_vector import ControlVector
from tests.conftest import assert_greedy, random_rows, random_tokens
from tests.tiny_models import write_tiny_model

GREEDY = Sampling(temperature=0)
PROMPT = random_tokens(30, seed=1)
N_CTX = 256


@pytest.fixture(scope="module")
def generator(tiny: Model) -> Iterator[Generator]:
    with Generator(tiny, n_ctx=N_CTX) as generator:
        yield generator


@pytest.fixture(scope="module")
def vectors(tiny: Model) -> dict[str, ControlVector]:
    """ "up" and "down" are each other's opposites; "tiny" can hardly be told from nothing."""
    rows = random_rows(tiny, (1, 2), seed=3)
    scales = {"up": 1.0, "down": -1.0, "tiny": 1e-30}
    return {name: ControlVector({layer: rows[layer] * np.float32(scale) for layer in (1, 2)}) for name, scale in scales.items()}


def planned(model: Model, vectors: dict[str, ControlVector], expression: str) -> Plan:
    return resolve(parse_steering(expression), model.fingerprint, vectors.__getitem__)


def answered(generator: Generator, plan: Plan | None, sampling: Sampling = GREEDY) -> Answer:
    return generator.generate(Request(PROMPT, plan, sampling, max_tokens=8))


# Strengths


@pytest.mark.parametrize(
    "expression", ["0 up", "-0 up", "0.0 up", "1e-400 up", "up + down", "2 up + 2 down", "1e38 up - 1e38 up", "tiny"]
)
def test_what_adds_up_to_nothing_is_no_steering(
    tiny: Model, generator: Generator, vectors: dict[str, ControlVector], expression: str
) -> None:
    plan = planned(tiny, vectors, expression)
    assert expression == "tiny" or plan.effect is None
    assert_greedy(tiny, PROMPT, answered(generator, plan).tokens)


@pytest.mark.parametrize("expression", ["up + !up", "!up + up", "3 up + !down", "!up + !up"])
def test_what_is_added_along_a_removed_direction_is_added_all_the_same(
    tiny: Model, generator: Generator, vectors: dict[str, ControlVector], expression: str
) -> None:
    """First the model's own component goes, then ours comes: that is how one sets it to a value."""
    plan = planned(tiny, vectors, expression)
    assert plan.effect is not None
    assert_greedy(tiny, PROMPT, answered(generator, plan).tokens, plan.effect)


@pytest.mark.parametrize("expression", ["1e400 up", "1e39 up", "1e38 up + 1e38 up + 1e38 up + 1e38 up", "-1e999 up"])
def test_what_no_float_holds_is_refused(tiny: Model, vectors: dict[str, ControlVector], expression: str) -> None:
    with pytest.raises(LocalsteerError, match="too large"):
        planned(tiny, {**vectors, "up": vectors["up"] * 10.0}, expression)


@pytest.mark.parametrize("expression", ["nan up", "inf up", "-inf up", "NaN*up", "Infinity up"])
def test_what_is_no_number_is_refused(expression: str) -> None:
    with pytest.raises(LocalsteerError, match=r"Expected \+ or -"):
        parse_steering(expression)


@pytest.mark.parametrize("strength", ["1e5", "1e18"])
def test_a_strength_past_all_sense_leaves_no_trace(
    tiny: Model, generator: Generator, vectors: dict[str, ControlVector], strength: str
) -> None:
    assert len(answered(generator, planned(tiny, vectors, f"{strength} up"), Sampling(seed=1)).tokens) == 8
    assert_greedy(tiny, PROMPT, answered(generator, None).tokens)


@pytest.mark.parametrize("strength", ["1e20", "-1e30"])
def test_a_strength_whose_square_no_float_holds_is_refused(
    tiny: Model, generator: Generator, vectors: dict[str, ControlVector], strength: str
) -> None:
    with pytest.raises(LocalsteerError, match=r"too strong.*Lower its strength"):
        answered(generator, planned(tiny, vectors, f"{strength} up"))


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(seed=1), Sampling(seed=1, min_p=0, top_k=0, top_p=1)])
def test_predictions_that_are_no_numbers_end_the_answer(tmp_path: Path, sampling: Sampling) -> None:
    path = write_tiny_model(tmp_path / "damaged.gguf")
    next(one for one in GGUFReader(path, "r+").tensors if one.name == "output_norm.weight").data[:] = np.nan
    with (
        Model(path, threads=1) as model,
        Generator(model, n_ctx=N_CTX) as generator,
        pytest.raises(LocalsteerError, match=r"no numbers.*damaged"),
    ):
        answered(generator, None, sampling)


# Lengths


@pytest.mark.parametrize(("missing", "tokens"), [(2, 3), (1, 2)])
def test_a_prompt_that_leaves_room_is_answered_to_the_last_place(generator: Generator, missing: int, tokens: int) -> None:
    answer = generator.generate(Request(random_tokens(N_CTX - missing, seed=6), None, GREEDY, max_tokens=10**7))
    assert (len(answer.tokens), answer.finish_reason) == (tokens, "length")


@pytest.mark.parametrize("more", [0, 1, 10_000])
def test_a_prompt_that_leaves_none_is_refused(generator: Generator, more: int) -> None:
    with pytest.raises(LocalsteerError, match=f"{N_CTX + more} tokens, and the context holds {N_CTX}"):
        generator.generate(Request(random_tokens(N_CTX + more, seed=6)))


@pytest.mark.parametrize("max_tokens", [0, -1])
def test_no_tokens_are_no_answer(generator: Generator, max_tokens: int) -> None:
    answer = generator.generate(Request(PROMPT, None, GREEDY, max_tokens=max_tokens, stop=("x",)))
    assert (answer.tokens, answer.text, answer.finish_reason) == ((), "", "length")


# Ends


@pytest.mark.parametrize("length", [2, 3, 8, 9, 10_000])
def test_a_stop_string_of_any_length_cuts_what_is_there_or_nothing(generator: Generator, length: int) -> None:
    """Over several tokens, as long as the answer, and longer than it can be: then what might begin it is shown at the end."""
    whole = answered(generator, None)
    stop = (whole.text + "x" * 10_000)[:length]
    pieces: list[str] = []
    answer = generator.generate(Request(PROMPT, None, GREEDY, max_tokens=8, stop=(stop,)), on_text=pieces.append)
    assert "".join(pieces) == answer.text
    assert (answer.text, answer.finish_reason) == (("", "stop") if stop in whole.text else (whole.text, "length"))


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_a_character_that_is_cut_is_shown_as_one_that_is_missing(tiny: Model, generator: Generator, count: int) -> None:
    """🙂 is four tokens here; the answer ends after some of them."""
    grammar = Grammar(tiny, 'start: "🙂" /[a-z]*/')
    pieces: list[str] = []
    answer = generator.generate(Request(PROMPT, None, GREEDY, max_tokens=count, grammar=grammar), on_text=pieces.append)
    assert "".join(pieces) == answer.text
    assert answer.text == ("🙂" if count == 4 else "�")


@pytest.mark.parametrize(
    "schema",
    [
        False,
        {"enum": []},
        {"type": "string", "minLength": 2, "maxLength": 1},
        {"type": "integer", "minimum": 2, "maximum": 1},
        {"type": "integer", "minimum": 0.2, "maximum": 0.8},
        {"type": "array", "minItems": 3, "maxItems": 2},
        {"type": "object", "properties": {"a": False}, "required": ["a"]},
        {"allOf": [{"type": "string"}, {"type": "number"}]},
        {"const": 1, "type": "string"},
    ],
)
def test_a_schema_that_nothing_satisfies_is_said(tiny: Model, schema: dict[str, object] | bool) -> None:
    with pytest.raises(LocalsteerError) as told:
        Grammar.from_schema(tiny, schema)
    assert len(str(told.value).splitlines()) == 1
