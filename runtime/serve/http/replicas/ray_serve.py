"""Ray Serve on a cluster, which others may use too: begun where it is not there, and left as it was."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

_PATIENCE: Final = 15.0
"""Seconds in which an application that is deleted is gone; its replicas have given up their videos."""

_CONTROLLER: Final = ("SERVE_CONTROLLER_ACTOR", "serve")
"""The actor, and its namespace, that is there where Ray Serve runs."""


def application_name(data: Path) -> str:
    """A name that the service of a folder has again when it is started anew."""
    place = f"{os.uname().nodename}:{data.resolve()}"
    return f"fb-serve-{hashlib.sha256(place.encode()).hexdigest()[:8]}"


@contextlib.contextmanager
def served(ray: Any, serve: Any, name: str, *, local: bool) -> Iterator[None]:
    """Ray Serve, without any port, where an application of a name is not there before and after the block.

    Ray Serve itself ends too, if it was begun here and nobody else has begun to use it.
    """
    begun = not _is_served(ray)
    serve.start(proxy_location="Disabled")
    if not begun:
        _delete(serve, name)  # of a service that was killed
    try:
        yield
    finally:
        if not local:  # a cluster of our own ends with all that is in it
            with contextlib.suppress(ray.exceptions.RayError, TimeoutError):
                _delete(serve, name)
                if begun and not serve.status().applications:
                    serve.shutdown()


def _is_served(ray: Any) -> bool:
    name, namespace = _CONTROLLER
    try:
        ray.get_actor(name, namespace=namespace)
    except ValueError:
        return False
    return True


def _delete(serve: Any, name: str) -> None:
    """Delete an application, if there is one.

    Raises:
        TimeoutError: it is still there.
    """
    if name not in serve.status().applications:
        return
    serve.delete(name, _blocking=False)
    deadline = time.monotonic() + _PATIENCE
    while name in serve.status().applications:
        if time.monotonic() > deadline:
            raise TimeoutError(name)
        time.sleep(0.1)
