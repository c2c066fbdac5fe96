from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localsteer.engine.draft import Draft, TextStream


def draft_of(text: str, shown: list[str], *, stop: tuple[str, ...] = ()) -> Draft:
    """An answer whose tokens are bytes, nothing of it shown yet."""
    draft = Draft(lambda token: bytes([token]), stop, shown.append)
    for token in text.encode():
        draft.push(token)
    return draft


def test_all_but_the_latest_tokens_are_shown() -> None:
    shown: list[str] = []
    draft = draft_of("abcdef", shown)
    draft.show(4)
    assert (shown, draft.unseen, draft.text) == (["ab"], 4, "abcdef")
    draft.show(9)
    assert (shown, draft.unseen) == (["ab"], 4)
    draft.show()
    assert (shown, draft.unseen) == (["ab", "cdef"], 0)
    draft.show()
    assert shown == ["ab", "cdef"]


def test_what_was_taken_back_is_never_shown() -> None:
    shown: list[str] = []
    draft = draft_of("abcdef", shown)
    draft.show(3)
    draft.rewind(3)
    assert (draft.tokens, draft.text, draft.unseen) == (list(b"abc"), "abc", 0)
    for token in b"xyz":
        draft.push(token)
    draft.show(1)
    draft.finish()
    draft.show()
    assert (shown, draft.text) == (["abc", "xy", "z"], "abcxyz")
    assert draft.drawn == 9


def test_tokens_that_were_shown_before_a_rewind_stay_seen() -> None:
    draft = draft_of("abcdef", [])
    draft.show(4)
    draft.rewind(3)
    # "a" and "b" were shown; holding back four of three tokens does not unsay them.
    draft.show(4)
    assert draft.unseen == 1
    draft.push(120)
    assert draft.unseen == 2


def test_a_character_is_taken_back_in_part() -> None:
    shown: list[str] = []
    draft = draft_of("né", shown)
    draft.show(2)
    # Half of it is left, and the next token is no other half.
    draft.rewind(1)
    assert draft.text == "n"
    draft.push(ord("x"))
    assert draft.text == "n\ufffdx"
    draft.show()
    assert "".join(shown) == draft.text


def test_a_stop_string_is_taken_back_in_part() -> None:
    shown: list[str] = []
    draft = draft_of("abEND", shown, stop=("END",))
    assert (draft.stopped, draft.text) == (True, "ab")
    draft.finish()
    draft.rewind(1)
    # It may still become one.
    assert (draft.stopped, draft.text) == (False, "ab")
    draft.push(ord("X"))
    assert (draft.stopped, draft.text) == (False, "abENX")
    draft.show(1)
    assert shown == ["ab"]
    draft.finish()
    draft.show()
    assert "".join(shown) == "abENX"


def test_of_two_stop_strings_in_one_token_the_one_counts_that_ends_first() -> None:
    shown: list[str] = []
    draft = Draft(lambda _token: b"ab END cd", ("b END c", "N"), shown.append)
    draft.push(0)
    assert (draft.stopped, draft.text) == (True, "ab E")


def test_what_might_have_become_a_stop_string_is_shown_at_the_end() -> None:
    shown: list[str] = []
    draft = draft_of("abEN", shown, stop=("END",))
    draft.show()
    assert shown == ["ab"]
    draft.finish()
    draft.show()
    assert shown == ["ab", "EN"]


VOCABULARY = [b"Hel", b"lo", b" you", b"", b"a", b"b", b"#", b"##", b"###", b"EN", b"D", "é".encode()]

VOCABULARY += [b"\xf0\x9f", b"\x98", b"\x80", b"\xff", b"\n"]

TOKEN: Mapping[bytes, int] = {data: token for token, data in enumerate(VOCABULARY)}

STOPS = ["###", "END", "\n\n", "aab", "é\N{GRINNING FACE}", "#\N{REPLACEMENT CHARACTER}"]


class Writer:
    """A draft, and all that it has shown."""

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self.shown = ""
        self.draft = Draft(VOCABULARY.__getitem__, stop, self._show)

    def _show(self, text: str) -> None:
        assert text
        self.shown += text

    def push(self, *pieces: bytes, hold_back: int = 0) -> str:
        """Add tokens; returns all that is shown then."""
        for piece in pieces:
            self.draft.push(TOKEN[piece])
            self.draft.show(hold_back)
        return self.shown

    def finish(self) -> str:
        self.draft.finish()
        self.draft.show()
        return self.shown


def test_text_is_shown_as_it_comes() -> None:
    writer = Writer()
    assert writer.push(b"Hel") == "Hel"
    assert writer.push(b"lo") == "Hello"
    assert writer.push(b"", b" you") == "Hello you"
    assert writer.finish() == writer.draft.text == "Hello you"
    assert writer.draft.tokens == [TOKEN[data] for data in (b"Hel", b"lo", b"", b" you")]
    assert writer.draft.drawn == 4


def test_the_latest_tokens_are_held_back_and_all_is_shown_at_the_end() -> None:
    writer = Writer()
    pieces = [b"Hel", b"lo", b" you", b"a", b"b"]
    assert [writer.push(data, hold_back=2) for data in pieces] == ["", "", "Hel", "Hello", "Hello you"]
    assert writer.draft.text == "Hello youab"
    assert writer.finish() == "Hello youab"


