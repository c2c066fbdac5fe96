"""A context: the KV cache, decoding, the native control vector, and logits."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localsteer.errors import ModelError
from localsteer.llama import library
from localsteer.llama.adapter import Adapter
from localsteer.llama.closing import Closing
from localsteer.llama.model import Model
from localsteer.llama.residual import ResidualTap
from localsteer.llama.threads import interrupts_after

# llama.cpp's own default, and what its programs use: one graph of this many tokens at most.
N_UBATCH = 512


@dataclass(frozen=True, eq=False)
class Batch:
    """Tokens to decode together.

    Attributes:
        tokens: (n,) int32, token ids.
        positions: (n,) int32, position of each token in its sequences.
        sequence_counts: (n,) int32, to how many sequences each token belongs.
        sequence_ids: (sum of sequence_counts,) int32, those sequences, token after token.
        outputs: (n,) int8, 1 where logits are wanted.
    """

    tokens: NDArray[np.int32]
    positions: NDArray[np.int32]
    sequence_counts: NDArray[np.int32]
    sequence_ids: NDArray[np.int32]
    outputs: NDArray[np.int8]

    def __len__(self) -> int:
        return len(self.tokens)

    @staticmethod
    def of_one_sequence(tokens: Sequence[int], *, start: int, sequence: int = 0, last_output: bool = True) -> Batch:
        """Consecutive tokens of one sequence from position `start`, logits (if wanted) for the last one."""
        n = len(tokens)
        outputs = np.zeros(n, np.int8)
        if last_output:
            outputs[-1] = 1
        return Batch(
            tokens=np.asarray(tokens, np.int32),
            positions=np.arange(start, start + n, dtype=np.int32),
            sequence_counts=np.ones(n, np.int32),
            sequence_ids=np.full(n, sequence, np.int32),
            outputs=outputs,
        )

    def only(self, rows: NDArray[np.intp]) -> Batch:
        """Some of its tokens, in ascending order."""
        of_rows = np.zeros(len(self), bool)
        of_rows[rows] = True
        ids = self.sequence_ids[np.repeat(of_rows, self.sequence_counts)]
        return Batch(self.tokens[rows], self.positions[rows], self.sequence_counts[rows], ids, self.outputs[rows])

    def split(self, size: int, n_outputs: int | None = None) -> Iterator[Batch]:
        """The batch in consecutive parts of at most `size` tokens, at most `n_outputs` of which ask for logits."""
        ends = np.concatenate(([0], np.cumsum(self.sequence_counts)))
        asked = np.concatenate(([0], np.cumsum(self.outputs, dtype=np.intp)))
        start = 0
        while start < len(self):
            stop = min(start + size, len(self))
            if n_outputs is not None:
                stop = min(stop, int(np.searchsorted(asked, asked[start] + n_outputs, side="right")) - 1)
            yield Batch(
                self.tokens[start:stop],
                self.positions[start:stop],
                self.sequence_counts[start:stop],
                self.sequence_ids[ends[start] : ends[stop]],
                self.outputs[start:stop],
            )
            start = stop


def undivided(model: Model, sequences: Sequence[int]) -> Iterator[slice]:
    """Which of these sequences, in ascending order, can be decoded together with one token each, as one graph.

    llama.cpp divides a batch of recurrent sequences whose numbers do not follow one another (`split_equal` in llama-batch.cpp).
    """
    start = 0
    for place in range(1, len(sequences) + 1):
        follows = place < len(sequences) and (model.sequences_share_tokens or sequences[place] == sequences[place - 1] + 1)
        if not follows:
            yield slice(start, place)
            start = place


class _NativeBatch:
    """A `llama_batch` over arrays of our own, filled anew for each decode.

    Making one each time would cost 0.1 ms a token, 1 % of the demo model's decode.
    """

    def __init__(self, capacity: int) -> None:
        llama = library.load()
        self._arrays: dict[str, NDArray[Any]] = {
            "token": np.empty(capacity, np.int32),
            "pos": np.empty(capacity, np.int32),
            "n_seq_id": np.empty(capacity, np.int32),
            "seq_id": np.empty(capacity, np.uintp),  # for each token a pointer into _ids
            "logits": np.empty(capacity, np.int8),
        }
        self._ids = np.empty(capacity, np.int32)
        self._batch = llama.llama_batch()
        for name, array in self._arrays.items():
            setattr(self._batch, name, ctypes.cast(array.ctypes.data, type(getattr(self._batch, name))))

    def filled_with(self, batch: Batch) -> object:
        """The struct, valid until the next call."""
        n = len(batch)
        if len(batch.sequence_ids) > len(self._ids):
            self._ids = np.empty(len(batch.sequence_ids), np.int32)
        self._ids[: len(batch.sequence_ids)] = batch.sequence_ids
        starts = np.cumsum(batch.sequence_counts) - batch.sequence_counts
        self._arrays["token"][:n] = batch.tokens
        self._arrays["pos"][:n] = batch.positions
        self._arrays["n_seq_id"][:n] = batch.sequence_counts
        self._arrays["seq_id"][:n] = self._ids.ctypes.data + starts * self._ids.itemsize
        self._arrays["logits"][:n] = batch.outputs
        self._batch.n_tokens = n
        return self._batch


class Context(Closing):
    """A KV cache of `n_ctx` cells shared by up to `n_seq` sequences. A context manager.

    Args:
        model: the model to run.
        n_ctx: cells of the KV cache, which all sequences share.
        n_seq: number of sequences.
        n_ubatch: most tokens of one decode.
        n_outputs: most tokens of one decode that ask for logits; the buffer for them grows with it
            (n_vocab floats each: 1 MB for Gemma).
        tap: reads or rewrites the residual stream. It costs a little even when idle (a callback for every node of the graph), so
            only contexts that need it carry one.

    Attributes:
        handle: the `llama_context *`, for samplers; None once it is closed.

    Raises:
        ModelError: llama.cpp cannot make the context, most often for lack of memory.
    """

    def __init__(
        self,
        model: Model,
        *,
        n_ctx: int,
        n_seq: int = 1,
        n_ubatch: int = N_UBATCH,
        n_outputs: int | None = None,
        tap: ResidualTap | None = None,
    ) -> None:
        self.model = model
        self.tap = tap
        self._llama = llama = library.load()
        params = llama.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_seq_max = n_seq
        # One decode is one ubatch, so that a tap knows which rows it is given.
        params.n_batch = params.n_ubatch = min(n_ubatch, n_ctx)
        # llama.cpp asks for room for a row of logits for each sequence.
        params.n_outputs_max = max(n_seq, n_outputs if n_outputs is not None else n_seq)
        params.n_threads = params.n_threads_batch = model.threads
        # One pool of cells: a batch keeps the order it was given in, and a token may belong to many sequences.
        params.kv_unified = True
        # Keeps the cells outside a sliding window, so that the tail of a sequence can be taken back and rewritten.
        params.swa_full = True
        if tap is not None:
            params.cb_eval = ctypes.cast(tap.callback, type(params.cb_eval))
        library.forget_errors()
        with interrupts_after():
            self.handle: ctypes.c_void_p | None = llama.llama_init_from_model(model.handle, params)
        if not self.handle:
            reason = library.last_error("not enough memory?")
            raise ModelError(
                f"llama.cpp cannot make a context of {n_ctx} tokens for {model.path}: {reason}.",
                hint="Try a smaller one with --context.",
            )
        self._memory = llama.llama_get_memory(self.handle)
        if not self._memory:
            self.close()
            # llama.cpp would run it as an encoder, with an output for every token, and abort for lack of room for them.
            raise ModelError(
                f"{model.path} (architecture {model.architecture}) keeps no KV cache: it is an embedding or diffusion model.",
                hint="Use a chat or base language model.",
            )
        self.n_ctx = int(llama.llama_n_ctx(self.handle))
        self.n_seq = n_seq
        self.n_ubatch = int(llama.llama_n_ubatch(self.handle))
        self._control_vector: NDArray[np.float32] | None = None
        self._batch = _NativeBatch(self.n_ubatch)

    def close(self) -> None:
        """Free the KV cache and the compute buffers."""
        if self.handle:
            self._llama.llama_free(self.handle)
            self.handle = None

    def decode(self, batch: Batch) -> None:
        """Run one batch of at most `n_ubatch` tokens; longer ones go in parts (`Batch.split`).

        Raises:
            ModelError: the KV cache is full, or the computation failed.
        """
        n = len(batch)
        if not 0 < n <= self.n_ubatch:
            raise ValueError(f"a batch of {n} tokens, where 1 to {self.n_ubatch} are possible")
        llama = self._llama
        c_batch = self._batch.filled_with(batch)
        if self.tap is not None:
            self.tap.begin(n, np.flatnonzero(batch.outputs))
        library.forget_errors()
        with interrupts_after():  # the tap calls back into Python, and so does the log, when the graph is reserved anew
            status = llama.llama_decode(self.handle, c_batch)
        if self.tap is not None:
            self.tap.raise_failure()
        if status == 1:
            raise ModelError(f"The context of {self.n_ctx} tokens is full.", hint="Use a larger one with --context.")
        if status != 0:
            reason = library.last_error(f"status {status}")
            raise ModelError(f"llama.cpp cannot run {self.model.path}: {reason}.")
        if self.tap is not None:
            self.tap.check_complete()

    def logits(self, row: int) -> NDArray[np.float32]:
        """Logits of one token of the last decode.

        Args:
            row: its place in the batch; it must have asked for logits.

        Returns:
            (n_vocab,) a view that the next decode overwrites.
        """
        pointer = self._llama.llama_get_logits_ith(self.handle, row)
        if not pointer:
            raise ValueError(f"token {row} of the batch did not ask for logits")
        return np.ctypeslib.as_array(pointer, (self.model.n_vocab,))

    def set_control_vector(self, added: NDArray[np.float32] | None) -> None:
        """Add a row to the output of each block in the decodes that follow (llama_set_adapter_cvec).

        Setting what is set already costs nothing; a change makes llama.cpp reserve its graph again (3 ms).

        Args:
            added: (n_layer, n_embd), residual-stream units; row 0 must be zero, for llama.cpp cannot steer block 0.
                None ends steering.

        Raises:
            ModelError: llama.cpp refuses the vector.
        """
        before = self._control_vector
        if added is before or (added is not None and before is not None and np.array_equal(added, before)):
            return
        n_layer, n_embd = self.model.n_layer, self.model.n_embd
        if added is None:
            status = self._llama.llama_set_adapter_cvec(self.handle, None, 0, n_embd, 0, 0)
        else:
            if added.shape != (n_layer, n_embd) or added[0].any():
                raise ValueError(f"a control vector of shape {added.shape} for {n_layer} layers of {n_embd}")
            # The full buffer: layers that a shorter one does not cover would keep what was there before.
            data = np.ascontiguousarray(added[1:], np.float32)
            pointer = data.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            status = self._llama.llama_set_adapter_cvec(self.handle, pointer, data.size, n_embd, 1, n_layer - 1)
        if status != 0:
            raise ModelError(f"llama.cpp refuses a control vector for {self.model.path}.")
        self._control_vector = added

    def set_adapters(self, adapters: Sequence[tuple[Adapter, float]]) -> None:
        """Use LoRA adapters, each with a scale, in the decodes that follow (llama_set_adapters_lora); none ends that.

        Raises:
            ModelError: llama.cpp refuses them.
        """
        llama, count = self._llama, len(adapters)
        handles = (llama.llama_adapter_lora_p_ctypes * count)(*(adapter.handle for adapter, _ in adapters))
        scales = (ctypes.c_float * count)(*(scale for _, scale in adapters))
        if llama.llama_set_adapters_lora(self.handle, handles, count, scales) != 0:
            raise ModelError(f"llama.cpp refuses the adapters for {self.model.path}.")

    def forget(self, sequence: int, start: int = 0) -> bool:
        """Drop a sequence's tokens from position `start` on.

        Returns:
            False where the model cannot do so (recurrent state cannot be taken back): clear and begin again then.
        """
        return self.can_go_back(sequence, start) and bool(self._llama.llama_memory_seq_rm(self._memory, sequence, start, -1))

    def can_go_back(self, sequence: int, start: int) -> bool:
        """Whether a transformer's sequence still holds all that a token at position `start` looks back on.

        llama.cpp puts new tokens where others lie outside their own sequence's window, even with the full cache.
        """
        window = int(self._llama.llama_model_n_swa(self.model.handle))
        if not window or start == 0:
            return True
        return int(self._llama.llama_memory_seq_pos_min(self._memory, sequence)) <= max(0, start + 1 - window)

    def copy_sequence(self, source: int, target: int, stop: int = -1) -> None:
        """Let `target` share all that `source` holds, or what it holds before position `stop`."""
        self._llama.llama_memory_seq_cp(self._memory, source, target, -1, stop)

    def sequence_bytes(self, sequence: int) -> int:
        """How many bytes `sequence_state` would be."""
        return int(self._llama.llama_state_seq_get_size(self.handle, sequence))

    def sequence_state(self, sequence: int) -> NDArray[np.uint8]:
        """All that a sequence holds, for `restore_sequence` of a context of the same model (llama_state_seq_get_data).

        Raises:
            ModelError: llama.cpp cannot copy it.
        """
        state = np.empty(self.sequence_bytes(sequence), np.uint8)
        pointer = state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        if self._llama.llama_state_seq_get_data(self.handle, pointer, len(state), sequence) != len(state):
            raise ModelError(f"llama.cpp cannot copy the KV cache of {self.model.path}.")
        return state

    def restore_sequence(self, sequence: int, state: NDArray[np.uint8]) -> bool:
        """Let a sequence hold what it, or another one, held before; False, and it is empty, where there is no room."""
        pointer = state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        if self._llama.llama_state_seq_set_data(self.handle, pointer, len(state), sequence) == len(state):
            return True
        self.forget(sequence)
        return False

    def clear(self) -> None:
        """Empty the KV cache."""
        self._llama.llama_memory_clear(self._memory, True)
