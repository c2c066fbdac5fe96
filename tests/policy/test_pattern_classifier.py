from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localsteer.engine.draft import TextStream
from localsteer.policy.classifier import Observer, Seen
from localsteer.policy.pattern_classifier import WINDOW, PatternError, RuleClassifier, Search
from localsteer.vector.probe import Watch
from tests.policy.made import EXAMPLES


def classifier(words: Sequence[str] = (), patterns: Sequence[str] = (), watch: Watch = "output") -> RuleClassifier:
    searches = (*Search.for_words(words), *(Search.for_pattern(pattern) for pattern in patterns))
    return RuleClassifier(name="rule", watch=watch, searches=searches)


def in_prompt(text: str, words: Sequence[str] = (), patterns: Sequence[str] = ()) -> bool:
    one = classifier(words, patterns, "prompt")
    return one.is_on(one.observer().observe(Seen(text)), False)


class Growing:
    """An answer that is written piece by piece, and what an observer says after each."""

    def __init__(self, words: Sequence[str] = (), patterns: Sequence[str] = (), observer: Observer | None = None) -> None:
        self.observer = observer if observer is not None else classifier(words, patterns).observer()
        self.pieces: list[str] = []

    def push(self, piece: str, *, final: bool = False) -> bool:
        self.pieces.append(piece)
        answer = "".join(self.pieces)
        score = self.observer.observe(Seen("message", answer, piece, len(self.pieces), final=final))
        assert score in (0.0, 1.0)
        return score == 1.0

    def rewind(self, position: int) -> None:
        del self.pieces[position:]
        self.observer.rewind(position, "".join(self.pieces))


def reported(pieces: Iterable[str], words: Sequence[str] = (), patterns: Sequence[str] = ()) -> list[int]:
    """After which pieces something was found; the number of pieces stands for the end of the answer."""
    growing = Growing(words, patterns)
    found = [growing.push(piece) for piece in pieces]
    return [number for number, one in enumerate([*found, growing.push("", final=True)]) if one]


def bytewise(text: str) -> list[str]:
    """What comes of a text whose tokens are single bytes."""
    stream = TextStream()
    return [stream.push(bytes([byte])) for byte in text.encode()]


# Whole words


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("pass", True),
        ("the pass", True),
        ("pass it on", True),
        ('"pass"!', True),
        ("let it\npass\n", True),
        ("a-pass-b", True),
        ("password", False),
        ("bypass", False),
        ("pass_it", False),
        ("pass2", False),
        ("2pass", False),
        ("passé", False),
        ("épass", False),
        ("passe\u0301", False),
        ("pass\u0301", False),
        ("p ass", False),
        ("password, or a pass", True),
        ("", False),
    ],
)
def test_a_word_is_found_as_a_whole_only(text: str, found: bool) -> None:
    assert in_prompt(text, ["pass"]) == found
    assert bool(reported([text], ["pass"])) == found
    assert bool(reported(text, ["pass"])) == found
    assert bool(reported(bytewise(text), ["pass"])) == found


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("Password", "PASSWORD"),
        ("été", "L'ÉTÉ!"),
        ("ПАРОЛЬ", "ваш пароль: 1"),
        ("σίσυφος", "ΣΊΣΥΦΟΣ"),
        ("größe", "GRÖßE"),
        ("Ärger", "ärger"),
        ("पासवर्ड", "मेरा पासवर्ड क्या है"),
        ("סיסמה", "הסיסמה? סיסמה!"),
        ("ipv6", "an IPv6 address"),
        ("naïve", "so NAÏVE."),
        ("🔑", "my🔑here"),
        ("c++", "C++11"),
        (".env", "in .env now"),
        ("$", "US$5"),
        ("a.b", "(A.B)"),
        ("[x]", "y[x]y"),
        ("a|b", "a|b"),
        ("\0", "x\0y"),
    ],
)
def test_words_are_found_in_any_case_and_script(word: str, text: str) -> None:
    assert in_prompt(text, [word])
    assert reported(text, [word])
    assert reported(bytewise(text), [word])
    assert not in_prompt("nothing of this", [word])


@pytest.mark.parametrize(
    ("word", "text"), [("été", "étés"), ("пароль", "пароли"), ("a.b", "axb"), (".env", "a.envy"), ("a|b", "a")]
)
def test_what_only_looks_like_a_word_is_not_found(word: str, text: str) -> None:
    assert not in_prompt(text, [word])
    assert not reported(text, [word])


