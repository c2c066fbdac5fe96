"""What transformers adds to jinja for chat templates: a tag, and JSON as people read it."""

from __future__ import annotations

import json
from typing import Any

from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.runtime import Macro
from jinja2.utils import pass_eval_context


class Generation(Extension):
    """`{% generation %}`, by which transformers marks what to train on; the text in it is text as any other."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> nodes.Node:
        """A block of its own, as in transformers: what is set in it is not known outside."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_as_it_is"), [], [], body).set_lineno(line)

    @staticmethod
    @pass_eval_context
    def _as_it_is(_context: nodes.EvalContext, caller: Macro) -> str:
        return caller()


def to_json(
    x: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """The filter `tojson`: letters stay letters, and nothing is escaped for HTML."""
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
