"""What a cluster's nodes do for a batch. Knows no Ray: `ray_pool` makes actors of its classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flowblending import FlowBlendingError
from flowblending.runtime.batch.messages import Doing, Failed, Finished, MessageConsole, Ready, Unable, Warned
from flowblending.runtime.batch.tasks import Task
from flowblending.runtime.batch.worker import make
from flowblending.runtime.cluster.node import NodeBundle, bundle_here, device_here
from flowblending.runtime.machine_options import MachineSettings
from flowblending.runtime.pipeline import Pipeline
from flowblending.system.scratch import scratch, sweep_scratch


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What an actor needs to know."""

    name: str
    bundle: NodeBundle
    device: str
    machine: MachineSettings


@dataclass(frozen=True, kw_only=True)
class RenderedVideo:
    """A finished video: the file's content, warnings, and the seconds it took."""

    content: bytes
    warnings: tuple[str, ...]
    seconds: float


class ProgressBoard:
    """An actor that knows what every worker does."""

    def __init__(self) -> None:
        self._doing: dict[str, Doing] = {}

    def put(self, name: str, doing: Doing) -> None:
        """Told by a worker."""
        self._doing[name] = doing

    def read(self) -> dict[str, Doing]:
        """Asked by the one that gives the work."""
        return self._doing


class Maker:
    """An actor with an engine pair."""

    def __init__(self, setting: Setting, board: Any) -> None:
        self._setting = setting
        self._board = board
        self._pipeline: Pipeline | None = None

    def open(self) -> Ready | Unable:
        """Open the bundle on this node."""
        setting = self._setting
        try:
            bundle = bundle_here(setting.bundle)
            device = device_here(setting.device, bundle)
        except FlowBlendingError as error:
            return Unable(why=str(error))
        sweep_scratch()
        self._pipeline = Pipeline(
            bundle=bundle,
            device=device,
            machine=setting.machine,
        )
        return Ready()

    def make(self, number: int, job: Any, name: str) -> RenderedVideo | Failed:
        """Make one video, and give back the file."""
        assert self._pipeline is not None
        warnings: list[str] = []

        def tell(message: Doing | Warned) -> None:
            if isinstance(message, Warned):
                warnings.append(message.line)
            elif self._board is not None:
                self._board.put.remote(self._setting.name, message)

        with scratch() as folder:
            out = folder / name
            result = make(self._pipeline, Task(number=number, job=job, out=out), MessageConsole(tell))
            if isinstance(result, Finished):
                return RenderedVideo(content=out.read_bytes(), warnings=tuple(warnings), seconds=result.seconds)
            return result
