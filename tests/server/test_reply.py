from __future__ import annotations

import pytest

from localsteer.engine.phases import Division
from localsteer.engine.reply import Reasoning
from localsteer.llama.thinking import Thinking
from localsteer.server.reply import Reading, Said
from localsteer.tools.form import HARMONY as FORM
from localsteer.tools.tool import ToolCall
from tests.tools.made import HERMES, TOOLS

THINK = Thinking("<think>", "</think>")
HARMONY = Thinking("<|channel|>analysis<|message|>", "<|end|>", "<|channel|>final<|message|>")
MUSE = Thinking(" to=self<|message|>", "<|eom|>", "<|message|>")
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'


def joined(said: list[Said]) -> list[Said]:
    found: list[Said] = []
    for one in said:
        last = found[-1] if found else None
        if isinstance(one, str) and isinstance(last, str):
            found[-1] = last + one
        elif isinstance(one, Reasoning) and isinstance(last, Reasoning):
            found[-1] = Reasoning(last.text + one.text)
        else:
            found.append(one)
    return found


@pytest.mark.parametrize(
    ("reading", "text", "expected"),
    [
        (Reading(), "<think>plain</think>", ["<think>plain</think>"]),
        (Reading(Division(THINK)), "", []),
        (Reading(Division(THINK)), "Because.", ["Because."]),
        (Reading(Division(THINK)), " <b> first", [" <b> first"]),
        (Reading(Division(THINK)), "<think>\nwhy\n</think>\n\nBecause. \n", [Reasoning("why"), "Because. \n"]),
        (Reading(Division(THINK)), "<think>a < b </th i\n\nc", [Reasoning("a < b </th i\n\nc")]),
        (Reading(Division(THINK)), "<think></think>x", ["x"]),
        (Reading(Division(THINK, begun=True)), "\nwhy</think>Because.", [Reasoning("why"), "Because."]),
        (Reading(Division(THINK, begun=True)), "cut off ", [Reasoning("cut off")]),
        (Reading(Division(THINK)), "<thi", ["<thi"]),
        (
            Reading(Division(HARMONY)),
            "<|channel|>analysis<|message|>why<|end|><|start|>assistant<|channel|>final<|message|>Because.",
            [Reasoning("why"), "Because."],
        ),
        (Reading(Division(HARMONY)), "<|channel|>final<|message|>Because.", ["Because."]),
        (Reading(Division(HARMONY)), "<|channel|>analysis<|message|>why<|end|><|start|>assis", [Reasoning("why")]),
        (Reading(Division(HARMONY)), "Because.", ["Because."]),
        (
            Reading(Division(HARMONY), FORM, TOOLS),
            "<|channel|>analysis<|message|>why<|end|><|start|>assistant<|channel|>commentary to=functions.get_weather "
            '<|constrain|>json<|message|>{"city": "Rome"}',
            [Reasoning("why"), ToolCall("get_weather", '{"city": "Rome"}')],
        ),
        (
            Reading(Division(HARMONY), FORM, TOOLS),
            '<|channel|>commentary to=functions.get_weather<|message|>{"city": "Rome"}',
            [ToolCall("get_weather", '{"city": "Rome"}')],
        ),
        (
            Reading(Division(HARMONY), FORM, TOOLS),
            "<|channel|>analysis<|message|>a<|end|><|start|>assistant to=functions.get_weather"
            "<|channel|>commentary json<|message|>{}",
            [Reasoning("a"), ToolCall("get_weather", "{}")],
        ),
        (Reading(Division(HARMONY), FORM, TOOLS), "<|channel|>final<|message|>Because.", ["Because."]),
        # An answer in a form; the end of the answer.
        (Reading(Division(HARMONY)), "<|channel|>final <|constrain|>json<|message|>{}<|return|>", ["{}"]),
        # A preamble: what is said to the user before a call.
        (
            Reading(Division(HARMONY), FORM, TOOLS),
            "<|channel|>analysis<|message|>why<|end|><|start|>assistant<|channel|>commentary<|message|>I look.<|end|>"
            "<|start|>assistant<|channel|>commentary to=functions.move <|constrain|>json<|message|>{}<|call|>",
            [Reasoning("why"), "I look.", ToolCall("move", "{}")],
        ),
        (
            Reading(Division(HARMONY)),
            "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant<|channel|>final<|message|>Done.",
            ["I look.\n\nDone."],
        ),
        # Several calls, one message each, with the recipient behind the channel and in front of it.
        (
            Reading(Division(HARMONY), FORM, TOOLS),
            '<|channel|>commentary to=functions.get_weather<|message|>{"city": "Rome"}<|call|>'
            '<|start|>assistant to=functions.move<|channel|>commentary <|constrain|>json<|message|>{"a": 1}<|call|>',
            [ToolCall("get_weather", '{"city": "Rome"}'), ToolCall("move", '{"a": 1}')],
        ),
        # A call that the model makes while it thinks, and one of a tool that nobody offered.
        (Reading(Division(HARMONY), FORM, TOOLS), "<|channel|>analysis to=functions.move<|message|>{}", [ToolCall("move", "{}")]),
        (
            Reading(Division(HARMONY), FORM, TOOLS),
            "<|channel|>analysis to=python code<|message|>1 + 1<|call|>",
            [Reasoning("1 + 1")],
        ),
        # An end that is left out.
        (
            Reading(Division(HARMONY)),
            "<|channel|>analysis<|message|>why<|channel|>final<|message|>Because.",
            [Reasoning("why"), "Because."],
        ),
        (
            Reading(Division(MUSE)),
            " to=self<|message|>why<|eom|><|start|>assistant<|message|>Because.",
            [Reasoning("why"), "Because."],
        ),
        (
            Reading(Division(THINK, call=("<tool_call>", "</tool_call>")), HERMES, TOOLS),
            f"<think>which tool? <tool_call></think>\n{CALL}",
            [Reasoning("which tool? <tool_call>"), ToolCall("get_weather", '{"city": "Rome"}')],
        ),
    ],
)
def test_a_reply_is_taken_apart_wherever_its_pieces_end(reading: Reading, text: str, expected: list[Said]) -> None:
    assert reading.of(text) == expected
    for cut in range(len(text)):
        reader = reading.reader()
        assert joined([*reader.push(text[:cut]), *reader.push(text[cut:]), *reader.finish()]) == expected, cut
    reader = reading.reader()
    assert joined([*(one for letter in text for one in reader.push(letter)), *reader.finish()]) == expected
