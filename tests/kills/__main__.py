"""`python -m tests.kills 200 [docs/reliability.md]`: so many kills, what came of them, and that written there."""

from __future__ import annotations

import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path

from handbook.pages import keep
from tests.kills.jobs import JOBS, Job, Setting, prepare
from tests.kills.killing import SIGNALS, Bench, Killed, get_ready

MARKERS = ("<!-- kills: `make faults` -->", "<!-- end of the kills -->")
_SEED = 20261129


def kills(count: int, jobs: Sequence[Job], setting: Setting, folder: Path) -> Iterator[tuple[Job, Bench, Killed]]:
    """So many kills over the commands, by each signal as often as by others.

    The moments of a command are spread over the time that it takes; every other kill comes right before it changes something on
    the disk, and those are spread over its changes.
    """
    get_ready()
    chance = random.Random(_SEED)
    shares = [count // len(jobs) + (place < count % len(jobs)) for place in range(len(jobs))]
    signals = [SIGNALS[place % len(SIGNALS)] for place in range(count)]
    chance.shuffle(signals)
    for job, share in zip(jobs, shares, strict=True):
        if not share:
            continue
        bench = Bench(setting, folder, job)
        timed = (share + 1) // 2
        for place in range(share):
            number = signals.pop()
            if place < timed or not bench.normal.changes:
                part = (place % timed + chance.random()) / timed
                yield job, bench, bench.kill(number, after=part * bench.normal.seconds)
            else:
                part = (place - timed + chance.random()) / (share - timed)
                yield job, bench, bench.kill(number, before=1 + int(part * bench.normal.changes))


def table(found: Sequence[tuple[Job, Bench, Killed]]) -> str:
    """What came of them, by command, as Markdown."""
    heads = [f"by {one.name.removeprefix('SIG')}" for one in SIGNALS]
    heads += ["right before a change", "too late", "torn", "litter", "not done again", "left or stuck"]
    lines = [f"| command | seconds | changes | {' | '.join(heads)} |", "|---|--:|--:" + "|--:" * len(heads) + "|"]
    for job in (*dict.fromkeys(job for job, _, _ in found), None):
        some = [killed for one, _, killed in found if job in (one, None)]
        normal = next((bench.normal for one, bench, _ in found if one is job), None)
        cells = ["", ""] if normal is None else [f"{normal.seconds:.1f}", str(normal.changes)]
        cells += [str(sum(one.signal == number for one in some)) for number in SIGNALS]
        cells.append(str(sum(one.moment.startswith("before") for one in some)))
        for attribute in ("late", "torn", "litter", "again", "behind"):
            cells.append(str(sum(bool(getattr(one, attribute)) for one in some)))
        lines.append(f"| {job.name if job is not None else 'all'} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    count = int(sys.argv[1])
    # A shell starts its background jobs with it ignored, and that is inherited.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    found, began = [], time.monotonic()
    with tempfile.TemporaryDirectory(prefix="localsteer-kills-") as folder:
        setting = prepare(Path(folder))
        for job, bench, killed in kills(count, JOBS, setting, Path(folder)):
            found.append((job, bench, killed))
            if killed.faults:
                print(f"{killed.job}, {killed.signal.name} {killed.moment}: {killed.faults}", file=sys.stderr, flush=True)
            if len(found) % 20 == 0:
                print(f"{len(found)} of {count} ({time.monotonic() - began:.0f} s)", file=sys.stderr, flush=True)
    faults = sum(bool(killed.faults) for _, _, killed in found)
    told = f"{date.today().isoformat()}, `python -m tests.kills {count}`: {count} kills, {faults} with a fault.\n\n{table(found)}"
    print(told)
    for page in map(Path, sys.argv[2:]):
        keep(told, page, MARKERS)
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
