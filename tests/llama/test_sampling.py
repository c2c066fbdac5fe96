from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from localsteer.engine.generate import Generator
from localsteer.engine.request import Request
from localsteer.errors import LocalsteerError
from localsteer.llama.context import Batch, Context
from localsteer.llama.grammar import Grammar
from localsteer.llama.model import Model
from localsteer.llama.sampling import RULED_OUT, Sampler, Sampling, fresh_seed
from tests.conftest import Floats, next_tokens, random_tokens

PROMPT = random_tokens(12, seed=1)
# Every token has its share, and nothing is filtered.
OPEN = Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=1)


@pytest.fixture(scope="module")
def context(tiny: Model) -> Iterator[Context]:
    """The prompt has been read: row 11 holds the logits of what follows."""
    with Context(tiny, n_ctx=64) as context:
        context.decode(Batch.of_one_sequence(PROMPT, start=0))
        yield context


def draws(context: Context, settings: Sampling, count: int) -> list[int]:
    with Sampler(settings, context.model) as sampler:
        return [sampler.sample(context, len(PROMPT) - 1) for _ in range(count)]


def logits_of(context: Context) -> Floats:
    return context.logits(len(PROMPT) - 1)


def probabilities(context: Context) -> Floats:
    weights = np.exp(logits_of(context) - logits_of(context).max())
    shares: Floats = weights / weights.sum()
    return shares


def test_temperature_0_takes_the_most_likely_token(context: Context) -> None:
    assert set(draws(context, Sampling(temperature=0, seed=3), 20)) == {int(logits_of(context).argmax())}


def test_the_same_seed_draws_the_same_tokens(context: Context) -> None:
    first = draws(context, Sampling(temperature=2, seed=3), 20)
    assert draws(context, Sampling(temperature=2, seed=3), 20) == first
    assert draws(context, Sampling(temperature=2, seed=4), 20) != first
    assert len(set(first)) > 1


def test_tokens_come_as_often_as_they_are_likely(context: Context) -> None:
    counts = np.bincount(draws(context, OPEN, 4000), minlength=context.model.n_vocab)
    # Six standard deviations of a share of 4,000 draws.
    np.testing.assert_allclose(counts / 4000, probabilities(context), atol=0.05)


def test_temperature_divides_the_logits(context: Context) -> None:
    counts = np.bincount(draws(context, replace(OPEN, temperature=3.0), 4000), minlength=context.model.n_vocab)
    flat = np.exp(logits_of(context) / 3 - logits_of(context).max() / 3)
    np.testing.assert_allclose(counts / 4000, flat / flat.sum(), atol=0.05)
    assert (counts > 0).sum() > 150


def test_top_k_keeps_the_k_most_likely(context: Context) -> None:
    drawn = set(draws(context, replace(OPEN, temperature=5.0, top_k=3), 300))
    assert drawn == set(np.argsort(logits_of(context))[-3:].tolist())


def test_top_p_keeps_the_most_likely_up_to_their_summed_probability(context: Context) -> None:
    order = np.argsort(-logits_of(context))
    sums = np.cumsum(probabilities(context)[order])
    kept = set(order[: int(np.searchsorted(sums, 0.7)) + 1].tolist())
    assert 1 < len(kept) < 100
    # The filter comes before the temperature, so a high one shows all that is kept.
    assert set(draws(context, replace(OPEN, temperature=20.0, top_p=0.7), 3000)) == kept


def test_min_p_keeps_what_is_not_too_unlikely(context: Context) -> None:
    shares = probabilities(context) / probabilities(context).max()
    kept = set(np.flatnonzero(shares >= 0.05).tolist())
    assert 1 < len(kept) < 100
    assert set(draws(context, replace(OPEN, temperature=20.0, min_p=0.05), 3000)) == kept


def test_the_repeat_penalty_looks_back_64_tokens(context: Context) -> None:
    never_again = draws(context, Sampling(temperature=0, repeat_penalty=1e6, seed=1), 66)
    assert never_again[:65] == np.argsort(-logits_of(context))[:65].tolist()
    assert never_again[65] == never_again[0]


def test_a_mild_repeat_penalty_divides_the_logit(context: Context) -> None:
    logits = logits_of(context)
    first, second = np.argsort(-logits)[:2].tolist()
    ratio = float(logits[first] / logits[second])
    assert draws(context, Sampling(temperature=0, repeat_penalty=ratio * 1.01, seed=1), 2) == [first, second]
    assert draws(context, Sampling(temperature=0, repeat_penalty=ratio * 0.99, seed=1), 2) == [first, first]


