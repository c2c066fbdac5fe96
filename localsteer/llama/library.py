"""Load llama-cpp-python, route llama.cpp's log to `logging`, and say what this build can do."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import logging
import math
import os
import platform
import re
import subprocess
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil

from localsteer.errors import LocalsteerError, shown

# The struct layouts and function names that this package relies on were checked with these releases.
OLDEST_TESTED = (0, 3, 36)
FIRST_UNTESTED = (0, 4)

logger = logging.getLogger("localsteer.llama")
# Without a handler of its own Python prints warnings to stderr; the command line's -v adds one that shows them.
logging.getLogger("localsteer").addHandler(logging.NullHandler())

# enum ggml_log_level of ggml.h (the comment in llama-cpp-python's _logger.py shows an older one).
_LOG_LEVELS = {1: logging.DEBUG, 2: logging.INFO, 3: logging.WARNING, 4: logging.ERROR}
_recent_errors: deque[str] = deque(maxlen=8)


@dataclass(frozen=True)
class BuildFeatures:
    """What the installed build of llama.cpp can do."""

    version: str
    gpu: bool
    rpc: bool
    max_sequences: int
    system: str


@functools.cache
def load() -> ModuleType:
    """The `llama_cpp` module, imported and initialised once (0.3 s, so only when a model is opened).

    Raises:
        LocalsteerError: llama-cpp-python is missing, cannot be loaded, or is outside the tested releases.
    """
    try:
        with _short_spins():
            llama_cpp = importlib.import_module("llama_cpp")
    except (ImportError, OSError, RuntimeError) as error:
        raise LocalsteerError(
            f"llama-cpp-python cannot be loaded: {error}.",
            hint="Reinstall it with `pip install --force-reinstall --no-cache-dir llama-cpp-python`.",
        ) from error
    version = tuple(int(part) for part in llama_cpp.__version__.split(".")[:3] if part.isdigit())
    if not OLDEST_TESTED <= version < FIRST_UNTESTED:
        oldest, newest = (".".join(map(str, bound)) for bound in (OLDEST_TESTED, FIRST_UNTESTED))
        raise LocalsteerError(
            f"llama-cpp-python {llama_cpp.__version__} is outside the supported range >={oldest},<{newest}.",
            hint=f'Run `pip install "llama-cpp-python>={oldest},<{newest}"`.',
        )
    llama_cpp.llama_log_set(_log_callback(llama_cpp), ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    return llama_cpp


# The turns of libgomp's waiting loop. By default a thread that waits for another one spins for milliseconds: beside one busy
# program on two cores the demo model decoded a token in 120 ms, most of it spent waiting for a thread that had no core. It took
# 38 ms with 1,000 turns, 48 with 3,000, 69 with 10,000; on an idle machine 13.3 with 1,000, 13.1 with 2,000, 13.0 by default.
_SPINS = "2000"


@contextlib.contextmanager
def _short_spins() -> Iterator[None]:
    """Where OpenMP is loaded meanwhile, its threads soon sleep while they wait; unless the user has said how they should.

    Only for this process: programs that it starts later have their own way.
    """
    if "GOMP_SPINCOUNT" in os.environ or "OMP_WAIT_POLICY" in os.environ:
        yield
        return
    os.environ["GOMP_SPINCOUNT"] = _SPINS
    try:
        yield
    finally:
        del os.environ["GOMP_SPINCOUNT"]


@functools.cache
def _log_callback(llama_cpp: ModuleType) -> object:
    """The C callback, cached because ctypes callbacks must outlive their use."""
    level = logging.INFO
    line = ""

    def route(ggml_level: int, text: bytes, _user_data: object) -> None:
        nonlocal level, line
        # Level 5 continues the line before; level 0 has no severity of its own.
        level = _LOG_LEVELS.get(ggml_level, level)
        # Most are details that nobody asked for, 200 of them for each context: they need not even be decoded.
        if level < logging.ERROR and not logger.isEnabledFor(level):
            line = ""
            return
        line += text.decode("utf-8", errors="replace")
        if not line.endswith("\n"):
            return
        message, line = shown(line.strip()), ""  # it may quote a stranger's file
        # The cells of a context are those of all its sequences together: no single text is that long.
        if not message or "possible training context overflow" in message:
            return
        if level >= logging.ERROR:
            _recent_errors.append(message)
        logger.log(level, "%s", message)

    return llama_cpp.llama_log_callback(route)


def forget_errors() -> None:
    """Start afresh before a call whose failure `last_error` should explain."""
    _recent_errors.clear()


def last_error(default: str) -> str:
    """The first error that llama.cpp logged since `forget_errors`: later ones only say that loading failed."""
    if not _recent_errors:
        return default
    message = _recent_errors[0]
    # "llama_model_load: error loading model: tensor ..." reads better without the function's name.
    head, _, tail = message.partition(": ")
    return tail if tail and " " not in head else message


@functools.cache
def ggml_base() -> ctypes.CDLL:
    """libggml-base with the tensor functions of the evaluation callback declared.

    They work alike for CPU, Metal and RPC buffers, so no struct offset of ggml_tensor is needed.
    """
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    return _with_functions(
        "ggml-base",
        ggml_get_name=(ctypes.c_char_p, pointer),
        ggml_nelements=(ctypes.c_int64, pointer),
        ggml_backend_tensor_get=(None, pointer, pointer, size, size),
        ggml_backend_tensor_set=(None, pointer, pointer, size, size),
    )


@functools.cache
def ggml_backends() -> ctypes.CDLL:
    """The ggml library, with the functions that add a backend declared."""
    pointer, text = ctypes.c_void_p, ctypes.c_char_p
    return _with_functions(
        "ggml",
        ggml_backend_reg_by_name=(pointer, text),
        ggml_backend_reg_get_proc_address=(pointer, pointer, text),
        ggml_backend_register=(None, pointer),
    )


def _with_functions(name: str, **functions: Any) -> ctypes.CDLL:
    """A library of llama.cpp's with functions declared: for each the type of what it returns, then those of its arguments."""
    llama_cpp = load()
    # The loader finds them through libllama's own dependency. Windows does not search there; opening libggml-base by its
    # file name everywhere would map a second copy of it on Linux, where the wheel holds copies instead of links.
    library: ctypes.CDLL = llama_cpp.llama_cpp._lib
    if not all(hasattr(library, function) for function in functions):
        from llama_cpp._ctypes_extensions import load_shared_library

        library = load_shared_library(name, Path(str(llama_cpp.__file__)).parent / "lib")
    for function, (returned, *arguments) in functions.items():
        declared = getattr(library, function)
        declared.restype, declared.argtypes = returned, arguments
    return library


