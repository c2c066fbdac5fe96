"""The two real quantised models, and the vectors that the tests below share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.models import base_model, demo_model
from localsteer.building.extraction import extract
from localsteer.concepts.concept_file import load_concept
from localsteer.llama.model import Model
from localsteer.vector.control_vector import ControlVector
from localsteer.vector.file import write_vector

ROOT = Path(__file__).parents[2]
HAPPY = ROOT / "vectors" / "happy" / "concept.yaml"


@pytest.fixture(scope="session")
def demo_path() -> Path:
    return demo_model()


@pytest.fixture(scope="session")
def gemma_path() -> Path:
    return base_model()


@pytest.fixture(scope="session")
def demo(demo_path: Path) -> Iterator[Model]:
    with Model(demo_path) as model:
        yield model


@pytest.fixture(scope="session")
def gemma(gemma_path: Path) -> Iterator[Model]:
    with Model(gemma_path) as model:
        yield model


@pytest.fixture(scope="session")
def happy(demo: Model) -> ControlVector:
    return extract(demo, load_concept(HAPPY))


@pytest.fixture(scope="session")
def happy_file(happy: ControlVector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vectors") / "happy.gguf"
    write_vector(happy, path)
    return path