@pytest.mark.parametrize("seed", [None, -1, 2**32 - 1, 2**40])
def test_a_seed_that_llama_cpp_would_not_take_as_it_is_is_refused(tiny: Model, seed: int | None) -> None:
    with pytest.raises(LocalsteerError, match="seed"):
        Sampler(Sampling(seed=seed), tiny)


def test_fresh_seeds_differ() -> None:
    seeds = {fresh_seed() for _ in range(10)}
    assert len(seeds) == 10
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_a_presence_penalty_is_taken_once_and_a_frequency_penalty_each_time(context: Context) -> None:
    logits = logits_of(context)
    first, second = np.argsort(-logits)[:2].tolist()
    gap = float(logits[first] - logits[second])
    # Once is too little here, and more is never taken for the first one's presence alone.
    assert set(draws(context, Sampling(temperature=0, presence_penalty=gap * 0.9, seed=1), 6)) == {first}
    assert draws(context, Sampling(temperature=0, frequency_penalty=gap * 0.9, seed=1), 3) == [first, first, second]
    for penalty in (Sampling(presence_penalty=gap * 1.1), Sampling(frequency_penalty=gap * 1.1)):
        assert draws(context, replace(penalty, temperature=0, seed=1), 2) == [first, second]


def test_penalties_look_back_on_the_end_of_the_prompt(context: Context) -> None:
    logits = logits_of(context)
    first, second = np.argsort(-logits)[:2].tolist()
    gap = float(logits[first] - logits[second])
    settings = Sampling(temperature=0, presence_penalty=gap * 1.1, seed=1)

    def drawn(recent: list[int], *, anchored: bool = False) -> int:
        with Sampler(settings, context.model, recent=recent, anchored=anchored) as sampler:
            return sampler.sample(context, len(PROMPT) - 1)

    filler = [token for token in range(context.model.n_vocab) if token not in (first, second)][:64]
    for anchored in (False, True):
        assert drawn([], anchored=anchored) == first
        assert drawn([first, *filler[:63]], anchored=anchored) == second
    assert drawn([first, *filler]) == first  # too long ago


def test_penalties_look_back_as_far_as_they_are_told(context: Context) -> None:
    first, second = np.argsort(-logits_of(context))[:2].tolist()
    settings = Sampling(temperature=0, repeat_penalty=1e6, seed=1)
    assert draws(context, replace(settings, repeat_last_n=1), 3) == [first, second, first]
    assert draws(context, replace(settings, repeat_last_n=0), 2) == [first, first]
    with Sampler(replace(settings, repeat_last_n=1), context.model, recent=[first, second]) as sampler:
        assert sampler.sample(context, len(PROMPT) - 1) == first


def test_typical_p_keeps_what_is_about_as_surprising_as_usual(context: Context) -> None:
    shares = probabilities(context).astype(np.float64)
    entropy = -(shares * np.log(shares)).sum()
    order = np.argsort(np.abs(-np.log(shares) - entropy))
    kept = set(order[: int(np.searchsorted(np.cumsum(shares[order]), 0.3)) + 1].tolist())
    assert 1 < len(kept) < 200
    assert set(draws(context, replace(OPEN, temperature=20.0, typical_p=0.3), 4000)) == kept


# What is added to logits


@pytest.mark.parametrize(
    "settings", [OPEN, Sampling(temperature=0, seed=1), Sampling(temperature=0, presence_penalty=0.1, seed=1)]
)
@pytest.mark.parametrize("anchored", [False, True])
def test_a_bias_is_added_to_the_logit_and_to_nobody_elses(context: Context, settings: Sampling, *, anchored: bool) -> None:
    before = logits_of(context).copy()
    last = int(before.argmin())

    def drawn(bias: float) -> int:
        with Sampler(replace(settings, logit_bias=((last, bias),)), context.model, anchored=anchored) as sampler:
            return sampler.sample(context, len(PROMPT) - 1)

    assert drawn(1000.0) == last
    assert drawn(-1000.0) != last
    np.testing.assert_array_equal(logits_of(context), before)


def test_a_token_may_be_ruled_out(context: Context) -> None:
    order = np.argsort(-logits_of(context)).tolist()
    ruled_out = tuple((token, RULED_OUT) for token in order[:3])
    assert draws(context, Sampling(temperature=0, logit_bias=ruled_out, seed=1), 2) == [order[3], order[3]]
    everything = tuple((token, RULED_OUT) for token in order)
    assert draws(context, replace(OPEN, logit_bias=everything), 3)  # and no crash


