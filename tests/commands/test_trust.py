"""Every command that opens a model tries one that is new here in a process of its own, unless it is told to trust it."""

from __future__ import annotations

from pathlib import Path

import pytest

from localsteer.llama import model_trial
from localsteer.llama.apart import Outcome
from tests.commands.runner import assert_one_clear_line, run
from tests.conftest import TinyPath
from tests.policy.made import push

COMMANDS = [
    ("generate", "Hello", "-n", "1"),
    ("chat", "--plain"),
    ("serve", "--port", "0"),
    ("doctor",),
    ("models", "show"),
]


@pytest.fixture(autouse=True)
def dies(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Whatever is tried dies; returns what was."""
    monkeypatch.delenv("LOCALSTEER_TRUST")
    tried: list[bytes] = []

    def run_apart(_module: str, given: bytes, _limits: object) -> Outcome:
        tried.append(given)
        return Outcome("died", last_words="llama-vocab.cpp:7: GGML_ASSERT(x) failed")

    monkeypatch.setattr(model_trial, "run_apart", run_apart)
    return tried


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_a_model_that_dies_is_an_error(tiny_path: TinyPath, capfd: pytest.CaptureFixture[str], command: tuple[str, ...]) -> None:
    result = run(capfd, *command, "-m", tiny_path("llama"))
    assert_one_clear_line(result, "llama.gguf cannot be used", "GGML_ASSERT(x) failed", "process of its own")


def test_a_model_that_is_trusted_is_opened(
    tiny_path: TinyPath, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, dies: list[bytes]
) -> None:
    assert run(capfd, "models", "show", "-m", tiny_path("llama"), "--trust").code == 0
    monkeypatch.setenv("LOCALSTEER_TRUST", "1")
    assert run(capfd, "models", "show", "-m", tiny_path("llama")).code == 0
    assert dies == []


def test_a_judge_of_a_policy_is_tried(
    tiny_path: TinyPath, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = tmp_path / "policy.yaml"
    push(tmp_path)
    policy.write_text(
        f'version: 1\nclassifiers:\n  bad: {{type: model, model: {tiny_path("qwen2")}, question: "Bad?", watch: prompt}}\n'
        "rules:\n  - {name: only, when: bad, steer: push.gguf}\n"
    )
    monkeypatch.setattr(
        model_trial,
        "run_apart",
        lambda _module, given, _limits: Outcome("died" if b"qwen2" in given else "well", last_words="Aborted"),
    )
    assert_one_clear_line(run(capfd, "policy", "check", policy, "-m", tiny_path("llama")), "qwen2.gguf cannot be used", "Aborted")
