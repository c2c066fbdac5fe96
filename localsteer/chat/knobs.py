"""The knobs of a chat: every vector at a strength that can be turned, and how the last question is answered under what is set.

Nothing is drawn here; `localsteer.chat.knob_screen` does that. One thread turns the knobs, another one
carries out `Knobs.preview`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

from localsteer.building.library import loader
from localsteer.chat.screen import harmless
from localsteer.chat.session import Session
from localsteer.chat.tables import measured
from localsteer.concepts.descriptions import everyday_questions
from localsteer.concepts.names import concepts
from localsteer.errors import LocalsteerError
from localsteer.llama.sampling import fresh_seed
from localsteer.steering.expression import Steering, Term
from localsteer.steering.plan import Plan, resolve
from localsteer.steering.worth import pole_name, worth_of
from localsteer.vector.calibration import POLES
from localsteer.vector.control_vector import ControlVector

# Past strength 1 in all, which is measured to hold, text begins to suffer; past the second it falls apart on most models
# (bench/QUALITY.md). A knob ends where text is seldom whole.
MEASURED, _TOO_STRONG, FURTHEST = 1.0, 1.5, 2.0
# Seconds without a turn before an answer is begun: arrow keys repeat ten and more times a second.
_QUIET = 0.3
# Of an answer that is begun: two sentences or so, which show the tone.
_TOKENS = 48


class _UnwantedError(Exception):
    """What is built is not asked for any more."""


def is_fixed(term: Term) -> bool:
    """Whether a term is no knob: it removes something, or is for some layers or the thinking alone."""
    return term.ablate or term.layers is not None or term.phase != "answer"


def warning(steering: Steering) -> str:
    """How much text suffers from all strengths together: "", "strong" or "too-strong"."""
    strength = round(sum(abs(term.strength) for term in steering.terms if not term.ablate), 3)
    return "" if strength <= MEASURED else "strong" if strength <= _TOO_STRONG else "too-strong"


class Knobs:
    """A setting that is tried out; the session's stays as it is.

    Args:
        session: the chat.
        quiet: seconds without a turn before an answer is begun.

    Attributes:
        terms: those of the session's expression, then the library's vectors, those built for this model first.
        chosen: which of them is turned.
        question: what is answered.
        said: the beginning of the answer.
        stale: whether that was said under another setting.
        building: how far a vector is that is being built; "" while none is.
        problem: what went wrong; "" where nothing did.
        kept: whether the setting is to be kept; None until that is decided.
        redraw: called when something of this has changed in the thread of `preview`.

    Raises:
        LocalsteerError: a vector of the session's expression is no longer there.
    """

    def __init__(self, session: Session, *, quiet: float = _QUIET) -> None:
        self._session = session
        self._quiet = quiet
        self._turned = threading.Event()
        self._vectors: dict[str, ControlVector] = {}
        self._doses: dict[str, tuple[float | None, float | None]] = {}
        self._weighed: tuple[object, float | None, str] | None = None
        model, own = session.opened.model, session.steering.terms
        for name in dict.fromkeys(term.vector for term in own):
            self._learn(name, loader(model)(name))
        turnable = {term.vector for term in own if not is_fixed(term)}
        others = [concept for concept in concepts().values() if concept.name not in turnable]
        for concept in others:
            if (found := measured(concept, model.fingerprint.content)) is not None and concept.name not in self._vectors:
                self._learn(concept.name, found.vector)
        others.sort(key=lambda concept: not self.is_built(concept.name))
        self._before = self.terms = (*own, *(Term(concept.name, 0.0) for concept in others))
        self.chosen = next((number for number, term in enumerate(self.terms) if not is_fixed(term)), 0)
        conversation = session.conversation
        # The question, and the seed of the answer that stands above: at the setting as it was, its beginning comes again.
        self.question = conversation.turns[-2].content if conversation.turns else everyday_questions()[0]
        latest, seed = conversation.latest, conversation.sampling.seed
        self._seed = latest.answer.seed if latest is not None else seed if seed is not None else fresh_seed()
        self.said, self.stale = "", True
        self.building = self.problem = ""
        self.kept: bool | None = None
        self.redraw: Callable[[], None] = lambda: None
        self._turned.set()

    # ---- turning

    def choose(self, by: int) -> None:
        """Another knob, so many below; the first and the last one are ends."""
        self.chosen = min(max(self.chosen + by, 0), len(self.terms) - 1)

    def turn(self, by: float) -> None:
        """Turn the chosen knob, at most to twice the measured range (or to where it was)."""
        self._set(self.terms[self.chosen].strength + by)

    def reset(self) -> None:
        """Turn the chosen knob to nothing."""
        self._set(0.0)

    def _set(self, strength: float) -> None:
        term, furthest = self.terms[self.chosen], max(FURTHEST, abs(self._before[self.chosen].strength))
        if is_fixed(term):
            self.problem = f"{term} is not turned here; /steer changes it."
            return
        # "+ 0.0" makes a zero of a negative one.
        strength = round(min(max(strength, -furthest), furthest), 6) + 0.0
        if strength != term.strength:
            self._put(self.chosen, strength)
            self._turned.set()
            self.problem, self.stale = "", True

    def _put(self, number: int, strength: float) -> None:
        self.terms = (*self.terms[:number], replace(self.terms[number], strength=strength), *self.terms[number + 1 :])

    def leave(self, *, keep: bool = False) -> None:
        """No more is turned. What is decided first counts."""
        if self.kept is None:
            self.kept = keep
        self._turned.set()

    # ---- what is set

    @property
    def steering(self) -> Steering:
        """The expression that is set."""
        return Steering(tuple(term for term in self.terms if term.strength))

    def is_built(self, name: str) -> bool:
        """Whether a vector is there; others are built when they are first turned."""
        return name in self._vectors

    def doses(self, name: str) -> tuple[float | None, float | None]:
        """The relative doses of a built vector's strengths -1 and 1, None where they are not known."""
        return self._doses[name]

    def weigh(self) -> tuple[float | None, str]:
        """The relative dose of all that is set and built (None where it is not known), and why that cannot be, if it cannot."""
        state = self.terms, len(self._vectors)
        if self._weighed is None or self._weighed[0] != state:
            try:
                plan = self._plan()
                self._weighed = state, plan.relative_dose if plan is not None else None, ""
            except LocalsteerError as error:
                self._weighed = state, None, error.message
        return self._weighed[1:]

    def worth(self) -> str:
        """What is known of the chosen knob at its strength; of strength 1 where it is not turned."""
        term = self.terms[self.chosen]
        if is_fixed(term):
            return f"{term} stays as it is; /steer changes it."
        if not self.is_built(term.vector):
            return f"{term.vector} is built for this model when it is first turned, which takes a moment."
        vector, strength = self._vectors[term.vector], term.strength or 1.0
        positive, negative = (pole_name(vector, pole) for pole in POLES)
        dose = self._doses[term.vector][strength > 0]
        told = "" if dose is None else f"; {strength:+g} is a relative dose of {abs(strength) * dose:.2f}"
        told += ", past what was measured" if abs(strength) > MEASURED else ""
        known = worth_of(vector, strength, self._session.conversation.mode) or "What it does was not measured."
        return f"-1 {negative}, +1 {positive}{told}\n{known}"

    def _plan(self) -> Plan | None:
        """What is set, as far as it is built; None where that is nothing."""
        known = Steering(tuple(term for term in self.steering.terms if self.is_built(term.vector)))
        return self._resolved(known) if known else None

    def _resolved(self, steering: Steering) -> Plan:
        session = self._session
        load, fingerprint = self._vectors.__getitem__, session.opened.model.fingerprint
        return resolve(steering, fingerprint, load, session.conversation.mode, session.opened.limit)

    def _learn(self, name: str, vector: ControlVector) -> None:
        model, mode = self._session.opened.model.fingerprint, self._session.conversation.mode

        def dose(strength: float) -> float | None:
            try:
                return resolve(Steering((Term(name, strength),)), model, lambda _name: vector, mode).relative_dose
            except LocalsteerError:  # it can only be removed, or is broken
                return None

        self._doses[name] = dose(-1.0), dose(1.0)
        self._vectors[name] = vector

    # ---- the other thread

    def preview(self) -> None:
        """Whenever nothing was turned for a while, begin the answer anew under what is set, until `leave`."""
        while self._turned.wait() and self.kept is None:
            self._turned.clear()
            if self._turned.wait(self._quiet):
                continue
            try:
                self._build()
                self._answer()
            except _UnwantedError:
                pass
            except LocalsteerError as error:
                self.problem = error.message
            self.redraw()

    def _build(self) -> None:
        """Build what is set and not there yet; what cannot be built is turned back to nothing."""
        for term in self.steering.terms:
            if not self.is_built(term.vector):
                try:
                    self._build_one(term.vector)
                except LocalsteerError:
                    number = next(
                        number for number, one in enumerate(self.terms) if one.vector == term.vector and not is_fixed(one)
                    )
                    self._put(number, 0.0)
                    self._turned.set()
                    raise
                finally:
                    self.building = ""

    def _build_one(self, name: str) -> None:
        model = self._session.opened.model
        with self._session.screen.progress() as progress:

            def tell(what: str, done: int, total: int) -> None:
                wanted = any(term.vector == name for term in self.steering.terms)
                if self.kept is False or not wanted:
                    raise _UnwantedError
                self.building = f"Building {name}: {what} {done}/{total}"
                self.redraw()
                progress(what, done, total)

            self.building = f"Building {name}"
            self.redraw()
            vector = loader(model, tell)(name)
            vector.check_fits(model.fingerprint, name=name)
        self._learn(name, vector)

    def _answer(self) -> None:
        text = ""

        def hear(piece: str) -> None:
            nonlocal text
            text += harmless(piece)
            # What still comes of an answer after a turn is not of the new setting.
            if not self._turned.is_set():
                self.said, self.stale = text.lstrip(), False
                self.redraw()

        conversation, stop = self._session.conversation, self._turned.is_set
        conversation.preview(self._plan(), self.question, seed=self._seed, max_tokens=_TOKENS, on_text=hear, should_stop=stop)
        hear("")
