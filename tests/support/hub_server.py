"""A stand-in for the hub: serves a local folder as a repository over HTTP, and notes what was asked for.

It answers what huggingface_hub asks: about a repository at a revision, its tree, and files, whole or by ranges.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = 2000
"""Bytes from which on a file is kept as the hub keeps large ones, with its SHA-256."""


@dataclass
class Hub:
    """Repositories by name, and what was asked for.

    Attributes:
        repositories: the folder of each.
        revisions: that there are, beside its commit.
        refuses: an error (status, code) by the name of a repository.
        ranges: whether ranged requests are answered as such.
        fetched: bytes of each file that were sent, by ``Org/Name/path``.
    """

    address: str = ""
    repositories: dict[str, Path] = field(default_factory=dict)
    revisions: tuple[str, ...] = ("main",)
    refuses: dict[str, tuple[int, str]] = field(default_factory=dict)
    ranges: bool = True
    fetched: dict[str, int] = field(default_factory=dict)

    def weights(self) -> int:
        """Bytes of safetensors files that were sent."""
        return sum(count for name, count in self.fetched.items() if name.endswith(".safetensors"))


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Answer at ``hub.address`` for as long as the block runs."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            _answer(self, hub)

        do_HEAD = do_GET

        def log_message(self, *_arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def _answer(request: BaseHTTPRequestHandler, hub: Hub) -> None:
    parts = unquote(urlsplit(request.path).path).strip("/").split("/")
    api = parts[:2] == ["api", "models"]
    name = "/".join(parts[2:4] if api else parts[:2])
    rest = parts[4:] if api else parts[2:]
    if name in hub.refuses:
        return _refuse(request, *hub.refuses[name])
    if name not in hub.repositories:
        return _refuse(request, 401, "RepoNotFound")
    folder = hub.repositories[name]
    if len(rest) > 1 and rest[1] not in (*hub.revisions, COMMIT):
        return _refuse(request, 404, "RevisionNotFound")
    if not api:
        return _file(request, hub, folder, name, "/".join(rest[2:]))
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if rest[:1] == ["tree"]:
        return _json(request, [_entry(folder, path) for path in files])
    siblings = [_entry(folder, path, "rfilename") for path in files]
    return _json(request, {"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings, "tags": []})


def _entry(folder: Path, path: Path, key: str = "path") -> dict[str, Any]:
    content = path.read_bytes()
    entry: dict[str, Any] = {
        "type": "file",
        key: str(path.relative_to(folder)),
        "size": len(content),
        "oid": hashlib.sha1(content, usedforsecurity=False).hexdigest(),
    }
    entry["blobId"] = entry["oid"]
    if len(content) >= LARGE:
        digest = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": digest, "sha256": digest, "size": len(content), "pointerSize": 134}
    return entry


def _file(request: BaseHTTPRequestHandler, hub: Hub, folder: Path, name: str, path: str) -> None:
    if not (folder / path).is_file():
        return _refuse(request, 404, "EntryNotFound")
    content = (folder / path).read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    status, headers = 200, {"X-Repo-Commit": COMMIT, "ETag": f'"{digest}"', "Accept-Ranges": "bytes"}
    asked = request.headers.get("Range")
    if asked is not None and hub.ranges:
        first, _, last = asked.removeprefix("bytes=").partition("-")
        end = min(int(last), len(content) - 1) if last else len(content) - 1
        headers["Content-Range"] = f"bytes {first}-{end}/{len(content)}"
        status, content = 206, content[int(first) : end + 1]
    if request.command == "GET":
        hub.fetched[f"{name}/{path}"] = hub.fetched.get(f"{name}/{path}", 0) + len(content)
    return _send(request, status, content, headers)


def _json(request: BaseHTTPRequestHandler, content: object) -> None:
    _send(request, 200, json.dumps(content).encode(), {"Content-Type": "application/json"})


def _refuse(request: BaseHTTPRequestHandler, status: int, code: str) -> None:
    _send(request, status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})


def _send(request: BaseHTTPRequestHandler, status: int, content: bytes, headers: dict[str, str]) -> None:
    request.send_response(status)
    for key, value in ({"Content-Length": str(len(content))} | headers).items():
        request.send_header(key, value)
    request.end_headers()
    if request.command == "GET":
        try:
            request.wfile.write(content)
        except ConnectionError:
            request.close_connection = True


def use(hub: Hub, cache: Path, patch: Callable[[str, object], None]) -> None:
    """Have huggingface_hub ask this hub, with a cache of its own; ``patch`` sets an attribute by its dotted name."""
    patch("huggingface_hub.constants.ENDPOINT", hub.address)
    patch(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
        hub.address + "/{repo_id}/resolve/{revision}/{filename}",
    )
    patch("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    patch("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
