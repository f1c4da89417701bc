"""The log of clicks of one run: an SQLite file that only grows, one transaction a click.

SQLite's rollback journal, not its write-ahead log, which needs memory that processes share and so no network drive;
and `synchronous=EXTRA`, so that a click whose transaction has returned survives a loss of power.
"""

import datetime
import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from data.errors import StorageError
from stages.preferences.judgements import Click

LABELS = "labels.sqlite"
_VERSION = 1
_BUSY_SECONDS = 20.0
_SCHEMA = """
CREATE TABLE clicks (
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  time TEXT NOT NULL,
  annotator TEXT NOT NULL,
  question TEXT NOT NULL,
  kind TEXT NOT NULL,
  data TEXT NOT NULL,
  id TEXT NOT NULL UNIQUE
);
CREATE TRIGGER clicks_stay BEFORE UPDATE ON clicks BEGIN SELECT RAISE(ABORT, 'clicks are never changed'); END;
CREATE TRIGGER clicks_are_kept BEFORE DELETE ON clicks BEGIN SELECT RAISE(ABORT, 'clicks are never removed'); END;
CREATE TABLE open_questions (
  annotator TEXT PRIMARY KEY,
  question TEXT NOT NULL,
  time REAL NOT NULL
);
"""


class LabelStore:
    """Clicks on disk. A connection for each call: calls are few, and come from several threads and processes."""

    def __init__(self, path: Path) -> None:
        """Use a file; it is made by the first write."""
        self.path = path

    def append(self, click: Click, click_id: str) -> bool:
        """Save a click; when this returns, it is on disk.

        Args:
            click: What was done; it gets its number and time here.
            click_id: Made up by who clicked. A click that is sent again, because its answer was lost, is saved once.

        Returns:
            Whether it is new.

        Raises:
            StorageError: The file cannot be written, or is no log of clicks.
        """
        return self.append_all([(click, click_id)]) == 1

    def append_all(self, clicks: Sequence[tuple[Click, str]]) -> int:
        """Save clicks, all or none of them.

        Returns:
            How many are new.

        Raises:
            StorageError: As for `append`.
        """
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        rows = [
            (
                click.time or now,
                click.annotator,
                click.question,
                click.kind,
                json.dumps(click.data, ensure_ascii=False, sort_keys=True),
                click_id,
            )
            for click, click_id in clicks
        ]
        with self._writing() as connection:
            before = connection.total_changes
            connection.executemany(
                "INSERT INTO clicks (time, annotator, question, kind, data, id) VALUES (?, ?, ?, ?, ?, ?) "
                "ON CONFLICT (id) DO NOTHING",
                rows,
            )
            return connection.total_changes - before

    def clicks(self, after: int = 0) -> list[Click]:
        """The clicks with a number above `after`, in order.

        Raises:
            StorageError: The file cannot be read, or is no log of clicks.
        """
        if not self.path.exists():
            return []
        with self._connected() as connection:
            if _version(connection) == 0:  # killed before the first click was saved
                return []
            rows = connection.execute(
                "SELECT number, time, annotator, question, kind, data FROM clicks WHERE number > ? ORDER BY number",
                (after,),
            ).fetchall()
        return [
            Click(annotator, question, kind, json.loads(data), number, time)
            for number, time, annotator, question, kind, data in rows
        ]

    def open_question(self, annotator: str, question: str, now: float) -> None:
        """Note which question somebody has before him, so that others get another one."""
        with self._writing() as connection:
            connection.execute("INSERT OR REPLACE INTO open_questions VALUES (?, ?, ?)", (annotator, question, now))

    def questions_open_with_others(self, annotator: str, since: float) -> set[str]:
        """The questions that others have had before them since a time."""
        if not self.path.exists():
            return set()
        with self._connected() as connection:
            if _version(connection) == 0:
                return set()
            rows = connection.execute(
                "SELECT question FROM open_questions WHERE annotator != ? AND time >= ?", (annotator, since)
            ).fetchall()
        return {question for (question,) in rows}

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._connected() as connection:
            # IMMEDIATE: the lock is taken, and waited for, before anything is read.
            connection.execute("BEGIN IMMEDIATE")
            try:
                if _version(connection) == 0:
                    for statement in _statements(_SCHEMA):
                        connection.execute(statement)
                    connection.execute(f"PRAGMA user_version = {_VERSION}")
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self.path, timeout=_BUSY_SECONDS, isolation_level=None)) as connection:
                connection.execute("PRAGMA synchronous = EXTRA")
                if (version := _version(connection)) > _VERSION:
                    raise StorageError(
                        f"{self.path}: written by a later version of rlhf (format {version}; this one knows "
                        f"{_VERSION}); use that version"
                    )
                yield connection
        except sqlite3.Error as error:
            raise StorageError(
                f"{self.path}: the labels cannot be read or written ({error}); the file must be as rlhf wrote it, on a "
                f"disk with room; bring it back from a copy, or make room"
            ) from error


def _version(connection: sqlite3.Connection) -> int:
    """The file's format; 0 for a file without tables."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _statements(script: str) -> Iterator[str]:
    """One by one: `executescript` would end the transaction."""
    statement = ""
    for line in script.splitlines():
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
