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
from bench.tools import ToolsError, llama_programs
from localsteer.discovery import resolve_model
from localsteer.errors import LocalsteerError
from localsteer.llama.library import default_threads


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.run", description="Measure localsteer beside llama.cpp.")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="rounds of each section (default 5)")
    parser.add_argument("--only", choices=SECTIONS, help="run one section and print it; no file is written")
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
    programs = llama_programs()
    machine = report.describe_machine()
    with tempfile.TemporaryDirectory(prefix="localsteer-bench-") as name:
        setting = _prepare(Path(name), programs, repeats)
        results = []
        for section in [only] if only else SECTIONS:
            print(f"measuring: {section} ...", file=sys.stderr, flush=True)
            results.append(SECTIONS[section](setting))
            print(report.section_text(results[-1]), flush=True)
    if only is None:
        shared = {"Model": setting.model.name, "Threads": str(setting.threads)}
        report.write(Path(__file__).parent, machine, shared, results, repeats)


def _prepare(folder: Path, programs: dict[str, Path], repeats: int) -> Setting:
    """The prompts, and a vector made from them, which also brings the model file into the page cache."""
    setting = Setting(
        model=Path(resolve_model("demo")),
        threads=default_threads(),
        repeats=repeats,
        programs=programs,
        folder=folder,
        prompts=write_prompt_files(folder),
        vector=folder / "vector.gguf",
    )
    run_cli(*setting.extract_arguments(setting.vector))
    return setting


if __name__ == "__main__":
    sys.exit(main())
