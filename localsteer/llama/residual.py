"""Read and rewrite the residual stream from llama.cpp's evaluation callback.

The graph node `l_out-<k>` is the output of block k, one row of n_embd float32 a token (`hidden_states[k + 1]` in
transformers). llama.cpp asks about every node before it runs it, and hands over the wanted ones when their data is ready.
"""

from __future__ import annotations

import ctypes
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from localsteer.errors import ModelError
from localsteer.llama import library

Rows = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Edit:
    """What is done to the residual stream of one token: first components are removed, then rows are added.

    Edits of the same rows, scales and removals are equal, whoever made them. A weaker or stronger one shares its rows with the
    first: what is kept for every token of a ramp is a number.

    Attributes:
        rows: (n_layer, n_embd), residual-stream units: row k is added to the output of block k.
        removed: for each layer an orthogonal basis B (r, n_embd) of the components to project out: h - (h B^T) B. Where it is of
            length 1 they are removed once.
        scale: the rows are multiplied by this.
        beside: further rows, each with its own scale, that are added as well.
    """

    rows: Rows
    removed: Mapping[int, Rows] = field(default_factory=dict)
    scale: float = 1.0
    beside: tuple[tuple[Rows, float], ...] = ()

    @property
    def terms(self) -> tuple[tuple[Rows, float], ...]:
        """All rows, each with its scale."""
        return (self.rows, self.scale), *self.beside

    @property
    def added(self) -> Rows:
        """What is added in sum: (n_layer, n_embd). A copy, unless it is one term at scale 1."""
        if self.scale == 1 and not self.beside:
            return self.rows
        return _sum_of(self.terms)

    def added_at(self, layer: int) -> Rows | None:
        """What is added in sum at one layer: (n_embd,); None for nothing."""
        total = _sum_of([(rows[layer], scale) for rows, scale in self.terms])
        return total if total.any() else None

    def scaled(self, factor: float) -> Edit:
        """The same components removed, and so many times the rows added."""
        beside = tuple((rows, scale * factor) for rows, scale in self.beside)
        return replace(self, scale=self.scale * factor, beside=beside)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Edit):
            return NotImplemented
        if self is other:
            return True
        mine, theirs = self.terms, other.terms
        return (
            [scale for _, scale in mine] == [scale for _, scale in theirs]
            and self.removed.keys() == other.removed.keys()
            and all(own is one or np.array_equal(own, one) for (own, _), (one, _) in zip(mine, theirs, strict=True))
            and all(np.array_equal(basis, other.removed[layer]) for layer, basis in self.removed.items())
        )

    def __hash__(self) -> int:
        return hash((tuple(scale for _, scale in self.terms), frozenset(self.removed), self.rows.shape))


def _sum_of(terms: Sequence[tuple[Rows, float]]) -> Rows:
    total: Rows = np.sum([rows * np.float32(scale) for rows, scale in terms], axis=0, dtype=np.float32)
    return total


@dataclass(frozen=True)
class _LayerEdit:
    """The edits of one batch at one layer."""

    added: Rows | None  # (n_tokens, n_embd), or (1, n_embd) where all tokens get the same
    removed: tuple[tuple[NDArray[np.intp], Rows], ...]  # rows of the batch, and the basis to remove from them

    def rewrite(self, rows: Rows, kept: NDArray[np.intp] | None) -> None:
        """Change `rows` in place; `kept` names the batch rows it holds, where it does not hold all of them."""
        for indices, basis in self.removed:
            here = indices if kept is None else np.flatnonzero(np.isin(kept, indices))
            rows[here] -= (rows[here] @ basis.T) @ basis
        if self.added is not None:
            rows += self.added if kept is None or len(self.added) == 1 else self.added[kept]


