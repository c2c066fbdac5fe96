"""Ollama's templates, as far as they are of its older, simpler form: one exchange at a time.

Newer ones walk over the messages in the language of Go's text/template, of which this knows fields and conditions only. How
they are filled in is `Execute` in template/template.go of Ollama's source.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from localsteer.llama.named_layout import NamedLayout
from localsteer.llama.template_errors import TemplateError

_FIELD = re.compile(r"\.(System|Prompt|Response)")
_CONDITION = re.compile(r"if\s+(?:(and|or|not)\s+)?((?:\.(?:System|Prompt|Response)\s*)+)")


@dataclass
class _If:
    how: str
    fields: list[str]
    then: list[Any]
    otherwise: list[Any]


class OllamaLayout:
    """One of them.

    Args:
        source: the template.

    Attributes:
        variables: what else it may be given: nothing.

    Raises:
        TemplateError: it is of another form.
    """

    def __init__(self, source: str) -> None:
        self.variables: frozenset[str] = frozenset()
        self._nodes = _parsed(source)
        if not _FIELD.search(source.replace(".System", "")):
            raise TemplateError("The template in Ollama's form has no place for a message.")
        if ".Response" not in source:
            self._nodes.append(".Response")

    def render(self, variables: Mapping[str, Any]) -> str:
        """The prompt of `messages`; with `add_generation_prompt` up to the place of the next answer."""
        written: list[str] = []
        exchange = dict.fromkeys((".System", ".Prompt", ".Response"), "")
        # What a message is, and what must not be there yet for it to belong to the same exchange.
        places: dict[str, tuple[str, tuple[str, ...]]] = {
            "system": (".System", (".Prompt", ".Response")),
            "user": (".Prompt", (".Response",)),
        }
        for turn in variables["messages"]:
            place, later = places.get(turn["role"], (".Response", ()))
            if any(exchange[one] for one in later):
                _write(self._nodes, exchange, written, cut=False)
                exchange = dict.fromkeys(exchange, "")
            exchange[place] += ("\n\n" if exchange[place] else "") + turn["content"]
        _write(self._nodes, exchange, written, cut=bool(variables["add_generation_prompt"]))
        return "".join(written)


def ollama_layout(source: str) -> OllamaLayout | NamedLayout:
    """As the template says, where it is of the older form; else llama.cpp's layout that uses the same marks.

    Raises:
        TemplateError: there is none.
    """
    try:
        return OllamaLayout(source)
    except TemplateError as error:
        try:
            return NamedLayout(source)
        except TemplateError:
            raise error from None


def _parsed(source: str) -> list[Any]:
    """The template as a list of texts, fields and conditions.

    Raises:
        TemplateError: it holds something else.
    """
    nodes: list[Any] = []
    open_blocks: list[tuple[list[Any], _If]] = []
    for text, said in _actions(source):
        nodes.append(text)
        if said is None:
            break
        condition = _CONDITION.fullmatch(said)
        if _FIELD.fullmatch(said):
            nodes.append(said)
        elif condition is not None:
            block = _If(condition[1] or "and", condition[2].split(), [], [])
            nodes.append(block)
            open_blocks.append((nodes, block))
            nodes = block.then
        elif said == "else" and open_blocks:
            nodes = open_blocks[-1][1].otherwise
        elif said == "end" and open_blocks:
            nodes, _ = open_blocks.pop()
        else:
            raise TemplateError(f"The template in Ollama's form holds {said!r}, which is not known here.")
    if open_blocks:
        raise TemplateError("The template in Ollama's form is cut off.")
    return nodes


def _actions(source: str) -> Iterator[tuple[str, str | None]]:
    """Each text and the action behind it, without the blanks that the action takes away; behind the last text None."""
    place = 0
    while (opens := source.find("{{", place)) >= 0 and (closes := source.find("}}", opens + 2)) >= 0:
        text, action = source[place:opens], source[opens + 2 : closes]
        place = closes + 2
        if action[:1] == "-" and action[1:2].isspace():
            text, action = text.rstrip(), action[1:]
        if action[-1:] == "-" and action[-2:-1].isspace():
            action = action[:-1]
            while source[place : place + 1].isspace():
                place += 1
        yield text, action.strip()
    yield source[place:], None


def _write(nodes: list[Any], exchange: Mapping[str, str], written: list[str], *, cut: bool) -> bool:
    """Write an exchange; `cut`, up to the place of the answer: returns whether that was reached."""
    for node in nodes:
        if isinstance(node, _If):
            filled = [bool(exchange[field]) for field in node.fields]
            holds = {"and": all(filled), "or": any(filled), "not": not any(filled)}[node.how]
            if _write(node.then if holds else node.otherwise, exchange, written, cut=cut):
                return True
        elif node in exchange:
            written.append(exchange[node])
            if cut and node == ".Response":
                return True
        else:
            written.append(node)
    return False
