from __future__ import annotations

import ctypes
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import pytest

from localsteer.llama import library
from localsteer.llama.chat_template import ChatTemplate, Message, ToolCall
from localsteer.llama.control_tokens import ControlTokens, TextGuard
from localsteer.llama.jinja_sandbox import Program
from localsteer.llama.template_errors import TemplateError
from tests.tiny_models import CHATML_TEMPLATE

SYSTEM = Message("system", "Be brief.")
USER = Message("user", "Hello")
ASSISTANT = Message("assistant", "Hi!")

TURNS = "{% for message in messages %}[{{ message.role }}] {{ message.content }}\n{% endfor %}"
REFUSES_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + TURNS
DROPS_SYSTEM = TURNS.replace("in messages %}", "in messages if message.role != 'system' %}")


def render(template: str, *messages: Message) -> str:
    return ChatTemplate(template, bos="<s>", eos="</s>").render(messages)


def test_a_conversation_ends_with_the_header_of_the_next_answer() -> None:
    assert render(CHATML_TEMPLATE, SYSTEM, USER, ASSISTANT, USER) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nHello<|im_end|>\n"
        "<|im_start|>assistant\nHi!<|im_end|>\n"
        "<|im_start|>user\nHello<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_a_template_prints_the_models_own_special_tokens() -> None:
    assert render("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}", USER) == "<s>Hello</s>"


@pytest.mark.parametrize("template", [DROPS_SYSTEM, REFUSES_SYSTEM], ids=["drops", "refuses"])
def test_a_template_without_a_system_role_gets_the_text_with_the_first_question(template: str) -> None:
    expected = "[user] Be brief.\n\nHello\n[assistant] Hi!\n[user] Hello\n"
    assert render(template, SYSTEM, USER, ASSISTANT, USER) == expected


@pytest.mark.parametrize("template", [DROPS_SYSTEM, REFUSES_SYSTEM], ids=["drops", "refuses"])
def test_a_template_without_a_system_role_gets_a_lone_system_text_as_a_question(template: str) -> None:
    assert render(template, SYSTEM) == "[user] Be brief.\n"
    assert render(template, SYSTEM, ASSISTANT, USER) == "[user] Be brief.\n[assistant] Hi!\n[user] Hello\n"


def test_a_conversation_without_a_system_text_is_left_alone() -> None:
    assert render(DROPS_SYSTEM, USER, ASSISTANT, USER) == "[user] Hello\n[assistant] Hi!\n[user] Hello\n"


def test_a_template_that_is_no_jinja_is_an_error() -> None:
    with pytest.raises(TemplateError, match="not valid jinja"):
        ChatTemplate("{% for message in messages %}", bos="", eos="")


def test_a_refused_conversation_says_why() -> None:
    template = "{% if messages[0].role == 'assistant' %}{{ raise_exception('Roles must alternate') }}{% endif %}" + TURNS
    with pytest.raises(TemplateError, match=r"Roles must alternate\.$"):
        render(template, ASSISTANT)


def test_a_template_cannot_reach_into_python() -> None:
    with pytest.raises(TemplateError, match="__class__"):
        render("{{ messages.__class__.__mro__[-1].__subclasses__() }}", USER)


# ---- what a template does not take as it is

PARTS = "{% for m in messages %}<|{{ m.role }}|>{% for part in m.content %}{{ part.text }}{% endfor %}<|end|>{% endfor %}"
FIRST_PART = "{% for m in messages %}[{{ m.role }}]{{ m['content'][0]['text'] }}{% endfor %}"
STRICT = (
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}{{ raise_exception('One system message') }}{% endif %}"
    "{% if not loop.first and loop.previtem.role == m.role %}{{ raise_exception('Alternate') }}{% endif %}"
    "[{{ m.role }}] {{ m.content }}\n{% endfor %}"
)


@pytest.mark.parametrize("template", [PARTS, FIRST_PART], ids=["a loop over parts", "the first part"])
def test_a_template_that_walks_over_parts_gets_parts(template: str) -> None:
    prompt = render(template, SYSTEM, USER, ASSISTANT, Message("user", "Where is the harbour?"))
    assert all(text in prompt for text in ("Be brief.", "Hello", "Hi!", "Where is the harbour?"))


def test_each_role_gets_the_form_that_shows_its_text() -> None:
    template = (
        "{% for m in messages %}[{{ m.role }}]{% if m.role == 'user' %}{% for part in m.content %}{{ part.text }}{% endfor %}"
        "{% else %}{{ m.content }}{% endif %}{% endfor %}"
    )
    assert render(template, SYSTEM, USER, ASSISTANT, USER) == "[system]Be brief.[user]Hello[assistant]Hi![user]Hello"


