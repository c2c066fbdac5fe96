"""Grammars that an answer can be made to follow, by llguidance: an Earley parser over the bytes of a model's tokens."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, Self
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from localsteer.errors import LocalsteerError, ModelError
from localsteer.llama.apart import NotStartedError
from localsteer.llama.gbnf import is_lark, to_lark
from localsteer.llama.grammar_trial import TooMuchError, limits, try_apart
from localsteer.llama.json_schema import MAX_CHARACTERS, of_schema
from localsteer.llama.model import Model

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

# The model cuts a text into tokens as it likes, as where nothing is asked of it; not as the tokenizer would.
_OPTIONS = '\n%llguidance {"no_forcing": true}\n'
# What no sampler here can do, on the head of a rule.
_TEMPERATURE = re.compile(r"^[ \t]*[\w-]+\s*\[[^\]\n]*\btemperature\s*=", re.MULTILINE)
# How it begins to show the lines of a grammar.
_LISTING = re.compile(r"\n\s*\d+ \|")
_LONGEST_REASON = 300
# Tokens that an answer is followed through before anybody waits for one: where nothing can come next, that shows.
_REHEARSED = 8
# A token by its name, or by its number.
_TOKEN = re.compile(r"<[^<>\s]+>")
_NUMBERED = re.compile(r"<\[[\d^,*-]+\]>")
_ANY = "<[*]>"
# Marks a token that stands for no text.
_SPECIAL = b"\xff"


class Grammar:
    """A grammar, ready for a model's vocabulary. What follows it is the text that is shown.

    Args:
        model: whose tokens follow it.
        lark: the grammar in llguidance's Lark (docs/syntax.md of its repository), from its rule `start` on. A token that adds no
            text is `<|its name|>` or `<[its number]>`.

    Raises:
        LocalsteerError: it cannot be read, nothing follows it, it is too much for the parser, or there is no parser.
    """

    def __init__(self, model: Model, lark: str) -> None:
        _check_length(lark, 2 * MAX_CHARACTERS)  # what is made of a schema is longer than the schema
        try:
            lark.encode()
        except UnicodeEncodeError as error:
            raise LocalsteerError(f"The grammar is not valid Unicode (character {error.start}).") from error
        if _TEMPERATURE.search(lark):
            raise LocalsteerError("A grammar cannot set the temperature of a rule here.", hint="Leave temperature= out.")
        lark += _OPTIONS
        known = vocabulary(model)
        try:
            try_apart(_TOKEN.sub(lambda found: _ANY if known.is_special(found[0]) else found[0], lark))
        except TooMuchError as error:
            raise LocalsteerError(f"The grammar cannot be used: {error}.") from error
        except NotStartedError as error:
            raise LocalsteerError(f"No grammar can be used here: {error}.") from error
        self._pristine: LLMatcher = _llguidance().LLMatcher(known.tokenizer, lark, limits=limits(), log_level=0)
        if self._pristine.is_error():
            raise LocalsteerError(f"The grammar cannot be used: {_reason(self._pristine)}.")
        self._n_vocab = model.n_vocab
        rehearsed = self.matcher()
        for _ in range(_REHEARSED):
            if not rehearsed.is_complete:
                rehearsed.accept(int(rehearsed.allowed().argmax()))

    @classmethod
    def from_schema(cls, model: Model, schema: Mapping[str, Any] | bool) -> Self:
        """That of the documents that a JSON schema describes; see `json_schema.of_schema`.

        Raises:
            LocalsteerError: it is no schema, nothing satisfies it, or it says what cannot be had.
        """
        return cls(model, of_schema(schema))

    @classmethod
    def from_text(cls, model: Model, text: str) -> Self:
        """One in GBNF, or in Lark.

        Raises:
            LocalsteerError: as above.
        """
        _check_length(text, MAX_CHARACTERS)
        return cls(model, text if is_lark(text) else to_lark(text))

    def matcher(self) -> Matcher:
        """For one answer, from its beginning."""
        return Matcher(self._pristine.deep_copy(), self._n_vocab)


class Matcher:
    """Where an answer stands in its grammar."""

    def __init__(self, matcher: LLMatcher, n_vocab: int) -> None:
        self._matcher = matcher
        self._n_vocab = n_vocab

    @property
    def is_complete(self) -> bool:
        """Whether nothing but an end can follow."""
        return self._matcher.is_stopped()

    def allows(self, token: int) -> bool:
        """Whether a token may come next.

        Raises:
            ModelError: the grammar has become too much for the parser.
        """
        if self._matcher.is_stopped():
            return bool(self.allowed()[token])
        allows = self._matcher.validate_tokens([token]) == 1
        self._check()
        return allows

    def allowed(self) -> NDArray[np.bool_]:
        """(n_vocab,) whether each token may come next.

        Raises:
            ModelError: none may, or the grammar has become too much for the parser.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        return np.unpackbits(bits, count=self._n_vocab, bitorder="little").view(np.bool_)

    def accept(self, token: int) -> None:
        """A token that is allowed has been drawn.

        Raises:
            ModelError: the grammar has become too much for the parser.
        """
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise ModelError(f"The answer cannot go on as its grammar wants: {_reason(self._matcher)}.")


