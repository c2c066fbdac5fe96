"""A cap on steering: what is added ends where the residual stream has come as far along the vector as in a persona's own answers.

A control vector adds the same to every token. Here a token that lies there already gets nothing, and one on the way what it
lacks. Both are measured teacher-forced, on answers that had no part in saying how far that is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localsteer.building.own_answers import OwnAnswers
from localsteer.errors import CalibrationError
from localsteer.llama.context import Batch, Context
from localsteer.llama.model import Model
from localsteer.llama.residual import ResidualTap
from localsteer.reading.forced import Said
from localsteer.vector.calibration import OTHER, POLES, SIGN, Pole
from localsteer.vector.control_vector import ControlVector, Floats

# Times the dose of strength 1.
_CONSTANT = (0.2, 0.35, 0.5, 0.7, 1.0)
_CAPPED = (0.25, 0.5, 1.0, 4.0)
# Answers of each pole that are read; as many others say how far a persona's own go.
_READ = 4

Tokens = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class _Push:
    """What is done to one block's output: along a direction, up to a length, and not beyond a place."""

    direction: Floats
    length: float
    place: float
    first: int

    def rewrite(self, rows: Floats, kept: NDArray[np.intp] | None) -> None:
        steered = slice(self.first, None) if kept is None else kept >= self.first
        lacking = np.clip(self.place - rows[steered] @ self.direction, 0, self.length)
        rows[steered] += lacking[:, None] * self.direction


class _PushingTap(ResidualTap):
    """Adds what depends on where a token lies."""

    def push(self, pushes: Mapping[int, _Push]) -> None:
        self._edits = dict(pushes)  # type: ignore[arg-type]  # both rewrite rows in place
        self._set_wanted()


@dataclass(frozen=True, eq=False)
class _Told:
    """An answer of a persona, the bare question before which it is read again, and the prompt under which it was given."""

    bare: Tokens
    voiced: Tokens
    said: Said


def _run(
    model: Model, prompt: Tokens, said: Said, pushes: Mapping[int, _Push], look: Sequence[int] = ()
) -> tuple[Floats, Mapping[int, Floats]]:
    """(n, n_vocab) log probabilities at the n tokens of an answer, and (n, n_embd) at some layers, which they come from."""
    tokens, begin = (*prompt, *said.tokens), len(prompt) - 1
    tap = _PushingTap(model.n_layer, model.n_embd)
    tap.watch(look)
    tap.push(pushes)
    batch = Batch.of_one_sequence(tokens, start=0)
    batch.outputs[begin:] = 1
    with Context(model, n_ctx=len(tokens), n_ubatch=len(tokens), n_outputs=len(said.tokens) + 1, tap=tap) as context:
        context.decode(batch)
        logits = np.stack([context.logits(row) for row in range(begin, len(tokens) - 1)])
    logits -= logits.max(axis=1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return logits, {layer: tap.rows(layer)[-len(said.tokens) - 1 : -1] for layer in look}


@dataclass(frozen=True, eq=False)
class _Side:
    """A vector toward one pole."""

    lengths: Mapping[int, float]
    directions: Mapping[int, Floats]
    places: Mapping[int, float]

    @classmethod
    def of(cls, model: Model, rows: Floats, layers: Sequence[int], told: Sequence[_Told]) -> _Side:
        lengths = {layer: float(np.linalg.norm(rows[layer])) for layer in layers}
        directions: dict[int, Floats] = {layer: rows[layer] / np.float32(lengths[layer]) for layer in layers}
        seen = [_run(model, one.voiced, one.said, {}, layers)[1] for one in told]
        places = {layer: float(np.mean(np.concatenate([one[layer] for one in seen]) @ directions[layer])) for layer in layers}
        return cls(lengths, directions, places)

    def pushes(self, scale: float, *, capped: bool, first: int) -> dict[int, _Push]:
        return {
            layer: _Push(self.directions[layer], scale * length, self.places[layer] if capped else np.inf, first)
            for layer, length in self.lengths.items()
        }


def capped(model: Model, own: OwnAnswers, vector: ControlVector) -> dict[str, Any]:
    """By pole and by times the dose: [KL to the unsteered model, ratio] of a constant and of a capped push.

    The ratio is how much likelier the pole's own answers become than those of the other pole. Both are nats a token.

    Args:
        model: the model.
        own: answers of each persona.
        vector: a dosed vector.

    Raises:
        CalibrationError: a persona gives hardly any answers.
    """
    told = {
        pole: [
            _Told(bare, voiced, Said.of(answer.tokens, [entry.likeliest for entry in answer.logprobs]))
            for bare, voiced, answer in zip(own.voices.start[pole], own.voices.own[pole], own.answers[pole], strict=True)
            if answer.tokens
        ]
        for pole in POLES
    }
    if min(map(len, told.values())) <= _READ:
        raise CalibrationError(f"{model.name} answers too few questions to measure a cap.")
    read = {pole: told[pole][:_READ] for pole in POLES}
    plain = {pole: [_run(model, one.bare, one.said, {})[0] for one in read[pole]] for pole in POLES}

    def measure(side: _Side, pole: Pole, scale: float, *, is_capped: bool) -> list[float]:
        gains: dict[Pole, list[float]] = {"positive": [], "negative": []}
        kls = []
        for other in POLES:
            for one, before in zip(read[other], plain[other], strict=True):
                pushes = side.pushes(scale, capped=is_capped, first=len(one.bare) - 1)
                after = _run(model, one.bare, one.said, pushes)[0]
                places = range(len(one.said.tokens))
                gained = [one.said.found_by(at, after[at]) - one.said.found_by(at, before[at]) for at in places]
                gains[other].append(float(np.mean(gained)))
                kls.append(float(np.mean((np.exp(after) * (after - before)).sum(axis=1))))
        return [round(float(np.mean(kls)), 4), round(float(np.mean(gains[pole]) - np.mean(gains[OTHER[pole]])), 4)]

    record: dict[str, Any] = {}
    for pole in POLES:
        side = _Side.of(model, vector.at(SIGN[pole]).rows(model.n_layer), vector.layers, told[pole][_READ:])
        record[pole] = {
            "constant": {f"{scale:g}": measure(side, pole, scale, is_capped=False) for scale in _CONSTANT},
            "capped": {f"{scale:g}": measure(side, pole, scale, is_capped=True) for scale in _CAPPED},
        }
    return record


def at_equal_kl(record: Mapping[str, Any]) -> tuple[float, float, float]:
    """From what `capped` gives for a pole: a KL that both reach, at most that of strength 1, and the ratios of both there."""
    curves = {}
    for way, found in record.items():
        points = np.array(sorted([[0.0, 0.0], *found.values()]))
        curves[way] = (np.sqrt(points[:, 0]), points[:, 1])  # a KL grows with the square of a dose
    reached = min(curves["constant"][0][-1], curves["capped"][0][-1])
    constant, other = (float(np.interp(reached, *curves[way])) for way in ("constant", "capped"))
    return float(reached**2), constant, other
