"""Log probabilities as OpenAI's API, llama-server's and Ollama's write them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from localsteer.engine.request import TokenLogprob
from localsteer.llama.model import Model


def logprob_documents(model: Model, entries: Sequence[TokenLogprob], *, with_ids: bool = False) -> list[dict[str, Any]]:
    """A document for each token, with those of the likeliest ones in it; for llama-server's programs with the tokens' numbers."""

    def of_token(token: int, logprob: float) -> dict[str, Any]:
        return {**({"id": token} if with_ids else {}), **_token(model, token, logprob)}

    return [
        {
            **of_token(entry.token, entry.logprob),
            "top_logprobs": [of_token(token, logprob) for token, logprob in entry.likeliest],
        }
        for entry in entries
    ]


def _token(model: Model, token: int, logprob: float) -> dict[str, Any]:
    data = model.token_bytes(token, special=True)
    return {"token": data.decode("utf-8", errors="replace"), "logprob": logprob, "bytes": list(data)}