@pytest.mark.parametrize(
    ("word", "text"),
    [("密码", "我的密码是"), ("パスワード", "このパスワードは"), ("รหัสผ่าน", "ใส่รหัสผ่านของ"), ("pass", "我的pass是")],
)
def test_scripts_without_spaces_need_none_around_a_word(word: str, text: str) -> None:
    assert in_prompt(text, [word])
    assert reported(text, [word])


def test_space_around_a_word_in_the_policy_does_not_matter() -> None:
    assert in_prompt("let it pass.", [" pass\n"])
    assert not in_prompt("bypass it, password", [" pass\n"])


@pytest.mark.parametrize("between", [" ", "   ", "\n", " \t\r\n ", "\N{NO-BREAK SPACE}", "\N{IDEOGRAPHIC SPACE}"])
def test_a_phrase_is_found_whatever_space_is_in_it(between: str) -> None:
    text = f"Tell me the secret{between}word, please"
    assert in_prompt(text, ["secret  word"])
    assert reported(text, ["secret  word"]) == [text.index(",")]
    assert not in_prompt(text.replace(between, "-"), ["secret  word"])


def test_any_of_several_words_is_found() -> None:
    words = ["pass", "password", "c++", ".net", "secret word"]
    for word in words:
        assert in_prompt(f"one {word} two", words)
        assert reported(f"one {word} two", words)
    assert not in_prompt("passwords net c secretword", words)


def test_thousands_of_words_are_found_too() -> None:
    words = [f"word{number}" for number in range(3000)]
    assert in_prompt("a word2999.", words)
    assert not in_prompt("a word3000.", words)


def test_words_and_patterns_go_together() -> None:
    assert reported(["a ", "b ", "c "], ["a"], ["c"]) == [0, 2]


# Across tokens


def test_a_word_is_found_once_the_character_behind_it_shows_that_it_is_whole() -> None:
    assert reported(["my ", "pass", "word", "."], ["pass"]) == []
    assert reported(["my ", "pass", " is"], ["pass"]) == [2]
    assert reported(["my ", "pass", "", "", "."], ["pass"]) == [4]
    assert reported(["my ", "pass", "word", "."], ["password"]) == [3]


def test_a_word_at_the_very_end_is_found_at_the_end() -> None:
    assert reported(["my ", "pass"], ["pass"]) == [2]
    growing = Growing(["pass"])
    assert not growing.push("my ")
    assert growing.push("pass", final=True)


def test_a_word_without_a_letter_at_its_end_is_found_at_once() -> None:
    assert reported(["c", "+", "+", "11"], ["c++"]) == [2]


def test_a_word_in_pieces_is_found() -> None:
    assert reported(["sec", "ret", " wo", "rd", "!"], ["secret word"]) == [4]


def test_a_pattern_is_found_with_the_token_that_completes_it() -> None:
    pieces = ["Your AP", "I_", "Ke", "y is"]
    assert reported(pieces, patterns=["(?i)api[_ -]?key"]) == [3]


def test_the_end_of_a_pattern_is_the_end_so_far() -> None:
    assert reported(["a", "b", "a", "c"], patterns=["a$"]) == [0, 2]


def test_words_that_share_the_character_between_them_all_count() -> None:
    assert reported("a a a", ["a"]) == [1, 3, 5]
    assert reported("a a a", ["a", "b"]) == [1, 3, 5]
    assert reported(["a a", " a"], ["a"]) == [0, 1, 2]


def test_a_word_right_behind_a_found_sign_counts() -> None:
    assert reported("$secret ", ["$", "secret"]) == [0, 7]


def test_a_match_is_reported_once() -> None:
    pieces = ["the ", "secret", " ", "is ", "no ", "key", " at", " all"]
    assert reported(pieces, ["secret"], ["k.y"]) == [2, 5]
    assert reported(["secret "] * 3, ["secret"]) == [0, 1, 2]


def test_answers_do_not_share_what_was_found() -> None:
    one = classifier(["secret"])
    first, second = Growing(observer=one.observer()), Growing(observer=one.observer())
    assert first.push("a secret ")
    assert not second.push("a ")
    assert second.push("secret ")
    assert not first.push("no more")


def test_a_classifier_is_true_at_the_match_and_false_after_it() -> None:
    one = classifier(["secret"])
    observer = one.observer()
    assert one.is_on(observer.observe(Seen("m", "secret ", "secret ", 1)), False)
    assert not one.is_on(observer.observe(Seen("m", "secret x", "x", 2)), True)


