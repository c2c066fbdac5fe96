"""A sound body for every route that takes one."""

from __future__ import annotations

from typing import Any

from tests.server.conftest import HELLO

_TOOL = {"type": "object", "properties": {"a": {"type": "string", "enum": ["x", "y"]}}, "required": ["a"]}
_DRAWN = {"temperature": 0.7, "top_p": 0.9, "seed": 3, "stop": ["zz", "\n\n"], "logit_bias": {"97": -1.5}, "min_p": 0.05}

BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        **_DRAWN,
        "model": "demo",
        "messages": [
            {"role": "system", "content": "be"},
            *HELLO,
            {"role": "assistant", "content": [{"type": "text", "text": "a"}]},
        ],
        "max_tokens": 3,
        "steering": "0.5 happy - 0.2 formal@1",
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "integer"}}},
        "logprobs": True,
        "top_logprobs": 2,
    },
    "/v1/completions": {
        **_DRAWN,
        "prompt": ["good", "day"],
        "max_tokens": 3,
        "n": 1,
        "logprobs": 1,
        "grammar": 'root ::= "a" [b-c]*',
    },
    "/v1/responses": {
        "input": [{"role": "user", "content": [{"type": "input_text", "text": "good"}]}],
        "max_output_tokens": 3,
        "tools": [{"type": "function", "name": "f", "description": "d", "parameters": _TOOL}],
        "tool_choice": "none",
    },
    "/v1/messages": {"messages": HELLO, "max_tokens": 3, "system": "be", "stop_sequences": ["q"], "metadata": {"user_id": "x"}},
    "/v1/messages/count_tokens": {"messages": HELLO, "system": [{"type": "text", "text": "be"}]},
    "/v1/chat/completions/input_tokens": {"messages": HELLO, "max_tokens": 3},
    "/completion": {
        "prompt": ["good", 97, "day"],
        "n_predict": 3,
        "n_probs": 2,
        "samplers": [],
        "response_fields": ["content", "a/b"],
    },
    "/infill": {"input_prefix": "a", "input_suffix": "b", "input_extra": [{"filename": "f", "text": "t"}], "n_predict": 3},
    "/api/chat": {"model": "demo", "messages": HELLO, "stream": False, "options": {**_DRAWN, "num_predict": 3}, "format": "json"},
    "/api/generate": {"model": "demo", "prompt": "good", "system": "be", "stream": False, "options": {"num_predict": 3}},
    "/api/show": {"model": "demo"},
    "/v1/embeddings": {"input": ["good", "day"], "encoding_format": "base64"},
    "/embedding": {"content": "good", "embd_normalize": 2},
    "/embeddings": {"input": [97, 98]},
    "/api/embed": {"model": "demo", "input": ["good"], "truncate": True},
    "/api/embeddings": {"model": "demo", "prompt": "good"},
    "/tokenize": {"content": "good day", "add_special": True, "with_pieces": True},
    "/detokenize": {"tokens": [97, 98]},
    "/apply-template": {"messages": HELLO},
    "/v1/vectors/activations": {"texts": ["good"], "vectors": ["happy"]},
    "/v1/vectors/happy": {},
    "/v1/steering": {"steering": "0.5 happy"},
}
PUT = ("/v1/steering",)
