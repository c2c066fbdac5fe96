from __future__ import annotations

from pathlib import Path

import pytest

from localsteer.concepts.concept_file import parse_concept
from localsteer.concepts.contrast import Contrast, Prompt, read_prompt_files
from localsteer.errors import ContrastError
from localsteer.llama.chat_template import Message
from localsteer.llama.model import Model
from tests.tiny_models import CHATML_TEMPLATE, write_tiny_model

# Prompt files


def read(folder: Path, positive: str | bytes, negative: str | bytes) -> Contrast:
    for name, text in (("glad.txt", positive), ("gloomy.txt", negative)):
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_prompt_files(folder / "glad.txt", folder / "gloomy.txt", name="mood")


def openings(contrast: Contrast) -> list[tuple[str, str]]:
    assert not any(prompt.messages for prompt in contrast.prompts())
    return [(pair.positive.opening, pair.negative.opening) for pair in contrast.pairs]


def test_prompt_files_pair_line_by_line(tmp_path: Path) -> None:
    made = read(tmp_path, "a\nb\n", "c\nd\n")
    assert openings(made) == [("a", "c"), ("b", "d")]
    assert (made.name, made.positive, made.negative) == ("mood", "glad", "gloomy")
    assert made.held_out == ()


def test_empty_lines_and_windows_line_ends_are_skipped(tmp_path: Path) -> None:
    made = read(tmp_path, "\na\n\n  \nb", "c\r\n\r\nd\r\n")
    assert openings(made) == [("a", "c"), ("b", "d")]


def test_spaces_at_the_ends_of_a_prompt_are_kept(tmp_path: Path) -> None:
    assert openings(read(tmp_path, " a \n", "\tb\n")) == [(" a ", "\tb")]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (r"a\nb", "a\nb"),
        (r"a\tb\rc", "a\tb\rc"),
        (r"\'a\" \\", "'a\" \\"),
        (r"\\n", r"\n"),
        (r"\\\n", "\\\n"),
        (r"\x41\x0aB", "A\nB"),
        (r"\x4", r"\x4"),
        (r"\xzz", r"\xzz"),
        (r"\q \u0041", r"\q \u0041"),
        ("a\\", "a\\"),
        ("<|im_start|>user\\nHallo, Größe!<|im_end|>\\n", "<|im_start|>user\nHallo, Größe!<|im_end|>\n"),
    ],
)
def test_escapes_are_those_of_llama_cpp(tmp_path: Path, written: str, meant: str) -> None:
    assert openings(read(tmp_path, written, "x")) == [(meant, "x")]


def test_escaped_bytes_are_utf_8_as_in_llama_cpp(tmp_path: Path) -> None:
    assert openings(read(tmp_path, r"caf\xc3\xa9", "x")) == [("café", "x")]


@pytest.mark.parametrize("character", ["\u2028", "\u0085", "\x0c", "\x1e", "\r"])
def test_only_a_newline_ends_a_prompt(tmp_path: Path, character: str) -> None:
    assert openings(read(tmp_path, f"a{character}b\n", "c\n")) == [(f"a{character}b", "c")]


def test_unequal_prompt_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ContrastError, match=r"glad\.txt .*2 prompts.*gloomy\.txt 1"):
        read(tmp_path, "a\nb\n", "c\n\n")


@pytest.mark.parametrize(("positive", "negative", "empty"), [("", "a", "glad"), ("a", "\n \n", "gloomy")])
def test_an_empty_prompt_file_is_refused(tmp_path: Path, positive: str, negative: str, empty: str) -> None:
    with pytest.raises(ContrastError, match=rf"{empty}\.txt"):
        read(tmp_path, positive, negative)


def test_a_missing_prompt_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "glad.txt").write_text("a")
    with pytest.raises(ContrastError, match=r"gloomy\.txt"):
        read_prompt_files(tmp_path / "glad.txt", tmp_path / "gloomy.txt", name="mood")