@pytest.mark.parametrize("token", [-1, 10**6])
def test_what_is_no_token_has_no_bias(tiny: Model, token: int) -> None:
    with pytest.raises(LocalsteerError, match="no token"):
        Sampler(replace(OPEN, logit_bias=((token, 1.0),)), tiny)


@pytest.mark.parametrize("anchored", [False, True])
def test_no_end_is_drawn_too_early(context: Context, *, anchored: bool) -> None:
    model = context.model
    likely = Sampling(temperature=0, seed=1, logit_bias=tuple((end, 1000.0) for end in model.end_tokens))

    def ends(settings: Sampling) -> list[bool]:
        with Sampler(settings, model, anchored=anchored) as sampler:
            return [model.is_end(sampler.sample(context, len(PROMPT) - 1)) for _ in range(4)]

    assert ends(likely) == [True] * 4
    assert ends(replace(likely, min_tokens=2)) == [False, False, True, True]
    assert ends(replace(likely, ignore_eos=True)) == [False] * 4


def test_a_bias_holds_within_a_grammar(context: Context) -> None:
    for letter, word in (("y", "yes"), ("n", "no")):
        settings = replace(OPEN, logit_bias=((ord(letter), 1000.0),))
        assert written(context, settings, YES_OR_NO) == word
    # What a grammar wants comes although it is ruled out.
    assert written(context, replace(OPEN, logit_bias=((ord("y"), RULED_OUT),), min_tokens=9), 'root ::= "yes"') == "yes"


def test_what_the_prompt_says_is_nothing_to_a_grammar(context: Context) -> None:
    settings = Sampling(temperature=0, presence_penalty=1.0, seed=1)
    with Sampler(settings, context.model, Grammar.from_text(context.model, 'root ::= "yes"'), recent=list(b"no")) as sampler:
        assert sampler.sample(context, len(PROMPT) - 1) == ord("y")


# Grammars


YES_OR_NO = 'root ::= "yes" | "no"'


def written(context: Context, settings: Sampling, text: str) -> str:
    """What a grammar in GBNF lets end, where the prompt's last token is followed by the same logits again and again."""
    tokens: list[int] = []
    with Sampler(settings, context.model, Grammar.from_text(context.model, text)) as sampler:
        for _ in range(100):
            token = sampler.sample(context, len(PROMPT) - 1)
            if context.model.is_end(token):
                return context.model.detokenize(tokens)
            tokens.append(token)
    raise AssertionError("it does not end")


@pytest.mark.parametrize(
    "settings",
    [
        OPEN,
        Sampling(),
        Sampling(temperature=0),
        Sampling(temperature=0, repeat_penalty=1.5, presence_penalty=2.0),
        Sampling(temperature=5.0, top_k=0, repeat_penalty=1.5, frequency_penalty=1.0),
        # Nothing that the grammar allows is among these, before it has ruled out the rest.
        Sampling(temperature=1.0, top_k=1),
        Sampling(temperature=1.0, top_p=0.01),
        Sampling(temperature=1.0, min_p=0.9),
    ],
)
def test_a_grammar_is_followed_however_tokens_are_drawn(context: Context, settings: Sampling) -> None:
    for seed in range(10):
        assert written(context, replace(settings, seed=seed), YES_OR_NO) in ("yes", "no")


def test_every_way_through_a_grammar_is_taken(context: Context) -> None:
    texts = {written(context, replace(OPEN, temperature=50.0, seed=seed), YES_OR_NO) for seed in range(40)}
    assert texts == {"yes", "no"}


def test_the_same_seed_takes_the_same_way_through_a_grammar(context: Context) -> None:
    grammar = "root ::= [a-z]{8}"
    texts = [written(context, replace(OPEN, temperature=5.0, seed=seed), grammar) for seed in (1, 2, 1)]
    assert texts[0] == texts[2] != texts[1]
    assert all(re.fullmatch("[a-z]{8}", text) for text in texts)


def test_what_a_grammar_allows_comes_as_often_as_it_is_likely(context: Context) -> None:
    allowed = list(b"abcdef")
    counts = np.zeros(context.model.n_vocab)
    grammar = Grammar.from_text(context.model, "root ::= [a-f]")
    for seed in range(1500):
        with Sampler(replace(OPEN, temperature=3.0, seed=seed), context.model, grammar) as sampler:
            counts[sampler.sample(context, len(PROMPT) - 1)] += 1
    flat = np.exp(logits_of(context)[allowed] / 3)
    # Five standard deviations of a share of 1,500 draws.
    np.testing.assert_allclose(counts[allowed] / 1500, flat / flat.sum(), atol=0.065)


