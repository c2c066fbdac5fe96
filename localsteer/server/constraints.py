"""What a request wants its answer to follow: a JSON schema or a grammar, in the words of three APIs."""

from __future__ import annotations

from collections.abc import Callable

from localsteer.errors import LocalsteerError
from localsteer.llama.grammar import Grammar
from localsteer.llama.model import Model
from localsteer.server.answers import RequestError

# Made where time may be taken for it, for a model's vocabulary.
Constraint = Callable[[Model], Grammar]


def constraint(response_format: object, schema: object, grammar: object) -> Constraint | None:
    """What OpenAI's `response_format`, and llama-server's `json_schema` and `grammar` ask for; None where it is nothing.

    Raises:
        RequestError: more than one of them asks for something, or it is none that there is.
    """
    asked = {
        "response_format": _of_format(response_format),
        "json_schema": of_schema(schema, "json_schema") if schema is not None else None,
        "grammar": of_grammar(grammar) if grammar else None,
    }
    given = {name: made for name, made in asked.items() if made is not None}
    if len(given) > 1:
        raise RequestError(f"Only one of {', '.join(given)} can say what an answer follows.", list(given)[-1])
    return next(iter(given.values()), None)


def of_schema(schema: object, parameter: str) -> Constraint:
    """What a JSON schema in this part of a request asks for.

    Raises:
        RequestError: it is no schema.
    """
    if not isinstance(schema, dict | bool):
        raise RequestError("A JSON schema is an object.", parameter)
    return _blaming(parameter, lambda model: Grammar.from_schema(model, schema))


def of_grammar(grammar: object) -> Constraint:
    """What a grammar asks for, in GBNF, or in llguidance's Lark.

    Raises:
        RequestError: it is no text.
    """
    if not isinstance(grammar, str):
        raise RequestError("A grammar is a text.", "grammar")
    return _blaming("grammar", lambda model: Grammar.from_text(model, grammar))


def any_json(model: Model) -> Grammar:
    """An object with whatever is in it."""
    return Grammar.from_schema(model, {"type": "object"})


def _of_format(response_format: object) -> Constraint | None:
    if not isinstance(response_format, dict):
        return None
    kind = response_format.get("type")
    if kind == "json_object":
        schema = response_format.get("schema")  # as llama-server takes one
        return of_schema(schema, "response_format") if schema is not None else any_json
    if kind == "json_schema":
        # What is `strict` and what is not: both are followed to the letter.
        holder = response_format.get("json_schema")
        schema = holder.get("schema") if isinstance(holder, dict) else None
        if schema is None:
            raise RequestError("response_format of the type json_schema needs json_schema.schema.", "response_format")
        return of_schema(schema, "response_format")
    if kind in (None, "text"):
        return None
    raise RequestError(f'response_format cannot be of the type "{kind}".', "response_format")


def _blaming(parameter: str, make: Constraint) -> Constraint:
    """The same; what is wrong with it is said of this part of the request."""

    def made(model: Model) -> Grammar:
        try:
            return make(model)
        except LocalsteerError as error:
            raise RequestError(error.message, parameter, hint=error.hint) from error

    return made
