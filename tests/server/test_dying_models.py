"""A model that ends llama.cpp's process, asked for by a policy: the server says so, and goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from localsteer.llama import model_trial
from localsteer.llama.apart import Outcome
from localsteer.llama.model import Model
from tests.conftest import TinyPath
from tests.policy.made import push
from tests.server.conftest import Serve
from tests.tiny_models import write_tiny_model


def test_a_judge_that_dies_in_llama_cpp_costs_the_server_nothing(
    serve: Serve, tiny_path: TinyPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[bytes] = []

    def dies(_module: str, given: bytes, _limits: object) -> Outcome:
        tried.append(given)
        return Outcome("died", last_words="llama-vocab.cpp:7: GGML_ASSERT(x) failed")

    monkeypatch.setattr(model_trial, "run_apart", dies)
    write_tiny_model(tmp_path / "guard.gguf", seed=1)
    push(tmp_path)
    policy = tmp_path / "policy.yaml"
    policy.write_text(
        'version: 1\nclassifiers:\n  bad: {type: model, model: guard.gguf, question: "Bad?", watch: prompt}\n'
        "rules:\n  - {name: only, when: bad, steer: push.gguf}\non_error: pass\n"
    )
    with Model(tiny_path("llama"), threads=1) as model:
        model.trusted = False  # as the commands open it, but for its own trial
        served = serve(model=model, policy=policy)
        for _ in range(2):
            answer = served.chat()
            assert answer["choices"][0]["message"]["content"]
            assert "GGML_ASSERT(x) failed" in str(answer["policy"])
        assert len(tried) == 1  # it is known by then
        assert served.client.get("/health").status_code == 200
        served.client.close()
