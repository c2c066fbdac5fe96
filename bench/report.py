"""What was measured, as a page for a reader (`RESULTS.md`) and as raw numbers (`results.json`)."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import psutil

from bench.measure import Comparison, Section, Series

_INTRODUCTION = """\
# localsteer against llama.cpp's own programs

Written by `make bench`; edits are lost. The programs of llama.cpp were built from the source inside the installed
llama-cpp-python, so both sides run the same llama.cpp with the same compiler flags.

Each figure is the median of {repeats} rounds (smallest to largest in brackets). The two sides take turns within a
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


def write(folder: Path, machine: dict[str, str], setting: dict[str, str], sections: Sequence[Section], repeats: int) -> None:
    """Write both files.

    Args:
        folder: where to.
        machine: what `describe_machine` gave before the first measurement.
        setting: what all sections share, such as the model and the threads.
        sections: the results.
        repeats: rounds of each section.
    """
    day = datetime.now(UTC).strftime("%Y-%m-%d")
    facts = {"Date": day, **machine, **setting}
    table = ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in facts.items())]
    parts = [_INTRODUCTION.format(repeats=repeats), "## Where\n\n" + "\n".join(table) + "\n"]
    parts += [section_text(section) for section in sections]
    (folder / "RESULTS.md").write_text("\n".join(parts), encoding="utf-8")
    document = {"where": facts, "repeats": repeats, "sections": [asdict(section) for section in sections]}
    (folder / "results.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


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
