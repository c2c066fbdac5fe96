from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localsteer.draft import Draft


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


def test_what_might_have_become_a_stop_string_is_shown_at_the_end() -> None:
    shown: list[str] = []
    draft = draft_of("abEN", shown, stop=("END",))
    draft.show()
    assert shown == ["ab"]
    draft.finish()
    draft.show()
    assert shown == ["ab", "EN"]


# Tokens of several bytes, some of them parts of characters


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
