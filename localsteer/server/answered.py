"""What llama-server tells of an answer besides its text: what is read, how it was drawn, why it ended, and how long it took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from localsteer.engine.request import Answer, PromptProgress, Request
from localsteer.llama.model import Model
from localsteer.llama.sampling import RULED_OUT
from localsteer.server.answers import Service
from localsteer.server.schema import Common

_MILLISECONDS = 1000


def answered(service: Service, body: Common, name: str, request: Request, answer: Answer) -> dict[str, Any]:
    """The last document of `/completion`, which chats show where they are asked to be `verbose`.

    Args:
        service: has answered.
        body: what was asked.
        name: what the model is called.
        request: what the engine was asked.
        answer: what came of it.
    """
    cut = answer.finish_reason == "length"
    return {
        "stop": True,
        "model": name,
        "tokens_predicted": len(answer.tokens),
        "tokens_evaluated": len(request.prompt),
        "tokens_cached": answer.timing.reused_tokens,
        "generation_settings": _settings(service, body, request, answer),
        "prompt": text_of_tokens(service.model, request.prompt),
        "has_new_line": "\n" in answer.text,
        "truncated": cut and len(answer.tokens) < request.max_tokens,
        "stop_type": "limit" if cut else "word" if answer.met is not None else "eos",
        "stopping_word": answer.met or "",
        "timings": timings(answer),
        "seed": answer.seed,
    }


def text_of_tokens(model: Model, tokens: Sequence[int]) -> str:
    """Their text, control tokens as they are written."""
    return b"".join(model.token_bytes(token, special=True) for token in tokens).decode("utf-8", errors="replace")


def progress_document(progress: PromptProgress) -> dict[str, int]:
    """How far a prompt is read."""
    return {
        "total": progress.total,
        "cache": progress.reused,
        "processed": progress.read,
        "time_ms": round(progress.seconds * _MILLISECONDS),
    }


def timings(answer: Answer) -> dict[str, float]:
    """How long it took."""
    timing = answer.timing
    prompt, drawn = timing.prompt_seconds * _MILLISECONDS, timing.answer_seconds * _MILLISECONDS
    return {
        "cache_n": timing.reused_tokens,
        "prompt_n": timing.prompt_tokens,
        "prompt_ms": prompt,
        "prompt_per_token_ms": prompt / max(timing.prompt_tokens, 1),
        "prompt_per_second": timing.prompt_tokens_per_second,
        "predicted_n": timing.answer_tokens,
        "predicted_ms": drawn,
        "predicted_per_token_ms": drawn / max(timing.answer_tokens, 1),
        "predicted_per_second": timing.tokens_per_second,
    }


def _settings(service: Service, body: Common, request: Request, answer: Answer) -> dict[str, Any]:
    sampling = request.sampling
    ends = [(token, RULED_OUT) for token in service.model.end_tokens] if sampling.ignore_eos else []
    return {
        **asdict(sampling),
        # null for what is ruled out, as JSON has no infinity.
        "logit_bias": [
            {"token": token, "bias": bias if bias > RULED_OUT else None} for token, bias in (*sampling.logit_bias, *ends)
        ],
        "seed": answer.seed,
        "n_ctx": service.engine.n_ctx,
        "n_predict": request.max_tokens,
        "max_tokens": request.max_tokens,
        "stop": list(request.stop),
        "n_probs": request.logprobs or 0,
        "stream": body.stream,
        "grammar": body.grammar or "",
    }
