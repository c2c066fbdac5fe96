"""llama.cpp's own server tests, pointed at `localsteer serve`: what passes, and why the rest does not, in docs/compatibility.md.

`python -m bench.llama_server_tests` runs what has no result yet, writes the table and goes on where it was interrupted. The
control is llama-server itself with the same model: what it fails as well is the model's, not the server's. Each test starts a
server of its own: some 15 minutes on two cores, and as many for the control.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.tools import ToolsError, llama_programs, source_folder
from bench.venvs import tool_folder, venv_python

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "compatibility.md"
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
# Those of the endpoints that there are. The others: rerankers, routers, LoRA files, images, speculation, slots saved to disk.
NAMES = (
    "basic",
    "chat_completion",
    "completion",
    "embedding",
    "ignore_eos",
    "infill",
    "security",
    "template",
    "tokenize",
    "tool_call",
)
# As llama.cpp's requirements.txt has them, without the plugins that run tests side by side.
REQUIREMENTS = (
    "pytest~=8.3.3",
    "filelock~=3.16",
    "numpy~=2.2.6",
    "openai~=2.14.0",
    "requests~=2.32.3",
    "wget~=3.2",
)
PORT = 8471  # far from what people run
LIMIT = 60  # seconds for a test: the longest that passes takes 20
WORDS = "the model's own words are compared; llama-server with the demo model fails it too"
MODEL = "another model's tokens are counted, or another kind of model is needed; llama-server with the demo model fails it too"
OPTION = "an option of llama-server that `localsteer serve` does not have"
ENDPOINT = "an endpoint that there is not"
OURS = "it answers otherwise than llama-server"


@dataclass(frozen=True)
class Result:
    """What came of a test.

    Attributes:
        test: `test_basic.py::test_name[parameters]`.
        outcome: passed, failed or skipped.
        message: why it failed.
        said: the end of what the test and the server have printed.
    """

    test: str
    outcome: str
    message: str
    said: str

    @property
    def file(self) -> str:
        return self.test.partition("::")[0].removeprefix("test_").removesuffix(".py")


def read_results(path: Path) -> dict[str, Result]:
    """By test; empty where nothing has been run."""
    results = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        told = json.loads(line)
        test = told["test"].removeprefix("unit/")
        results[test] = Result(test, told["outcome"], told["message"], told["said"])
    return results


def reason(ours: Result, control: Result | None) -> str:
    """Why a test failed, as far as it can be told from what was printed."""
    if "localsteer serve has no " in ours.said:
        return OPTION
    if control is not None and control.outcome == "failed":
        return WORDS if "match_regex" in control.message else MODEL
    if '"code": 404' in ours.said or "404" in ours.message or "Not Found" in ours.said:
        return ENDPOINT
    return OURS


def table(ours: Mapping[str, Result], control: Mapping[str, Result]) -> str:
    """The results as Markdown: numbers by file, then every test that fails under the reason for it."""
    run = [result for result in ours.values() if result.outcome != "skipped"]
    passed = Counter(one.file for one in run if one.outcome == "passed")
    # What llama-server fails as well says nothing about a server.
    compared = [one for one in run if one.test in control]
    fair = [one for one in compared if control[one.test].outcome == "passed"]
    theirs = Counter(one.file for one in fair)
    total, well = sum(passed.values()), sum(one.outcome == "passed" for one in fair)
    lines = [
        f"{total} of {len(run)} tests pass ({total / max(len(run), 1):.0%}). llama-server was given {len(compared)} of them "
        f"and passes {len(fair)}; of these {well} pass here ({well / max(len(fair), 1):.0%}).",
        "",
        "| tests | run | pass | llama-server |",
        "|---|--:|--:|--:|",
    ]
    counts = Counter(one.file for one in run)
    tried = {one.file for one in compared}
    lines += [
        f"| `test_{name}.py` | {counts[name]} | {passed[name]} | {theirs[name] if name in tried else 'not run'} |"
        for name in sorted(counts)
    ]
    failed = [(reason(one, control.get(one.test)), one) for one in run if one.outcome == "failed"]
    for why in sorted({why for why, _ in failed}, key=lambda why: (why in (WORDS, MODEL), why)):
        tests = [one for found, one in failed if found == why]
        lines += ["", f"**{len(tests)}: {why}**", ""]
        cases = Counter(one.test.partition("[")[0] for one in tests)
        for name, count in sorted(cases.items()):
            shown = f"- `{name.removeprefix('test_')}`" + (f" ({count})" if count > 1 else "")
            if why not in (WORDS, MODEL):
                shown += f": {_told(next(one for one in tests if one.test.partition('[')[0] == name))}"
            lines.append(shown)
    return "\n".join(lines)


def _told(result: Result) -> str:
    """In one line why it failed: what the server says it does not have, or what was expected."""
    for line in result.said.splitlines():
        if line.startswith("localsteer serve has no "):
            return f"`{line.removeprefix('localsteer serve has no ')}`"
    said = [line.strip() for line in result.said.splitlines() if line.strip().startswith('"message": ')]
    text = " ".join(result.message.partition("\n")[0].split())[:100] + (f" ({said[-1][11:][:120]})" if said else "")
    return f"`{text.replace('`', chr(39))}`"


def write_page(ours: Mapping[str, Result], control: Mapping[str, Result]) -> None:
    """Put the table between the marks of the page."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{table(ours, control)}\n{END}{after}", encoding="utf-8")


