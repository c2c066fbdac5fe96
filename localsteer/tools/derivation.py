"""How a model writes calls of tools, seen from what its chat template makes of calls in a conversation.

A conversation with calls of a made-up tool is rendered, once with one call and once with two. What stands around the name and the
arguments is the form. Only what a template tells in words, or cannot show, is known by name.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import re
from dataclasses import replace
from typing import Any

from localsteer.llama.chat_template import ChatTemplate, Message, ToolCall
from localsteer.llama.model import Model
from localsteer.llama.template_errors import TemplateError
from localsteer.tools.form import GRANITE, HARMONY, IDENTITY, LLAMA, Form, Tags

_HELLO = Message("user", "Hello")
_NAME = "call7f3a"
_SAID = "said7f3a"
# Mistral's templates want nine letters and digits.
_IDS = ("ident7f3a", "ident7f3b")
# One of each kind whose place in a tag may differ; the quote tells JSON from plain text.
_ARGUMENTS: dict[str, Any] = {"akey7f3a": 'value"7f3a', "bkey7f3a": 7103, "ckey7f3a": {"k": 7105}, "dkey7f3a": 'end"7f3a'}
_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "tool",
        "description": "A tool.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "string", "description": "An argument."}},
            "required": ["a"],
            "additionalProperties": False,
        },
    },
}
# A number or an identifier that stands by itself.
_IDENTITY = re.compile("|".join((*_IDS, r"(?<![\w.])\d(?![\w.])")))


# Characters behind the last arguments; some templates go on with instructions there.
_LONGEST_END = 200


def form_for(model: Model) -> Form | None:
    """The form that a model's chat template has it write; None as in `form_of`, or where it would end its answer in the middle.

    Args:
        model: one with a template.
    """
    form = form_of(model.chat_template.for_tools) if model.chat_template is not None else None
    if form is None or form.kind == "channel":
        return form
    # A token that ends the answer is never written, and nothing behind it.
    ends = {text: token for text, token in model.control_tokens_in(*form.texts).items() if model.is_end(token)}
    for end in ends:
        place = "closing" if end in form.closing else "tail"
        form = replace(form, **{place: getattr(form, place).partition(end)[0].rstrip()})
    return None if any(end in text for end in ends for text in form.texts) else form


class _NoFormError(Exception):
    """What a template shows of calls is in no form that is read here."""


@functools.lru_cache(maxsize=16)
def form_of(template: ChatTemplate) -> Form | None:
    """The form that a chat template has its model write; None where it shows none, or one that is not read here.

    Args:
        template: that of conversations with tools.
    """
    try:
        form = _derived(template)
    except (_NoFormError, TemplateError):
        return GRANITE if GRANITE.begin in template.written else None
    if form.head.endswith(HARMONY.begin.strip()) and "<|channel|>" in form.middle:
        return HARMONY  # It may as well stand the other way round.
    if form.kind == "bare":
        # A token by which Llama's models say that code follows; some write it before a call.
        return LLAMA if (form.name, form.key) == (LLAMA.name, LLAMA.key) else None
    return form


def _derived(template: ChatTemplate) -> Form:
    try:
        text = _shown(template, 2)
        _before, one, two = text.split(_NAME)
    except (TemplateError, ValueError):
        text = _shown(template, 1)
        if text.count(_NAME) != 1:
            raise _NoFormError from None
        one = two = text.rpartition(_NAME)[2]
    start = _lead(template, text[: text.index(_NAME)])
    middle, arguments, between = _split(one)
    _, _, rest = _split(two)
    tags = None
    if arguments[0] != "{":
        tags, middle = _tags(middle, arguments)
        if not (between.startswith(tags.after) and rest.startswith(tags.after)):
            raise _NoFormError
        between, rest = between[len(tags.after) :], rest[len(tags.after) :]
    rest = rest.removesuffix(_whole_marks(_common_end(rest, template.behind_answer[0]))).rstrip()
    start, middle, between, rest = (_IDENTITY.sub(IDENTITY, part) for part in (start, middle, between, rest))
    if one is two:
        form = Form("named", "", start, middle, rest, None, "", tags=tags)
    else:
        head = _whole_marks(_common_end(start, between))
        between = between[: len(between) - len(head)]
        tail = _common_start(between, rest)
        if tail.rfind("<") > tail.rfind(">"):
            tail = tail[: tail.rfind("<")]
        form = Form("named", start.removesuffix(head), head, middle, tail, between[len(tail) :], rest[len(tail) :], tags=tags)
    if tags is None and (keys := _keys(start, one)) is not None:
        form = replace(form, kind="object" if form.begin else "bare", name=keys[0], key=keys[1])
    if len(rest) > _LONGEST_END or (form.kind == "named" and not form.begin):
        raise _NoFormError
    if form.begin and template.render([_HELLO], tools=[_TOOL]).rstrip().endswith(form.begin):
        raise _NoFormError  # The reply begins behind the mark, whatever it is.
    return form


def _shown(template: ChatTemplate, number: int, *, said: str = "") -> str:
    """The conversation up to its end, a turn with calls."""
    calls = tuple(ToolCall(_NAME, _ARGUMENTS, identity) for identity in _IDS[:number])
    return template.render([_HELLO, Message("assistant", said, tool_calls=calls)], tools=[_TOOL], header=False)


def _lead(template: ChatTemplate, before: str) -> str:
    """What stands between the text of an answer, or what it begins with, and the first name."""
    common = _common_start(before, template.render([_HELLO], tools=[_TOOL]))
    leads = [before[common.rfind("<") if common.rfind("<") > common.rfind(">") else len(common) :]]
    with contextlib.suppress(TemplateError):
        text = _shown(template, 1, said=_SAID).partition(_NAME)[0]
        leads += text.split(_SAID)[1:]
    lead = min(leads, key=len)  # Some begin another turn behind a text, or say more in front of an answer.
    if template.thinking is not None:
        lead = lead.rpartition(template.thinking.closes)[2]
    return lead.lstrip()


def _split(text: str) -> tuple[str, str, str]:
    """What stands behind a name: up to the arguments, these, and the rest."""
    for brace in re.finditer("{", text):
        with contextlib.suppress(ValueError):
            value, end = json.JSONDecoder().raw_decode(text, brace.start())
            if value == _ARGUMENTS:
                return text[: brace.start()], text[brace.start() : end], text[end:]
    first, last = (*_ARGUMENTS,)[0], str((*_ARGUMENTS.values(),)[-1])
    if first not in text or last not in text:
        raise _NoFormError
    start, end = text.index(first), text.index(last) + len(last)
    return text[:start], text[start:end], text[end:]


_TAGGED = re.compile(
    r"""akey7f3a(?P<text>.*)value"7f3a(?P<after>.*)bkey7f3a(?P<other>.*)7103(?P=after)"""
    r"""ckey7f3a(?P=other)\{.k.: ?7105\}(?P=after)dkey7f3a(?P=text)end"7f3a""",
    re.DOTALL,
)


