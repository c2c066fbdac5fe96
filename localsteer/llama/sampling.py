"""The sampler chain: how the next token is drawn from the logits."""

from __future__ import annotations

import ctypes
import math
import secrets
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localsteer.errors import LocalsteerError, ModelError
from localsteer.llama import library
from localsteer.llama.context import Context
from localsteer.llama.model import Model

# The tokens that penalties look back on; llama.cpp's default.
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
        frequency_penalty: take this from the logit of a token for each time it is among the last 64; 0 changes nothing.
        presence_penalty: likewise, once however often.
        seed: of the random draw; None draws a new one each time.
    """

    temperature: float = 0.7
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int | None = None

    @property
    def penalties(self) -> tuple[float, float, float] | None:
        """Those of repetition, frequency and presence; None where none changes anything."""
        penalties = self.repeat_penalty, self.frequency_penalty, self.presence_penalty
        return penalties if penalties != (1.0, 0.0, 0.0) else None


def fresh_seed() -> int:
    """A random seed, to be shown to the user so that an answer can be had again."""
    return secrets.randbelow(2**31)


class Sampler:
    """llama.cpp's sampler chain with its state (random numbers, recent tokens, grammar). A context manager.

    Args:
        settings: `settings.seed` must be set; `fresh_seed` makes one.
        model: whose tokens are drawn.
        grammar: a GBNF grammar that they follow; None for none.

    Raises:
        LocalsteerError: the seed is missing or out of range, or llama.cpp cannot read the grammar.
    """

    def __init__(self, settings: Sampling, model: Model, grammar: str | None = None) -> None:
        # llama.cpp takes 2**32 - 1 for "a random seed", and others modulo 2**32.
        if settings.seed is None or not 0 <= settings.seed <= MAX_SEED:
            raise LocalsteerError(f"{settings.seed} is no seed.", hint=f"Give a whole number from 0 to {MAX_SEED}.")
        self._llama = llama = library.load()
        self._greedy = settings.temperature <= 0 and settings.penalties is None
        self._min_p = settings.min_p
        self._grammar = _Grammar(grammar, model) if grammar is not None else None
        self._chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        if settings.penalties is not None:
            self._add(llama.llama_sampler_init_penalties(model.n_vocab, _PENALTY_WINDOW, *settings.penalties))
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
            if self._grammar is not None:
                self._grammar.close()

    def sample(self, context: Context, row: int, *, unsteered: int | None = None) -> int:
        """Draw the token that follows row `row` of the context's last decode, and remember it for what comes next.

        Args:
            context: where the logits are.
            row: those of the steered model.
            unsteered: those of the unsteered one, where it has a say: `min_p` drops what either of them finds too unlikely
                (the plausibility constraint of Li et al. 2023, Contrastive Decoding; DExperts, Liu et al. 2021, cut by the base
                model likewise). Where nothing is steered, that is what `min_p` does anyway.

        Raises:
            ModelError: no token of the vocabulary goes on as the grammar wants.
        """
        plausible = None if unsteered is None else self._plausible(context.logits(unsteered))
        if self._grammar is not None:
            return self._sample_by(self._grammar, context.logits(row), plausible)
        if plausible is not None:
            return self._sample_among(plausible, context.logits(row))
        if self._greedy:
            # What the chain would take; it copies all logits into a list of candidates first, 0.2 ms for 49k tokens.
            return int(context.logits(row).argmax())
        return int(self._llama.llama_sampler_sample(self._chain, context.handle, row))

    def accept(self, token: int) -> None:
        """Count a token that was drawn before among the recent ones."""
        self._llama.llama_sampler_accept(self._chain, token)
        if self._grammar is not None:
            self._grammar.accept(token)

    def _plausible(self, logits: NDArray[np.float32]) -> NDArray[np.int32]:
        """The tokens that `min_p` keeps of these logits."""
        return np.flatnonzero(logits >= logits.max() + math.log(self._min_p)).astype(np.int32)

    def _sample_among(self, tokens: NDArray[np.int32], logits: NDArray[np.float32]) -> int:
        token = self._drawn(_Candidates(logits[tokens], tokens))
        self._llama.llama_sampler_accept(self._chain, token)
        return token

    def _drawn(self, candidates: _Candidates) -> int:
        self._llama.llama_sampler_apply(self._chain, candidates.handle)
        return candidates.selected

    def _sample_by(self, grammar: _Grammar, logits: NDArray[np.float32], plausible: NDArray[np.int32] | None) -> int:
        """Draw first and ask the grammar afterwards, as llama-server does: all of the vocabulary it is asked only if it must.

        What the grammar wants, the unsteered model need not find plausible.
        """
        token = self._drawn(_Candidates(logits) if plausible is None else _Candidates(logits[plausible], plausible))
        if not grammar.allows(token):
            candidates = _Candidates(logits)
            grammar.restrict(candidates)
            token = self._drawn(candidates)
            if not grammar.allows(token):
                raise ModelError("No token of the model's vocabulary goes on as the grammar wants.")
        self.accept(token)
        return token

    def _add(self, part: object) -> None:
        self._llama.llama_sampler_chain_add(self._chain, part)


class _Candidates:
    """A `llama_token_data_array`: tokens with their logits, which samplers filter and reorder.

    Args:
        logits: (n,) of the tokens.
        tokens: (n,) which ones; None for the whole vocabulary.
    """

    def __init__(self, logits: NDArray[np.float32], tokens: NDArray[np.int32] | None = None) -> None:
        llama = library.load()
        self._data: NDArray[Any] = np.zeros(len(logits), [("id", np.int32), ("logit", np.float32), ("p", np.float32)])
        self._data["id"] = np.arange(len(logits)) if tokens is None else tokens
        self._data["logit"] = logits
        pointer = ctypes.cast(self._data.ctypes.data, ctypes.POINTER(llama.llama_token_data))
        self._array = llama.llama_token_data_array(pointer, len(logits), -1, False)
        self.handle = ctypes.byref(self._array)

    @property
    def selected(self) -> int:
        """The token that a sampler has chosen."""
        return int(self._array.data[self._array.selected].id)

    @property
    def first_is_possible(self) -> bool:
        """Whether the first candidate was not ruled out."""
        return bool(np.isfinite(self._array.data[0].logit))


class _Grammar:
    """llama.cpp's grammar sampler.

    Raises:
        LocalsteerError: the grammar cannot be read.
    """

    def __init__(self, grammar: str, model: Model) -> None:
        self._llama = library.load()
        library.forget_errors()
        text = grammar.encode(errors="replace")
        # llama.cpp takes an empty one for none, and reads no further than a zero byte.
        whole = bool(text) and b"\0" not in text
        self._sampler = self._llama.llama_sampler_init_grammar(model.vocabulary, text, b"root") if whole else None
        if not self._sampler:
            reason = library.last_error("llama.cpp cannot read it")
            raise LocalsteerError(f"The grammar is not valid GBNF: {reason}.", hint="It needs a rule named root.")

    def close(self) -> None:
        self._llama.llama_sampler_free(self._sampler)

    def allows(self, token: int) -> bool:
        candidates = _Candidates(np.zeros(1, np.float32), np.array([token], np.int32))
        self.restrict(candidates)
        return candidates.first_is_possible

    def restrict(self, candidates: _Candidates) -> None:
        """Rule out what the grammar does not allow."""
        self._llama.llama_sampler_apply(self._sampler, candidates.handle)

    def accept(self, token: int) -> None:
        self._llama.llama_sampler_accept(self._sampler, token)
