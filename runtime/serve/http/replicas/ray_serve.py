"""Ray Serve on a cluster, which others may use too: begun where it is not there, and left as it was."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

_PATIENCE: Final = 10.0
"""Seconds in which the replicas of a deleted application end by themselves; one that found no room never does."""

_KILLED: Final = 5.0
"""Seconds in which it is gone when its replicas have been killed."""

_NAMESPACE: Final = "serve"
_CONTROLLER: Final = "SERVE_CONTROLLER_ACTOR"
"""The actor that is there where Ray Serve runs, and the namespace of all its actors."""


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
        _delete(ray, serve, name)  # of a service that was killed
    try:
        yield
    finally:
        if not local:  # a cluster of our own ends with all that is in it
            with contextlib.suppress(ray.exceptions.RayError):
                _delete(ray, serve, name)
                if begun and not serve.status().applications:
                    serve.shutdown()


def _is_served(ray: Any) -> bool:
    try:
        ray.get_actor(_CONTROLLER, namespace=_NAMESPACE)
    except ValueError:
        return False
    return True


def _delete(ray: Any, serve: Any, name: str) -> None:
    """Delete an application, if there is one; what its replicas make is wanted no more."""
    if name not in serve.status().applications:
        return
    serve.delete(name, _blocking=False)
    if _is_gone(serve, name, _PATIENCE):
        return
    for actor in ray.util.list_named_actors(all_namespaces=True):
        if actor["namespace"] == _NAMESPACE and actor["name"].startswith(f"SERVE_REPLICA::{name}#"):
            with contextlib.suppress(ValueError):  # it ended meanwhile
                ray.kill(ray.get_actor(actor["name"], namespace=_NAMESPACE))
    _is_gone(serve, name, _KILLED)


def _is_gone(serve: Any, name: str, seconds: float) -> bool:
    """Whether an application is gone within so many seconds."""
    deadline = time.monotonic() + seconds
    while name in serve.status().applications:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
