from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from localsteer.llama import library
from localsteer.llama.context import Batch, Context
from localsteer.llama.model import Model
from localsteer.llama.threads import Apart, compute_apart, ended_by, interrupts_after
from tests.conftest import TinyPath


def test_what_is_computed_apart_leaves_no_thread_behind() -> None:
    before = threading.active_count()
    worker = compute_apart(threading.current_thread)
    assert worker is not threading.current_thread()
    assert not worker.is_alive()
    assert threading.active_count() == before


def test_what_fails_apart_fails_here() -> None:
    with pytest.raises(ZeroDivisionError):
        compute_apart(lambda: 1 / 0)


def decode_for_ever(model: Model, begun: threading.Event) -> None:
    with Context(model, n_ctx=8) as context:
        while True:
            context.clear()
            context.decode(Batch.of_one_sequence([1, 2, 3], start=0))
            begun.set()


@pytest.mark.skipif(os.name != "posix", reason="signals are raised otherwise there")
def test_ctrl_c_ends_what_is_computed_apart(tiny: Model) -> None:
    begun = threading.Event()

    def interrupt() -> None:
        begun.wait()
        os.kill(os.getpid(), signal.SIGINT)

    before = threading.active_count()
    interrupting = threading.Thread(target=interrupt)
    interrupting.start()
    with pytest.raises(KeyboardInterrupt):
        compute_apart(lambda: decode_for_ever(tiny, begun))
    interrupting.join()
    # The model may be closed now.
    assert threading.active_count() == before


@pytest.mark.skipif(os.name != "posix", reason="signals are raised otherwise there")
def test_ctrl_c_while_a_thread_starts_ends_it_too(tiny: Model) -> None:
    def interrupted_at_once() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        decode_for_ever(tiny, threading.Event())

    before = threading.active_count()
    for _ in range(30):
        with pytest.raises(KeyboardInterrupt):
            compute_apart(interrupted_at_once)
        assert threading.active_count() == before


def test_what_is_stopped_is_interrupted_between_two_decodes(tiny: Model) -> None:
    begun = threading.Event()
    apart = Apart(lambda: decode_for_ever(tiny, begun))
    assert begun.wait(60)
    apart.stop()
    with pytest.raises(KeyboardInterrupt):
        apart.result()


def test_what_does_not_stop_is_left_behind_and_computes_no_more(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("localsteer.llama.threads._PATIENCE", 0.0)
    go_on = threading.Event()

    def work() -> None:
        go_on.wait()
        Context(tiny, n_ctx=8).close()

    apart = Apart(work)
    apart.stop()
    go_on.set()
    with pytest.raises(KeyboardInterrupt):
        apart.result()


def test_a_call_into_llama_cpp_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it takes: the model is freed next."""
    monkeypatch.setattr("localsteer.llama.threads._PATIENCE", 0.0)
    inside = threading.Event()
    left: list[str] = []

    def work() -> None:
        with interrupts_after():
            inside.set()
            time.sleep(0.5)  # stands for a decode
            left.append("llama.cpp")
        left.append("the function")

    apart = Apart(work)
    assert inside.wait(60)
    apart.stop()
    assert left == ["llama.cpp"]


def test_what_follows_a_call_into_llama_cpp_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It frees the context, which the model must outlive, however long the call took."""
    monkeypatch.setattr("localsteer.llama.threads._PATIENCE", 0.4)
    inside, freed = threading.Event(), threading.Event()

    def work() -> None:
        try:
            with interrupts_after():
                inside.set()
                time.sleep(0.8)  # stands for a decode that takes longer than the patience
        finally:
            time.sleep(0.1)  # and for llama_free
            freed.set()

    apart = Apart(work)
    assert inside.wait(60)
    apart.stop()
    assert freed.is_set()


@pytest.mark.skipif(os.name != "posix", reason="signals are raised otherwise there")
def test_signals_wait_for_a_call_into_llama_cpp() -> None:
    """An exception in the middle of it could only be lost: its callbacks are called from C."""
    seen: list[str] = []

    def end(number: int, _frame: object) -> None:
        seen.append(signal.Signals(number).name)
        if number == signal.SIGTERM:
            raise SystemExit(143)

    def call() -> None:
        with interrupts_after() as wanted:
            assert not wanted()
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM)
            assert wanted()
            seen.append("done")

    before = {number: signal.signal(number, end) for number in (signal.SIGHUP, signal.SIGTERM)}
    try:
        with pytest.raises(SystemExit):
            call()
        assert seen == ["done", "SIGHUP", "SIGTERM"]
        assert signal.getsignal(signal.SIGTERM) is end
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_signals_without_a_handler_end_the_process_as_ever(tiny: Model) -> None:
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    with interrupts_after():
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_thread_gives_up_loading_a_model_when_that_is_wanted(tiny_path: TinyPath, monkeypatch: pytest.MonkeyPatch) -> None:
    """As that of a chat, where Ctrl-C is pressed while a large model is opened."""
    wanted, loaded = threading.Event(), list[object]()
    load = library.load().llama_model_load_from_file

    def load_unwanted(*given: object) -> object:
        wanted.set()
        loaded.append(load(*given))
        return loaded[-1]

    monkeypatch.setattr(library.load(), "llama_model_load_from_file", load_unwanted)

    def open_model() -> None:
        with pytest.raises(KeyboardInterrupt), ended_by(wanted.is_set):
            Model(tiny_path("llama"), threads=1)
        with Model(tiny_path("llama"), threads=1):
            loaded.append("afterwards")

    compute_apart(open_model)
    assert loaded[0] is None
    assert loaded[-1] == "afterwards"
