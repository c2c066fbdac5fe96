"""The reading pass: texts in; out come rows of the residual stream, and how likely the model finds the tokens.

The model reads unsteered, or a text under an edit of its own (teacher forcing: what a steered model thinks of given words).
Texts run as prefix trees. Nothing is computed behind the last token that is read (the one before it, where only its likelihood is
wanted), nor, unless likelihoods are wanted, above the highest layer; logits are asked for only where they are needed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from localsteer.llama.context import Batch, Context
from localsteer.llama.model import Model
from localsteer.llama.residual import Edit, ResidualTap, Rows
from localsteer.reading.kept import MAX_OUTPUTS, KeptPrompts
from localsteer.reading.prefix_tree import PrefixTree, lay_out

Progress = Callable[[int, int], None]
"""Called with what is done and what there is to do, in tokens."""
OnPrediction = Callable[[Sequence[int], int, Rows], None]
"""Called for every token that is read and predicted: the spans that read it, its position in them, and the log probabilities
(n_vocab,) of what may stand there, which the next call overwrites."""
Floats = NDArray[np.float64]
Indices = NDArray[np.intp]
Kept = TypeVar("Kept", bound=np.floating)


@dataclass(frozen=True)
class Span:
    """A text, and which of its tokens are read.

    Attributes:
        tokens: the whole text.
        start: the first token that is read; by default only the last one is.
        stop: the one behind the last that is read; None reads up to the end.
        edit: what is done to the residual stream of its tokens; None for nothing.
        edited_from: the first token of which that is done. None is the one before `start`, which predicts the first that is
            read: as an answer is steered whose prompt is not.
    """

    tokens: tuple[int, ...]
    start: int = -1
    stop: int | None = None
    edit: Edit | None = None
    edited_from: int | None = None

    @property
    def places(self) -> range:
        """The positions that are read."""
        return range(len(self.tokens))[self.start : self.stop]

    @property
    def edited(self) -> range:
        """The positions at which the edit is done."""
        if self.edit is None:
            return range(0)
        first = max(0, self.places.start - 1) if self.edited_from is None else self.edited_from
        return range(len(self.tokens))[first : self.places.stop]


@dataclass(frozen=True, eq=False)
class Part:
    """What one decode shows: the tokens of it that are read, each once, and who reads them.

    Attributes:
        rows: gives the rows (n_tokens, n_embd) of a layer, residual-stream units; only until the next part is asked for.
        nll: (n_tokens,) negative log likelihood of each token after those before it, in nats; NaN where likelihoods are not
            wanted, and for the first token of a text, which nothing predicts.
        spans: (n_reads,) indices of spans, each as often as it reads a token.
        tokens: (n_reads,) which of the tokens above that is, in ascending order.
    """

    rows: Callable[[int], Rows]
    nll: Floats
    spans: Indices
    tokens: Indices


@dataclass(frozen=True, eq=False)
class Means:
    """What texts show on average over the tokens that are read; NaN where there are none.

    Attributes:
        values: (n_spans, n_read, n_embd) float32, residual-stream units.
        norms: (n_spans, n_read) mean Euclidean norm of the rows.
        nll: (n_spans,) nats a token.
    """

    values: Rows
    norms: Rows
    nll: Floats


def read(
    model: Model,
    spans: Sequence[Span],
    layers: Sequence[int],
    *,
    want_nll: bool = False,
    on_prediction: OnPrediction | None = None,
    kept: KeptPrompts | None = None,
    progress: Progress | None = None,
) -> Iterator[Part]:
    """Let the model read texts, part by part. What one part shows is gone with the next.

    Args:
        model: the model.
        spans: the texts; those of which nothing is read are left out.
        layers: the blocks whose outputs are wanted.
        want_nll: whether likelihoods are wanted.
        on_prediction: told what the model predicts, where likelihoods are wanted.
        kept: prompts that texts of this and of other passes begin with.
        progress: told after every part.

    Raises:
        ModelError: llama.cpp does not show the residual stream of this architecture.
    """
    numbers = [number for number, span in enumerate(spans) if span.places]
    if not numbers or not (layers or want_nll):
        return
    with contextlib.nullcontext(kept) if kept is not None else KeptPrompts(model) as held:
        trees, edits = _lay_out(model, [spans[number] for number in numbers])
        passes = [_Pass.of(tree, numbers, spans, layers, held, n_layer=model.n_layer, want_nll=want_nll) for tree in trees]
        context = held.context(
            max(len(own.computed) for own in passes),
            max(tree.n_sequences for tree in trees),
            min(MAX_OUTPUTS, max(int(tree.batch.outputs.sum()) for tree in trees)),
            steered=bool(layers) or any(any(own) for own in edits),
        )
        tap = context.tap
        done, total = 0, sum(len(own.computed) for own in passes)
        for tree, own, edited in zip(trees, passes, edits, strict=True):
            held.empty(context)
            if tap is not None:
                tap.watch(layers, stop=not want_nll)
            for source, target, stop in own.copied:
                context.copy_sequence(source, target, stop)
            offset = 0
            batch = tree.batch.only(own.computed)
            for part in replace(batch, sequence_ids=batch.sequence_ids + held.n_sequences).split(context.n_ubatch, MAX_OUTPUTS):
                nodes = own.computed[offset : offset + len(part)]
                if tap is not None:
                    here = [edited[node] for node in nodes.tolist()]
                    tap.edit(here if any(here) else ())
                context.decode(part)
                if want_nll:
                    own.score(context, part, nodes, on_prediction)
                offset += len(part)
                yield own.part(tap, part, offset - len(part), offset)
                if progress is not None:
                    progress(done + offset, total)
            done += offset


def _lay_out(model: Model, spans: Sequence[Span]) -> tuple[list[PrefixTree], list[list[Edit | None]]]:
    """The trees of what is to be computed, and what is done to each of their nodes."""
    known: dict[Edit | None, int] = {None: 0}
    texts = []
    for span in spans:
        # A token under an edit counts as another token: texts share what begins alike and is treated alike.
        other = known.setdefault(span.edit, len(known)) * model.n_vocab
        edited = span.edited
        texts.append([token + other * (place in edited) for place, token in enumerate(span.tokens[: span.places.stop])])
    trees, edits = [], []
    kinds = list(known)
    for tree in lay_out(model, texts):
        kind, tokens = np.divmod(tree.batch.tokens, np.int32(model.n_vocab))
        trees.append(replace(tree, batch=replace(tree.batch, tokens=tokens)))
        edits.append([kinds[number] for number in kind.tolist()])
    return trees, edits


@dataclass(frozen=True, eq=False)
class _Pass:
    """What is read of one tree, and what of it is computed.

    Attributes:
        nodes: (n_reads,) the nodes that are read, in the order of the batch, each as often as a span reads it.
        spans: (n_reads,) which span that is.
        predicted: for the nodes that ask for logits of what comes next, those that are read next.
        computed: those that are computed, in the order of the batch.
        copied: what sequences take over from kept prompts: from which, to which, and how many tokens.
        tokens: (n_nodes,) of the batch.
        positions: (n_nodes,) likewise.
        nll: (n_nodes,) as far as known.
    """

    nodes: Indices
    spans: Indices
    predicted: dict[int, list[int]]
    computed: Indices
    copied: Sequence[tuple[int, int, int]]
    tokens: NDArray[np.int32]
    positions: NDArray[np.int32]
    nll: Floats

    @staticmethod
    def of(
        tree: PrefixTree,
        numbers: Sequence[int],
        spans: Sequence[Span],
        layers: Sequence[int],
        kept: KeptPrompts,
        *,
        n_layer: int,
        want_nll: bool,
    ) -> _Pass:
        """Also asks for the logits that are needed, in the tree's batch."""
        own = [numbers[prompt] for prompt in tree.prompts]
        paths = [path[spans[number].places.start :] for number, path in zip(own, tree.paths, strict=True)]
        nodes = np.concatenate(paths)
        order = np.argsort(nodes, kind="stable")
        predicted: dict[int, list[int]] = {}
        before = np.full(len(tree.batch), -1, np.intp)
        for path in tree.paths:
            before[path[1:]] = path[:-1]
        if want_nll:
            for node in np.unique(nodes).tolist():
                if before[node] >= 0:
                    predicted.setdefault(int(before[node]), []).append(node)
            tree.batch.outputs[list(predicted)] = 1
        if n_layer - 1 in layers:  # there llama.cpp keeps only the rows of tokens that ask for logits
            tree.batch.outputs[nodes] = 1
        shows = tree.batch.outputs > 0
        shows[nodes if layers else nodes[before[nodes] < 0]] = True
        known = _known(tree, [_plain_beginning(spans[number]) for number in own], kept)
        computed = np.zeros(len(tree.batch), bool)
        copied = []
        last = np.cumsum(tree.batch.sequence_counts) - 1
        for path, (source, count) in zip(tree.paths, known, strict=True):
            computed[path[count : 1 + max(np.flatnonzero(shows[path]), default=-1)]] = True
            if count:
                copied.append((source, kept.n_sequences + int(tree.batch.sequence_ids[last[path[-1]]]), count))
        return _Pass(
            nodes[order],
            np.repeat(np.array(own, np.intp), [len(path) for path in paths])[order],
            predicted,
            np.flatnonzero(computed),
            copied,
            tree.batch.tokens,
            tree.batch.positions,
            np.full(len(tree.batch), np.nan),
        )

    def score(self, context: Context, part: Batch, nodes: Indices, on_prediction: OnPrediction | None) -> None:
        """Take down how likely the tokens are that follow those of a part that was run."""
        for row in np.flatnonzero(part.outputs).tolist():
            if following := self.predicted.get(int(nodes[row])):
                logits = context.logits(row)
                top = logits.max()
                log_sum = float(top) + np.log(np.exp(logits - top).sum(dtype=np.float64))
                self.nll[following] = log_sum - logits[self.tokens[following]]
                if on_prediction is not None:
                    for node in following:
                        readers = self.spans[slice(*np.searchsorted(self.nodes, [node, node + 1]))]
                        on_prediction(readers.tolist(), int(self.positions[node]), logits - np.float32(log_sum))

    def part(self, tap: ResidualTap | None, part: Batch, start: int, stop: int) -> Part:
        """What a part that was run shows: of the nodes that are computed, those from one place to another.

        What is read but not computed belongs to the part before it: something there predicts it.
        """
        run = self.computed[start:stop]
        first = run[0] if start else 0
        after = self.computed[stop] if stop < len(self.computed) else len(self.nll)
        here = slice(*np.searchsorted(self.nodes, [first, after]))
        nodes, tokens = np.unique(self.nodes[here], return_inverse=True)
        kept = np.flatnonzero(part.outputs)

        def rows(layer: int) -> Rows:
            assert tap is not None
            shown = tap.rows(layer)
            places = np.searchsorted(run, nodes)
            return shown[places if len(shown) == len(part) else np.searchsorted(kept, places)]

        return Part(rows, self.nll[nodes], self.spans[here], tokens)


