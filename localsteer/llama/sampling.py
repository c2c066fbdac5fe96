"""The sampler chain: how the next token is drawn from the logits."""

from __future__ import annotations

import ctypes
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localsteer.errors import LocalsteerError, ModelError
from localsteer.llama import library
from localsteer.llama.closing import Closing
from localsteer.llama.context import Context
from localsteer.llama.grammar import Grammar, Matcher
from localsteer.llama.model import Model

MAX_SEED = 2**32 - 2

# Rules a token out, unless all others are ruled out, too; with an infinite one llama.cpp would draw by numbers that are none.
RULED_OUT = -1e9


@dataclass(frozen=True)
class Sampling:
    """Settings of the sampler chain. The defaults but for the temperature are llama.cpp's own.

    Attributes:
        temperature: 0 always takes the most likely token.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the most likely tokens up to this summed probability; 1 keeps all.
        min_p: drop tokens less likely than this share of the most likely one; 0 drops none.
        typical_p: keep the tokens whose surprise is nearest to the mean one up to this summed probability (Meister et al. 2023,
            Locally Typical Sampling); 1 keeps all.
        repeat_penalty: divide the logits of the last tokens, the prompt's among them, by this; 1 changes nothing.
        frequency_penalty: take this from the logit of a token for each time it is among the last ones; 0 changes nothing.
        presence_penalty: likewise, once however often.
        repeat_last_n: how many tokens the penalties look back on; 0 for none.
        logit_bias: tokens with what is added to their logits, before anything else.
        min_tokens: tokens of the answer before which no end is drawn.
        ignore_eos: never draw an end.
        seed: of the random draw; None draws a new one each time.
    """

    temperature: float = 0.7
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repeat_last_n: int = 64
    logit_bias: tuple[tuple[int, float], ...] = ()
    min_tokens: int = 0
    ignore_eos: bool = False
    seed: int | None = None

    @property
    def penalties(self) -> tuple[float, float, float] | None:
        """Those of repetition, frequency and presence; None where none changes anything."""
        penalties = self.repeat_penalty, self.frequency_penalty, self.presence_penalty
        return penalties if penalties != (1.0, 0.0, 0.0) and self.repeat_last_n > 0 else None

    @property
    def filters(self) -> bool:
        """Whether any token is ever ruled out."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0 or self.typical_p < 1


def fresh_seed() -> int:
    """A random seed, to be shown to the user so that an answer can be had again."""
    return secrets.randbelow(2**31)


class Sampler(Closing):
    """llama.cpp's sampler chain with its state (random numbers, recent tokens, grammar). A context manager.

    Args:
        settings: `settings.seed` must be set; `fresh_seed` makes one.
        model: whose tokens are drawn.
        grammar: what they follow; None for nothing.
        recent: what was said before, the prompt for one; penalties look back on its last tokens, as those of llama-server do.
        anchored: draw only what the settings' filters (top-k, typical-p, top-p, min-p) keep of the unsteered model's predictions
            as well, as likely as the steered model has it (DExperts, Liu et al. 2021, cut by the base model; the plausibility
            constraint of Li et al. 2023, Contrastive Decoding). Where nothing is steered, these are the draws that are made
            anyway.

    Raises:
        LocalsteerError: the seed is missing or out of range.
    """

    def __init__(
        self,
        settings: Sampling,
        model: Model,
        grammar: Grammar | None = None,
        *,
        recent: Sequence[int] = (),
        anchored: bool = False,
    ) -> None:
        # llama.cpp takes 2**32 - 1 for "a random seed", and others modulo 2**32.
        if settings.seed is None or not 0 <= settings.seed <= MAX_SEED:
            raise LocalsteerError(f"{settings.seed} is no seed.", hint=f"Give a whole number from 0 to {MAX_SEED}.")
        self._llama = library.load()
        self._greedy = settings.temperature <= 0 and settings.penalties is None
        self._grammar = grammar.matcher() if grammar is not None else None
        self._bias = _bias_of(settings, model)
        # Where an end may not be drawn yet, it is ruled out by more than any bias would make up for.
        self._ends = list(model.end_tokens) if settings.min_tokens > 0 or settings.ignore_eos else []
        self._min_tokens = float("inf") if settings.ignore_eos else settings.min_tokens
        self._count = 0
        penalties, filters, draw = self._penalties(settings, model), self._filters(settings), self._draw(settings)
        self._chain = self._chain_of([*penalties, *([] if anchored else filters), *draw])
        self._filter = self._chain_of([*self._penalties(settings, model), *filters]) if anchored else None
        if settings.penalties is not None:
            for token in recent[-settings.repeat_last_n :]:
                self._remember(token)

    def close(self) -> None:
        """Free the chain."""
        if self._chain:
            for chain in self._chains:
                self._llama.llama_sampler_free(chain)
            self._chain = None

    def sample(self, context: Context, row: int, *, unsteered: int | None = None) -> int:
        """Draw the token that follows row `row` of the context's last decode, and remember it for what comes next.

        Args:
            context: where the logits are.
            row: those to draw by.
            unsteered: where `row` is steered and the sampler anchored, the logits of the unsteered model.

        Raises:
            ModelError: the answer cannot go on as the grammar wants, or the model predicts what are no numbers.
        """
        token = self._sampled(context, row, unsteered)
        # Where some are none, all are, as a rule; and a look at one of them costs nothing.
        if not np.isfinite(context.logits(row)[token]):
            hint = "The model's file is damaged, or a steering is far too strong."
            raise ModelError("The model's predictions are no numbers.", hint=hint)
        return token

    def _sampled(self, context: Context, row: int, unsteered: int | None) -> int:
        if self._grammar is None and self._filter is None and not self._is_biased:
            if self._greedy:
                # What the chain would take; it copies all logits into a list of candidates first, 0.2 ms for 49k tokens.
                return int(context.logits(row).argmax())
            return int(self._llama.llama_sampler_sample(self._chain, context.handle, row))
        logits = self._biased(context.logits(row))
        among = None if self._filter is None else self._plausible(logits)
        if among is not None and unsteered is not None:
            among = _in_both(among, self._plausible(self._biased(context.logits(unsteered))))
        token = self._drawn(_Candidates(logits) if among is None else _Candidates(logits[among], among))
        if self._grammar is not None and not self._grammar.allows(token):
            token = self._drawn_by(self._grammar, logits, among)
        self.accept(token)
        return token

    @property
    def is_complete(self) -> bool:
        """Whether the grammar lets nothing follow but an end."""
        return self._grammar is not None and self._grammar.is_complete

    def accept(self, token: int) -> None:
        """Count a token that was drawn before among the recent ones."""
        self._count += 1
        self._remember(token)
        if self._grammar is not None:
            self._grammar.accept(token)

    @property
    def _is_biased(self) -> bool:
        return bool(self._bias) or self._count < self._min_tokens

    def _biased(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """The same with what is added to them; a copy, for others read the model's own."""
        if not self._is_biased:
            return logits
        logits = logits.copy()
        for token, bias in self._bias.items():
            logits[token] += bias
        if self._count < self._min_tokens:
            logits[self._ends] = RULED_OUT
        return logits

    def _remember(self, token: int) -> None:
        for chain in self._chains:
            self._llama.llama_sampler_accept(chain, token)

    def _plausible(self, logits: NDArray[np.float32], among: NDArray[np.int32] | None = None) -> NDArray[np.int32]:
        """The tokens (of the whole vocabulary, or among these) that the filters keep, in the order that they leave them in."""
        candidates = _Candidates(logits) if among is None else _Candidates(logits[among], among)
        self._llama.llama_sampler_apply(self._filter, candidates.handle)
        return candidates.tokens

    def _drawn(self, candidates: _Candidates) -> int:
        self._llama.llama_sampler_apply(self._chain, candidates.handle)
        return candidates.selected

    def _drawn_by(self, grammar: Matcher, logits: NDArray[np.float32], among: NDArray[np.int32] | None) -> int:
        """What was drawn first was not allowed, as llama-server tries it: the whole vocabulary is asked only if it must be.

        What the grammar wants, the unsteered model need not find plausible; where it finds some of it so, that is taken.
        """
        allowed = grammar.allowed()
        if among is not None and (plausible := among[allowed[among]]).size:
            return self._drawn(_Candidates(logits[plausible], plausible))
        left = np.flatnonzero(allowed).astype(np.int32)
        if self._filter is not None:
            left = self._plausible(logits, left)
        return self._drawn(_Candidates(logits[left], left))

    @property
    def _chains(self) -> list[Any]:
        return [chain for chain in (self._chain, self._filter) if chain is not None]

    def _chain_of(self, parts: Sequence[Any]) -> Any:
        chain = self._llama.llama_sampler_chain_init(self._llama.llama_sampler_chain_default_params())
        for part in parts:
            self._llama.llama_sampler_chain_add(chain, part)
        return chain

    def _penalties(self, settings: Sampling, model: Model) -> list[Any]:
        if settings.penalties is None:
            return []
        return [self._llama.llama_sampler_init_penalties(model.n_vocab, settings.repeat_last_n, *settings.penalties)]

    def _filters(self, settings: Sampling) -> list[Any]:
        made = []
        if settings.top_k > 0:
            made.append(self._llama.llama_sampler_init_top_k(settings.top_k))
        if settings.typical_p < 1:
            made.append(self._llama.llama_sampler_init_typical(settings.typical_p, 1))
        if settings.top_p < 1:
            made.append(self._llama.llama_sampler_init_top_p(settings.top_p, 1))
        if settings.min_p > 0:
            made.append(self._llama.llama_sampler_init_min_p(settings.min_p, 1))
        return made

    def _draw(self, settings: Sampling) -> list[Any]:
        if settings.temperature <= 0:
            return [self._llama.llama_sampler_init_greedy()]
        assert settings.seed is not None
        return [self._llama.llama_sampler_init_temp(settings.temperature), self._llama.llama_sampler_init_dist(settings.seed)]


def _bias_of(settings: Sampling, model: Model) -> dict[int, float]:
    """What is added to the logits of which tokens.

    Raises:
        LocalsteerError: one is no token of the model.
    """
    bias: dict[int, float] = {}
    for token, value in settings.logit_bias:
        if not 0 <= token < model.n_vocab:
            raise LocalsteerError(f"{token} is no token of this model.", hint=f"It has the tokens 0 to {model.n_vocab - 1}.")
        bias[token] = bias.get(token, 0.0) + value
    return bias


def _in_both(steered: NDArray[np.int32], unsteered: NDArray[np.int32]) -> NDArray[np.int32]:
    """What both models find plausible; where they agree on nothing, what the unsteered one does."""
    both = steered[np.isin(steered, unsteered)]
    return both if len(both) else unsteered


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
    def tokens(self) -> NDArray[np.int32]:
        """Those that are left, in their present order."""
        return np.array([self._array.data[place].id for place in range(self._array.size)], np.int32)
