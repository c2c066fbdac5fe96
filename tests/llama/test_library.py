from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from localsteer.engine import generate
from localsteer.errors import LocalsteerError, ModelError
from localsteer.llama import library
from localsteer.llama.model import Model
from localsteer.reading import prefix_tree
from tests.conftest import TinyPath

HEAVY = {"llama_cpp", "numpy", "pydantic", "gguf"}


@pytest.fixture
def unloaded() -> Iterator[None]:
    """llama.cpp is looked for anew, in the test and after it."""
    library.load.cache_clear()
    yield
    library.load.cache_clear()


@pytest.fixture
def thread_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Cores are counted anew, in the test and after it, outside of any control group."""
    monkeypatch.setattr(library, "_OWN_GROUPS", tmp_path / "own-groups")
    monkeypatch.setattr(library, "_GROUPS", tmp_path / "groups")
    library.default_threads.cache_clear()
    yield
    library.default_threads.cache_clear()


@pytest.mark.parametrize(
    "code",
    ["import localsteer", "import localsteer.commands; localsteer.commands.main(['--help'])"],
    ids=["import", "help"],
)
def test_nothing_heavy_is_imported_before_it_is_needed(code: str) -> None:
    script = f"""
import atexit, sys
atexit.register(lambda: print("imported:", *sorted({HEAVY!r} & sys.modules.keys())))
{code}
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "imported:"
    assert done.stderr == ""


def test_every_public_name_can_be_had() -> None:
    import localsteer

    for name in localsteer.__all__:
        assert getattr(localsteer, name).__name__ == name
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = localsteer.no_such_name


@pytest.mark.parametrize("version", ["0.3.35", "0.2.99", "0.4.0", "1.0.0"])
@pytest.mark.usefixtures("unloaded")
def test_other_releases_of_llama_cpp_python_are_refused(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr("llama_cpp.__version__", version)
    with pytest.raises(LocalsteerError, match=rf"llama-cpp-python {version}.*>=0\.3\.36,<0\.4.*pip install"):
        library.load()


@pytest.mark.parametrize("version", ["0.3.36", "0.3.99"])
@pytest.mark.usefixtures("unloaded")
def test_tested_releases_of_llama_cpp_python_are_taken(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr("llama_cpp.__version__", version)
    assert library.load().__version__ == version


@pytest.mark.usefixtures("unloaded")
def test_a_missing_llama_cpp_python_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(LocalsteerError, match=r"llama-cpp-python.*pip install"):
        library.load()


def test_this_build_says_what_it_can_do() -> None:
    features = library.build_features()
    assert features.version == importlib.metadata.version("llama-cpp-python")
    assert features.system
    # What the rest of the package asks of one context.
    assert features.max_sequences >= max(prefix_tree.MAX_SEQUENCES, 2 * generate.MAX_PARALLEL)


def test_the_log_goes_to_logging_and_not_to_stderr(
    tiny_path: TinyPath, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, logger="localsteer.llama"), Model(tiny_path("qwen2"), threads=1):
        pass
    messages = [record.message for record in caplog.records if record.name == "localsteer.llama"]
    assert any("general.architecture" in message and "qwen2" in message for message in messages)
    assert all(message.strip() for message in messages)
    assert capfd.readouterr() == ("", "")


def test_a_line_that_llama_cpp_logs_in_pieces_is_one_message(caplog: pytest.LogCaptureFixture) -> None:
    module = library.load()
    route = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)()
    user_data = ctypes.c_void_p()
    module.llama_log_get(ctypes.byref(route), ctypes.byref(user_data))
    with caplog.at_level(logging.DEBUG, logger="localsteer.llama"):
        route(3, b"loading ", None)
        route(5, "the café".encode(), None)
        route(5, b"\n", None)
        route(1, b"and \xff on\n", None)
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("WARNING", "loading the café"),
        ("DEBUG", "and � on"),
    ]


