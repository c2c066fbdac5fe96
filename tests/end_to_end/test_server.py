"""The server on the demo model, used by the official clients of OpenAI and Ollama."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import pytest
from ollama import Client as OllamaClient
from openai import BadRequestError, NotFoundError, OpenAI
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from localsteer.engine.batch import RunningBatch
from localsteer.llama.chat_template import Message
from localsteer.llama.model import Model
from localsteer.reading.prompt import chat_tokens
from localsteer.server.answers import Service
from localsteer.server.app import make_app
from localsteer.server.engine import Engine
from localsteer.server.guard import Access
from localsteer.server.steerings import Steerings
from localsteer.steering.expression import parse_steering
from tests.conftest import LOGIT_NOISE, run_alone
from tests.server.conftest import PATIENCE, listening

PARALLEL = 8
QUESTION = "How was your day?"
MESSAGES: Any = [{"role": "user", "content": QUESTION}]
# All of vectors that come built for this model.
EXPRESSIONS = ("", "0.5 happy", "-happy", "pirate", "happy", "french", "0.5 happy + 0.5 polite", "calm - 0.5 happy")
PROMPTS = (
    QUESTION,
    "Tell me about your weekend.",
    "What do you think of the weather today?",
    "How is your new job?",
)
# Measured: 0.0, of all eight expressions, alone and together. Other processors have kernels that round differently for other
# batches, hence the tolerance of the unit tests. What a steering changes is measured below: more than five times that.
NOISE = LOGIT_NOISE


@dataclass(frozen=True)
class Running:
    url: str
    service: Service

    @property
    def openai(self) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key="none", timeout=10 * PATIENCE)

    @property
    def ollama(self) -> OllamaClient:
        return OllamaClient(self.url)


@pytest.fixture(scope="module")
def running(demo: Model) -> Iterator[Running]:
    """A server with the library's vectors, which come built for this model."""
    with contextlib.ExitStack() as stack:
        engine = stack.enter_context(Engine(RunningBatch(demo, parallel=PARALLEL, n_ctx=256)))
        service = Service(demo, engine, Steerings(demo, "demo", presets={"cheerful": parse_steering("0.6 happy")}))
        url, _ = stack.enter_context(listening(make_app(service, Access())))
        yield Running(url, service)


def test_openais_client_steers_in_every_way(running: Running) -> None:
    create = running.openai.chat.completions.create
    ways: dict[str, Any] = {
        "body": {"model": "demo", "extra_body": {"steering": "0.7 happy"}},
        "header": {"model": "demo", "extra_headers": {"X-Steering": "0.7 happy"}},
        "name": {"model": "demo:happy=0.7"},
    }
    answers = {way: create(messages=MESSAGES, temperature=0, max_tokens=16, **given) for way, given in ways.items()}
    plain = create(model="demo", messages=MESSAGES, temperature=0, max_tokens=16)
    for answer in answers.values():
        assert answer.model_extra is not None
        assert answer.model_extra["steering"]["expression"] == "0.7 happy"
        assert answer.usage is not None
        assert answer.usage.completion_tokens <= 16
    texts = {answer.choices[0].message.content for answer in answers.values()}
    assert plain.choices[0].message.content not in texts
    assert create(model="demo:cheerful", messages=MESSAGES, max_tokens=1).model_extra["steering"]["expression"] == "0.6 happy"  # type: ignore[index]


def test_openais_client_streams(running: Running) -> None:
    create = running.openai.chat.completions.create
    text, usage, steering = "", None, None
    with create(
        model="demo:happy=0.7",
        messages=MESSAGES,
        temperature=0,
        max_tokens=12,
        stream=True,
        stream_options={"include_usage": True},
        logprobs=True,
        top_logprobs=2,
    ) as chunks:
        for chunk in chunks:
            usage = chunk.usage or usage
            steering = (chunk.model_extra or {}).get("steering") or steering
            text += "".join(choice.delta.content or "" for choice in chunk.choices)
    assert text
    assert usage is not None
    assert steering is not None
    assert steering["expression"] == "0.7 happy"
    legacy = running.openai.completions.create(model="demo", prompt="Once upon a time", max_tokens=5, n=2, seed=1, logprobs=1)
    assert len(legacy.choices) == 2


def test_openais_client_is_told_what_is_wrong(running: Running) -> None:
    create = running.openai.chat.completions.create
    with pytest.raises(NotFoundError, match="demo"):
        create(model="gpt-4o:happy=1", messages=MESSAGES)
    assert create(model="gpt-4o", messages=MESSAGES, max_tokens=1).model == "demo"
    with pytest.raises(BadRequestError, match="happy"):
        create(model="demo", messages=MESSAGES, extra_body={"steering": "0.5 hapy"})
    assert [one.id for one in running.openai.models.list()] == ["demo", "demo:cheerful"]
    assert running.openai.models.retrieve("demo:happy=0.5").id == "demo:happy=0.5"


def test_ollamas_client_chats_and_streams(running: Running) -> None:
    client = running.ollama
    # At 12 tokens a processor was seen on which the two answers had not parted yet.
    options = {"temperature": 0, "num_predict": 40}
    steered = client.chat(model="demo:happy=0.7", messages=MESSAGES, options=options)
    plain = client.chat(model="demo:latest", messages=MESSAGES, options=options)
    assert steered.message.content != plain.message.content
    told = list(client.chat(model="demo:happy=0.7", messages=MESSAGES, options=options, stream=True))
    assert "".join(one.message.content or "" for one in told)
    assert [one.done for one in told] == [False] * (len(told) - 1) + [True]
    assert client.generate(model="demo", prompt=QUESTION, options=options).response
    assert [one.model for one in client.list().models] == ["demo", "demo:cheerful"]
    assert client.show("demo").modelinfo is not None
    headed = OllamaClient(running.url, headers={"X-Steering": "0.7 happy"})
    by_header = headed.chat(model="demo", messages=MESSAGES, options=options).message.content or ""
    assert by_header != plain.message.content
    # A near-tie may part them later on.
    assert by_header.split()[:3] == (steered.message.content or "").split()[:3]


