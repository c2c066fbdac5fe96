"""`docs/api.md`: the public Python API, read from its docstrings."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterator

import localsteer
from handbook.links import ROOT

PAGE = ROOT / "docs" / "api.md"

_INTRODUCTION = """\
# Python API

Written by `make handbook` from the docstrings; edits are lost. Everything here is `localsteer.NAME`; the
[README](../README.md#from-python) has an example. Names are imported when they are first used, so `import localsteer` is fast.
A mistake of the caller's that a user could make as well is a [`LocalsteerError`](#localsteererror).
"""

_GROUPS = {
    "Models and prompts": ["resolve_model", "find_models", "Model", "Message", "prompt_tokens", "LocalsteerError"],
    "Vectors": ["ControlVector", "Provenance", "read_vector", "write_vector", "import_vector", "load_vector", "loader"],
    "Building": ["load_concept", "read_prompt_files", "Contrast", "ExtractionSettings", "extract", "dose"],
    "Calibration": ["CalibrationSettings", "Calibrator", "Calibration"],
    "Steering": ["parse_steering", "Steering", "resolve", "Plan", "combine"],
    "Answers": ["Sampling", "Grammar", "Request", "Generator", "generate_many", "Answer", "reread", "Scored", "answer_nll"],
    "Policies": ["arm", "Controller", "read_examples", "FitSettings", "fit_probe", "replay"],
    "Export": ["export_vector", "bake"],
}

# A part of a docstring in Google's style, such as "Args:".
_PART = re.compile(r"(Args|Attributes|Returns|Yields|Raises):")
_CALLED = {"Args": "Arguments"}
# What a default says of its place in memory.
_PLACE = re.compile(r" at 0x[0-9a-f]+")


def page() -> str:
    """The whole page.

    Raises:
        ValueError: a public name stands in no group, or in two, or a group has one that is not public.
    """
    grouped = [name for names in _GROUPS.values() for name in names]
    if sorted(grouped) != sorted(localsteer.__all__):
        raise ValueError(f"In no group of handbook/api.py, or in two: {sorted(set(localsteer.__all__) ^ set(grouped))}")
    lines = [_INTRODUCTION]
    for group, names in _GROUPS.items():
        lines += [f"## {group}", ""]
        for name in names:
            lines += _thing(name, getattr(localsteer, name))
    return "\n".join(lines).rstrip() + "\n"


def _thing(name: str, thing: object) -> Iterator[str]:
    yield from (f"### {name}", "")
    if inspect.isclass(thing):
        yield from _signature(name, thing)
        yield from _told(inspect.getdoc(thing) or "")
        for key, member in _members(thing):
            yield from _member(f"{name}.{key}", member)
    elif callable(thing):
        yield from _signature(name, thing)
        yield from _told(inspect.getdoc(thing) or "")
    else:
        raise TypeError(f"{name} is neither a class nor a function")


def _members(kind: type) -> Iterator[tuple[str, object]]:
    """Methods and properties of a class, and those that it has from classes of localsteer's."""
    seen: set[str] = set()
    for base in (one for one in kind.__mro__ if one.__module__.partition(".")[0] == "localsteer"):
        for key, member in vars(base).items():
            plain = member.__func__ if isinstance(member, classmethod | staticmethod) else member
            documented = inspect.isfunction(plain) or isinstance(plain, property | functools.cached_property)
            if documented and not key.startswith("_") and key not in seen and inspect.getdoc(plain):
                seen.add(key)
                yield key, plain


def _member(name: str, member: object) -> Iterator[str]:
    yield from (f"#### {name}", "")
    if inspect.isfunction(member):
        yield from _signature(name.partition(".")[2], member)
    yield from _told(inspect.getdoc(member) or "")


def _signature(name: str, thing: Callable[..., object]) -> Iterator[str]:
    signature = inspect.signature(thing)
    given = [_written(one) for one in signature.parameters.values() if one.name not in ("self", "cls")]
    returns = _Written(signature.return_annotation) if not inspect.isclass(thing) else inspect.Signature.empty
    text = f"{name}{signature.replace(parameters=given, return_annotation=returns)}".removesuffix(" -> None").replace(
        "<factory>", "..."
    )
    yield from ("```python", _folded(text), "```", "")


class _Written:
    """A type or a default as it stands in the source."""

    def __init__(self, value: object) -> None:
        self._text = value if isinstance(value, str) else getattr(value, "__name__", None) or _PLACE.sub("", repr(value))

    def __repr__(self) -> str:
        return self._text


def _written(one: inspect.Parameter) -> inspect.Parameter:
    default = one.default
    if inspect.isclass(default) and default is not inspect.Parameter.empty:
        one = one.replace(default=_Written(default))
    return one.replace(annotation=_Written(one.annotation)) if one.annotation is not inspect.Parameter.empty else one


def _folded(text: str, width: int = 100) -> str:
    """A signature, a parameter a line where it is long."""
    if len(text) <= width:
        return text
    head, _, rest = text.partition("(")
    inside, _, tail = rest.rpartition(")")
    parts, depth, start = [], 0, 0
    for place, letter in enumerate(inside):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth:
            parts.append(inside[start:place].strip())
            start = place + 1
    parts.append(inside[start:].strip())
    return "\n".join([f"{head}(", *(f"    {part}," for part in parts), f"){tail}"])


def _told(docstring: str) -> Iterator[str]:
    part, body = "", list[str]()
    for line in [*docstring.splitlines(), "Raises:"]:  # the last one is there to end what is before it
        if (found := _PART.fullmatch(line)) is None:
            body.append(line)
            continue
        text = inspect.cleandoc("\n".join(["", *body])).strip()
        if text and part in ("Args", "Attributes", "Raises"):
            yield from (f"**{_CALLED.get(part, part)}**", "", *_items(text), "")
        elif text:
            yield from (f"**{part}**: {_escaped(text)}" if part else _escaped(text), "")
        part, body = found.group(1), []


def _items(text: str) -> Iterator[str]:
    """`name: what it is`, with lines that go on further in."""
    for item in re.split(r"\n(?=\S)", text):
        name, _, meaning = item.partition(":")
        yield f"- `{name}`: {_escaped(' '.join(meaning.split()))}"


def _escaped(text: str) -> str:
    """Angle brackets and stars as they stand, outside of code."""
    parts = re.split(r"(`+[^`]*`+)", text)
    return "".join(one if one.startswith("`") else re.sub(r"([*_])", r"\\\1", one.replace("<", "&lt;")) for one in parts)
