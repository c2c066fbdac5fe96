"""GBNF, the grammars of llama.cpp (its grammars/README.md), as llguidance takes them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import NoReturn

from localsteer.errors import LocalsteerError

_NAME = re.compile(r"[A-Za-z0-9-]+")
# Lark as llama.cpp knows it by its first line, or by the rule that llguidance begins with.
_LARK = re.compile(r"^[ \t]*(%llguidance\b|start\s*(\[[^\]\n]*\]\s*)?:(?!:=))", re.MULTILINE)
_COUNTS = re.compile(r"\{\s*(\d{1,9})\s*(?:(,)\s*(?:(\d{1,9})\s*)?)?\}")
_SPACE = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
_SPACE_IN_LINE = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
_TOKEN = re.compile(r"(!?)<(\[\d+\]|[^<>\s]+)>")
_CODES = {"x": 2, "u": 4, "U": 8}
_ESCAPED = {"t": "\t", "r": "\r", "n": "\n", "\\": "\\", '"': '"', "[": "[", "]": "]"}
# As llama.cpp (MAX_REPETITION_THRESHOLD).
_MAX_COUNT = 2000
# Stands for the dash of a range.
_RANGE = -1
_DEEPEST = 100


def is_lark(grammar: str) -> bool:
    """Whether a grammar is llguidance's Lark, and not GBNF."""
    return _LARK.search(grammar) is not None


def to_lark(grammar: str) -> str:
    """The same grammar in llguidance's Lark.

    Each terminal is one character: llguidance takes as much for a longer one as it can, GBNF whatever leads to an end.

    Raises:
        LocalsteerError: it is not GBNF, or has no end.
    """
    parser = _Parser(grammar)
    parser.parse()
    for name in parser.names:
        if name not in parser.rules:
            raise LocalsteerError(f'The grammar is not valid GBNF: it has no rule named "{name}".')
    if "root" not in _ending(parser.rules):
        raise LocalsteerError("The grammar has no end: nothing that it allows is ever complete.")
    numbers = {name: number for number, name in enumerate(parser.rules)}

    def written(item: _Item) -> str:
        return f"{_rule(item.rule, numbers) if item.rule is not None else item.text}{item.count}"

    lines = []
    for name, alternatives in parser.rules.items():
        sequences = (" ".join(map(written, sequence)) or '""' for sequence in alternatives)
        lines.append(f"{_rule(name, numbers)}: {' | '.join(sequences)}")
    return "\n".join(lines)


def _rule(name: str, numbers: dict[str, int]) -> str:
    return "start" if name == "root" else f"r{numbers[name]}"


@dataclass
class _Item:
    """A terminal or the name of a rule, and how often.

    Attributes:
        text: the terminal, in Lark.
        rule: the rule.
        count: how often, in Lark.
        optional: whether it may be left out.
    """

    text: str = ""
    rule: str | None = None
    count: str = ""
    optional: bool = False


_Rules = dict[str, list[list[_Item]]]


def _ending(rules: _Rules) -> set[str]:
    """The rules that a text can complete."""
    ending: set[str] = set()
    waiting: dict[str, list[tuple[str, set[str]]]] = {}
    found = []
    for name, alternatives in rules.items():
        for one in alternatives:
            needed = {item.rule for item in one if item.rule is not None and not item.optional}
            for rule in needed:
                waiting.setdefault(rule, []).append((name, needed))
            if not needed:
                found.append(name)
    while found:
        rule = found.pop()
        if rule in ending:
            continue
        ending.add(rule)
        for name, needed in waiting.get(rule, []):
            needed.remove(rule)
            if not needed:
                found.append(name)
    return ending


