from __future__ import annotations

import base64
import itertools
from typing import Any

import numpy as np
import pytest

from localsteer.reading.embedding import embed, embedding_layer
from tests.server.conftest import Serve, Served

TEXTS = ["good day", "a good day to you", "x"]


def posted(served: Served, path: str, **body: Any) -> Any:
    answer = served.client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def vectors(served: Served, given: Any, **more: Any) -> np.ndarray[Any, Any]:
    return np.array([one["embedding"] for one in posted(served, "/v1/embeddings", input=given, **more)["data"]])


def test_an_embedding_is_the_mean_hidden_state_without_the_first_token(served: Served) -> None:
    model = served.model
    tokens = [model.tokenize(text) for text in TEXTS]
    rows = embed(model, tokens, embedding_layer(model))
    document = posted(served, "/v1/embeddings", input=TEXTS)
    assert [one["index"] for one in document["data"]] == [0, 1, 2]
    assert document["usage"] == {key: sum(map(len, tokens)) for key in ("prompt_tokens", "total_tokens")}
    assert document["model"] == "demo"
    made = vectors(served, TEXTS)
    np.testing.assert_allclose(made, rows / np.linalg.norm(rows, axis=1, keepdims=True), atol=1e-5)


def test_the_block_may_be_chosen(served: Served) -> None:
    rows = [vectors(served, "good day", layer=layer) for layer in range(served.model.n_layer)]
    assert all(not np.allclose(first, second) for first, second in itertools.pairwise(rows))
    assert np.allclose(vectors(served, "good day"), rows[embedding_layer(served.model)])


def test_base64_holds_the_same(served: Served) -> None:
    (one,) = posted(served, "/v1/embeddings", input="good day", encoding_format="base64")["data"]
    np.testing.assert_allclose(
        np.frombuffer(base64.b64decode(one["embedding"]), "<f4"), vectors(served, "good day")[0], atol=1e-6
    )


def test_a_text_may_be_given_in_many_ways(served: Served) -> None:
    tokens = served.model.tokenize("good day")
    plain = vectors(served, "good day")
    for given in (
        ["good day"],
        tokens,
        [tokens],
        {"prompt_string": "good day"},
        {"content": [{"type": "text", "text": "good "}, {"type": "text", "text": "day"}]},
    ):
        np.testing.assert_allclose(vectors(served, given), plain, atol=1e-6)
    assert len(vectors(served, ["good day", tokens, [*tokens, "now"]])) == 3
    assert len(vectors(served, [65, "good", 66])) == 1


def test_ollama_asks_for_the_same(served: Served) -> None:
    plain = vectors(served, TEXTS)
    document = posted(served, "/api/embed", model="demo:latest", input=TEXTS)
    np.testing.assert_allclose(document["embeddings"], plain, atol=1e-6)
    assert document["prompt_eval_count"] == sum(len(served.model.tokenize(text)) for text in TEXTS)
    older = np.array(posted(served, "/api/embeddings", model="demo", prompt=TEXTS[0])["embedding"])
    np.testing.assert_allclose(older / np.linalg.norm(older), plain[0], atol=1e-5)


def test_llama_server_s_form_has_a_norm(served: Served) -> None:
    plain = vectors(served, "good day")[0]
    ((row,),) = [one["embedding"] for one in posted(served, "/embedding", content="good day")]
    np.testing.assert_allclose(row, plain, atol=1e-6)
    sizes = {-1: None, 0: np.abs(plain).max() / 32760, 1: np.abs(plain).sum(), 3: (np.abs(plain) ** 3).sum() ** (1 / 3)}
    for norm, size in sizes.items():
        ((row,),) = [one["embedding"] for one in posted(served, "/embeddings", input="good day", embd_normalize=norm)]
        if size is not None:
            np.testing.assert_allclose(row, plain / size, rtol=1e-3)
        else:
            assert np.linalg.norm(row) > 1.5


def test_what_is_longer_than_the_context_is_cut_for_ollama_alone(serve: Serve) -> None:
    served = serve(n_ctx=32)
    assert posted(served, "/api/embed", model="demo", input="x" * 100)["prompt_eval_count"] == 32
    status, error = served.refused({"input": "x" * 100}, "/v1/embeddings")
    assert status == 400
    assert "too large" in error["message"]
    assert served.client.post("/api/embed", json={"model": "demo", "input": "x" * 100, "truncate": False}).status_code == 400


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"input": None},
        {"input": ""},
        {"input": []},
        {"input": [[]]},
        {"input": 7.5},
        {"input": True},
        {"input": [10**9]},
        {"input": {"content": "good"}},
        {"input": {"content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}},
        {"input": {"prompt_string": "x", "multimodal_data": ["AA=="]}},
        {"input": ["x"] * 2049},
        {"input": "x", "dimensions": 3},
        {"input": "x", "layer": 99},
        {"input": "x", "encoding_format": "hex"},
        {"input": "x", "model": "other:happy=1"},
    ],
)
def test_what_cannot_be_embedded_is_refused(served: Served, body: dict[str, Any]) -> None:
    assert served.client.post("/v1/embeddings", json=body).status_code in (400, 404)


def test_answers_go_on_meanwhile_and_are_the_same(served: Served) -> None:
    before = served.chat()["choices"]
    vectors(served, TEXTS * 20)
    assert served.chat()["choices"][0]["message"] == before[0]["message"]
