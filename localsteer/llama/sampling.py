"""The sampler chain: how the next token is drawn from the logits."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from types import TracebackType

from localsteer.errors import LocalsteerError
from localsteer.llama import library
from localsteer.llama.context import Context

# The tokens that the repeat penalty looks back on; llama.cpp's default.
_PENALTY_WINDOW = 64
MAX_SEED = 2**32 - 2


@dataclass(frozen=True)
class Sampling:
    """Settings of the sampler chain. The defaults but for the temperature are llama.cpp's own.

    Attributes:
        temperature: 0 always takes the most likely token.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the most likely tokens up to this summed probability; 1 keeps all.
        min_p: drop tokens less likely than this share of the most likely one; 0 drops none.
        repeat_penalty: divide the logits of the last 64 tokens by this; 1 changes nothing.
        seed: of the random draw; None draws a new one each time.
    """

    temperature: float = 0.7
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    seed: int | None = None


def fresh_seed() -> int:
    """A random seed, to be shown to the user so that an answer can be had again."""
    return secrets.randbelow(2**31)


class Sampler:
    """llama.cpp's sampler chain with its state (random numbers, recent tokens). A context manager.

    Args:
        settings: `settings.seed` must be set; `fresh_seed` makes one.
        n_vocab: size of the vocabulary.

    Raises:
        LocalsteerError: the seed is missing or out of range.
    """

    def __init__(self, settings: Sampling, n_vocab: int) -> None:
        # llama.cpp takes 2**32 - 1 for "a random seed", and others modulo 2**32.
        if settings.seed is None or not 0 <= settings.seed <= MAX_SEED:
            raise LocalsteerError(f"{settings.seed} is no seed.", hint=f"Give a whole number from 0 to {MAX_SEED}.")
        self._llama = llama = library.load()
        self._greedy = settings.temperature <= 0 and settings.repeat_penalty == 1.0
        self._chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        if settings.repeat_penalty != 1.0:
            self._add(llama.llama_sampler_init_penalties(n_vocab, _PENALTY_WINDOW, settings.repeat_penalty, 0.0, 0.0))
        if settings.temperature <= 0:
            self._add(llama.llama_sampler_init_greedy())
            return
        if settings.top_k > 0:
            self._add(llama.llama_sampler_init_top_k(settings.top_k))
        if settings.top_p < 1:
            self._add(llama.llama_sampler_init_top_p(settings.top_p, 1))
        if settings.min_p > 0:
            self._add(llama.llama_sampler_init_min_p(settings.min_p, 1))
        self._add(llama.llama_sampler_init_temp(settings.temperature))
        self._add(llama.llama_sampler_init_dist(settings.seed))

    def __enter__(self) -> Sampler:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Free the chain."""
        if self._chain:
            self._llama.llama_sampler_free(self._chain)
            self._chain = None

    def sample(self, context: Context, row: int) -> int:
        """Draw the token that follows row `row` of the context's last decode, and remember it for the penalties."""
        if self._greedy:
            # What the chain would take; it copies all logits into a list of candidates first, 0.2 ms for 49k tokens.
            return int(context.logits(row).argmax())
        return int(self._llama.llama_sampler_sample(self._chain, context.handle, row))

    def accept(self, token: int) -> None:
        """Count a token that was drawn before among the recent ones."""
        self._llama.llama_sampler_accept(self._chain, token)

    def _add(self, part: object) -> None:
        self._llama.llama_sampler_chain_add(self._chain, part)
