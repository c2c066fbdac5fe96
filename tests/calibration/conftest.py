from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from localsteer.calibration import interview
from localsteer.engine.generate import generate_many
from localsteer.engine.request import Answer, Request
from localsteer.llama.model import Model


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many answers were asked for, batch by batch."""
    counts: list[int] = []

    def counting(model: Model, requests: Sequence[Request], **options: Any) -> list[Answer]:
        counts.append(len(requests))
        return generate_many(model, requests, **options)

    monkeypatch.setattr(interview, "generate_many", counting)
    return counts
