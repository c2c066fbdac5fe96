"""The forms in which models write calls of tools, each as its makers trained it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

# In a text of a form: a number or an identifier of the call stands there.
IDENTITY = "\0"

_MARK = re.compile(r'<[^<>"=\s]*(?:\s\w+="|[>=])|\[[A-Z_]+\]|[^\s{\[<"]+')
_LAST_MARK = re.compile(r"<[^<>]*>\s*\Z")


@dataclass(frozen=True)
class Tags:
    """How arguments are written where each has a tag: `before` NAME `text` or `other` VALUE `after`.

    Attributes:
        before: what stands before the name of an argument.
        text: between it and its value, where that is a text; it has no quotes.
        other: likewise, for what is no text; it is written as JSON.
        after: behind the value.
    """

    before: str
    text: str
    other: str
    after: str


@dataclass(frozen=True)
class Form:
    """How a model writes calls: `opening`, then `head` NAME `middle` ARGUMENTS `tail` for each, with `between`, then `closing`.

    Attributes:
        kind: "object": a call is an object of JSON; "bare": likewise, and the whole answer is a call, or a list of them;
            "named": the name stands outside the arguments, which are JSON or have tags; "channel": one call, in a channel that is
            named for it.
        opening: what stands before the first call.
        head: before the name.
        middle: between the name and the arguments.
        tail: behind the arguments.
        between: what stands between two calls; None where there is only one.
        closing: what stands behind the last call.
        name: the key of the name, where a call is an object.
        key: that of the arguments.
        tags: how arguments are written; None for JSON.
        mark: what a call begins with, where that is not to be seen from the above.
    """

    kind: Literal["object", "bare", "named", "channel"]
    opening: str = ""
    head: str = '{"name": "'
    middle: str = '", "arguments": '
    tail: str = "}"
    between: str | None = ", "
    closing: str = ""
    name: str = "name"
    key: str = "arguments"
    tags: Tags | None = None
    mark: str = ""

    @property
    def encloses(self) -> bool:
        """Whether all calls stand together between two marks, or behind one; else each begins with a mark of its own."""
        return bool(self.opening or self.closing)

    @property
    def begin(self) -> str:
        """What tells that a call begins; "" for nothing. A control token in it must be shown to who reads calls."""
        found = None if self.mark or self.kind == "bare" else _MARK.match((self.opening + self.head).split(IDENTITY)[0])
        return found[0] if found is not None else self.mark

    @property
    def end(self) -> str:
        """The last mark of calls; "" for none."""
        found = _LAST_MARK.search((self.tail + self.closing).rpartition(IDENTITY)[2])
        return found[0].strip() if found is not None else ""

    @property
    def texts(self) -> tuple[str, ...]:
        """All that is written besides names and arguments."""
        tags = (self.tags.before, self.tags.text, self.tags.other, self.tags.after) if self.tags is not None else ()
        parts = (self.mark, self.opening, self.head, self.middle, self.tail, self.between or "", self.closing, *tags)
        return tuple(text for part in parts for text in part.split(IDENTITY) if text)


LLAMA = Form("bare", middle='", "parameters": ', key="parameters", mark="<|python_tag|>")
# gpt-oss: a message in the channel `commentary`, to the tool.
HARMONY = Form(
    "channel",
    opening="<|channel|>commentary",
    head=" to=functions.",
    middle=" <|constrain|>json<|message|>",
    tail="",
    between=None,
    mark=" to=functions.",
)
# Its template tells of the mark in words alone, and shows no call.
GRANITE = Form("object", opening="<|tool_call|>[", closing="]")
# For models whose template knows no tools.
GENERIC = Form("bare")
