"""What llama.cpp's own tests start in the place of llama-server: the arguments of the one become those of the other.

The demo model stands for every model that the tests would download; its chat template becomes the one that the tests ask for.
`COMPATIBILITY_SERVER` names a llama-server, which then gets the same model (the control).
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.models import demo_model
from localsteer.export.gguf_rewrite import ModelFile, open_model_file, rewrite

TEMPLATE = "tokenizer.chat_template"
# The tests ask by threads of their own: on two cores llama-server's would wait for one another, ten times as long.
ONE_THREAD = ("--threads", "1")
# The model to download, which the demo model stands for.
_MODEL = ("--hf-repo", "--hf-file", "--model", "--model-url")
# What `localsteer serve` has under this name or another.
_SAME = {
    "--host": "--host",
    "--port": "--port",
    "--api-key": "--api-key",
    "--alias": "--alias",
    "--cache-ram": "--cache-ram",
    "--cors-origins": "--allow-origin",
    "--temp": "--temperature",
    "--seed": "--seed",
    "--n-predict": "--max-tokens",
}
_THINKING = {"on": ["--think"], "off": ["--no-think"], "auto": [], None: []}
# What it does in any case, or what changes neither answers nor forms.
_DONE = ("--offline", "--cont-batching", "--embedding", "--metrics", "--slots", "--kv-unified", "--swa-full", "--jinja")
_LAYOUT = ("--batch-size", "--ubatch-size", "-ctk", "-ctv", "-fa", "--n-gpu-layers")
# What it cannot: the tests run nevertheless, and may notice. /slots cannot be closed, `verbose` is a field of requests.
_LEFT_OUT = ("--reasoning-format",)
_LEFT_OUT_FLAGS = ("--no-slots", "--no-jinja", "--verbose")


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The arguments of llama-server that are understood, and the others."""
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    for option in (*_MODEL, *_SAME, *_LAYOUT, *_LEFT_OUT, "--chat-template", "--chat-template-file", "--pooling"):
        parser.add_argument(option)
    for option in (*_DONE, *_LEFT_OUT_FLAGS):
        parser.add_argument(option, action="store_true")
    parser.add_argument("--ctx-size", type=int)
    parser.add_argument("--parallel", type=int, default=4)
    parser.add_argument("--reasoning", choices=[*filter(None, _THINKING)])
    return parser.parse_known_args(arguments)


def translated(arguments: Sequence[str], model: Path) -> list[str]:
    """Arguments of `localsteer serve` for those of llama-server.

    Raises:
        SystemExit: it has no such option.
    """
    given, others = parse(arguments)
    if given.pooling not in (None, "mean", "last"):
        others.append(f"--pooling {given.pooling}")
    if others:
        sys.exit(f"localsteer serve has no {' '.join(others)}")
    command = ["serve", "-m", str(model), "--parallel", str(given.parallel), "--list-steerings", "0", *ONE_THREAD]
    if given.cors_origins is None:
        command += ["--allow-origin", "*"]  # as llama-server has it
    if given.ctx_size:
        command += ["--context", str(given.ctx_size if given.kv_unified else given.ctx_size // given.parallel)]
    for option, own in _SAME.items():
        value = getattr(given, option.strip("-").replace("-", "_"))
        if value is not None and (option, value) != ("--n-predict", "-1"):  # as much as the context holds, as without it
            command += [own, value]
    return [*command, *_THINKING[given.reasoning]]


def with_template(model: Path, template: str, folder: Path) -> Path:
    """The model with another chat template, kept in this folder."""
    target = folder / f"{hashlib.sha256(template.encode()).hexdigest()[:16]}.gguf"
    if not target.exists():
        partial = target.with_suffix(f".{os.getpid()}")
        with open_model_file(model) as file:
            fields = {key: field for key, field in file.first.fields.items() if key != TEMPLATE}
            bare = ModelFile((dataclasses.replace(file.first, fields=fields),))
            rewrite(bare, partial, tensors={}, keys={TEMPLATE: template})
        partial.replace(target)
    return target


def main(arguments: Sequence[str]) -> None:
    given, _ = parse(arguments)
    model = demo_model()
    if server := os.environ.get("COMPATIBILITY_SERVER"):
        kept, skip = ["-m", str(model), *ONE_THREAD], False
        for argument in arguments:
            if skip or argument in _MODEL or argument == "--offline":
                skip = not skip and argument in _MODEL
            else:
                kept.append(argument)
        os.execv(server, [server, *kept])
    template = given.chat_template
    if given.chat_template_file is not None:
        template = Path(given.chat_template_file).read_text(encoding="utf-8")
    if template is not None:
        model = with_template(model, template, Path(os.environ["COMPATIBILITY_MODELS"]))
    sys.argv = ["localsteer", *translated(arguments, model)]
    from localsteer.commands import main as program

    program()


if __name__ == "__main__":
    main(sys.argv[1:])
