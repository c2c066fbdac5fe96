"""llama-server's own way to have a text gone on with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from localsteer.llama.model import Model
from tests.server.conftest import Serve, Served
from tests.tiny_models import write_tiny_model

TEXT = "good day"


def posted(served: Served, path: str = "/completion", **body: Any) -> Any:
    answer = served.client.post(path, json={"prompt": TEXT, "n_predict": 6, "temperature": 0, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


def streamed(served: Served, **body: Any) -> list[dict[str, Any]]:
    given = {"prompt": TEXT, "n_predict": 6, "temperature": 0, "stream": True, **body}
    with served.client.stream("POST", "/completion", json=given) as answer:
        assert answer.status_code == 200
        return [json.loads(line.removeprefix("data: ")) for line in answer.iter_lines() if line.startswith("data: ")]


def refused(served: Served, path: str = "/completion", **body: Any) -> str:
    answer = served.client.post(path, json={"prompt": TEXT, "n_predict": 2, **body})
    assert answer.status_code == 400, answer.text
    return str(answer.json()["error"]["message"])


@pytest.mark.parametrize("path", ["/completion", "/completions"])
def test_a_text_is_gone_on_with(served: Served, path: str) -> None:
    document = posted(served, path)
    assert document["content"] == served.complete()["choices"][0]["text"]
    assert (document["stop"], document["stop_type"], document["stopping_word"]) == (True, "limit", "")
    assert (document["prompt"], document["tokens"], document["truncated"]) == (TEXT, [], False)
    assert document["tokens_predicted"] == document["timings"]["predicted_n"] == 6
    assert document["tokens_evaluated"] == len(served.model.tokenize(TEXT))
    assert document["timings"]["prompt_n"] + document["timings"]["cache_n"] == document["tokens_evaluated"]
    assert document["generation_settings"]["n_predict"] == 6
    assert document["generation_settings"]["temperature"] == 0
    assert "completion_probabilities" not in document


def test_it_is_steered_as_everywhere(served: Served) -> None:
    steered = posted(served, steering="2 happy")
    assert steered["steering"]["expression"] == "2 happy"
    assert steered["content"] != posted(served)["content"]
    assert steered["content"] == served.complete(steering="2 happy")["choices"][0]["text"]


def test_a_stream_holds_the_same(served: Served) -> None:
    whole = posted(served, return_tokens=True)
    *pieces, last = streamed(served)
    assert "".join(piece["content"] for piece in pieces) == whole["content"]
    assert [token for piece in pieces for token in piece["tokens"]] == whole["tokens"]
    assert not any(piece["stop"] for piece in pieces)
    assert (last["stop"], last["stop_type"], last["content"]) == (True, "limit", "")
    assert last["timings"]["predicted_n"] == len(whole["tokens"])


def test_why_it_ended_is_told(served: Served) -> None:
    written = posted(served, logit_bias=[["X", 1000]], stop=["Q", "XX"])
    assert (written["stop_type"], written["stopping_word"], written["content"]) == ("word", "XX", "")
    ends = [[token, 1000] for token in served.model.end_tokens]
    assert posted(served, logit_bias=ends)["stop_type"] == "eos"
    full = posted(served, n_predict=-1, ignore_eos=True)
    ruled_out = [{"token": token, "bias": None} for token in served.model.end_tokens]
    assert full["generation_settings"]["logit_bias"] == ruled_out
    assert {one["bias"] for one in written["generation_settings"]["logit_bias"]} == {1000}
    assert (full["stop_type"], full["truncated"]) == ("limit", True)


def test_a_line_break_is_told(served: Served) -> None:
    assert posted(served, logit_bias=[["\n", 1000]])["has_new_line"]
    assert not posted(served, logit_bias=[["X", 1000]])["has_new_line"]


def test_prompts_in_every_form(served: Served) -> None:
    tokens = served.model.tokenize(TEXT)
    one = posted(served)["content"]
    assert posted(served, prompt=tokens)["content"] == one
    assert posted(served, prompt={"prompt_string": TEXT})["content"] == one
    assert posted(served, prompt=[*tokens[:2], served.model.detokenize(tokens[2:])])["tokens_evaluated"] >= 3
    several = posted(served, prompt=[TEXT, tokens, {"prompt_string": TEXT}])
    assert [(document["index"], document["content"]) for document in several] == [(0, one), (1, one), (2, one)]
    assert "no token" in refused(served, prompt=[10**9])
    assert "Images" in refused(served, prompt={"prompt_string": TEXT, "multimodal_data": ["x"]})


def test_several_answers(served: Served) -> None:
    documents = posted(served, n_cmpl=2, temperature=3, seed=5)
    assert [document["seed"] for document in documents] == [5, 6]


def test_log_probabilities(served: Served) -> None:
    entries = posted(served, n_probs=3)["completion_probabilities"]
    assert len(entries) == 6
    for entry in entries:
        assert entry["logprob"] <= 0
        assert entry["id"] == entry["top_logprobs"][0]["id"]
        assert len(entry["top_logprobs"]) == 3
    told = [entry for piece in streamed(served, n_probs=3)[:-1] for entry in piece["completion_probabilities"]]
    assert [entry["id"] for entry in told] == [entry["id"] for entry in entries]


def test_only_some_fields(served: Served) -> None:
    document = posted(served, response_fields=["content", "generation_settings/n_predict", "nothing", "content/x"])
    assert set(document) == {"content", "generation_settings/n_predict"}
    assert set(streamed(served, response_fields=["stop"])[-1]) == {"stop"}


def test_it_follows_a_form(served: Served) -> None:
    assert posted(served, grammar='root ::= "yes"')["content"] == "yes"
    schema = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}
    assert json.loads(posted(served, json_schema=schema, n_predict=40)["content"]) == {"a": 1}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("t_max_predict_ms", 5),
        ("n_indent", 4),
        ("post_sampling_probs", True),
        ("lora", [{"id": 0, "scale": 1.0}]),
        ("mirostat", 2),
        ("dry_multiplier", 0.8),
        ("xtc_probability", 0.5),
        ("samplers", ["temperature", "top_k"]),
    ],
)
def test_what_cannot_be_had_is_refused_by_name(served: Served, name: str, value: object) -> None:
    asked: dict[str, Any] = {name: value}
    assert name in refused(served, **asked)


def test_what_asks_for_nothing_is_let_through(served: Served) -> None:
    samplers = ["dry", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature"]
    posted(served, samplers=samplers, mirostat=0, t_max_predict_ms=0, lora=[], cache_prompt=True, id_slot=-1, dry_multiplier=0.0)


# Filling in


def test_a_gap_is_filled_in(tmp_path: Path, serve: Serve) -> None:
    with Model(write_tiny_model(tmp_path / "i.gguf", infill={"pre": 1, "suf": 2, "mid": 3}), threads=1) as model:
        served = serve(model=model)
        expected = posted(served, prompt=list(b"\1abc\2yz\3"))["content"]
        document = posted(served, "/infill", prompt="c", input_prefix="ab", input_suffix="yz")
        assert (document["content"], document["prompt"]) == (expected, "\1abc\2yz\3")
        assert served.complete(prompt="abc", suffix="yz")["choices"][0]["text"] == expected
        ollama = {"model": "demo", "prompt": "abc", "suffix": "yz", "stream": False}
        answer = served.client.post("/api/generate", json={**ollama, "options": {"temperature": 0, "num_predict": 6}})
        assert answer.json()["response"] == expected
        extra = [{"filename": "a.py", "text": "x"}]
        assert "x\1ab" in posted(served, "/infill", prompt="", input_prefix="ab", input_suffix="", input_extra=extra)["prompt"]


def test_a_gap_that_cannot_be_filled_in_is_refused(served: Served) -> None:
    assert "fill in" in refused(served, "/infill", input_prefix="a", input_suffix="b")
    assert "fill in" in refused(served, "/v1/completions", suffix="b")
    assert served.client.post("/api/generate", json={"model": "demo", "prompt": "a", "suffix": "b"}).status_code == 400


@pytest.mark.parametrize("extra", [{}, {"filename": "ok"}, {"filename": 123, "text": "abc"}, {"text": 4}])
def test_other_files_have_a_text(served: Served, extra: dict[str, Any]) -> None:
    assert "input_extra" in refused(served, "/infill", input_prefix="a", input_suffix="b", input_extra=[extra])
