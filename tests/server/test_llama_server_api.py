from __future__ import annotations

import json
from typing import Any

import pytest

from tests.server.conftest import HELLO, Served


def posted(served: Served, path: str, **body: Any) -> Any:
    answer = served.client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("text", ["good day", "a <|im_end|> in it", "\u5abd \N{HUGGING FACE}", ""])
def test_tokens_of_a_text_and_back(served: Served, text: str) -> None:
    tokens = posted(served, "/tokenize", content=text)["tokens"]
    assert tokens == served.model.tokenize(text, add_special=False)
    assert posted(served, "/detokenize", tokens=tokens)["content"] == text


def test_special_tokens_may_be_read_as_text_and_put_in_front(served: Served) -> None:
    plain = posted(served, "/tokenize", content="<|im_end|>", parse_special=False)["tokens"]
    assert len(plain) > len(posted(served, "/tokenize", content="<|im_end|>")["tokens"]) == 1
    assert posted(served, "/tokenize", content="x", add_special=True)["tokens"] == served.model.tokenize("x")


def test_a_piece_of_a_character_is_told_as_bytes(served: Served) -> None:
    pieces = posted(served, "/tokenize", content="a\u5abd", with_pieces=True)["tokens"]
    data = b"".join(bytes(one["piece"]) if isinstance(one["piece"], list) else one["piece"].encode() for one in pieces)
    assert data.decode() == "a\u5abd"
    assert any(isinstance(one["piece"], list) for one in pieces)
    assert all(isinstance(one["id"], int) for one in pieces)


@pytest.mark.parametrize("tokens", [[-1], [10**9], ["x"], [1.5], 7])
def test_what_is_no_token_is_refused(served: Served, tokens: object) -> None:
    assert served.client.post("/detokenize", json={"tokens": tokens}).status_code == 400


def test_the_server_tells_what_it_has_and_no_path_of_the_machine(served: Served) -> None:
    document = served.client.get("/props").json()
    assert (document["total_slots"], document["model_alias"]) == (served.batch.parallel, "demo")
    assert document["default_generation_settings"]["n_ctx"] == served.engine.n_ctx
    assert "im_start" in document["chat_template"]
    assert (document["bos_token"], document["eos_token"]) == ("<|endoftext|>", "<|im_end|>")
    assert document["model_path"] == served.model.path.name
    assert str(served.model.path.parent) not in str(document)
    slots = served.client.get("/slots").json()
    assert [(slot["id"], slot["is_processing"]) for slot in slots] == [(0, False), (1, False)]


def test_a_conversation_is_shown_as_the_model_reads_it(served: Served) -> None:
    messages = [{"role": "user", "content": "What is <|im_end|>?"}]
    turn = "<|im_start|>user\nWhat is <|im_end|>?<|im_end|>\n"
    assert posted(served, "/apply-template", messages=messages) == {"prompt": f"{turn}<|im_start|>assistant\n"}
    assert posted(served, "/apply-template", messages=messages, add_generation_prompt=False) == {"prompt": turn}
    begun = [*messages, {"role": "assistant", "content": "It is"}]
    assert posted(served, "/apply-template", messages=begun)["prompt"].endswith("<|im_start|>assistant\nIt is")
    tool = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}
    assert "look_up" in posted(served, "/apply-template", messages=messages, tools=[tool])["prompt"]
    answer = served.client.post("/apply-template", json={"messages": messages, "chat_template_kwargs": {"nothing": 1}})
    assert answer.status_code == 400


def test_the_tokens_of_a_conversation_are_counted(served: Served) -> None:
    read = served.chat()["usage"]["prompt_tokens"]
    for path in ("/v1/chat/completions/input_tokens", "/chat/completions/input_tokens"):
        assert posted(served, path, messages=HELLO)["input_tokens"] == read


def test_a_chat_shows_what_was_read_where_it_is_asked_to(served: Served) -> None:
    whole = served.chat(verbose=True, n=1)
    shown = whole["__verbose"]
    assert shown["prompt"] == posted(served, "/apply-template", messages=HELLO)["prompt"]
    assert (shown["content"], shown["stop_type"]) == (whole["choices"][0]["message"]["content"], "limit")
    assert len(shown["tokens"]) == whole["usage"]["completion_tokens"]
    assert "__verbose" not in served.chat()
    body = {"messages": HELLO, "stream": True, "verbose": True, "max_tokens": 2}
    assert "__verbose" in served.client.post("/v1/chat/completions", json=body).text


def test_a_chat_tells_its_times_as_llama_server_does(served: Served) -> None:
    whole = served.chat()
    assert whole["timings"]["predicted_n"] == whole["usage"]["completion_tokens"]
    assert whole["timings"]["prompt_n"] + whole["timings"]["cache_n"] == whole["usage"]["prompt_tokens"]
    assert whole["system_fingerprint"].startswith("b")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/completion"])
def test_a_stream_tells_how_far_the_prompt_is_read(fresh: Served, path: str) -> None:
    body = {"messages": HELLO, "prompt": "good day, good night", "stream": True, "max_tokens": 2}

    def told(**more: Any) -> list[dict[str, int]]:
        lines = fresh.client.post(path, json={**body, **more}).text.splitlines()
        events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
        return [event["prompt_progress"] for event in events if "prompt_progress" in event]

    for cached in (False, True):
        first, *others = told(return_progress=True)
        assert first["cache"] == first["processed"]
        assert (first["cache"] > 0) == cached
        assert others[-1]["processed"] == others[-1]["total"] == first["total"]
        assert all(other["cache"] == first["cache"] for other in others)
    assert told() == []
