"""The questions that concepts are measured on: no concept and no calibration has seen them."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, cast

import yaml


def question_sets() -> dict[str, tuple[str, ...]]:
    """The measuring questions by the name of their set."""
    return {
        name: tuple(entry["question"] if isinstance(entry, dict) else entry for entry in entries)
        for name, entries in _file().items()
    }


def accepted_answers(question: str) -> tuple[str, ...]:
    """The words of which a right answer to a question of the set "facts" holds one."""
    return next(tuple(map(str, entry["answers"])) for entry in _file()["facts"] if entry["question"] == question)


@functools.cache
def _file() -> dict[str, list[Any]]:
    return cast(dict[str, list[Any]], yaml.safe_load(Path(__file__).with_name("questions.yaml").read_text(encoding="utf-8")))
