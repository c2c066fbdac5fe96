"""`python -m tests.mutants 300 [docs/reliability.md]`: so many small faults in the code, whether a test catches them, and that.

What came of a mutant is kept in build/mutants/: an interrupted run goes on, and survivors are tried again with new tests.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from handbook.pages import keep
from tests.mutants.places import ROOMS, Mutant, mutants
from tests.mutants.trial import Tree, get_ready, reach
from tests.mutants.verdict import Court, Verdict

MARKERS = ("<!-- mutants: `make mutants` -->", "<!-- end of the mutants -->")
ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "mutants"
# The share of survivors above which a run fails.
_MAY_LIVE = 0.15
REASONS = Path(__file__).with_name("reasons.yaml")


@dataclass(frozen=True)
class Reason:
    """Why a survivor may live: it is told by what it changes, so that it stays true where lines move."""

    path: str
    function: str
    was: str
    becomes: str
    why: str

    def is_of(self, mutant: Mutant) -> bool:
        """Whether it is this mutant's."""
        mine = self.path, self.function, self.was, self.becomes
        return mine == (mutant.path, mutant.function, mutant.was, mutant.becomes)


def reasons(path: Path = REASONS) -> list[Reason]:
    """Those that are written down."""
    return [Reason(**one) for one in yaml.safe_load(path.read_text(encoding="utf-8")) or []]


class Kept:
    """What came of mutants, as a line of JSON each.

    Args:
        path: of the file.
        tests: what stands for the tests as they are now: what survived other ones is not known. What was caught is taken to be
            caught still.
    """

    def __init__(self, path: Path, tests: str) -> None:
        self._path, self._tests = path, tests
        self._known: dict[str, Verdict] = {}
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            try:
                told = json.loads(line)
            except ValueError:  # the last one of a run that was killed
                continue
            verdict = Verdict(**told["verdict"])
            if verdict.by or told["tests"] == tests:
                self._known[told["key"]] = verdict

    def get(self, mutant: Mutant) -> Verdict | None:
        """What came of it, if that is known."""
        return self._known.get(mutant.key)

    def add(self, mutant: Mutant, verdict: Verdict) -> None:
        """Keep it."""
        self._known[mutant.key] = verdict
        where = {name: getattr(mutant, name) for name in ("path", "function", "line", "was", "becomes")}
        told: dict[str, Any] = {"key": mutant.key, "tests": self._tests, "verdict": asdict(verdict), **where}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(told) + "\n")


def report(found: Sequence[tuple[Mutant, Verdict]], known: Sequence[Reason]) -> str:
    """The table by room, and the survivors, as Markdown."""
    count, caught = len(found), sum(bool(verdict.by) for _, verdict in found)
    lines = [
        f"{date.today().isoformat()}, `python -m tests.mutants {count}`: {caught} of {count} mutants are caught "
        f"({100 * caught / max(count, 1):.1f} %).\n",
        "| room | mutants | by the mirrored tests | by others of the room | by others | by time or death | survivors | caught |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for room in (*ROOMS, "all"):
        some = [verdict for mutant, verdict in found if room in (mutant.room, "all")]
        by = [sum(one.by == stage and one.how == "failed" for one in some) for stage in ("mirror", "room", "others")]
        ended, left = sum(one.how not in ("", "failed") for one in some), sum(not one.by for one in some)
        share = f"{100 * (1 - left / len(some)):.0f} %" if some else ""
        lines.append(f"| {room} | {len(some)} | {' | '.join(map(str, by))} | {ended} | {left} | {share} |")
    survivors = sorted((mutant for mutant, verdict in found if not verdict.by), key=lambda one: (one.path, one.line))
    if survivors:
        lines += ["\nThe survivors:\n", "| where | was | becomes | why it lives |", "|---|---|---|---|"]
    for mutant in survivors:
        why = next((reason.why for reason in known if reason.is_of(mutant)), "no test looks at it yet")
        where = f"`{mutant.path.removeprefix('localsteer/')}`" + (f" `{mutant.function}`" if mutant.function else "")
        lines.append(f"| {where} | {_code(mutant.was)} | {_code(mutant.becomes)} | {why} |")
    return "\n".join(lines)


def _code(text: str) -> str:
    quoted = text.replace("|", "\\|")
    return f"`` {quoted} ``" if "`" in text else f"`{quoted}`"


def tests_state(root: Path) -> str:
    """What changes when a test does."""
    files = [file for file in sorted((root / "tests").rglob("*.py")) if file.parent.name != "mutants"]
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()[:16]


def main() -> int:
    """Try so many."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("count", type=int, help="how many mutants")
    parser.add_argument("pages", type=Path, nargs="*", metavar="PAGE", help="where that is told, too")
    options = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    kept = Kept(FOLDER / "verdicts.jsonl", tests_state(ROOT))
    get_ready()
    tree = Tree(ROOT, FOLDER / "copy")
    _say("what the tests call, once, on the code as it is")
    court = Court(tree, reach(tree, ROOMS, FOLDER / "reach.json", _say))
    chosen = list(itertools.islice(mutants(ROOT), options.count))
    untried, begun = [mutant for mutant in chosen if kept.get(mutant) is None], time.monotonic()
    for number, mutant in enumerate(untried, 1):
        verdict = court.judge(mutant)
        kept.add(mutant, verdict)
        left = (len(untried) - number) * (time.monotonic() - begun) / number / 60
        told = verdict.test.rpartition("/")[2] if verdict.by else f"SURVIVES: {mutant.was}  ->  {mutant.becomes}"
        _say(f"{number} of {len(untried)}, {left:.0f} min left: {mutant.path}:{mutant.line} {told}")
    found = [(mutant, kept.get(mutant) or Verdict("")) for mutant in chosen]
    known = reasons()
    told = report(found, known)
    print(told)
    for page in options.pages:
        keep(told, page, MARKERS)
    for reason in known:
        if not any(reason.is_of(mutant) and not verdict.by for mutant, verdict in found):
            _say(f"not needed here: the reason for {reason.path}: {reason.was}")
    return int(sum(not verdict.by for _, verdict in found) > _MAY_LIVE * len(found))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
