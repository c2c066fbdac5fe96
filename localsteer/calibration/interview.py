"""Answers under steering, and what they are like."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

import numpy as np

from localsteer.building.refusal import refuses
from localsteer.calibration.outcomes import Outcome, Outcomes, Trial
from localsteer.concepts.contrast import Contrast
from localsteer.concepts.descriptions import everyday_questions
from localsteer.engine.generate import MAX_PARALLEL, generate_many
from localsteer.engine.request import Answer, Request, answering_seconds
from localsteer.errors import CalibrationError
from localsteer.llama.chat_template import Message
from localsteer.llama.model import Model
from localsteer.llama.residual import Edit
from localsteer.llama.sampling import Sampling
from localsteer.reading.forced import Said
from localsteer.reading.listening import Heard, cross_entropies
from localsteer.reading.prompt import answer_prompt
from localsteer.steering.expression import Steering
from localsteer.steering.plan import Plan
from localsteer.vector.calibration import POLES, SIGN, Mode, Pole
from localsteer.vector.control_vector import Floats

# Fewer questions of a concept's own than this, and everyday ones are asked instead.
MIN_QUESTIONS = 4
# How far away in the list the other question is, after which an answer should not be likely.
_ELSEWHERE = 3
LONG = 192
"""Tokens of a long answer."""
# Of what is kept on disk: counted up when the same trial would be measured otherwise.
_VERSION = 4
_PROBE_ANSWERS = 8
_PROBE_TOKENS = 8


@dataclass(frozen=True)
class Speed:
    """Tokens a second in batches."""

    answering: float
    reading: float


@dataclass(eq=False)
class Interview:
    """Asks and listens.

    The voices of the poles are the model's own: under the personas of a concept; after the prompts of pairs, where there are no
    personas; and steered either way, where nothing but the vector is known.

    Attributes:
        model: the model.
        unit: (n_layer, n_embd) what a relative dose of 1 adds.
        identity: what tells that vector from others, whatever strength 1 of it is, and however that is rounded.
        contrast: questions, personas or pairs; None for a vector from elsewhere.
        apart: for each pole the dose at which a vector from elsewhere is its voice.
        seed: of all sampling.
        max_tokens: longest answer.
        folder: where measurements are kept; None keeps none.
        fresh: forget what an earlier run has left there.
        on_progress: told how many of the answers asked for so far are measured.
    """

    model: Model
    unit: Floats
    identity: bytes
    contrast: Contrast | None
    apart: dict[Pole, float]
    _: KW_ONLY
    seed: int
    max_tokens: int
    folder: Path | None = None
    fresh: bool = False
    on_progress: Callable[[int], None] | None = None

    def __post_init__(self) -> None:
        self.questions = questions_of(self.contrast)
        self._asked: set[str] = set()
        of_vector = json.dumps(self.apart).encode() + self.identity
        # Unsteered answers are the same for every vector of a concept, but where it is the vector that listens.
        unsteered = self._name(of_vector if self.contrast is None else b"")
        self._outcomes = Outcomes(self.folder, self._name(of_vector), unsteered, self.fresh)

    @property
    def generated_tokens(self) -> int:
        """How many tokens the answers asked for took, now or in an earlier run."""
        return sum(self._outcomes[key].tokens for key in self._asked)

    @property
    def measured(self) -> int:
        """How many answers are measured, those of an earlier run included."""
        return len(self._outcomes)

    def measured_for(self, modes: Collection[Mode], *, long: bool = False) -> int:
        """How many of them are steered in one of these modes, or unsteered beside them; and how many are long."""
        parts = (key.split("|") for key in self._outcomes)
        return sum(
            long if kind == "long" else bool(modes) and (float(dose) == 0 or mode in modes) for _, dose, mode, kind in parts
        )

    @property
    def keeps(self) -> bool:
        """Whether measurements are kept on disk."""
        return self._outcomes.folder is not None

    @property
    def has_personas(self) -> bool:
        """Whether the poles have system prompts, which answers can be compared with."""
        return self.contrast is not None and bool(self.contrast.personas)

    @property
    def spoken(self) -> str | None:
        """Text in the scripts that the poles may use; None where nothing tells."""
        contrast = self.contrast
        if contrast is None:
            return None
        prompts = (prompt for pair in contrast.pairs for prompt in (pair.positive, pair.negative))
        texts = [prompt.opening + " ".join(message.content for message in prompt.messages) for prompt in prompts]
        return " ".join([*texts, *(text for pair in contrast.personas for text in pair)])

    def question_of(self, trial: Trial) -> int:
        """The index of the question that a trial answers."""
        return trial.number % len(self.questions)

    def text_of(self, trial: Trial) -> str:
        """The answer to a trial that was measured."""
        return self._outcomes[trial.key].text.strip()

    def measure(self, trials: Sequence[Trial]) -> list[Outcome]:
        """Answer and listen to what was not measured yet."""
        self._asked |= {trial.key for trial in trials}
        # Answers to the same question in the same batch share its prompt: half of the reading would be prompts otherwise.
        todo = sorted((trial for trial in dict.fromkeys(trials) if trial.key not in self._outcomes), key=self.question_of)
        for start in range(0, len(todo), MAX_PARALLEL):
            part = todo[start : start + MAX_PARALLEL]
            requests = [self._request(trial) for trial in part]
            answers = generate_many(self.model, requests)
            self._outcomes.add(self._outcomes_of(part, requests, answers))
            if self.on_progress is not None:
                self.on_progress(sum(key in self._outcomes for key in self._asked))
        if trials and not any(outcome.tokens for outcome in self._outcomes.values()):
            raise _no_answers(self.model)
        return [self._outcomes[trial.key] for trial in trials]

    def _outcomes_of(
        self, trials: Sequence[Trial], requests: Sequence[Request], answers: Sequence[Answer]
    ) -> dict[Trial, Outcome]:
        every = list(zip(trials, requests, answers, strict=True))
        listened = [one for one in every if not one[0].long]
        found = dict(zip([trial for trial, _, _ in listened], self._listen(listened), strict=True)) if listened else {}
        nan = float("nan")
        for trial, _, answer in every:
            if trial.long:
                ended = answer.finish_reason == "stop"
                found[trial] = Outcome(answer.text, len(answer.tokens), ended, nan, nan, nan, nan, nan, False, answer.loops)
        return found

    def _plain(self, number: int) -> tuple[int, ...]:
        return _asked(self.model, self.questions, number)

    def _voice(self, number: int, pole: Pole) -> tuple[tuple[int, ...], Edit | None]:
        """What a pole's voice reads before an answer, and what is done to it."""
        place, contrast = POLES.index(pole), self.contrast
        if contrast is None:
            return self._plain(number), Edit(self.unit, scale=SIGN[pole] * self.apart[pole])
        if not contrast.personas:
            pair = contrast.pairs[number % len(contrast.pairs)]
            return tuple(self.model.tokenize((pair.positive, pair.negative)[place].render(self.model))), None
        system = contrast.personas[number % len(contrast.personas)][place]
        question = self.questions[number % len(self.questions)]
        return answer_prompt(self.model, [Message("system", system), Message("user", question)]), None

    def _request(self, trial: Trial) -> Request:
        # Far enough apart that two calibrations with neighbouring seeds share none.
        sampling = Sampling(seed=(self.seed * 100_003 + trial.number) % 2**31)
        prompt = self._plain(trial.number) if trial.persona is None else self._voice(trial.number, trial.persona)[0]
        plan = Plan(Steering(), Edit(self.unit, scale=trial.dose), abs(trial.dose), trial.mode) if trial.dose else None
        words = min(sampling.top_k, self.model.n_vocab)
        if trial.long:
            return Request(prompt, plan, sampling, LONG, mode=trial.mode)
        return Request(prompt, plan, sampling, self.max_tokens, mode=trial.mode, logprobs=words)

    def _listen(self, answered: Sequence[tuple[Trial, Request, Answer]]) -> list[Outcome]:
        heard = []
        for trial, request, answer in answered:
            # What an anchored answer is drawn from depends on the unsteered model as well: there the tokens stand for themselves.
            likeliest = [entry.likeliest for entry in answer.logprobs]
            anchored = trial.mode == "anchored" and trial.dose
            said = Said.exactly(answer.tokens) if anchored else Said.drawn(answer.tokens, likeliest, request.sampling)
            heard += [Heard(self._plain(trial.number), said), Heard(self._plain(trial.number + _ELSEWHERE), said)]
            heard += [Heard(prompt, said, edit) for prompt, edit in (self._voice(trial.number, pole) for pole in POLES)]
        found = cross_entropies(self.model, heard).reshape(len(answered), -1)
        outcomes = []
        for (_, _, answer), row in zip(answered, found, strict=True):
            grams = list(zip(answer.tokens, answer.tokens[1:], answer.tokens[2:], strict=False))
            distinct = len(set(grams)) / len(grams) if grams else float(bool(answer.tokens))
            outcomes.append(
                Outcome(
                    answer.text,
                    len(answer.tokens),
                    answer.finish_reason == "stop",
                    plain=float(row[0]),
                    elsewhere=float(row[1]),
                    positive=float(row[2]),
                    negative=float(row[3]),
                    distinct=distinct,
                    refused=refuses(answer.text),
                )
            )
        return outcomes

    def _name(self, about: bytes) -> str:
        """The file of measurements that depend on this beside the model, the questions and the voices."""
        contrast = self.contrast
        parts = [_VERSION, self.model.fingerprint.content, self.seed, self.max_tokens, MAX_PARALLEL, self.questions]
        if contrast is not None:
            parts.append(contrast.personas or contrast.sha256(self.model))
        return hashlib.sha256(json.dumps(parts).encode() + about).hexdigest()[:24] + ".jsonl"


