"""Many answers in one batch, each with its own prompt, steering, seed and length."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from localsteer.engine.answering import Logits, logprob_of
from localsteer.engine.checks import check_anchored, needs_tap
from localsteer.engine.draft import TextStream
from localsteer.engine.request import Answer, FinishReason, Request, Timing, TokenLogprob
from localsteer.errors import LocalsteerError
from localsteer.llama.context import Batch, Context, undivided
from localsteer.llama.model import Model
from localsteer.llama.residual import Edit, ResidualTap
from localsteer.llama.sampling import Sampler
from localsteer.reading.prefix_tree import PrefixTree, lay_out

# Attention of every token runs over the cells of all sequences, so ever larger batches stop paying.
MAX_PARALLEL = 32


@dataclass
class _Lane:
    """One answer under way."""

    request: Request
    sequence: int
    twin: int | None  # the sequence in which the unsteered model reads the answer along
    sampler: Sampler
    stream: TextStream
    tokens: list[int]
    logprobs: list[TokenLogprob]
    reason: FinishReason | None = None

    @property
    def edit(self) -> Edit | None:
        return self.request.response_edit


def generate_many(
    model: Model,
    requests: Sequence[Request],
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Answer]:
    """Answer many requests, up to 32 at once in one batch. What their prompts have in common is computed once.

    An answer equals the one that the request gets alone up to the noise floor of quantised inference, which depends on how a
    batch is composed: a sampled text may part from it after some tokens.

    Args:
        model: the model.
        requests: what to answer.
        on_progress: told how many answers are finished, and of how many.

    Returns:
        The answers in the order of the requests; their timing is that of the whole batch they ran in.

    Raises:
        LocalsteerError: the model cannot be steered as a plan asks, or memory does not suffice.
    """
    seeded = [request.seeded() for request in requests]
    answers: list[Answer] = []
    for start in range(0, len(seeded), MAX_PARALLEL):
        group = seeded[start : start + MAX_PARALLEL]

        def report(finished: int, before: int = start) -> None:
            if on_progress is not None:
                on_progress(before + finished, len(seeded))

        answers.extend(_generate_group(model, group, report))
    return answers


def _generate_group(model: Model, requests: list[Request], report: Callable[[int], None]) -> list[Answer]:
    edits = [request.response_edit for request in requests]
    steered = any(edit is not None for edit in edits)
    anchored = [request.anchored and request.response_edit is not None for request in requests]
    for request, two in zip(requests, anchored, strict=True):
        if two:
            check_anchored(model, request.sampling)
    tapped = steered and needs_tap([*edits, *([None] if any(anchored) else [])], model)
    tap = ResidualTap(model.n_layer, model.n_embd) if tapped else None
    groups = _prompt_groups(model, requests)
    n_leaves = max((tree.n_sequences for _, trees in groups for tree, _ in trees), default=0)
    n_nodes = sum(len(tree.batch) for _, trees in groups for tree, _ in trees)
    n_ctx = n_nodes + sum((request.max_tokens + 1) * (2 if two else 1) for request, two in zip(requests, anchored, strict=True))
    first_leaf = len(requests) * (2 if any(anchored) else 1)
    start = time.perf_counter()
    with Context(model, n_ctx=n_ctx, n_seq=first_leaf + n_leaves, tap=tap) as context:
        lanes = []
        for number, (request, two) in enumerate(zip(requests, anchored, strict=True)):
            twin = len(requests) + number if two else None
            sampler = Sampler(request.sampling, model, request.grammar, anchored=request.anchored)
            lanes.append(_Lane(request, number, twin, sampler, TextStream(request.stop), [], []))
        try:
            _read_prompts(context, groups, first_leaf)
            for lane in lanes:
                if lane.twin is not None:
                    context.copy_sequence(lane.sequence, lane.twin)
            middle = time.perf_counter()
            _run_lanes(context, lanes, report)
        finally:
            for lane in lanes:
                lane.sampler.close()
    end = time.perf_counter()
    return [_answer(lane, n_nodes, middle - start, end - middle) for lane in lanes]


def _prompt_groups(model: Model, requests: Sequence[Request]) -> list[tuple[Edit | None, list[tuple[PrefixTree, list[int]]]]]:
    """Prompts (without their last tokens) to compute, by the steering of the prompt; each tree with its requests' numbers."""
    by_edit: dict[int, list[int]] = {}
    for number, request in enumerate(requests):
        if not request.prompt:
            raise LocalsteerError("The prompt is empty.", hint="Give the model some text.")
        if len(request.prompt) > 1:
            by_edit.setdefault(id(request.prompt_edit), []).append(number)
    groups = []
    for numbers in by_edit.values():
        trees = lay_out(model, [requests[number].prompt[:-1] for number in numbers])
        placed = [(tree, [numbers[prompt] for prompt in tree.prompts]) for tree in trees]
        groups.append((requests[numbers[0]].prompt_edit, placed))
    return groups


