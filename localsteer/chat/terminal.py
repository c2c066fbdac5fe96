"""The lines of a chat: a message is answered, a command carried out, and a mistake told in a line."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from localsteer.chat.commands import carry_out
from localsteer.chat.session import Session
from localsteer.errors import LocalsteerError, for_model

QUOTES = '"""'
# What ends other programs' prompts, and is no message.
LEAVES = ("exit", "quit")


def handle(session: Session, line: str) -> bool:
    """Do what a line says; False ends the chat. Whatever goes wrong is told, and the chat goes on."""
    text = line.strip()
    if not text:
        return True
    try:
        if text.startswith(("/", "!")):
            return carry_out(session, text)
        session.ask(unquoted(text))
    except LocalsteerError as error:
        session.screen.error(for_model(str(error), session.model_name))
    except KeyboardInterrupt:  # an impatient second one, or one while a vector is built
        session.screen.note("[stopped]")
    except ValueError as error:  # a name or a number that no system takes
        session.screen.error(f"That cannot be done: {error}.")
    except BrokenPipeError:  # who read the answers (`| head`) has gone
        raise
    except OSError as error:
        session.screen.error(f"{error.filename or 'A file'}: {error.strerror}.")
    return True


def unquoted(text: str) -> str:
    '''A message without the """ that hold several lines together.'''
    return text.removeprefix(QUOTES).removesuffix(QUOTES).strip() if text.startswith(QUOTES) else text


def run_plain(session: Session, lines: Iterable[str], *, typed: bool) -> None:
    '''Answer lines; between """ and """ they are one message.

    Args:
        session: the chat.
        lines: from a pipe, or from somebody who types them.
        typed: somebody types them.
    '''
    held: list[str] = []
    for line in lines:
        text = line.rstrip("\r\n")
        held.append(text)
        if held[0].lstrip().startswith(QUOTES) and not _is_closed("\n".join(held)):
            continue
        whole, held = "\n".join(held), []
        if (typed and whole.strip() in LEAVES) or not handle(session, whole):
            return
    if held:
        handle(session, "\n".join(held))


def _is_closed(text: str) -> bool:
    begun = text.strip()
    return len(begun) >= 2 * len(QUOTES) and begun.endswith(QUOTES)


def is_open(text: str) -> bool:
    '''Whether a message that began with """ goes on.'''
    return text.lstrip().startswith(QUOTES) and not _is_closed(text)


def can_draw() -> bool:
    """Whether there is a terminal that can be drawn on."""
    import os

    return sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
