"""fb-serve in a process of its own, on a free port of this machine."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from openai import OpenAI

KEY = "none-is-needed-here"


class VideoServer:
    """A running fb-serve, and every line that it logged."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.text: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.address = str(self.event("ready")["address"])

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.text.append(line)

    def events(self, name: str) -> list[dict[str, Any]]:
        """All events of a name so far."""
        found = [json.loads(line) for line in self.text if line.startswith("{")]
        return [each for each in found if each["event"] == name]

    def event(self, name: str, count: int = 1) -> dict[str, Any]:
        """The event of a name, when there are so many of them."""
        wait_until(lambda: len(self.events(name)) >= count or self.process.poll() is not None, name)
        found = self.events(name)
        assert len(found) >= count, "".join(self.text)
        return found[count - 1]

    def client(self, key: str = KEY) -> OpenAI:
        """OpenAI's own client, which tries nothing again."""
        return OpenAI(base_url=f"{self.address}/v1", api_key=key, max_retries=0, timeout=60)

    def ask(
        self, path: str, *, method: str = "GET", body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Any]:
        """A plain request: the status, and JSON where the answer is."""
        request = urllib.request.Request(self.address + path, body, dict(headers or {}), method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                status, content = response.status, response.read()
        except urllib.error.HTTPError as error:
            status, content = error.code, error.read()
        with contextlib.suppress(ValueError):
            return status, json.loads(content)
        return status, content

    def post(
        self, fields: object, path: str = "/v1/videos", headers: Mapping[str, str] | None = None
    ) -> tuple[int, Any]:
        """A request with a JSON body."""
        kind = {"content-type": "application/json", **(headers or {})}
        return self.ask(path, method="POST", body=json.dumps(fields).encode(), headers=kind)

    def worker(self, count: int = 1) -> int:
        """The process of the worker that became ready last of so many."""
        return int(self.event("worker_ready", count)["process"])

    def end(self, number: signal.Signals = signal.SIGINT) -> int:
        """End it by a signal; returns the exit code."""
        self.process.send_signal(number)
        code = self.process.wait(60)
        self._reader.join(10)
        return code


def sent_events(server: VideoServer, id: str, query: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """What a video's server-sent events tell: their names and data."""
    connection = http.client.HTTPConnection(server.address.removeprefix("http://"), timeout=60)
    connection.request("GET", f"/v1/videos/{id}/events{query}")
    response = connection.getresponse()
    assert response.headers["content-type"].startswith("text/event-stream")
    name = ""
    while line := response.readline().decode():
        if line.startswith("event: "):
            name = line.removeprefix("event: ").strip()
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))
    connection.close()


def wait_until(done: Callable[[], bool], what: str, seconds: float = 60) -> None:
    """Wait for something that happens soon."""
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.01)


@contextmanager
def serving(*arguments: object, data: Path, environment: Mapping[str, str] | None = None) -> Iterator[VideoServer]:
    """A service of the bundles and options given; ended with the block."""
    command = [sys.executable, "-m", "flowblending.runtime.serve.http.cli", *map(str, arguments)]
    command += ["--port", "0", "--threads", "1", "--data", str(data)]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, **(environment or {})}, start_new_session=True
    ) as process:
        try:
            yield VideoServer(process)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            process.kill()


def refused(*arguments: object) -> str:
    """What a service that does not start says."""
    command = [sys.executable, "-m", "flowblending.runtime.serve.http.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode in (1, 2), done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]
