"""A session <-> a transcript of it, and every conversation kept while it goes on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

from localsteer.chat.conversation import Reply
from localsteer.chat.history import History
from localsteer.chat.session import Session
from localsteer.chat.transcript import SavedMessage, Transcript, brief
from localsteer.errors import LocalsteerError
from localsteer.llama.chat_template import Message
from localsteer.steering.expression import parse_steering

Writes = Callable[[History, int], object]


def transcript_of(session: Session, question: str | None = None) -> Transcript:
    """The conversation as it is, with a question that is being answered."""
    conversation, model = session.conversation, session.opened.model
    messages = [_saved(turn) for turn in conversation.turns]
    if question is not None:
        messages.append(SavedMessage("user", question))
    return Transcript(
        tuple(messages),
        system=conversation.system,
        steering=str(session.steering),
        mode=conversation.mode,
        policy=session.policy_file,
        think=conversation.think,
        max_tokens=conversation.max_tokens,
        sampling=conversation.sampling,
        model=model.name,
        model_path=str(model.path),
        fingerprint=model.fingerprint,
        created=session.created,
    )


def _saved(turn: Message) -> SavedMessage:
    if isinstance(turn, Reply):
        return SavedMessage("assistant", turn.content, turn.reasoning, turn.cut, turn.steering)
    return SavedMessage("assistant" if turn.role == "assistant" else "user", turn.content, turn.reasoning)


def go_on(session: Session, transcript: Transcript, *, steering: bool = True) -> Iterator[str]:
    """Go on with a conversation that was kept or saved.

    Args:
        session: the chat; where the conversation cannot go on in it, it is as it was.
        transcript: the conversation.
        steering: take its steering as well, besides its other settings.

    Yields:
        What is to be known.

    Raises:
        LocalsteerError: its steering cannot be had on this model.
    """
    conversation, model = session.conversation, session.opened.model
    plan = session.plan_for(parse_steering(transcript.steering), transcript.mode) if steering else None
    conversation.plan = None
    session.set_mode(transcript.mode)
    conversation.plan = plan
    conversation.system = transcript.system
    try:
        conversation.set_think(transcript.think)
    except LocalsteerError as error:
        yield str(error)
    conversation.sampling, conversation.max_tokens = transcript.sampling, transcript.max_tokens
    if transcript.fingerprint is not None and transcript.fingerprint.content != model.fingerprint.content:
        yield f"This conversation was had with {transcript.model}; {model.name} goes on with it."
    if (transcript.policy or None) != session.policy_file:
        yield f"It was under {f'the policy {transcript.policy}' if transcript.policy else 'no policy'}."
    session.created = transcript.created
    said = [one for one in transcript.messages if one.text.strip()]
    pairs = [(one, two) for one, two in itertools.pairwise(said) if (one.role, two.role) == ("user", "assistant")]
    turns: list[Message] = []
    for question, answer in pairs:
        reply = Reply("assistant", answer.text, answer.reasoning, cut=answer.cut, steering=answer.steering)
        turns += [Message("user", question.text), reply]
    conversation.take_up(turns)
    counted = f"{len(pairs)} question{'' if len(pairs) == 1 else 's'} and answer{'' if len(pairs) == 1 else 's'}"
    yield f"{transcript.title or 'The conversation'}: {counted}."
    if pairs and pairs[-1][1].cut:
        yield "The last answer was cut; /retry answers once more."
    if said and said[-1].role == "user":
        yield f"Not answered yet: {brief(said[-1].text)}"


class Keeper:
    """Keeps the conversation of a session as it goes. What it cannot write never ends a chat: it is told once.

    Args:
        path: the database; None is the user's.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._history: History | None = None
        self._id: int | None = None
        self.failure: str | None = None
        self.is_new = False
        self._fails = False
        try:
            self._history = History(path)
            self.is_new = not self._history.entries(limit=1)
        except LocalsteerError as error:
            self.failure = f"This conversation is not kept: {error}"

    def close(self) -> None:
        """The chat is over."""
        if self._history is not None:
            if self._id is not None:
                self._try(lambda history, id: history.finish(id))
            if self._history is not None:
                self._history.close()

    @property
    def file(self) -> Path | None:
        """The database; None where nothing is kept."""
        return self._history.path if self._history is not None else None

    def resume(self, number: int | None) -> Transcript:
        """A kept conversation, which the next messages go on with.

        Args:
            number: which; None for the latest.

        Raises:
            LocalsteerError: there is none.
        """
        if self._history is None:
            raise LocalsteerError(self.failure or "Nothing is kept.")
        if number is None:
            entries = self._history.entries(limit=1)
            if not entries:
                raise LocalsteerError("There is no conversation to go on with yet.")
            number = entries[0].id
        transcript = self._history.read(number)
        self._id = number
        return transcript

    def leave(self) -> None:
        """What follows is another conversation."""
        if self._id is not None:
            self._try(lambda history, id: history.finish(id))
        self._id = None

    def keep(self, session: Session, question: str | None = None) -> None:
        """Write the conversation as it is now, with a question that is about to be answered."""
        transcript = transcript_of(session, question)
        if self._history is None or (self._id is None and not transcript.messages):
            return
        try:
            if self._id is None:
                self._id = self._history.begin(transcript)
            else:
                self._id = self._history.write(self._id, transcript)
            self._fails = False
        except LocalsteerError as error:
            self._give_up(error)

    def grow(self, piece: str, reasoning: bool) -> None:
        """A piece of the answer that is being written."""
        self._try(lambda history, id: history.grow(id, piece, thought=reasoning))

    def _try(self, write: Writes) -> None:
        if self._history is None or self._id is None or self._fails:
            return
        try:
            write(self._history, self._id)
        except LocalsteerError as error:
            self._give_up(error)

    def _give_up(self, error: LocalsteerError) -> None:
        """Until the next message: another program may have held the database for long."""
        if not self._fails:
            self.failure = f"This conversation is not kept just now: {error}"
        self._fails = True

    def told(self) -> str | None:
        """What went wrong, once."""
        failure, self.failure = self.failure, None
        return failure
