"""The parts of a reply while it is written: what a reasoning model thinks first, what it answers, and the calls of tools in that.

Steering is for the answer, unless an expression says otherwise: a mood must not lead the reasoning astray, nor break an argument.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from localsteer.engine.draft import Draft
from localsteer.engine.gate import Gate, Verdict
from localsteer.llama.channels import ENDS, kind_behind
from localsteer.llama.model import Model
from localsteer.llama.residual import Edit, Rows
from localsteer.llama.thinking import Thinking

# Tokens at the end of a prompt among which a mark is looked for: the longest has some ten.
_TAIL = 24

# A reply that begins so is taken for a call where there are tools: small models write none of the marks.
_BARE = re.compile(
    r'\s*(?:```(?:json|tool_call)?\s*)?\[?\s*\{\s*(?:["{]|\Z)|\s*(?:```(?:json|tool_call)?\s*)?\[\s*\Z|\s*```(?:json|tool_call)'
)

Part = Literal["thinking", "answer", "form"]
"""A form is what must be as a machine wants it: a call of a tool, or an answer that follows a grammar."""


@dataclass(frozen=True)
class Division:
    """How a reply is divided.

    Attributes:
        thinking: the marks of the reasoning; None where the model has none.
        begun: whether the prompt ends inside the reasoning.
        call: what stands before and behind a call of a tool, both may be empty; None where there are no tools.
        formed: whether the whole answer is a form.
        shown: control tokens whose text stands in the reply, for the marks are such.
    """

    thinking: Thinking | None = None
    begun: bool = False
    call: tuple[str, str] | None = None
    formed: bool = False
    shown: frozenset[int] = frozenset()

    def part(self, text: str) -> Part:
        """The part of the reply that goes on behind this text."""
        if self.thinking is not None and self.thinking.in_channels:
            kind = kind_behind(text, begun=self.begun)
            if kind == "answer":
                return "form" if self.formed else "answer"
            return "form" if kind == "call" else "thinking"
        start = self.thinking.answer_at(text, begun=self.begun) if self.thinking is not None else 0
        if start is None:
            return "thinking"
        if self.formed or (self.call is not None and _in_call(text[start:], *self.call)):
            return "form"
        return "answer"


def division_of(model: Model, prompt: Sequence[int], *, call: Sequence[str] | None = None) -> Division | None:
    """How the reply to a prompt that the model's chat template has written is divided; None where it is all answer.

    Args:
        model: the model.
        prompt: tokens.
        call: the marks of calls of tools, see `Division`, and what else is written in them; None where there are no tools.
    """
    thinking = model.chat_template.thinking if model.chat_template is not None else None
    tail = b"".join(model.token_bytes(token, special=True) for token in prompt[-_TAIL:]).decode("utf-8", errors="replace")
    if thinking is not None and tail.rstrip().endswith(thinking.answers or thinking.closes):
        thinking = None  # the answer has begun
    if thinking is None and call is None:
        return None
    begun = thinking is not None and thinking.is_open(tail)
    marks = [*(call or ()), *((thinking.opens, thinking.closes, thinking.answers) if thinking is not None else ())]
    marks += ENDS if thinking is not None and thinking.in_channels else ()
    shown = frozenset(model.control_tokens_in(*marks).values())
    return Division(thinking, begun, (call[0], call[1]) if call is not None else None, shown=shown)


def _in_call(answer: str, begin: str, end: str) -> bool:
    if begin and begin in answer:
        return not end or answer.rfind(begin) > answer.rfind(end)
    return _BARE.match(answer) is not None


class Phased:
    """Another gate's steering while the model answers; while it thinks, that of the reasoning; in a form, none.

    Args:
        gate: what decides about the answer.
        division: how the reply is divided.
        thinking: the steering of the reasoning; None for none.
        steer_forms: steer there, too.
    """

    def __init__(self, gate: Gate, division: Division, thinking: Edit | None, *, steer_forms: bool = False) -> None:
        self.edits: Sequence[Edit | None] = (*gate.edits, thinking, None)
        self.prompt_layers: Collection[int] = gate.prompt_layers
        self.output_layers: Collection[int] = gate.output_layers
        self._gate = gate
        self._division = division
        self._thinking = thinking
        self._steer_forms = steer_forms
        self._steered = 0  # tokens of the parts that are
        self._answers = division.part("") == "answer"
        self._steers = self._is_steered("")

    @property
    def hold_back(self) -> int:
        """How many of the latest tokens must not be shown yet."""
        return self._gate.hold_back

    def after_prompt(self, rows: Mapping[int, Rows]) -> Verdict:
        """The prompt was read."""
        return self._in_part("", self._gate.after_prompt(rows))

    def after_token(self, draft: Draft, *, final: bool) -> Verdict:
        """A token was drawn."""
        if not self._steers:
            draft.aside = len(draft.tokens) - self._steered
        answers = self._division.part(draft.text) == "answer"
        if not (answers and self._answers):
            draft.fixed = len(draft.tokens)  # what is not steered is not written anew, either, nor what ends it
        self._answers, self._steers = answers, self._is_steered(draft.text)
        verdict = self._gate.after_token(draft, final=final)
        self._steered = len(draft.tokens) - draft.aside
        return self._in_part(draft.text, verdict)

    def after_run(self, draft: Draft, rows: Mapping[int, Rows]) -> Verdict:
        """The latest token was run."""
        return self._in_part(draft.text, self._gate.after_run(draft, rows))

    def _is_steered(self, text: str) -> bool:
        part = self._division.part(text)
        return part == "answer" or (part == "form" and self._steer_forms)

    def _in_part(self, text: str, verdict: Verdict) -> Verdict:
        if self._is_steered(text):
            return verdict
        return replace(verdict, edit=self._thinking if self._division.part(text) == "thinking" else None)
