"""Which layers take answers furthest toward a persona for what they cost in coherence, to first order and without any instrument.

Run as `python -m bench.layers [CONCEPT...]`; writes `bench/LAYERS.md` from all that is measured (`bench/layers.json`), some ten
minutes a concept on one core. Every layer's direction is added alone, weakly, while the model reads answers that it gave before:
unsteered, and under both personas as a system prompt. Added along all layers with weights w, the log likelihood of the answers
under the positive persona rises over that of the others by g.w, and the coherence cost, the Kullback-Leibler divergence from
the unsteered model, is w.Fw / 2 (F: the Fisher information of the weights). What is far for its cost has a large
g.w / sqrt(w.Fw); the best weights there are go as the natural gradient (Amari 1998), F^-1 g.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.measure import MeasurementError
from bench.models import demo_model
from bench.quality.asking import requests
from bench.report import describe_machine
from localsteer.building.layers import middle_layers
from localsteer.building.library import load_vector
from localsteer.calibration.fits import Values
from localsteer.concepts.concept_file import parse_concept
from localsteer.concepts.contrast import Contrast
from localsteer.concepts.names import LibraryConcept, shipped_folder
from localsteer.engine.generate import generate_many
from localsteer.errors import LocalsteerError
from localsteer.llama.context import Batch, Context
from localsteer.llama.model import Model
from localsteer.reading.scoring import Scored
from localsteer.vector.calibration import DEFAULT_BUDGET, POLES, Pole
from localsteer.vector.control_vector import Floats

HERE = Path(__file__).parent
CONCEPTS = ("formal", "pirate")
ANSWERS = 16
MAX_TOKENS = 40
# Of the mean hidden norm at one layer: a half or a third of what a whole vector adds at strength 1, shared out among all.
STEP = 0.1
# Of the vocabulary, the likeliest tokens at a place: what lies behind them hardly adds to the divergence.
LIKELIEST = 4096
# Of the mean diagonal of the Fisher information, added to it: some hundred tokens tell little about 28 weights.
RIDGE = 0.3


@dataclass(frozen=True, eq=False)
class Response:
    """How one answer's tokens respond to each layer's direction.

    Attributes:
        number: of the answer: its question and its seed.
        under: the persona that it was given under; None for an unsteered one.
        gain: (n,) change of its log likelihood, nats a token for a unit of relative dose.
        information: (n, n) Fisher information, mean over its tokens.
    """

    number: int
    under: Pole | None
    gain: Values
    information: Values


@dataclass(frozen=True, eq=False)
class Sums:
    """Of some answers: the gain of the positive persona's over the negative one's, and the information of the unsteered ones."""

    gain: Values
    information: Values

    @classmethod
    def of(cls, responses: Sequence[Response]) -> Sums:
        """Means over the answers."""
        gain = {under: np.mean([one.gain for one in responses if one.under == under], axis=0) for under in POLES}
        information = np.mean([one.information for one in responses if one.under is None], axis=0)
        return cls(gain["positive"] - gain["negative"], information)

    def at_budget(self, weights: Values) -> float:
        """Gain in nats a token where the coherence cost is the budget."""
        return float(self.gain @ weights * np.sqrt(2 * DEFAULT_BUDGET / (weights @ self.information @ weights)))

    def best(self) -> Values:
        """(n,) the weights that gain most for their cost."""
        ridge = RIDGE * float(np.mean(np.diag(self.information)))
        return np.asarray(np.linalg.solve(self.information + ridge * np.eye(len(self.gain)), self.gain), np.float64)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.layers", description=__doc__.splitlines()[0])
    parser.add_argument("concepts", nargs="*", default=CONCEPTS)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    try:
        with Model(demo_model(), threads=options.threads) as model:
            for name in options.concepts:
                print(f"{name} ...", file=sys.stderr, flush=True)
                _record(name, _measure(model, name))
    except (LocalsteerError, MeasurementError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


def _measure(model: Model, name: str) -> dict[str, Any]:
    contrast = parse_concept(LibraryConcept(name, shipped_folder() / name, shipped=True).source(), name)
    provenance = load_vector(name, model).provenance
    estimate, hidden = provenance.estimate, provenance.hidden_norm
    assert estimate is not None
    assert hidden is not None
    layers = np.flatnonzero(estimate.any(axis=1))
    lengths = np.linalg.norm(estimate, axis=1)
    added = estimate[layers] * (STEP * hidden[layers] / lengths[layers])[:, None]
    responses = []
    for under in (None, *POLES):
        for number, scored in enumerate(_answers(model, contrast, under)):
            if len(scored.answer) > 1:
                responses.append(_respond(model, scored, number, under, layers.tolist(), added))
    middle, early = middle_layers(model.n_layer), middle_layers(model.n_layer, 1 / 8, 5 / 8)
    late = middle_layers(model.n_layer, 1 / 2, 1)
    choices = {
        "all": np.ones(len(layers)),
        "1/4 to 3/4": np.isin(layers, middle).astype(np.float64),
        "1/8 to 5/8": np.isin(layers, early).astype(np.float64),
        "1/2 to 1": np.isin(layers, late).astype(np.float64),
        "all, by difference": (lengths / hidden)[layers].astype(np.float64),
    }
    everything = Sums.of(responses)
    found = {choice: everything.at_budget(weights) for choice, weights in choices.items()}
    halves = [[one for one in responses if one.number % 2 == half] for half in (0, 1)]
    pairs = ((halves[0], halves[1]), (halves[1], halves[0]))
    found["all, weights of the other half"] = float(
        np.mean([Sums.of(one).at_budget(Sums.of(other).best()) for one, other in pairs])
    )
    return {"where": describe_machine(), "answers": len(responses), "gain": found}


def _answers(model: Model, contrast: Contrast, under: Pole | None) -> list[Scored]:
    """Sampled under a persona or none; to be read after the bare question."""
    ask = functools.partial(requests, model, contrast.held_out, count=ANSWERS, max_tokens=MAX_TOKENS, seed=0)
    systems = [] if under is None else [pair[POLES.index(under)] for pair in contrast.personas]
    answers = generate_many(model, ask(systems=systems))
    return [Scored(bare.prompt, answer.tokens) for bare, answer in zip(ask(), answers, strict=True)]


def _respond(model: Model, scored: Scored, number: int, under: Pole | None, layers: Sequence[int], added: Floats) -> Response:
    prompt, answer = list(scored.prompt), list(scored.answer)
    read, places = [prompt[-1], *answer[:-1]], np.arange(len(answer))
    n_ctx = len(prompt) + len(answer)
    with Context(model, n_ctx=n_ctx, n_seq=1, n_ubatch=n_ctx, n_outputs=len(answer)) as context:
        context.decode(Batch.of_one_sequence(prompt[:-1], start=0, last_output=False))

        def logits(layer: int | None, row: Floats | None) -> tuple[Floats, Floats]:
            """(n_tokens, n_vocab) and the logarithm of each row's sum of exponentials."""
            vector = None if layer is None else np.zeros((model.n_layer, model.n_embd), np.float32)
            if vector is not None:
                vector[layer] = row
            context.set_control_vector(vector)
            context.forget(0, len(prompt) - 1)
            batch = Batch.of_one_sequence(read, start=len(prompt) - 1)
            batch.outputs[:] = 1
            context.decode(batch)
            rows = np.stack([context.logits(place) for place in range(len(read))])
            top = rows.max(axis=1)
            return rows, top + np.log(np.exp(rows - top[:, None]).sum(axis=1))

        plain, plain_sum = logits(None, None)
        likeliest = np.argpartition(-plain, LIKELIEST, axis=1)[:, :LIKELIEST]
        odds = np.exp(np.take_along_axis(plain, likeliest, 1) - plain_sum[:, None])
        odds /= odds.sum(axis=1, keepdims=True)
        gain, changes = [], []
        for layer, row in zip(layers, added, strict=True):
            steered, steered_sum = logits(layer, row)
            gain.append(float(np.mean((steered - plain)[places, answer] - (steered_sum - plain_sum))) / STEP)
            change = np.take_along_axis(steered, likeliest, 1) - np.take_along_axis(plain, likeliest, 1)
            changes.append((change - (change * odds).sum(axis=1, keepdims=True)) * np.sqrt(odds) / STEP)
    flat = np.stack(changes).reshape(len(layers), -1)
    return Response(number, under, np.array(gain), (flat @ flat.T).astype(np.float64) / len(answer))


def _record(name: str, found: dict[str, Any]) -> None:
    file = HERE / "layers.json"
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    known[name] = found
    file.write_text(json.dumps(dict(sorted(known.items())), indent=1) + "\n", encoding="utf-8")
    choices = list(found["gain"])
    lines = [
        "# Which layers take answers furthest for what they cost",
        "",
        "Written by `python -m bench.layers`; edits are lost. Demo model. To first order, how far the log likelihood of answers "
        "under the concept's positive persona rises over that of answers under the negative one where the coherence cost is "
        f"{DEFAULT_BUDGET:g} nats a token: in nats a token, of {ANSWERS} answers of up to {MAX_TOKENS} tokens under each and as "
        "many unsteered ones. Each layer gets an equal relative dose unless it says otherwise. The last column weighs the layers "
        "by natural gradient, fitted on one half of the answers and measured on the other.",
        "",
        "| concept | " + " | ".join(choices) + " |",
        "|---|" + "---|" * len(choices),
        *(f"| {one} | " + " | ".join(f"{known[one]['gain'][choice]:.3f}" for choice in choices) + " |" for one in sorted(known)),
    ]
    (HERE / "LAYERS.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
