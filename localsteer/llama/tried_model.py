"""What a model file goes through in the process that it is tried in: all that a first answer takes of llama.cpp."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable

import numpy as np

from localsteer.errors import LocalsteerError, shown
from localsteer.llama import library, rpc
from localsteer.llama.chat_template import Message
from localsteer.llama.context import N_UBATCH, Batch, Context
from localsteer.llama.model import Model
from localsteer.llama.template_errors import TemplateError

# Every byte that UTF-8 has, and so every way in which a tokenizer may lack one: some end the process where they do.
_FIRST_CHARACTERS = [
    *range(1, 0x100),
    *range(0x100, 0x800, 0x40),
    *range(0x800, 0xD800, 0x1000),
    *range(0xE000, 0x10FFFF, 0x1000),
]
_ALL_BYTES = "Hello, world!\n 12345  \t" + "".join(map(chr, _FIRST_CHARACTERS))


def prepare() -> Callable[[bytes], bytes]:
    """What the process does."""
    library.load()
    return try_here


def try_here(given: bytes) -> bytes:
    """Open a model (the arguments of `Model`, and the RPC servers, in JSON) and use it; what is wrong comes back, or nothing."""
    how = json.loads(given)
    try:
        rpc.connect(how.pop("rpc"))
        with Model(**how) as model:
            exercise(model)
    except LocalsteerError as error:
        return json.dumps({"message": error.message, "hint": error.hint}).encode()
    except Exception as error:  # whatever may come of a stranger's file here would come of it there
        return json.dumps({"message": f"{how['path']} cannot be used: {shown(error)}.", "hint": None}).encode()
    return b""


def exercise(model: Model) -> None:
    """Make prompts of a model, and compute a few tokens.

    Raises:
        LocalsteerError: it cannot.
    """
    with contextlib.suppress(TemplateError):  # which is told where one is made
        if model.chat_template is not None:
            model.chat_template.render([Message("user", "Hello")])
    _ = model.template_tokens, model.kv_bytes, model.description
    tokens = [*model.tokenize(_ALL_BYTES), *model.tokenize(_ALL_BYTES, special=False)] or [0]
    model.detokenize(tokens)
    with Context(model, n_ctx=N_UBATCH) as context:
        context.decode(Batch.of_one_sequence(tokens[:2], start=0))
        if model.n_layer > 1:
            context.set_control_vector(np.zeros((model.n_layer, model.n_embd), np.float32))
        context.decode(Batch.of_one_sequence(tokens[:1], start=len(tokens[:2])))
        context.logits(0)
