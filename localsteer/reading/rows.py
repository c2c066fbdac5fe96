"""The reading pass: texts in; out come rows of the residual stream, and how likely the model finds the tokens.

The model reads unsteered, or a text under an edit of its own (teacher forcing: what a steered model thinks of given words).
Texts run as prefix trees. Nothing is computed behind the last token that is read (the one before it, where only its likelihood is
wanted), nor, unless likelihoods are wanted, above the highest layer; logits are asked for only where they are needed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from localsteer.llama.model import Model
from localsteer.llama.residual import Rows
from localsteer.reading.kept import MAX_OUTPUTS, KeptPrompts
from localsteer.reading.span import Floats, Part, Span
from localsteer.reading.tree_pass import OnPrediction, TreePass, lay_out_spans

Progress = Callable[[int, int], None]
"""Called with what is done and what there is to do, in tokens."""
Kept = TypeVar("Kept", bound=np.floating)


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
    least: float = 0.0,
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
        least: a text that is less likely than this, of 1, as far as it was read, is not read on: all are read token by token.
            Those that begin alike must be read from the same place on.
        kept: prompts that texts of this and of other passes begin with.
        progress: told after every part.

    Raises:
        ModelError: llama.cpp does not show the residual stream of this architecture.
    """
    numbers = [number for number, span in enumerate(spans) if span.places]
    if not numbers or not (layers or want_nll):
        return
    with contextlib.nullcontext(kept) if kept is not None else KeptPrompts(model) as held:
        trees, edits = lay_out_spans(model, [spans[number] for number in numbers])
        passes = [TreePass.of(tree, numbers, spans, layers, held, n_layer=model.n_layer, want_nll=want_nll) for tree in trees]
        context = held.context(
            max(len(own.computed) for own in passes),
            max(tree.n_sequences for tree in trees),
            min(MAX_OUTPUTS, max(int(own.batch.outputs.sum()) for own in passes)),
            steered=bool(layers) or any(any(own) for own in edits),
        )
        tap = context.tap
        done, total = 0, sum(len(own.computed) for own in passes)
        for own, edited in zip(passes, edits, strict=True):
            held.empty(context)
            if tap is not None:
                tap.watch(layers, stop=not want_nll)
            for source, target, stop in own.copied:
                context.copy_sequence(source, target, stop)
            for nodes, part in own.decodes(context.n_ubatch, least):
                if tap is not None:
                    here = [edited[node] for node in nodes.tolist()]
                    tap.edit(here if any(here) else ())
                context.decode(part)
                if want_nll:
                    own.score(context, part, nodes, on_prediction)
                yield own.part(tap, part, nodes)
                done += len(part)
                if progress is not None:
                    progress(done, total)


def read_means(
    model: Model,
    spans: Sequence[Span],
    layers: Sequence[int],
    *,
    want_nll: bool = False,
    on_prediction: OnPrediction | None = None,
    least: float = 0.0,
    kept: KeptPrompts | None = None,
    progress: Progress | None = None,
) -> Means:
    """What each text shows on average: arguments and errors are those of `read`.

    Of a text that is not read on, it shows only that it is infinitely unlikely.
    """
    counts = np.array([len(span.places) for span in spans], np.intp)
    values = np.zeros((len(spans), len(layers), model.n_embd), np.float32)
    norms = np.zeros((len(spans), len(layers)), np.float32)
    nll = np.zeros(len(spans))
    shown = np.zeros(len(spans), np.intp)
    for part in read(
        model, spans, layers, want_nll=want_nll, on_prediction=on_prediction, least=least, kept=kept, progress=progress
    ):
        here, column = np.unique(part.spans, return_inverse=True)
        weights = np.zeros((len(here), len(part.nll)), np.float32)
        weights[column, part.tokens] = 1 / counts[part.spans]
        for place, layer in enumerate(layers):
            rows = part.rows(layer)
            values[here, place] += weights @ rows
            norms[here, place] += weights @ np.linalg.norm(rows, axis=1)
        np.add.at(shown, part.spans, 1)
        np.add.at(nll, part.spans, part.nll[part.tokens] / counts[part.spans])
    nothing = counts == 0
    if least:
        nll[shown < counts] = np.inf
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
