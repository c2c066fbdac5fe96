"""YAML files that people write: parsed with the line of every mistake."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from localsteer.errors import LocalsteerError, shown

Document = TypeVar("Document", bound=BaseModel)
Location = Sequence[str | int]

# That of libyaml, where PyYAML was built with it: 0.02 s for 19 concepts and policies, which otherwise take 0.16 s.
_FAST: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class YamlDocument(BaseModel):
    """The contents of a file, with no keys but these."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def inconsistency(self) -> tuple[Location, str] | None:
        """The first rule between keys that is broken: the key, and what is wrong."""
        return None


# What pydantic says in a programmer's words ("Extra inputs are not permitted").
_WORDS = {"extra_forbidden": "there is no such key"}


@dataclass(frozen=True)
class YamlFile:
    """A YAML text that holds keys.

    Attributes:
        where: what to call it in messages.
        kind: what it should be, such as "a concept file".
        page: the page of the documentation that shows the format.
        error: what to raise.
        data: the contents.
        node: the tree of nodes, which know their lines.
    """

    where: str
    kind: str
    page: str
    error: type[LocalsteerError]
    data: dict[Any, Any]
    node: Any

    @classmethod
    def parse(cls, text: str, *, where: str, kind: str, page: str, error: type[LocalsteerError]) -> YamlFile:
        """Parse a text.

        Raises:
            LocalsteerError: of the class `error`: it is no YAML, or holds no keys; the message names the line.
        """
        try:
            node, data = _load(text)
        except Exception as problem:  # PyYAML raises whatever a date that does not exist or a wrong tag leads to
            # What is not closed is found at the end of the file; the context is where it was opened.
            unclosed = "end of stream" in (getattr(problem, "problem", None) or "")
            mark = getattr(problem, "context_mark" if unclosed else "problem_mark", None)
            line = f", line {mark.line + 1}" if mark is not None else ""
            said = getattr(problem, "problem", None) or " ".join(str(problem).split())
            raise error(f"{where}{line}: this is not valid YAML: {shown(said)}.") from problem
        if not isinstance(data, dict):
            raise error(f"{where} is not {kind}: it holds no keys.", hint=f"{page} shows one.")
        # YAML lets the last one win, silently: of two rules of a policy one would be gone.
        if twice := _repeated_key(node):
            raise error(f'{where}, line {twice.start_mark.line + 1}: the key "{shown(twice.value)}" stands here a second time.')
        return cls(where, kind, page, error, data, node)

    def validate(self, model: type[Document]) -> Document:
        """The contents as a pydantic model.

        Raises:
            LocalsteerError: a rule is broken; the message names the line.
        """
        try:
            document = model.model_validate(self.data)
        except ValidationError as error:
            problems = [
                (self._place(one["loc"], one["type"] == "missing"), _said(one["type"], one["msg"], one["input"]))
                for one in error.errors()
            ]
            # Where several kinds of values are allowed, pydantic says for each what is wrong; the one that it got furthest into
            # is the one that was meant.
            first = problems[0][0]
            place = max((there for there, _ in problems if there[: len(first)] == first), key=len)
            said = dict.fromkeys(message[:1].lower() + message[1:] for there, message in problems if there == place)
            raise self.mistake(place, ", or ".join(said)) from error
        if isinstance(document, YamlDocument) and (broken := document.inconsistency()):
            raise self.mistake(*broken)
        return document

    def mistake(self, location: Location, message: str) -> LocalsteerError:
        """An error at a place: the keys and indices that lead there, and what is wrong."""
        place = ".".join(str(part) for part in location)
        return self.error(
            shown(f"{self.where}, line {self.line_of(location)}: {f'{place}: ' if place else ''}{message}."),
            hint=f"{self.page} shows the format.",
        )

    def _place(self, location: Location, missing: bool) -> Location:
        """The location without what is no key of the file: pydantic also names the member of a union that it tried.

        Args:
            location: as pydantic names it.
            missing: whether its end is a key that the file should have.
        """
        place: list[str | int] = []
        value: Any = self.data
        for index, part in enumerate(location):
            known = part in value if isinstance(value, dict) else isinstance(value, list) and isinstance(part, int)
            if known:
                value = value[part]
            if known or (missing and index == len(location) - 1):
                place.append(part)
        return place

    def line_of(self, location: Location) -> int:
        """1-based line of the innermost YAML node on the way to `location`."""
        node = self.node
        line = int(node.start_mark.line)
        for part in location:
            if isinstance(node, yaml.MappingNode):
                found = [(key, value) for key, value in node.value if key.value == str(part)]
                if not found:
                    break
                key, node = found[0]
                line = int(key.start_mark.line)
            elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
                node = node.value[part]
                line = int(node.start_mark.line)
            else:
                break
        return line + 1


def _said(kind: str, message: str, value: object) -> str:
    """What is wrong with a value, in words for those who write YAML."""
    if kind == "string_type" and isinstance(value, bool | int | float | datetime.date):
        meaning = "true or false" if isinstance(value, bool) else "a number" if isinstance(value, int | float) else "a date"
        return f"{message} (YAML takes this for {meaning}; in quotes it is a text)"
    message = message.removeprefix("Value error, ")  # what a validator of ours says
    return _WORDS.get(kind, message.partition(" or instance of ")[0])  # of a class that the file's writer does not know


def _load(text: str) -> tuple[yaml.Node | None, Any]:
    """A text's tree of nodes, and its contents."""
    try:
        return yaml.compose(text, Loader=_FAST), yaml.load(text, Loader=_FAST)
    except Exception:  # told by PyYAML's own reader: libyaml has other words for a mistake, and sometimes another line
        return yaml.compose(text, Loader=yaml.SafeLoader), yaml.safe_load(text)


def _repeated_key(root: yaml.Node | None) -> yaml.ScalarNode | None:
    """The first key that its mapping has already; None where all differ."""
    waiting: list[yaml.Node] = [root] if root is not None else []
    done: set[int] = set()
    while waiting:
        node = waiting.pop(0)
        if id(node) in done:  # an alias
            continue
        done.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
        elif isinstance(node, yaml.MappingNode):
            known: set[tuple[str, str]] = set()
            for key, value in node.value:
                if isinstance(key, yaml.ScalarNode):
                    if (key.tag, key.value) in known:
                        return key
                    known.add((key.tag, key.value))
                waiting.append(value)
    return None
