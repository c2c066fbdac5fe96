"""Spread a model's layers over machines with llama.cpp's RPC backend.

Each machine runs `ggml-rpc-server` of the same release; what it offers becomes a device, to which layers are given by its free
memory. Reading and steering the residual stream work as on one machine.
"""

from __future__ import annotations

import contextlib
import ctypes
import socket
import subprocess
import sys
from collections.abc import Sequence

from localsteer.errors import ModelError
from localsteer.llama import library

# A machine in the same house answers in milliseconds.
_SECONDS_TO_CONNECT = 5.0
_PAGE = "docs/rpc.md says how to set up both sides."

_connected: set[str] = set()


def connect(servers: Sequence[str]) -> None:
    """Make RPC servers devices of this process: models that are opened from now on use them.

    Args:
        servers: each as HOST:PORT.

    Raises:
        ModelError: this build of llama.cpp has no RPC backend, or a server does not answer as one.
    """
    if not servers:
        return
    if not library.build_features().rpc:
        raise ModelError("This build of llama-cpp-python has no RPC backend.", hint=_PAGE)
    for server in servers:
        if server in _connected:
            continue
        _check(server)
        _register(server)
        _connected.add(server)


def connected() -> list[str]:
    """The servers that are devices of this process."""
    return sorted(_connected)


def _check(server: str) -> None:
    """Find out whether a server answers, from outside: llama.cpp ends the whole process where it does not."""
    host, _, port = server.rpartition(":")
    if not host or not port.isdecimal():
        raise ModelError(f'"{server}" is no RPC server.', hint="Write HOST:PORT, such as 192.168.1.20:50052.")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_SECONDS_TO_CONNECT):
            pass
    except (OSError, OverflowError) as error:
        raise ModelError(f"The RPC server {server} does not answer: {error}.", hint=_PAGE) from error
    with contextlib.suppress(subprocess.TimeoutExpired):
        tried = subprocess.run([sys.executable, "-m", __name__, server], capture_output=True, timeout=4 * _SECONDS_TO_CONNECT)
        if tried.returncode == 0:
            return
    raise ModelError(f"{server} does not speak llama.cpp's RPC, or another version of it.", hint=_PAGE)


def _register(server: str) -> None:
    """As `--rpc` of llama.cpp's programs (add_rpc_devices in common/arg.cpp)."""
    ggml = library.ggml_backends()
    backend = ggml.ggml_backend_reg_by_name(b"RPC")
    address = ggml.ggml_backend_reg_get_proc_address(backend, b"ggml_backend_rpc_add_server")
    add_server = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_char_p)(address)
    registered = add_server(server.encode())
    if not registered:
        raise ModelError(f"The RPC server {server} offers no device.", hint=_PAGE)
    ggml.ggml_backend_register(registered)


if __name__ == "__main__":
    library.load()
    _register(sys.argv[1])