def _tags(middle: str, arguments: str) -> tuple[Tags, str]:
    """How each argument is written, and what stands between the name and the first one."""
    found = _TAGGED.fullmatch(arguments)
    if found is None:
        raise _NoFormError
    before = _whole_marks(_common_end(middle, found["after"]))
    after = found["after"].removesuffix(before)
    if not (before and after):
        raise _NoFormError
    return Tags(before, found["text"], found["other"], after), middle.removesuffix(before)


def _keys(start: str, rest: str) -> tuple[str, str] | None:
    """The keys of the name and the arguments, where both stand in one object of JSON."""
    for brace in reversed([*re.finditer("{", start)]):
        with contextlib.suppress(ValueError):
            call, _ = json.JSONDecoder().raw_decode((start[brace.start() :] + _NAME + rest).replace(IDENTITY, "0"))
            keys = {json.dumps(value): key for key, value in call.items()}
            if json.dumps(_NAME) in keys and json.dumps(_ARGUMENTS) in keys:
                return keys[json.dumps(_NAME)], keys[json.dumps(_ARGUMENTS)]
    return None


def _common_start(one: str, other: str) -> str:
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return "".join(letter for letter, _ in same)


def _common_end(one: str, other: str) -> str:
    return _common_start(one[::-1], other[::-1])[::-1]


def _whole_marks(end: str) -> str:
    """The end of a text, without the half of a mark that it may begin with."""
    return end[end.index(">") + 1 :] if -1 < end.find(">") < f"{end}<".index("<") else end