def test_a_prompt_is_searched_as_a_whole_and_the_answer_is_not() -> None:
    observer = classifier(["secret"], watch="prompt").observer()
    assert observer.observe(Seen("nothing", "a secret", "a secret", 1, final=True)) == 0.0
    assert observer.observe(Seen("a secret", "nothing", "nothing", 1)) == 1.0
    growing = classifier(["secret"]).observer()
    assert growing.observe(Seen("a secret", "nothing", "nothing", 1, final=True)) == 0.0


# Rewinds


def test_a_word_that_straddles_the_cut_is_found() -> None:
    growing = Growing(["password"])
    assert [growing.push(piece) for piece in ("my ", "pass", "age", " ")] == [False] * 4
    growing.rewind(2)
    assert [growing.push(piece) for piece in ("word", " ")] == [False, True]


def test_a_match_that_was_taken_back_is_found_again() -> None:
    growing = Growing(["secret"], ["k.y"])
    for _ in range(3):
        assert [growing.push(piece) for piece in ("my ", "sec", "ret", ", ")] == [False, False, False, True]
        growing.rewind(1)
        assert [growing.push(piece) for piece in ("ke", "y")] == [False, True]
        growing.rewind(0)


def test_a_match_before_the_cut_is_not_reported_again() -> None:
    growing = Growing(["secret"], ["k.y"])
    assert [growing.push(piece) for piece in ("secret", " key", " x", " secret", " y")] == [False, True, False, False, True]
    growing.rewind(3)
    assert [growing.push(piece) for piece in (" and", " so", " on")] == [False, False, False]
    assert growing.push(" secret", final=True)


def test_a_word_whose_end_is_uncertain_again_is_judged_anew() -> None:
    growing = Growing(["pass"])
    assert [growing.push(piece) for piece in ("my ", "pass", " is")] == [False, False, True]
    growing.rewind(2)
    assert not growing.push("word ")
    growing.rewind(2)
    assert growing.push(".")
    growing.rewind(2)
    assert growing.push("", final=True)


def test_a_sign_that_stands_at_the_cut_is_not_reported_again() -> None:
    growing = Growing(["c++"], ["k.y"])
    assert [growing.push(piece) for piece in ("c++", "key", "x")] == [True, True, False]
    growing.rewind(2)
    assert not growing.push("y")
    growing.rewind(1)
    assert not growing.push("y", final=True)


def test_a_rewind_to_the_beginning_starts_anew() -> None:
    growing = Growing(["secret"], ["^a"])
    assert growing.push("a ")
    growing.rewind(0)
    assert growing.push("a ")
    assert not growing.push("a ")


def test_a_rewind_in_a_long_answer_cuts_where_it_should() -> None:
    growing = Growing(["password"], ["^日"])
    assert growing.push("日本 ")
    for _ in range(WINDOW):
        assert not growing.push("日本 ")
    assert not growing.push("pass")
    assert not growing.push("age ")
    growing.rewind(WINDOW + 2)
    assert not growing.push("word")
    assert growing.push(" ")
    assert not growing.push("日本 ")
    growing.rewind(WINDOW + 4)
    assert not growing.push("日本 ")
    growing.rewind(WINDOW + 1)
    assert not growing.push("日本 ", final=True)


# Long answers


