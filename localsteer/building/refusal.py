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
from localsteer.llama.chat_template import Message
from localsteer.llama.model import Model
from localsteer.llama.residual import Edit
from localsteer.llama.sampling import Sampling
from localsteer.reading.prompt import prompt_tokens
from localsteer.reading.rows import Span, read_means

# Not every regret: "I'm sorry to hear that" and "I can't wait" answer.
_REFUSAL = re.compile(
    r"\b(?:(?:sorry|apologi[sz]e),? but\b|"
    r"(?:can['’]?t|cannot|can not|won['’]?t|unable to|not able to) (?:\w+ly )?"
    r"(?:assist|help|provide|answer|respond|fulfil|comply|discuss|engage|share|give|offer|create|write|tell|support|do that)|"
    r"inappropriate)",
    re.IGNORECASE,
)
# How many tokens tell that a refusal begins: "I'm sorry, but I".
_OPENING = 5


def refuses(text: str) -> bool:
    """Whether an answer says that it will not, or cannot, answer."""
    return _REFUSAL.search(text) is not None


def refusal_openings(model: Model) -> tuple[Tokens, ...]:
    """The tokens with which a model's refusals begin: some requests that should be refused tell. None for one that refuses none.

    Args:
        model: the model.
    """
    prompts = [prompt_tokens(model, [Message("user", text)]) for text in _requests()]
    asked = [Request(prompt, sampling=Sampling(temperature=0, seed=0), max_tokens=_OPENING) for prompt in prompts]
    begun = {answer.tokens[:_OPENING] for answer in generate_many(model, asked)}
    return tuple(sorted(tokens for tokens in begun if refuses(model.detokenize(list(tokens)))))


def _requests() -> Sequence[str]:
    found: list[str] = yaml.safe_load((shipped_folder() / "requests.yaml").read_text(encoding="utf-8"))["refused"]
    return found


def chances_of_refusal(
    model: Model, openings: Sequence[Tokens], prompts: Sequence[Tokens], edits: Sequence[Edit | None]
) -> NDArray[np.float64]:
    """How likely a refusal begins after prompts under edits: (n_edits,) mean over the prompts, from 0 to 1."""
    whole = [(edit, prompt, opening) for edit in edits for prompt in prompts for opening in openings]
    spans = [Span(prompt + opening, len(prompt), None, edit) for edit, prompt, opening in whole]
    if not spans:
        return np.zeros(len(edits))
    lengths = np.array([len(opening) for _, _, opening in whole])
    chances = np.exp(-read_means(model, spans, (), want_nll=True).nll * lengths)
    means: NDArray[np.float64] = chances.reshape(len(edits), len(prompts), len(openings)).sum(axis=2).mean(axis=1)
    return means
