"""A replica as a deployment of Ray Serve, which is given as a module: see `runtime.cluster.connection`."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Final

from flowblending import FlowBlendingError
from flowblending.runtime.cluster.share import Share
from flowblending.runtime.serve.http.replicas.messages import ReplicaSetting
from flowblending.runtime.serve.http.replicas.replica import Opened, Replica

VIDEOS: Final = "videos"
"""The deployment's name."""

_LOOK: Final = 1.0
"""Seconds between two looks at how many videos are in the making, and how long they have to be too many."""

_HEALTH: Final = 2.0
"""Seconds between two questions whether a replica is there; one that died is replaced then."""

_HUNG: Final = 600.0
"""Seconds in which a replica answers that it is there; a bundle that is opened may hold it up."""

_END: Final = 6 * 3600.0
"""Seconds that a replica which is one too many has to end its video."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How many replicas there are.

    Attributes:
        fewest: of them, when there is nothing to do.
        models: bundles that a replica has open at a time.
        idle: seconds after which a replica that is not needed ends.
    """

    fewest: int = 1
    models: int = 1
    idle: float = 600.0


def deployment(
    ray: Any, serve: Any, *, name: str, setting: ReplicaSetting, share: Share, scale: Scale, front: Any
) -> Any:
    """An application of replicas.

    Args:
        ray, serve: the modules.
        name: of the application.
        setting: of each replica.
        share: what it reserves; at most so many of them.
        front: the service's end, an actor of `Front`.
    """

    class Videos(Replica):
        """A replica, by what Ray gives it."""

        def __init__(self) -> None:
            try:
                super().__init__(setting, ray.get_runtime_context().get_node_id())
            except FlowBlendingError as error:
                ray.get(front.complain.remote(str(error)))
                raise

        @serve.multiplexed(max_num_models_per_replica=scale.models)  # type: ignore[untyped-decorator]
        async def model(self, name: str) -> Opened:
            return await self.opened(name)

        async def watched(self, id: str) -> bool | None:
            try:
                return bool(await front.is_watched.remote(id))
            except ray.exceptions.ActorDiedError:
                return None

        async def check_health(self) -> None:
            """Asked by Ray Serve now and then. A service that was killed leaves no replica."""
            if await self.watched("") is None:
                await asyncio.to_thread(serve.delete, name, _blocking=False)

    settings = serve.deployment(
        name=VIDEOS,
        max_ongoing_requests=1,
        ray_actor_options={"num_cpus": share.cpus, "num_gpus": share.gpus},
        graceful_shutdown_timeout_s=_END,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=_HEALTH,
        health_check_timeout_s=_HUNG,
        autoscaling_config={
            "min_replicas": scale.fewest,
            "max_replicas": share.count,
            "target_ongoing_requests": 1,
            "metrics_interval_s": _LOOK,
            "look_back_period_s": 2 * _LOOK,
            "upscale_delay_s": _LOOK,
            "downscale_delay_s": scale.idle,
        },
    )
    return settings(Videos).bind()
