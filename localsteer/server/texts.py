"""Texts as llama-server takes them: as strings, as tokens, as both mixed, as parts."""

from __future__ import annotations

from localsteer.llama.model import Model
from localsteer.server.answers import RequestError

_PARTS = ("text", "input_text")


def token_lists(model: Model, given: object, parameter: str) -> list[tuple[int, ...]]:
    """The tokens of one text or several: a list in which a number stands is one text.

    Raises:
        RequestError: it is no text, or holds no text or what is none.
        LocalsteerError: a text is no valid Unicode.
    """
    if isinstance(given, list) and not any(_is_token(part) for part in given):
        if not given:
            raise RequestError("There is no text.", parameter)
        return [_tokens(model, one, parameter) for one in given]
    return [_tokens(model, given, parameter)]


def _tokens(model: Model, given: object, parameter: str) -> tuple[int, ...]:
    """Those of one text; the model's beginning-of-sequence token stands before what begins with a string."""
    if isinstance(given, dict):
        given = _in_object(given, parameter)
    if isinstance(given, str):
        return tuple(model.tokenize(given))
    if not isinstance(given, list) or not all(_is_token(part) or isinstance(part, str) for part in given):
        raise RequestError("A text is a string, or a list of tokens and strings.", parameter)
    tokens: list[int] = []
    for part in given:
        if isinstance(part, str):
            tokens += model.tokenize(part, add_special=not tokens)
        elif 0 <= part < model.n_vocab:
            tokens.append(part)
        else:
            raise RequestError(f"{part} is no token of this model.", parameter)
    return tuple(tokens)


def _is_token(part: object) -> bool:
    return isinstance(part, int) and not isinstance(part, bool)


def _in_object(given: dict[str, object], parameter: str) -> object:
    if given.get("multimodal_data"):
        raise RequestError("Images and sound cannot be read.", parameter)
    parts = given.get("content")
    if not isinstance(parts, list):
        return given.get("prompt_string")
    texts: list[str] = []
    for part in parts:
        text = part.get("text") if isinstance(part, dict) and part.get("type") in _PARTS else None
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, dict) else None
            raise RequestError(f"A part of the type {kind!r} cannot be read, only text.", parameter)
        texts.append(text)
    return "".join(texts)
