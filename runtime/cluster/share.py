"""What a cluster's workers reserve. Knows no Ray."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from flowblending import UsageError
from flowblending.contracts.manifest import Manifest
from flowblending.engine.backends.registry import BACKENDS, gpu_components
from flowblending.engine.backends.tensor import CPU, CUDA
from flowblending.runtime.machine_options import DEFAULTS, MachineSettings

_SHARE: Final = 0.9
"""Of a node's cores, what all workers on it reserve: actors that hold every core leave none for other work."""


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """Where and how.

    Attributes:
        address: of the cluster, ``auto``, or ``local`` for one of its own on this machine.
        device: ``auto``, ``cpu`` or ``cuda``.
        workers: how many; None takes one per GPU, or one per node on CPUs.
        machine: how a worker uses its node; without a number of threads, workers share a node's cores.
    """

    address: str
    device: str
    workers: int | None = None
    machine: MachineSettings = DEFAULTS


@dataclass(frozen=True, kw_only=True)
class Share:
    """What Ray reserves for each of ``count`` workers, the device, and how a worker uses its node."""

    count: int
    cpus: float
    gpus: int
    device: str
    machine: MachineSettings = DEFAULTS


def plan_share(options: ClusterOptions, manifests: Sequence[Manifest], nodes: Sequence[Mapping[str, float]]) -> Share:
    """How many workers, and what each of them reserves.

    Args:
        manifests: of the bundles; plans of some back ends need a GPU.
        nodes: the resources of every node that is alive, as ``ray.nodes()`` tells them.

    Raises:
        UsageError: the cluster has no GPU for a bundle that needs one, or fewer than there should be workers.
    """
    if node_kind(options.device, manifests) == CUDA:
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
            machine=dataclasses.replace(options.machine, threads=None),
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
        machine=dataclasses.replace(options.machine, threads=options.machine.threads or max(1, min(cores) // each)),
    )


def node_kind(choice: str, manifests: Sequence[Manifest]) -> str:
    """``cpu`` or ``cuda``: where workers run bundles on the nodes.

    Args:
        choice: ``auto``, ``cpu`` or ``cuda``.
        manifests: of the bundles; plans of some back ends need a GPU.

    Raises:
        UsageError: ``cpu`` was chosen for such plans.
    """
    plans = [manifest.components[name] for manifest in manifests for name in gpu_components(manifest)]
    if plans and choice == CPU:
        title = BACKENDS.get(plans[0].backend).title
        raise UsageError(f"--device cpu was given, but this bundle's {title} plans run on GPUs only; leave it out.")
    return CUDA if plans or choice == CUDA else CPU
