"""The database behind the kept conversations: its tables, how it is opened, written by several programs, and emptied."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from localsteer.errors import LocalsteerError, shown
from localsteer.files.atomic import writable

VERSION = 1
# "lstr": tells our databases from those of others.
_APPLICATION = 0x6C737472

# Conversations are never given a number again: a chat that still runs would write into somebody else's. Messages are added and
# removed, never changed, so that two triggers keep the words. `pieces` is the answer that is being written: a token costs one row
# at the end of one page, whatever the length of the answer.
_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS conversations (
    id INTEGER PRIMARY KEY AUTOINCREMENT, created TEXT NOT NULL, updated TEXT NOT NULL, title TEXT NOT NULL, model TEXT NOT NULL,
    steering TEXT NOT NULL, settings TEXT NOT NULL, revision INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS messages (
    id INTEGER PRIMARY KEY, conversation INTEGER NOT NULL, place INTEGER NOT NULL, role TEXT NOT NULL, text TEXT NOT NULL,
    reasoning TEXT, cut INTEGER NOT NULL, steering TEXT, UNIQUE (conversation, place)
);
CREATE TABLE IF NOT EXISTS pieces (conversation INTEGER NOT NULL, text TEXT NOT NULL, thought INTEGER NOT NULL);
{{words}}
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {VERSION};
COMMIT;
"""
_WORDS = """
CREATE VIRTUAL TABLE IF NOT EXISTS words USING fts5(text, content='messages', content_rowid='id');
CREATE TRIGGER IF NOT EXISTS message_added AFTER INSERT ON messages BEGIN
    INSERT INTO words (rowid, text) VALUES (new.id, new.text);
END;
CREATE TRIGGER IF NOT EXISTS message_removed AFTER DELETE ON messages BEGIN
    INSERT INTO words (words, rowid, text) VALUES ('delete', old.id, old.text);
END;
"""

# SQLite's module for full-text search, which a build may lack.
_FULL_TEXT = "fts5"

# Milliseconds to wait for another program that writes. A change takes less than one of these; what takes long is the emptying of
# the file after a deletion, and a token does not wait for that: it is written with the next one.
_PATIENCE = 2000
_PATIENCE_OF_A_TOKEN = 5
# Pages of the log after which it goes into the file, which waits for the disk: SQLite's own, but never while an answer is
# written.
_LOG_PAGES = 1000

