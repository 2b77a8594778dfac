"""The service's jobs, in an SQLite database that survives a kill at any moment.

A job is written, and on the disk, before its request is answered, so that none is lost that was accepted. What is
written outlives the process at once; who has something better to do than to wait for the disk calls `JobStore.sync`
later: a worker begins a job while the disk takes it, and a client knows of its video before. That a worker has begun
one is not waited for.
Every method is one transaction, and may be called from any thread.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from flowblending import FlowBlendingError
from flowblending.runtime.serve.http.record import COMPLETED, FAILED, IN_PROGRESS, QUEUED, JobRecord
from flowblending.system.whole_file import flush

_FORMAT: Final = 1
_SCHEMA: Final = """
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    model TEXT NOT NULL,
    status TEXT NOT NULL,
    fields TEXT NOT NULL,
    about TEXT NOT NULL,
    priority INTEGER NOT NULL,
    start_by REAL,
    crashes INTEGER NOT NULL DEFAULT 0,
    created REAL NOT NULL,
    started REAL,
    ended REAL,
    expires REAL,
    bytes INTEGER NOT NULL DEFAULT 0,
    warnings TEXT NOT NULL DEFAULT '[]',
    seconds TEXT NOT NULL DEFAULT '{}',
    code TEXT,
    message TEXT
);
CREATE INDEX jobs_status ON jobs (status);
CREATE INDEX jobs_owner ON jobs (owner, number);
"""
_COLUMNS: Final = (
    "number, id, owner, model, status, fields, about, priority, start_by, crashes, created, started, ended, expires, "
    "bytes, warnings, seconds, code, message"
)


def new_id() -> str:
    """The id of a job that is to be added."""
    return f"video_{secrets.token_hex(16)}"


class QueueFullError(FlowBlendingError):
    """As many jobs wait as may."""


_JSON: Final = ("fields", "about", "warnings", "seconds")


def _record(row: sqlite3.Row) -> JobRecord:
    return JobRecord(**{name: json.loads(row[name]) if name in _JSON else row[name] for name in row.keys()})  # noqa: SIM118


class JobStore:
    """The database.

    Args:
        path: of the file; made if it is not there.

    Raises:
        FlowBlendingError: it cannot be opened, or was written by a later version.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._log = path.with_name(f"{path.name}-wal")
        try:
            self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._connection.row_factory = sqlite3.Row
            (mode,) = self._connection.execute("PRAGMA journal_mode=WAL").fetchone()
            self._logs = mode == "wal"
            (version,) = self._connection.execute("PRAGMA user_version").fetchone()
            if version == 0:
                with self._transaction() as connection:
                    for statement in filter(str.strip, _SCHEMA.split(";")):
                        connection.execute(statement)
                    connection.execute(f"PRAGMA user_version={_FORMAT}")
        except sqlite3.Error as error:
            raise FlowBlendingError(
                f"Cannot open the jobs in {path} ({error}); give another folder to --data."
            ) from None
        if version > _FORMAT:
            raise FlowBlendingError(
                f"The jobs in {path} are in format {version}, but this version knows {_FORMAT}; "
                "install a later one, or give another folder to --data."
            )

    @contextmanager
    def _transaction(self, *, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """A transaction, which outlives the process in any case, and if it is durable a power failure too."""
        with self._lock:
            # Without a write-ahead log there is nothing that could be waited for later.
            self._connection.execute(f"PRAGMA synchronous={'FULL' if durable or not self._logs else 'NORMAL'}")
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")  # where a full disk shows
            except BaseException:
                if self._connection.in_transaction:  # SQLite may have ended it itself
                    self._connection.execute("ROLLBACK")
                raise

    def sync(self) -> None:
        """Wait until all that has been written outlives a power failure, too. Others may write meanwhile.

        What is not in the write-ahead log any more is in the database, where SQLite has waited for it.

        Raises:
            sqlite3.OperationalError: the disk does not take it.
        """
        if not self._logs:
            return
        try:
            flush(self._log)
        except OSError as error:
            raise sqlite3.OperationalError(f"the disk does not take it: {error.strerror}") from None

    def _rows(self, condition: str, *values: object) -> list[JobRecord]:
        with self._lock:
            rows = self._connection.execute(f"SELECT {_COLUMNS} FROM jobs WHERE {condition}", values).fetchall()
        return [_record(row) for row in rows]

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._connection.close()

    def add(
        self,
        *,
        id: str | None = None,
        owner: str,
        model: str,
        fields: Mapping[str, Any],
        about: Mapping[str, Any],
        priority: int,
        start_by: float | None,
        most_waiting: int,
    ) -> JobRecord:
        """Write a job down; it is accepted after `sync`.

        Args:
            id: of `new_id`, if it is known already.

        Raises:
            QueueFullError: ``most_waiting`` jobs wait already.
        """
        id = new_id() if id is None else id
        with self._transaction(durable=False) as connection:
            (waiting,) = connection.execute("SELECT count(*) FROM jobs WHERE status = ?", (QUEUED,)).fetchone()
            if waiting >= most_waiting:
                raise QueueFullError(f"{waiting} videos wait already, which is as many as may; try again later.")
            connection.execute(
                "INSERT INTO jobs (id, owner, model, status, fields, about, priority, start_by, created) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    id,
                    owner,
                    model,
                    QUEUED,
                    json.dumps(fields),
                    json.dumps(about),
                    priority,
                    start_by,
                    time.time(),
                ),
            )
        return self._rows("id = ?", id)[0]

    def get(self, id: str, owner: str | None = None) -> JobRecord | None:
        """A job; None if there is none, or it is another owner's."""
        found = self._rows("id = ? AND (? IS NULL OR owner = ?)", id, owner, owner)
        return found[0] if found else None

    def page(self, owner: str, *, after: int | None, limit: int, ascending: bool) -> tuple[list[JobRecord], bool]:
        """Jobs of an owner in the order of their creation, and whether there are more.

        Args:
            after: the number of the last job of the page before.
        """
        sign, order = (">", "ASC") if ascending else ("<", "DESC")
        found = self._rows(
            f"owner = ? AND (? IS NULL OR number {sign} ?) ORDER BY number {order} LIMIT ?",
            owner,
            after,
            after,
            limit + 1,
        )
        return found[:limit], len(found) > limit

    def waiting(self) -> list[JobRecord]:
        """Jobs in the queue, each owner's in the order in which they are to be made."""
        return self._rows("status = ? ORDER BY priority DESC, number", QUEUED)

    def counts(self) -> dict[str, int]:
        """Jobs by status."""
        with self._lock:
            rows = self._connection.execute("SELECT status, count(*) FROM jobs GROUP BY status").fetchall()
        return dict(rows)

    def ahead(self, job: JobRecord) -> int:
        """Jobs of the same owner that will be made before a waiting one."""
        with self._lock:
            (count,) = self._connection.execute(
                "SELECT count(*) FROM jobs WHERE status = ? AND owner = ? "
                "AND (priority > ? OR (priority = ? AND number < ?))",
                (QUEUED, job.owner, job.priority, job.priority, job.number),
            ).fetchone()
        return int(count)

    def _change(self, assignment: str, id: str, status: str, *values: object, durable: bool = True) -> bool:
        """Change a job that has a status; tells whether there is one."""
        with self._transaction(durable=durable) as connection:
            done = connection.execute(
                f"UPDATE jobs SET {assignment} WHERE id = ? AND status = ?", (*values, id, status)
            )
            return done.rowcount == 1

    def start(self, id: str) -> bool:
        """A worker begins a job; False if it does not wait any more.

        After a power failure it may wait as before, as it would after every other end of the service.
        """
        return self._change("status = ?, started = ?", id, QUEUED, IN_PROGRESS, time.time(), durable=False)

    def requeue(self, id: str, *, crashed: bool = False) -> bool:
        """A job that was begun waits again, in its place."""
        return self._change("status = ?, crashes = crashes + ?", id, IN_PROGRESS, QUEUED, int(crashed))

    def complete(
        self, id: str, *, seconds: Mapping[str, float], warnings: Sequence[str], size: int, expires: float | None
    ) -> bool:
        """A job's video is there; False if nobody wants it any more.

        After a power failure before the next `sync`, it waits as before, and is made once more.
        """
        return self._change(
            "status = ?, ended = ?, seconds = ?, warnings = ?, bytes = ?, expires = ?, code = NULL, message = NULL",
            id,
            IN_PROGRESS,
            COMPLETED,
            time.time(),
            json.dumps(dict(seconds)),
            json.dumps(list(warnings)),
            size,
            expires,
            durable=False,
        )

    def fail(self, id: str, *, code: str, message: str, expires: float | None) -> bool:
        """A job that waits or was begun will have no video; False if there is none such."""
        with self._transaction() as connection:
            done = connection.execute(
                "UPDATE jobs SET status = ?, ended = ?, code = ?, message = ?, expires = ? "
                "WHERE id = ? AND status IN (?, ?)",
                (FAILED, time.time(), code, message, expires, id, QUEUED, IN_PROGRESS),
            )
            return done.rowcount == 1

    def delete(self, id: str, owner: str | None = None) -> bool:
        """Forget a job; False if there is none, or it is another owner's."""
        with self._transaction() as connection:
            done = connection.execute("DELETE FROM jobs WHERE id = ? AND (? IS NULL OR owner = ?)", (id, owner, owner))
            return done.rowcount == 1

    def recover(self) -> list[JobRecord]:
        """Jobs that a service which was killed had begun; they wait again."""
        found = self._rows("status = ?", IN_PROGRESS)
        for job in found:
            self.requeue(job.id)
        return found

    def expired(self, now: float) -> list[str]:
        """Jobs whose time is over."""
        return [job.id for job in self._rows("expires IS NOT NULL AND expires <= ?", now)]

    def oldest(self, most_bytes: int) -> list[str]:
        """The completed jobs that were made first, as many as take the files of all beyond ``most_bytes``."""
        found = self._rows("status = ? ORDER BY ended", COMPLETED)
        excess, ids = sum(job.bytes for job in found) - most_bytes, []
        for job in found:
            if excess <= 0:
                break
            ids.append(job.id)
            excess -= job.bytes
        return ids

    def ids(self) -> set[str]:
        """Every job's."""
        with self._lock:
            return {id for (id,) in self._connection.execute("SELECT id FROM jobs")}
