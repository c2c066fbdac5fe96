"""How one answer is written: what has to be computed next, and what follows from it.

`Answering` says which tokens it needs run and is told when they are; it owns no context: `batch` runs many side by side.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Generator
from dataclasses import dataclass, field, replace

import numpy as np

from localsteer.engine.draft import Draft
from localsteer.engine.gate import Gate, Verdict
from localsteer.engine.request import Answer, FinishReason, PromptProgress, Request, Timing, TokenLogprob
from localsteer.llama.context import Context
from localsteer.llama.model import Model
from localsteer.llama.residual import Edit, Rows
from localsteer.llama.sampling import MAX_SEED, Sampler

# Any number that does not lead from one user's seed to the next one's (0, 1, 2, ...).
_REWIND_SEED_STEP = 7_368_787


@dataclass(frozen=True)
class Logits:
    """Where the logits of a token that was run are, until its context's next decode.

    Attributes:
        context: which context.
        row: the row of its last decode.
        unsteered: the row of the same token where nothing was ever steered, for an anchored run.
    """

    context: Context
    row: int
    unsteered: int | None = None


@dataclass(eq=False)
class Run:
    """Tokens that an answer needs run, in one part or several.

    Attributes:
        start: position of the first one. What the sequence held from there on is dropped.
        tokens: the tokens.
        edit: the steering of them all; None for none.
        layers: blocks to read.
        span: the first position whose rows are wanted, and the one behind the last; others are skipped.
        anchored: the one token is run in a second sequence, too, that holds the same tokens and was never steered.
        computed: how many were run.
        sums: by layer the sum (n_embd,) of the rows in the span, before any edit.
    """

    start: int
    tokens: tuple[int, ...]
    edit: Edit | None
    layers: Collection[int] = ()
    span: tuple[int, int] = (0, 0)
    anchored: bool = False
    computed: int = 0
    sums: dict[int, Rows] = field(default_factory=dict)

    @property
    def position(self) -> int:
        """Where the next token goes."""
        return self.start + self.computed

    @property
    def rest(self) -> tuple[int, ...]:
        """What is still to be run."""
        return self.tokens[self.computed :] if self.computed else self.tokens

    def took(self, count: int, rows: Callable[[int], Rows]) -> None:
        """The next `count` tokens were run; `rows` gives the output (count, n_embd) of a block in `layers` at them."""
        wanted = slice(max(self.span[0] - self.position, 0), max(self.span[1] - self.position, 0))
        for layer in self.layers:
            self.sums[layer] = self.sums.get(layer, 0) + rows(layer)[wanted].sum(axis=0)
        self.computed += count


class Answering:
    """One answer, from its request to its end.

    Args:
        model: the model.
        request: what to answer, with a seed and a prompt.
        gate: decides how the answer is steered while it is written; without one, the request's plan does.
        on_text: called with each piece of text as soon as it is certain.
        n_ctx: tokens that the prompt and the answer may have together.

    Attributes:
        draft: the answer so far.
        logprobs: those of the draft's tokens, where the request asked for them.
        reason: why it ended; "interrupted" until it has.
    """

    def __init__(
        self,
        model: Model,
        request: Request,
        *,
        gate: Gate | None = None,
        on_text: Callable[[str], None] | None = None,
        n_ctx: int,
    ) -> None:
        self.request = request
        self.gate = request.gate(gate)
        shown = request.division.shown if request.division is not None else frozenset()
        self.draft = Draft(lambda token: model.token_bytes(token, special=token in shown), request.stop, on_text)
        self.logprobs: list[TokenLogprob] = []
        self.reason: FinishReason = "interrupted"
        self._model = model
        self._n_ctx = n_ctx
        self._reused = 0
        self._body: Run | None = None
        self._begun = time.perf_counter()
        self._told: float | None = None  # when the prompt was read
        self._is_steered = False

    @property
    def reusable(self) -> tuple[int, ...]:
        """The beginning of the prompt that need not be run where a cache holds it: what a gate reads has to be."""
        return self.request.prompt[: self.request.read[0] if self.gate.prompt_layers else -1]

    @property
    def progress(self) -> PromptProgress:
        """How far its prompt is read."""
        total = len(self.request.prompt)
        read = total if self._told is not None else self._body.position if self._body is not None else self._reused
        return PromptProgress(total, self._reused, read, time.perf_counter() - self._begun)

    def steps(self, reused: int) -> Generator[Run, Logits, None]:
        """What to run, one after another; each is answered by the logits of its last token.

        Args:
            reused: tokens of the prompt that a cache holds, computed under the prompt's steering.
        """
        self._reused = reused
        logits, verdict = yield from self._read_prompt(reused)
        self._told = time.perf_counter()
        yield from self._write(logits, verdict)

    def end(self) -> Answer:
        """Nothing more will be run: the answer as it stands."""
        if self.reason in ("interrupted", "policy") and self.gate.hold_back:
            self._take_back(self.draft.unseen)  # nobody has looked at it for the last time
        self.draft.finish()
        self.draft.show()
        ended = time.perf_counter()
        seed = self.request.sampling.seed
        assert seed is not None
        computed = self._body.computed if self._body is not None else 0
        if self._told is None:
            told = ended
        else:
            told, computed = self._told, computed + 1  # the last token of the prompt
        timing = Timing(computed, self._reused, told - self._begun, self.draft.drawn, ended - told)
        draft = self.draft
        return Answer(draft.text, tuple(draft.tokens), self.reason, seed, timing, tuple(self.logprobs), draft.met)

    # ---- the prompt

    def _read_prompt(self, reused: int) -> Generator[Run, Logits, tuple[Logits, Verdict]]:
        request, gate, last = self.request, self.gate, len(self.request.prompt) - 1
        start, stop = request.read
        sums: dict[int, Rows] = {}
        if reused < last:
            run = Run(reused, request.prompt[reused:last], request.prompt_edit, gate.prompt_layers, request.read)
            self._body = run
            yield run
            sums = run.sums
        logits = None
        # The last token always by itself, steered or not: kernels round differently for other batch sizes, and an answer must
        # not depend on how much of its prompt was in the cache already.
        tail = request.prompt[-1:]
        if gate.prompt_layers and stop > last:
            run = Run(last, tail, request.prompt_edit, gate.prompt_layers, request.read)
            logits = yield run
            sums = {layer: sums.get(layer, 0) + row for layer, row in run.sums.items()}
        verdict = gate.after_prompt({layer: total / np.float32(stop - start) for layer, total in sums.items()})
        # Where the gate has read the last token and steers nothing, the answer goes on from there.
        if logits is None or verdict.edit is not request.prompt_edit:
            logits = yield self._to_draw_from(last, tail[0], verdict.edit)
        return logits, verdict

    # ---- the answer

    def _write(self, logits: Logits, verdict: Verdict) -> Generator[Run, Logits, None]:
        request, gate, draft = self.request, self.gate, self.draft
        if request.max_tokens <= 0 and not verdict.stop:
            self.reason = "length"
            return
        before = len(request.prompt) - 1
        sampler = self._sampler()
        rewinds = 0
        try:
            while not verdict.stop:
                reason = self._draw(sampler, logits)
                verdict = gate.after_token(draft, final=reason is not None)
                if not verdict.rewind:
                    draft.show(gate.hold_back)
                    if reason is not None:
                        self.reason = reason
                        return
                    if verdict.stop:
                        break
                    run = self._to_draw_from(before + len(draft.tokens), draft.tokens[-1], verdict.edit)
                    if gate.output_layers:
                        run.layers, run.span = gate.output_layers, (run.start, run.start + 1)
                    logits = yield run
                    if gate.output_layers:
                        verdict = gate.after_run(draft, run.sums)
                        if verdict.again and not verdict.rewind:
                            logits = yield self._to_draw_from(run.start, run.tokens[0], verdict.edit)
                if verdict.rewind:
                    self._take_back(verdict.rewind)
                    kept = before + len(draft.tokens)
                    logits = yield self._to_draw_from(kept, [*request.prompt, *draft.tokens][kept], verdict.edit)
                    rewinds += 1
                    sampler.close()
                    sampler = self._sampler(rewinds)
            self.reason = "policy"
        finally:
            sampler.close()

    def _to_draw_from(self, position: int, token: int, edit: Edit | None) -> Run:
        """A token whose successor is drawn. Until something is steered, the unsteered model would say the same."""
        self._is_steered = self._is_steered or edit is not None
        return Run(position, (token,), edit, anchored=self.request.anchored and self._is_steered)

    def _draw(self, sampler: Sampler, logits: Logits) -> FinishReason | None:
        """Draw a token; returns why the answer ends with it."""
        draft = self.draft
        token = sampler.sample(logits.context, logits.row, unsteered=logits.unsteered)
        reason: FinishReason | None = None
        if self._model.is_end(token):
            reason = "stop"
        else:
            if self.request.logprobs is not None:
                self.logprobs.append(logprob_of(token, logits, self.request.logprobs))
            draft.push(token)
            if draft.stopped or sampler.is_complete:
                reason = "stop"
            elif len(draft.tokens) >= self.request.max_tokens or len(self.request.prompt) - 1 + len(draft.tokens) >= self._n_ctx:
                reason = "length"
        if reason is not None:
            draft.finish()
        return reason

    def _take_back(self, count: int) -> None:
        self.draft.rewind(count)
        del self.logprobs[len(self.draft.tokens) :]

    def _sampler(self, rewinds: int = 0) -> Sampler:
        """After a rewind it draws other random numbers than those that led to what was taken back, the same ones each time."""
        seed = self.request.sampling.seed
        assert seed is not None
        settings = replace(self.request.sampling, seed=seed if not rewinds else (seed + rewinds * _REWIND_SEED_STEP) % MAX_SEED)
        request = self.request
        sampler = Sampler(settings, self._model, request.grammar, recent=request.prompt, anchored=request.anchored)
        for token in self.draft.tokens:
            sampler.accept(token)
        return sampler


def next_run(steps: Generator[Run, Logits, None], logits: Logits | None = None) -> Run | None:
    """What an answer needs next, given what it asked for (nothing at its beginning); None where it is at its end."""
    try:
        return next(steps) if logits is None else steps.send(logits)
    except StopIteration:
        return None


def logprob_of(token: int, logits: Logits, count: int) -> TokenLogprob:
    """Log probabilities of a token and of the `count` likeliest ones."""
    values = logits.context.logits(logits.row).astype(np.float64)
    values -= values.max()
    values -= np.log(np.exp(values).sum())
    likeliest = np.argpartition(values, -count)[-count:] if count else np.empty(0, np.intp)
    ordered = likeliest[np.argsort(-values[likeliest])]
    return TokenLogprob(token, float(values[token]), tuple((int(one), float(values[one])) for one in ordered))