def test_the_most_likely_token_that_a_grammar_allows_is_taken_at_temperature_0(context: Context) -> None:
    order = [chr(token) for token in np.argsort(-logits_of(context)) if 97 <= token <= 122]
    grammar = f"root ::= [a-z] [{''.join(order[1:4])}] [{''.join(order[3:6])}]"
    assert written(context, Sampling(temperature=0, seed=1), grammar) == order[0] + order[1] + order[3]


def test_penalties_choose_among_what_a_grammar_allows(context: Context) -> None:
    order = [chr(token) for token in np.argsort(-logits_of(context)) if 97 <= token <= 122]
    once = Sampling(temperature=0, presence_penalty=1000.0, seed=1)
    assert written(context, once, "root ::= [a-z]{5}") == "".join(order[:5])
    # What has no other way is written in spite of them.
    assert written(context, once, 'root ::= "aaaa"') == "aaaa"


def test_texts_of_several_bytes_and_letters_follow_a_grammar(context: Context) -> None:
    for text in ("é🙂", " the then hein", "\n\t", "<|im_end|>"):
        escaped = text.replace("\n", "\\n").replace("\t", "\\t")
        for seed in range(3):
            assert written(context, replace(OPEN, seed=seed), f'root ::= "{escaped}"') == text


def test_tokens_that_were_drawn_before_count_for_a_grammar(context: Context) -> None:
    with Sampler(replace(OPEN, seed=3), context.model, Grammar.from_text(context.model, YES_OR_NO)) as sampler:
        sampler.accept(ord("y"))
        drawn = [sampler.sample(context, len(PROMPT) - 1) for _ in range(3)]
    assert drawn[:2] == list(b"es")
    assert context.model.is_end(drawn[2])


def test_an_answer_ends_with_its_grammar(tiny: Model) -> None:
    grammar = Grammar.from_text(tiny, YES_OR_NO)
    with Generator(tiny) as generator:
        for seed in range(5):
            answer = generator.generate(Request(PROMPT, None, replace(OPEN, seed=seed), max_tokens=20, grammar=grammar))
            assert (answer.text in ("yes", "no"), answer.finish_reason) == (True, "stop")
            assert answer.text == tiny.detokenize(list(answer.tokens))
        cut = generator.generate(Request(PROMPT, None, OPEN, max_tokens=2, grammar=Grammar.from_text(tiny, 'root ::= "yes"')))
        assert (cut.text, cut.finish_reason) == ("ye", "length")
        whole = generator.generate(Request(PROMPT, None, OPEN, max_tokens=3, grammar=Grammar.from_text(tiny, 'root ::= "yes"')))
        assert (whole.text, whole.finish_reason) == ("yes", "stop")
        nothing = generator.generate(Request(PROMPT, None, OPEN, max_tokens=20, grammar=Grammar.from_text(tiny, 'root ::= ""')))
        assert (nothing.text, nothing.finish_reason) == ("", "stop")


def test_an_answer_may_end_where_its_grammar_allows_it(context: Context) -> None:
    lengths = {len(written(context, replace(OPEN, temperature=50.0, seed=seed), 'root ::= "a"*')) for seed in range(40)}
    assert len(lengths) > 1


# Where the unsteered model has a say


@pytest.fixture(scope="module")
def two(tiny: Model) -> Iterator[Context]:
    """Two prompts, one token each: row 0 stands for what the steered model says, row 1 for the unsteered one."""
    with Context(tiny, n_ctx=64, n_seq=2) as context:
        context.decode(next_tokens([65, 90], [0, 0], [0, 1]))
        yield context


def kept(context: Context, row: int, min_p: float) -> set[int]:
    """What min-p alone keeps."""
    shares = np.exp(context.logits(row) - context.logits(row).max())
    return set(np.flatnonzero(shares >= min_p).tolist())


def test_what_the_unsteered_model_finds_unlikely_is_not_drawn(two: Context) -> None:
    settings = Sampling(temperature=3.0, top_k=0, top_p=1.0, min_p=0.02, seed=1)
    with Sampler(settings, two.model, anchored=True) as sampler:
        drawn = {sampler.sample(two, 0, unsteered=1) for _ in range(500)}
    with Sampler(settings, two.model) as sampler:
        alone = {sampler.sample(two, 0) for _ in range(500)}
    plausible = kept(two, 1, 0.02)
    assert alone - plausible, "the two models must disagree for this to say anything"
    assert drawn == alone & plausible
    assert len(drawn) > 1


