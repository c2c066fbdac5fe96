"""Lay prompts out as a prefix tree, so that what they have in common is computed once.

In llama.cpp one token of a batch may belong to many sequences. 160 contrastive prompts of 5,296 tokens become 791 nodes, and
reading them takes 2.3 s instead of 15.9 s (SmolLM2-135M, 2 cores).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from localsteer.llama.context import Batch
from localsteer.llama.model import Model

# Attention of one token runs over all cells in the cache, its own or not, so larger trees cost more than they save:
# with 160 prompts of the happy concept 1,024 to 4,096 nodes a tree differ by less than the noise on the demo model.
MAX_NODES = 2048
# A row of logits is reserved for every sequence (1 MB each for Gemma's vocabulary); llama.cpp's own limit is 256.
MAX_SEQUENCES = 128


@dataclass(frozen=True, eq=False)
class PrefixTree:
    """Some prompts as one batch. Every leaf is a sequence.

    Attributes:
        batch: the nodes in depth-first order, no logits asked for.
        paths: for each prompt, the indices of its tokens' nodes in the batch.
        prompts: for each path, the index of its prompt in what was laid out.
        n_sequences: number of leaves.
    """

    batch: Batch
    paths: tuple[NDArray[np.intp], ...]
    prompts: tuple[int, ...]
    n_sequences: int


def grow_trees(prompts: Sequence[Sequence[int]], *, share: bool = True) -> Iterator[PrefixTree]:
    """Prompts as as few trees as the limits allow, sorted so that neighbours share the most.

    Args:
        prompts: token ids, each at least one token.
        share: False puts each distinct prompt in a tree of its own, for models whose sequences cannot share tokens.
    """
    order = sorted(range(len(prompts)), key=lambda index: tuple(prompts[index]))
    group: list[int] = []
    nodes = leaves = 0
    for index in order:
        new = len(prompts[index]) - (common_beginning(prompts[group[-1]], prompts[index]) if group else 0)
        # A prompt that only lengthens the one before, or repeats it, goes on in the same sequence.
        leaf = not group or len(prompts[index]) - new < len(prompts[group[-1]])
        full = nodes + new > MAX_NODES or leaves + leaf > MAX_SEQUENCES or not share
        if group and new and full:
            yield _grow(prompts, group)
            group, nodes, leaves = [], 0, 0
            new, leaf = len(prompts[index]), True
        group.append(index)
        nodes += new
        leaves += leaf
    if group:
        yield _grow(prompts, group)


def common_beginning(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with. By halves, which CPython compares as a whole: 4,000 tokens take 20 µs."""
    low, high = 0, min(len(one), len(other)) + 1
    while high - low > 1:
        middle = (low + high) // 2
        if tuple(one[low:middle]) == tuple(other[low:middle]):
            low = middle
        else:
            high = middle
    return low


def _grow(prompts: Sequence[Sequence[int]], group: Sequence[int]) -> PrefixTree:
    """One tree of sorted prompts: each continues the path of the one before from where they part."""
    tokens: list[int] = []
    positions: list[int] = []
    first_leaf: list[int] = []
    last_leaf: list[int] = []
    paths: list[NDArray[np.intp]] = []
    path: list[int] = []
    leaf = -1
    previous: Sequence[int] = ()
    for index in group:
        prompt = prompts[index]
        shared = common_beginning(previous, prompt)
        # In sorted order a prompt that the one before is a prefix of only lengthens the same sequence.
        if shared < len(previous) or leaf < 0:
            leaf += 1
        del path[shared:]
        for position in range(shared, len(prompt)):
            path.append(len(tokens))
            tokens.append(prompt[position])
            positions.append(position)
            first_leaf.append(leaf)
            last_leaf.append(leaf)
        for node in path:
            last_leaf[node] = leaf
        paths.append(np.array(path, np.intp))
        previous = prompt
    counts = np.array(last_leaf, np.int32) - np.array(first_leaf, np.int32) + 1
    ids = np.concatenate([np.arange(a, b + 1) for a, b in zip(first_leaf, last_leaf, strict=True)])
    batch = Batch(
        tokens=np.array(tokens, np.int32),
        positions=np.array(positions, np.int32),
        sequence_counts=counts,
        sequence_ids=ids.astype(np.int32),
        outputs=np.zeros(len(tokens), np.int8),
    )
    return PrefixTree(batch, tuple(paths), tuple(group), leaf + 1)


def lay_out(model: Model, prompts: Sequence[Sequence[int]]) -> list[PrefixTree]:
    """The trees for a model: shared where its sequences can share tokens, one prompt each otherwise."""
    return list(grow_trees(prompts, share=model.sequences_share_tokens))