def test_a_schema_is_followed(running: Running) -> None:
    schema = {
        "type": "object",
        "properties": {"mood": {"enum": ["good", "bad"]}, "reason": {"type": "string", "maxLength": 40}},
        "required": ["mood", "reason"],
    }
    form: Any = {"type": "json_schema", "json_schema": {"name": "mood", "schema": schema}}
    answer = running.openai.chat.completions.create(
        model="demo:happy=0.5", messages=MESSAGES, response_format=form, max_tokens=80, seed=1
    )
    document = json.loads(answer.choices[0].message.content or "")
    assert set(document) == {"mood", "reason"}


def answer_to(running: Running, expression: str) -> dict[str, Any]:
    body = {"messages": MESSAGES, "steering": expression, "temperature": 0, "seed": 1, "max_tokens": 16, "logprobs": True}
    answer = httpx.post(f"{running.url}/v1/chat/completions", json=body, timeout=10 * PATIENCE)
    assert answer.status_code == 200
    document: dict[str, Any] = answer.json()
    return document


def distance(running: Running, document: dict[str, Any]) -> float:
    """How far the log probabilities of an answer's tokens lie from those of the same tokens run alone, steered likewise."""
    model = running.service.model
    entries = document["choices"][0]["logprobs"]["content"]
    plan = running.service.steerings.plan(parse_steering(document["steering"]["expression"]))
    prompt = chat_tokens(model, [Message("user", QUESTION)])
    tokens = [running_token(model, bytes(entry["bytes"])) for entry in entries]
    edits = [plan.edit if plan is not None and place >= len(prompt) - 1 else None for place in range(len(prompt) + len(tokens))]
    logits = run_alone(model, (*prompt, *tokens), edits, read=False).logits[len(prompt) - 1 : -1].astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    told = np.array([entry["logprob"] for entry in entries])
    chosen = expected[np.arange(len(tokens)), tokens]
    # Greedy: each token is the likeliest one there, too.
    shortfall = expected.max(axis=1) - chosen
    return float(max(np.abs(told - chosen).max(), shortfall.max()))


def running_token(model: Model, data: bytes) -> int:
    """The token with these bytes."""
    if not hasattr(running_token, "table"):
        table = {model.token_bytes(token, special=True): token for token in reversed(range(model.n_vocab))}
        running_token.table = table  # type: ignore[attr-defined]
    found: int = running_token.table[data]  # type: ignore[attr-defined]
    return found


def test_eight_at_once_are_each_steered_as_alone(running: Running) -> None:
    alone = [answer_to(running, expression) for expression in EXPRESSIONS]
    with ThreadPoolExecutor(PARALLEL) as pool:
        together = list(pool.map(lambda expression: answer_to(running, expression), EXPRESSIONS))
    distances = [distance(running, document) for document in (*alone, *together)]
    assert max(distances) < NOISE, distances
    assert [one["steering"] for one in together] == [one["steering"] for one in alone]
    texts = {one["choices"][0]["message"]["content"] for one in together}
    assert len(texts) > PARALLEL // 2
    # A steering that slipped from one answer to another would be found.
    swapped = {**together[EXPRESSIONS.index("happy")], "steering": together[0]["steering"]}
    assert distance(running, swapped) > 5 * NOISE


@pytest.mark.models
def test_happy_answers_are_happier_than_sad_ones(running: Running) -> None:
    mood = SentimentIntensityAnalyzer()

    def moods(strength: int) -> list[float]:
        def ask(prompt: str) -> list[float]:
            body = {
                "model": f"demo:happy={strength}",
                "messages": [{"role": "user", "content": prompt}],
                "max_tokens": 32,
                "n": 2,
                "seed": 1,
            }
            answer = httpx.post(f"{running.url}/v1/chat/completions", json=body, timeout=10 * PATIENCE)
            return [mood.polarity_scores(one["message"]["content"])["compound"] for one in answer.json()["choices"]]

        with ThreadPoolExecutor(4) as pool:
            return [value for values in pool.map(ask, PROMPTS) for value in values]

    happy, sad = moods(1), moods(-1)
    assert math.fsum(happy) / len(happy) > math.fsum(sad) / len(sad) + 0.3


def test_the_vectors_that_come_with_it_are_listed_as_ready(running: Running) -> None:
    listed = httpx.get(f"{running.url}/v1/vectors", timeout=PATIENCE).json()["data"]
    ready = {one["id"] for one in listed if one["state"] == "ready"}
    assert "happy" in ready
    document = httpx.post(f"{running.url}/v1/vectors/happy", timeout=10 * PATIENCE).json()
    assert document["calibrated"]
    activations = httpx.post(
        f"{running.url}/v1/vectors/activations",
        json={"texts": ["I am so glad and happy today", "I am so sad and lonely today"], "vectors": ["happy"]},
        timeout=10 * PATIENCE,
    ).json()["data"]
    assert all(len(one["tokens"]) == len(one["vectors"]["happy"]) for one in activations)
