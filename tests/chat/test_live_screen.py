from __future__ import annotations

import asyncio
import contextlib
import io
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from prompt_toolkit.data_structures import Size
from prompt_toolkit.output.vt100 import Vt100_Output

from localsteer.chat.live_screen import LiveScreen


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """The prompt's, in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.mark.parametrize("problem", [KeyboardInterrupt, OSError])
def test_a_chat_is_shown_again_after_what_covered_it_has_failed(
    problem: type[BaseException], loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.StringIO()
    screen = LiveScreen(Vt100_Output(written, lambda: Size(30, 100)), contextlib.nullcontext)  # type: ignore[arg-type]
    screen.application = SimpleNamespace(loop=loop, is_running=False, is_done=True)  # type: ignore[assignment]
    monkeypatch.setattr("localsteer.chat.live_screen.in_terminal", contextlib.AsyncExitStack)
    ended: Future[None] = Future()

    def meanwhile() -> None:
        screen.say("beneath")
        assert "beneath" not in written.getvalue()
        raise problem

    knobs: Any = SimpleNamespace(run_async=lambda: asyncio.sleep(60))
    with pytest.raises(problem):
        screen.run_full_screen(knobs, meanwhile, lambda: ended.set_result(None))
    screen.say("afterwards")
    assert written.getvalue().index("beneath") < written.getvalue().index("afterwards")
    ended.result(10)