def questions_of(contrast: Contrast | None) -> tuple[str, ...]:
    """What a vector is measured on: questions that its concept holds back, or everyday ones where it has too few."""
    return contrast.held_out if contrast is not None and len(contrast.held_out) >= MIN_QUESTIONS else everyday_questions()


def probe_speed(model: Model, questions: Sequence[str]) -> Speed:
    """Measured on a few unsteered tokens of answers to some questions; takes seconds.

    Raises:
        CalibrationError: the model gives no answers.
    """
    requests = [
        Request(_asked(model, questions, number), sampling=Sampling(seed=number), max_tokens=_PROBE_TOKENS)
        for number in range(_PROBE_ANSWERS)
    ]
    answers = generate_many(model, requests)
    tokens = sum(len(answer.tokens) for answer in answers)
    if not tokens:
        raise _no_answers(model)
    heard = [Heard(request.prompt, Said.exactly(answer.tokens)) for request, answer in zip(requests, answers, strict=True)]
    start = time.perf_counter()
    cross_entropies(model, heard)
    seconds = time.perf_counter() - start
    read = sum(len(one.prompt) + len(one.said.tokens) for one in heard)
    return Speed(tokens / answering_seconds([answer.timing for answer in answers]), read / seconds)


def prompt_length(model: Model, questions: Sequence[str]) -> float:
    """Mean length of a question's prompt, in tokens."""
    return float(np.mean([len(_asked(model, questions, number)) for number in range(len(questions))]))


def _asked(model: Model, questions: Sequence[str], number: int) -> tuple[int, ...]:
    return answer_prompt(model, [Message("user", questions[number % len(questions)])])


def _no_answers(model: Model) -> CalibrationError:
    return CalibrationError(
        f"{model.name} gives no answers to the questions that the vector is measured on.",
        hint="Is it a language model that answers? `localsteer generate` shows.",
    )
