from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from localsteer.errors import ModelError
from localsteer.llama import library, rpc


@pytest.fixture
def with_rpc(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build that has the backend, as far as it says."""
    features = replace(library.build_features(), rpc=True)
    monkeypatch.setattr(library, "build_features", lambda: features)


@pytest.fixture
def stranger() -> Iterator[str]:
    """A server that hangs up on everybody."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def hang_up() -> None:
            while True:
                try:
                    listening.accept()[0].close()
                except OSError:
                    return

        threading.Thread(target=hang_up, daemon=True).start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"


def test_without_servers_no_backend_is_needed() -> None:
    rpc.connect([])


def test_a_build_without_the_backend_says_so() -> None:
    if library.build_features().rpc:
        pytest.skip("this build has it")
    with pytest.raises(ModelError, match=r"RPC.*docs/rpc\.md"):
        rpc.connect(["127.0.0.1:50052"])


@pytest.mark.usefixtures("with_rpc")
@pytest.mark.parametrize("server", ["here", ":50052", "here:", "here:fifty", "127.0.0.1:"])
def test_what_is_no_address_is_refused(server: str) -> None:
    with pytest.raises(ModelError, match="HOST:PORT"):
        rpc.connect([server])


@pytest.mark.usefixtures("with_rpc")
@pytest.mark.parametrize("port", ["1", "99999"])
def test_a_server_that_does_not_answer_is_named(port: str) -> None:
    with pytest.raises(ModelError, match=rf"127\.0\.0\.1:{port}"):
        rpc.connect([f"127.0.0.1:{port}"])


@pytest.mark.usefixtures("with_rpc")
def test_a_server_of_another_kind_does_not_end_the_process(stranger: str) -> None:
    with pytest.raises(ModelError, match=re.escape(stranger)):
        rpc.connect([stranger])