@pytest.mark.parametrize("template", ["{{ bos_token }}Hello", "{% for m in messages %}{{ m.role }}{% endfor %}", "Hello"])
def test_a_template_without_the_users_text_is_refused(template: str) -> None:
    with pytest.raises(TemplateError, match="leaves out what the user says"):
        render(template, USER)


def test_a_text_that_a_template_drops_now_and_then_is_refused() -> None:
    template = "{% for m in messages if 'secret' not in m.content %}{{ m.content }}{% endfor %}"
    assert render(template, USER) == "Hello"
    with pytest.raises(TemplateError, match="leaves out what the user says"):
        render(template, USER, ASSISTANT, Message("user", "A secret question"))


def test_a_text_in_other_letters_is_in_the_prompt() -> None:
    assert render("{% for m in messages %}{{ m.content | upper }}{% endfor %}", USER) == "HELLO"


def test_a_template_that_wants_a_list_of_tools_gets_an_empty_one() -> None:
    assert render("{% for tool in tools %}{{ tool.name }}{% endfor %}" + TURNS, USER) == "[user] Hello\n"


def test_two_messages_of_one_role_become_one_where_turns_must_alternate() -> None:
    assert render(STRICT, SYSTEM, SYSTEM, USER, USER) == "[system] Be brief.\n\nBe brief.\n[user] Hello\n\nHello\n"


def test_a_later_system_message_joins_the_users_where_there_may_be_only_one() -> None:
    expected = "[system] Be brief.\n[user] Hello\n[assistant] Hi!\n[user] Be brief.\n\nHello\n"
    assert render(STRICT, SYSTEM, USER, ASSISTANT, SYSTEM, USER) == expected
    # Where there may be several, they stay.
    assert render(CHATML_TEMPLATE, SYSTEM, USER, ASSISTANT, SYSTEM, USER).count("<|im_start|>system") == 2


def test_what_no_arrangement_helps_is_refused_with_the_first_reason() -> None:
    with pytest.raises(TemplateError, match=r"Tools are not mine\.$"):
        render(
            "{% if messages | length > 1 %}{{ raise_exception('Tools are not mine.') }}{% endif %}" + TURNS, USER, ASSISTANT, USER
        )


# ---- names of llama.cpp's layouts, and Ollama's templates


def test_a_name_of_llama_cpps_list_is_its_layout() -> None:
    assert render("rwkv-world", USER) == "User: Hello\n\nAssistant:"
    assert render("chatml", SYSTEM, USER) == render(CHATML_TEMPLATE, SYSTEM, USER)
    long = Message("user", "ü" * 10_000)
    assert render("chatml", long) == render(CHATML_TEMPLATE, long)


def test_every_layout_of_llama_cpps_list_shows_all_that_is_said() -> None:
    names = (ctypes.c_char_p * 200)()
    count = library.load().llama_chat_builtin_templates(names, 200)
    assert count > 50
    for name in names[:count]:
        assert name is not None
        prompt = render(name.decode(), SYSTEM, USER, ASSISTANT, Message("user", "Where?"))
        assert all(text in prompt for text in ("Be brief.", "Hello", "Hi!", "Where?")), name


OLLAMA_CHATML = (
    "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}"
    "{{ if .Prompt }}<|im_start|>user\n{{ .Prompt }}<|im_end|>\n{{ end }}<|im_start|>assistant\n{{ .Response }}<|im_end|>\n"
)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (OLLAMA_CHATML, render(CHATML_TEMPLATE, SYSTEM, USER, ASSISTANT, USER)),
        (
            "{{- if .System }}{{ .System }}\n\n{{ end -}}\n ### Instruction:\n{{ .Prompt }}\n\n### Response:\n",
            "Be brief.\n\n### Instruction:\nHello\n\n### Response:\nHi!### Instruction:\nHello\n\n### Response:\n",
        ),
        ("{{ range .Messages }}<|im_start|>{{ .Role }}{{ end }}", render("chatml", SYSTEM, USER, ASSISTANT, USER)),
    ],
    ids=["ChatML", "with trimmed blanks", "known by its marks"],
)
def test_a_template_of_ollama_is_read(template: str, expected: str) -> None:
    assert ChatTemplate(template, bos="", eos="", of_ollama=True).render([SYSTEM, USER, ASSISTANT, USER]) == expected


