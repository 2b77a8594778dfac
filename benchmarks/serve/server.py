"""A service in a process of its own, and a client of the standard library."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_PATIENCE = 120.0


class Gone(Exception):
    """The service did not answer: it is being restarted, or was killed before it could."""


class Service:
    """A running fb-serve, and what it logged."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.events: list[dict[str, Any]] = []
        threading.Thread(target=self._read, daemon=True).start()
        self.address = str(self.wait_for("ready")["address"])

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if line.startswith("{"):
                self.events.append(json.loads(line))

    def named(self, name: str) -> list[dict[str, Any]]:
        """The events of a name so far."""
        return [each for each in tuple(self.events) if each["event"] == name]

    def wait_for(self, name: str, count: int = 1) -> dict[str, Any]:
        """An event of a name, when there are so many."""
        deadline = time.monotonic() + _PATIENCE
        while len(found := self.named(name)) < count:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"fb-serve did not say {name}: {self.events[-3:]}")
            time.sleep(0.01)
        return found[count - 1]

    def ask(self, method: str, path: str, fields: Mapping[str, object] | bytes | None = None) -> tuple[int, bytes]:
        """Status and body of a request.

        Raises:
            Gone: nobody answered.
        """
        body = fields if isinstance(fields, bytes) or fields is None else json.dumps(fields).encode()
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(self.address + path, body, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=_PATIENCE) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()
        except OSError as error:
            raise Gone(str(error)) from None

    def video(self, id: str) -> dict[str, Any] | None:
        """A video as the service shows it; None if there is none."""
        status, body = self.ask("GET", f"/v1/videos/{id}")
        if status == 404:
            return None
        found: dict[str, Any] = json.loads(body)
        return found

    def processor_seconds(self) -> float:
        """Of the service and its workers, since they were started."""
        processes = [self.process.pid, *(int(each["process"]) for each in self.named("worker_ready"))]
        ticks = 0
        for each in processes:
            # Behind the name, which may have any character: state is field 3, utime 14, stime 15 (proc_pid_stat(5)).
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def resident(self) -> int:
        """Bytes of memory of the service's own process."""
        text = Path(f"/proc/{self.process.pid}/statm").read_text()
        return int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def serving(bundle: Path, data: Path, *, workers: int, queue: int = 2000) -> Iterator[Service]:
    """A service of one bundle; one thread for each worker. Ended with the block."""
    command = [sys.executable, "-m", "flowblending.runtime.serve.http.cli", str(bundle), "--name", "bench"]
    command += ["--data", str(data), "--port", "0", "--threads", "1", "--workers", str(workers)]
    command += ["--max-queue", str(queue), "--device", "cpu"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            service = Service(process)
            service.wait_for("worker_ready", workers)
            yield service
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
            process.kill()
