"""What the commands say of chat templates, and do with them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from tests.commands.runner import run
from tests.tiny_models import CHATML_TEMPLATE, write_tiny_model

THINKS = CHATML_TEMPLATE.replace("assistant\\n'", "assistant\\n<think>\\n'")


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (CHATML_TEMPLATE, "yes"),
        (None, "none (a base model)"),
        (THINKS, "yes; it opens a thinking block: the model thinks before it answers"),
        (CHATML_TEMPLATE + "{# </think> #}", "yes; the model may think before it answers"),
        ("{{ nothing", "cannot be used"),
        ("always the same", "cannot be used"),
    ],
)
def test_doctor_says_what_the_template_is(
    template: str | None, said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write_tiny_model(tmp_path / "tiny.gguf", chat_template=template)
    assert run(capfd, "doctor", "-m", path, "--json").document["chat_template"].startswith(said)


def test_generate_offers_plain_text_where_the_template_refuses(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = write_tiny_model(tmp_path / "tiny.gguf", chat_template="{{ raise_exception('Not like this.') }}")
    result = run(capfd, "generate", "Hello", "-m", path)
    assert result.code == 1
    assert "Not like this. Use --raw" in result.err
    assert run(capfd, "generate", "Hello", "-m", path, "-n", "1", "--raw").code == 0


def test_thinking_is_turned_on_and_off(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = write_tiny_model(tmp_path / "tiny.gguf", chat_template=THINKS)
    common = ("generate", "Hello", "-m", path, "-n", "1", "--json")
    lengths = [run(capfd, *common, *more).document["timing"]["prompt_tokens"] for more in ((), ("--think",), ("--no-think",))]
    assert lengths[0] == lengths[1] < lengths[2]
    plain = write_tiny_model(tmp_path / "plain.gguf")
    assert "does not think" in run(capfd, "generate", "Hello", "-m", plain, "--think").err
    assert run(capfd, "generate", "Hello", "-m", path, "--raw", "--no-think").code == 2


def test_control_tokens_count_only_with_parse_special(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = write_tiny_model(tmp_path / "tiny.gguf")

    def length(*options: str) -> int:
        result = run(capfd, "generate", "<|im_end|>", "-m", path, "-n", "1", "--json", *options)
        return int(result.document["timing"]["prompt_tokens"])

    assert length() > length("--parse-special")


def test_a_model_of_ollamas_has_the_template_that_ollama_keeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "ollama"
    (store / "blobs").mkdir(parents=True)

    def layer(kind: str, data: bytes) -> dict[str, str]:
        digest = hashlib.sha256(data).hexdigest()
        (store / "blobs" / f"sha256-{digest}").write_bytes(data)
        return {"mediaType": f"application/vnd.ollama.image.{kind}", "digest": f"sha256:{digest}"}

    model = write_tiny_model(tmp_path / "base.gguf", chat_template=None).read_bytes()
    template = b"<|im_start|>user\n{{ .Prompt }}<|im_end|>\n<|im_start|>assistant\n"
    manifest = store / "manifests" / "registry.ollama.ai" / "library" / "sailor" / "latest"
    manifest.parent.mkdir(parents=True)
    layers = [layer("model", model), layer("template", template), layer("system", b"You are a sailor.")]
    manifest.write_text(json.dumps({"layers": layers}))
    monkeypatch.setenv("OLLAMA_MODELS", str(store))
    result = run(capfd, "generate", "Hi", "-m", "sailor", "-n", "1", "--json")
    assert result.code == 0, result.err
    assert "base model" not in result.err
    assert "--system" in result.err
    with_template = result.document["timing"]["prompt_tokens"]
    assert (
        with_template
        > run(capfd, "generate", "Hi", "-m", "sailor", "-n", "1", "--json", "--raw").document["timing"]["prompt_tokens"]
    )
