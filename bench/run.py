"""`make bench`: everything side by side in one run, into `bench/RESULTS.md` and `bench/results.json`.

Run as `python -m bench.run`. The first run compiles llama.cpp's programs (see `bench.tools`).
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from pathlib import Path

from bench import report
from bench.measure import MeasurementError, run_cli
from bench.prompts import write_prompt_files
from bench.sections import SECTIONS, Setting
from bench.tools import ToolsError
from localsteer.discovery import resolve_model
from localsteer.errors import LocalsteerError
from localsteer.llama.library import default_threads


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.run", description="Measure localsteer beside llama.cpp.")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="rounds of each section (default 5)")
    parser.add_argument("--only", choices=SECTIONS, help="measure one section, and leave the others as they are")
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error("--repeats must be at least 1")
    # As an exception, so that the program being measured and the temporary files do not outlive this one.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        _bench(options.repeats, options.only)
    except (ToolsError, MeasurementError, LocalsteerError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


def _bench(repeats: int, only: str | None) -> None:
    with tempfile.TemporaryDirectory(prefix="localsteer-bench-") as folder:
        setting = _prepare(Path(folder), repeats)
        shared = {"Model": setting.model.name, "Threads": str(setting.threads)}
        for name in [only] if only else SECTIONS:
            print(f"measuring: {name} ...", file=sys.stderr, flush=True)
            machine = report.describe_machine()
            section = SECTIONS[name](setting)
            print(report.section_text(section), flush=True)
            # At once: hours are not lost where a later section fails.
            report.record(Path(__file__).parent, name, report.measured(section, machine, shared, repeats), SECTIONS)


def _prepare(folder: Path, repeats: int) -> Setting:
    """The prompts, and a vector made from them, which also brings the model file into the page cache."""
    setting = Setting(
        model=Path(resolve_model("demo")),
        threads=default_threads(),
        repeats=repeats,
        folder=folder,
        prompts=write_prompt_files(folder),
        vector=folder / "vector.gguf",
    )
    run_cli(*setting.extract_arguments(setting.vector))
    return setting


if __name__ == "__main__":
    sys.exit(main())
