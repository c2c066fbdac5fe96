from __future__ import annotations

import pytest

from localsteer.calibration.script import foreign_share, script_of


@pytest.mark.parametrize(
    ("letter", "script"),
    [
        ("a", "LATIN"),
        ("É", "LATIN"),
        ("ß", "LATIN"),
        ("ж", "CYRILLIC"),
        ("中", "CJK"),
        ("ひ", "HIRAGANA"),
        ("한", "HANGUL"),
        ("ع", "ARABIC"),
        ("ω", "GREEK"),
        ("\ue000", "LATIN"),
        ("ª", "LATIN"),
        ("µ", "LATIN"),
    ],
)
def test_a_letter_is_of_its_script(letter: str, script: str) -> None:
    assert script_of(letter) == script


@pytest.mark.parametrize(
    ("text", "known", "share"),
    [
        ("Hello there.", "", 0.0),
        ("Où êtes-vous, Größe?", "", 0.0),  # accents make no other script
        ("今天", "How are you?", 1.0),
        ("abcd 中", "How are you?", 0.2),
        ("今天很好", "你好吗？", 0.0),  # asked in it
        ("Хорошо, thanks", "Как дела?", 0.0),  # Latin letters are at home everywhere
        ("Хорошо", "How are you?", 1.0),
        ("123 !? 😀 — …", "", 0.0),  # no letters
        ("", "", 0.0),
    ],
)
def test_what_is_foreign_is_neither_latin_nor_of_the_script_that_is_spoken(text: str, known: str, share: float) -> None:
    assert foreign_share(text, known) == pytest.approx(share)
