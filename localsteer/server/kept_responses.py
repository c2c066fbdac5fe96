"""Responses that later requests go on from, kept in memory."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from localsteer.llama.chat_template import Message
from localsteer.server.answers import RequestError

# A request holds 1 MB at most, so that these hold 256.
_MOST = 256


class UnknownResponseError(RequestError):
    """A response that is not kept."""


@dataclass(frozen=True)
class Kept:
    """One of them.

    Attributes:
        document: as it was answered.
        turns: the conversation, its own answer the last; instructions, which later requests do not take over, left out.
    """

    document: dict[str, Any]
    turns: tuple[Message, ...]


class KeptResponses:
    """The latest ones, by their identity; the oldest is dropped first. For one thread."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Kept] = OrderedDict()

    def keep(self, response: Kept) -> None:
        """Keep one."""
        self._kept[response.document["id"]] = response
        if len(self._kept) > _MOST:
            self._kept.popitem(last=False)

    def find(self, identity: str, parameter: str | None = None) -> Kept:
        """One of them, which a part of a request names.

        Raises:
            UnknownResponseError: it is not kept.
        """
        if (kept := self._kept.get(identity)) is None:
            hint = f"The latest {_MOST} are, while the server runs, unless their requests say store: false."
            raise UnknownResponseError(f'The response "{identity}" is not kept here.', parameter, hint=hint)
        return kept

    def delete(self, identity: str) -> None:
        """Keep it no longer.

        Raises:
            UnknownResponseError: it is not kept.
        """
        self.find(identity)
        del self._kept[identity]