_REASONS = {
    sqlite3.SQLITE_BUSY: "another program is writing to it",
    sqlite3.SQLITE_LOCKED: "another program is writing to it",
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_READONLY: "it is read-only",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened",
    sqlite3.SQLITE_IOERR: "the disk cannot be read or written",
    sqlite3.SQLITE_CORRUPT: "it is damaged",
    sqlite3.SQLITE_NOTADB: "it is no database",
}
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class Database:
    """An SQLite database of conversations, which several threads and processes may use.

    Args:
        path: its file; made where there is none, for its owner's eyes only.

    Attributes:
        path: its file.
        lock: for what several statements of a thread must see as one; held by `told`, `reading` and `transaction`.
        has_words: whether there is an index of words.

    Raises:
        LocalsteerError: it cannot be opened or made, is something else, or a newer localsteer made it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = threading.RLock()
        with writable(path, LocalsteerError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                # SQLite gives the files beside it the same permissions.
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        with self.told("opened"):
            self._connection = sqlite3.connect(path, timeout=_PATIENCE / 1000, isolation_level=None, check_same_thread=False)
            self._connection.text_factory = lambda data: data.decode("utf-8", "replace")
            try:
                self.has_words = self._prepare()
            except BaseException:
                self._connection.close()
                raise

    def close(self) -> None:
        """Close it; nothing is left beside the file."""
        with self.lock, contextlib.suppress(sqlite3.Error):
            self._connection.close()

    def execute(self, statement: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        """Run a statement; within one of the three that follow."""
        return self._connection.execute(statement, values)

    @contextlib.contextmanager
    def told(self, what: str) -> Iterator[None]:
        """Around the use of it: what goes wrong there, or is wrong in it, is told as a person needs it.

        Args:
            what: "read", for one.

        Raises:
            LocalsteerError: it cannot be done.
        """
        try:
            with self.lock:
                yield
        except (sqlite3.Error, ValueError) as problem:
            code = reason(problem)
            hint = "Move it away: a new one is begun then." if code in _DAMAGED else None
            raise LocalsteerError(shown(f"{self.path} cannot be {what}: {_REASONS.get(code, problem)}."), hint=hint) from problem

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Around queries that see one state of it, whatever other programs write meanwhile.

        Raises:
            LocalsteerError: it cannot be read.
        """
        with self.told("read"):
            self.execute("BEGIN")
            try:
                yield
            finally:
                self._roll_back()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Around changes, which are made all or none; with some patience where another program makes some.

        Raises:
            LocalsteerError: they cannot be written.
        """
        with self.told("written"), self._patience():
            self.execute("BEGIN IMMEDIATE")
            try:
                yield
                self.execute("COMMIT")
            except BaseException:
                self._roll_back()
                raise

    def clean(self) -> None:
        """Take what was deleted out of the files: out of the index of words, the free pages and the log.

        Raises:
            LocalsteerError: it cannot be done now.
        """
        with self.told("emptied of what was deleted"), self._patience():
            if self.has_words:  # it only notes that a word is deleted
                self.execute("INSERT INTO words (words) VALUES ('rebuild')")
            self.execute("VACUUM")
            (busy, _, _) = self.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise LocalsteerError(
                f"What was deleted may still be in {self.path}-wal: another program is reading.",
                hint="It goes when the last chat is closed.",
            )

    def _prepare(self) -> bool:
        """Make the tables where there are none; whether there is an index of words."""
        self.execute("BEGIN")  # one state of it: another chat may be making it just now
        ours, version = self._pragma("application_id") == _APPLICATION, self._pragma("user_version")
        is_empty = self.execute("SELECT 1 FROM sqlite_master").fetchone() is None
        self._roll_back()
        if ours and version > VERSION:
            raise LocalsteerError(f"{self.path} was written by a newer localsteer.", hint="Use that one, or move the file away.")
        if not ours and not is_empty:
            raise LocalsteerError(f"{self.path} is a database of another program.", hint="Move it away.")
        # What is deleted is overwritten, whatever SQLite was built with.
        self.execute("PRAGMA secure_delete = ON")
        if self._pragma("journal_mode = WAL") != "wal":
            raise LocalsteerError(f"{self.path} lies where several programs cannot share a database.")
        # A power cut may take the last seconds, and leaves a whole database.
        self.execute("PRAGMA synchronous = NORMAL")
        has_fts = self.execute("SELECT 1 FROM pragma_module_list WHERE name = ?", (_FULL_TEXT,)).fetchone() is not None
        if not version:
            self._connection.executescript(_SCHEMA.format(words=_WORDS if has_fts else ""))
        has_words = self.execute("SELECT 1 FROM sqlite_master WHERE name = 'words'").fetchone() is not None
        if has_words and not has_fts:
            raise LocalsteerError(f"{self.path} needs an SQLite with full-text search (FTS5), and that of this Python has none.")
        # SQLite's own folds ASCII only.
        self._connection.create_function("casefold", 1, lambda text: str(text).casefold(), deterministic=True)
        self._wait(_PATIENCE_OF_A_TOKEN, log_pages=0)
        return has_words

    def _roll_back(self) -> None:
        if self._connection.in_transaction:  # a full disk, or damage, has ended it already
            self.execute("ROLLBACK")

    def _pragma(self, pragma: str) -> Any:
        return self.execute(f"PRAGMA {pragma}").fetchone()[0]

    @contextlib.contextmanager
    def _patience(self) -> Iterator[None]:
        self._wait(_PATIENCE, log_pages=_LOG_PAGES)
        try:
            yield
        finally:
            self._wait(_PATIENCE_OF_A_TOKEN, log_pages=0)

    def _wait(self, patience: int, *, log_pages: int) -> None:
        """How long to wait for other programs, and how often for the disk."""
        self.execute(f"PRAGMA busy_timeout = {patience}")
        self.execute(f"PRAGMA wal_autocheckpoint = {log_pages}")


def reason(problem: Exception) -> int:
    """SQLite's primary result code; 0 where there is none."""
    return (getattr(problem, "sqlite_errorcode", None) or 0) & 0xFF
