"""What of a vocabulary belongs to the chat template: the marks that only it may write, and the end of an answer."""

from __future__ import annotations

import ctypes
import functools
import re
from collections.abc import Callable

from localsteer.llama import library
from localsteer.llama.chat_template import ChatTemplate
from localsteer.llama.control_tokens import ControlTokens, TextGuard

_TURN_BEGINS = re.compile(r"\s*\S[^\n]*")
_BLANKS = " \t\n\v\f\r"  # to llama.cpp
_SHORTEST_END = 4  # characters: less may well stand in an answer


class TemplateTokens:
    """A model's vocabulary beside its template.

    Args:
        vocabulary: the `llama_vocab *`.
        n_vocab: number of tokens in it.
        tokenize: `Model.tokenize`.
        template: the template; None for a base model.
        parse_special: control tokens in people's texts count as such.
    """

    def __init__(
        self,
        vocabulary: ctypes.c_void_p,
        n_vocab: int,
        tokenize: Callable[..., list[int]],
        template: ChatTemplate | None,
        *,
        parse_special: bool,
    ) -> None:
        self._llama = library.load()
        self._vocabulary = vocabulary
        self._n_vocab = n_vocab
        self._tokenize = tokenize
        self._template = template
        self._parse_special = parse_special

    def guard(self) -> TextGuard | None:
        """What keeps people's texts plain text in one prompt; None where control tokens in them are read as such."""
        return None if self._parse_special else TextGuard(self._control)

    def tokenize(self, prompt: str, guard: TextGuard | None) -> list[int]:
        """Tokens of a prompt whose texts went through a guard: control tokens in it are the template's.

        Raises:
            LocalsteerError: the prompt holds half a character.
        """
        pieces = list(guard.pieces(prompt)) if guard is not None else [([prompt], True)]
        if len(pieces) == 1 and pieces[0][1]:
            return self._tokenize(prompt)
        tokens: list[int] = []
        for parts, special in pieces:
            if not special and tokens and self._is(tokens[-1], "RSTRIP"):
                # As llama.cpp does where it has both in one text (Phi-3).
                parts = [parts[0].lstrip(_BLANKS), *parts[1:]]
            piece = self._tokenize("".join(parts), add_special=False, special=special)
            if not special and not self._added.isdisjoint(piece):
                # llama.cpp finds these in plain text, too, unless it gets them in two halves.
                piece = [token for half in parts for token in self._tokenize(half, add_special=False, special=False)]
            tokens += piece
        # What a vocabulary wants around a prompt stands around all pieces together.
        first, special = "".join(pieces[0][0]), pieces[0][1]
        bare, ended = (self._tokenize(first, add_special=one, special=special) for one in (False, True))
        begin = int(len(ended) > len(bare) and self._llama.llama_vocab_get_add_bos(self._vocabulary))
        return [*ended[:begin], *tokens, *ended[begin + len(bare) :]]

    @functools.cached_property
    def end(self) -> int | None:
        """The token that the template writes behind an answer; None where it writes plain text, or nothing."""
        for text in self._template.behind_answer if self._template is not None else ():
            if text.strip():
                tokens = self._tokenize(text.lstrip(), add_special=False)
                return tokens[0] if tokens and self._is(tokens[0], "CONTROL", "USER_DEFINED") else None
        return None

    @functools.cached_property
    def written_end(self) -> str:
        """The beginning of the turn that follows an answer, where the template ends answers by no token; "" where it does."""
        if self._template is None or self.end is not None:
            return ""
        begins = _TURN_BEGINS.match(self._template.behind_answer[1])
        text = begins[0].rstrip() if begins is not None else ""
        return text if len(text.strip()) >= _SHORTEST_END else ""

    @functools.cached_property
    def _control(self) -> ControlTokens:
        return ControlTokens({self._text(token) for token in self._marks})

    @functools.cached_property
    def _marks(self) -> frozenset[int]:
        """The control tokens, and what else the vocabulary has been given for the template."""
        written = self._template.written + self._template.for_tools.written if self._template is not None else ""
        control, added = (self._attributes(*names) for names in (("CONTROL", "UNKNOWN"), ("USER_DEFINED",)))
        return frozenset(
            token
            for token in range(self._n_vocab)
            if (attributes := self._llama.llama_vocab_get_attr(self._vocabulary, token)) & (control | added)
            and (text := self._text(token)).strip()
            and (attributes & control or text in written)
        )

    @functools.cached_property
    def _added(self) -> frozenset[int]:
        return frozenset(token for token in self._marks if not self._is(token, "CONTROL", "UNKNOWN"))

    def _is(self, token: int, *names: str) -> bool:
        return bool(self._llama.llama_vocab_get_attr(self._vocabulary, token) & self._attributes(*names))

    def _attributes(self, *names: str) -> int:
        return sum(int(getattr(self._llama, f"LLAMA_TOKEN_ATTR_{name}")) for name in names)

    def _text(self, token: int) -> str:
        return str(self._llama.llama_vocab_get_text(self._vocabulary, token).decode("utf-8", errors="replace"))
