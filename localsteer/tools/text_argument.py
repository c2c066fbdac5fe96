"""Arguments that are texts without quotes, where each stands between tags: what their schemas want, as terms of a grammar."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

from localsteer.errors import LocalsteerError
from localsteer.llama.json_schema import FORMATS, TYPES, at_place, constants, type_of
from localsteer.tools.text_formats import REGEXES

# How models write that there is none.
NULLS = ("null", "None")
# Schemas within schemas that are followed, and all in all: by references a short one has them without end.
_DEEPEST = 50
_MOST = 500
# A character, a class of them, or an escape.
_PIECES = re.compile(r"\\.|\[\^?(?:\\.|[^\]\\])*\]|.", re.DOTALL)
# What ECMAScript, whose patterns a schema has, means otherwise than Rust, whose patterns llguidance has. What Python means
# otherwise than both is left out.
_MEANT = {r"\d": "[0-9]", r"\w": "[A-Za-z0-9_]", r"\s": r"[ \t\n\r\f\v]", r"\S": r"[^\s\x{feff}\x1c-\x1f]"}
_MEANT |= {r"\/": r"\x2f", "/": r"\x2f", "\n": r"\n"}
# Within a class that leaves its members out: as much as any of them means, where elsewhere it is as little.
_LEFT_OUT = {r"\s": r"\s\x{feff}\x1c-\x1f", r"\S": r"[^ \t\n\r\f\v]", r"\D": "[^0-9]", r"\W": "[^A-Za-z0-9_]"}
# Of a class: a class of its own, or a character, or a range of them.
_ONE = r"(?:\\(?:u\{[^}]*\}|u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|[^dwsDWSpP])|[^\\])"
_MEMBER = re.compile(rf"(?P<all>\\(?:[dwsDWS]|[pP]\{{[^}}]*\}}))|(?P<first>{_ONE})(?:-(?P<last>{_ONE}))?", re.DOTALL)
# In Rust a class may hold classes, and what joins or parts them.
_LITERAL = {"[": r"\[", "&": r"\&", "~": r"\~", "-": r"\-", "^": r"\^", r"\b": r"\x08"}
_LOOKS_AROUND = re.compile(r"\(\?<?[=!]")
_REFERS = re.compile(r"\\[1-9k]")


@dataclass(frozen=True)
class TextArgument:
    """An argument that is a text by its schema, or null.

    Attributes:
        name: of the argument.
        schema: what it has to be.
        root: the schema of all arguments, in which it refers to others.
        nullable: whether null will do, too.
    """

    name: str
    schema: object
    root: Mapping[str, Any]
    nullable: bool

    @classmethod
    def of(cls, parameters: Mapping[str, Any], name: str) -> Self | None:
        """That of a name; None where it may be something else."""
        properties = parameters.get("properties")
        schema = properties.get(name) if isinstance(properties, dict) else None
        types = types_of(schema, parameters)
        return cls(name, schema, parameters, "null" in types) if "string" in types <= {"string", "null"} else None

    def wanted(self) -> list[str]:
        """What it has to be, all at once, in llguidance's Lark; nothing for any text.

        Raises:
            LocalsteerError: no text will do, or the schema says what cannot be had.
        """
        return self._wanted(self.schema, 0, itertools.count())

    def _wanted(self, schema: object, depth: int, parts: Iterator[int]) -> list[str]:
        if depth > _DEEPEST or next(parts) > _MOST:
            raise self._error("refers to itself, or says too much")
        if not isinstance(schema, dict):
            return []
        if refused := next((key for key in ("not", "if") if key in schema), None):
            raise self._error(f"cannot be held to {refused}")
        terms = []
        if (values := constants(schema)) is not None:
            terms.append(_any_of(json.dumps(value) for value in values if isinstance(value, str)))
        least, most = (self._length(schema.get(key)) for key in ("minLength", "maxLength"))
        if least is not None or most is not None:
            if most is not None and (least or 0) > most:
                raise self._error("can be no text: minLength is more than maxLength")
            terms.append(f"/(?s:.{{{least or 0},{'' if most is None else most}}})/")
        if "pattern" in schema:
            terms.append(self._pattern(schema["pattern"]))
        if "format" in schema and FORMATS.fullmatch(str(schema["format"])):
            if schema["format"] not in REGEXES:
                raise self._error(f"cannot be held to the format {schema['format']}")
            terms.append(f"/{REGEXES[schema['format']]}/")
        if "$ref" in schema:
            reference = schema["$ref"]
            if reference != "#" and not str(reference).startswith("#/"):
                raise self._error(f"refers to {json.dumps(reference)}, which is no place in its schema: those begin with #/")
            terms += self._wanted(at_place(self.root, reference), depth + 1, parts)
        for part in _listed(schema, "allOf"):
            terms += self._wanted(part, depth + 1, parts)
        for key in ("anyOf", "oneOf"):
            if alternatives := _listed(schema, key):
                terms += self._one_of(key, alternatives, depth, parts)
        return terms

    def _one_of(self, key: str, schemas: list[object], depth: int, parts: Iterator[int]) -> list[str]:
        texts = [self._wanted(one, depth + 1, parts) for one in schemas if "string" in types_of(one, self.root)]
        if key == "oneOf" and len(texts) > 1:
            raise self._error("cannot be held to oneOf, with several texts in it")
        return [] if [] in texts else [_any_of(f"({' & '.join(terms)})" for terms in texts)]

    def _length(self, given: object) -> int | None:
        if given is None:
            return None
        if isinstance(given, float) and given.is_integer():
            given = int(given)
        if isinstance(given, bool) or not isinstance(given, int) or given < 0:
            raise self._error(f"cannot have a length of {given}")
        return given

    def _pattern(self, pattern: object) -> str:
        """The texts in which a pattern is found."""
        if not isinstance(pattern, str):
            raise self._error("has a pattern that is no text")
        pieces = _PIECES.findall(pattern)
        if _LOOKS_AROUND.search("".join(piece if len(piece) == 1 else " " for piece in pieces)) or any(
            map(_REFERS.fullmatch, pieces)
        ):
            raise self._error("cannot be held to its pattern: it looks around, or refers back")
        if word := next((piece for piece in pieces if piece in (r"\b", r"\B")), None):
            raise self._error(f"cannot be held to its pattern: {word} asks for the edge of a word")
        alternatives: list[list[str]] = [[]]
        depth = 0
        for piece in pieces:
            depth += {"(": 1, ")": -1}.get(piece, 0)
            if piece == "|" and depth == 0:
                alternatives.append([])
            else:
                alternatives[-1].append(piece)
        return f"/{'|'.join(map(self._found, alternatives))}/"

    def _found(self, pieces: list[str]) -> str:
        """One alternative, with anything around it that it does not say."""
        begins, ends = pieces[:1] == ["^"], pieces[-1:] == ["$"]
        within = pieces[begins : len(pieces) - ends]
        if {"^", "$"} & set(within):
            raise self._error("cannot be held to its pattern: ^ or $ stands in the middle of it")
        anything = "(?s:.*)"
        return f"{'' if begins else anything}(?:{''.join(map(_as_meant, within))}){'' if ends else anything}"

    def _error(self, problem: str) -> LocalsteerError:
        return LocalsteerError(f'The argument "{self.name}" is a text that is written without quotes, and {problem}.')


def _any_of(terms: Iterable[str]) -> str:
    return f"({' | '.join(terms)})"


def _as_meant(piece: str) -> str:
    """A piece of a pattern, as llguidance takes it."""
    if piece == ".":
        return r"[^\n\r\x{2028}\x{2029}]"
    if piece.startswith("["):
        begin = "[^" if piece.startswith("[^") else "["
        meant = _MEANT | _LEFT_OUT if begin == "[^" else _MEANT
        return f"{begin}{_MEMBER.sub(lambda found: _member(found, meant), piece[len(begin) : -1])}]"
    return _MEANT.get(piece, piece)


def _member(found: re.Match[str], meant: Mapping[str, str]) -> str:
    """A member of a class, as llguidance takes it."""
    if found["all"]:
        return meant.get(found["all"], found["all"])
    return "-".join(_LITERAL.get(one, _MEANT.get(one, one)) for one in (found["first"], found["last"]) if one)


def types_of(schema: object, root: Mapping[str, Any]) -> frozenset[str]:
    """The types that a schema allows, as far as that is to be seen; it refers to what stands in `root`."""
    return _types(schema, root, 0, {})


def _types(schema: object, root: Mapping[str, Any], depth: int, known: dict[str, frozenset[str]]) -> frozenset[str]:
    """The same; `known`: of references, so that each is followed once."""
    if schema is False:
        return frozenset()
    types = frozenset(TYPES)
    if not isinstance(schema, dict) or depth > _DEEPEST:
        return types
    if "type" in schema:
        given = [schema["type"]] if isinstance(schema["type"], str) else _listed(schema, "type")
        types &= {"number" if name == "integer" else str(name) for name in given}
    if (values := constants(schema)) is not None:
        types &= set(map(type_of, values))
    if "$ref" in schema:
        reference = str(schema["$ref"])
        if reference not in known:
            known[reference] = frozenset(TYPES)
            known[reference] = _types(at_place(root, reference), root, depth + 1, known)
        types &= known[reference]
    for part in _listed(schema, "allOf"):
        types &= _types(part, root, depth + 1, known)
    for key in ("anyOf", "oneOf"):
        if alternatives := _listed(schema, key):
            types &= frozenset().union(*(_types(part, root, depth + 1, known) for part in alternatives))
    return types


def _listed(schema: Mapping[str, Any], key: str) -> list[Any]:
    value = schema.get(key)
    return value if isinstance(value, list) else []
