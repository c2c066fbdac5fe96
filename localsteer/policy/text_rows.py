"""Activations of texts as a probe sees them in a chat: the mean over a message, or every token of an answer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from localsteer.engine.checks import default_context
from localsteer.engine.prefix_cache import KVCache
from localsteer.errors import PolicyError
from localsteer.llama.chat_template import Message
from localsteer.llama.context import Context
from localsteer.llama.model import Model
from localsteer.llama.residual import ResidualTap
from localsteer.reading.prompt import latest_message, prompt_tokens

# What a lone answer is taken to be an answer to: the template wants a question, and this one hints at nothing.
NEUTRAL_MESSAGE = "Go on."

Progress = Callable[[int, int], None]
"""Called with how many texts are read, and of how many."""
Texts = Sequence[tuple[str, str]]
"""A message and the answer to it."""


class Reader:
    """Reads activations, one text after the other; what their beginnings share is computed once. A context manager.

    Args:
        model: the model to read.
        layers: block indices; nothing is computed above the highest.

    Raises:
        ModelError: llama.cpp does not show the residual stream of this architecture.
    """

    def __init__(self, model: Model, layers: Collection[int]) -> None:
        self.model = model
        self.layers = tuple(sorted(layers))
        tap = ResidualTap(model.n_layer, model.n_embd)
        n_ctx = default_context(model)
        # The last block only shows the tokens that ask for logits, so an answer is read token by token there.
        self._cache = KVCache(Context(model, n_ctx=n_ctx, tap=tap))
        tap.watch(self.layers, stop=True)

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._cache.context.close()

    def prompt(self, message: str, layers: Collection[int] | None = None) -> NDArray[np.float32]:
        """Mean over the tokens of a message: (n_layers, n_embd).

        Args:
            message: the text.
            layers: those of the reader's layers that are wanted, not the last block; None for all of them.

        Raises:
            PolicyError: the message does not fit the context.
        """
        layers = self.layers if layers is None else tuple(sorted(layers))
        assert self.model.n_layer - 1 not in layers
        messages = [Message("user", message)]
        tokens = prompt_tokens(self.model, messages)
        start, stop = latest_message(self.model, messages)
        self._run(tokens[:start], "message")
        self._check_room(len(tokens), "message")
        # The parts of a chat: the last token by itself.
        size = self._cache.context.n_ubatch
        ends = [*range(start + size, len(tokens) - 1, size), len(tokens) - 1, len(tokens)]
        total = np.zeros((len(layers), self.model.n_embd), np.float32)
        for end in ends:
            place = len(self._cache.tokens)
            if place < min(end, stop):
                rows = self._rows_of(tokens[place:end], layers)
                total += rows[: stop - place].sum(axis=0)
        return total / np.float32(stop - start)

    def answer(self, message: str, answer: str) -> NDArray[np.float32]:
        """At every token of an answer: (n_tokens, n_layers, n_embd).

        Raises:
            PolicyError: the answer is empty, or does not fit the context.
        """
        prompt = self._prompt_tokens(message or NEUTRAL_MESSAGE)
        tokens = self.model.tokenize(answer, add_special=False, special=False)
        if not tokens:
            raise PolicyError("An answer is empty.", hint="Give each some text.")
        self._run(prompt, "message")
        return np.concatenate([self._rows_of(part, self.layers) for part in self._parts(tokens, len(prompt))])

    def tokens_of(self, answer: str) -> list[int]:
        """The tokens that `answer` reads."""
        return self.model.tokenize(answer, add_special=False, special=False)

    def _parts(self, tokens: Sequence[int], start: int) -> Iterator[Sequence[int]]:
        self._check_room(start + len(tokens), "answer")
        size = 1 if self.model.n_layer - 1 in self.layers else self._cache.context.n_ubatch
        for offset in range(0, len(tokens), size):
            yield tokens[offset : offset + size]

    def _rows_of(self, tokens: Sequence[int], layers: Sequence[int]) -> NDArray[np.float32]:
        self._cache.run(tokens, None)
        return np.stack([self._cache.rows(layer) for layer in layers], axis=1)

    def _prompt_tokens(self, message: str) -> tuple[int, ...]:
        return prompt_tokens(self.model, [Message("user", message)])

    def _run(self, tokens: Sequence[int], what: str) -> None:
        self._check_room(len(tokens) + 1, what)
        kept = self._cache.keep_common(tokens, [None] * len(tokens))
        for start in range(kept, len(tokens), self._cache.context.n_ubatch):
            self._cache.run(tokens[start : start + self._cache.context.n_ubatch], None)

    def _check_room(self, count: int, what: str) -> None:
        room = self._cache.context.n_ctx
        if count > room:
            raise PolicyError(
                f"A text is too long to be read: its {what} takes it to {count} tokens, and the context holds {room}.",
                hint="Shorten it.",
            )
