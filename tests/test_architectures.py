"""Every architecture that can be steered is read, and answers in a batch: elsewhere three stand for all (tests/conftest.py).

What can be baked into which, tests/export/test_bake.py tells.
"""

from __future__ import annotations

import numpy as np
import pytest

from localsteer.building.extraction import extract
from localsteer.concepts.contrast import Contrast, Pair, Prompt
from localsteer.engine.generate import generate_many
from localsteer.engine.request import Request
from localsteer.llama.model import Model
from localsteer.llama.residual import Edit
from localsteer.llama.sampling import Sampling
from tests.conftest import TinyModel, assert_greedy, plan_of, random_basis, random_edit, random_tokens, run_alone
from tests.tiny_models import ARCHITECTURES, RECURRENT_ARCHITECTURE


@pytest.fixture(params=[*ARCHITECTURES, RECURRENT_ARCHITECTURE])
def model(request: pytest.FixtureRequest, tiny_model: TinyModel) -> Model:
    return tiny_model(request.param)


def test_what_is_extracted_is_the_mean_difference(model: Model) -> None:
    sides = [[f"About {topic} I feel {word}." for topic in ("rain", "the sea", "my cat")] for word in ("happy", "awful")]
    pairs = tuple(Pair(Prompt((), one), Prompt((), other)) for one, other in zip(*sides, strict=True))
    vector = extract(model, Contrast("happy", "How it feels.", "happy", "awful", pairs, source=""))
    means = [
        np.mean([[rows[-1] for rows in run_alone(model, model.tokenize(text)).rows] for text in side], axis=0) for side in sides
    ]
    difference = means[0] - means[1]
    for layer, direction in vector.directions.items():
        lengths = np.linalg.norm(direction) * np.linalg.norm(difference[layer])
        assert direction @ difference[layer] > 0.999 * lengths


def test_answers_of_a_batch_are_steered_each_in_its_own_way(model: Model) -> None:
    stem = random_tokens(20, seed=1)
    added = random_edit(model, seed=5, norm=6.0)
    edits = (
        None,
        added,
        random_edit(model, seed=6, norm=6.0),
        Edit(np.zeros_like(added.added), {2: random_basis(model, 8, seed=7)}),
    )
    requests = [
        Request((*stem, *random_tokens(place, seed=place)), None if edit is None else plan_of(edit), Sampling(temperature=0), 8)
        for place, edit in enumerate(edits)
    ]
    for request, edit, answer in zip(requests, edits, generate_many(model, requests), strict=True):
        assert_greedy(model, request.prompt, answer.tokens, edit)
