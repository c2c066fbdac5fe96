from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from localsteer.llama.model import Model
from localsteer.reading import prefix_tree
from localsteer.reading.prefix_tree import PrefixTree, common_beginning, grow_trees, lay_out

Prompts = list[list[int]]

SMALL: list[Prompts] = [
    [[5]],
    [[5], [5]],
    [[5], [6]],
    [[1, 2, 3]],
    [[1, 2, 3], [1, 2, 3], [1, 2, 3]],
    [[1], [1, 2], [1, 2, 3]],
    [[1, 2, 3], [1, 2], [1]],
    [[1, 2], [1, 2, 3], [1, 2, 4]],
    [[1, 2, 4], [1, 3, 4]],
    [[2, 1], [1, 2], [1]],
    [[1, 1, 1], [1, 1], [1, 2, 1, 1]],
]


def random_prompts(seed: int) -> Prompts:
    """Few tokens and short prompts, so that many are equal or begin alike."""
    random = np.random.default_rng(seed)
    n_vocab, longest = int(random.integers(1, 5)), int(random.integers(1, 9))
    return [random.integers(0, n_vocab, random.integers(1, longest + 1)).tolist() for _ in range(int(random.integers(1, 40)))]


MANY: list[Prompts] = [*SMALL, *(random_prompts(seed) for seed in range(40))]


def sequences(tree: PrefixTree) -> list[list[int]]:
    """The sequence ids of each node."""
    ends = np.cumsum(tree.batch.sequence_counts)[:-1]
    return [part.tolist() for part in np.split(tree.batch.sequence_ids, ends)]


def prefixes(tree: PrefixTree) -> dict[int, tuple[int, ...]]:
    """What each node spells, from the paths through it."""
    spelt: dict[int, tuple[int, ...]] = {}
    for path in tree.paths:
        for depth, node in enumerate(path.tolist()):
            spelling = tuple(tree.batch.tokens[path[: depth + 1]].tolist())
            assert spelt.setdefault(node, spelling) == spelling
    return spelt


def check(trees: Sequence[PrefixTree], prompts: Prompts) -> None:
    """Every prompt is in one tree, and llama.cpp would see it as the prompt alone."""
    assert sorted(index for tree in trees for index in tree.prompts) == list(range(len(prompts)))
    for tree in trees:
        for index, path in zip(tree.prompts, tree.paths, strict=True):
            assert tree.batch.tokens[path].tolist() == prompts[index]
            assert tree.batch.positions[path].tolist() == list(range(len(path)))
        spelt = prefixes(tree)
        # All nodes are in use, and none is there twice.
        assert sorted(spelt) == list(range(len(tree.batch)))
        assert len(set(spelt.values())) == len(spelt)
        # A node comes after those before it in its sequences.
        assert all((np.diff(path) > 0).all() for path in tree.paths)
        ids = sequences(tree)
        leaves = {
            node
            for node, spelling in spelt.items()
            if not any(other[: len(spelling)] == spelling for other in spelt.values() if len(other) > len(spelling))
        }
        assert len(leaves) == tree.n_sequences
        # Each leaf has one sequence of its own, and each node those of exactly the leaves below it.
        assert sorted(ids[leaf][0] for leaf in leaves) == list(range(tree.n_sequences))
        for node, spelling in spelt.items():
            below = [ids[leaf][0] for leaf in leaves if spelt[leaf][: len(spelling)] == spelling]
            assert sorted(ids[node]) == sorted(below)
        assert not tree.batch.outputs.any()


def test_the_length_of_a_common_beginning() -> None:
    cases = [
        ((), (), 0),
        ((1,), (), 0),
        ((1, 2), (1, 2), 2),
        ((1, 2), (1, 2, 3), 2),
        ((1, 2, 3), (1, 3, 3), 1),
        ((1, 2), (2, 2), 0),
    ]
    for one, other, length in cases:
        assert common_beginning(one, other) == common_beginning(other, one) == length
        assert common_beginning(list(one), other) == length


def test_one_tree_holds_all_prompts() -> None:
    for prompts in MANY:
        (tree,) = grow_trees(prompts)
        check([tree], prompts)


def test_a_path_has_a_sequence_that_holds_all_of_it() -> None:
    for prompts in MANY:
        (tree,) = grow_trees(prompts)
        ids = sequences(tree)
        for path in tree.paths:
            assert set.intersection(*(set(ids[node]) for node in path))


@pytest.mark.parametrize(("max_nodes", "max_sequences"), [(6, 100), (1, 100), (100, 3), (100, 1), (9, 4), (7, 2)])
def test_trees_keep_to_the_limits(monkeypatch: pytest.MonkeyPatch, max_nodes: int, max_sequences: int) -> None:
    monkeypatch.setattr(prefix_tree, "MAX_NODES", max_nodes)
    monkeypatch.setattr(prefix_tree, "MAX_SEQUENCES", max_sequences)
    for prompts in MANY:
        trees = list(grow_trees(prompts))
        check(trees, prompts)
        for tree in trees:
            assert tree.n_sequences <= max_sequences
            # A prompt that is too long by itself still gets a tree.
            assert len(tree.batch) <= max_nodes or tree.n_sequences == 1


def test_a_limit_is_used_up_before_a_new_tree_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [[token, 9] for token in range(8)]
    monkeypatch.setattr(prefix_tree, "MAX_NODES", 6)
    assert [len(tree.batch) for tree in grow_trees(prompts)] == [6, 6, 4]
    monkeypatch.setattr(prefix_tree, "MAX_SEQUENCES", 2)
    assert [tree.n_sequences for tree in grow_trees(prompts)] == [2, 2, 2, 2]


def test_neighbours_share_the_most_whatever_the_order_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_tree, "MAX_NODES", 7)
    prompts = [[1, 1, 1, 1, 5], [2, 2, 2, 2, 5], [1, 1, 1, 1, 6], [2, 2, 2, 2, 6], [1, 1, 1, 1, 7], [2, 2, 2, 2, 7]]
    trees = list(grow_trees(prompts))
    assert [sorted(tree.prompts) for tree in trees] == [[0, 2, 4], [1, 3, 5]]
    assert [len(tree.batch) for tree in trees] == [7, 7]


def test_nothing_is_shared_where_that_is_not_allowed() -> None:
    for prompts in MANY:
        trees = list(grow_trees(prompts, share=False))
        check(trees, prompts)
        assert len(trees) == len({tuple(prompt) for prompt in prompts})
        for tree in trees:
            assert len({tuple(prompts[index]) for index in tree.prompts}) == 1


def test_the_limits_are_those_of_llama_cpp() -> None:
    (tree,) = grow_trees([[token] for token in range(128)])
    assert tree.n_sequences == 128
    assert max(tree.n_sequences for tree in grow_trees([[token] for token in range(600)])) <= 256


def test_prompts_that_need_no_sequence_do_not_use_up_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_tree, "MAX_SEQUENCES", 2)
    assert len(list(grow_trees([[1], [1], [1, 2], [3]]))) == 1


def test_no_prompts_have_no_trees() -> None:
    assert list(grow_trees([])) == []


def test_a_model_gets_trees_that_its_sequences_allow(tiny_model: Callable[[str], Model]) -> None:
    prompts = [[1, 2], [1, 3], [1, 3]]
    assert len(lay_out(tiny_model("llama"), prompts)) == 1
    assert len(lay_out(tiny_model("mamba"), prompts)) == 2
