"""From what a request asks for to its answers: the part that both APIs have in common."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from fastapi.concurrency import run_in_threadpool
from numpy.typing import NDArray
from starlette.requests import Request as HTTPRequest

from localsteer.engine.phases import Division
from localsteer.engine.request import Answer, Request, TokenLogprob
from localsteer.errors import LocalsteerError
from localsteer.llama.grammar import Grammar
from localsteer.llama.infill import File, infill_prompt
from localsteer.llama.model import Model
from localsteer.llama.sampling import MAX_SEED, Sampling, fresh_seed
from localsteer.policy.arm import ArmedPolicy
from localsteer.policy.audit import Decision
from localsteer.policy.controller import Controller
from localsteer.server.beside import Beside, while_connected
from localsteer.server.defaults import Defaults
from localsteer.server.engine import Engine
from localsteer.server.jobs import Ended, Event, Failed, Job, Ticket
from localsteer.server.reply import Reading
from localsteer.server.steerings import Steerings, parse_requested
from localsteer.steering.plan import Plan
from localsteer.vector.calibration import Mode

MAX_CHOICES = 8

# Seconds that building a vector, or reading texts, is taken to last before one has. With its dose one took 30 to 45 s on
# SmolLM2-135M and 90 to 160 s on a 1.5B model, on two slow cores; the other is a guess.
_FIRST_BUILD = 60.0
_FIRST_READING = 1.0


class RequestError(LocalsteerError):
    """A request that asks for what cannot be had.

    Args:
        message: what is wrong.
        parameter: the part of the request that it is about.
    """

    def __init__(self, message: str, parameter: str | None = None, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.parameter = parameter


@dataclass(frozen=True)
class Prompt:
    """What is to be answered.

    Attributes:
        tokens: the tokens.
        message: the user's latest message, which a policy looks at.
        span: where it stands among the tokens.
        stop: what ends the answer, besides what the request says.
        reading: how the reply is to be read.
        grammar: makes what calls of tools in it follow; None where there are no tools.
    """

    tokens: tuple[int, ...]
    message: str
    span: tuple[int, int] | None = None
    stop: tuple[str, ...] = ()
    reading: Reading = field(default_factory=Reading)
    grammar: Callable[[Model], Grammar] | None = None


@dataclass(frozen=True)
class Wishes:
    """How it is to be answered.

    Attributes:
        sampling: how tokens are drawn; of several answers each has a seed of its own, from this one up.
        max_tokens: longest answer; None means as much as the context holds.
        stop: strings that end it.
        grammar: makes what it follows; None for nothing.
        logprobs: see `Request`.
        count: how many answers.
        steer_forms: see `Request`.
        tell_progress: see `Job`.
    """

    sampling: Sampling
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    grammar: Callable[[Model], Grammar] | None = None
    logprobs: int | None = None
    count: int = 1
    steer_forms: bool = False
    tell_progress: bool = False


class Answers:
    """The answers of one request while they come; `close` ends those that are not done."""

    def __init__(self, engine: Engine, jobs: Sequence[Job]) -> None:
        self.jobs = jobs
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._ticket: Ticket = engine.submit(jobs, self._tell)
        self._open = len(jobs)

    def _tell(self, event: Event) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    def close(self) -> None:
        """Nobody waits any more: what is not done is not needed."""
        if self._open:
            self._engine.cancel(self._ticket)

    async def events(self) -> AsyncIterator[Event]:
        """Everything that happens, up to the end of the last answer."""
        while self._open:
            event = await self._events.get()
            if isinstance(event, Ended | Failed):
                self._open -= 1
            yield event

    async def all(self, http: HTTPRequest) -> list[Finished]:
        """All answers.

        Raises:
            ClientDisconnect: the client has gone away meanwhile.
            Exception: what one of them failed with.
        """
        finished: dict[int, Finished] = {}

        async def collect() -> None:
            logprobs: dict[int, list[TokenLogprob]] = {}
            decisions: dict[int, list[Decision]] = {}
            async for event in self.events():
                if isinstance(event, Failed):
                    raise event.error
                logprobs.setdefault(event.choice, []).extend(event.logprobs)
                decisions.setdefault(event.choice, []).extend(event.decisions)
                if isinstance(event, Ended):
                    finished[event.choice] = Finished(event.answer, tuple(decisions[event.choice]))

        try:
            await while_connected(http, collect())
            return [finished[choice] for choice in sorted(finished)]
        finally:
            self.close()


@dataclass(frozen=True)
class Finished:
    """An answer that came to its end."""

    answer: Answer
    decisions: tuple[Decision, ...]


def likeliest(finished: Sequence[Finished], prompts: int, kept: int) -> list[Finished]:
    """Of the answers to each prompt those with the highest mean log probability of a token."""
    count = len(finished) // prompts
    groups = (finished[start : start + count] for start in range(0, len(finished), count))
    return [one for group in groups for one in sorted(group, key=_mean_logprob, reverse=True)[:kept]]


def _mean_logprob(finished: Finished) -> float:
    logprobs = [entry.logprob for entry in finished.answer.logprobs]
    return sum(logprobs) / len(logprobs) if logprobs else 0.0


class Service:
    """Answers for one model.

    Args:
        model: the model.
        engine: runs the answers.
        steerings: what can be asked for.
        armed: the policy that gates every answer; None for none.
        defaults: how requests are answered that leave it open; None for as on the command line.

    Attributes:
        building: the vectors that are being built, by name.
        reading: the texts that are being read.
        embedding: those that are being embedded.
    """

    def __init__(
        self,
        model: Model,
        engine: Engine,
        steerings: Steerings,
        armed: ArmedPolicy | None = None,
        defaults: Defaults | None = None,
    ) -> None:
        self.model = model
        self.engine = engine
        self.steerings = steerings
        self.defaults = defaults or Defaults()
        self.building: Beside[None] = Beside("vectors that are being built", _FIRST_BUILD)
        self.reading: Beside[list[dict[str, Any]]] = Beside("texts that are being read", _FIRST_READING)
        self.embedding: Beside[NDArray[np.float32]] = Beside("texts that are embedded", _FIRST_READING)
        self._armed = armed

    def stop(self) -> None:
        """End all that is being done, with an error for those who wait for it."""
        beside = self.building, self.reading, self.embedding
        for one in beside:
            one.refuse()  # before anything is waited for
        self.engine.stop()
        for one in beside:
            one.stop()

    def mode(self, *, steer_prompt: bool, anchored: bool | None) -> Mode:
        """What is steered; where a request does not say whether its answer is anchored (None), the default counts.

        Raises:
            RequestError: both are asked for.
            SteeringError: requests may not ask for it here.
        """
        if steer_prompt and anchored:
            raise RequestError("An anchored answer is steered in the response alone: not together with steer_prompt.", "anchored")
        asked: Mode | None = None if anchored is None else "anchored" if anchored else "response"
        mode = "prompt" if steer_prompt else asked or self.steerings.mode
        if mode != self.steerings.mode:
            self.steerings.refuse_if_fixed()
        return mode

    async def plan(
        self, body: str | None, header: str | None, model_name: str | None, mode: Mode, http: HTTPRequest
    ) -> Plan | None:
        """What a request is steered by: what its body says, or its header, or the model's name, or else the default.

        Vectors that it names are built where they are not there yet.

        Raises:
            LocalsteerError: that cannot be used, or the model is not this one.
            ClientDisconnect: the client has gone away meanwhile.
        """
        named, _ = self.steerings.of_requested_name(model_name or "")
        text = body if body is not None else header
        asked = parse_requested(text) if text is not None else named
        if text is not None and asked != self.steerings.default:  # the page says what it is
            self.steerings.refuse_if_fixed()
        steering = asked if asked is not None else self.steerings.default
        await self.build([term.vector for term in steering.terms], http)
        return await run_in_threadpool(self.steerings.plan, steering, mode)

    def called(self, name: str | None) -> tuple[str, str | None]:
        """What the model that answers is called by who asked for one, and a note where it is another one."""
        note = self.steerings.of_requested_name(name or "")[1]
        return (name if name and note is None else self.steerings.name), note

    def unsteered(self, name: str | None) -> str:
        """What the model is called where nothing is steered.

        Raises:
            RequestError: the name asks for a steering.
        """
        if self.steerings.of_requested_name(name or "")[0] is not None:
            raise RequestError("Embeddings are those of the model alone: leave out the steering behind its name.", "model")
        return self.called(name)[0]

    async def build(self, names: Iterable[str], http: HTTPRequest) -> None:
        """Build those of the vectors that are not there yet.

        Raises:
            LocalsteerError: one does not exist, or cannot be built, or too many requests wait for such.
            ClientDisconnect: the client has gone away meanwhile.
        """
        for name in dict.fromkeys(names):
            if await run_in_threadpool(self.steerings.find, name) is None:
                built = self.building.wait_for(name, functools.partial(self.steerings.build, name))
                await while_connected(http, built)

    @property
    def gated(self) -> bool:
        """Whether a policy looks at the messages."""
        return self._armed is not None

    def text_prompt(self, text: str) -> Prompt:
        """The prompt that is a text as it stands.

        Raises:
            LocalsteerError: it is empty, or no valid Unicode.
        """
        tokens = tuple(self.model.tokenize(text))
        return Prompt(tokens, text, (0, len(tokens)) if tokens else None)

    def token_prompt(self, tokens: Sequence[int]) -> Prompt:
        """The prompt that is tokens as they stand.

        Raises:
            RequestError: one of them is none of the model's.
        """
        if wrong := next((token for token in tokens if not 0 <= token < self.model.n_vocab), None):
            raise RequestError(f"{wrong} is no token of this model.", "prompt")
        return Prompt(tuple(tokens), self.model.detokenize(list(tokens)), (0, len(tokens)) if tokens else None)

    def infill_prompt(self, prefix: str, suffix: str, *, files: Sequence[File] = (), begun: str = "") -> Prompt:
        """The prompt that is answered by what stands between two texts.

        Raises:
            RequestError: the model cannot do that.
        """
        try:
            return self.token_prompt(infill_prompt(self.model, prefix, suffix, files=files, begun=begun))
        except LocalsteerError as error:
            raise RequestError(error.message, "suffix", hint=error.hint) from error

    def jobs(self, prompts: Sequence[Prompt], plan: Plan | None, wishes: Wishes, mode: Mode) -> list[Job]:
        """What the engine is asked for: for each prompt as many answers as are wished for.

        Raises:
            LocalsteerError: the prompt does not fit the context, or the grammar cannot be used, or answers cannot be anchored.
        """
        count = len(prompts) * wishes.count
        _check_count(count, MAX_CHOICES)
        seed = wishes.sampling.seed if wishes.sampling.seed is not None else fresh_seed()
        if wishes.grammar is not None and any(prompt.grammar is not None for prompt in prompts):
            raise RequestError("An answer either follows a form, or may call tools.", "tools")
        make = wishes.grammar or next((prompt.grammar for prompt in prompts if prompt.grammar is not None), None)
        grammar = make(self.model) if make is not None else None
        if plan is None and self._armed is None:
            mode = "response"  # where nothing steers there is nothing to anchor
        jobs: list[Job] = []
        for prompt in prompts:
            for _ in range(wishes.count):
                request = Request(
                    prompt.tokens,
                    plan,
                    replace(wishes.sampling, seed=(seed + len(jobs)) % (MAX_SEED + 1)),
                    wishes.max_tokens if wishes.max_tokens is not None else self.engine.n_ctx,
                    (*wishes.stop, *prompt.stop),
                    prompt.span,
                    grammar,
                    wishes.logprobs,
                    mode,
                    _divided(prompt.reading.division, formed=wishes.grammar is not None),
                    wishes.steer_forms or self.steerings.fixed,  # a form that allows anything would be a way out
                )
                gate = None
                if self._armed is not None:
                    policy = self._armed.for_answers(mode)
                    gate = Controller(policy, audit=self._armed.audit).answer(prompt.message, plan)
                self.engine.check(request, gate)
                jobs.append(Job(request, gate, wishes.tell_progress))
        _check_count(count, self.engine.most(jobs[0]))
        return jobs


def _divided(division: Division | None, *, formed: bool) -> Division | None:
    return replace(division or Division(), formed=True) if formed else division


def _check_count(count: int, most: int) -> None:
    if count > most:
        raise RequestError(f"{count} answers are asked for, and {most} are allowed.", "n")
