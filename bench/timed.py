"""localsteer, every answer of which is timed: `python -m bench.timed LOG COMMAND ...` appends a line of JSON for each.

For what runs in a terminal, where a command has nothing but the screen to say how long it took.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import Any

from localsteer.commands import main
from localsteer.engine.generate import Generator
from localsteer.engine.request import Answer


def _timed(log: str) -> None:
    generate, side_by_side = Generator.generate, Generator.side_by_side

    def write(answers: Sequence[Answer], seconds: float) -> None:
        tokens = [len(answer.tokens) for answer in answers]
        with open(log, "a", encoding="utf-8") as file:
            file.write(json.dumps({"tokens": tokens, "seconds": seconds}) + "\n")

    def one(*arguments: Any, **options: Any) -> Answer:
        answer = generate(*arguments, **options)
        write([answer], answer.timing.answer_seconds)
        return answer

    def several(*arguments: Any, **options: Any) -> list[Answer]:
        start = time.perf_counter()
        answers = side_by_side(*arguments, **options)
        write(answers, time.perf_counter() - start - max(answer.timing.prompt_seconds for answer in answers))
        return answers

    setattr(Generator, "generate", one)  # noqa: B010 (it is no assignment to a method for the checker of types)
    setattr(Generator, "side_by_side", several)  # noqa: B010


if __name__ == "__main__":
    _timed(sys.argv[1])
    main(sys.argv[2:])
