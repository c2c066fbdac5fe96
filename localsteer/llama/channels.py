"""Replies that are made of messages, each with a header that says what it is: gpt-oss's form (harmony), and Muse's.

OpenAI's: `<|channel|>analysis<|message|>...<|end|><|start|>assistant<|channel|>final<|message|>...<|return|>`. A header
may name whom the message is for, in front of the channel or behind it (`to=functions.NAME`), and in what form it is
(`<|constrain|>json`). What is in the channel `commentary` and for nobody is said to the user, before calls of tools.
"""

from __future__ import annotations

import re
from typing import Literal

CHANNEL, MESSAGE = "<|channel|>", "<|message|>"
# Behind each of these a message is over; models leave some out.
ENDS = ("<|end|>", "<|eom|>", "<|call|>", "<|return|>", "<|start|>", CHANNEL)
# What may begin a header.
BEGINS = (CHANNEL, "<|start|>", "to=", "assistant<|channel|>", "assistant to=", MESSAGE)

_ENDS = re.compile("|".join(map(re.escape, ENDS)))
_RECIPIENT = re.compile(r"\bto=([\w.:/-]+)")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")

Kind = Literal["thinking", "answer", "call", "header"]


def kind_of(header: str) -> Kind:
    """What a message is, by all that stands before its text."""
    recipient, channel = _RECIPIENT.search(header), _CHANNEL.search(header)
    if recipient is not None and recipient[1].startswith("functions."):
        return "call"
    # For itself, or one of the tools that OpenAI runs.
    return "thinking" if recipient is not None or (channel is not None and channel[1] == "analysis") else "answer"


def called_in(header: str) -> str:
    """The tool that a call's header names."""
    recipient = _RECIPIENT.search(header)
    return recipient[1].removeprefix("functions.") if recipient is not None else ""


def end_in(text: str) -> tuple[int, int] | None:
    """Where the message that a text is of ends, and the mark of that; None where it goes on."""
    found = _ENDS.search(text)
    # The marks of a next header are part of it.
    return (found.start(), found.start() if found[0] == CHANNEL else found.end()) if found is not None else None


def may_begin_header(text: str) -> bool:
    """Whether a reply that begins so may begin with a header; one without any is an answer as it stands."""
    begins = text.lstrip()
    return any(begins.startswith(mark) or mark.startswith(begins) for mark in BEGINS)


def kind_behind(reply: str, *, begun: bool) -> Kind:
    """What goes on behind a reply; `begun`: it begins inside the reasoning."""
    before, message, text = reply.rpartition(MESSAGE)
    if not message and begun:
        return "header" if end_in(text) is not None else "thinking"
    if not message:
        return "header" if may_begin_header(reply) else "answer"
    if (end := end_in(text)) is not None:
        return "header" if text[end[0] :] else "answer"
    # The header reaches back to the end of the message before.
    return kind_of(before[max((before.rfind(mark) for mark in ENDS if mark != CHANNEL), default=-1) + 1 :])
