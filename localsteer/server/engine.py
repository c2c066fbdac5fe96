"""The thread that runs the batch: requests wait their turn, join it, and are told what they wait for as it comes.

One thread owns the model's context; everybody else talks to it through `submit` and `cancel`.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from localsteer.engine.batch import RunningBatch, places_for
from localsteer.engine.gate import Gate
from localsteer.engine.lane import Lane
from localsteer.engine.request import Answer, Request, TokenLogprob
from localsteer.errors import LocalsteerError
from localsteer.policy.audit import Decision
from localsteer.policy.controller import AnswerGate
from localsteer.server.jobs import Ended, Event, Failed, Job, Piece, Ticket
from localsteer.server.pace import Pace, Work

logger = logging.getLogger("localsteer.server")


class BusyError(LocalsteerError):
    """The queue is full.

    Attributes:
        retry_after: seconds after which a place is likely.
    """

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message, hint=f"Try again in {retry_after} s.")
        self.retry_after = retry_after


class StoppingError(LocalsteerError):
    """The server is about to end."""


@dataclass(eq=False)
class _Running:
    """A job in the batch, and how much of it has been told."""

    ticket: Ticket
    choice: int
    lane: Lane | None = None
    told_tokens: int = 0
    told_decisions: int = 0
    told_read: int | None = None

    @property
    def job(self) -> Job:
        return self.ticket.jobs[self.choice]

    @property
    def gate(self) -> AnswerGate | None:
        return self.job.gate

    def work(self, places: int, n_ctx: int) -> Work:
        """What is left of it to do."""
        work, lane = Work.of(self.job.request, places, n_ctx), self.lane
        drawn = len(lane.answering.draft.tokens) if lane is not None else 0
        return replace(work, prompt=0, drawn=drawn) if drawn else work

    @property
    def has_decided(self) -> bool:
        """Whether the policy decided something that is not told yet."""
        return self.gate is not None and len(self.gate.decisions) > self.told_decisions

    def news(self) -> tuple[tuple[TokenLogprob, ...], tuple[Decision, ...], tuple[int, ...]]:
        """What has come since it was last asked for."""
        assert self.lane is not None
        answering = self.lane.answering
        fresh = slice(self.told_tokens, answering.draft.shown_tokens)
        logprobs, tokens = tuple(answering.logprobs[fresh]), tuple(answering.draft.tokens[fresh])
        self.told_tokens += len(tokens)
        decisions = tuple(self.gate.decisions[self.told_decisions :]) if self.gate is not None else ()
        self.told_decisions += len(decisions)
        return logprobs, decisions, tokens


@dataclass
class Counters:
    """What the engine has done since it began; read by other threads, written by its own.

    Attributes:
        answers: by the reason they ended for ("cancelled" and "error" among them).
        prompt_tokens: prompt tokens that were computed.
        reused_tokens: prompt tokens that were in the cache.
        generated_tokens: tokens drawn.
        steps: decodes of the batch.
        decisions: by rule and action.
    """

    answers: dict[str, int] = field(default_factory=dict)
    prompt_tokens: int = 0
    reused_tokens: int = 0
    generated_tokens: int = 0
    steps: int = 0
    decisions: dict[tuple[str, str], int] = field(default_factory=dict)

    def count(self, reason: str, answer: Answer | None = None) -> None:
        """An answer has ended."""
        self.answers[reason] = self.answers.get(reason, 0) + 1
        if answer is not None:
            self.prompt_tokens += answer.timing.prompt_tokens
            self.reused_tokens += answer.timing.reused_tokens
            self.generated_tokens += answer.timing.answer_tokens


class Engine:
    """Runs a batch in a thread of its own. A context manager.

    Args:
        batch: what runs the answers; only the engine's thread touches it from here on.
        queue: how many answers may wait.
        clock: tells the time, in seconds.

    Attributes:
        counters: what was done.
    """

    def __init__(self, batch: RunningBatch, *, queue: int = 32, clock: Callable[[], float] = time.perf_counter) -> None:
        self.counters = Counters()
        self._clock = clock
        self._pace = Pace()
        self._batch = batch
        self._limit = queue
        self._changed = threading.Condition()
        self._queue: deque[Ticket] = deque()
        self._running: list[_Running] = []
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="localsteer-engine", daemon=True)

    def __enter__(self) -> Engine:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End what runs and waits, with an error for those who wait for it."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    @property
    def running(self) -> int:
        """Answers in the batch."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Answers that wait for a place."""
        with self._changed:
            return self._count_waiting()

    def most(self, job: Job) -> int:
        """How many answers like this one there is room for, running and waiting."""
        return self._batch.parallel // self._places(job) + self._limit

    @property
    def failures(self) -> int:
        """Answers that failed one after another, with none in between for whom llama.cpp computed anything."""
        return self._batch.failures

    @property
    def parallel(self) -> int:
        """Places of the batch."""
        return self._batch.parallel

    @property
    def kept_tokens(self) -> int:
        """Tokens in the KV cache."""
        return self._batch.kept_tokens

    @property
    def n_ctx(self) -> int:
        """Tokens that a prompt and its answer may have together."""
        return self._batch.n_ctx

    def check(self, request: Request, gate: Gate | None = None) -> None:
        """Make sure that a request can be answered, before it waits.

        Raises:
            LocalsteerError: it cannot.
        """
        self._batch.check(request, gate)

    def submit(self, jobs: Sequence[Job], tell: Callable[[Event], None]) -> Ticket:
        """Let answers wait for their places.

        Args:
            jobs: the answers that one request wants; each takes its turn with those of other requests.
            tell: called in the engine's thread with what happens to them; it must not block.

        Raises:
            BusyError: too many wait.
            StoppingError: the server is about to end.
        """
        ticket = Ticket(jobs, tell, waiting=deque(range(len(jobs))))
        with self._changed:
            if self._stopping:
                raise StoppingError("The server is stopping.", hint="Start it again.")
            if (excess := self._count_left_over(jobs) - self._limit) > 0:
                waiting = self._count_waiting()
                raise BusyError(f"{waiting} answers wait already, and {self._limit} may.", self._retry_after(excess))
            self._queue.append(ticket)
            self._changed.notify()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Nobody waits for these answers any more: their places are free with the next step."""
        with self._changed:
            ticket.cancelled = True
            self._changed.notify()

    def _count_waiting(self) -> int:
        return sum(len(ticket.waiting) for ticket in self._queue if not ticket.cancelled)

    def _count_left_over(self, jobs: Sequence[Job]) -> int:
        """How many of those that wait, and of these behind them, do not get one of the places that are free."""
        waiting = self._waiting_jobs()
        free = self._batch.parallel - sum(self._places(running.job) for running in list(self._running))
        wanted = itertools.accumulate(self._places(job) for job in [*waiting, *jobs])
        return sum(places > free for places in wanted)

    def _places(self, job: Job) -> int:
        """How many places a job takes; one that takes more than there are fails when it joins."""
        return min(places_for(job.request, job.gate), self._batch.parallel)

    def _waiting_jobs(self) -> list[Job]:
        return [ticket.jobs[choice] for ticket in self._queue if not ticket.cancelled for choice in ticket.waiting]

    def _retry_after(self, excess: int) -> int:
        """Whole seconds until so many of those that wait have left the queue."""
        running = [one.work(self._places(one.job), self.n_ctx) for one in list(self._running)]
        waiting = [Work.of(job.request, self._places(job), self.n_ctx) for job in self._waiting_jobs()]
        return max(1, round(self._pace.until_free(running, waiting, self._batch.parallel, excess)))

    # ---- the thread

    def _run(self) -> None:
        with self._batch:
            while self._wait():
                try:
                    self._turn()
                except Exception:
                    # A mistake of ours must not leave everybody waiting for ever.
                    logger.exception("the batch failed")
                    self._fail_all(RuntimeError("the batch failed"))
            self._fail_all(StoppingError("The server is stopping.", hint="Start it again."))

    def _wait(self) -> bool:
        """Until there is something to do; False where that is to stop."""
        with self._changed:
            while not (self._stopping or self._queue or self._running):
                self._changed.wait()
            return not self._stopping

    def _turn(self) -> None:
        with self._changed:
            self._drop_cancelled()
            joining = self._next_jobs()
        for running in joining:
            self._join(running)
        if self._running:
            began = self._clock()
            ended = self._batch.step()
            self._pace.stepped(self._clock() - began)
            self.counters.steps += 1
            for running in self._running:
                self._tell_progress(running)
            for lane in ended:
                self._end(next(one for one in self._running if one.lane is lane))
            for running in self._running:
                if running.has_decided:  # a policy that may take words back holds them: what it decides is told at once
                    self._tell_piece(running, "")

    def _drop_cancelled(self) -> None:
        for running in [one for one in self._running if one.ticket.cancelled]:
            assert running.lane is not None
            self._batch.leave(running.lane)
            self._running.remove(running)
            self.counters.count("cancelled", running.lane.answering.end())
            self._count_decisions(running)
        for ticket in [one for one in self._queue if one.cancelled]:
            self._queue.remove(ticket)
            for _ in ticket.waiting:
                self.counters.count("cancelled")

    def _next_jobs(self) -> list[_Running]:
        """As many of those that wait as there are places for; requests take turns, and none is overtaken by a smaller one."""
        joining: list[_Running] = []
        free = self._batch.places
        while self._queue:
            ticket = self._queue[0]
            free -= self._places(ticket.jobs[ticket.waiting[0]])
            if free < 0:
                break
            self._queue.popleft()
            joining.append(_Running(ticket, ticket.waiting.popleft()))
            if ticket.waiting:
                self._queue.append(ticket)
        self._running += joining
        return joining

    def _join(self, running: _Running) -> None:
        job = running.job
        try:
            running.lane = self._batch.join(job.request, gate=job.gate, on_text=functools.partial(self._tell_piece, running))
        except Exception as error:
            self._running.remove(running)
            self.counters.count("error")
            _tell(running.ticket, Failed(running.choice, error))

    def _tell_progress(self, running: _Running) -> None:
        """How far the prompt is read, from what was in the cache up to all of it."""
        if running.lane is None or not running.job.tell_progress or running.lane.steps is None:
            return
        now = running.lane.answering.progress
        if running.told_read is None and now.read > now.reused:
            _tell(running.ticket, Piece(running.choice, "", progress=replace(now, read=now.reused)))
        if now.read != running.told_read:
            running.told_read = now.read
            _tell(running.ticket, Piece(running.choice, "", progress=now))

    def _tell_piece(self, running: _Running, text: str) -> None:
        self._tell_progress(running)
        _tell(running.ticket, Piece(running.choice, text, *running.news()))

    def _end(self, running: _Running) -> None:
        assert running.lane is not None
        try:
            answer = running.lane.end()
        except Exception as error:
            if not isinstance(error, LocalsteerError):
                logger.error("an answer failed", exc_info=error)
            self._running.remove(running)
            self.counters.count("error")
            _tell(running.ticket, Failed(running.choice, error))
            return
        self._pace.ended(answer)
        self._count_decisions(running)
        logprobs, decisions, tokens = running.news()
        # As long as it is among those that run, a mistake above is told to who waits for it.
        self._running.remove(running)
        self.counters.count(answer.finish_reason, answer)
        _tell(running.ticket, Ended(running.choice, answer, decisions, logprobs, tokens))

    def _count_decisions(self, running: _Running) -> None:
        for decision in running.gate.decisions if running.gate is not None else ():
            key = decision.rule, decision.action
            self.counters.decisions[key] = self.counters.decisions.get(key, 0) + 1

    def _fail_all(self, error: Exception) -> None:
        with self._changed:
            running, queue = list(self._running), list(self._queue)
            self._running.clear()
            self._queue.clear()
        for one in running:
            if one.lane is not None:
                with contextlib.suppress(ValueError):  # it has left already
                    self._batch.leave(one.lane)
            self.counters.count("error")
            _tell(one.ticket, Failed(one.choice, error))
        for ticket in queue:
            for choice in ticket.waiting:
                self.counters.count("error")
                _tell(ticket, Failed(choice, error))


def _tell(ticket: Ticket, event: Event) -> None:
    try:
        ticket.tell(event)
    except Exception:
        logger.exception("nobody could be told of an answer")
        ticket.cancelled = True