@dataclass(frozen=True)
class Vocabulary:
    """A model's tokens.

    Attributes:
        tokenizer: as llguidance takes them.
        special: names of those that add no text.
    """

    tokenizer: LLTokenizer
    special: frozenset[str]

    def is_special(self, token: str) -> bool:
        """Whether this stands in a grammar for a token that adds no text."""
        return token in self.special or _NUMBERED.fullmatch(token) is not None


_vocabularies: WeakKeyDictionary[Model, Vocabulary] = WeakKeyDictionary()


def vocabulary(model: Model) -> Vocabulary:
    """A model's tokens, read once: 0.6 s for 49k of them, 1.8 s for 152k.

    Raises:
        LocalsteerError: llguidance is not there.
    """
    if model not in _vocabularies:
        make = _llguidance().LLTokenizer
        tokens = [model.token_bytes(token) or _special(model, token) for token in range(model.n_vocab)]
        special = frozenset(token[len(_SPECIAL) :].decode(errors="replace") for token in tokens if token.startswith(_SPECIAL))
        _vocabularies[model] = Vocabulary(make(_Tokens(tokens), eos_token=list(model.end_tokens)), special)
    return _vocabularies[model]


def _special(model: Model, token: int) -> bytes:
    name = model.token_bytes(token, special=True)
    return _SPECIAL + name if name else b""


class _Tokens:
    """What llguidance asks of a tokenizer: the bytes that each token adds to a text. It never has a text cut into tokens."""

    is_tokenizer_wrapper = True
    bos_token_id = None
    eos_token_id = 0  # those that are given beside it count
    special_token_ids: Sequence[int] = ()

    def __init__(self, tokens: Sequence[bytes]) -> None:
        self.tokens = tokens


def _llguidance() -> ModuleType:
    """The package, which only answers that follow something need; it is not everywhere."""
    try:
        import llguidance
    except ImportError as error:
        raise LocalsteerError(
            f"Answers that follow a schema or a grammar, or call tools, need llguidance, which cannot be imported ({error}).",
            hint="Run `pip install llguidance`; where there is no wheel of it for the system, pip needs Rust (https://rustup.rs).",
        ) from error
    return llguidance


def _check_length(grammar: str, allowed: int) -> None:
    if len(grammar) > allowed:
        raise LocalsteerError(f"The grammar has {len(grammar):,} characters, and {allowed:,} are allowed.")


def _reason(matcher: LLMatcher) -> str:
    """What llguidance says, without the grammar and the places in what was made of it."""
    text = _LISTING.split(matcher.get_error())[0].split("\n<")[0]
    if text.startswith("NoExtension"):
        return "no token of the model's vocabulary can come next"
    if text.startswith("panic"):
        return "the parser failed"
    text = text.removeprefix("at ").split("failed to compile JSON schema: ")[-1]
    return " ".join(text.split()).rstrip(".")[:_LONGEST_REASON]