@pytest.mark.parametrize("template", ["{{ range .Messages }}{{ .Content }}{{ end }}", "Hello {{ .System }}", "{{ if .Prompt }}"])
def test_a_template_of_ollama_that_cannot_be_read_is_refused(template: str) -> None:
    with pytest.raises(TemplateError, match="Ollama's form"):
        ChatTemplate(template, bos="", eos="", of_ollama=True)


def test_blanks_in_a_template_of_ollama_cost_no_time() -> None:
    blanks = " " * 10**4  # of which a pattern that tries every division would not see the end
    template = ChatTemplate(f"{{{{{blanks}.Prompt{blanks}}}}}{{{{{blanks}", bos="", eos="", of_ollama=True)
    assert template.render([USER]) == "Hello{{" + blanks


# ---- going on with an answer


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHATML_TEMPLATE, "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nHi! "),
        ("{% for m in messages %}{{ m.role[0] }}: {{ m.content | trim }};{% endfor %}", "u: Hello;a: Hi!"),
        ("{% for m in messages if m.role == 'user' %}[{{ m.content }}]{% endfor %}", "[Hello]Hi! "),
        ("chatml", "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nHi! "),
    ],
    ids=["as it is", "trimmed", "where answers are not shown", "a named layout"],
)
def test_the_last_answer_is_gone_on_with(template: str, expected: str) -> None:
    assert render(template, USER, Message("assistant", "Hi! ")) == expected


def test_an_answer_that_ends_like_a_control_token_is_gone_on_with_where_it_stands() -> None:
    template = ChatTemplate("{% for m in messages %}{{ m.role[0] }}: {{ m.content }}!{% endfor %}", bos="", eos="")
    guard = TextGuard(ControlTokens({"<|im_end|>"}))
    assert template.render([USER, Message("assistant", "if a <")], guard=guard) == "u: Hello!a: if a <"


def test_what_stands_behind_an_answer_is_known() -> None:
    last, between = ChatTemplate(CHATML_TEMPLATE, bos="", eos="").behind_answer
    assert (last, between) == ("<|im_end|>\n", "<|im_end|>\n<|im_start|>user\n")


# ---- tools

CALL = Message("assistant", "", tool_calls=(ToolCall("get_time", {"zone": "UTC"}, "call_1"),))
RESULT = Message("tool", "12:00", name="get_time", tool_call_id="call_1")
TIME = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object"}}}
TOOLS = (
    "{% for tool in tools or [] %}<{{ tool.function.name }}>{% endfor %}{% for m in messages %}[{{ m.role }}] {{ m.content }}"
    "{% for call in m.tool_calls or [] %}{{ call.id }}={{ call.function | tojson }}{% endfor %}{{ m.tool_call_id }}\n{% endfor %}"
)


def test_calls_and_results_are_rendered_by_the_template() -> None:
    assert ChatTemplate(TOOLS, bos="", eos="").render([USER, CALL, RESULT], tools=[TIME]) == (
        '<get_time>[user] Hello\n[assistant] call_1={"name": "get_time", "arguments": {"zone": "UTC"}}\n[tool] 12:00call_1\n'
    )


def test_a_template_that_shows_no_tools_or_calls_is_refused() -> None:
    template = ChatTemplate(TURNS, bos="", eos="")
    with pytest.raises(TemplateError, match="no place for tools"):
        template.render([USER], tools=[TIME])
    with pytest.raises(TemplateError, match="no place for calls"):
        template.render([USER, CALL, RESULT])


def test_results_in_another_form_cost_one_more_rendering_together(monkeypatch: pytest.MonkeyPatch) -> None:
    template = ChatTemplate(TOOLS.replace("{{ m.content }}", "{{ m.content | tojson }}"), bos="", eos="")
    results = [Message("tool", f'"{number}"') for number in range(20)]
    template.render([USER, CALL, *results], tools=[TIME])  # what is tried once, is known
    renderings: list[object] = []
    render_once = Program.render

    def render(program: Program, given: Mapping[str, Any]) -> str:
        renderings.append(given)
        return render_once(program, given)

    monkeypatch.setattr(Program, "render", render)
    assert template.render([USER, CALL, *results], tools=[TIME]).count("[tool]") == 20
    assert len(renderings) == 2


def test_a_template_of_its_own_is_used_where_there_are_tools() -> None:
    template = ChatTemplate(TURNS, bos="", eos="", with_tools=ChatTemplate(TOOLS, bos="", eos=""))
    assert template.render([USER]) == "[user] Hello\n"
    assert template.render([USER], tools=[TIME]).startswith("<get_time>")


