"""Room for a video in a cluster, as the dispatcher sees it: whichever replica is free makes it."""

from __future__ import annotations

import contextlib
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from multiprocessing.connection import Connection
from typing import Protocol

from flowblending import FlowBlendingError
from flowblending.runtime.batch.messages import Failed, Ready, Unable
from flowblending.runtime.batch.tasks import Cause, cause_of
from flowblending.runtime.cluster.connection import first_line
from flowblending.runtime.serve.http.messages import Answer, Cancel, Cancelled, Made, Told, Watched, Work
from flowblending.runtime.serve.http.replicas.messages import Remote, RemoteMade, RemoteWork
from flowblending.runtime.serve.http.service_worker import ServiceWorker
from flowblending.system.output import cannot_write
from flowblending.system.whole_file import replace_file


class ReplicaDiedError(Exception):
    """The replica that made a video has died, or nobody knows what became of it."""


class Call(Protocol):
    """A video that a replica makes, or will when one is free."""

    def __iter__(self) -> Iterator[Remote]:
        """What it tells.

        Raises:
            ReplicaDiedError: it tells no more.
            FlowBlendingError: there are no replicas, and there will be none.
        """
        ...

    def cancel(self) -> None:
        """Have it given up."""
        ...


class Application(Protocol):
    """Replicas that make videos."""

    def opened(self) -> Future[Ready | Unable]:
        """Whether they can make videos, which takes a while at first. Raises as a `Call` does."""
        ...

    def call(self, work: RemoteWork) -> Call:
        """Have a replica make a video."""
        ...

    def watch(self, id: str, watched: bool) -> None:
        """Tell whether somebody wants to see previews of a video."""
        ...


class ReplicaSlot(ServiceWorker):
    """Has one video at a time made by an application. A thread hears what is told of it, and writes what comes."""

    def __init__(self, name: str, application: Application) -> None:
        self._application = application
        self._making: _Making | None = None
        self._how = "ended"
        super().__init__(name)

    @property
    def pid(self) -> None:
        """Its replica's is on another machine, or is another one with the next video."""
        return

    def start(self) -> None:
        """Find out whether the application works."""
        self.ready = False
        self.connection, writer = multiprocessing.Pipe(duplex=False)
        self._writer = _Writer(writer)
        self._hear(self._open)

    def send(self, what: object) -> None:
        """Have a video made, or tell that it is given up or watched."""
        match what:
            case Work():
                self._application.watch(what.id, what.watched)
                self._making = making = _Making(self._application, what, self._writer.send)
                self._hear(making.run)
            case Cancel() | None if self._making is not None:
                self._making.stop()
            case Watched():
                self._application.watch(what.id, what.watched)

    def dismiss(self) -> None:
        """Give up what is made."""
        self.send(None)

    def end(self, deadline: float = 0.0) -> str:
        """Wait for the end of what is written, and say how it was."""
        self.dismiss()
        if self.ready:  # what it waits for otherwise may take as long as it likes
            self._thread.join(max(deadline - time.monotonic(), 1.0))
        self.connection.close()  # first, so that nobody is stuck in sending
        self._writer.close()
        return self._how

    def _open(self) -> Answer:
        return self._application.opened().result()

    def _hear(self, answer: Callable[[], Answer]) -> None:
        """Say what comes of a call, in a thread; its death by closing the pipe, as a process that dies closes it."""
        writer = self._writer  # when this ends late, the slot may have begun anew

        def run() -> None:
            try:
                writer.send(answer())
            except FlowBlendingError as error:
                writer.send(Unable(why=str(error)))
            except Exception as error:  # whatever it was, somebody has to hear that no more will come
                self._how = first_line(error)
                writer.close()

        # A daemon: what is hung elsewhere must not keep this program.
        self._thread = threading.Thread(target=run, name=self.name, daemon=True)
        self._thread.start()


class _Writer:
    """A pipe's end that two threads may close, and nobody while something is sent."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def send(self, what: Answer) -> None:
        """Send a message, unless nobody hears it any more."""
        with self._lock, contextlib.suppress(OSError):
            self._connection.send(what)

    def close(self) -> None:
        """Let the other end know that no more will come."""
        with self._lock:
            self._connection.close()


class _Making:
    """One video that a replica makes."""

    def __init__(self, application: Application, work: Work, say: Callable[[Told], None]) -> None:
        self._application = application
        self._work = work
        self._say = say
        self._lock = threading.Lock()
        self._stopped = False
        self._call: Call | None = None

    def stop(self) -> None:
        """Have it given up. Any thread may call this."""
        with self._lock:
            self._stopped = True
            call = self._call
        if call is not None:
            call.cancel()

    def run(self) -> Made | Failed | Cancelled:
        """Hear of it until it is there.

        Raises:
            ReplicaDiedError, FlowBlendingError: see `Call`.
        """
        try:
            return self._run()
        except Exception:
            if self._stopped:
                return Cancelled(id=self._work.id)
            raise
        finally:
            self._application.watch(self._work.id, watched=False)

    def _run(self) -> Made | Failed | Cancelled:
        try:
            work = RemoteWork.of(self._work)
        except OSError as error:
            return Failed(why=f"Cannot read the files of the request ({error.strerror}); send it again.")
        with self._lock:
            if self._stopped:
                return Cancelled(id=work.id)
            self._call = self._application.call(work)
        for told in self._call:
            match told:
                case Told():
                    self._say(told)
                case RemoteMade():
                    return self._write(told)
                case Failed(cause=Cause.DISK):
                    # The node's own, where videos are not kept: another one may do better.
                    return Failed(why=told.why, cause=Cause.DEVICE)
                case _:
                    return told
        raise ReplicaDiedError("it ended without a word")

    def _write(self, result: RemoteMade) -> Made | Failed:
        try:
            replace_file(self._work.thumbnail, result.thumbnail)
            replace_file(self._work.video, result.video)
        except OSError as error:
            failure = cannot_write(self._work.video, error)
            return Failed(why=str(failure), cause=cause_of(failure))
        return result.made
