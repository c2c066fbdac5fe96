"""The marks between which a model thinks, as its chat template writes them."""

from __future__ import annotations

from dataclasses import dataclass

from localsteer.llama.channels import MESSAGE


@dataclass(frozen=True)
class Thinking:
    """How a reply is divided into reasoning and answer.

    Attributes:
        opens: what the reasoning follows.
        closes: what follows the reasoning.
        answers: what opens the answer, where a reply is made of channels, each with a mark of its own; "" where the answer just
            follows `closes`.
    """

    opens: str
    closes: str
    answers: str = ""

    @property
    def in_channels(self) -> bool:
        """Whether a reply is made of messages with headers (`localsteer.llama.channels`)."""
        return MESSAGE in self.opens

    def is_open(self, prompt: str) -> bool:
        """Whether a prompt ends inside the reasoning: the reply begins with it, unmarked."""
        return prompt.rstrip().endswith(self.opens.strip())

    def answer_at(self, reply: str, *, begun: bool) -> int | None:
        """Where in a reply the answer begins, as far as the reply has come; None while the model thinks.

        Args:
            reply: the text so far, marks and all.
            begun: whether the prompt ends inside the reasoning.
        """
        begins, opens = reply.lstrip(), self.opens.lstrip()
        if not begun and not begins.startswith(opens):
            if self.answers and begins.startswith(self.answers):
                return reply.find(self.answers) + len(self.answers)
            # Before the first letter nobody knows; then it is a mark, or the model answers at once.
            marks = (opens, self.answers) if self.answers else (opens,)
            return None if any(mark.startswith(begins) for mark in marks) else 0
        at = reply.find(self.closes)
        if at < 0:
            return None
        at += len(self.closes)
        if self.answers:
            found = reply.find(self.answers, at)
            return found + len(self.answers) if found >= 0 else None
        return at

    def divided(self, reply: str) -> tuple[str, str]:
        """The reasoning and the answer of a reply, both without marks; "" for what it does not have."""
        before, found, rest = reply.partition(self.closes)
        if self.answers and self.answers in reply:
            before, _, rest = reply.rpartition(self.answers)
            before = before.partition(self.closes)[0]
        elif not found:
            opened = reply.lstrip().startswith(self.opens)
            return (self._unopened(reply), "") if opened else ("", reply)
        reasoning = self._unopened(before) if not self.answers or self.opens in before else ""
        return reasoning.strip(), rest.lstrip() if not self.answers else rest.removesuffix(self.closes)

    def skipped(self, prompt: str) -> str:
        """What stands behind a prompt (up to the header of a reply) so that the answer begins at once, without any reasoning."""
        if self.answers:
            return self.answers
        if not self.is_open(prompt):
            return f"{self.opens}\n\n{self.closes}\n\n"
        return f"\n{self.closes}\n\n" if prompt.endswith("\n") else self.closes

    def _unopened(self, text: str) -> str:
        return text.partition(self.opens)[2] if self.opens in text else text


# What tells a template's marks apart, the marks, and whose they are. The first that a template writes are its own: the marks of
# channels come first, for such a template may speak of others.
_KNOWN = (
    ("<|channel|>", Thinking("<|channel|>analysis<|message|>", "<|end|>", "<|channel|>final<|message|>")),  # gpt-oss
    ("<|begin|>assistant<|think|>", Thinking("<|think|>", "<|end|>", "<|content|>")),  # Solar Open
    ("<|start|>assistant to=self", Thinking(" to=self<|message|>", "<|eom|>", "<|message|>")),  # Muse
    ("<|open|>think<|sep|>", Thinking("<|open|>think<|sep|>", "<|close|>think<|sep|>")),  # Kimi K3
    ("<|channel>thought", Thinking("<|channel>thought\n", "<channel|>")),  # Gemma 4
    ("<|START_THINKING|>", Thinking("<|START_THINKING|>", "<|END_THINKING|>")),  # Command
    ("<|inner_prefix|>", Thinking("<|inner_prefix|>", "<|inner_suffix|>")),  # Apertus
    ("[THINK]", Thinking("[THINK]", "[/THINK]")),  # Magistral, Ministral
    ("[BEGIN FINAL RESPONSE]", Thinking("Here are my reasoning steps:\n", "[BEGIN FINAL RESPONSE]")),  # Apriel
    ("<seed:think>", Thinking("<seed:think>", "</seed:think>")),
    ("<mm:think>", Thinking("<mm:think>", "</mm:think>")),  # MiniMax M3
    ("<think:opensource>", Thinking("<think:opensource>", "</think:opensource>")),  # Hunyuan 3
    ("◁think▷", Thinking("◁think▷", "◁/think▷")),  # Kimi VL
    ("<think>", Thinking("<think>", "</think>")),
    ("</think>", Thinking("<think>", "</think>")),
)


def find_thinking(written: str) -> Thinking | None:
    """The marks of a template.

    Args:
        written: its source, and what it makes of a conversation.
    """
    return next((thinking for mark, thinking in _KNOWN if mark in written), None)


def open_end(text: str, mark: str) -> int:
    """Length of the longest end of a text that a mark begins with."""
    return next((size for size in range(min(len(mark) - 1, len(text)), 0, -1) if mark.startswith(text[-size:])), 0)
