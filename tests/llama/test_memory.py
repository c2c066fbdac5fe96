from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from localsteer.llama import library
from localsteer.llama.memory import free_memory, keep_few_holes

GB = 1_000_000_000

# As Linux writes them: of version 2, and of version 1, whose first part is of this group without those within.
STAT_2 = f"""\
anon 1000000000
file 1800000000
kernel_stack 49152
file_mapped 12288
inactive_anon 999000000
active_anon 1000000
inactive_file {GB // 2}
active_file {GB // 2}
unevictable 0
workingset_refault_file 17
"""
STAT_1 = f"""\
cache 8192
rss 4096
inactive_anon 0
active_anon 4096
inactive_file 4096
active_file 4096
unevictable 0
hierarchical_memory_limit {3 * GB}
total_cache 1800000000
total_rss 1000000000
total_inactive_file {GB // 2}
total_active_file {GB // 2}
total_unevictable 0
"""


@pytest.fixture(autouse=True)
def _machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux with 8 of 16 GB free and 1 GB of swap, outside of any control group."""
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=8 * GB, total=16 * GB))
    monkeypatch.setattr(psutil, "swap_memory", lambda: SimpleNamespace(free=GB))
    monkeypatch.setattr(psutil, "RLIMIT_AS", 9, raising=False)
    limit(monkeypatch, -1)
    monkeypatch.setattr(library, "_OWN_GROUPS", tmp_path / "own-groups")
    monkeypatch.setattr(library, "_GROUPS", tmp_path / "groups")


def limit(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """As `ulimit -v` sets it for a process that has taken 1 GB."""
    process = SimpleNamespace(rlimit=lambda _kind: (size, -1), memory_info=lambda: SimpleNamespace(vms=GB))
    monkeypatch.setattr(psutil, "Process", lambda: process)


def test_it_is_what_the_machine_has_free() -> None:
    assert free_memory() == 8 * GB
    assert free_memory(swapping=True) == 9 * GB


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_where_swap_grows_as_it_is_needed_all_memory_counts(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", system)
    assert free_memory() == 8 * GB
    assert free_memory(swapping=True) == 16 * GB


def test_the_limit_of_the_process_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, 3 * GB)
    assert free_memory() == free_memory(swapping=True) == 2 * GB
    limit(monkeypatch, GB // 2)
    assert free_memory() == 0


@pytest.mark.parametrize(
    ("own", "files", "free"),
    [
        ("0::/", {"memory.max": "max", "memory.current": "5"}, 8),
        ("0::/", {"memory.max": f"{4 * GB}", "memory.current": f"{3 * GB}", "memory.stat": STAT_2}, 2),
        ("0::/", {"memory.max": f"{4 * GB}", "memory.current": f"{3 * GB}", "memory.stat": ""}, 1),
        ("0::/a/b", {"a/memory.max": f"{2 * GB}", "a/memory.current": "0", "a/memory.stat": ""}, 2),
        (
            "4:cpu:/\n5:memory:/docker/1",
            {"memory/memory.limit_in_bytes": f"{3 * GB}", "memory/memory.usage_in_bytes": "0", "memory/memory.stat": ""},
            3,
        ),
        (
            "5:memory:/",
            {
                "memory/memory.limit_in_bytes": f"{3 * GB}",
                "memory/memory.usage_in_bytes": f"{2 * GB}",
                "memory/memory.stat": STAT_1,
            },
            2,
        ),
        ("0::/", {}, 8),
        ("0::/", {"memory.max": "what is this", "memory.current": "0"}, 8),
    ],
)
def test_a_containers_memory_counts(own: str, files: dict[str, str], free: int, tmp_path: Path) -> None:
    (tmp_path / "own-groups").write_text(f"{own}\n")
    for name, content in files.items():
        file = tmp_path / "groups" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    assert free_memory() == free * GB


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda _name: SimpleNamespace())
    keep_few_holes()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_large_blocks_that_are_freed_go_back_to_the_system() -> None:
    """By default a block that was freed lets glibc keep all that are smaller."""
    program = """
import ctypes, psutil
import numpy as np
from localsteer.llama.memory import keep_few_holes
keep_few_holes()
process = psutil.Process()
np.ones(20 << 20, np.uint8)
before = process.memory_info().rss
blocks = [np.ones(size << 20, np.uint8) for size in range(2, 18)]
del blocks[::2]
print(sum(block.nbytes for block in blocks), process.memory_info().rss - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    held, grown = map(int, done.stdout.split())
    assert grown < held + (8 << 20)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_what_one_thread_frees_another_one_uses_again() -> None:
    """By default each thread has a heap of its own."""
    program = """
import threading, psutil
import numpy as np
from localsteer.llama.memory import keep_few_holes
keep_few_holes()
process = psutil.Process()
kept, turns = [], [threading.Event() for _ in range(7)]

def work(number):
    turns[number].wait()
    blocks = [np.ones(100_000, np.uint8) for _ in range(100)]
    kept.append(blocks.pop())  # at the end of the heap, which cannot shrink then
    del blocks
    turns[number + 1].set()

threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
for thread in threads:
    thread.start()
before = process.memory_info().rss
turns[0].set()
turns[6].wait()
print(process.memory_info().rss - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    # A heap for all held 10 MB, and heaps of their own 60.
    assert int(done.stdout) < 30e6
