"""Embeddings in the forms of OpenAI, Ollama and llama-server: mean hidden states of the model that is served, unsteered."""

from __future__ import annotations

import base64
import time
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter
from fastapi.concurrency import run_in_threadpool
from numpy.typing import NDArray
from pydantic import Field
from starlette.requests import Request as HTTPRequest

from localsteer.reading.embedding import check_embedded, embed, embedding_layer
from localsteer.server.answers import RequestError, Service
from localsteer.server.beside import while_connected
from localsteer.server.schema import Fields
from localsteer.server.texts import token_lists

# As many as OpenAI takes.
_MAX_TEXTS = 2048
_MAX_NORM = 64

Layer = Annotated[int | None, Field(ge=0, description="The block to read, from 0; null: one near the last.")]
Texts = Annotated[Any, Field(description="A string, tokens, or a list of them.")]


class OpenAIEmbeddings(Fields):
    """POST /v1/embeddings."""

    input: Texts
    model: str | None = Field(default=None, max_length=2000)
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    layer: Layer = None


class LlamaEmbeddings(Fields):
    """POST /embedding."""

    input: Texts = None
    content: Texts = None
    embd_normalize: int = Field(default=2, ge=-1, le=_MAX_NORM)
    layer: Layer = None


class OllamaEmbed(Fields):
    """POST /api/embed."""

    model: str = Field(max_length=2000)
    input: str | list[str]
    truncate: bool = True
    dimensions: int | None = None
    layer: Layer = None


class OllamaEmbedding(Fields):
    """POST /api/embeddings."""

    model: str = Field(max_length=2000)
    prompt: str = ""
    layer: Layer = None


@dataclass(frozen=True, eq=False)
class _Read:
    """What texts show.

    Attributes:
        rows: (n_texts, n_embd) their mean hidden states.
        tokens: how many were read.
    """

    rows: NDArray[np.float32]
    tokens: int


def router(service: Service) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["Embeddings"])
    model, n_ctx = service.model, service.engine.n_ctx

    async def read(given: object, layer: int | None, http: HTTPRequest, *, cut: bool = False) -> _Read:
        def tokens() -> list[tuple[int, ...]]:
            texts = [one[:n_ctx] if cut else one for one in token_lists(model, given, "input")]
            if len(texts) > _MAX_TEXTS:
                raise RequestError(f"{len(texts)} texts are given, and {_MAX_TEXTS} are allowed.", "input")
            check_embedded(model, texts, at, n_ctx)
            return texts

        at = layer if layer is not None else embedding_layer(model)
        texts = await run_in_threadpool(tokens)  # before it waits for its turn
        rows = await while_connected(http, service.embedding.wait_for(object(), lambda: embed(model, texts, at)))
        return _Read(rows, sum(map(len, texts)))

    @routes.post("/v1/embeddings")
    async def openai(body: OpenAIEmbeddings, http: HTTPRequest) -> dict[str, Any]:
        """OpenAI's."""
        name = service.unsteered(body.model)
        _check_dimensions(model.n_embd, body.dimensions)
        found = await read(body.input, body.layer, http)
        rows = _normalised(found.rows, 2)
        data = [
            {
                "object": "embedding",
                "index": index,
                "embedding": _base64(row) if body.encoding_format == "base64" else row.tolist(),
            }
            for index, row in enumerate(rows)
        ]
        usage = {"prompt_tokens": found.tokens, "total_tokens": found.tokens}
        return {"object": "list", "data": data, "model": name, "usage": usage}

    @routes.post("/embedding")
    @routes.post("/embeddings")
    async def llama(body: LlamaEmbeddings, http: HTTPRequest) -> list[dict[str, Any]]:
        """llama-server's."""
        found = await read(body.input if body.input is not None else body.content, body.layer, http)
        rows = _normalised(found.rows, body.embd_normalize)
        return [{"index": index, "embedding": [row.tolist()]} for index, row in enumerate(rows)]

    @routes.post("/api/embed")
    async def ollama(body: OllamaEmbed, http: HTTPRequest) -> dict[str, Any]:
        """Ollama's."""
        began = time.monotonic_ns()
        name = service.unsteered(body.model)
        _check_dimensions(model.n_embd, body.dimensions)
        found = await read(body.input, body.layer, http, cut=body.truncate)
        return {
            "model": name,
            "embeddings": _normalised(found.rows, 2).tolist(),
            "total_duration": time.monotonic_ns() - began,
            "load_duration": 0,
            "prompt_eval_count": found.tokens,
        }

    @routes.post("/api/embeddings")
    async def older(body: OllamaEmbedding, http: HTTPRequest) -> dict[str, Any]:
        """Ollama's older one: of one text, at its own length."""
        service.unsteered(body.model)
        found = await read(body.prompt, body.layer, http, cut=True)
        return {"embedding": found.rows[0].tolist()}

    return routes


def _check_dimensions(n_embd: int, asked: int | None) -> None:
    if asked not in (None, n_embd):
        raise RequestError(f"{asked} dimensions are asked for, and the model's hidden states have {n_embd}.", "dimensions")


def _normalised(rows: NDArray[np.float32], norm: int) -> NDArray[np.float32]:
    """As `common_embd_normalize` of llama.cpp: -1 leaves them, 0 makes the largest number 32,760, p the p-norm 1."""
    if norm < 0:
        return rows
    size = np.abs(rows).max(axis=1) / 32760 if norm == 0 else np.linalg.norm(rows.astype(np.float64), ord=norm, axis=1)
    unit: NDArray[np.float32] = (rows / np.maximum(size, 1e-30)[:, None]).astype(np.float32)
    return unit


def _base64(row: NDArray[np.float32]) -> str:
    return base64.b64encode(row.astype("<f4").tobytes()).decode()
