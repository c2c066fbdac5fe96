"""Grammars (GBNF) that an answer can be made to follow, from JSON schemas."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from localsteer.errors import LocalsteerError
from localsteer.llama import library


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
    library.load()
    from llama_cpp.llama_grammar import json_schema_to_gbnf

    try:
        return str(json_schema_to_gbnf(json.dumps(schema)))
    except Exception as error:  # whatever a schema from outside makes the converter stumble over
        reason = " ".join(str(error).split()) or type(error).__name__
        raise LocalsteerError(f"The JSON schema cannot be made into a grammar: {reason}.") from error
