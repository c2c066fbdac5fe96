"""The forms of calls that are seen from what templates make of them: small ones, and all of llama.cpp's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from bench import tools as bench_tools
from localsteer.llama.chat_template import ChatTemplate, Message
from localsteer.llama.chat_template import ToolCall as Called
from localsteer.llama.model import Model
from localsteer.tools.derivation import form_for, form_of
from localsteer.tools.form import GRANITE, HARMONY, IDENTITY, LLAMA, Form
from localsteer.tools.grammar import tool_grammar
from localsteer.tools.parser import ToolCallParser
from localsteer.tools.tool import ToolCall
from tests.tiny_models import write_tiny_model
from tests.tools.made import (
    CALLS,
    COMMAND,
    DEEPSEEK,
    GLM,
    HERMES,
    KIMI,
    MISTRAL,
    NEW_MISTRAL,
    QWEN_CODER,
    TOOLS,
    called,
    written,
)
from tests.tools.test_grammar import follows

# Before the tests get a cache folder of their own.
TEMPLATES = bench_tools.source_folder() / "models" / "templates"

# Those that show no call that is read here, and why: tools are explained to these models in words.
EXPLAINED = {
    "HuggingFaceTB-SmolLM3-3B": "shows no calls",
    "LFM2-8B-A1B": "shows no calls",
    "LFM2.5-Instruct": "shows no calls",
    "google-gemma-2-2b-it": "shows no calls",
    "llama-cpp-rwkv-world": "shows no calls",
    "microsoft-Phi-3.5-mini-instruct": "shows no calls",
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B": "shows no tools",
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": "shows no tools",
    "deepseek-ai-DeepSeek-V3.1": "shows no tools",
    "Kimi-K2-Instruct": "changes a list, which transformers forbids, too",
    "Kimi-K2-Thinking": "changes a list, which transformers forbids, too",
    "Kimi-K3": "each kind of value has a tag of its own",
    "LFM2.5-8B-A1B": "calls are Python",
    "MiniMax-M3": "each argument has a tag of its own name",
    "google-gemma-4-31B-it": "arguments are in a notation of its own",
    "google-gemma-4-31B-it-interleaved": "arguments are in a notation of its own",
    "meetkai-functionary-medium-v3.2": "the header of an answer holds the mark of a call",
    "muse-glimmer": "the name of the tool stands in the header",
}
# Those that show no calls but tell of their form in words.
INDENTED = {"CohereForAI-c4ai-command-r-plus-tool_use"}
TOLD = {"ibm-granite-granite-3.3-2B-Instruct": GRANITE}

TURNS = "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
END = "<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
EACH = "{% for c in m.tool_calls or [] %}"
# Words for what stands in many of these.
WORDS = {
    "NAME": "{{ c.function.name }}",
    "ARGUMENTS": "{{ c.function.arguments | tojson }}",
    "ITEMS": "{% for k, v in c.function.arguments.items() %}",
    "VALUE": "{{ v if v is string else v | tojson }}",
    "DONE": "{% endfor %}",
    "IF": "{% if m.tool_calls %}",
    "FI": "{% endif %}",
}
SMALL: dict[str, tuple[str, Form | None]] = {
    "hermes": (
        EACH + "{{ '\n' if m.content or not loop.first }}"
        '<tool_call>\n{"name": "NAME", "arguments": ARGUMENTS}\n</tool_call>DONE',
        HERMES,
    ),
    "qwen coder": (
        EACH + "{{ '\n' }}<tool_call>\n<function=NAME>\nITEMS"
        "<parameter={{ k }}>\nVALUE\n</parameter>\nDONE</function>\n</tool_call>DONE",
        QWEN_CODER,
    ),
    "glm": (
        EACH + "{{ '\n' }}<tool_call>NAME\nITEMS<arg_key>{{ k }}</arg_key>\n<arg_value>VALUE</arg_value>\nDONE</tool_call>DONE",
        GLM,
    ),
    "mistral": (
        "IF[TOOL_CALLS][" + EACH + "{{ c.function | tojson }}{{ ', ' if not loop.last }}DONE]FI",
        MISTRAL,
    ),
    "new mistral": (
        EACH + "[TOOL_CALLS]NAME[CALL_ID]{{ c.id }}[ARGS]ARGUMENTSDONE",
        NEW_MISTRAL,
    ),
    "kimi": (
        "IF<|tool_calls_section_begin|>" + EACH + "<|tool_call_begin|>functions.NAME:{{ loop.index0 }}"
        "<|tool_call_argument_begin|>ARGUMENTS<|tool_call_end|>DONE<|tool_calls_section_end|>FI",
        KIMI,
    ),
    "deepseek, of arguments that are text": (
        "IF<｜tool▁calls▁begin｜>" + EACH + "{{ '\n' if not loop.first }}<｜tool▁call▁begin｜>{{ c.type }}<｜tool▁sep｜>"
        "{{ c.function.name + '\n```json\n' + c.function.arguments + '\n```' }}<｜tool▁call▁end｜>DONE<｜tool▁calls▁end｜>FI",
        DEEPSEEK,
    ),
    "command": (
        "IF<|START_ACTION|>[" + EACH + '{{ "\n" }}    {"tool_call_id": "{{ loop.index0 }}", "tool_name": "NAME", '
        '"parameters": ARGUMENTS}{{ "," if not loop.last }}DONE{{ "\n" }}]<|END_ACTION|>FI',
        COMMAND,
    ),
    "one call only": (
        "{% if m.tool_calls and m.tool_calls | length > 1 %}{{ raise_exception('One.') }}FI"
        + EACH
        + '{"name": "NAME", "parameters": ARGUMENTS}DONE',
        LLAMA,
    ),
    "told in words": ("{# Answer by <|tool_call|> and a list. #}", GRANITE),
    "none": ("", None),
    "not a form": (EACH + "<call NAME/>DONE", None),
    "keys as tags": (
        EACH + "<c>NAMEITEMS<{{ k }}>{{ v }}</{{ k }}>DONE</c>DONE",
        None,
    ),
    "goes on with instructions": (
        EACH + "<c>NAME:ARGUMENTS</c>{{ 'And so on. ' * 30 }}DONE",
        None,
    ),
}


def source_of(calls: str) -> str:
    for word, meaning in WORDS.items():
        calls = calls.replace(word, meaning)
    return TURNS + calls + END


def template_of(calls: str) -> ChatTemplate:
    return ChatTemplate(source_of(calls), bos="", eos="")


@pytest.mark.parametrize(("calls", "form"), SMALL.values(), ids=SMALL)
def test_a_form_is_seen_from_what_a_template_makes_of_calls(calls: str, form: Form | None) -> None:
    assert form_of(template_of(calls)) == form


def test_the_channels_of_gpt_oss_are_known_by_name() -> None:
    header = "<|start|>assistant to=functions.NAME<|channel|>commentary json<|message|>"
    assert form_of(template_of(EACH + header + "ARGUMENTS<|call|>DONE")) is HARMONY


@pytest.mark.parametrize("end", ["<|im_end|>", ""])
def test_a_token_that_ends_answers_ends_no_call(tmp_path: Path, end: str) -> None:
    calls = f"{EACH}<c>NAME:ARGUMENTS</c>DONEIF{end}FI"
    with Model(write_tiny_model(tmp_path / "model.gguf", chat_template=source_of(calls)), threads=1) as model:
        form = form_for(model)
        assert form is not None
        assert (form.begin, form.tail, form.closing) == ("<c>", "</c>", "")


def test_a_call_behind_the_end_of_an_answer_is_none(tmp_path: Path) -> None:
    calls = EACH + "<|im_end|>\n{{ c.function | tojson }}{% endfor %}"
    with Model(write_tiny_model(tmp_path / "model.gguf", chat_template=source_of(calls)), threads=1) as model:
        assert form_for(model) is None


# What Python writes as JSON does.
PLAIN: tuple[tuple[str, dict[str, Any]], ...] = (
    ("get_weather", {"city": "red sea", "days": 3}),
    ("get_weather", {"city": "blue"}),
)


def _described(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A tool with all that some templates cannot do without."""
    kinds = {
        key: "string" if isinstance(value, str) else "object" if isinstance(value, dict) else "integer"
        for key, value in arguments.items()
    }
    properties = {
        key: {"type": kind, "description": "An argument.", "additionalProperties": False} for key, kind in kinds.items()
    }
    parameters = {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "description": "A tool.", "parameters": parameters}}