def _read_prompts(
    context: Context,
    groups: list[tuple[Edit | None, list[tuple[PrefixTree, list[int]]]]],
    first_leaf: int,
) -> None:
    """Decode the trees into sequences of their own, and let every request's sequence share its path."""
    for edit, trees in groups:
        for tree, numbers in trees:
            batch = Batch(
                tree.batch.tokens,
                tree.batch.positions,
                tree.batch.sequence_counts,
                tree.batch.sequence_ids + np.int32(first_leaf),
                tree.batch.outputs,
            )
            for part in batch.split(context.n_ubatch):
                _steer(context, [edit] * len(part))
                context.decode(part)
            for number, path in zip(numbers, tree.paths, strict=True):
                context.copy_sequence(first_leaf + tree.sequence_of(path), number)
                # A prompt may be the beginning of another one, whose leaf it shares.
                context.forget(number, len(path))
            for leaf in range(tree.n_sequences):
                context.forget(first_leaf + leaf)  # the next tree uses the same numbers


def _run_lanes(context: Context, lanes: list[_Lane], report: Callable[[int], None]) -> None:
    model = context.model
    for lane in lanes:
        if lane.request.max_tokens <= 0:
            lane.reason = "length"
    live = [lane for lane in lanes if lane.reason is None]
    next_tokens = [lane.request.prompt[-1] for lane in live]
    while live:
        going: list[_Lane] = []
        drawn: list[int] = []
        for part in undivided(model, [lane.sequence for lane in live]):
            lanes_here = live[part]
            twins = [(place, lane.twin) for place, lane in enumerate(lanes_here) if lane.twin is not None]
            # The twins' rows follow those of all lanes.
            places = [*range(len(lanes_here)), *(place for place, _ in twins)]
            unsteered = {place: len(lanes_here) + row for row, (place, _) in enumerate(twins)}
            tokens = next_tokens[part]
            positions = [len(lane.request.prompt) - 1 + len(lane.tokens) for lane in lanes_here]
            sequences = [*(lane.sequence for lane in lanes_here), *(twin for _, twin in twins)]
            _steer(context, [*(lane.edit for lane in lanes_here), *([None] * len(twins))])
            batch = Batch.of_next_tokens([tokens[place] for place in places], [positions[place] for place in places], sequences)
            context.decode(batch)
            for row, lane in enumerate(lanes_here):
                token = lane.sampler.sample(context, row, unsteered=unsteered.get(row))
                _advance(lane, token, model, Logits(context, row))
                if lane.reason is None:
                    going.append(lane)
                    drawn.append(token)
                else:
                    context.forget(lane.sequence)  # frees its cells
                    if lane.twin is not None:
                        context.forget(lane.twin)
        if len(going) < len(live):
            report(len(lanes) - len(going))
        live, next_tokens = going, drawn


def _advance(lane: _Lane, token: int, model: Model, logits: Logits) -> None:
    if model.is_end(token):
        lane.reason = "stop"
        return
    if lane.request.logprobs is not None:
        lane.logprobs.append(logprob_of(token, logits, lane.request.logprobs))
    lane.tokens.append(token)
    lane.stream.push(model.token_bytes(token))
    if lane.stream.stopped:
        lane.reason = "stop"
    elif len(lane.tokens) >= lane.request.max_tokens:
        lane.reason = "length"


def _steer(context: Context, edits: list[Edit | None]) -> None:
    if context.tap is not None:
        context.tap.edit(edits if any(edit is not None for edit in edits) else [])
    else:
        context.set_control_vector(None if edits[0] is None else edits[0].added)


def _answer(lane: _Lane, n_nodes: int, prompt_seconds: float, answer_seconds: float) -> Answer:
    lane.stream.finish()
    assert lane.request.sampling.seed is not None
    assert lane.reason is not None
    timing = Timing(n_nodes, 0, prompt_seconds, len(lane.tokens), answer_seconds)
    return Answer(lane.stream.text, tuple(lane.tokens), lane.reason, lane.request.sampling.seed, timing, tuple(lane.logprobs))
