"""Make the reference that the tests compare our rendering of chat templates with: transformers' own.

This is run by hand, never by the tests, in a virtual environment of its own, with the templates of llama.cpp's source (from the
llama-cpp-python sdist: `make bench-tools` unpacks it)::

    python -m venv reference-venv
    reference-venv/bin/pip install transformers==5.24.0 jinja2==3.1.6
    reference-venv/bin/python tests/reference/make_templates.py PATH/models/templates

It writes `templates.json` beside itself: for each template, named by its file, and the conversations of `conversations.py` in
their order the first 16 digits of the SHA-256 of transformers' prompt, and for our own small templates the prompts themselves.
There is null where transformers raises an error, and where something that was said is not in its prompt, in any form.
"""

from __future__ import annotations

import json
import sys
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import transformers.utils.chat_template_utils as utils
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.reference.conversations import BOS, CONVERSATIONS, EOS, NOW, SMALL_TEMPLATES, Conversation, digest

_MARK = "mark7f3a"


class _Clock(datetime):
    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return NOW


def rendered(template: str, conversation: Conversation, messages: list[dict[str, Any]]) -> str | None:
    """transformers' prompt."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({BOS: 0, EOS: 1}, unk_token=EOS)), bos_token=BOS, eos_token=EOS
    )
    begun = messages[-1]["role"] == "assistant"
    more = {} if conversation.think is None else {"enable_thinking": conversation.think}
    try:
        return str(
            tokenizer.apply_chat_template(
                messages,
                chat_template=template,
                tools=conversation.tools or None,
                tokenize=False,
                add_generation_prompt=not begun,
                continue_final_message=begun,
                **more,
            )
        )
    except Exception as error:  # whatever a template may run into
        print(f"  refused: {type(error).__name__}: {str(error)[:90]!r}")
        return None


def reference(template: str, conversation: Conversation) -> str | None:
    """The prompt, if all that was said is in it."""
    prompt = rendered(template, conversation, conversation.messages)
    if prompt is None:
        return None
    for place, message in enumerate(conversation.messages):
        if message["role"] != "assistant" and message["content"].strip() not in prompt:
            tried = [
                *conversation.messages[:place],
                {**message, "content": message["content"] + _MARK},
                *conversation.messages[place + 1 :],
            ]
            if _MARK not in (rendered(template, conversation, tried) or "").lower():
                print(f"  leaves out what the {message['role']} says")
                return None
    named = [call["function"]["name"] for message in conversation.messages for call in message.get("tool_calls", ())]
    named += [tool["function"]["name"] for tool in conversation.tools]
    if not all(name in prompt for name in named):
        print("  leaves out the tools")
        return None
    return prompt


def _dumped(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def main() -> None:
    """Make the file."""
    utils.datetime = _Clock
    templates = {path.stem: path.read_text(encoding="utf-8") for path in sorted(Path(sys.argv[1]).glob("*.jinja"))}
    document: dict[str, Any] = {
        "source": f"transformers {version('transformers')}, jinja2 {version('jinja2')}",
        "small": {},
        "llama.cpp": {},
    }
    for kind, sources in (("small", SMALL_TEMPLATES), ("llama.cpp", templates)):
        for name, source in sources.items():
            print(name)
            prompts = [reference(source, conversation) for conversation in CONVERSATIONS.values()]
            if kind == "small":
                document[kind][name] = prompts
            else:
                # Another version of llama.cpp may have another template of the name.
                document[kind][f"{name} {digest(source)}"] = [one and digest(one) for one in prompts]
    output = Path(__file__).resolve().parent / "templates.json"
    # A line for each template.
    text = json.dumps(dict.fromkeys(document, ""), ensure_ascii=False, indent=1)
    for kind, prompts in document.items():
        value = _dumped(prompts)
        if isinstance(prompts, dict):
            value = "{\n  " + ",\n  ".join(f"{_dumped(name)}: {_dumped(one)}" for name, one in prompts.items()) + "\n }"
        text = text.replace(f'"{kind}": ""', f'"{kind}": {value}')
    output.write_text(text + "\n", encoding="utf-8")
    print(f"{output.name}: {len(templates)} templates, {document['source']}")


if __name__ == "__main__":
    main()
