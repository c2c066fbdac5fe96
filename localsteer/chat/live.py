"""The chat on a terminal: an input line that stays while the model answers, and a status line below it.

The prompt runs in the main thread; what it sends is worked on by a second one, so that there is always somebody who reads the
keys.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import ANSI, FormattedText, merge_formatted_text
from prompt_toolkit.formatted_text.base import AnyFormattedText
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.styles import Style
from rich.text import Text

from localsteer.chat.completion import SessionCompleter
from localsteer.chat.knobs import warning
from localsteer.chat.live_screen import KEPT_LINES, LiveScreen
from localsteer.chat.markdown import ansi
from localsteer.chat.session import STEP, Session
from localsteer.chat.terminal import handle, is_open
from localsteer.errors import LocalsteerError

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
        self._waiting: list[str] = []
        self._working = False
        self._failure: BaseException | None = None
        self._notice = ""
        kept: History = FileHistory(str(history)) if history is not None else InMemoryHistory()
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
        )
        self._prompt.default_buffer.accept_handler = self._accept
        self._prompt.app.min_redraw_interval = 0.02

    def run(self) -> None:
        """Until /quit or Ctrl-D."""
        worker = threading.Thread(target=self._work, name="chat", daemon=True)

        def begin() -> None:
            self._screen.loop = asyncio.get_running_loop()
            self._screen.redraw = self._prompt.app.invalidate
            worker.start()

        try:
            self._prompt.prompt(pre_run=begin)
        except EOFError:
            pass
        finally:
            self._screen.loop = None
            self._screen.request_stop()
            self._lines.put(None)
            worker.join()
        if self._failure is not None:
            raise self._failure

    # ---- the second thread

    def _work(self) -> None:
        try:
            while (line := self._lines.get()) is not None:
                self._waiting = self._waiting[1:]
                self._working = True
                self._screen.begin()
                self._screen.print_finished(ansi(Text(f"> {line}", "bold"), self._screen.width))
                if not handle(self._session, line):
                    break
                self._working = False
                self._screen.redraw()
        except BaseException as error:
            self._failure = error
        self._working = False
        if (loop := self._screen.loop) is not None:
            loop.call_soon_threadsafe(self._leave)

    def _leave(self) -> None:
        if self._prompt.app.is_running:
            self._prompt.app.exit(exception=EOFError())

    # ---- the prompt

    def _accept(self, buffer: Buffer) -> bool:
        """Send what is typed; it is kept for afterwards where the model still answers."""
        text, self._notice = buffer.text.strip(), ""
        if text:
            self._waiting = [*self._waiting, text]
            self._lines.put(text)
        return False

    def _message(self) -> AnyFormattedText:
        waiting = [("class:waiting", f"  {line.splitlines()[0]}\n") for line in self._waiting[1 if not self._working else 0 :]]
        return merge_formatted_text([ANSI(self._screen.tail), FormattedText([*waiting, ("class:prompt", "> ")])])

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

        @keys.add("c-c")
        @keys.add("<sigint>")
        def _(event: KeyPressEvent) -> None:
            if self._working:
                self._screen.request_stop()
            else:
                event.current_buffer.reset()

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
        try:
            self._session.turn(change, quiet=True)
        except LocalsteerError as error:
            self._notice = error.message
        self._prompt.app.invalidate()

    def _toolbar(self) -> AnyFormattedText:
        session, screen = self._session, self._screen
        plan, conversation = session.conversation.plan, session.conversation
        style = "bar" if plan is None else "bar.steered"
        if warned := warning(session.steering):
            style = f"bar.{warned}"
        parts = [(f"class:{style}", f" {session.status()}")]
        if (state := session.policy_state) is not None:
            parts.append(("class:bar.steered" if state != "policy: armed" else "class:bar", f" | {state}"))
        if conversation.think is not None:
            parts.append(("class:bar", f" | thinking {'on' if conversation.think else 'off'}"))
        latest = conversation.latest
        speed = (
            screen.speed if screen.busy == "answering" else latest.answer.timing.tokens_per_second if latest is not None else 0
        )
        if speed:
            parts.append(("class:bar", f" | {speed:.0f} tokens/s"))
        parts.append(("class:bar", f" | context {conversation.prompt_length}/{session.n_ctx}"))
        if self._notice:
            parts.append(("class:bar.strong", f" | {self._notice}"))
        if screen.busy or self._working:
            parts.append(("class:bar", f" | {screen.busy or 'working'}"))
        return FormattedText(parts)