@dataclass
class _Parser:
    """Reads rules, each group in parentheses as one of its own."""

    text: str
    at: int = 0
    depth: int = 0
    rules: _Rules = field(default_factory=dict)
    names: dict[str, None] = field(default_factory=lambda: {"root": None})

    def parse(self) -> None:
        self._space()
        while self.at < len(self.text):
            name = self._name()
            self._space(lines=False)
            self._expect("::=")
            self._space()
            self.rules[name] = self._alternatives(nested=False)
            if self.at < len(self.text) and self.text[self.at] not in "\r\n":
                self._fail("a line should end here")
            self._space()

    def _alternatives(self, *, nested: bool) -> list[list[_Item]]:
        alternatives = [self._sequence(nested=nested)]
        while self._take("|"):
            self._space()
            alternatives.append(self._sequence(nested=nested))
        return alternatives

    def _sequence(self, *, nested: bool) -> list[_Item]:
        sequence: list[_Item] = []
        while (items := self._items()) is not None:
            self._space(lines=nested)
            sequence += self._counted(items)
            self._space(lines=nested)
        return sequence

    def _items(self) -> list[_Item] | None:
        """What comes next, of a literal an item for each character; None where the sequence is at its end."""
        if self._take('"'):
            return [_Item(f"/[{_code(code)}]/") for code in self._characters('"')]
        if self._take("["):
            return [_Item(self._class())]
        if self._take("."):
            return [_Item("/(?s:.)/")]
        if self._take("("):
            return [self._group()]
        if token := _TOKEN.match(self.text, self.at):
            return [_Item(self._token(token))]
        if _NAME.match(self.text, self.at):
            name = self._name()
            self.names[name] = None
            return [_Item(rule=name)]
        return None

    def _counted(self, items: list[_Item]) -> list[_Item]:
        """The same as often as what follows says."""
        if self._take("*"):
            least, count = 0, "*"
        elif self._take("+"):
            least, count = 1, "+"
        elif self._take("?"):
            least, count = 0, "?"
        elif found := _COUNTS.match(self.text, self.at):
            least, most = int(found[1]), int(found[3] or found[1])
            if max(least, most) > _MAX_COUNT:
                self._fail(f"{max(least, most):,} is more than {_MAX_COUNT:,}")
            if most < least:
                self._fail(f"{most} is less than {least}")
            count = f"{{{least},{'' if found[2] and not found[3] else most}}}"
            self.at = found.end()
        else:
            return items
        item = items[0] if len(items) == 1 and not items[0].count else self._made_a_rule([items])
        return [replace(item, count=count, optional=least == 0)]

    def _group(self) -> _Item:
        if self.depth == _DEEPEST:
            self._fail("it is nested too deeply")
        self.depth += 1
        self._space()
        alternatives = self._alternatives(nested=True)
        self._expect(")")
        self.depth -= 1
        return self._made_a_rule(alternatives)

    def _made_a_rule(self, alternatives: list[list[_Item]]) -> _Item:
        name = f"({len(self.rules)}"  # no rule that is written has such a name
        while name in self.rules:
            name += "("
        self.rules[name] = alternatives
        return _Item(rule=name)

    def _class(self) -> str:
        negated = "^" if self._take("^") else ""
        codes = self._characters("]", ranges=True)
        parts = []
        at = 0
        while at < len(codes):
            first = codes[at]
            if at + 2 < len(codes) and codes[at + 1] == _RANGE:
                last = codes[at + 2]
                if last < first:
                    self._fail("a range ends before it begins")
                parts.append(f"{_code(first)}-{_code(last)}")
                at += 3
            else:
                parts.append(_code(first if first != _RANGE else ord("-")))
                at += 1
        if not parts:
            self._fail("a class is empty")
        return f"/[{negated}{''.join(parts)}]/"

    def _characters(self, end: str, *, ranges: bool = False) -> list[int]:
        """The characters up to one that ends them; a "-" that is not escaped is `_RANGE` where there are ranges."""
        codes = []
        while not self._take(end):
            character = self.text[self.at : self.at + 1]
            if not character:
                self._fail(f"{end} is missing")
            self.at += 1
            codes.append(self._escaped() if character == "\\" else _RANGE if ranges and character == "-" else ord(character))
        return codes

    def _escaped(self) -> int:
        kind = self.text[self.at : self.at + 1]
        self.at += 1
        if kind in _ESCAPED:
            return ord(_ESCAPED[kind])
        digits = self.text[self.at : self.at + _CODES.get(kind, 0)]
        self.at += len(digits)
        if not digits or not re.fullmatch("[0-9A-Fa-f]+", digits) or len(digits) < _CODES[kind]:
            self._fail(f"\\{kind} is no escape")
        return int(digits, 16)

    def _token(self, found: re.Match[str]) -> str:
        if found[1] and not found[2].startswith("["):
            self._fail("a token that is not wanted must be given by its number")
        self.at = found.end()
        return f"<[^{found[2][1:]}>" if found[1] else f"<{found[2]}>"

    def _name(self) -> str:
        found = _NAME.match(self.text, self.at)
        if found is None:
            self._fail("the name of a rule should stand here")
        self.at = found.end()
        return found[0]

    def _space(self, *, lines: bool = True) -> None:
        space = _SPACE if lines else _SPACE_IN_LINE
        found = space.match(self.text, self.at)
        assert found is not None
        self.at = found.end()

    def _take(self, text: str) -> bool:
        taken = self.text.startswith(text, self.at)
        self.at += len(text) if taken else 0
        return taken

    def _expect(self, text: str) -> None:
        if not self._take(text):
            self._fail(f"{text} should stand here")

    def _fail(self, problem: str) -> NoReturn:
        line = self.text.count("\n", 0, self.at) + 1
        raise LocalsteerError(f"The grammar is not valid GBNF: line {line}: {problem}.")


def _code(code: int) -> str:
    return f"\\x{{{code:x}}}"
