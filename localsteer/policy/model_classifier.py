"""The model classifier: a language model is asked a yes/no question about the text."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from localsteer.errors import PolicyError
from localsteer.llama.chat_template import Message
from localsteer.llama.model import Model
from localsteer.policy.classifier import Classifier, Observer, Seen
from localsteer.reading.predictor import Predictor

# Texts are judged in pieces of this many tokens, half of each shared with the next, and the highest score counts: a long text
# costs time in proportion to its length, and nothing can hide in the middle of one.
PIECE = 1024
_ROOM = 512  # for the question and the template
_REMEMBERED = 128  # pieces: those of an answer of 65,536 tokens
_MARK = "\x01text\x01"
_YES = ("yes", "Yes", "YES", " yes", " Yes", " YES")
_NO = ("no", "No", "NO", " no", " No", " NO")


class Judge:
    """A model that answers yes/no questions about texts; many classifiers may share one.

    What a text has in common with the one judged before is not computed again, and neither are the pieces that it has outgrown,
    so a growing answer costs its new tokens.

    Args:
        open_model: opens the model at the first question; it may be the chat's own.
        where: what to call it in messages.
    """

    def __init__(self, open_model: Callable[[], Model], where: str) -> None:
        self._open = open_model
        self._where = where
        self._predictor: Predictor | None = None
        self._remembered_score = functools.lru_cache(_REMEMBERED)(self._score)

    @functools.cached_property
    def model(self) -> Model:
        """The model, opened when it is first asked for."""
        return self._open()

    @functools.cached_property
    def _answers(self) -> tuple[list[int], list[int]]:
        """The tokens that mean yes and no.

        Raises:
            PolicyError: the vocabulary has none.
        """
        sides = [
            sorted({tokens[0] for word in words if len(tokens := self.model.tokenize(word, add_special=False)) == 1})
            for words in (_YES, _NO)
        ]
        if not all(sides):
            raise PolicyError(
                f"{self._where} has no single tokens for yes and no, so it cannot judge.", hint="Use another model."
            )
        return sides[0], sides[1]

    def close(self) -> None:
        """Free the context (not the model)."""
        if self._predictor is not None:
            self._predictor.close()
            self._predictor = None

    def ask(self, question: str, text: str) -> float:
        """p(yes) / (p(yes) + p(no)) of the first word of the answer, the highest of all pieces of the text.

        Raises:
            LocalsteerError: the model cannot be opened, cannot say yes and no, or the question is too long.
        """
        predictor = self._ready()
        head, tail = self._frame(question)
        room = predictor.n_ctx - len(head) - len(tail)
        if room < 2:
            raise PolicyError(f"The question is too long for {self._where}.", hint="Ask a shorter one.")
        # Special tokens in the text are read as plain text: it must not be able to end the message and answer itself.
        tokens = self.model.tokenize(text, add_special=False, special=False)
        *outgrown, last = ((*head, *piece, *tail) for piece in _pieces(tokens, min(PIECE, room)))
        # NumPy's maximum, which a score that is not a number does not hide in.
        return float(np.max([*map(self._remembered_score, outgrown), self._score(last)]))

    def _ready(self) -> Predictor:
        if self._predictor is None:
            limit = PIECE + _ROOM
            self._predictor = Predictor(self.model, min(limit, self.model.n_ctx_train or limit))
        _ = self._answers
        return self._predictor

    def _frame(self, question: str) -> tuple[list[int], list[int]]:
        """The tokens before and after the text."""
        content = f"{question}\n\nThe text:\n{_MARK}\n\nAnswer with one word, yes or no."
        template = self.model.chat_template
        rendered = template.render([Message("user", content)], think=False) if template is not None else f"{content}\n\nAnswer:"
        head, found, tail = rendered.partition(_MARK)
        if not found:
            raise PolicyError(
                f"The chat template of {self._where} changes the text, so it cannot judge.", hint="Use another model."
            )
        return self.model.tokenize(head), self.model.tokenize(tail, add_special=False)

    def _score(self, tokens: tuple[int, ...]) -> float:
        logits = self._ready().after(tokens).astype(np.float64)
        with np.errstate(invalid="ignore"):  # the controller tells of a score that is not a number
            yes, no = (np.logaddexp.reduce(logits[side]) for side in self._answers)
            return float(np.exp(yes - np.logaddexp(yes, no)))


def _pieces(tokens: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """All of the text in pieces of at most `size` tokens, each beginning in the middle of the one before."""
    start = 0
    while True:
        yield tokens[start : start + size]
        if start + size >= len(tokens):
            return
        start += max(size // 2, 1)


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelClassifier(Classifier):
    """Scores a text by a model's answer to a question about it.

    Attributes:
        judge: the model.
        question: about the text, to be answered with yes or no.
    """

    judge: Judge
    question: str
    costly: bool = True

    def observer(self) -> Observer:
        """A view of one answer."""
        return _JudgeObserver(self)


class _JudgeObserver(Observer):
    def __init__(self, classifier: ModelClassifier) -> None:
        self._classifier = classifier

    def observe(self, seen: Seen) -> float:
        classifier = self._classifier
        return classifier.judge.ask(classifier.question, seen.message if classifier.watch == "prompt" else seen.answer)
