"""How a Ray cluster is reached. Ray is imported here and nowhere else; who needs it, gets the module."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from flowblending import FlowBlendingError
from flowblending.system.console import Console
from flowblending.system.extras import install
from flowblending.system.signals import own_handlers

if TYPE_CHECKING:
    from types import ModuleType

LOCAL: Final = "local"
"""The address of a cluster on this machine, which is started for the program and ends with it."""

_TOKEN: Final = "InvalidAuthToken"
"""In what Ray says where a token is missing; ``ray start`` asks for one unless told otherwise."""

_CONNECT_SECONDS: Final = 10.0


def import_ray(otherwise: str) -> ModuleType:
    """Ray, which tells nobody that it is used.

    Args:
        otherwise: what to do without it.

    Raises:
        FlowBlendingError: it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.exceptions
        import ray.util.scheduling_strategies
    except ImportError:
        raise FlowBlendingError(f"Ray is not installed; {install('ray')}, or {otherwise}.") from None
    module: ModuleType = ray
    return module


def import_ray_serve() -> ModuleType:
    """Ray Serve, which logs errors alone.

    Raises:
        FlowBlendingError: it is not installed.
    """
    try:
        import ray.serve
        import ray.serve.exceptions
    except ImportError:
        raise FlowBlendingError(f"Ray Serve is not installed; {install('ray-serve')}, or leave out --ray.") from None
    logging.getLogger("ray.serve").setLevel(logging.CRITICAL)
    module: ModuleType = ray.serve
    return module


@contextlib.contextmanager
def connected(ray: Any, address: str, console: Console) -> Iterator[None]:
    """A connection to a cluster, which ends the actors with it.

    Raises:
        FlowBlendingError: there is no such cluster.
    """
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address == LOCAL:
        quiet["include_dashboard"] = False
    try:
        with console.phase("connecting to Ray"):
            _knock(address)
            with own_handlers():
                _init(ray, address, quiet)
    except Exception as error:  # Ray has plain ones, too
        reason, remedy = first_line(error), "give the address of a running one, or --ray local"
        if address == LOCAL:
            remedy = "try again when this machine has less to do, or leave out --ray"
        if _TOKEN in f"{error} {error.__cause__}":
            reason = "it asks for a token"
            remedy = "set RAY_AUTH_MODE=token, and have the cluster's token in ~/.ray/auth_token"
        raise FlowBlendingError(f"Cannot connect to the Ray cluster {address} ({reason}); {remedy}.") from None
    try:
        yield
    finally:
        with own_handlers():  # Ray's library sets SIGTERM's action back to the system's, behind Python
            ray.shutdown()


def _init(ray: Any, address: str, quiet: dict[str, Any]) -> None:
    """Connect; a cluster of our own has a second try, for a busy machine misses the half minute that nodes get."""
    try:
        ray.init(address=address, **quiet)
    except Exception:
        if address != LOCAL:
            raise
        ray.shutdown()
        ray.init(address=address, **quiet)


def _knock(address: str) -> None:
    """See whether anybody answers at ``host:port`` or ``ray://host:port``: Ray itself tries for minutes.

    Raises:
        OSError, OverflowError: nobody does, or there is no such port.
    """
    place = re.fullmatch(r"(?:ray://)?\[?([^/\]]+)\]?:(\d{1,5})", address)
    if place is not None:
        socket.create_connection((place[1], int(place[2])), timeout=_CONNECT_SECONDS).close()


def alive(ray: Any) -> list[dict[str, Any]]:
    """The nodes that are there, as ``ray.nodes()`` tells them."""
    return [node for node in ray.nodes() if node["Alive"]]


def on_node(ray: Any, node: str) -> Any:
    """The strategy that schedules something on a node, by its id, and nowhere else."""
    return ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node_id=node, soft=False)


def how_it_died(error: Exception) -> str:
    """Why an actor gave no answer, in a few words."""
    cause = getattr(error, "cause", None)
    return first_line(cause if isinstance(cause, Exception) else error)


def first_line(error: Exception) -> str:
    """Of what an error says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
