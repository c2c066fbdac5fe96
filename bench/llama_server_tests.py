"""llama.cpp's own server tests, pointed at `localsteer serve`: what passes, and why the rest does not, in docs/compatibility.md.

`python -m bench.llama_server_tests` runs what has no result yet, writes the table and goes on where it was interrupted. The
control is llama-server itself with the same model: what it fails as well is the model's, not the server's. Each test starts a
server of its own: some 15 minutes on two cores, and as many for the control.
"""

from __future__ import annotations

import argparse
import json
import os
import re
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
LIMIT = 240  # seconds for a test: 20 where the machine does nothing else, far more beside other work
OTHER_MODEL = "What another model would say or count: llama-server with the demo model fails them too"
NOT_THERE = "Not there"
OTHERWISE = "Otherwise here, on purpose"
UNEXPLAINED = "Not explained"
# Chat templates that close the reasoning where nobody says `enable_thinking`.
_SILENT = ("deepseek-ai-DeepSeek-R1-Distill-Qwen-32B", "CohereForAI-c4ai-command-r7b-12-2024-tool_use", "Qwen-QwQ-32B")
# Why a test fails that fails for a reason of ours, by the beginning of its name.
REASONS = {
    "test_basic.py::test_server_slots": (
        NOT_THERE,
        "`--no-slots`: `/slots` tells how many places are taken, and nothing of requests",
    ),
    "test_basic.py::test_no_ui": (NOT_THERE, "`--no-ui`; llama-server was built without its page, and fails it too"),
    "test_basic.py::test_server_model_aliases_and_tags": (NOT_THERE, "`--tags`, and several names in `--alias`"),
    "test_chat_completion.py::test_chat_template_assistant_prefill": (
        NOT_THERE,
        "`--verbose`: a request asks for `__verbose` with `verbose`",
    ),
    "test_chat_completion.py::test_chat_template_continue_final_message_vllm_compat": (NOT_THERE, "`--verbose`, likewise"),
    "test_chat_completion.py::test_chat_template": (
        NOT_THERE,
        "`--verbose`, likewise; llama-server with the demo model fails it too",
    ),
    "test_chat_completion.py::test_chat_completion[None-Book-What is the best book-8-^ blue": (
        OTHERWISE,
        "a chat template that leaves out what the user said is refused",
    ),
    "test_chat_completion.py::test_invalid_chat_completion_req[messages7]": (
        OTHERWISE,
        "two messages of the assistant's at the end are no mistake: the answer goes on with the last",
    ),
    "test_completion.py::test_completion_prompt_cache": (
        OTHER_MODEL,
        "as many tokens as TinyLlama makes of the prompt",
    ),
    "test_completion.py::test_completion_response_fields": (OTHER_MODEL, "`<s>` before the prompt"),
    "test_completion.py::test_nocache_long_input_prompt": (
        OTHER_MODEL,
        "a text that is longer than the context in TinyLlama's tokens, not in the demo model's",
    ),
    "test_infill.py::test_infill_with": (OTHER_MODEL, "a vocabulary with tokens for filling in, and words of that model"),
    "test_tokenize.py::test_tokenize_with_bos": (OTHER_MODEL, "the token 1 before every text"),
    "test_completion.py::test_n_probs_post_sampling": (NOT_THERE, "`post_sampling_probs`, refused by its name"),
    "test_completion.py::test_n_probs_post_backend_sampling": (NOT_THERE, "`--backend_sampling`, and `post_sampling_probs`"),
    "test_embedding.py::test_embedding_mixed_input[-False]": (
        OTHER_MODEL,
        "tokens around an empty text, which is refused without",
    ),
    "test_embedding.py::test_embedding_pooling_none": (NOT_THERE, "`--pooling none`: an embedding is the mean of a text"),
    "test_security.py::test_access_static_assets_without_api_key": (NOT_THERE, "files of llama-server's own page"),
    "test_security.py::test_cors_options": (
        OTHERWISE,
        "`--allow-origin *` is answered by `*`, without credentials, and headers and methods by their names (`*` would not let "
        "`Authorization` through)",
    ),
    "test_security.py::test_cors_origins_localhost_rejects": (
        OTHERWISE,
        "a page that is not allowed is refused with 400, not answered with 200 and left to the browser",
    ),
    "test_security.py::test_cors_origins_defaults_to_localhost_with_tools_enabled": (
        NOT_THERE,
        "`--tools`, by which models run programs",
    ),
    "test_security.py::test_cors_proxy": (NOT_THERE, "`--ui-mcp-proxy`, which fetches addresses for pages"),
    "test_security.py::test_local_media_file": (NOT_THERE, "`--media-path`, and images at all"),
    **{
        f"test_template.py::test_reasoning[{template}-auto-": (
            OTHERWISE,
            "these templates do not let a model think that is told nothing (so transformers has it); llama-server tells it to, "
            "`serve` with `--think`",
        )
        for template in _SILENT
    },
}


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


