"""Texts to fit a probe to or to try a policy on: from text files, JSON lines, or CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localsteer.errors import PolicyError
from localsteer.files.text import read_text

_POSITIVE = ("1", "true", "yes", "positive", "pos")
_NEGATIVE = ("0", "false", "no", "negative", "neg")


@dataclass(frozen=True)
class Example:
    """One text.

    Attributes:
        message: what the user said.
        answer: what the model answered.
        label: whether it is positive; None where that is not known.
        place: file and line, for messages.
    """

    message: str
    answer: str
    label: bool | None = None
    place: str = ""

    @property
    def message_before(self) -> str:
        """The message before the answer; empty where there is only a text."""
        return "" if self.message == self.answer else self.message

    @property
    def document(self) -> dict[str, Any]:
        """As `read_examples` reads it again."""
        texts = {"text": self.message} if self.message == self.answer else {"prompt": self.message, "answer": self.answer}
        return texts if self.label is None else {**texts, "label": self.label}


def read_examples(path: str | Path, *, label: bool | None = None) -> list[Example]:
    """Read texts from a file.

    A `.jsonl` file has an object a line, a `.csv` file a header, with the keys `text`, or `prompt` and `answer`, and perhaps
    `label`; what else they hold is left alone. Any other file has one text a line. A `text` is taken for a message by what
    watches prompts, and for an answer by what watches answers.

    Args:
        path: the file.
        label: of all texts in it; a label in the file itself comes first.

    Raises:
        PolicyError: the file is missing, damaged, or holds no texts.
    """
    path = Path(path)
    text = read_text(path, PolicyError, encoding="utf-8-sig")
    readers = {".jsonl": _json_lines, ".csv": _csv_rows}
    rows = readers.get(path.suffix.lower(), _plain_lines)(text, path)
    examples = [_example(row, place, label) for row, place in rows]
    if not examples:
        raise PolicyError(f"{path} holds no texts.", hint="Write one text a line, or JSON lines, or CSV.")
    return examples


def _plain_lines(text: str, path: Path) -> Iterator[tuple[Mapping[str, Any], str]]:
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), 1):
        if line.strip():
            yield {"text": line}, f"{path}, line {number}"


def _json_lines(text: str, path: Path) -> Iterator[tuple[Mapping[str, Any], str]]:
    for number, line in enumerate(text.split("\n"), 1):
        place = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise PolicyError(f"{place}: this is no JSON: {error}.") from error
        if not isinstance(row, dict):
            raise PolicyError(f'{place}: expected an object such as {{"text": "Hello", "label": 0}}.')
        yield row, place


def _csv_rows(text: str, path: Path) -> Iterator[tuple[Mapping[str, Any], str]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise PolicyError(f"{path}, line {reader.line_num}: this row has another number of columns than the header.")
            yield row, f"{path}, line {reader.line_num}"
    except csv.Error as error:
        # That of the DictReader is the line before.
        raise PolicyError(f"{path}, line {reader.reader.line_num}: this is no CSV: {error}.") from error


def _example(row: Mapping[str, Any], place: str, label: bool | None) -> Example:
    # An empty cell of a CSV is as good as none.
    texts = {key: row[key] for key in ("text", "prompt", "answer") if row.get(key) not in (None, "")}
    for key, value in texts.items():
        if not isinstance(value, str):
            raise PolicyError(f'{place}: "{key}" is not a text.')
    if not any(value.strip() for value in texts.values()):
        raise PolicyError(f'{place}: there is no text: give "text", or "prompt" and "answer".')
    # Half a character, which JSON can hold, becomes a question mark.
    texts = {key: value.encode("utf-8", "replace").decode() for key, value in texts.items()}
    whole = texts.get("text", "")
    return Example(texts.get("prompt", whole), texts.get("answer", whole), _label(row.get("label"), place, label), place)


def _label(value: Any, place: str, default: bool | None) -> bool | None:
    if value is None or value == "":
        return default
    word = str(value).strip().lower()
    if word in _POSITIVE:
        return True
    if word in _NEGATIVE:
        return False
    raise PolicyError(f'{place}: the label "{value}" is neither positive (1, true, yes) nor negative (0, false, no).')