def test_the_reason_of_a_failure_is_its_own(tiny_path: TinyPath, tmp_path: Path) -> None:
    content = tiny_path("llama").read_bytes()
    cut, alien = tmp_path / "cut.gguf", tmp_path / "alien.gguf"
    cut.write_bytes(content[:-1000])
    alien.write_bytes(content.replace(b"llama", b"alien"))
    with pytest.raises(ModelError) as of_cut:
        Model(cut, threads=1)
    with pytest.raises(ModelError, match="alien'") as of_alien:
        Model(alien, threads=1)
    assert "not within" in of_cut.value.message
    assert "not within" not in of_alien.value.message


# Cores


@pytest.mark.usefixtures("thread_count")
def test_threads_are_no_more_than_the_cores_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr("psutil.cpu_count", lambda logical: 64 if logical else 32)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(3)), raising=False)
    assert library.default_threads() == 3


@pytest.mark.usefixtures("thread_count")
def test_threads_are_one_for_each_physical_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr("psutil.cpu_count", lambda logical: 16 if logical else 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    assert library.default_threads() == 8


@pytest.mark.usefixtures("thread_count")
@pytest.mark.parametrize(
    ("own", "files", "threads"),
    [
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 8),
        ("0::/\n", {}, 8),
        ("0::/\n", {"cpu.max": "what is this\n"}, 8),
        ("", {"cpu.max": "200000 100000\n"}, 8),
        # The narrowest group on the way counts.
        ("0::/a/b\n", {"cpu.max": "max 100000", "a/cpu.max": "300000 100000", "a/b/cpu.max": "400000 100000"}, 3),
        # The container's own group is the root of what it sees.
        ("0::/docker/0123\n", {"cpu.max": "100000 100000"}, 1),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        (
            "5:memory:/docker/0123\n4:cpu,cpuacct:/docker/0123\n0::/\n",
            {"cpu,cpuacct/cpu.cfs_quota_us": "50000", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
            1,
        ),
        ("3:cpuset:/\n", {"cpuset/cpu.cfs_quota_us": "100000", "cpuset/cpu.cfs_period_us": "100000"}, 8),
    ],
)
def test_threads_are_no_more_than_a_containers_processors(
    own: str, files: dict[str, str], threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr("psutil.cpu_count", lambda logical: 16 if logical else 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    if own:
        (tmp_path / "own-groups").write_text(own)
    for name, content in files.items():
        file = tmp_path / "groups" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    assert library.default_threads() == threads


@pytest.mark.usefixtures("thread_count")
def test_a_machine_that_hides_its_cores_gets_all_that_python_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr("psutil.cpu_count", lambda logical: None)
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert library.default_threads() == 5


@pytest.mark.usefixtures("thread_count")
def test_apple_silicon_uses_its_performance_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    def sysctl(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert command == ["sysctl", "-n", "hw.perflevel0.physicalcpu"]
        return subprocess.CompletedProcess(command, 0, stdout="6\n")

    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(subprocess, "run", sysctl)
    assert library.default_threads() == 6


@pytest.mark.usefixtures("thread_count")
def test_an_intel_mac_uses_its_physical_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_such_key(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(subprocess, "run", no_such_key)
    monkeypatch.setattr("psutil.cpu_count", lambda logical: 8 if logical else 4)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert library.default_threads() == 4


@pytest.mark.parametrize(
    ("given", "seen"),
    [({}, "2000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
    ids=["none", "spins", "policy"],
)
def test_openmp_is_told_to_wait_briefly_unless_the_user_has_said_how(
    given: dict[str, str], seen: str | None, monkeypatch: pytest.MonkeyPatch, unloaded: None
) -> None:
    """Or a laptop on which something else runs decodes a token a second."""
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    met: list[str | None] = []

    def importing(_name: str) -> None:
        met.append(os.environ.get("GOMP_SPINCOUNT"))
        raise ImportError

    monkeypatch.setattr(importlib, "import_module", importing)
    with pytest.raises(LocalsteerError):
        library.load()
    assert met == [seen]
    assert os.environ.get("GOMP_SPINCOUNT") == given.get("GOMP_SPINCOUNT")