def reason(ours: Result, control: Result | None) -> tuple[str, str]:
    """Why a test failed: a heading, and the reason in one line."""
    known = next((why for name, why in REASONS.items() if ours.test.startswith(name)), None)
    if known is not None:
        return known
    if control is not None and control.outcome == "failed":
        return OTHER_MODEL, _told(ours)
    option = re.search("localsteer serve has no (.*)", ours.said)
    return (NOT_THERE, f"`{option[1]}`") if option is not None else (UNEXPLAINED, _told(ours))


def table(ours: Mapping[str, Result], control: Mapping[str, Result]) -> str:
    """The results as Markdown: numbers by file, then every test that fails under the reason for it."""
    run = [result for result in ours.values() if result.outcome != "skipped"]
    # What llama-server fails as well says nothing about a server.
    fair = [one for one in run if one.test in control and control[one.test].outcome == "passed"]
    counts, passed = Counter(one.file for one in run), Counter(one.file for one in run if one.outcome == "passed")
    theirs, well = Counter(one.file for one in fair), Counter(one.file for one in fair if one.outcome == "passed")
    total, of_theirs = sum(passed.values()), sum(well.values())
    lines = [
        f"Of {len(run)} tests {total} pass ({total / max(len(run), 1):.0%}). With this model llama-server "
        f"passes {len(fair)} of them; of these {of_theirs} pass here ({of_theirs / max(len(fair), 1):.0%}).",
        "",
        "| tests | run | pass | llama-server passes | of these pass here |",
        "|---|--:|--:|--:|--:|",
    ]
    lines += [
        f"| `test_{name}.py` | {counts[name]} | {passed[name]} | {theirs[name]} | {well[name]} |" for name in sorted(counts)
    ]
    failed = [(*reason(one, control.get(one.test)), one) for one in run if one.outcome == "failed"]
    for heading in (NOT_THERE, OTHERWISE, UNEXPLAINED, OTHER_MODEL):
        told = [(one.test.partition("[")[0], why) for found, why, one in failed if found == heading]
        if told:
            lines += ["", f"**{heading}** ({len(told)})", ""]
        for name in sorted({name for name, _ in told}):
            whys = [why for other, why in told if other == name]
            shown = f"- `{name.removeprefix('test_')}`" + (f" ({len(whys)})" if len(whys) > 1 else "")
            lines.append(f"{shown}: {'; '.join(dict.fromkeys(whys))}")
    return "\n".join(lines)


def _told(result: Result) -> str:
    """In one line what was expected."""
    if pattern := re.search(r"match_regex\((['\"].*?['\"]),", result.message):
        return f"words such as `{pattern[1]}`"
    if counts := re.match(r"assert (\d+) == ([\d(* )]+)$", result.message.partition("\n")[0]):
        return f"{counts[2]} tokens, where the demo model has {counts[1]}"
    text = " ".join(result.message.partition("\n")[0].split())[:100]
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
