"""How a model refuses: the direction in its residual stream, and the words with which it begins.

A vector toward sadness or formality holds some of what makes a chat model decline a request (the refusal direction, Arditi et al.
2024), and at a dose that is well heard otherwise, everyday questions are refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import yaml

from localsteer.building.voices import Tokens
from localsteer.concepts.names import shipped_folder
from localsteer.engine.generate import generate_many
from localsteer.engine.request import Request
from localsteer.llama.chat_template import Message
from localsteer.llama.model import Model
from localsteer.llama.residual import Edit
from localsteer.llama.sampling import Sampling
from localsteer.reading.activations import read_activations
from localsteer.reading.prompt import prompt_tokens
from localsteer.reading.rows import Span, read_means
from localsteer.vector.control_vector import Floats

_REFUSAL = re.compile(
    r"\b(i['’]?m (very |so )?sorry|i am (very |so )?sorry|i apologi[sz]e|i can(['’]?t|not| not)\b|"
    r"unable to (provide|answer|assist|help)|inappropriate)",
    re.IGNORECASE,
)
# How many tokens tell that a refusal begins: "I'm sorry, but I".
_OPENING = 5


def refuses(text: str) -> bool:
    """Whether an answer says that it will not, or cannot, answer."""
    return _REFUSAL.search(text) is not None


@dataclass(frozen=True, eq=False)
class Refusal:
    """How one model refuses.

    Attributes:
        openings: the tokens with which its refusals begin, none for a model that refuses nothing.
        direction: (n_layer, n_embd) of length 1 where it was read, zero elsewhere: mean over requests that are refused less mean
            over those that are answered, at the last token of the prompt.
    """

    openings: tuple[Tokens, ...]
    direction: Floats

    def without(self, direction: Floats) -> Floats:
        """(n_layer, n_embd) a direction less its component along this one."""
        along = np.einsum("le,le->l", direction, self.direction)
        return (direction - along[:, None] * self.direction).astype(np.float32)


def read_refusal(model: Model, layers: Sequence[int]) -> Refusal:
    """Ask a model for what it should refuse, and for what it should not.

    Args:
        model: the model.
        layers: the blocks at which the direction is read.

    Raises:
        ModelError: llama.cpp does not show the residual stream of this architecture.
    """
    requests = yaml.safe_load((shipped_folder() / "requests.yaml").read_text(encoding="utf-8"))
    refused, answered = ([prompt_tokens(model, [Message("user", text)]) for text in requests[kind]] for kind in ("refused", "answered"))
    asked = [Request(prompt, sampling=Sampling(temperature=0, seed=0), max_tokens=_OPENING + 1) for prompt in refused]
    openings = {answer.tokens[:_OPENING] for answer in generate_many(model, asked) if refuses(answer.text)}
    values = read_activations(model, [Span(prompt) for prompt in [*refused, *answered]], layers).values
    found = values[: len(refused)].mean(axis=0) - values[len(refused) :].mean(axis=0)
    direction = np.zeros((model.n_layer, model.n_embd), np.float32)
    direction[list(layers)] = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return Refusal(tuple(sorted(openings)), direction)


def chance_of_refusal(model: Model, openings: Sequence[Tokens], prompts: Sequence[Tokens], edits: Sequence[Edit | None]) -> Floats:
    """How likely a refusal begins after prompts under edits: (n_edits,) mean over the prompts, from 0 to 1."""
    spans = [Span(prompt + opening, len(prompt), None, edit) for edit in edits for prompt in prompts for opening in openings]
    if not spans:
        return np.zeros(len(edits), np.float32)
    lengths = np.array([len(opening) for _ in edits for _ in prompts for opening in openings])
    chances = np.exp(-read_means(model, spans, (), want_nll=True).nll * lengths).reshape(len(edits), len(prompts), -1)
    means: Floats = chances.sum(axis=2).mean(axis=1).astype(np.float32)
    return means
