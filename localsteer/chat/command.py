"""What a command of the chat is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from localsteer.chat.session import Session

Action = Callable[[Session, str], None]


@dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
        name: with its slash.
        usage: what may stand behind it.
        help: what it does.
        action: does it, given the chat and what stands behind the name.
        takes: what can be completed behind it: "vectors", "files" or "models".
    """

    name: str
    usage: str
    help: str
    action: Action
    takes: str = ""


COMMANDS: dict[str, Command] = {}


def command(name: str, usage: str, text: str, *, takes: str = "") -> Callable[[Action], Action]:
    """Makes a function a command."""

    def registered(action: Action) -> Action:
        COMMANDS[f"/{name}"] = Command(f"/{name}", usage, text, action, takes)
        return action

    return registered
