"""What the references of chat templates are made of: small templates, each for a part of the rules, and conversations.

`make_templates.py` renders them with transformers, `tests/llama/test_template_references.py` with ours.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

BOS, EOS = "<s>", "</s>"
NOW = datetime(2026, 2, 3, 14, 5, 6)

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a place, in °C.",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "description": 'A town, such as "Zürich"'},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            },
            "required": ["place"],
        },
    },
}


@dataclass(frozen=True)
class Conversation:
    """Messages as a program sends them, and what goes with them; the last answer, if any, is to be continued."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] = field(default_factory=list)
    think: bool | None = None


def digest(prompt: str) -> str:
    """What the reference holds of a long prompt."""
    return hashlib.sha256(prompt.encode()).hexdigest()[:16]


def _says(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


_ASKED = _says("user", "What is the weather in Zürich?")
_CALLED = _says(
    "assistant",
    "",
    tool_calls=[
        {"id": "call12345", "type": "function", "function": {"name": "get_weather", "arguments": {"place": "Zürich", "days": 2}}}
    ],
)
_RESULT = _says("tool", '{"degrees": 7, "sky": "grey"}', name="get_weather", tool_call_id="call12345")

CONVERSATIONS = {
    "question": Conversation([_says("user", "Where is the harbour?")]),
    "system": Conversation([_says("system", "You are a sailor. Be brief."), _says("user", "Where is the harbour?")]),
    "empty system": Conversation([_says("system", ""), _says("user", "Where is the harbour?")]),
    "turns": Conversation(
        [
            _says("system", "Be brief."),
            _says("user", "  Two lines,\nindented  \n"),
            _says("assistant", "An answer.\n\nWith a paragraph."),
            _says("user", "And?"),
            _says("assistant", "Nothing."),
            _says("user", "Go on."),
        ]
    ),
    "unicode": Conversation(
        [
            _says("user", "Grüße! 漢字 שלום 🎉 <b>\"bold\"</b> & 'single' \\n {{ braces }} {% tags %}"),
            _says("assistant", "é 🎈"),
            _says("user", "Ça va?"),
        ]
    ),
    "tools": Conversation([_says("system", "Be brief."), _ASKED], tools=[WEATHER]),
    "tool result": Conversation([_ASKED, _CALLED, _RESULT], tools=[WEATHER]),
    "after a tool": Conversation(
        [_ASKED, _CALLED, _RESULT, _says("assistant", "Grey, 7 °C."), _says("user", "Thanks!")], tools=[WEATHER]
    ),
    "begun answer": Conversation([_says("user", "Count to five."), _says("assistant", "One, two,")]),
    "reasoning": Conversation(
        [
            _says("user", "What is 2 + 2?"),
            _says("assistant", "Four.", reasoning="Two and two are four."),
            _says("user", "And 3 + 3?"),
        ]
    ),
    "no thinking": Conversation([_says("user", "Where is the harbour?")], think=False),
}

SMALL_TEMPLATES = {
    "blocks": """
    {% for m in messages %}
        {% if m.role == 'user' %}
    U: {{ m.content }}
        {%- elif m['role'] == "assistant" %}
    A: {{- m.content | trim }}
        {% else %}
    {{ m.role }}={{ m.content }}
        {% endif %}
    {% endfor %}
    {% if add_generation_prompt %}A:{% endif %}
""",
    "generation": """{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{% set inner = 'x' %}
{{ m.content }}{{ eos_token }}{% endgeneration %}[{{ inner }}]{% else %}
<{{ m.role }}>{{ m.content }}{% endif %}{% endfor %}""",
    "json": """{% for m in messages %}{{ m | tojson }}|{{ m.content | tojson(ensure_ascii=True) }}
{{ m | tojson(indent=2) }}
{% endfor %}{{ tools | tojson(separators=(',', ':'), sort_keys=true) if tools else 'none' }}""",
    "loop controls": """{% for m in messages %}{% if m.role == 'tool' %}{% continue %}{% endif %}
{{ loop.index0 }}/{{ loop.length }}
{{- '' if loop.first else loop.previtem.role }}:{{ m.content }};
{%- if loop.last %}{% break %}{% endif %}{% endfor %}""",
    "namespaces": """{% set ns = namespace(n=0, text='') %}{% macro turn(m, mark='#') %}{{ mark ~ m.role }} {{ m.content }}
{% endmacro %}{% for m in messages if m.content %}{% set ns.n = ns.n + 1 %}
{% set ns.text = ns.text ~ turn(m) ~ caller %}{% endfor %}
{{ ns.text }}{{ ns.n }}{{ '-' * 3 }}{{ '%s and %d' % ('s', 4) }}{{ '{:>5}'.format(3) }}{{ messages[1:] | length }}""",
    "dates": """{{ strftime_now('%d %b %Y') }} {{ documents is none }} {{ enable_thinking | default('unset') }}
{% for m in messages %}{{ m.role }}: {{ m.content }}{{ m.name or '' }}
{% endfor %}""",
    "strict": """{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Turns must alternate!') }}{% endif %}
{{ '[INST] ' + m.content + ' [/INST]' if m.role == 'user' else ' ' + m.content + eos_token }}
{%- endfor %}""",
    "filters": """{% for m in messages %}{{ m.content | upper | replace('E', '3') | indent(2, true) }}
{%- for key, value in m | dictsort %} {{ key }}={{ value | string | truncate(9) }}{% endfor %}{{ m.content.split() | join('_') }}
{% endfor %}{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | list | last }}
{{- messages | map(attribute='role') | unique | sort | join(',') }}""",
}