def test_nobody_needs_to_be_shown_anything() -> None:
    draft = Draft(VOCABULARY.__getitem__, (), None)
    for data in (b"Hel", b"lo"):
        draft.push(TOKEN[data])
        draft.show()
    draft.finish()
    draft.show()
    assert (draft.text, draft.unseen) == ("Hello", 0)


def test_an_empty_answer_shows_nothing() -> None:
    writer = Writer(["###"])
    assert writer.finish() == writer.draft.text == ""
    assert writer.draft.drawn == 0


def test_a_character_is_shown_with_the_token_that_completes_it() -> None:
    pieces = [b"a", b"\xf0\x9f", b"\x98", b"\x80", b"b"]
    writer, behind = Writer(), Writer()
    assert [writer.push(data) for data in pieces] == ["a", "a", "a", "a😀", "a😀b"]
    assert [behind.push(data, hold_back=1) for data in pieces] == ["", "a", "a", "a", "a😀"]


def test_a_character_that_never_ends_is_shown_as_a_replacement_at_the_end() -> None:
    writer = Writer()
    assert writer.push(b"a", b"\xf0\x9f") == "a"
    assert writer.finish() == writer.draft.text == "a\N{REPLACEMENT CHARACTER}"


def test_a_stop_string_over_several_tokens_ends_the_answer_and_is_never_shown() -> None:
    writer = Writer(["END"])
    assert writer.push(b"a", b"EN") == "a"
    assert not writer.draft.stopped
    assert writer.push(b"D") == "a"
    assert writer.draft.stopped
    assert writer.finish() == writer.draft.text == "a"


def test_finishing_twice_changes_nothing() -> None:
    writer = Writer(["END"])
    writer.push(b"a", b"EN")
    writer.draft.finish()
    assert writer.finish() == writer.draft.text == "aEN"


def test_half_a_stop_string_before_the_cut_may_be_completed_after_it() -> None:
    writer = Writer(["END"])
    writer.push(b"a", b"EN", b"b", hold_back=2)
    writer.draft.rewind(1)
    writer.push(b"D", hold_back=2)
    assert writer.draft.stopped
    assert writer.finish() == "a"


def test_all_tokens_may_be_taken_back() -> None:
    writer = Writer()
    writer.push(b"Hel", b"lo", hold_back=2)
    writer.draft.rewind(2)
    assert (writer.draft.text, writer.draft.tokens) == ("", [])
    writer.draft.show()
    assert writer.shown == ""
    assert writer.push(b" you") == " you"


def test_taking_nothing_back_changes_nothing() -> None:
    writer = Writer()
    writer.push(b"Hel", b"lo", hold_back=1)
    writer.draft.rewind(0)
    assert writer.finish() == "Hello"
    assert writer.draft.drawn == 2


def test_a_character_that_was_cut_may_be_completed_again() -> None:
    writer = Writer()
    writer.push(b"a", b"\xf0\x9f", b"\x98", b"\x80", hold_back=3)
    assert writer.draft.text == "a😀"
    writer.draft.rewind(1)
    assert writer.draft.text == "a"
    writer.push(b"\x80", hold_back=3)
    assert writer.finish() == writer.draft.text == "a😀"


def test_an_answer_that_was_finished_may_be_taken_back_and_go_on() -> None:
    writer = Writer(["END"])
    writer.push(b"a", b"EN", b"\xf0\x9f", hold_back=2)
    writer.draft.finish()
    assert writer.draft.text == "aEN\N{REPLACEMENT CHARACTER}"
    writer.draft.rewind(2)
    assert writer.draft.text == "a"
    writer.push(b"b", hold_back=2)
    assert writer.finish() == writer.draft.text == "ab"


def test_only_what_nobody_has_seen_may_be_taken_back() -> None:
    writer = Writer(["END"])
    writer.push(b"Hel", b"lo", b"", b"EN", hold_back=3)
    assert writer.draft.unseen == 3
    with pytest.raises(AssertionError):
        writer.draft.rewind(4)
    writer.draft.show()
    # Tokens whose text is not certain yet count as seen: nothing more is needed to show it.
    assert (writer.shown, writer.draft.unseen) == ("Hello", 0)


PUSH = st.tuples(st.just("push"), st.integers(0, len(VOCABULARY) - 1))

REWIND = st.tuples(st.just("rewind"), st.integers(0, 4))

SHOW = st.tuples(st.just("show"), st.integers(0, 6))


@settings(max_examples=300)
@given(st.lists(st.one_of(PUSH, PUSH, PUSH, REWIND, SHOW), max_size=40), st.lists(st.sampled_from(STOPS), max_size=2))
def test_what_was_shown_is_the_answer_however_it_was_written(events: list[tuple[str, int]], stop: list[str]) -> None:
    writer = Writer(stop)
    draft = writer.draft
    seen = 0
    for event, number in events:
        if event == "push" and not draft.stopped:
            draft.push(number)
        elif event == "show":
            draft.show(number)
            seen = max(seen, len(draft.tokens) - number)
        elif event == "rewind":
            draft.rewind(min(number, draft.unseen))
        assert draft.text.startswith(writer.shown)
        assert draft.unseen == len(draft.tokens) - seen
    writer.finish()
    plain = Writer(stop)
    for token in draft.tokens:
        plain.draft.push(token)
    assert writer.shown == draft.text == plain.finish()
    assert all(string not in draft.text for string in stop)
    if not stop:
        assert draft.text == b"".join(VOCABULARY[token] for token in draft.tokens).decode(errors="replace")


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
    assert texts.met == "END"
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