class ResidualTap:
    """The evaluation callback of one context, which must be created with it.

    Between decodes, `watch` says which layers to read and `edit` what to change; after a decode, `rows` gives what was
    read. One decode must be one ubatch: `Context` sees to it, but for recurrent models, whose batches llama.cpp splits anew; give
    those one sequence, or one token of each, at a time.

    Args:
        n_layer: number of blocks of the model.
        n_embd: width of the residual stream.
    """

    def __init__(self, n_layer: int, n_embd: int) -> None:
        self._n_layer = n_layer
        self._n_embd = n_embd
        self._ggml = library.ggml_base()
        self._wanted: dict[bytes, int] = {}
        self._read: frozenset[int] = frozenset()
        self._stop_after: int | None = None
        self._edits: dict[int, _LayerEdit] = {}
        self._edits_of_rows: tuple[Edit | None, ...] = ()
        self._rows: dict[int, Rows] = {}
        self._nodes: frozenset[bytes] = frozenset()
        self._shown: dict[str, Rows] = {}
        self._n_tokens = 0
        self._outputs: NDArray[np.intp] = np.empty(0, np.intp)
        self._stopped = False
        self._failure: BaseException | None = None
        # The signature of ggml_backend_sched_eval_callback, declared here with plain types: fewer conversions a call.
        self.callback = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_bool, ctypes.c_void_p)(self._evaluate)

    def watch(self, layers: Iterable[int], *, stop: bool = False) -> None:
        """Read the outputs of these layers in the decodes that follow.

        Args:
            layers: block indices.
            stop: compute nothing above the highest of them. The KV cache above it is garbage then, and the logits too.
        """
        self._read = frozenset(layers)
        self._stop_after = max(self._read) if stop and self._read else None
        self._set_wanted()

    def watch_nodes(self, names: Iterable[str]) -> None:
        """Read other nodes of the graph, too, in the decodes that follow; one that is not there is passed over.

        Args:
            names: such as `kqv_out-3`, what the attention of block 3 gives before its output matrix.
        """
        self._nodes = frozenset(name.encode() for name in names)

    @property
    def nodes(self) -> Mapping[str, Rows]:
        """By name, what the last decode gave at other nodes that are watched: (n_tokens, width)."""
        return self._shown

    def edit(self, edits: Sequence[Edit | None]) -> None:
        """Change the residual stream in the decodes that follow.

        Args:
            edits: one for each token of the batch; None leaves a token as it is. An empty sequence ends all changes.
        """
        before = self._edits_of_rows
        if len(edits) == len(before) and all(map(operator.is_, edits, before)):
            return  # The usual case: the same sequences, one token further.
        self._edits_of_rows = tuple(edits)
        self._edits = {}
        places: dict[Edit, list[int]] = {}
        for place, edit in enumerate(edits):
            if edit is not None:
                places.setdefault(edit, []).append(place)
        same = [len(rows) for rows in places.values()] == [len(edits)]
        for layer in range(self._n_layer):
            rows_here = {edit: row for edit in places if (row := edit.added_at(layer)) is not None}
            added = np.zeros((1 if same else len(edits), self._n_embd), np.float32)
            for edit, row in rows_here.items():
                added[0 if same else places[edit]] = row
            removed = tuple(
                (np.array(rows, np.intp), edit.removed[layer]) for edit, rows in places.items() if layer in edit.removed
            )
            if rows_here or removed:
                self._edits[layer] = _LayerEdit(added if rows_here else None, removed)
        self._set_wanted()

    def rows(self, layer: int) -> Rows:
        """What the last decode gave at a watched layer, as it left the block (before any edit).

        Returns:
            (n_tokens, n_embd), residual-stream units, in the order of the batch. In the last block llama.cpp may
            compute only the rows of tokens that asked for logits: then (n_outputs, n_embd).
        """
        return self._rows[layer]

    def begin(self, n_tokens: int, outputs: NDArray[np.intp]) -> None:
        """Called by Context before a decode of `n_tokens` tokens, of which `outputs` asked for logits."""
        if len(self._edits_of_rows) not in (0, n_tokens):
            raise ValueError(f"{len(self._edits_of_rows)} edits for a batch of {n_tokens} tokens")
        self._n_tokens = n_tokens
        self._outputs = outputs
        self._stopped = False
        self._failure = None
        self._rows = {}
        self._shown = {}

    def raise_failure(self) -> None:
        """Called by Context after a decode: raises what went wrong inside the callback, where ctypes would lose it."""
        if self._failure is not None:
            raise self._failure

    def check_complete(self) -> None:
        """Called by Context after a decode that went well.

        Raises:
            ModelError: a wanted layer never appeared: this architecture does not name its block outputs.
        """
        missing = self._wanted.keys() - {b"l_out-%d" % layer for layer in self._rows}
        if missing:
            names = ", ".join(sorted(name.decode() for name in missing))
            raise ModelError(
                f"llama.cpp does not show the residual stream of this model's architecture ({names}).",
                hint="`localsteer doctor -m MODEL` says what can be done with a model.",
            )

    def _set_wanted(self) -> None:
        self._wanted = {b"l_out-%d" % layer: layer for layer in self._read | self._edits.keys()}

    def _evaluate(self, tensor: int, ask: bool, _user_data: int | None) -> bool:
        try:
            if ask:
                # Once stopped, the first node of every further split (a GPU and a CPU part, say) ends that split as well.
                if not (self._wanted or self._nodes):  # the usual answer, 970 times a token: not worth asking for the name
                    return self._stopped
                name = self._ggml.ggml_get_name(tensor)
                return self._stopped or name in self._wanted or name in self._nodes
            if self._stopped:
                return False
            name = self._ggml.ggml_get_name(tensor)
            if name in self._nodes:
                self._shown[name.decode()] = self._values(tensor).reshape(self._n_tokens, -1)
                return True
            layer = self._wanted[name]
            self._take(tensor, layer)
            if layer == self._stop_after:
                self._stopped = True
                return False
            return True
        except BaseException as error:
            self._failure = error
            self._stopped = True
            return False

    def _values(self, tensor: int) -> Rows:
        """All of a tensor's data, flat."""
        values = np.empty(self._ggml.ggml_nelements(tensor), np.float32)
        if len(values):
            self._ggml.ggml_backend_tensor_get(tensor, values.ctypes.data, 0, values.nbytes)
        return values

    def _take(self, tensor: int, layer: int) -> None:
        rows = self._values(tensor).reshape(-1, self._n_embd)
        n_rows = len(rows)
        kept: NDArray[np.intp] | None = None
        if n_rows != self._n_tokens:
            if n_rows != len(self._outputs):
                raise ModelError(
                    f"l_out-{layer} holds {n_rows} rows for a batch of {self._n_tokens} tokens with {len(self._outputs)} outputs."
                )
            kept = self._outputs
        edit = self._edits.get(layer)
        if edit is None:
            self._rows[layer] = rows
            return
        changed = rows.copy()
        edit.rewrite(changed, kept)
        if n_rows:
            self._ggml.ggml_backend_tensor_set(tensor, changed.ctypes.data, 0, changed.nbytes)
        self._rows[layer] = rows
