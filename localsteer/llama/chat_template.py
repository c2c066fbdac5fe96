"""Render messages through the chat template that a model file carries."""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from types import MappingProxyType
from typing import Any, Literal, get_args

from localsteer.llama.control_tokens import TextGuard
from localsteer.llama.given import CALL_STYLES, CallStyle, Given
from localsteer.llama.layout import layout_of
from localsteer.llama.template_errors import RefusedError, TemplateError
from localsteer.llama.thinking import Thinking, find_thinking

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True)
class ToolCall:
    """A function that the assistant calls.

    Attributes:
        name: of the function.
        arguments: by name, as JSON values.
        id: by which the result refers to it.
    """

    name: str
    arguments: Mapping[str, Any]
    id: str | None = None


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: whose.
        content: the text.
        reasoning: what the assistant thought before it; None for nothing.
        tool_calls: what the assistant calls.
        name: of the tool, or of who speaks.
        tool_call_id: the call that a tool's turn answers.
    """

    role: Role
    content: str
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    name: str | None = None
    tool_call_id: str | None = None


# transformers' own: templates know it.
_CONTINUED = "CONTINUE_FINAL_MESSAGE_TAG "
# Tried as a text, to see where a template puts it; some change the case.
_MARK, _OTHER = "mark7f3a", "other7f3a"
_HELLO = Message("user", "Hello")
# What `render` gives of its own accord.
_OWN = {"messages", "tools", "add_generation_prompt", "bos_token", "eos_token", "strftime_now"}
# Whether to think: the variable of Qwen, GLM and most others, and that of Granite and DeepSeek.
SWITCHES = ("enable_thinking", "thinking")


class ChatTemplate:
    """A model's template.

    Args:
        template: jinja source, from `tokenizer.chat_template`, or the name of one of llama.cpp's layouts.
        bos: text of the beginning-of-sequence token, which many templates print.
        eos: text of the end-of-sequence token.
        with_tools: the template for conversations with tools, of a model that has one of its own for them.
        of_ollama: it is one of Ollama's, in the language of Go's text/template.

    Attributes:
        variables: what it may be given besides the conversation, such as `enable_thinking`.

    Raises:
        TemplateError: it is neither valid jinja nor such a name.
    """

    def __init__(
        self, template: str, *, bos: str, eos: str, with_tools: ChatTemplate | None = None, of_ollama: bool = False
    ) -> None:
        self._source = template
        self._layout = layout_of(template, of_ollama=of_ollama)
        self._constants = {"documents": None, "bos_token": bos, "eos_token": eos}
        self._with_tools = with_tools
        self._parts: dict[str, bool] = {}
        self.variables = self._layout.variables - _OWN

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        think: bool | None = None,
        guard: TextGuard | None = None,
        variables: Mapping[str, object] = MappingProxyType({}),
        header: bool = True,
        now: datetime | None = None,
    ) -> str:
        """The prompt up to the header of the assistant's next turn; where the last turn is an answer, to the end of its text.

        A template without a system role gets the system text at the head of the first user message. What a template refuses is
        tried in a simpler form: one system text only, and turns that alternate.

        Args:
            messages: the turns.
            tools: what the assistant may call, in OpenAI's form.
            think: whether the model thinks before it answers; None leaves that to the template.
            guard: keeps control tokens out of whatever the template does not write itself.
            variables: what else the template is given.
            header: begin the assistant's next turn.
            now: the time, for templates that tell it; None for one that is always the same.

        Raises:
            TemplateError: the template refuses these messages, leaves one out, or does not know what it is given.
        """
        if tools and self._with_tools is not None:
            return self._with_tools.render(
                messages, tools=tools, think=think, guard=guard, variables=variables, header=header, now=now
            )
        if unknown := next((name for name in variables if name not in self.variables), None):
            raise TemplateError(f"The model's chat template does not know {unknown}.", hint="Leave it out.")
        if think is not None:
            variables = {**self._switched(think), **variables}
        thinking = self.thinking
        # What an answer thought is cut out by the template itself, by its marks; those of channels are gone before.
        kept = (thinking.opens, thinking.closes) if thinking is not None and not thinking.answers else ()
        given = Given(tools, variables, guard, kept, header, now=now)
        refused: TemplateError | None = None
        for turns in self._arrangements(messages):
            try:
                text = self._prompt(turns, given, think=think)
                self._check_whole(text, turns, given)
            except RefusedError as error:
                refused = refused or error
            else:
                return text
        assert refused is not None
        raise refused

    # ---- what is known of it

    @property
    def for_tools(self) -> ChatTemplate:
        """The one that conversations with tools are rendered by."""
        return self._with_tools or self

    @functools.cached_property
    def thinking(self) -> Thinking | None:
        """The marks of the model's reasoning; None where the template has none."""
        return find_thinking(self.written)

    @functools.cached_property
    def opens_thinking(self) -> bool:
        """Whether the header of an answer opens the reasoning, so that the model thinks first unless it is told not to.

        Raises:
            TemplateError: the template cannot be used.
        """
        prompt = self.render([_HELLO])
        return self.thinking is not None and self.thinking.is_open(prompt)

    @functools.cached_property
    def written(self) -> str:
        """All that the template may write: its source, and what it makes of a short conversation."""
        return self._source + self._tried([_HELLO, Message("assistant", "Hello", reasoning="Hello"), _HELLO])

    @functools.cached_property
    def behind_answer(self) -> tuple[str, str]:
        """What it writes behind the last answer of a conversation, and between an answer and the next question."""
        answered = [_HELLO, Message("assistant", _MARK)]
        _, _, last = self._tried(answered, ended=True).rpartition(_MARK)
        _, _, between = self._tried([*answered, Message("user", _OTHER)]).partition(_MARK)
        return last, between.partition(_OTHER)[0]

    @functools.cached_property
    def _switch(self) -> str | None:
        """The variable that turns thinking on and off."""
        for name in SWITCHES:
            if name in self.variables:
                on, off = (self._write([_HELLO], Given(variables={name: value})) for value in (True, False))
                if on != off:
                    return name
        return None

    def _takes_parts(self, role: str) -> bool:
        """Whether the contents of a role have to be lists of parts, because a text does not show.

        Raises:
            RefusedError: what the user says does not show as a list, either.
        """
        if role not in self._parts:
            tried = {"system": [Message("system", _MARK), _HELLO], "assistant": [_HELLO, Message("assistant", _MARK), _HELLO]}
            others = role != "user" and self._takes_parts("user")
            refused = False
            for parts in (False, True) if role != "tool" else ():
                forms = {one: parts if one == role else others for one in get_args(Role)}
                try:
                    if _MARK in self._write(tried.get(role, [Message("user", _MARK)]), Given(), forms=forms).lower():
                        self._parts[role] = parts
                        break
                except RefusedError:
                    refused = True  # It may take other conversations, with tools.
            if role == "user" and role not in self._parts and not refused:
                raise _left_out("user")
            self._parts.setdefault(role, others)
        return self._parts[role]

    @functools.cached_property
    def _call_style(self) -> CallStyle | None:
        """How calls have to be given so that they show; None where they never do, or the template takes them with texts only."""
        called = Message("assistant", "", tool_calls=(ToolCall(_MARK, {_MARK: _OTHER}, "call7f3a0"),))
        turns = [_HELLO, called, Message("tool", _MARK, name=_MARK, tool_call_id="call7f3a0")]
        tool = {
            "type": "function",
            "function": {"name": "tool", "description": "", "parameters": {"type": "object", "properties": {}}},
        }
        for tools in ((), (tool,)):
            for style in CALL_STYLES:
                try:
                    text = self._write(turns, Given(tools, calls=style))
                except RefusedError:
                    continue
                if _OTHER in text.lower():
                    return style
        return None

    @functools.cached_property
    def _has_system_role(self) -> bool:
        # A template may raise on a system message, or drop it in silence: both show when one is tried.
        return _MARK in self._tried([Message("system", _MARK), _HELLO]).lower()

    # ---- turns as it takes them

    def _arrangements(self, messages: Sequence[Message]) -> Iterator[list[Message]]:
        """The turns as they are, as far as the template has a system role; then as stricter templates take them."""
        # Templates with channels refuse the marks of such in a content; others cut the reasoning out by its marks.
        turns = _divided(messages, self.thinking) if self.thinking is not None and self.thinking.answers else list(messages)
        if [turn.role for turn in turns] == ["system"]:
            # Many templates show a system message only together with a user's.
            turns = [replace(turns[0], role="user")]
        if turns and turns[0].role == "system" and not self._has_system_role:
            turns = [replace(turns[0], role="user"), *turns[1:]]
            turns = _joined(turns[:2]) + turns[2:]
        yield turns
        if (apart := _divided(turns, self.thinking)) != turns:
            yield apart
        # One system text, and whatever comes later as a user's.
        head = 1 if turns and turns[0].role == "system" else 0
        while head and head < len(turns) and turns[head].role == "system":
            head += 1
        later = [replace(turn, role="user") if turn.role == "system" else turn for turn in apart[head:]]
        simple = [*_joined(apart[:head]), *_joined(later)]
        if simple != turns:
            yield simple

    # ---- prompts

    def _prompt(self, turns: Sequence[Message], given: Given, *, think: bool | None) -> str:
        if turns and turns[-1].role == "assistant" and not turns[-1].tool_calls:
            return self._continued(turns, given)
        text = self._write(turns, given, ended=not given.header)
        return text if think is not False or not given.header else text + self._skipped(text)

    def _continued(self, turns: Sequence[Message], given: Given) -> str:
        """The prompt up to the end of the last answer's text, as `continue_final_message` of transformers makes it."""
        *before, last = turns
        mark, tagged = _CONTINUED.strip(), replace(last, content=last.content + _CONTINUED)
        try:
            text = self._write([*before, tagged], given, ended=True)
        except RefusedError:
            if not before:
                raise
            text = ""
        # Guarded as it was written: at the end of a text more is guarded than before the mark.
        if mark in text and given.content(tagged.content, tagged.role).rpartition(mark)[0].strip() in text:
            text, _, rest = text.rpartition(mark)
            # Without the blank behind the mark the template trims the text; what stands before it may be trimmed as well.
            return text if (mark + rest).startswith(_CONTINUED) else text.rstrip()
        # A template may show answers to questions only, or cut them.
        text = self._write(before, given)
        return text + self._skipped(text) + given.content(last.content, last.role)

    def _skipped(self, text: str) -> str:
        """What ends the reasoning behind a prompt, or forestalls it."""
        if self.thinking is None or (self._switch is not None and not self.thinking.is_open(text)):
            return ""
        return self.thinking.skipped(text)

    def _switched(self, think: bool) -> dict[str, object]:
        if self._switch is not None:
            return {self._switch: think}
        if think and self.thinking is None:
            raise TemplateError("The model does not think before it answers: its chat template has no place for that.")
        return {}

    def _check_whole(self, text: str, turns: Sequence[Message], given: Given) -> None:
        """Nothing that was said is missing in the prompt.

        Raises:
            RefusedError: something is.
        """
        said = ["" if turn.role == "assistant" else given.content(turn.content, turn.role).strip() for turn in turns]
        missing = {one for one, times in Counter(said).items() if one and text.count(one) < times}
        if missing:
            # They may be there in another form: as JSON, or in other letters.
            marks = {place: f"{_MARK}-{place}-" for place, one in enumerate(said) if one in missing}
            tried = [replace(turn, content=turn.content + marks.get(place, "")) for place, turn in enumerate(turns)]
            marked = self._prompt(tried, given, think=None).lower()
            for place, mark in marks.items():
                if mark not in marked:
                    raise _left_out(turns[place].role)
        if any(given.guarded(call.name) not in text for turn in turns for call in turn.tool_calls):
            raise RefusedError("The model's chat template has no place for calls of tools.")
        names = (str(tool.get("function", tool).get("name", "")) for tool in given.tools)
        if any(given.guarded(name) not in text for name in names):
            raise RefusedError("The model's chat template has no place for tools.")

    def _tried(self, turns: Sequence[Message], *, ended: bool = False) -> str:
        """A prompt, or nothing where the template refuses it."""
        try:
            return self._write(turns, Given(), ended=ended)
        except RefusedError:
            return ""

    def _write(
        self, turns: Sequence[Message], given: Given, *, ended: bool = False, forms: Mapping[str, bool] | None = None
    ) -> str:
        """What the template makes of these turns; not `ended`, with the header of an answer. `forms` says what takes parts."""
        tools = list(given.guarded(given.tools))
        variables = {
            **self._constants,
            **given.dates(self.variables),
            **given.guarded(given.variables),
            "messages": [
                self._document(turn, given, parts=self._takes_parts(turn.role) if forms is None else forms[turn.role])
                for turn in turns
            ],
            "tools": tools or None,
            "add_generation_prompt": not ended,
        }
        try:
            return self._layout.render(variables)
        except RefusedError:
            # Some cannot do without a list of tools; FireFunction has them and the time of day under names of its own.
            functions = json.dumps([tool.get("function", tool) for tool in tools], ensure_ascii=False)
            former = {"functions": functions, "datetime": f"{given.moment:%B %d %Y %H:%M:%S}"}
            return self._layout.render({**former, **variables, "tools": tools})

    def _document(self, turn: Message, given: Given, *, parts: bool) -> dict[str, Any]:
        """A turn as transformers hands it to a template."""
        content: str | None = given.content(turn.content, turn.role)
        thought = {} if turn.reasoning is None else {"reasoning": given.guarded(turn.reasoning, given.kept)}
        style = given.calls or (self._call_style if turn.tool_calls else None) or CALL_STYLES[0]
        if turn.tool_calls and style.no_content:
            content = content or None
        calls = [style.document(call.name, call.arguments, call.id) for call in turn.tool_calls]
        return {
            **({"thinking": thought["reasoning"]} if thought else {}),
            "role": turn.role,
            "content": [{"type": "text", "text": content}] if parts and content is not None else content,
            **thought,
            **({"tool_calls": given.guarded(calls)} if calls else {}),
            **{key: given.guarded(value) for key in ("name", "tool_call_id") if (value := getattr(turn, key)) is not None},
            **({"reasoning_content": thought["reasoning"]} if thought else {}),
        }


def _left_out(role: str) -> RefusedError:
    return RefusedError(f"The model's chat template leaves out what the {role} says.")


def _divided(turns: Sequence[Message], thinking: Thinking | None) -> list[Message]:
    """The turns with the answers in their parts, where the marks of reasoning are still in them."""
    divided = list(turns)
    for place, turn in enumerate(turns):
        if thinking is not None and turn.role == "assistant" and not turn.reasoning:
            reasoning, content = thinking.divided(turn.content)
            divided[place] = replace(turn, content=content, reasoning=reasoning or None)
    return divided


def _joined(turns: Sequence[Message]) -> list[Message]:
    """Turns of which no two texts of the same role follow each other."""
    joined: list[Message] = []
    for turn in turns:
        last = joined[-1] if joined else None
        if last is not None and last.role == turn.role != "tool" and not last.tool_calls:
            joined[-1] = replace(turn, content=f"{last.content}\n\n{turn.content}")
        else:
            joined.append(turn)
    return joined
