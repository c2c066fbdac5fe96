"""One prefix tree of texts, as it is read: which tokens are computed, in which order, and what they show."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from localsteer.llama.context import Batch, Context
from localsteer.llama.model import Model
from localsteer.llama.residual import Edit, ResidualTap, Rows
from localsteer.reading.kept import MAX_OUTPUTS, KeptPrompts
from localsteer.reading.prefix_tree import PrefixTree, lay_out
from localsteer.reading.span import Floats, Indices, Part, Span

OnPrediction = Callable[[Sequence[int], int, Rows], None]
"""Called for every token that is read and predicted: the spans that read it, its position in them, and the log probabilities
(n_vocab,) of what may stand there, which the next call overwrites."""


def lay_out_spans(model: Model, spans: Sequence[Span]) -> tuple[list[PrefixTree], list[list[Edit | None]]]:
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
class TreePass:
    """What is read of one tree, and what of it is computed.

    Attributes:
        nodes: (n_reads,) the nodes that are read, in the order of the batch, each as often as a span reads it.
        spans: (n_reads,) which span that is.
        predicted: for the nodes that ask for logits of what comes next, those that are read next.
        before: (n_nodes,) the node before each; -1 for the first of a text.
        computed: those that are computed, in the order of the batch.
        shown_with: (n_reads,) with which one each is shown: itself, or the one that predicts it where it is not computed.
        copied: what sequences take over from kept prompts: from which, to which, and how many tokens.
        batch: all nodes, in sequences of the context.
        nll: (n_nodes,) as far as known.
    """

    nodes: Indices
    spans: Indices
    predicted: dict[int, list[int]]
    before: Indices
    computed: Indices
    shown_with: Indices
    copied: Sequence[tuple[int, int, int]]
    batch: Batch
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
    ) -> TreePass:
        """What there is to do for a tree of some of the spans, of which `numbers` are its prompts."""
        batch = replace(tree.batch, sequence_ids=tree.batch.sequence_ids + np.int32(kept.n_sequences))
        own = [numbers[prompt] for prompt in tree.prompts]
        paths = [path[spans[number].places.start :] for number, path in zip(own, tree.paths, strict=True)]
        nodes = np.concatenate(paths)
        order = np.argsort(nodes, kind="stable")
        readers = np.repeat(np.array(own, np.intp), [len(path) for path in paths])
        predicted: dict[int, list[int]] = {}
        before = np.full(len(tree.batch), -1, np.intp)
        for path in tree.paths:
            before[path[1:]] = path[:-1]
        if want_nll:
            for node in np.unique(nodes).tolist():
                if before[node] >= 0:
                    predicted.setdefault(int(before[node]), []).append(node)
            batch.outputs[list(predicted)] = 1
        if n_layer - 1 in layers:  # there llama.cpp keeps only the rows of tokens that ask for logits
            batch.outputs[nodes] = 1
        shows = batch.outputs > 0
        shows[nodes if layers else nodes[before[nodes] < 0]] = True
        known = _known(tree, [_plain_beginning(spans[number]) for number in own], kept)
        computed = np.zeros(len(tree.batch), bool)
        copied = []
        last = np.cumsum(batch.sequence_counts) - 1
        for path, (source, count) in zip(tree.paths, known, strict=True):
            computed[path[count : 1 + max(np.flatnonzero(shows[path]))]] = True
            if count:
                copied.append((source, int(batch.sequence_ids[last[path[-1]]]), count))
        nodes = nodes[order]
        return TreePass(
            nodes=nodes,
            spans=readers[order],
            predicted=predicted,
            before=before,
            computed=np.flatnonzero(computed),
            shown_with=np.where(computed[nodes], nodes, before[nodes]),
            copied=copied,
            batch=batch,
            nll=np.full(len(batch), np.nan),
        )

    def decodes(self, size: int, least: float) -> Iterator[tuple[Indices, Batch]]:
        """What is decoded together, of at most `size` tokens: the nodes, and the batch of them.

        Args:
            size: most tokens.
            least: if any, the nodes come in the order of how many tokens are read before them, and those of texts that are less
                likely than this by then are left out.
        """
        for group in self._levels(least) if least else [self.computed]:
            start = 0
            for part in self.batch.only(group).split(size, MAX_OUTPUTS):
                yield group[start : start + len(part)], part
                start += len(part)

    def _levels(self, least: float) -> Iterator[Indices]:
        is_read = np.zeros(len(self.batch), bool)
        is_read[self.nodes] = True
        level = np.zeros(len(self.batch), np.intp)
        for node in np.flatnonzero(self.before >= 0).tolist():  # what is before a node has a smaller number
            level[node] = level[self.before[node]] + is_read[node]
        unlikely = np.zeros(len(self.batch))  # nats, from the first token that is read on
        for depth in range(1 + int(level[self.computed].max())):
            group = self.computed[level[self.computed] == depth]
            for node in group[self.before[group] >= 0].tolist():
                unlikely[node] = unlikely[self.before[node]] + (self.nll[node] if is_read[node] else 0)
            group = group[unlikely[group] <= -np.log(least)]  # what follows something left out is no number
            if len(group):
                yield group

    def score(self, context: Context, part: Batch, nodes: Indices, on_prediction: OnPrediction | None) -> None:
        """Take down how likely the tokens are that follow those of a part that was run."""
        for row in np.flatnonzero(part.outputs).tolist():
            if following := self.predicted.get(int(nodes[row])):
                logits = context.logits(row)
                top = logits.max()
                log_sum = float(top) + np.log(np.exp(logits - top).sum(dtype=np.float64))
                self.nll[following] = log_sum - logits[self.batch.tokens[following]]
                if on_prediction is not None:
                    for node in following:
                        readers = self.spans[slice(*np.searchsorted(self.nodes, [node, node + 1]))]
                        on_prediction(readers.tolist(), int(self.batch.positions[node]), logits - np.float32(log_sum))

    def part(self, tap: ResidualTap | None, part: Batch, run: Indices) -> Part:
        """What a part that was run shows, of these nodes."""
        here = np.isin(self.shown_with, run)
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