def test_where_they_agree_on_nothing_the_unsteered_model_says_what_is_plausible(two: Context) -> None:
    settings = Sampling(temperature=5.0, top_k=0, top_p=1.0, min_p=0.6, seed=1)
    assert not kept(two, 0, 0.6) & kept(two, 1, 0.6)
    with Sampler(settings, two.model, anchored=True) as sampler:
        assert {sampler.sample(two, 0, unsteered=1) for _ in range(500)} == kept(two, 1, 0.6)


def test_among_the_plausible_ones_the_steered_model_decides(two: Context) -> None:
    settings = Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.02, seed=1)
    plausible = np.array(sorted(kept(two, 0, 0.02) & kept(two, 1, 0.02)))
    weights = np.exp(two.logits(0)[plausible] - two.logits(0)[plausible].max())
    with Sampler(settings, two.model, anchored=True) as sampler:
        counts = np.bincount([sampler.sample(two, 0, unsteered=1) for _ in range(4000)], minlength=two.model.n_vocab)
    np.testing.assert_allclose(counts[plausible] / 4000, weights / weights.sum(), atol=0.05)
    with Sampler(replace(settings, temperature=0), two.model, anchored=True) as sampler:
        assert sampler.sample(two, 0, unsteered=1) == plausible[weights.argmax()]


@pytest.mark.parametrize(
    "settings",
    [Sampling(), Sampling(temperature=1.5, top_k=0, top_p=0.8), Sampling(temperature=0), Sampling(repeat_penalty=1.5, top_k=0)],
    ids=["default", "top-p", "greedy", "penalty"],
)
def test_where_nothing_is_steered_the_draws_are_those_that_are_made_anyway(two: Context, settings: Sampling) -> None:
    seeded = replace(settings, seed=3)
    with Sampler(seeded, two.model, anchored=True) as one, Sampler(seeded, two.model) as other:
        expected = [other.sample(two, row % 2) for row in range(60)]
        assert [one.sample(two, row % 2, unsteered=row % 2) for row in range(60)] == expected
    with Sampler(seeded, two.model, anchored=True) as one:
        assert [one.sample(two, row % 2) for row in range(60)] == expected


def letters(tokens: set[int]) -> list[int]:
    return sorted(token for token in tokens if 97 <= token < 123)


def test_a_grammar_is_followed_with_what_is_plausible(two: Context) -> None:
    both = kept(two, 0, 0.001) & kept(two, 1, 0.001)
    plausible, others = letters(both), letters(set(range(128)) - both)
    grammar = f"root ::= [{''.join(map(chr, [plausible[0], *others]))}]+"
    settings = Sampling(top_k=0, top_p=1.0, min_p=0.001, seed=1)
    with Sampler(settings, two.model, Grammar.from_text(two.model, grammar), anchored=True) as sampler:
        drawn = {sampler.sample(two, 0, unsteered=1) for _ in range(20)}
    assert drawn == {plausible[0]}


def test_what_a_grammar_wants_need_not_be_plausible(two: Context) -> None:
    implausible = letters(set(range(128)) - kept(two, 1, 0.02))[0]
    grammar = f'root ::= "{chr(implausible)}"+'
    settings = Sampling(top_k=0, top_p=1.0, min_p=0.02, seed=1)
    with Sampler(settings, two.model, Grammar.from_text(two.model, grammar), anchored=True) as sampler:
        assert sampler.sample(two, 0, unsteered=1) == implausible


def test_a_penalty_is_taken_once_where_a_grammar_wants_what_nobody_finds_plausible(two: Context) -> None:
    logits = two.logits(0)
    plausible = kept(two, 0, 0.5) | kept(two, 1, 0.5)
    first, second = sorted(letters(set(range(128)) - plausible), key=lambda token: -logits[token])[:2]
    gap = float(logits[first] - logits[second])
    assert gap > 0
    grammar = f"root ::= [{chr(first)}{chr(second)}]+"
    for share, drawn in ((0.7, first), (1.3, second)):
        settings = Sampling(temperature=0, top_k=0, top_p=1.0, min_p=0.5, presence_penalty=gap * share, seed=1)
        with Sampler(settings, two.model, Grammar.from_text(two.model, grammar), recent=[first], anchored=True) as sampler:
            assert sampler.sample(two, 0, unsteered=1) == drawn