def _templates() -> list[Any]:
    missing = pytest.mark.skip(reason="llama.cpp's source is not here: `make bench-tools` unpacks it")
    return sorted(TEMPLATES.glob("*.jinja")) or [pytest.param(TEMPLATES, marks=missing)]


@pytest.mark.parametrize("path", _templates(), ids=lambda path: path.stem)
def test_calls_in_a_conversation_are_read_back_as_they_were(path: Path) -> None:
    """All templates of llama.cpp's source: what one writes of a call is read back, and let through by the grammar."""
    template = ChatTemplate(path.read_text(encoding="utf-8"), bos="<s>", eos="</s>")
    form = form_of(template)
    if path.stem in EXPLAINED or path.stem in TOLD:
        assert form == TOLD.get(path.stem)
        return
    assert form is not None, "a new template: add it to those that are explained, and say why"
    several = form.between is not None and form.kind != "bare"
    for several_calls in (CALLS, PLAIN):
        calls = several_calls if several else several_calls[:1]
        turns = [
            Message("user", "Hello"),
            Message("assistant", "", tool_calls=tuple(Called(*call, f"call1234{place}") for place, call in enumerate(calls))),
            *(Message("tool", "A result.", name=name, tool_call_id=f"call1234{place}") for place, (name, _) in enumerate(calls)),
        ]
        prompt = template.render(turns, tools=[_described(*call) for call in CALLS])
        reply = prompt[prompt.rindex("Hello") : prompt.index("A result.")]
        if form.kind == "bare":
            reply = reply[reply.index("{") :]
        if form is HARMONY:
            reply = reply.replace("<|call|>", "\n")
        parser = ToolCallParser(form, TOOLS)
        found = [*parser.push(reply), *parser.finish()]
        assert [one for one in found if isinstance(one, ToolCall)] == called(*calls)
    if form is HARMONY or path.stem in INDENTED:
        return  # The first one's marks are tokens throughout.
    # The last turn of a conversation, as an answer has it; a conversation that goes on may show more of each call.
    last = template.render(turns[:2], tools=[_described(*call) for call in CALLS], header=False)
    pattern = "[a-zA-Z0-9]+".join(map(re.escape, written(form, *calls, identity=IDENTITY).split(IDENTITY)))
    shown = re.search(pattern, last)
    assert shown is not None, (pattern, last)
    assert follows(tool_grammar(form, TOOLS, choice="required"), shown[0])