def run_tests(names: Sequence[str], results: Path, *, server: Path | None) -> None:
    """Run the tests that have no result in the file yet; `server` is a llama-server to run them with instead of ours."""
    llama_programs(["llama-server"])  # the tests come with its source
    python = venv_python("llama-server-tests", REQUIREMENTS)
    home = tool_folder("llama-server-tests")
    models = results.parent / "models"
    models.mkdir(parents=True, exist_ok=True)
    stand_in = results.parent / "stand-in"
    stand_in.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m bench.llama_server_stand_in "$@"\n')
    stand_in.chmod(0o755)
    environment = {
        **os.environ,
        "LLAMA_SERVER_BIN_PATH": str(stand_in),
        "PORT": str(PORT),
        "PYTHONPATH": str(Path(__file__).parent),
        "PYTHONDONTWRITEBYTECODE": "1",
        "COMPATIBILITY_RESULTS": str(results),
        "COMPATIBILITY_LIMIT": str(LIMIT),
        "COMPATIBILITY_MODELS": str(models),
        **({"COMPATIBILITY_SERVER": str(server)} if server is not None else {}),
    }
    tests = source_folder() / "tools" / "server" / "tests"
    command = [str(python), "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", "-p", "llama_server_plugin"]
    files = [f"unit/test_{name}.py" for name in names]
    with (home / "log.txt").open("w") as log:
        subprocess.run([*command, "-m", "not slow", *files], cwd=tests, env=environment, stdout=log, stderr=subprocess.STDOUT)
    print(log.name, file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; default: all")
    parser.add_argument("--control", action="store_true", help="run llama-server itself")
    parser.add_argument("--again", choices=["all", "failed"], help="forget these results first")
    parser.add_argument("--table", action="store_true", help="run nothing, write the table of what has been run")
    given = parser.parse_args()
    names = given.names or NAMES
    if unknown := set(names) - set(NAMES):
        parser.error(f"there are no tests of {', '.join(sorted(unknown))}")
    folder = ROOT / "build" / "compatibility"
    folder.mkdir(parents=True, exist_ok=True)
    files = {"ours": folder / "ours.jsonl", "control": folder / "control.jsonl"}
    chosen = files["control" if given.control else "ours"]
    if given.again is not None and chosen.exists():
        results = read_results(chosen)
        forgotten = {
            one.test for one in results.values() if one.file in names and (given.again == "all" or one.outcome == "failed")
        }
        lines = chosen.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if json.loads(line)["test"].removeprefix("unit/") not in forgotten]
        chosen.write_text("".join(kept), encoding="utf-8")
    try:
        if not given.table:
            server = llama_programs(["llama-server"])["llama-server"] if given.control else None
            run_tests(names, chosen, server=server)
    except ToolsError as error:
        print(f"bench.llama_server_tests: {error}", file=sys.stderr)
        return 1
    ours, control = read_results(files["ours"]), read_results(files["control"])
    write_page(ours, control)
    print(table(ours, control))
    return 0


if __name__ == "__main__":
    sys.exit(main())
