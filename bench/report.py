"""What was measured, as a page for a reader (`RESULTS.md`) and as raw numbers (`results.json`), section by section."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil
from pydantic import TypeAdapter

from bench.measure import Comparison, Section, Series

_INTRODUCTION = """\
# localsteer against llama.cpp's own programs

Written by `make bench`, or a section at a time by `python -m bench.run --only NAME`; edits are lost. The programs of
llama.cpp were built from the source inside the installed llama-cpp-python, so both sides run the same llama.cpp with the
same compiler flags.

Each figure is the median of some rounds (smallest to largest in brackets). The two sides take turns within a
round, and the ratio is the median of the ratios of the rounds: when something else uses the machine, it slows both.
"""


def describe_machine() -> dict[str, str]:
    """The machine and the versions, without anything that names its user."""
    cores = f"{psutil.cpu_count(logical=False)} physical, {psutil.cpu_count()} logical"
    return {
        "CPU": _cpu_name(),
        "Cores": cores,
        "Memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "System": _system_name(),
        "Python": platform.python_version(),
        "llama-cpp-python": importlib.metadata.version("llama-cpp-python"),
        "localsteer": f"{importlib.metadata.version('localsteer')} ({_commit()})",
        "Load when it began": f"{os.getloadavg()[0]:.1f} (1-minute average; 0 is an idle machine)",
    }


def _commit() -> str:
    """The checkout that was measured, "-dirty" behind it where files differ from the commit."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude", "*"]
    answer = subprocess.run(command, capture_output=True, text=True)
    return answer.stdout.strip() or "not in a git checkout"


def _cpu_name() -> str:
    if platform.system() == "Darwin":
        answer = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True)
        return answer.stdout.strip() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _system_name() -> str:
    if platform.system() == "Darwin":
        return f"macOS {platform.mac_ver()[0]} ({platform.machine()})"
    try:
        name = platform.freedesktop_os_release()["PRETTY_NAME"]
    except OSError:
        name = platform.system()
    return f"{name} ({platform.machine()})"


@dataclass(frozen=True)
class Measured:
    """A section, and when and where it was measured: each can be measured by itself.

    Attributes:
        section: the results.
        facts: what `describe_machine` gave before it, the date, the model and the threads.
        repeats: rounds.
    """

    section: Section
    facts: dict[str, str]
    repeats: int


_MEASURED = TypeAdapter(dict[str, Measured])


def measured(section: Section, machine: dict[str, str], setting: dict[str, str], repeats: int) -> Measured:
    """A section that was measured today."""
    return Measured(section, {"Date": datetime.now(UTC).strftime("%Y-%m-%d"), **machine, **setting}, repeats)


def record(folder: Path, name: str, result: Measured, order: Iterable[str]) -> None:
    """Put a section into both files, in the place of an older one of that name.

    Args:
        folder: where they are.
        name: of the section.
        result: what was measured.
        order: names of all sections, as the page has them.
    """
    file = folder / "results.json"
    results = _MEASURED.validate_json(file.read_bytes()) if file.exists() else {}
    results[name] = result
    results = {one: results[one] for one in order if one in results}
    parts = [_INTRODUCTION, *(f"{section_text(one.section)}\n{_provenance(one)}\n" for one in results.values())]
    (folder / "RESULTS.md").write_text("\n".join(parts), encoding="utf-8")
    file.write_bytes(_MEASURED.dump_json(results, indent=1) + b"\n")


def _provenance(one: Measured) -> str:
    facts = "; ".join(f"{key}: {value}" for key, value in one.facts.items())
    return f"<sub>{facts}; --repeats: {one.repeats}</sub>"


def section_text(section: Section) -> str:
    """The section in Markdown."""
    lines = [
        f"## {section.title}\n",
        f"{section.how}\n",
        "| measured | localsteer | compared with | ratio | target | met |",
        "|---|---|---|---|---|---|",
        *(_row(comparison) for comparison in section.comparisons),
    ]
    return "\n".join(lines) + "\n"


def _row(comparison: Comparison) -> str:
    cells = (
        comparison.what,
        _spread(comparison.ours, comparison.unit),
        f"{comparison.other}: {_spread(comparison.theirs, comparison.unit)}",
        f"**{_spread(comparison.ratio)}**, {comparison.ratio_is}",
        _target_text(comparison),
        _verdict(comparison),
    )
    return f"| {' | '.join(cells)} |"


def _verdict(comparison: Comparison) -> str:
    if comparison.target is None:
        return ""
    return "yes" if comparison.target.met_by(comparison.ratio.median) else "**no**"


def _target_text(comparison: Comparison) -> str:
    if comparison.target is None:
        return ""
    return f"{'at least' if comparison.target.at_least else 'at most'} {comparison.target.bound:g}"


def _spread(series: Series, unit: str = "") -> str:
    """The median, and from smallest to largest, with three digits or so: `2.31 s (2.25 to 2.60)`."""
    low, middle, high = (_digits(value) for value in (min(series.values), series.median, max(series.values)))
    return f"{middle} {unit}".rstrip() + f" ({low} to {high})"


def _digits(value: float) -> str:
    if value < 10:
        return f"{value:.2f}"
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"
