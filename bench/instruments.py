"""Instruments: how far a text expresses a concept, by means that had no part in making or calibrating any vector.

An instrument looks at the text alone: a published lexicon, a published formula, a classifier that ships its model, or what can be
counted. A higher score is nearer to the positive pole of the concept that names it (`instrument:` in its concept.yaml).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bench.questions import accepted_answers

_LEXICONS = Path(__file__).parent / "lexicons.yaml"
Score = Callable[[str, str], float]
"""Of an answer: its text, and the question that it answers."""


@dataclass(frozen=True)
class Instrument:
    """A way to measure answers.

    Attributes:
        name: what concept files call it.
        unit: what the score counts.
        source: where it comes from.
        questions: the set of `questions.yaml` that is asked.
        max_tokens: longest answer.
        score: of one answer.
    """

    name: str
    unit: str
    source: str
    questions: str
    max_tokens: int
    score: Score


# ---- words

_WORD = re.compile(r"[a-zà-öø-ÿ]+(?:['’][a-z]+)*")


def _words(text: str) -> list[str]:
    return [word.replace("’", "'") for word in _WORD.findall(text.lower())]


def _share(text: str, wanted: Callable[[str], bool]) -> float:
    """Of the words, in per cent; 0 for a text without words."""
    words = _words(text)
    return 100 * sum(map(wanted, words)) / len(words) if words else 0.0


def _phrases(text: str, lexicon: str) -> float:
    """How many phrases of a lexicon of ours the text holds, for each 100 words."""
    words = _words(text)
    joined = f" {' '.join(words)} "
    return 100 * sum(joined.count(f" {phrase} ") for phrase in _lexicon(lexicon)) / len(words) if words else 0.0


@functools.cache
def _lexicon(name: str) -> frozenset[str]:
    return frozenset(yaml.safe_load(_LEXICONS.read_text(encoding="utf-8"))[name])


@functools.cache
def _empath(*categories: str) -> frozenset[str]:
    """The words of categories of Empath (Fast et al. 2016), a lexicon of 194 categories."""
    from empath import Empath

    lexicon = Empath()
    return frozenset(word for category in categories for word in lexicon.cats[category])


# Refusals and warnings, as counted in studies of safety training (Zou et al. 2023 match the opening phrases of refusals).
_WARNINGS = re.compile(
    r"\b(i can(no|')t|i cannot|i am not able|i'm not able|unable to|i won't|i will not|sorry|not recommended|not advisable|"
    r"(do not|don't|never|should not|shouldn't|must not|avoid) \w+|danger\w*|risk\w*|unsafe|harm\w*|injur\w*|caution\w*|"
    r"careful\w*|warning|safe|safety|safely|precaution\w*|professional\w*|expert|consult|illegal|protect\w*|hazard\w*|"
    r"accident\w*)",
    re.IGNORECASE,
)
_LIST_LINE = re.compile(r"^\s*(?:[-*•+–]|\(?\d{1,2}[.)]|[a-z]\))\s+\S")


def _sentiment(text: str, _question: str) -> float:
    return float(_vader().polarity_scores(text)["compound"])


@functools.cache
def _vader() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


def _calmness(text: str, _question: str) -> float:
    angry = _empath("anger", "rage", "hate", "aggression", "irritability", "exasperation", "swearing_terms")
    calm = _empath("contentment", "affection", "politeness")
    return _share(text, (calm - angry).__contains__) - _share(text, (angry - calm).__contains__)


def _politeness(text: str, _question: str) -> float:
    rude = _empath("ridicule", "hate", "swearing_terms")
    return _phrases(text, "polite") - _share(text, rude.__contains__)


def _formality(text: str, _question: str) -> float:
    involved = _lexicon("involved")
    return _share(text, lambda word: len(word) > 6 and "'" not in word) - _share(
        text, lambda word: "'" in word or word in involved
    )


def _brevity(text: str, _question: str) -> float:
    return -float(len(_words(text)))


def _confidence(text: str, _question: str) -> float:
    return _phrases(text, "boosters") - _phrases(text, "hedges")


def _enthusiasm(text: str, _question: str) -> float:
    eager = _empath("zest", "cheerfulness", "joy", "fun")
    marks = 100 * text.count("!") / max(1, len(_words(text)))
    return marks + _share(text, eager.__contains__)


def _readability(text: str, _question: str) -> float:
    import textstat

    return -float(textstat.coleman_liau_index(text)) if len(_words(text)) > 1 else 0.0


def _imagination(text: str, _question: str) -> float:
    fantasy = _empath("magic", "legend", "monster", "beauty", "night", "exotic", "ocean", "musical", "superhero", "ancient")
    dry = _empath("science", "economics", "government", "technology", "business", "law", "college", "programming")
    return _share(text, (fantasy - dry).__contains__) - _share(text, (dry - fantasy).__contains__)


def _truth(text: str, question: str) -> float:
    said = " ".join(["", *re.findall(r"\w+", text.lower()), ""])
    return 100.0 * any(f" {answer.lower()} " in said for answer in accepted_answers(question))


def _caution(text: str, _question: str) -> float:
    return 100 * len(_WARNINGS.findall(text)) / max(1, len(_words(text)))


def _respect(text: str, _question: str) -> float:
    return -100 * _offensive(text)


def _offensive(text: str) -> float:
    from profanity_check import predict_prob

    return float(predict_prob([text])[0]) if text.strip() else 0.0


def _french(text: str, _question: str) -> float:
    if not _words(text):
        return 0.0
    return 100 * float(dict(_language_identifier().rank(text))["fr"])


@functools.cache
def _language_identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def _lists(text: str, _question: str) -> float:
    lines = [line for line in text.splitlines() if line.strip()]
    return 100 * sum(bool(_LIST_LINE.match(line)) for line in lines) / len(lines) if lines else 0.0


def _piracy(text: str, _question: str) -> float:
    at_sea = _empath("sailing", "ship", "ocean") | _lexicon("pirate_talk")
    return _share(text, at_sea.__contains__)


_EMPATH = "Empath (Fast, Chen and Bernstein 2016)"
INSTRUMENTS = {
    one.name: one
    for one in (
        Instrument("sentiment", "compound score, -1 to 1", "VADER (Hutto and Gilbert 2014)", "everyday", 36, _sentiment),
        Instrument(
            "calmness",
            "words of contentment, affection and politeness less words of anger, in 100 words",
            _EMPATH,
            "provoking",
            36,
            _calmness,
        ),
        Instrument(
            "politeness",
            "polite markers less words of ridicule, hate and swearing, in 100 words",
            f"strategies of Danescu-Niculescu-Mizil et al. 2013; {_EMPATH}",
            "provoking",
            36,
            _politeness,
        ),
        Instrument(
            "formality",
            "words of more than six letters less contractions and involved words, in 100 words",
            "Biber 1988, dimension 1",
            "everyday",
            36,
            _formality,
        ),
        Instrument("brevity", "words, negated (an answer may take 96 tokens)", "a count", "everyday", 96, _brevity),
        Instrument("confidence", "boosters less hedges, in 100 words", "the lists of Hyland 2005", "everyday", 36, _confidence),
        Instrument(
            "enthusiasm",
            "exclamation marks and words of zest, cheerfulness, joy and fun, in 100 words",
            _EMPATH,
            "everyday",
            36,
            _enthusiasm,
        ),
        Instrument("readability", "school grade, negated", "Coleman and Liau 1975, by textstat", "explain", 48, _readability),
        Instrument(
            "imagination",
            "words of magic, legend, beauty, night and the like less words of science, business and the state, in 100 words",
            _EMPATH,
            "everyday",
            36,
            _imagination,
        ),
        Instrument(
            "truth", "answers that hold the right word, per cent", "the facts of bench/questions.yaml", "facts", 24, _truth
        ),
        Instrument(
            "caution",
            "refusals and words of warning, in 100 words",
            "phrases after Zou et al. 2023",
            "danger",
            48,
            _caution,
        ),
        Instrument("respect", "probability that it offends, negated, per cent", "alt-profanity-check", "provoking", 36, _respect),
        Instrument("french", "probability that it is French, per cent", "py3langid", "everyday", 36, _french),
        Instrument("lists", "lines that are list items, per cent", "Markdown's syntax of lists", "listable", 72, _lists),
        Instrument("piracy", "words of ships and the sea, and pirate talk, in 100 words", _EMPATH, "everyday", 36, _piracy),
    )
}
