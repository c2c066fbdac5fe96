"""Prompts of `/api/generate` alone: by a template of the request's own, and behind the context of an earlier answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from localsteer.engine.phases import division_of
from localsteer.engine.request import Answer
from localsteer.llama.chat_template import ChatTemplate, Message
from localsteer.llama.model import Model
from localsteer.llama.template_errors import TemplateError
from localsteer.reading.prompt import changed_span, chat_stop
from localsteer.server.answers import Prompt, RequestError, Service
from localsteer.server.reply import Reading


def templated_prompt(service: Service, turns: Sequence[Message], source: str) -> Prompt:
    """The prompt that a template in Ollama's form makes of turns, the last of which is the user's.

    Raises:
        RequestError: the template cannot be read, or refuses them.
    """
    model = service.model

    def tokens_of(turns: Sequence[Message]) -> tuple[int, ...]:
        guard = model.template_tokens.guard()
        return tuple(model.template_tokens.tokenize(template.render(turns, guard=guard), guard))

    try:
        template = ChatTemplate(source, bos=model.bos_text, eos=model.eos_text, of_ollama=True)
        tokens = tokens_of(turns)
    except TemplateError as error:
        raise RequestError(error.message, "template", hint=error.hint) from error
    span = changed_span(tokens, tokens_of, turns, len(turns) - 1) if service.gated else None
    return Prompt(tokens, turns[-1].content, span, chat_stop(model), Reading(division_of(model, tokens)))


def going_on(service: Service, context: Sequence[int], prompt: Prompt) -> Prompt:
    """The prompt behind all that was read and said before, as an answer's `context` has it.

    Raises:
        RequestError: that holds what is no token of the model.
    """
    model = service.model
    if wrong := next((token for token in context if not 0 <= token < model.n_vocab), None):
        raise RequestError(f"{wrong} is no token of this model.", "context")
    ended = model.chat_template.behind_answer[0] if model.chat_template is not None else ""
    before = [*context, *(model.tokenize(ended, add_special=False) if ended else ())]
    begins = model.control_tokens_in(model.bos_text).get(model.bos_text)
    rest = prompt.tokens[1:] if prompt.tokens[:1] == (begins,) else prompt.tokens
    moved = len(before) + len(rest) - len(prompt.tokens)
    span = (prompt.span[0] + moved, prompt.span[1] + moved) if prompt.span is not None else None
    return replace(prompt, tokens=(*before, *rest), span=span)


def said_tokens(model: Model, answer: Answer) -> list[int]:
    """The tokens of an answer, without the one that ended it."""
    return [token for token in answer.tokens if not model.is_end(token)]
