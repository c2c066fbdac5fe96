from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localsteer.errors import PolicyError
from localsteer.policy.examples import Example, read_examples


def read(folder: Path, name: str, content: str | bytes, *, label: bool | None = None) -> list[Example]:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_examples(path, label=label)


def refusal(folder: Path, name: str, content: str | bytes) -> str:
    """What is said of a broken file, without its path."""
    with pytest.raises(PolicyError) as caught:
        read(folder, name, content)
    message = str(caught.value)
    assert message.startswith(str(folder / name))
    return message.removeprefix(str(folder / name))


def texts(examples: list[Example]) -> list[tuple[str, str, bool | None]]:
    return [(one.message, one.answer, one.label) for one in examples]


# One text a line


@pytest.mark.parametrize("name", ["a.txt", "a", "a.md", "größe.TXT"])
def test_any_other_file_has_one_text_a_line(tmp_path: Path, name: str) -> None:
    found = read(tmp_path, name, 'Hello!\n\n  \nIt is "so", {big}. \nÄÖ 🙂 密码\u2028x')
    assert [one.message for one in found] == ["Hello!", 'It is "so", {big}. ', "ÄÖ 🙂 密码\u2028x"]
    assert all(one.answer == one.message for one in found)
    assert [one.place for one in found] == [f"{tmp_path / name}, line {number}" for number in (1, 4, 5)]
    assert {one.label for one in found} == {None}


@pytest.mark.parametrize("label", [True, False, None])
def test_a_file_may_be_labelled_as_a_whole(tmp_path: Path, label: bool | None) -> None:
    assert texts(read(tmp_path, "a.txt", "x\ny\n", label=label)) == [("x", "x", label), ("y", "y", label)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "Hello\nyou\n"),
        ("a.jsonl", '{"text": "Hello"}\n{"text": "you"}\n'),
        ("a.csv", "text\nHello\nyou\n"),
    ],
)
def test_windows_files_read_the_same(tmp_path: Path, name: str, content: str) -> None:
    for changed in (content, content.rstrip("\n"), content.replace("\n", "\r\n"), "\ufeff" + content):
        assert texts(read(tmp_path, name, changed)) == [("Hello", "Hello", None), ("you", "you", None)]
    assert texts(read(tmp_path, name, b"\xef\xbb\xbf" + content.replace("\n", "\r\n").encode()))[0][0] == "Hello"


# JSON lines


def test_json_lines_have_texts_or_prompts_and_answers(tmp_path: Path) -> None:
    rows = [
        {"text": "one\ntwo"},
        {"prompt": "Why?", "answer": "So."},
        {"prompt": "Why?"},
        {"answer": "So."},
        {"text": "x", "id": 7, "tags": ["a"], "prompt": None},
    ]
    content = "\n".join(json.dumps(row) for row in rows).replace("\n", "\n\n", 1)
    found = read(tmp_path, "a.JSONL", content)
    assert [(one.message, one.answer) for one in found] == [
        ("one\ntwo", "one\ntwo"),
        ("Why?", "So."),
        ("Why?", ""),
        ("", "So."),
        ("x", "x"),
    ]
    assert [one.place.rsplit(maxsplit=1)[1] for one in found] == ["1", "3", "4", "5", "6"]


@pytest.mark.parametrize(
    ("value", "label"),
    [
        *((value, True) for value in (1, True, "1", "true", "TRUE", "yes", "Positive", " pos ")),
        *((value, False) for value in (0, False, "0", "False", "no", "NEGATIVE", "neg")),
        *((value, None) for value in (None, "")),
    ],
)
def test_labels_may_be_numbers_or_words(tmp_path: Path, value: object, label: bool | None) -> None:
    content = json.dumps({"text": "x", "label": value})
    assert read(tmp_path, "a.jsonl", content)[0].label == label
    if isinstance(value, str):
        assert read(tmp_path, "a.csv", f"text,label\nx,{value}\n")[0].label == label


def test_a_label_in_the_file_comes_before_that_of_the_file(tmp_path: Path) -> None:
    content = '{"text": "x", "label": 0}\n{"text": "y"}\n{"text": "z", "label": 1}\n'
    assert [one.label for one in read(tmp_path, "a.jsonl", content, label=True)] == [False, True, True]
    assert [one.label for one in read(tmp_path, "a.jsonl", content, label=False)] == [False, False, True]


def test_half_a_character_becomes_a_question_mark(tmp_path: Path) -> None:
    assert texts(read(tmp_path, "a.jsonl", '{"prompt": "a\\ud800", "answer": "\\udfffb"}')) == [("a?", "?b", None)]


# CSV


def test_a_csv_has_a_header_and_may_have_line_breaks_in_its_texts(tmp_path: Path) -> None:
    content = 'id,label,answer,prompt\n1,yes,"So, ""indeed"".\nAnd more.",Why?\n\n2,no,"Because",How?\n'
    found = read(tmp_path, "a.csv", content)
    assert texts(found) == [("Why?", 'So, "indeed".\nAnd more.', True), ("How?", "Because", False)]
    assert [one.place.rsplit(maxsplit=1)[1] for one in found] == ["3", "5"]


