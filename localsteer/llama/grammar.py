"""Grammars (GBNF) that an answer can be made to follow, from JSON schemas."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

from localsteer.errors import LocalsteerError
from localsteer.llama import library

# Schemas come from outside, and grammars of this size are read in no time.
_MAX_SCHEMA = 20_000
# llama.cpp refuses twice as many (MAX_REPETITION_THRESHOLD), and does not say why.
_MAX_COUNT = 1000
# Of one in which everything is optional, llama.cpp tries every end at every token: seconds where it is ten times as long.
_MAX_PATTERN = 400
# JSON has no control characters inside strings.
_CHARACTER = r'[^"\\\x00-\x1F\x7F]'


def any_json() -> str:
    """The grammar of a JSON object with whatever is in it."""
    library.load()
    from llama_cpp.llama_grammar import JSON_GBNF

    return str(JSON_GBNF)


def of_schema(schema: Mapping[str, Any]) -> str:
    """The grammar of the JSON documents that a schema describes, by llama.cpp's own rules (json_schema_to_grammar).

    Raises:
        LocalsteerError: it is no schema, or says what a grammar cannot.
    """
    try:
        text = json.dumps(schema)
        if len(text) > _MAX_SCHEMA:
            raise ValueError(f"it has {len(text):,} characters, and {_MAX_SCHEMA:,} are allowed")
        converter = _converter_class()(prop_order={}, allow_fetch=False, dotall=False, raw_pattern=False)
        converter.visit(converter.resolve_refs(json.loads(text), ""), "")
        grammar = str(converter.format_grammar())
        grammar.encode()  # half a character cannot be written
    except Exception as error:  # whatever a schema from outside makes the converter stumble over
        reason = " ".join(str(error).split()) or type(error).__name__
        raise LocalsteerError(f"The JSON schema cannot be made into a grammar: {reason}.") from error
    return grammar


@functools.cache
def _converter_class() -> Any:
    """llama-cpp-python's converter without its mistakes, each of which makes an answer that is no JSON, or ends the process."""
    library.load()
    from llama_cpp import llama_grammar

    # It writes {0,30000} as so many brackets within each other, at which llama.cpp's parser overflows its stack.
    llama_grammar._build_repetition = _repetition

    class Converter(llama_grammar.SchemaConverter):  # type: ignore[misc]
        def _format_literal(self, literal: str) -> str:
            """It forgets to escape backslashes: what was an escaped line break becomes a raw one."""
            plain = json.dumps(json.loads(literal), ensure_ascii=False)
            escaped = plain.replace("\\", "\\\\").replace('"', '\\"')
            return f'"{escaped}"'

        def _visit_pattern(self, pattern: str, name: str) -> Any:
            """It takes one of any length."""
            if len(pattern) > _MAX_PATTERN:
                raise ValueError(f"a pattern has {len(pattern):,} characters, and {_MAX_PATTERN} are allowed")
            return super()._visit_pattern(pattern, name)

        def _build_object_rule(self, properties: Any, *others: Any, **named: Any) -> Any:
            """A property without a name becomes the whole document."""
            if any(not name for name, _ in properties):
                raise ValueError("a property has no name")
            return super()._build_object_rule(properties, *others, **named)

        def format_grammar(self) -> str:
            """Its strings may hold line breaks."""
            if "char" in self._rules:
                self._rules["char"] = self._rules["char"].replace(r'[^"\\]', _CHARACTER)
            if "dot" in self._rules:
                self._rules["dot"] = _CHARACTER
            return str(super().format_grammar())

    return Converter


def _repetition(
    item: str, least: int, most: int | None, separator_rule: str | None = None, item_rule_is_literal: bool = False
) -> str:
    """An item so many times, as llama.cpp's own converter writes it; the names are those of the function that it replaces."""
    if max(least, most or 0) > _MAX_COUNT:
        raise ValueError(f"it counts to {max(least, most or 0):,}, and {_MAX_COUNT:,} is the most")
    if most is not None and most < max(least, 0):
        raise ValueError(f"{most} is less than {least}")
    if most == 0:
        return ""
    if separator_rule is None:
        return f"{item}{{{least},{'' if most is None else most}}}"
    rest = _repetition(f"({separator_rule} {item})", max(least - 1, 0), most - 1 if most is not None else None)
    return f"({item} {rest})?" if least == 0 else f"{item} {rest}"
