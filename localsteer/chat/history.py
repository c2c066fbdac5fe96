"""Every conversation of the chat, kept as it goes: a database in the user's data folder.

Each change is written at once, and each token of an answer: a killed process loses what it was about to write. The
write-ahead log lets several chats write at the same time; nothing waits for the disk while an answer is written.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from localsteer.chat.history_database import Database, reason
from localsteer.chat.transcript import SavedMessage, Transcript, displayable, now, one_line, transcript_of
from localsteer.errors import LocalsteerError, shown
from localsteer.files.home import data_folder
from localsteer.files.json_values import build, json_text, read_json


@dataclass(frozen=True)
class Entry:
    """A conversation in the list.

    Attributes:
        id: its number.
        title: the first words of the first question.
        model: the model's name.
        steering: the expression that was set last.
        created: when it was begun, ISO 8601, UTC.
        updated: when something was last said or set.
        messages: how many there are.
        excerpt: around the first of the words that were searched for; empty without a search.
    """

    id: int
    title: str
    model: str
    steering: str
    created: str
    updated: str
    messages: int
    excerpt: str = ""


def history_path() -> Path:
    """Where conversations are kept."""
    return data_folder() / "history.db"


def lines_path() -> Path:
    """Where the lines are that were typed, which the prompt offers again."""
    return history_path().with_name("chat-lines")


class History:
    """The kept conversations. A context manager; its methods may be called by any thread.

    Args:
        path: the database; by default the user's. It is made where there is none, for its owner's eyes only.

    Raises:
        LocalsteerError: it cannot be opened or made, is something else, or a newer localsteer made it.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path if path is not None else history_path()
        self._database = Database(self.path)
        # Of the conversations that are written from here the state in which they were left; None for one without messages.
        self._revisions: dict[int, int | None] = {}
        # Pieces of answers that could not be written yet, because another program wrote.
        self._late: list[tuple[int, str, bool]] = []

    def __enter__(self) -> History:
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the database; nothing is left beside its file."""
        self._database.close()

    def begin(self, transcript: Transcript) -> int:
        """Keep a new conversation, which has a message at least; its number.

        Raises:
            LocalsteerError: it cannot be written.
        """
        if not transcript.messages:
            raise ValueError("A conversation without messages is not kept.")
        with self._database.transaction():
            id, revision = self._put(None, transcript)
        self._revisions[id] = revision
        return id

    def write(self, id: int, transcript: Transcript) -> int:
        """Keep the conversation as it is now: settings and messages, in place of the answer that was being written.

        One without messages is taken out, and comes back under its number with the next message.

        Returns:
            Its number: a new one where another chat went on with the same conversation, so that neither loses anything.

        Raises:
            LocalsteerError: it cannot be written, or was deleted meanwhile.
        """
        with self._database.transaction():
            row = self._row("SELECT revision FROM conversations WHERE id = ?", id)
            known = self._revisions.get(id, row[0] if row is not None else -1)
            if row is None and known is not None:
                raise self._missing(id)
            if row is not None and row[0] != known:
                if not transcript.messages:
                    return id
                kept, revision = self._put(None, transcript)
            else:
                kept, revision = self._put(id, transcript)
        self._revisions[kept] = revision
        return kept

    def grow(self, id: int, text: str, *, thought: bool = False) -> None:
        """Keep a piece of the answer that is being written, behind the pieces before it, until the next `write`.

        Where another program writes just now, it is kept with the next one. Where another chat went on with the conversation,
        the next `write` keeps it, under a number of its own.

        Args:
            id: the conversation, which was begun, written or read before.
            text: what is new.
            thought: whether it belongs to the reasoning.

        Raises:
            LocalsteerError: it cannot be written, or was deleted meanwhile.
        """
        with self._database.told("written"):
            self._late.append((id, text, thought))
            self._write_late()

    def finish(self, id: int) -> None:
        """The chat leaves this conversation: what was written of an answer becomes a message, marked as cut.

        Raises:
            LocalsteerError: it cannot be written.
        """
        with self._database.told("written"):
            self._write_late()
            if self._row("SELECT 1 FROM pieces WHERE conversation = ?", id) is not None:
                self.write(id, self.read(id))

    def read(self, id: int) -> Transcript:
        """A conversation; an answer that was being written is there as far as it came, marked as cut.

        Raises:
            LocalsteerError: there is none of that number, or it cannot be read.
        """
        with self._database.reading():
            row = self._row("SELECT settings, created, updated, revision FROM conversations WHERE id = ?", id)
            if row is None:
                raise self._missing(id)
            messages = self._messages(id)
            if (growing := self._growing(id)) is not None:
                messages.append(growing)
        self._revisions[id] = row[3]
        try:
            transcript = replace(transcript_of(read_json(row[0])), created=row[1], updated=row[2])
        except ValueError as problem:
            raise LocalsteerError(shown(f"The conversation {id} in {self.path} cannot be read: {problem}.")) from problem
        return replace(transcript, messages=tuple(messages))

    def entries(self, words: str = "", limit: int | None = None) -> list[Entry]:
        """The conversations, newest first.

        Args:
            words: only those in which all of these occur, each as the beginning of a word; where there are none, as any part of
                the text.
            limit: how many at most.

        Raises:
            LocalsteerError: they cannot be read.
        """
        wanted = displayable(words).split()
        with self._database.reading():
            if wanted and self._database.has_words:
                quoted = ['"{}"*'.format(word.replace('"', '""')) for word in wanted]
                found = "messages WHERE id IN (SELECT rowid FROM words WHERE words MATCH ?)"
                if entries := self._entries(found, quoted, wanted, limit):
                    return entries
            folded = [word.casefold() for word in wanted]
            return self._entries("messages WHERE instr(casefold(text), ?)", folded, wanted, limit)

    def delete(self, ids: Sequence[int]) -> None:
        """Delete conversations, and their text from the file.

        Raises:
            LocalsteerError: there is none of a number (then nothing is deleted), or they cannot be deleted.
        """
        with self._database.transaction():
            for id in ids:
                if self._row("SELECT 1 FROM conversations WHERE id = ?", id) is None:
                    raise self._missing(id)
            for id in ids:
                self._remove(id)
        self._database.clean()

    def delete_all(self) -> int:
        """Delete all conversations, and their text from the file; how many there were.

        Raises:
            LocalsteerError: they cannot be deleted.
        """
        with self._database.transaction():
            (count,) = self._database.execute("SELECT count(*) FROM conversations").fetchone()
            for table in ("pieces", "messages", "conversations"):
                self._database.execute(f"DELETE FROM {table}")
        self._database.clean()
        return int(count)

    def _row(self, query: str, id: int) -> Any:
        if not 0 < id < 2**63:
            raise self._missing(id)
        return self._database.execute(query, (id,)).fetchone()

    def _missing(self, id: int) -> LocalsteerError:
        hint = "`localsteer history` lists those that are there."
        return LocalsteerError(f"There is no conversation {id}{', or no longer' if id in self._revisions else ''}.", hint=hint)

    def _put(self, id: int | None, transcript: Transcript) -> tuple[int, int | None]:
        """Write a conversation, as a new one or over what is there; its number and its state."""
        if id is not None and not transcript.messages:
            self._remove(id)
            return id, None
        moment = now()
        cursor = self._database.execute(
            "INSERT INTO conversations (id, created, updated, title, model, steering, settings) VALUES (?, ?, ?, ?, ?, ?, ?) "
            "ON CONFLICT (id) DO UPDATE SET updated = excluded.updated, title = excluded.title, model = excluded.model, "
            "steering = excluded.steering, settings = excluded.settings, revision = revision + 1",
            (
                id,
                transcript.created or moment,
                moment,
                transcript.title,
                _storable(transcript.model),
                _storable(transcript.steering),
                json_text({**transcript.document(), "messages": []}),
            ),
        )
        id = id if id is not None else cursor.lastrowid
        assert id is not None
        self._put_messages(id, transcript.messages)
        row = self._row("SELECT revision FROM conversations WHERE id = ?", id)
        if row is None:
            damage = sqlite3.DatabaseError("a row that was written is not there")
            damage.sqlite_errorcode = sqlite3.SQLITE_CORRUPT  # it did not notice
            raise damage
        return id, row[0]

    def _put_messages(self, id: int, messages: Sequence[SavedMessage]) -> None:
        """Those from the first one that differs; the answer that was being written is among them, or given up."""
        self._late = [piece for piece in self._late if piece[0] != id]
        self._database.execute("DELETE FROM pieces WHERE conversation = ?", (id,))
        new = [
            replace(one, text=_storable(one.text), reasoning=_storable(one.reasoning), steering=_storable(one.steering))
            for one in messages
        ]
        kept = self._messages(id)
        same = next(
            (place for place, (old, one) in enumerate(zip(kept, new, strict=False)) if old != one), min(len(kept), len(new))
        )
        self._database.execute("DELETE FROM messages WHERE conversation = ? AND place >= ?", (id, same))
        for place, one in enumerate(new[same:], same):
            self._database.execute(
                "INSERT INTO messages (conversation, place, role, text, reasoning, cut, steering) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (id, place, one.role, one.text, one.reasoning, one.cut, one.steering),
            )

    def _messages(self, id: int) -> list[SavedMessage]:
        rows = self._database.execute(
            "SELECT role, text, reasoning, cut, steering FROM messages WHERE conversation = ? ORDER BY place", (id,)
        )
        names = ("role", "text", "reasoning", "cut", "steering")
        # Built as from a document: of a damaged file a text may come as a number.
        return [build(SavedMessage, {**dict(zip(names, row, strict=True)), "cut": bool(row[3])}) for row in rows]

    def _growing(self, id: int) -> SavedMessage | None:
        """The answer that was being written."""
        pieces = self._database.execute(
            "SELECT CAST(text AS TEXT), thought FROM pieces WHERE conversation = ? ORDER BY rowid", (id,)
        ).fetchall()
        said, thought = ("".join(text for text, kind in pieces if kind == wanted) for wanted in (0, 1))
        return SavedMessage("assistant", said, thought or None, cut=True) if said.strip() or thought.strip() else None

    def _write_late(self) -> None:
        """The pieces that are not written yet, unless somebody else writes just now."""
        while self._late:
            id, text, thought = self._late[0]
            try:
                cursor = self._database.execute(
                    "INSERT INTO pieces SELECT ?1, ?2, ?3 "
                    "WHERE EXISTS (SELECT 1 FROM conversations WHERE id = ?1 AND revision = ?4)",
                    (id, _storable(text), thought, self._revisions.get(id)),
                )
            except sqlite3.OperationalError as problem:
                if reason(problem) == sqlite3.SQLITE_BUSY:
                    return
                self._late.clear()
                raise
            del self._late[0]
            if not cursor.rowcount and self._row("SELECT 1 FROM conversations WHERE id = ?", id) is None:
                raise self._missing(id)

    def _entries(self, found: str, given: Sequence[str], words: Sequence[str], limit: int | None) -> list[Entry]:
        """Those in which all words occur: in `found` with what is `given` for each, or in an answer that is being written."""
        growing = "(SELECT conversation, group_concat(text, '') AS text FROM pieces WHERE NOT thought GROUP BY conversation)"
        occurs = (
            f"id IN (SELECT conversation FROM {found} UNION SELECT conversation FROM {growing} WHERE instr(casefold(text), ?))"
        )
        parameters = [one for pair in zip(given, (word.casefold() for word in words), strict=True) for one in pair]
        rows = self._database.execute(
            "SELECT id, title, model, steering, created, updated, (SELECT count(*) FROM messages WHERE conversation = c.id) + "
            "(id IN (SELECT conversation FROM pieces)) FROM conversations c "
            f"WHERE {' AND '.join(['1', *[occurs] * len(words)])} ORDER BY updated DESC, id DESC LIMIT ?",
            (*parameters, -1 if limit is None else limit),
        ).fetchall()
        names = [one.name for one in fields(Entry)]
        return [build(Entry, dict(zip(names, (*row, self._excerpt(row[0], words)), strict=True))) for row in rows]

    def _excerpt(self, id: int, words: Sequence[str], around: int = 40) -> str:
        growing = self._growing(id)
        for message in [*self._messages(id), *([growing] if growing is not None else [])] if words else []:
            folded = message.text.casefold()
            for place in (folded.find(word.casefold()) for word in words):
                if place >= 0:
                    first, last = max(0, place - around), place + around
                    part = one_line(message.text[first:last])
                    return f"{'…' if first else ''}{part}{'…' if last < len(message.text) else ''}"
        return ""

    def _remove(self, id: int) -> None:
        self._late = [piece for piece in self._late if piece[0] != id]
        self._database.execute("DELETE FROM pieces WHERE conversation = ?", (id,))
        self._database.execute("DELETE FROM messages WHERE conversation = ?", (id,))
        self._database.execute("DELETE FROM conversations WHERE id = ?", (id,))


def _storable(text: Any) -> Any:
    """A text without halves of characters, which a terminal can bring and a database does not take; None stays."""
    return text if text is None or text.isascii() else text.encode("utf-8", "replace").decode()
