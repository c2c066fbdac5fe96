"""Whether a mutant is caught: by the test file that mirrors its module, by those of its room, or by those that import it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from tests.mutants.places import Mutant
from tests.mutants.trial import Tree

By = Literal["mirror", "room", "others", ""]
# Seconds of a processor behind which no further test is begun, for the tests of the room and for all others.
_ROOM, _OTHERS = 10.0, 5.0
_NOT_ASKED = ("tests/mutants/", "tests/kills/", "tests/end_to_end/", "tests/bench/", "tests/clients/")


@dataclass(frozen=True)
class Verdict:
    """What came of a mutant.

    Attributes:
        by: what caught it; "" for nothing.
        test: that one.
        how: "failed", "hung", or "died".
    """

    by: By
    test: str = ""
    how: str = ""


class Court:
    """Tries mutants.

    Args:
        tree: where.
        reached: each test of the rooms, with its seconds and the functions that it calls.
    """

    def __init__(self, tree: Tree, reached: Mapping[str, tuple[float, frozenset[str]]]) -> None:
        self._tree, self._reached = tree, reached
        self._unfit: dict[str, bool] = {}

    def tests_of(self, mutant: Mutant) -> tuple[list[str], list[str]]:
        """Those of the mirrored file, and those of the room, that call the function; the fastest first."""
        name = f"{mutant.path}:{mutant.function}"
        ours = {
            test: seconds
            for test, (seconds, names) in self._reached.items()
            if test.startswith(f"tests/{mutant.room}/") and (not mutant.function or name in names)
        }
        mirror = f"tests/{mutant.room}/test_{mutant.path.rpartition('/')[2]}"
        fastest = sorted(ours, key=lambda test: ours[test])
        own = [test for test in fastest if test.startswith(f"{mirror}::")]
        return own, [test for test in fastest if not test.startswith(f"{mirror}::")]

    def judge(self, mutant: Mutant) -> Verdict:
        """Run tests until one fails."""
        mirror, room = self.tests_of(mutant)
        stages: tuple[tuple[By, list[str], float], ...] = (
            ("mirror", mirror, math.inf),
            ("room", room, _ROOM),
            ("others", self._importing(mutant), _OTHERS),
        )
        for by, tests, limit in stages:
            left = [test for test in tests if not self._unfit.get(test)]
            while left:
                ran = self._tree.run(left, mutated=(mutant.path, mutant.code), limit=limit)
                if not ran.failed:
                    break
                if by != "others" or self._is_fit(ran.failed):
                    return Verdict(by, ran.failed, ran.how)
                left = [test for test in left if not ran.failed.startswith(test)]
        return Verdict("")

    def _importing(self, mutant: Mutant) -> list[str]:
        """Files of tests elsewhere that name the module; the smallest first."""
        module = mutant.path.removesuffix(".py").replace("/", ".")
        package, _, name = module.rpartition(".")
        naming = re.compile(rf"{re.escape(module)}\b|from {re.escape(package)} import .*\b{name}\b")
        found = []
        for file in sorted((self._tree.root / "tests").rglob("test_*.py")):
            path = file.relative_to(self._tree.root).as_posix()
            if not path.startswith((*_NOT_ASKED, f"tests/{mutant.room}/")) and naming.search(file.read_text(encoding="utf-8")):
                found.append((file.stat().st_size, path))
        return [path for _, path in sorted(found)]

    def _is_fit(self, test: str) -> bool:
        """Whether it passes without a mutant."""
        if test not in self._unfit:
            self._unfit[test] = bool(self._tree.run([test]).failed)
        return not self._unfit[test]
