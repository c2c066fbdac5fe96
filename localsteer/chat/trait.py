"""What a trait looks like in an answer: how far each of its tokens lies along a vector, as a line and as a heat map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import yaml
from numpy.typing import NDArray
from rich.style import Style
from rich.text import Text

from localsteer.chat.screen import harmless
from localsteer.concepts.names import shipped_folder
from localsteer.llama.model import Model
from localsteer.reading.projection import project
from localsteer.vector.control_vector import ControlVector

BARS = "▁▂▃▄▅▆▇█"
# In standard deviations of everyday text: the ends of the line and of the colours. Single tokens go further now and then.
FULL = 2.5
# Everyday texts of many kinds that are read once for a vector; some 300 tokens, 0.3 s on SmolLM2-135M, 3 s on a 1.5B.
_TEXTS = 10
# The colours of a heat map, by steps from a little to far along the trait or against it, of the 256 that every terminal has: blue
# and red, which the colour-blind tell apart as well.
_WARM, _COLD = (224, 217, 210, 203, 160), (189, 153, 111, 69, 26)
_DARK = 3  # from this step on white letters are read better


@dataclass(frozen=True, eq=False)
class Trait:
    """An answer along a vector.

    Attributes:
        name: the vector's.
        pieces: the text of every token.
        along: (n_tokens,) how far each lies along the vector, in standard deviations of the tokens of everyday texts from their
            mean; the text is read unsteered, as it stands.
    """

    name: str
    pieces: tuple[str, ...]
    along: NDArray[np.float32]

    @property
    def mean(self) -> float:
        """Over the answer."""
        return float(self.along.mean()) if len(self.along) else 0.0

    def line(self, width: int) -> str:
        """The answer from its beginning to its end, so many characters at most: each the mean of the tokens it stands for."""
        parts = np.array_split(self.along, min(width, len(self.along))) if len(self.along) else []
        places = [(np.clip(part.mean() / FULL, -1, 1) + 1) / 2 * (len(BARS) - 1) for part in parts]
        return "".join(BARS[round(float(place))] for place in places)

    def heat(self) -> Text:
        """The answer, every word in the colour of how far it lies along the vector."""
        text = Text()
        for word, value in _words(self.pieces, self.along):
            text.append(harmless(word), _colour(value))
        return text

    def legend(self) -> Text:
        """What the colours mean."""
        text = Text()
        for value in np.linspace(-FULL, FULL, 5):
            text.append(f" {value:+.1f} ", _colour(float(value)))
        text.append(f"  along {self.name}, in standard deviations of everyday text; this answer {self.mean:+.2f}", "dim")
        return text


class TraitReader:
    """Reads answers of one model along vectors.

    Args:
        model: the model.
        n_ctx: most tokens of an answer.
    """

    def __init__(self, model: Model, n_ctx: int) -> None:
        self._model = model
        self._n_ctx = n_ctx
        self._everyday: dict[str, tuple[ControlVector, float, float]] = {}  # by name: the vector, mean and deviation

    def read(self, text: str, vectors: Mapping[str, ControlVector]) -> list[Trait]:
        """An answer along each of the vectors.

        Raises:
            LocalsteerError: a vector does not fit the model, or the residual stream cannot be read.
        """
        for name, vector in vectors.items():
            vector.check_fits(self._model.fingerprint, name=name)
        missing = {name: one for name, one in vectors.items() if not self._knows(name, one)}
        if missing:
            found = project(self._model, _everyday_texts(), missing, n_ctx=self._n_ctx)
            for name, vector in missing.items():
                values = np.concatenate([one.along[name][1:] + one.level[name] for one in found])
                self._everyday[name] = vector, float(values.mean()), max(float(values.std()), 1e-9)
        (answer,) = project(self._model, [text], vectors, n_ctx=self._n_ctx)
        pieces = _pieces(self._model, answer.tokens)
        traits = []
        for name in vectors:
            _, mean, deviation = self._everyday[name]
            along = (answer.along[name] + np.float32(answer.level[name] - mean)) / np.float32(deviation)
            along[:1] = 0  # nothing stands before it
            traits.append(Trait(name, pieces, along))
        return traits

    def _knows(self, name: str, vector: ControlVector) -> bool:
        """Whether everyday text was read along it; another object may be the same vector, loaded once more."""
        if name not in self._everyday:
            return False
        known = self._everyday[name][0].directions
        own = vector.directions
        return known.keys() == own.keys() and all(np.array_equal(known[layer], own[layer]) for layer in own)


def _everyday_texts() -> list[str]:
    passages = yaml.safe_load((shipped_folder() / "passages.yaml").read_text(encoding="utf-8"))
    return [passage["answer"] for passage in passages[:_TEXTS]]


def _pieces(model: Model, tokens: Sequence[int]) -> tuple[str, ...]:
    """Their texts; a character that several tokens make up stands with the last one of them."""
    pieces, held = [], b""
    for token in tokens:
        held += model.token_bytes(token)
        try:
            pieces.append(held.decode("utf-8"))
            held = b""
        except UnicodeDecodeError:
            pieces.append("")
    return tuple(pieces)


def _words(pieces: Sequence[str], along: NDArray[np.float32]) -> list[tuple[str, float]]:
    """Tokens joined to words, each with the mean of its tokens."""
    words: list[tuple[str, list[float]]] = []
    for piece, value in zip(pieces, along.tolist(), strict=True):
        if words and not piece[:1].isspace():
            words[-1] = words[-1][0] + piece, [*words[-1][1], value]
        else:
            words.append((piece, [value]))
    return [(word, sum(values) / len(values)) for word, values in words]


def _colour(value: float) -> Style:
    """On the colour itself; nothing where a word is as everyday text is."""
    step = round(min(abs(value) / FULL, 1.0) * len(_WARM)) - 1
    if step < 0:
        return Style()
    return Style(color="white" if step >= _DARK else "black", bgcolor=f"color({(_WARM if value > 0 else _COLD)[step]})")
