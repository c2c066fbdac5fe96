"""What goes wrong around a program: its streams, its folders, its home, the clock, a model's file. `tests/kills` kills it.

Disks that are full or fail are in `files/test_atomic.py` and beside what writes, descriptors in `server/test_connections.py`,
memory in `llama/test_memory.py` and `engine/test_checks.py`.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from localsteer.engine.generate import Generator
from localsteer.engine.request import Request
from localsteer.errors import ModelError
from localsteer.llama.model import Model
from localsteer.llama.sampling import Sampling
from localsteer.vector.file import read_vector
from tests.commands.runner import assert_one_clear_line, run
from tests.conftest import TinyPath, random_tokens
from tests.kills.jobs import CONCEPT
from tests.policy.made import push

Capture = pytest.CaptureFixture[str]
ROOT = Path(__file__).parents[1]
GREEDY = Request(random_tokens(8, seed=1), sampling=Sampling(temperature=0), max_tokens=8)

posix = pytest.mark.skipif(os.name == "nt", reason="a shell's words for streams")


def in_shell(line: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A line of the shell, in which LS is localsteer."""
    own = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    told = line.replace("LS", f"{sys.executable} {ROOT / 'cli.py'}")
    return subprocess.run(
        ["bash", "-c", told],
        cwd=folder,
        env=own,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
        timeout=60,
    )


# Streams


@posix
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has it")
def test_an_output_that_cannot_be_written_is_one_line_and_an_error(tmp_path: Path) -> None:
    done = in_shell("LS history path > /dev/full", tmp_path)
    assert (done.returncode, done.stderr) == (1, "localsteer: The output cannot be written or read: No space left on device.\n")
    assert in_shell("LS generate Hello -m missing.gguf 2> /dev/full", tmp_path).returncode == 1


@posix
def test_closed_streams_are_as_empty_ones(tiny_path: TinyPath, tmp_path: Path) -> None:
    """And no file gets the number of one of them: what C code prints would go into it."""
    push(tmp_path)
    done = in_shell(f"LS chat -m {tiny_path('llama')} <&-", tmp_path)
    assert (done.returncode, done.stdout) == (0, "")
    assert "Traceback" not in done.stderr
    done = in_shell("LS vectors combine '2 push.gguf' -o twice.gguf <&- >&- 2>&-", tmp_path)
    assert done.returncode == 0
    once, twice = (read_vector(tmp_path / name) for name in ("push.gguf", "twice.gguf"))
    assert (twice.directions[1] == 2 * once.directions[1]).all()


@posix
def test_a_chat_whose_reader_has_gone_ends(tiny_path: TinyPath, tmp_path: Path) -> None:
    """Each of the answers would be too long to wait for."""
    (tmp_path / "asked.txt").write_text("One\n" * 1000)
    done = in_shell(f"LS chat -n 500 -m {tiny_path('llama')} < asked.txt | head -c 1", tmp_path)
    assert len(done.stdout) == 1
    assert "Traceback" not in done.stderr
    assert "ignored" not in done.stderr


@posix
def test_other_languages_are_read_where_the_locale_is_the_plain_one(tiny_path: TinyPath, tmp_path: Path) -> None:
    (tmp_path / "fête.yaml").write_text(CONCEPT.replace("I AM HERE", "JE SUIS PRÊT 大声"), encoding="utf-8")
    shared = f"-m {tiny_path('llama')} --no-dose"
    done = in_shell(f"LS extract fête.yaml -o fête.gguf {shared}", tmp_path, LANG="C", LC_ALL="C")
    assert done.returncode == 0, done.stderr
    assert "fête.gguf" in done.stdout
    assert "大声" in read_vector(tmp_path / "fête.gguf").provenance.source


# Folders


def test_without_a_home_it_is_said_what_to_set(capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs under the number of no user."""

    def nobody(path: str) -> str:
        return path

    for variable in ("HOME", "USERPROFILE", "XDG_CACHE_HOME", "XDG_DATA_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(os.path, "expanduser", nobody)
    for arguments in (("models", "list"), ("history", "list"), ("generate", "Hello")):
        assert_one_clear_line(run(capfd, *arguments), "home", "HOME")


@pytest.mark.parametrize("name", ["~nobody-of-that-name/v.gguf"])
def test_the_home_of_nobody_is_one_clear_line(name: str, tiny_path: TinyPath, tmp_path: Path, capfd: Capture) -> None:
    shared = ("-m", tiny_path("llama"))
    for arguments in (
        ("generate", "Hello", "-s", name),
        ("calibrate", name),
        ("vectors", "import", name, "-o", tmp_path / "x.gguf"),
    ):
        assert_one_clear_line(run(capfd, *arguments, *shared), name)


@posix
def test_a_folder_that_has_gone_is_one_clear_line(
    tiny_path: TinyPath, tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    vector = push(tmp_path)
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert_one_clear_line(run(capfd, "vectors", "combine", f"2 {vector}", "-o", "x.gguf"), "x.gguf")
    for command in ("knobs", "lora"):
        assert_one_clear_line(run(capfd, "export", command, vector, "-o", "x", "--no-verify", "-m", tiny_path("llama")), "x")
    assert run(capfd, "generate", "Hello", "-n", "2", "-s", vector, "-m", tiny_path("llama")).code == 0


# Time, and files that change


def test_a_clock_that_jumps_changes_no_answer(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    with Generator(tiny) as generator:
        expected = generator.generate(GREEDY)
    hours = itertools.cycle([0, 1e9, -1e9, 3600, -7200])
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + next(hours))
    with Generator(tiny) as generator:
        found = generator.generate(GREEDY)
    assert found.tokens == expected.tokens
    assert found.timing.tokens_per_second > 0


@posix
@pytest.mark.parametrize("change", ["removed", "replaced"])
def test_a_model_that_is_open_goes_on_without_its_file(change: str, tiny: Model, tiny_path: TinyPath, tmp_path: Path) -> None:
    path, other = tmp_path / "model.gguf", tmp_path / "other.gguf"
    path.write_bytes(tiny.path.read_bytes())
    other.write_bytes(tiny_path("qwen2").read_bytes())
    with Model(path, threads=1) as model, Generator(model) as generator:
        if change == "removed":
            path.unlink()
        else:
            other.replace(path)
        found = generator.generate(GREEDY)
        # What is built from it now must not be taken for what belongs to the other file.
        with pytest.raises(ModelError, match=r"model\.gguf"):
            _ = model.fingerprint
    with Generator(tiny) as generator:
        assert found.tokens == generator.generate(GREEDY).tokens
