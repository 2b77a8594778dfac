"""What a cluster's nodes do and what they reserve for it. Knows no Ray: `ray_pool` makes actors of its classes."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import flowblending
from flowblending import FlowBlendingError, UsageError
from flowblending.contracts.manifest import Manifest
from flowblending.engine.backends.registry import BACKENDS, gpu_components
from flowblending.engine.backends.tensor import CPU, CUDA
from flowblending.engine.bundle.bundle import open_bundle
from flowblending.runtime.batch.messages import Doing, Failed, Finished, MessageConsole, Ready, Unable, Warned
from flowblending.runtime.batch.tasks import Task
from flowblending.runtime.batch.worker import make
from flowblending.runtime.devices.open import open_device
from flowblending.runtime.pipeline import Pipeline
from flowblending.system.scratch import scratch, sweep_scratch

_SHARE: Final = 0.9
"""Of a node's cores, what all workers on it reserve: actors that hold every core leave none for other work."""


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """Where and how.

    Attributes:
        address: of the cluster, ``auto``, or ``local`` for one of its own on this machine.
        device: ``auto``, ``cpu`` or ``cuda``.
        workers: how many; None takes one per GPU, or one per node on CPUs.
        threads: of ONNX Runtime on a CPU; None shares a node's cores among its workers.
        cuda_graph: see `Pipeline`.
        memory: as the option says.
    """

    address: str
    device: str
    workers: int | None = None
    threads: int | None = None
    cuda_graph: bool = True
    memory: str = "auto"


@dataclass(frozen=True, kw_only=True)
class Share:
    """What Ray reserves for each of ``count`` workers, the device and the threads that a worker uses."""

    count: int
    cpus: float
    gpus: int
    device: str
    threads: int | None
    cuda_graph: bool = True
    memory: str = "auto"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What an actor needs to know."""

    name: str
    bundle: str
    bundle_id: str
    version: str
    device: str
    threads: int | None
    cuda_graph: bool = True
    memory: str = "auto"


@dataclass(frozen=True, kw_only=True)
class RenderedVideo:
    """A finished video: the file's content, warnings, and the seconds it took."""

    content: bytes
    warnings: tuple[str, ...]
    seconds: float


def plan_share(options: ClusterOptions, manifest: Manifest, nodes: Sequence[Mapping[str, float]]) -> Share:
    """How many workers, and what each of them reserves.

    Args:
        manifest: of the bundle; plans of some back ends need a GPU.
        nodes: the resources of every node that is alive, as ``ray.nodes()`` tells them.

    Raises:
        UsageError: the cluster has no GPU for a bundle that needs one, or fewer than there should be workers.
    """
    plans = gpu_components(manifest)
    if plans and options.device == CPU:
        title = BACKENDS.get(manifest.components[plans[0]].backend).title
        raise UsageError(f"--device cpu was given, but this bundle's {title} plans run on GPUs only; leave it out.")
    if plans or options.device == CUDA:
        gpus = int(sum(node.get("GPU", 0) for node in nodes))
        count = gpus if options.workers is None else options.workers
        if not 0 < count <= gpus:
            raise UsageError(
                f"{max(count, 1)} workers with a GPU each were asked for, but the Ray cluster has {gpus} GPUs; "
                "start nodes with enough GPUs, or use fewer --workers."
            )
        return Share(
            count=count,
            cpus=_SHARE / 2,
            gpus=1,
            device=CUDA,
            threads=None,
            cuda_graph=options.cuda_graph,
            memory=options.memory,
        )
    cores = [int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1]
    if not cores:
        raise UsageError("The Ray cluster has no CPU for workers; start a node with some.")
    count = options.workers or len(cores)
    each = math.ceil(count / len(cores))
    cpus = _SHARE * min(cores) / each
    # Ray takes whole numbers, and fractions below one.
    return Share(
        count=count,
        cpus=math.floor(cpus) if cpus >= 1 else max(round(cpus, 2), 0.01),
        gpus=0,
        device=CPU,
        threads=options.threads or max(1, min(cores) // each),
        memory=options.memory,
    )


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
        where, setting = f"the node {os.uname().nodename}", self._setting
        if flowblending.__version__ != setting.version:
            return Unable(why=f"{where} has flowblending {flowblending.__version__}; install {setting.version} there.")
        try:
            bundle = open_bundle(Path(setting.bundle))
            bundle.verify()
            if bundle.manifest.id != setting.bundle_id:
                return Unable(why=f"{where} has another bundle at {setting.bundle}; copy the one that was given there.")
            device = open_device(setting.device, bundle.manifest)
        except FlowBlendingError as error:
            return Unable(why=f"on {where}: {error}")
        sweep_scratch()
        self._pipeline = Pipeline(
            bundle=bundle,
            device=device,
            threads=setting.threads,
            cuda_graph=setting.cuda_graph,
            memory=setting.memory,
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
