"""Here, where llama.cpp is talked to, every architecture takes its turn."""

from __future__ import annotations

import pytest

from localsteer.llama.model import Model
from tests.conftest import TinyModel
from tests.tiny_models import ARCHITECTURES, RECURRENT_ARCHITECTURE


@pytest.fixture(params=[*ARCHITECTURES, RECURRENT_ARCHITECTURE])
def steerable(request: pytest.FixtureRequest, tiny_model: TinyModel) -> Model:
    """Each tiny model that can be steered."""
    return tiny_model(request.param)


@pytest.fixture(params=ARCHITECTURES)
def transformer(request: pytest.FixtureRequest, tiny_model: TinyModel) -> Model:
    """Each tiny model that can be steered, and whose sequences may share tokens and be cut short."""
    return tiny_model(request.param)
