from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from localsteer.text_stream import TextStream


def stream(data: Sequence[bytes | str], stop: Sequence[str] = ()) -> tuple[list[str], TextStream]:
    """What is shown after each piece and at the end."""
    texts = TextStream(stop)
    shown = [texts.push(piece.encode() if isinstance(piece, str) else piece) for piece in data]
    return [*shown, texts.finish()], texts


def random_cuts(data: bytes, count: int) -> Iterator[list[bytes]]:
    random = np.random.default_rng(0)
    for _ in range(count):
        places = sorted({0, len(data), *random.integers(0, len(data) + 1, random.integers(0, 8)).tolist()})
        yield [data[start:end] for start, end in itertools.pairwise(places)]


def test_plain_text_is_shown_at_once() -> None:
    shown, texts = stream(["Hel", "lo", "", " you"])
    assert shown == ["Hel", "lo", "", " you", ""]
    assert texts.text == "Hello you"
    assert not texts.stopped


def test_a_character_is_shown_when_its_last_byte_is_there() -> None:
    shown, texts = stream([b"a\xf0\x9f", b"\x98", b"\x80b"])
    assert shown == ["a", "", "\N{GRINNING FACE}b", ""]
    assert texts.text == "a\N{GRINNING FACE}b"


def test_a_character_that_never_ends_becomes_a_replacement() -> None:
    shown, texts = stream([b"a\xe2\x82"])
    assert shown == ["a", "\N{REPLACEMENT CHARACTER}"]
    assert texts.text == "a\N{REPLACEMENT CHARACTER}"


def test_bytes_that_are_no_character_do_not_stop_the_answer() -> None:
    shown, _ = stream([b"a\xff", b"b\x80c"])
    assert shown == ["a\N{REPLACEMENT CHARACTER}", "b\N{REPLACEMENT CHARACTER}c", ""]


def test_a_stop_string_ends_the_answer() -> None:
    shown, texts = stream(["one", " END two", "three"], ["END"])
    assert shown == ["one", " ", "", ""]
    assert texts.stopped
    assert texts.text == "one "


def test_a_stop_string_over_several_tokens_is_never_shown() -> None:
    shown, texts = stream(["a\n", "Us", "er", ": hi"], ["\nUser:"])
    assert shown == ["a", "", "", "", ""]
    assert texts.stopped
    assert texts.text == "a"


def test_what_only_looked_like_a_stop_string_is_shown_once_that_is_certain() -> None:
    shown, texts = stream(["a\n", "Us", "a b"], ["\nUser:"])
    assert shown == ["a", "", "\nUsa b", ""]
    assert texts.text == "a\nUsa b"


def test_the_beginning_of_a_stop_string_at_the_end_is_shown() -> None:
    shown, texts = stream(["a\nUs"], ["\nUser:"])
    assert shown == ["a", "\nUs"]
    assert not texts.stopped
    assert texts.text == "a\nUs"


def test_a_stop_string_may_begin_inside_its_own_false_start() -> None:
    _, texts = stream(list("xaaab"), ["aab"])
    assert texts.stopped
    assert texts.text == "xa"


def test_the_first_of_several_stop_strings_counts() -> None:
    _, texts = stream(["one. two! three."], [".", "!", "one! "])
    assert texts.text == "one"


def test_the_text_may_be_empty_before_the_stop() -> None:
    shown, texts = stream(["END"], ["END"])
    assert shown == ["", ""]
    assert texts.stopped
    assert texts.text == ""


def test_an_empty_stop_string_stops_nothing() -> None:
    shown, texts = stream(["ab", "c"], ["", "x"])
    assert shown == ["ab", "c", ""]
    assert not texts.stopped


def test_a_stop_string_completed_by_the_last_bytes_is_cut() -> None:
    # The cut character becomes a replacement only at the end, and the stop string with it.
    shown, texts = stream([b"a!\xe2\x82"], ["!\N{REPLACEMENT CHARACTER}"])
    assert shown == ["a", ""]
    assert texts.stopped
    assert texts.text == "a"


@pytest.mark.parametrize("stop", [[], ["###"], ["\n\n", "###"], ["日本"], ["\N{GRINNING FACE}"], ["absent"]])
def test_the_cuts_between_tokens_do_not_matter(stop: list[str]) -> None:
    whole = "Zwölf ## Größen\n\N{GRINNING FACE} ## 日本語 ### rest\n\nend"
    ends = [whole.index(string) for string in stop if string in whole]
    expected = whole[: min(ends, default=len(whole))]
    for pieces in random_cuts(whole.encode(), 60):
        shown, texts = stream(pieces, stop)
        assert "".join(shown) == texts.text == expected
        assert texts.stopped == bool(ends)


def test_nothing_is_held_back_for_longer_than_needed() -> None:
    texts = TextStream(["###"])
    for end in ("", "#", "##"):
        shown = texts.push(f"word{end}".encode())
        assert shown.endswith("word")