# ---- thinking

OPENS = CHATML_TEMPLATE.replace("assistant\\n'", "assistant\\n<think>\\n'")
SWITCHED = OPENS + "{% if enable_thinking is defined and not enable_thinking %}{{ '\n</think>\n\n' }}{% endif %}"
CHANNELS = (
    "{% for m in messages %}{% if '<|channel|>' in m.content %}{{ raise_exception('No marks in a content') }}{% endif %}"
    "{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{% endfor %}<|start|>assistant"
)


def test_a_template_that_opens_thinking_is_known() -> None:
    assert ChatTemplate(OPENS, bos="", eos="").opens_thinking
    assert not ChatTemplate(CHATML_TEMPLATE, bos="", eos="").opens_thinking
    assert ChatTemplate(CHATML_TEMPLATE, bos="", eos="").thinking is None


@pytest.mark.parametrize("template", [OPENS, SWITCHED], ids=["closed by us", "by the template's own switch"])
def test_without_thinking_the_answer_stands_behind_the_block(template: str) -> None:
    prompt = ChatTemplate(template, bos="", eos="").render([USER], think=False)
    assert prompt.endswith("assistant\n<think>\n\n</think>\n\n")


def test_with_channels_the_answer_has_one_of_its_own() -> None:
    prompt = ChatTemplate(CHANNELS, bos="", eos="").render([USER], think=False)
    assert prompt.endswith("<|start|>assistant<|channel|>final<|message|>")


def test_a_template_that_refuses_marks_of_reasoning_gets_it_apart() -> None:
    template = (
        "{% for m in messages %}{% if '<think>' in m.content %}{{ raise_exception('Reasoning has a place of its own.') }}"
        "{% endif %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    )
    answer = Message("assistant", "<think>So.</think>\n\nHi!")
    assert render(template, USER, answer, USER) == "[user]Hello[assistant]Hi![user]Hello"


def test_marks_of_channels_are_taken_out_of_earlier_answers() -> None:
    answer = "<|channel|>analysis<|message|>A greeting.<|end|><|start|>assistant<|channel|>final<|message|>Hi!"
    prompt = render(CHANNELS, USER, Message("assistant", answer), USER)
    assert "<|start|>assistant<|message|>Hi!<|end|>" in prompt


def test_a_model_that_does_not_think_cannot_be_asked_to() -> None:
    with pytest.raises(TemplateError, match="does not think"):
        ChatTemplate(CHATML_TEMPLATE, bos="", eos="").render([USER], think=True)


def test_a_variable_that_the_template_does_not_know_is_refused_by_its_name() -> None:
    template = ChatTemplate(SWITCHED, bos="", eos="")
    assert template.render([USER], variables={"enable_thinking": False}).endswith("</think>\n\n")
    with pytest.raises(TemplateError, match="does not know reasoning_effort"):
        template.render([USER], variables={"reasoning_effort": "high"})
    for name in ("messages", "bos_token", "raise_exception", "range"):
        with pytest.raises(TemplateError, match="does not know"):
            ChatTemplate("{{ range(1) }}{{ raise_exception('') }}" + SWITCHED, bos="", eos="").render([USER], variables={name: 1})


def test_reasoning_reaches_the_template_under_all_its_names() -> None:
    template = "{% for m in messages %}{{ m.reasoning_content }}{{ m.thinking }}{{ m.reasoning }}{{ m.content }};{% endfor %}"
    assert render(template, USER, Message("assistant", "Hi!", reasoning="So"), USER) == "Hello;SoSoSoHi!;Hello;"


def test_a_template_is_told_the_time_or_always_the_same() -> None:
    dated = "{{ strftime_now(format='%d %b %Y') }}, {{ date_string | default('some day') }}, {{ datetime | default('then') }}\n"
    template = ChatTemplate(dated + TURNS, bos="", eos="")
    assert template.render([USER]).startswith("26 Jul 2024, some day, then\n")
    now = datetime(2026, 2, 3, 14, 5)
    assert template.render([USER], now=now).startswith("03 Feb 2026, 03 Feb 2026, Feb 03 2026\n")
    assert template.render([USER], now=now, variables={"date_string": "Doomsday"}).startswith("03 Feb 2026, Doomsday, ")
    with pytest.raises(TemplateError, match="does not know strftime_now"):
        template.render([USER], variables={"strftime_now": "x"})
