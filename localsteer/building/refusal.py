"""How a model refuses: the direction in its residual stream, and the words with which it begins.

A vector toward sadness or formality holds some of what makes a chat model decline a request (the refusal direction, Arditi et al.
2024), and at a dose that is well heard otherwise, everyday questions are refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import yaml
from numpy.typing import NDArray

from localsteer.building.voices import Tokens
from localsteer.concepts.names import shipped_folder
from localsteer.engine.generate import generate_many
from localsteer.engine.request import Request
from localsteer.errors import ModelError
from localsteer.llama.chat_template import Message
from localsteer.llama.model import Model
from localsteer.llama.residual import Edit
from localsteer.llama.sampling import Sampling
from localsteer.reading.activations import read_activations
from localsteer.reading.kept import KeptPrompts
from localsteer.reading.prompt import answer_prompt
from localsteer.reading.rows import read_means
from localsteer.reading.span import Span
from localsteer.vector.control_vector import Floats

# Not every regret: "I'm sorry to hear that", "I can't wait" and "I can't help but smile" answer.
_REFUSAL = re.compile(
    r"\b(?:(?:sorry|apologi[sz]e),? but\b|must decline|"
    r"(?:can['’]?t|cannot|can not|won['’]?t|will not|unable to|not able to) (?:\w+ly )?"
    r"(?:assist|help(?! but| it)|provide|answer|respond|fulfil|comply|discuss|engage|create|write|support|do that|"
    r"tell you(?! how))|"
    r"(?:is|are|be|its) inappropriate|inappropriate (?:nature|content|request|question))",
    re.IGNORECASE,
)
# A refusal begins within so many tokens; up to the one at which it is one ("I'm sorry, but") is what is kept.
_OPENING = 16
# Directions of which more than this (cosine, median over the layers) is that of refusal are about refusing.
_ABOUT_REFUSING = 0.5
LESS_REFUSAL = ", less refusal"
"""What the method of a vector without its refusal component ends with."""
# Of the requests, those that are answered to learn how refusals begin.
_ASKED = 6
# Both of models by their content; directions layer by layer.
_OPENINGS: dict[str, tuple[Tokens, ...]] = {}
_DIRECTIONS: dict[tuple[str, int], Floats] = {}
# How a model that refuses what it should declines other things as well: at a dose that only "I'm sorry, but" had limited, formal
# on Qwen2.5-Coder 1.5B was "unable to provide a description of a garden" and the like for 9 of 20 questions.
_USUAL = tuple(
    f"{who}{what}"
    for who in ("I", "As an AI language model, I", "As an artificial intelligence language model, I")
    for what in (" cannot", " am unable to")
)
# An opening that has become less likely than this is not read on, and counts for nothing. On Qwen2.5-Coder 1.5B that
# spares a fifth of the tokens under formal and cautious, which may refuse (1,314 of 1,592), and most under a pirate; chances of
# 0.02 to 0.09 come out at most 0.004 lower, where rounding alone moves them by as much.
_UNLIKELY = 0.003


def refuses(text: str) -> bool:
    """Whether an answer says that it will not, or cannot, answer."""
    return _REFUSAL.search(text) is not None


def refusal_openings(model: Model) -> tuple[Tokens, ...]:
    """The tokens with which a model's refusals begin: some requests that should be refused tell, and what is usual.

    None for a model that refuses none of them.

    Args:
        model: the model. What was found is kept for as long as the process lives.
    """
    content = model.fingerprint.content
    if content not in _OPENINGS:
        try:
            prompts = [answer_prompt(model, [Message("user", text)]) for text in _requests()["refused"][:_ASKED]]
        except ModelError:  # what it makes of questions is not known, and prompt files need no template
            return ()
        asked = [Request(prompt, sampling=Sampling(temperature=0, seed=0), max_tokens=_OPENING) for prompt in prompts]
        begun = {_until_refused(model, answer.tokens) for answer in generate_many(model, asked)}
        own = {tokens for tokens in begun if tokens}
        usual = {tuple(model.tokenize(text, add_special=False)) for text in _USUAL} if own else set()
        _OPENINGS[content] = _shortest(own | usual)
    return _OPENINGS[content]


def _shortest(openings: set[Tokens]) -> tuple[Tokens, ...]:
    """Without those that begin with another one: each refusal counts once."""
    return tuple(
        sorted(one for one in openings if not any(one[: len(other)] == other for other in openings if len(other) < len(one)))
    )


def _until_refused(model: Model, tokens: Tokens) -> Tokens:
    """The shortest beginning that is a refusal; nothing where there is none."""
    beginnings = (tokens[:count] for count in range(1, len(tokens) + 1))
    return next((some for some in beginnings if refuses(model.detokenize(list(some)))), ())


def read_refusal(model: Model, layers: Sequence[int]) -> Floats:
    """The direction of refusal (Arditi et al. 2024): mean over requests that are refused less mean over those that are answered.

    It is read at the last token of the prompt, where the model is about to answer.

    Args:
        model: the model. What was found is kept for as long as the process lives: what is built is dosed next.
        layers: block indices.

    Returns:
        (n_layers, n_embd) of length 1.

    Raises:
        ModelError: llama.cpp does not show the residual stream of this architecture.
    """
    content = model.fingerprint.content
    if unknown := [layer for layer in layers if (content, layer) not in _DIRECTIONS]:
        kinds = [[Span(answer_prompt(model, [Message("user", text)])) for text in texts] for texts in _requests().values()]
        values = read_activations(model, [span for spans in kinds for span in spans], unknown).values
        refused, answered = np.split(values, [len(kinds[0])])
        found = refused.mean(axis=0) - answered.mean(axis=0)
        unit = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        _DIRECTIONS.update({(content, layer): row for layer, row in zip(unknown, unit, strict=True)})
    return np.stack([_DIRECTIONS[content, layer] for layer in layers])


def without_component(directions: Floats, unit: Floats) -> Floats:
    """Directions less their component along others of length 1: (n_layers, n_embd) each."""
    left: Floats = (directions - np.einsum("le,le->l", directions, unit)[:, None] * unit).astype(np.float32)
    return left


def is_about_refusing(directions: Floats, unit: Floats) -> bool:
    """Whether directions, (n_layers, n_embd), are mostly those of refusal, which cannot be taken out of them then."""
    lengths = np.maximum(np.linalg.norm(directions, axis=1), np.finfo(np.float32).tiny)
    return bool(np.median(abs(np.einsum("le,le->l", directions, unit)) / lengths) > _ABOUT_REFUSING)


def _requests() -> dict[str, list[str]]:
    """Those that a chat model refuses, and then such that it answers."""
    found: dict[str, list[str]] = yaml.safe_load((shipped_folder() / "requests.yaml").read_text(encoding="utf-8"))
    return found


class Refusals:
    """How likely everyday questions are refused.

    Args:
        model: the model.
        openings: the tokens that its refusals begin with; none for a model that refuses nothing.
        prompts: the questions, as tokens.
        kept: the prompts, which are computed once.

    Attributes:
        openings: the same.
        unsteered: how likely without steering, mean over the questions, from 0 to 1.
    """

    def __init__(self, model: Model, openings: Sequence[Tokens], prompts: Sequence[Tokens], kept: KeptPrompts) -> None:
        self.openings = openings
        self._model = model
        self._prompts = prompts
        self._kept = kept
        self.unsteered = float(self.under([None])[0])

    def under(self, edits: Sequence[Edit | None]) -> NDArray[np.float64]:
        """The same under edits: (n_edits,)."""
        return chances_of_refusal(self._model, self.openings, self._prompts, edits, self._kept)


def chances_of_refusal(
    model: Model,
    openings: Sequence[Tokens],
    prompts: Sequence[Tokens],
    edits: Sequence[Edit | None],
    kept: KeptPrompts | None = None,
    least: float = _UNLIKELY,
) -> NDArray[np.float64]:
    """How likely a refusal begins after prompts under edits.

    Args:
        model: the model.
        openings: the tokens that refusals begin with, of which none begins with another one.
        prompts: as tokens.
        edits: what is done to the residual stream from the last token of the prompt on.
        kept: the prompts, where there are several passes.
        least: an opening that has become less likely than this is not read on, and counts for nothing.

    Returns:
        (n_edits,) mean over the prompts, from 0 to 1.
    """
    whole = [(edit, prompt, opening) for edit in edits for prompt in prompts for opening in openings]
    spans = [Span(prompt + opening, len(prompt), None, edit) for edit, prompt, opening in whole]
    nll = read_means(model, spans, (), want_nll=True, least=least, kept=kept).nll
    chances = np.exp(-nll * [len(opening) for _, _, opening in whole])
    of_prompts = chances.reshape(len(edits), len(prompts), len(openings)).sum(axis=2)
    means: NDArray[np.float64] = of_prompts.sum(axis=1) / max(1, len(prompts))
    return means