def test_a_prompt_file_in_another_encoding_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ContrastError, match=r"gloomy\.txt .*UTF-8"):
        read(tmp_path, "a", b"\xff\xfea\x00")


# What a vector carries of them


def test_prompt_files_are_carried_as_a_concept_of_the_same_pairs(tmp_path: Path, tiny: Model) -> None:
    made = read(
        tmp_path,
        "<|im_start|>user\\nHallo, Größe!<|im_end|>\\n\n'a' \"b\": {c} # d\nyes\n\\x41\\\\n\n- 7 \n",
        "<|im_start|>user\\nBye.<|im_end|>\\n\n \\t\nno\n\\r\\n\n~\n",
    )
    again = parse_concept(made.source, "the vector")
    assert again.pairs == made.pairs
    assert (again.name, again.positive, again.negative) == ("mood", "glad", "gloomy")
    assert (again.personas, again.held_out) == ((), ())
    assert again.source == made.source
    # They are the same to whoever looks whether a vector is of these prompts.
    assert again.sha256(tiny) == made.sha256(tiny)


@pytest.mark.parametrize(
    "character", ["\u2028", "\u0085", "\x0c", "\x1e", "\r", "\ufeff", "\x1b", "\x07", "\ufffe", "\x00", "😀"]
)
def test_any_character_of_a_prompt_is_carried(tmp_path: Path, character: str) -> None:
    made = read(tmp_path, f"a{character}b\n", f"{character}.\n")
    assert parse_concept(made.source, "the vector").pairs == made.pairs


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("mood", "mood"),
        ("My Mood_2", "my-mood-2"),
        ("7 moods", "prompts-7-moods"),
        ("Größe", "gr-e"),
        ("気分", "prompts"),
        ("--x--", "x"),
    ],
)
def test_any_name_of_prompt_files_makes_a_concept(tmp_path: Path, name: str, plain: str) -> None:
    for pole in ("glad", "gloomy"):
        (tmp_path / f"{pole}.txt").write_text("a\n")
    made = read_prompt_files(tmp_path / "glad.txt", tmp_path / "gloomy.txt", name=name)
    assert made.name == name
    assert parse_concept(made.source, "the vector").name == plain


@pytest.mark.parametrize("stem", ["yes", "7", "null", "a: b", "Größe"])
def test_any_name_of_a_file_makes_a_pole(tmp_path: Path, stem: str) -> None:
    for pole in (stem, "other"):
        (tmp_path / f"{pole}.txt").write_text("a\n")
    made = read_prompt_files(tmp_path / f"{stem}.txt", tmp_path / "other.txt", name="x")
    assert parse_concept(made.source, "the vector").positive == made.positive == stem


# Rendering

CHAT = (Message("system", "Be {x}."), Message("user", "Why?"))


def test_a_prompt_goes_through_the_chat_template_and_ends_with_the_opening(tiny: Model) -> None:
    assert Prompt(CHAT, "Well,").render(tiny) == (
        "<|im_start|>system\nBe {x}.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\nWell,"
    )


def test_a_prompt_that_is_templated_already_stays_as_it_is(tiny: Model) -> None:
    assert Prompt((), "<|im_start|>user\nWhy?").render(tiny) == "<|im_start|>user\nWhy?"


def test_a_base_model_reads_paragraphs(tmp_path: Path) -> None:
    with Model(write_tiny_model(tmp_path / "base.gguf", chat_template=None), threads=1) as base:
        assert Prompt(CHAT, "Well,").render(base) == "Be {x}.\n\nWhy?\n\nWell,"


def test_what_a_vector_is_built_from_is_the_same_on_every_day(tmp_path: Path) -> None:
    dated = CHATML_TEMPLATE + "{{ strftime_now('%Y-%m-%d') }} {{ date_string | default('some day') }}:"
    with Model(write_tiny_model(tmp_path / "dated.gguf", chat_template=dated), threads=1) as model:
        assert Prompt(CHAT, "Well,").render(model).endswith("assistant\n2024-07-26 some day:Well,")
