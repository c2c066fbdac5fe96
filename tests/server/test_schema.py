"""What requests hold, in all APIs alike."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from localsteer.server.anthropic_schema import MessagesRequest
from localsteer.server.completion_api import Completion
from localsteer.server.ollama_api import OllamaChat, OllamaGenerate
from localsteer.server.responses_schema import ResponsesRequest
from localsteer.server.schema import ChatRequest, CompletionRequest
from tests.server.conftest import Served
from tests.server.made_requests import BODIES

ASKED: dict[str, type[BaseModel]] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
    "/v1/responses": ResponsesRequest,
    "/v1/messages": MessagesRequest,
    "/completion": Completion,
    "/api/chat": OllamaChat,
    "/api/generate": OllamaGenerate,
}


@pytest.mark.parametrize("path", ASKED)
def test_null_means_what_it_means_to_leave_a_field_out(served: Served, path: str) -> None:
    kept = {"prompt", "input", *(name for name, field in ASKED[path].model_fields.items() if field.is_required())}
    body = {
        **dict.fromkeys(ASKED[path].model_fields),
        **{name: value for name, value in BODIES[path].items() if name in kept},
        ("num_predict" if path.startswith("/api") else "max_output_tokens" if "responses" in path else "max_tokens"): 3,
    }
    if path.startswith("/api"):
        body["options"] = dict.fromkeys(("temperature", "num_ctx", "steering", "stop", "seed")) | {"num_predict": 3}
    answer = served.client.post(path, json=body)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (
            "/v1/messages",
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "name": None, "input": None}]}]},
        ),
        ("/v1/responses", {"input": [{"type": None, "role": "user", "content": "a"}]}),
        ("/api/chat", {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": None}]}),
        ("/embedding", {"embd_normalize": None, "layer": None}),
        ("/api/embed", {"truncate": None}),
        ("/tokenize", dict.fromkeys(("content", "add_special", "parse_special", "with_pieces"))),
        ("/detokenize", {"tokens": None}),
    ],
)
def test_null_means_so_in_parts_of_a_request_and_in_others_too(served: Served, path: str, body: dict[str, Any]) -> None:
    answer = served.client.post(path, json={**BODIES[path], **body})
    assert answer.status_code == 200, answer.text