def test_an_empty_cell_is_as_good_as_none(tmp_path: Path) -> None:
    content = "text,prompt,answer,label\nHello,,,1\n,Why?,So.,\n,Why?,,0\n"
    assert texts(read(tmp_path, "a.csv", content)) == [("Hello", "Hello", True), ("Why?", "So.", None), ("Why?", "", False)]


# What is broken


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", '{"text": "x"}\n{"text": \n', ", line 2: this is no JSON: "),
        ("a.jsonl", "\n\nHello\n", ", line 3: this is no JSON: "),
        ("a.jsonl", "[" * 100_000, ", line 1: this is no JSON: "),
        ("a.jsonl", '["text"]', ', line 1: expected an object such as {"text": "Hello", "label": 0}.'),
        ("a.jsonl", '{"text": "x"}\n7\n', ", line 2: expected an object such as "),
        ("a.jsonl", '{"text": 7}', ', line 1: "text" is not a text.'),
        ("a.jsonl", '{"text": NaN}', ', line 1: "text" is not a text.'),
        ("a.jsonl", '{"prompt": "x", "answer": ["y"]}', ', line 1: "answer" is not a text.'),
        ("a.jsonl", '{"text": "x"}\n\n{"Text": "y"}', ', line 3: there is no text: give "text", or "prompt" and "answer".'),
        ("a.jsonl", '{"text": " \\n"}', ", line 1: there is no text: "),
        ("a.jsonl", '{"text": "x", "label": 2}', ', line 1: the label "2" is neither positive (1, true, yes) nor negative ('),
        ("a.jsonl", '{"text": "x", "label": "maybe"}', ', line 1: the label "maybe" is neither positive'),
        ("a.jsonl", '{"text": "x", "label": []}', ', line 1: the label "[]" is neither positive'),
        ("a.csv", "text,label\nx,1\ny\n", ", line 3: this row has another number of columns than the header."),
        ("a.csv", "text,label\nx,1,2\n", ", line 2: this row has another number of columns than the header."),
        ("a.csv", 'text\n"x"y\n', ", line 2: this is no CSV: "),
        ("a.csv", 'text\nx\n"y\n', ", line 3: this is no CSV: "),
        ("a.csv", "text;label\nHello;1\n", ", line 2: there is no text: "),
        ("a.csv", "text,label\n,1\n", ", line 2: there is no text: "),
        ("a.csv", "text,label\nx,2\n", ', line 2: the label "2" is neither'),
        ("a.txt", "groß\n".encode("latin-1"), " is not UTF-8 text (byte 3)."),
        ("a.txt", "", " holds no texts. Write one text a line, or JSON lines, or CSV."),
        ("a.txt", " \n\r\n", " holds no texts."),
        ("a.jsonl", "\n", " holds no texts."),
        ("a.csv", "text,label\n", " holds no texts."),
        ("a.csv", "", " holds no texts."),
    ],
)
def test_what_cannot_be_read_is_told_with_its_file_and_line(tmp_path: Path, name: str, content: str | bytes, said: str) -> None:
    assert refusal(tmp_path, name, content).startswith(said)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"\AThere is no file .*a\.txt\.\Z"):
        read_examples(tmp_path / "a.txt")


def test_a_folder_is_no_file_of_texts(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"cannot be read: Is a directory"):
        read_examples(str(tmp_path))


@given(st.binary(max_size=60), st.sampled_from([".txt", ".jsonl", ".csv"]))
def test_any_bytes_are_texts_or_a_policy_error(tmp_path_factory: pytest.TempPathFactory, data: bytes, kind: str) -> None:
    path = tmp_path_factory.getbasetemp() / f"any-bytes{kind}"
    path.write_bytes(data)
    refused = ""
    found: list[Example] = []
    try:
        found = read_examples(path)
    except PolicyError as error:
        refused = str(error)
    assert bool(found) != bool(refused)
    assert not refused or str(path) in refused
    assert all(one.message.strip() or one.answer.strip() for one in found)


# There and back


@pytest.mark.parametrize(
    ("example", "document"),
    [
        (Example("Hello", "Hello"), {"text": "Hello"}),
        (Example("Hello", "Hello", True), {"text": "Hello", "label": True}),
        (Example("Why?", "So.", False), {"prompt": "Why?", "answer": "So.", "label": False}),
        (Example("", "So."), {"prompt": "", "answer": "So."}),
        (Example("Why?", "", True), {"prompt": "Why?", "answer": "", "label": True}),
    ],
)
def test_an_example_is_read_as_it_was_written(tmp_path: Path, example: Example, document: dict[str, object]) -> None:
    assert example.document == document
    (found,) = read(tmp_path, "a.jsonl", json.dumps(example.document))
    assert texts([found]) == texts([example])


def test_a_lone_text_has_no_message_before_it() -> None:
    assert Example("Hello", "Hello").message_before == ""
    assert Example("Why?", "So.").message_before == "Why?"
    assert Example("", "So.").message_before == ""