def build_features() -> BuildFeatures:
    """What this build of llama.cpp can do."""
    llama_cpp = load()
    return BuildFeatures(
        version=llama_cpp.__version__,
        gpu=bool(llama_cpp.llama_supports_gpu_offload()),
        rpc=bool(llama_cpp.llama_supports_rpc()),
        max_sequences=int(llama_cpp.llama_max_parallel_sequences()),
        system=llama_cpp.llama_print_system_info().decode("utf-8", errors="replace").strip(),
    )


@functools.cache
def default_threads() -> int:
    """Physical cores that this process may use; on Apple silicon the performance cores only.

    A second hyper-thread of a core adds nothing to matrix products, efficiency cores hold the fast ones back, and threads beyond
    a container's quota of processor time only use it up in waiting for each other.
    """
    if platform.system() == "Darwin":
        try:
            answer = subprocess.run(["sysctl", "-n", "hw.perflevel0.physicalcpu"], capture_output=True, text=True, check=True)
            return max(1, int(answer.stdout))
        except (OSError, ValueError, subprocess.CalledProcessError):
            pass  # An Intel Mac has no performance levels.
    allowed = [psutil.cpu_count(logical=False) or os.cpu_count() or 1]
    if hasattr(os, "sched_getaffinity"):
        allowed.append(len(os.sched_getaffinity(0)))
    if platform.system() == "Linux":
        allowed += _quotas()
    return max(1, min(allowed))


# Where Linux tells the groups of this process, and where they are by cgroups(7).
_OWN_GROUPS = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")


def control_groups(controller: str) -> Iterator[tuple[Path, int]]:
    """The folders of the control groups that this process is in, innermost first, and their version (1 or 2); none elsewhere.

    Args:
        controller: of version 1, such as "cpu"; version 2 has one tree for all.
    """
    try:
        groups = _OWN_GROUPS.read_text()
    except OSError:
        return
    # Version 1 names the controllers of each tree; version 2 has no name.
    for controllers, place in re.findall(rf"^\d+:(|(?:[^:]*,)?{controller}(?:,[^:]*)?):(.*)$", groups, re.MULTILINE):
        own = Path(place.lstrip("/"))
        # A container may see its own group as the root, while its path tells where the host has it.
        for group in (own, *own.parents):
            yield _GROUPS / controllers / group, 1 if controllers else 2


def _quotas() -> list[int]:
    """The processors that each control group of this process may use, as `docker run --cpus` sets them; a part counts as one."""
    quotas = (_quota(group, version) for group, version in control_groups("cpu"))
    return [quota for quota in quotas if quota is not None]


def _quota(group: Path, version: int) -> int | None:
    """Microseconds of processor time in each period, over the period, rounded up; None where there is no limit."""
    files = ("cpu.max",) if version == 2 else ("cpu.cfs_quota_us", "cpu.cfs_period_us")
    try:
        quota, period = " ".join((group / name).read_text() for name in files).split()
        return math.ceil(int(quota) / int(period)) if int(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):  # "max", or the controller is off
        return None
