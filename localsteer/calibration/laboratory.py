"""Answers under steering, and what they read: measured once, kept on disk, so that an interrupted calibration goes on."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from localsteer.building.layers import middle_layers
from localsteer.calibration.instrument import Instrument, half_of
from localsteer.calibration.shapes import Directions, Shape
from localsteer.concepts.contrast import Contrast
from localsteer.engine.generate import MAX_PARALLEL, generate_many
from localsteer.engine.request import Request, answering_seconds
from localsteer.errors import CalibrationError
from localsteer.llama.chat_template import Message
from localsteer.llama.model import Model
from localsteer.llama.residual import Edit
from localsteer.llama.sampling import Sampling
from localsteer.reading.activations import read_activations
from localsteer.reading.prompt import prompt_tokens
from localsteer.reading.rows import Means, Span
from localsteer.reading.scoring import Scored, reread
from localsteer.steering.expression import Steering
from localsteer.steering.plan import Plan
from localsteer.vector.calibration import POLES, Mode, Pole
from localsteer.vector.control_vector import Floats

logger = logging.getLogger("localsteer")

# The instrument's centre and spread are those of this many unsteered answers, and its directions are fitted on the first of them:
# on the demo model directions from two halves of 20 agree to a cosine of 0.9.
_FITTED_ON = 20
_READ_UNDER_PERSONAS = 16
# How many readings of answers that makes: once as they are, twice under a persona at half the price.
INSTRUMENT_READINGS = _FITTED_ON + _READ_UNDER_PERSONAS
# Of what is kept on disk: counted up when the same trial would read otherwise.
_VERSION = 2
_PROBE_ANSWERS = 8
_PROBE_TOKENS = 8


@dataclass(frozen=True)
class Trial:
    """One answer to be measured.

    Attributes:
        number: tells which question (modulo their count) and which seed. Equal numbers share both, so that two
            steerings are compared on the same chances.
        shape: where to steer; None for not at all.
        dose: relative dose; negative toward the negative pole.
        mode: what is steered, and whether the unsteered model has a say in it.
        persona: answer under this pole's persona as a system prompt.
    """

    number: int
    shape: Shape | None = None
    dose: float = 0.0
    mode: Mode = "response"
    persona: Pole | None = None

    @property
    def key(self) -> str:
        """What the measurement is filed under."""
        return f"{self.number}|{self.shape}|{self.dose:+.5f}|{self.mode}|{self.persona}"

    @staticmethod
    def is_unsteered(key: str) -> bool:
        """Whether a key is that of a trial without steering."""
        return key.split("|")[1] == "None"


@dataclass(frozen=True)
class Outcome:
    """What came of a trial.

    Attributes:
        tokens: the answer.
        ended: whether it ended by itself.
        nll: nats a token under the unsteered model; NaN for an empty answer, and until it is re-read.
        reading: the instrument's, in standard deviations of the unsteered answers; likewise.
    """

    tokens: tuple[int, ...]
    ended: bool
    nll: float = float("nan")
    reading: float = float("nan")

    @property
    def distinct(self) -> float:
        """Share of distinct 3-grams of tokens; 1 for an answer too short to repeat one, 0 for none at all."""
        if not self.tokens:
            return 0.0
        grams = list(zip(self.tokens, self.tokens[1:], self.tokens[2:], strict=False))
        return len(set(grams)) / len(grams) if grams else 1.0


@dataclass(frozen=True)
class Speed:
    """Tokens a second in batches."""

    answering: float
    reading: float


@dataclass(eq=False)
class Laboratory:
    """Runs trials.

    Attributes:
        model: the model.
        directions: what is steered along.
        contrast: the concept: questions and personas.
        seed: of all sampling.
        max_tokens: longest answer.
        folder: where measurements are kept; None keeps none.
        fresh: forget what an earlier run has left there.
        on_progress: told how many of the answers asked for so far are measured.
    """

    model: Model
    directions: Directions
    contrast: Contrast
    _: KW_ONLY
    seed: int
    max_tokens: int
    folder: Path | None = None
    fresh: bool = False
    on_progress: Callable[[int], None] | None = None

    def __post_init__(self) -> None:
        self._outcomes: dict[str, Outcome] = {}
        self._read: set[str] = set()
        self._asked: set[str] = set()
        self._is_cut_off = False
        self._plans: dict[tuple[Shape, float, Mode], Plan] = {}
        self._file = self.folder / f"{self._key}.jsonl" if self.folder is not None else None
        if self.fresh and self._file is not None:
            self._file.unlink(missing_ok=True)
        self._load()

    def for_directions(self, directions: Directions) -> Laboratory:
        """A laboratory for another vector that shares the instrument, and the answers that no vector steered."""
        other = Laboratory(self.model, directions, self.contrast, seed=self.seed, max_tokens=self.max_tokens, folder=self.folder)
        other.instrument = self.instrument
        for key, outcome in self._outcomes.items():
            if key in self._read and key not in other._read and Trial.is_unsteered(key):
                other._outcomes[key] = outcome
                other._read.add(key)
        return other

    @property
    def generated_tokens(self) -> int:
        """How many tokens the answers asked for took, now or in an earlier run."""
        return sum(len(self._outcomes[key].tokens) for key in self._asked)

    @property
    def measured(self) -> int:
        """How many answers are measured, those of an earlier run included."""
        return len(self._read)

    def measured_for(self, shapes: Sequence[Shape], modes: Sequence[Mode]) -> int:
        """How many of them are unsteered, or steered by one of these shapes in one of these modes."""
        wanted = set(map(str, shapes))
        parts = (key.split("|") for key in self._read)
        return sum(shape == "None" or (shape in wanted and mode in modes) for _, shape, _, mode, _ in parts)

    @property
    def keeps(self) -> bool:
        """Whether measurements are kept on disk."""
        return self._file is not None

    def question_of(self, trial: Trial) -> int:
        """The index of the held-out question that a trial answers."""
        return trial.number % len(self.contrast.held_out)

    def text_of(self, trial: Trial) -> str:
        """The answer to a trial that was measured."""
        return b"".join(map(self.model.token_bytes, self._outcomes[trial.key].tokens)).decode(errors="replace").strip()

    def measure(self, trials: Sequence[Trial]) -> list[Outcome]:
        """Answer and re-read what was not measured yet."""
        instrument = self.instrument
        self._asked |= {trial.key for trial in trials}
        # Answers to the same question in the same batch share its prompt: half of the reading would be prompts otherwise.
        todo = sorted((trial for trial in dict.fromkeys(trials) if trial.key not in self._read), key=self.question_of)
        for start in range(0, len(todo), MAX_PARALLEL):
            part = todo[start : start + MAX_PARALLEL]
            self._answer(part)
            found = reread(self.model, [self._scored(trial) for trial in part], instrument.layers)
            self._file_readings(part, found, instrument)
            if self.on_progress is not None:
                self.on_progress(len(self._asked & self._read))
        return [self._outcomes[trial.key] for trial in trials]

    @cached_property
    def instrument(self) -> Instrument:
        """Fitted to the unsteered answers, which are sampled first."""
        unsteered = [Trial(number) for number in range(_FITTED_ON)]
        self._asked |= {trial.key for trial in unsteered}
        self._answer(unsteered)
        if not any(self._outcomes[trial.key].tokens for trial in unsteered):
            raise self._no_answers()
        layers = middle_layers(self.model.n_layer)
        found = reread(self.model, [self._scored(trial) for trial in unsteered], layers)
        questions = [self.question_of(trial) for trial in unsteered]
        directions = self._persona_directions(unsteered, layers) if self.contrast.personas else self._pair_directions(layers)
        instrument = Instrument.fit(layers, directions, found.values, questions)
        self._file_readings(unsteered, found, instrument)
        return instrument

    def probe_speed(self) -> Speed:
        """Measured on a few unsteered tokens."""
        requests = [replace(self._request(Trial(number)), max_tokens=_PROBE_TOKENS) for number in range(_PROBE_ANSWERS)]
        answers = generate_many(self.model, requests)
        tokens = sum(len(answer.tokens) for answer in answers)
        if not tokens:
            raise self._no_answers()
        scored = [Scored(request.prompt, answer.tokens) for request, answer in zip(requests, answers, strict=True)]
        start = time.perf_counter()
        reread(self.model, scored)
        seconds = time.perf_counter() - start
        return Speed(
            tokens / answering_seconds([answer.timing for answer in answers]),
            sum(len(pair.prompt) + len(pair.answer) for pair in scored) / seconds,
        )

    def _no_answers(self) -> CalibrationError:
        return CalibrationError(
            f"{self.model.name} gives no answers to the held-out questions of {self.contrast.name}.",
            hint="Is it a language model that answers? `localsteer generate` shows.",
        )

    def _persona_directions(self, unsteered: Sequence[Trial], layers: Sequence[int]) -> Floats:
        """What reading the same answers under the positive rather than the negative persona changes: (2, n_read, n_embd)."""
        trials = [trial for trial in unsteered[:_READ_UNDER_PERSONAS] if self._outcomes[trial.key].tokens]
        spans = []
        for pole in POLES:
            for trial in trials:
                prompt = self._prompt(trial, pole)
                spans.append(Span(prompt + self._outcomes[trial.key].tokens, start=len(prompt)))
        # Nothing above the highest layer is computed, nor the logits: half the price of a re-reading.
        values = read_activations(self.model, spans, layers).values
        positive, negative = np.split(values, 2)
        halves = half_of([self.question_of(trial) for trial in trials])
        # What is applied to one half of the questions is fitted on the other (on both, if the other got no answers at all).
        fitted = [others if (others := halves != half).any() else np.ones_like(others) for half in (0, 1)]
        return np.stack([(positive - negative)[others].mean(axis=0) for others in fitted])

    def _pair_directions(self, layers: Sequence[int]) -> Floats:
        """For a concept of explicit pairs: the mean difference of the pairs themselves, for both halves of the questions."""
        spans = [Span(tuple(self.model.tokenize(prompt.render(self.model)))) for prompt in self.contrast.prompts()]
        values = read_activations(self.model, spans, layers).values
        n_pairs = len(values) // 2
        direction = values[:n_pairs].mean(axis=0) - values[n_pairs:].mean(axis=0)
        return np.stack([direction, direction])

    def _answer(self, trials: Sequence[Trial]) -> None:
        todo = [trial for trial in trials if trial.key not in self._outcomes]
        for start in range(0, len(todo), MAX_PARALLEL):
            part = todo[start : start + MAX_PARALLEL]
            answers = generate_many(self.model, [self._request(trial) for trial in part])
            for trial, answer in zip(part, answers, strict=True):
                self._outcomes[trial.key] = Outcome(answer.tokens, answer.finish_reason == "stop")
            self._store(part)

    def _file_readings(self, trials: Sequence[Trial], found: Means, instrument: Instrument) -> None:
        readings = instrument.read(found.values, [self.question_of(trial) for trial in trials])
        for trial, nll, reading in zip(trials, found.nll, readings, strict=True):
            self._outcomes[trial.key] = replace(self._outcomes[trial.key], nll=float(nll), reading=float(reading))
        new = [trial for trial in trials if trial.key not in self._read]
        self._read |= {trial.key for trial in new}
        self._store(new)

    def _scored(self, trial: Trial) -> Scored:
        """The answer as the unsteered model re-reads it: after the bare question, whatever it was sampled under."""
        return Scored(self._prompt(trial, None), self._outcomes[trial.key].tokens)

    def _prompt(self, trial: Trial, persona: Pole | None) -> tuple[int, ...]:
        question = Message("user", self.contrast.held_out[self.question_of(trial)])
        if persona is None:
            return prompt_tokens(self.model, [question])
        systems = self.contrast.personas[trial.number % len(self.contrast.personas)]
        return prompt_tokens(self.model, [Message("system", systems[POLES.index(persona)]), question])

    def _request(self, trial: Trial) -> Request:
        # Far enough apart that two calibrations with neighbouring seeds share none.
        sampling = Sampling(seed=(self.seed * 100_003 + trial.number) % 2**31)
        prompt, plan = self._prompt(trial, trial.persona), self._plan(trial)
        return Request(prompt, plan, sampling, self.max_tokens, mode=trial.mode)

    def _plan(self, trial: Trial) -> Plan | None:
        if trial.shape is None:
            return None
        key = (trial.shape, trial.dose, trial.mode)
        if key not in self._plans:
            edit = Edit(self.directions.added(trial.shape, trial.dose))
            self._plans[key] = Plan(Steering(), edit, abs(trial.dose), trial.mode)
        return self._plans[key]

    @property
    def _key(self) -> str:
        """Everything that a measurement depends on but for the trial itself."""
        contrast = self.contrast
        parts = [_VERSION, self.model.fingerprint.content, self.seed, self.max_tokens, MAX_PARALLEL]
        parts += [contrast.held_out, contrast.personas, None if contrast.personas else contrast.sha256(self.model)]
        digest = hashlib.sha256(json.dumps(parts).encode())
        for array in (self.directions.unit, self.directions.difference, self.directions.hidden):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:24]

    def _load(self) -> None:
        if self._file is None or not self._file.exists():
            return
        text = self._file.read_text(encoding="utf-8", errors="replace")
        self._is_cut_off = bool(text) and not text.endswith("\n")
        for line in text.splitlines():
            try:
                record = json.loads(line)
                key, read = str(record["key"]), bool(record["read"])
                outcome = Outcome(tuple(record["tokens"]), record["ended"], record["nll"], record["reading"])
            except (ValueError, KeyError, TypeError):
                continue  # the line at which an interrupted run was cut off
            self._outcomes[key] = outcome
            if read:
                self._read.add(key)

    def _store(self, trials: Sequence[Trial]) -> None:
        if self._file is None:
            return
        lines = []
        for trial in trials:
            outcome = self._outcomes[trial.key]
            lines.append(json.dumps({"key": trial.key, "read": trial.key in self._read, **vars(outcome)}) + "\n")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a", encoding="utf-8") as file:
                file.writelines(["\n"] * self._is_cut_off + lines)
            self._is_cut_off = False
        except OSError as error:
            logger.warning("measurements cannot be kept in %s: %s", self._file.parent, error.strerror)
            self._file = None
