"""The chat on a terminal: an input line that stays while the model answers, and a status line below it.

The prompt runs in the main thread; what it sends is worked on by a second one, so that there is always somebody who reads the
keys.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import signal
import threading
from collections import deque
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.filters import Condition, is_searching
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.formatted_text.base import AnyFormattedText
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.styles import Style

from localsteer.chat.completion import SessionCompleter
from localsteer.chat.knobs import warning
from localsteer.chat.live_screen import ANSWERING, KEPT_LINES, LiveScreen
from localsteer.chat.reflow import ReflowingRenderer, reflows
from localsteer.chat.session import STEP, Session
from localsteer.chat.terminal import LEAVES, handle, is_open
from localsteer.errors import LocalsteerError

logger = logging.getLogger(__name__)

# Signals that end a program; the terminal must not be left as a prompt has it.
_ENDS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
_STYLE = Style.from_dict(
    {
        "bottom-toolbar": "noreverse bg:default",
        "bar": "fg:ansibrightblack",
        "bar.steered": "fg:ansicyan",
        "bar.strong": "fg:ansiyellow bold",
        "bar.too-strong": "fg:ansired bold",
        "prompt": "bold",
        "waiting": "fg:ansibrightblack italic",
    }
)


class _Lines(FileHistory):
    """The lines of earlier chats. That they cannot be written ends no chat."""

    def store_string(self, string: str) -> None:
        """Keep a line."""
        with contextlib.suppress(OSError):
            super().store_string(string)


class Chat:
    """The prompt, its keys and its status line, and the thread that works on what it sends.

    Args:
        session: the chat; its screen is the `screen`.
        screen: where it is shown.
        history: a file with the lines of earlier chats; None keeps none.
    """

    def __init__(self, session: Session, screen: LiveScreen, history: Path | None) -> None:
        self._session = session
        self._screen = screen
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._waiting: deque[str] = deque()
        self._working = False
        self._doing = ""  # the line that is worked on
        self._left = False
        self._failure: BaseException | None = None
        self._notice = ""
        kept: History = _Lines(str(history)) if history is not None else InMemoryHistory()
        self._prompt: PromptSession[str] = PromptSession(
            self._message,
            multiline=True,
            prompt_continuation=lambda width, _line, _soft: " " * width,
            history=kept,
            completer=SessionCompleter(session),
            complete_while_typing=Condition(lambda: self._prompt.default_buffer.text.startswith("/")),
            enable_open_in_editor=False,
            bottom_toolbar=self._toolbar,
            key_bindings=self._keys(),
            style=_STYLE,
            erase_when_done=True,
            reserve_space_for_menu=KEPT_LINES - 1,
            output=screen.output,
        )
        self._prompt.default_buffer.accept_handler = self._accept
        app = self._prompt.app
        app.min_redraw_interval = 0.02
        if reflows():
            app.renderer = ReflowingRenderer(
                app.renderer.style, app.output, cpr_not_supported_callback=app.cpr_not_supported_callback
            )

    def run(self) -> None:
        """Until /quit or Ctrl-D.

        Raises:
            LocalsteerError: something failed that should not.
            SystemExit: a signal ended it, or KeyboardInterrupt.
        """
        worker = threading.Thread(target=self._work, name="chat", daemon=True)

        def begin() -> None:
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda _loop, context: self._leave(context.get("exception")))
            for number in _ENDS:
                with contextlib.suppress(NotImplementedError):  # Windows
                    loop.add_signal_handler(number, self._leave, SystemExit(128 + number))
            self._screen.application = self._prompt.app
            worker.start()

        handlers = {number: handler for number in _ENDS if (handler := signal.getsignal(number)) is not None}
        try:
            self._prompt.prompt(pre_run=begin)
        except EOFError:
            pass
        except Exception as error:  # of a key, or while drawing
            self._failure = self._failure or error
        finally:
            for number, handler in handlers.items():  # the loop leaves the system's, which end Python at once
                signal.signal(number, handler)
            self._left = True
            self._screen.application = None
            self._screen.request_stop()
            self._lines.put(None)
            while worker.is_alive():  # a model must not be closed while it computes
                try:
                    worker.join()
                except (KeyboardInterrupt, SystemExit) as end:
                    self._failure = self._failure or end
        if isinstance(self._failure, (LocalsteerError, KeyboardInterrupt, SystemExit)):
            raise self._failure
        if self._failure is not None:
            logger.debug("The chat failed.", exc_info=self._failure)
            raise LocalsteerError(
                f"The chat failed: {type(self._failure).__name__}: {self._failure}", hint="`localsteer -v chat` shows where."
            )

    # ---- the second thread

    def _work(self) -> None:
        failure: BaseException | None = None
        try:
            while (line := self._lines.get()) is not None and not self._left:
                self._working, self._doing = True, line
                self._waiting.popleft()
                self._screen.ask(line)
                if line in LEAVES or not handle(self._session, line):
                    break
                self._working, self._doing = False, ""
                self._screen.allow()
                self._screen.redraw()
        except KeyboardInterrupt:  # the prompt has ended
            pass
        except BaseException as error:
            failure = error
        self._working = False
        self._failure = self._failure or failure
        if (loop := self._prompt.app.loop) is not None:
            with contextlib.suppress(RuntimeError):  # it has ended just now
                loop.call_soon_threadsafe(self._leave)

    def _leave(self, failure: BaseException | None = None) -> None:
        self._failure = self._failure or failure
        if self._prompt.app.is_running and not self._prompt.app.is_done:
            self._prompt.app.exit(exception=EOFError())

    # ---- the prompt

    def _accept(self, buffer: Buffer) -> bool:
        """Send what is typed; it is kept for afterwards where the model still answers."""
        text, self._notice = buffer.text.strip(), ""
        if text:
            self._waiting.append(text)
            self._lines.put(text)
        return False

    def _message(self) -> AnyFormattedText:
        waiting = [("class:waiting", f"  {line.splitlines()[0]}\n") for line in list(self._waiting)[0 if self._working else 1 :]]
        return FormattedText([*self._screen.tail, *waiting, ("class:prompt", "> ")])

    def _keys(self) -> KeyBindings:
        keys = KeyBindings()

        @keys.add("enter")
        def _(event: KeyPressEvent) -> None:
            buffer = event.current_buffer
            if is_open(buffer.text):
                buffer.insert_text("\n")
            else:
                buffer.validate_and_handle()

        @keys.add("escape", "enter")
        def _(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text("\n")

        @keys.add("c-c", filter=~is_searching)  # there it ends the search
        @keys.add("<sigint>", filter=~is_searching)
        def _(event: KeyPressEvent) -> None:
            if self._working or self._waiting:
                self._screen.request_stop()
            elif event.current_buffer.text:
                event.current_buffer.reset()
            else:
                self._notice = "Ctrl-D leaves"

        @keys.add("escape", "up")
        def _(_event: KeyPressEvent) -> None:
            self._turn(STEP)

        @keys.add("escape", "down")
        def _(_event: KeyPressEvent) -> None:
            self._turn(-STEP)

        return keys

    def _turn(self, change: float) -> None:
        """A knob turned while the model answers is for the next answer."""
        self._notice = ""
        if self._screen.busy not in ("", ANSWERING) or self._doing.startswith("/model"):  # a vector is built, the model changes
            self._notice = "the knob turns when this is done"
            return
        try:
            self._session.turn(change, quiet=True)
        except LocalsteerError as error:
            self._notice = error.message
        self._prompt.app.invalidate()

    def _toolbar(self) -> AnyFormattedText:
        session, screen, conversation = self._session, self._screen, self._session.conversation
        latest = conversation.latest
        style = "bar" if conversation.plan is None else "bar.steered"
        if warned := warning(session.steering):
            style = f"bar.{warned}"
        parts = [(style, session.status())]
        if (state := session.policy_state) is not None:
            parts.append(("bar.steered" if state != "policy: armed" else "bar", state))
        if self._notice:
            parts.append(("bar.strong", self._notice))
        may_go = []
        if conversation.think is not None:
            may_go.append(("bar", f"thinking {'on' if conversation.think else 'off'}"))
        speed = screen.speed if screen.busy == ANSWERING else latest.answer.timing.tokens_per_second if latest is not None else 0
        if speed:
            may_go.append(("bar", f"{speed:.0f} tokens/s"))
        end = [("bar", f"context {conversation.prompt_length}/{session.n_ctx}")]
        if screen.busy or self._working:
            end.append(("bar", screen.busy or "working"))
        while may_go and sum(len(text) + 3 for _, text in (*parts, *may_go, *end)) > screen.width:
            may_go.pop()
        shown = [(f"class:{style}", text) for style, text in (*parts, *may_go, *end)]
        return FormattedText([("", " "), *[one for part in shown for one in (part, ("class:bar", " | "))][:-1]])