def _plain_beginning(span: Span) -> int:
    """How many of its tokens come before what is read, what predicts that, and what is edited."""
    before_read = max(0, span.places.start - 1)
    return min(before_read, span.edited.start) if span.edited else before_read


def _known(tree: PrefixTree, plain: Sequence[int], kept: KeptPrompts) -> list[tuple[int, int]]:
    """For each path of a tree, of how many tokens the kept prompts hold what was computed, and in which sequence."""
    beginnings = [kept.beginning(tree.batch.tokens[path[:count]].tolist()) for path, count in zip(tree.paths, plain, strict=True)]
    known = np.ones(len(tree.batch), bool)
    for path, (count, _) in zip(tree.paths, beginnings, strict=True):
        known[path[count:]] = False  # a node that one text must compute is computed for all
    return [(sequence, int(np.argmin([*known[path], False]))) for path, (_, sequence) in zip(tree.paths, beginnings, strict=True)]


def read_means(
    model: Model,
    spans: Sequence[Span],
    layers: Sequence[int],
    *,
    want_nll: bool = False,
    on_prediction: OnPrediction | None = None,
    kept: KeptPrompts | None = None,
    progress: Progress | None = None,
) -> Means:
    """What each text shows on average: arguments and errors are those of `read`."""
    counts = np.array([len(span.places) for span in spans], np.intp)
    values = np.zeros((len(spans), len(layers), model.n_embd), np.float32)
    norms = np.zeros((len(spans), len(layers)), np.float32)
    nll = np.zeros(len(spans))
    for part in read(model, spans, layers, want_nll=want_nll, on_prediction=on_prediction, kept=kept, progress=progress):
        here, column = np.unique(part.spans, return_inverse=True)
        weights = np.zeros((len(here), len(part.nll)), np.float32)
        weights[column, part.tokens] = 1 / counts[part.spans]
        for place, layer in enumerate(layers):
            rows = part.rows(layer)
            values[here, place] += weights @ rows
            norms[here, place] += weights @ np.linalg.norm(rows, axis=1)
        np.add.at(nll, part.spans, part.nll[part.tokens] / counts[part.spans])
    nothing = counts == 0
    values[nothing] = norms[nothing] = nll[nothing] = np.nan
    return Means(values, norms, nll)


def read_tokens(
    model: Model,
    spans: Sequence[Span],
    layers: Sequence[int],
    keep: Callable[[Part], NDArray[Kept]],
    *,
    progress: Progress | None = None,
) -> Iterator[tuple[int, NDArray[Kept]]]:
    """What each text shows token by token: it is handed out as soon as its last token is read, so that few are held at a time.

    Args:
        model: the model.
        spans: the texts, in any order; those of which nothing is read are left out.
        layers: the blocks whose outputs are wanted.
        keep: from a part to what is wanted of each of its tokens, (n_tokens, ...).
        progress: told after every part.

    Yields:
        The index of a span, and (number of its tokens that are read, ...).
    """
    begun: dict[int, list[NDArray[Kept]]] = {}
    for part in read(model, spans, layers, progress=progress):
        kept = keep(part)
        for number in np.unique(part.spans).tolist():
            own = begun.setdefault(number, [])
            own.append(kept[part.tokens[part.spans == number]])
            if sum(map(len, own)) == len(spans[number].places):
                yield number, np.concatenate(begun.pop(number))
