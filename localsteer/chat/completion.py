"""What the Tab key offers: commands, vectors with their measured doses, files and models."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document

from localsteer.chat.commands import COMMANDS
from localsteer.chat.session import Session
from localsteer.chat.tables import doses, measured
from localsteer.concepts.names import concepts
from localsteer.discovery import FoundModel, find_models

# The name that is being written at the end of an expression.
_NAME = re.compile(r"[^\s+\-!\"']*$")


class SessionCompleter(Completer):
    """Completes the lines of a chat.

    Args:
        session: the chat.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._files = PathCompleter(expanduser=True)
        self._doses: dict[tuple[str, str], str] = {}
        self._models: Sequence[FoundModel] = ()

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """What may stand at the cursor."""
        text = document.text_before_cursor
        if not text.startswith("/") or "\n" in text:
            return
        name, space, argument = text.partition(" ")
        if not space:
            for command in COMMANDS.values():
                if command.name.startswith(name):
                    yield Completion(command.name, -len(name), display_meta=command.help)
            return
        takes = COMMANDS[name].takes if name in COMMANDS else ""
        if takes == "files":
            yield from self._files.get_completions(Document(argument), complete_event)
        elif takes == "models":
            if not argument or not self._models:
                self._models = find_models()  # which looks through folders, and is not to do so at every key
            for model in self._models:
                if model.name.startswith(argument):
                    yield Completion(model.name, -len(argument), display_meta=model.source)
        elif takes == "vectors":
            written = _NAME.search(argument)
            begun = written[0] if written is not None else ""
            if "/" in begun or begun.startswith((".", "~")):
                yield from self._files.get_completions(Document(begun), complete_event)
                return
            for concept in concepts().values():
                if concept.name.startswith(begun):
                    yield Completion(concept.name, -len(begun), display_meta=self._dose(concept.name))

    def _dose(self, name: str) -> str:
        """What is known of a vector on this model; looked up once, for a menu is drawn at every key."""
        content = self._session.opened.model.fingerprint.content
        key = name, content
        if key not in self._doses:
            concept = concepts()[name]
            found = measured(concept, content)
            self._doses[key] = f"dose {doses(found)}" if found is not None else "built at first use"
        return self._doses[key]