@pytest.mark.parametrize("filler", ["word ", "日本", "é", "🙂 ", "e\u0301"])
def test_a_match_far_into_a_long_answer_is_found_once_and_in_time(filler: str) -> None:
    before, after = [filler] * (3 * WINDOW // len(filler.encode())), [filler] * WINDOW
    pieces = [*before, " sec", "ret", " ", "k", "ey", *after]
    assert reported(pieces, ["secret"], ["k[a-e]y"]) == [len(before) + 2, len(before) + 4]


def test_every_match_of_a_long_answer_is_reported_once() -> None:
    pieces = ["🙂" if number % 7 else " key" for number in range(2 * WINDOW)]
    places = [number for number in range(2 * WINDOW) if number % 7 == 0]
    assert reported(pieces, patterns=["k.y"]) == places
    assert reported(pieces, ["key"]) == [place + 1 for place in places]


@pytest.mark.parametrize("pattern", ["^日", r"\A日", r"\A(?:日|本|語|🙂|é)", r"\A[^x]"])
def test_the_beginning_of_the_answer_is_not_where_the_window_begins(pattern: str) -> None:
    assert reported("日本語🙂é" * 600, patterns=[pattern]) == [0]


def test_the_beginning_of_a_line_is_found_wherever_the_window_begins() -> None:
    lines = [f"{'ü' * number}\nx\n" for number in range(90)]
    text = "".join(lines)
    pieces = list(text)
    expected = [place for place in range(1, len(text)) if text[place] == "x"]
    assert reported(pieces, patterns=["(?m)^x"]) == expected


def test_a_match_nearly_as_long_as_the_window_is_found() -> None:
    long = "x" * (WINDOW - 10)
    assert reported(f"{'日 ' * WINDOW}{long} ", [long]) == [2 * WINDOW + len(long)]


def test_a_whole_answer_at_once_is_searched_whole() -> None:
    text = f"secret {'é ' * 5 * WINDOW}"
    assert reported([text, "é "], ["secret"]) == [0]


# Streamed as whole


LETTERS = "abAB é\u0301_-1\n\N{NO-BREAK SPACE}ß密"
WORDS = st.lists(st.text(LETTERS, min_size=1, max_size=4).filter(lambda word: bool(word.strip())), min_size=1, max_size=3)


def cut(text: str, places: Iterable[int]) -> list[str]:
    ends = sorted({min(place, len(text)) for place in places} | {len(text)})
    return [text[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]


@settings(max_examples=300)
@given(WORDS, st.text(LETTERS, max_size=40), st.lists(st.integers(0, 40)))
def test_a_streamed_answer_holds_a_word_exactly_if_the_whole_text_does(words: list[str], text: str, places: list[int]) -> None:
    assert bool(reported(cut(text, places), words)) == in_prompt(text, words)
    assert bool(reported(text, words)) == in_prompt(text, words)


@settings(max_examples=150)
@given(WORDS, st.text(max_size=40), st.lists(st.integers(0, 60)), st.integers(0, 20), st.data())
def test_that_holds_for_any_text_around_the_word(
    words: list[str], text: str, places: list[int], at: int, data: st.DataObject
) -> None:
    text = text[:at] + data.draw(st.sampled_from(words)) + text[at:]
    assert bool(reported(cut(text, places), words)) == in_prompt(text, words)


@settings(max_examples=60)
@given(WORDS, st.text(LETTERS, max_size=12), st.integers(1, 500), st.text(LETTERS, max_size=12), st.integers(1, 97))
def test_that_holds_for_answers_longer_than_the_window(words: list[str], text: str, times: int, end: str, step: int) -> None:
    whole = text * times + end
    assert bool(reported(cut(whole, range(0, len(whole), step)), words)) == in_prompt(whole, words)


@settings(max_examples=250)
@given(WORDS, st.lists(st.text(LETTERS, max_size=5), max_size=8), st.integers(0, 8), st.lists(st.text(LETTERS, max_size=5)))
def test_after_a_rewind_all_is_found_but_what_was_complete_before_it(
    words: list[str], before: list[str], position: int, after: list[str]
) -> None:
    position = min(position, len(before))
    growing, kept_only = Growing(words), Growing(words)
    for piece in before:
        growing.push(piece)
    growing.rewind(position)
    complete = sum(kept_only.push(piece) for piece in before[:position]) > 0
    found = sum([*(growing.push(piece) for piece in after), growing.push("", final=True)]) > 0
    delivered = "".join([*before[:position], *after])
    assert in_prompt(delivered, words) == (complete or found)


# Hostile texts


PATTERNS = ["x*", "(?i)k", r"\bx", "^a", "z$", "(?s).a.", r"\pL+é", r"\x00", "(a+)+$", "(?:a|aa)+b", "[^ -~]{3}", "a(?:.*b)?"]
ADVERSARIAL = ["\ud800", "\udfff", "\0", "\u0301" * 40, "a" * 60, "🙂", "\ufeff", "\N{REPLACEMENT CHARACTER}", "\u202e", "\x1b["]
ADVERSARIAL += [
    "İ",
    "ſ",
    "\N{KELVIN SIGN}",
    "ﷺ",
    "𐐀",
    "é",
    "👩\u200d👩\u200d👧",
    "\U0010ffff",
    "\r\n",
    " " * 50,
    "aa aa",
    "(((",
    "\\",
]
ADVERSARIAL += ["secret", "SEC", "ret", "x", "z", "_"]


def adversarial_text(source: random.Random) -> str:
    parts = []
    for _ in range(source.randrange(12)):
        kind = source.random()
        if kind < 0.6:
            parts.append(source.choice(ADVERSARIAL))
        elif kind < 0.9:
            parts.append("".join(chr(source.randrange(0x250)) for _ in range(source.randrange(10))))
        else:
            parts.append("".join(chr(source.randrange(0x110000)) for _ in range(source.randrange(10))))
    return "".join(parts)


def test_adversarial_texts_raise_nothing_and_read_the_same_streamed() -> None:
    source = random.Random(0)
    words = ["secret", "é", "🙂 a", "\0", "c++"]
    prompt, output, all_kinds = classifier(words, watch="prompt"), classifier(words), classifier(words, PATTERNS)
    found = 0
    for number in range(EXAMPLES):
        text = adversarial_text(source)
        expected = prompt.observer().observe(Seen(text)) == 1.0
        found += expected
        pieces = cut(text, [source.randrange(len(text) + 1) for _ in range(4)])
        growing = Growing(observer=output.observer())
        assert any([growing.push(piece) for piece in pieces] + [growing.push("", final=True)]) == expected, ascii(text)
        if number % 10 == 0:
            wild = Growing(observer=all_kinds.observer())
            for piece in pieces:
                wild.push(piece)
            wild.rewind(source.randrange(len(pieces) + 1))
            wild.push(text, final=True)
    assert 0.1 * EXAMPLES < found < 0.9 * EXAMPLES


def test_a_very_long_run_of_anything_raises_nothing() -> None:
    for run in ("a", "\u0301", "🙂", "\0", "\ud800", " ", "x", "secret "):
        text = run * (100_000 // len(run))
        assert in_prompt(text, ["secret"], ["(?:a|aa)+b"]) == (run == "secret ")
        growing = Growing(["secret"], ["(a+)+$", "(?:a|aa)+b", "z$"])
        assert growing.push(text) == (run in ("a", "secret "))
        assert not growing.push("y")


# Linear time


class Counting:
    """A compiled pattern that notes how many bytes each search was given to read."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.read: list[int] = []

    def search(self, text: bytes, start: int = 0) -> Any:
        self.read.append(len(text) - start)
        return self.engine.search(text, start)


CATASTROPHES = [
    (["(a+)+$"], "a"),
    (["(a|aa)+$", "(a*)*c"], "a"),
    (["(?:.*a){10}c"], "a"),
    ([r"^(\s+)*$", r"(?:\w+\s*)+!"], "word "),
]


@pytest.mark.parametrize(("patterns", "run"), CATASTROPHES, ids=[patterns[0] for patterns, _ in CATASTROPHES])
def test_what_sends_backtracking_engines_into_exponential_time_comes_to_an_end(patterns: list[str], run: str) -> None:
    text = run * (64_000 // len(run)) + "b"
    in_prompt(text, ["secret"], patterns)


@pytest.mark.parametrize(("patterns", "run"), CATASTROPHES, ids=[patterns[0] for patterns, _ in CATASTROPHES])
@pytest.mark.parametrize("size", [2_000, 64_000])
def test_a_growing_answer_is_searched_in_windows_that_grow_no_longer(patterns: list[str], run: str, size: int) -> None:
    searches = tuple(
        Search(Counting(one.so_far), Counting(one.at_end), one.words) for one in classifier(["secret"], patterns).searches
    )
    observer = RuleClassifier(name="rule", watch="output", searches=searches).observer()
    text = run * (size // len(run)) + "b"
    pieces = [text[start : start + 8] for start in range(0, len(text), 8)]
    for position, piece in enumerate(pieces, 1):
        observer.observe(Seen("", fresh=piece, position=position))
    for one in searches:
        assert max(one.so_far.read) <= 2 * WINDOW + 8
        # One for each piece, and one more for each match, of which no two end at the same place.
        assert len(pieces) <= len(one.so_far.read) <= len(pieces) + len(text)


# Patterns that are none


@pytest.mark.parametrize("pattern", ["(?=a)", "(?<!a)b", r"(a)\1", "[", "(", "*", "a**", r"\q", "(?P<n", "\ud800", "[b-a]"])
def test_what_re2_does_not_take_is_refused_in_one_line(pattern: str) -> None:
    with pytest.raises(PatternError, match=r"\Anot a pattern that RE2 takes \(.+\); it has no lookaround") as caught:
        Search.for_pattern(pattern)
    assert "\n" not in str(caught.value)


def test_a_pattern_that_is_too_large_is_refused() -> None:
    with pytest.raises(PatternError, match="too large"):
        Search.for_pattern(r"(?:\pL{100}){10}")
    with pytest.raises(PatternError, match="too large"):
        Search.for_words(["x" * 1_000_000])
