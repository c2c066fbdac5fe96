"""What programs for llama-server ask besides OpenAI's API: tokens of texts and chats, and what the server is and does."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter
from pydantic import Field

from localsteer.server.answered import text_of_tokens
from localsteer.server.answers import RequestError, Service
from localsteer.server.conversations import chat_prompt, offer_of
from localsteer.server.defaults import Defaults
from localsteer.server.schema import ChatRequest, Fields, Text

_MAX_TOKENS = 10**6


class Tokenize(Fields):
    """POST /tokenize."""

    content: Text = ""
    add_special: bool = False
    parse_special: bool = True
    with_pieces: bool = False


class Detokenize(Fields):
    """POST /detokenize."""

    tokens: list[int] = Field(default_factory=list, max_length=_MAX_TOKENS)


def router(service: Service) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["llama-server"])
    model = service.model

    @routes.post("/tokenize")
    def tokenize(body: Tokenize) -> dict[str, Any]:
        """The tokens of a text."""
        tokens = model.tokenize(body.content, add_special=body.add_special, special=body.parse_special)
        return {"tokens": [{"id": token, "piece": _piece(token)} for token in tokens] if body.with_pieces else tokens}

    def _piece(token: int) -> str | list[int]:
        """As text; as bytes where it is a part of a character."""
        data = model.token_bytes(token, special=True)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            return list(data)

    @routes.post("/detokenize")
    def detokenize(body: Detokenize) -> dict[str, str]:
        """The text of tokens."""
        if wrong := next((token for token in body.tokens if not 0 <= token < model.n_vocab), None):
            raise RequestError(f"{wrong} is no token of this model.", "tokens")
        return {"content": text_of_tokens(model, body.tokens)}

    @routes.post("/apply-template")
    def apply_template(body: ChatRequest) -> dict[str, str]:
        """What the model would read of a conversation."""
        return {"prompt": text_of_tokens(model, _prompt(body))}

    @routes.post("/chat/completions/input_tokens", include_in_schema=False)
    @routes.post("/v1/chat/completions/input_tokens")
    def input_tokens(body: ChatRequest) -> dict[str, Any]:
        """How many tokens the prompt of a conversation has."""
        service.called(body.model)  # which may refuse it
        return {"object": "response.input_tokens", "input_tokens": len(_prompt(body))}

    def _prompt(body: ChatRequest) -> tuple[int, ...]:
        offer = offer_of(body.tools, body.tool_choice, body.parallel_tool_calls)
        messages, formed = [message.message() for message in body.messages], body.constraint() is not None
        return chat_prompt(service, messages, body.template_wishes(), offer, formed=formed).tokens

    @routes.get("/props")
    def props() -> dict[str, Any]:
        """The server, and how it answers who says nothing else; of the model's path only the file's name."""
        return {
            "default_generation_settings": {"n_ctx": service.engine.n_ctx, "params": _params(service.defaults)},
            "total_slots": service.engine.parallel,
            "model_alias": service.steerings.name,
            "model_path": model.path.name,
            "bos_token": model.bos_text,
            "eos_token": model.eos_text,
            "chat_template": model.metadata("tokenizer.chat_template") or "",
            "modalities": {"vision": False, "audio": False},
            "is_sleeping": False,
        }

    @routes.get("/slots")
    def slots() -> list[dict[str, Any]]:
        """The places of the batch; what is asked in them is told to nobody."""
        busy = service.engine.running
        return [
            {"id": number, "n_ctx": service.engine.n_ctx, "is_processing": number < busy}
            for number in range(service.engine.parallel)
        ]

    return routes


def _params(defaults: Defaults) -> dict[str, Any]:
    """-1 stands for a random seed, and for as many tokens as the context holds."""
    most = defaults.max_tokens if defaults.max_tokens is not None else -1
    seed = defaults.sampling.seed if defaults.sampling.seed is not None else -1
    return {**asdict(defaults.sampling), "seed": seed, "max_tokens": most, "n_predict": most}
