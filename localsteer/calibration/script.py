"""Which script a letter is of: a small model may slip into another one when it is steered."""

from __future__ import annotations

import unicodedata
from functools import lru_cache


@lru_cache(maxsize=4096)
def script_of(letter: str) -> str:
    """The first word of its name in Unicode: LATIN, CYRILLIC, CJK, ARABIC."""
    return unicodedata.name(letter, "UNKNOWN").split()[0]


def foreign_share(text: str, known: str) -> float:
    """The share of a text's letters that are neither Latin nor of a script that other text is in; 0 without letters."""
    letters = [letter for letter in text if letter.isalpha()]
    scripts = {"LATIN", *(script_of(letter) for letter in known if letter.isalpha())}
    return sum(script_of(letter) not in scripts for letter in letters) / len(letters) if letters else 0.0
