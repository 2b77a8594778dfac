"""config.pbtxt: Triton's description of a model, in protobuf's text format (model_config.proto of Triton's common)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from flowblending import UsageError, __version__
from flowblending.contracts.graph import TensorSpec
from flowblending.contracts.manifest import Component, Manifest
from flowblending.engine.backends.registry import gpu_components
from flowblending.runtime.machine_options import DEFAULTS, MachineSettings
from flowblending.runtime.serve.triton.signature import (
    DEVICE,
    TYPES,
    Port,
    inputs,
    outputs,
)

MARK = "# Written by fb-export-triton"
"""How a configuration begins that may be replaced by another."""


@dataclass(frozen=True, kw_only=True)
class QueuePolicy:
    """What happens to requests that find the model at work.

    Attributes:
        size: how many of one priority may wait, 0 for any number; one more is refused at once.
        timeout: seconds that a request may wait, after which it is refused; None for any time. A request's own
            timeout goes first.
        priorities: levels that a request may ask for, from 1, which is served first; it is on the middle one when it
            says nothing. 0 serves all in the order of their arrival.
    """

    size: int = 0
    timeout: float | None = None
    priorities: int = 0

    def __post_init__(self) -> None:
        if self.size < 0:
            raise UsageError(f"A queue of {self.size} requests was asked for; give a positive number to --max-queue.")
        if self.timeout is not None and not 1e-6 <= self.timeout <= 1e9:
            raise UsageError(f"A timeout of {self.timeout:g} seconds was given; give a positive one to --timeout.")
        if not 0 <= self.priorities <= 100:
            raise UsageError(f"{self.priorities} priorities were asked for; give a number from 1 to 100.")


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where a model runs.

    Attributes:
        device: ``auto``, ``cpu`` or ``cuda``, as for ``fb-run``.
        gpus: their numbers, one process with its own engines on each; none for every GPU that the server has.
        machine: how a process uses it.
    """

    device: str = "auto"
    gpus: tuple[int, ...] = ()
    machine: MachineSettings = DEFAULTS


def video_config(name: str, manifest: Manifest, queue: QueuePolicy, place: Placement) -> str:
    """The configuration of a model that makes videos.

    Decoupled, because a request has many responses; without batching, because a video fills a GPU.
    """
    plans = gpu_components(manifest)
    kind = "KIND_CPU" if place.device == "cpu" else "KIND_GPU" if plans or place.device == "cuda" else "KIND_AUTO"
    parameters = {DEVICE: place.device, **place.machine.values()}
    return _lines(
        f"{MARK} {__version__}, for bundle {manifest.id}.",
        *_head(name, "python"),
        "model_transaction_policy { decoupled: true }",
        *_queue(queue),
        *_instances(kind, place.gpus),
        *_ports("input", inputs(manifest)),
        *_ports("output", outputs(manifest)),
        *(
            f"parameters {{ key: {_text(key)} value {{ string_value: {_text(value)} }} }}"
            for key, value in parameters.items()
        ),
    )


def plan_config(name: str, backend: str, component: Component, place: Placement, profiles: int) -> str:
    """The configuration of one TensorRT plan, for those who write the sampling loop themselves.

    A plan runs on the architecture that it was compiled for, so it is named for that one and there is no default.
    Triton takes the optimization profile that fits a request best, of those that are listed; of none, the first alone.

    Args:
        name: of the model.
        backend: what Triton calls what runs it.
        component: whose plan it is.
        place: where it runs.
        profiles: how many the plan has.
    """
    spec = component.spec
    files = {target.removeprefix("sm"): f"{target}.plan" for target in component.targets}
    return _lines(
        f"{MARK} {__version__}. Needs TensorRT {component.backend_version} in the server.",
        *_head(name, backend),
        *(
            f"cc_model_filenames {{ key: {_text(f'{number[:-1]}.{number[-1]}')} value: {_text(file)} }}"
            for number, file in files.items()
        ),
        *_instances("KIND_GPU", place.gpus, profiles),
        *_ports("input", map(_port, spec.inputs)),
        *_ports("output", map(_port, spec.outputs)),
    )


def _port(spec: TensorSpec) -> Port:
    shape = tuple(dim if isinstance(dim, int) else -1 for dim in spec.shape)
    return Port(name=spec.name, dtype=spec.dtype, shape=shape)


def _head(name: str, backend: str) -> Iterable[str]:
    return f"name: {_text(name)}", f"backend: {_text(backend)}", "max_batch_size: 0"


def _queue(queue: QueuePolicy) -> Iterable[str]:
    """The dynamic batcher, for its queue only.

    Left out where nothing is asked of it: it looks at requests that had to wait twice a second, where Triton's
    default scheduler passes them on at once.
    """
    if queue == QueuePolicy():
        return
    levels = queue.priorities
    policy: Mapping[str, object] = {
        "timeout_action": "REJECT",
        "default_timeout_microseconds": 0 if queue.timeout is None else round(queue.timeout * 1e6),
        "allow_timeout_override": "true",
        "max_queue_size": queue.size,
    }
    yield "dynamic_batching {"
    if levels:
        yield f"  priority_levels: {levels}"
        yield f"  default_priority_level: {(levels + 2) // 2 if levels > 1 else 1}"
    yield "  default_queue_policy {"
    yield from (f"    {key}: {value}" for key, value in policy.items())
    yield "  }"
    yield "}"


def _instances(kind: str, gpus: Sequence[int], profiles: int = 1) -> Iterable[str]:
    where = f" gpus: [ {', '.join(map(str, gpus))} ]" if gpus else ""
    if profiles > 1:
        where += f" profile: [ {', '.join(_text(str(index)) for index in range(profiles))} ]"
    yield f"instance_group [ {{ count: 1 kind: {kind}{where} }} ]"


def _ports(what: str, ports: Iterable[Port]) -> Iterable[str]:
    for port in ports:
        optional = " optional: true" if port.optional else ""
        dims = ", ".join(map(str, port.shape))
        yield f"{what} {{ name: {_text(port.name)} data_type: {TYPES[port.dtype]} dims: [ {dims} ]{optional} }}"


def _text(value: str) -> str:
    """A string literal: JSON's escapes are among those of protobuf's text format."""
    return json.dumps(value)


def _lines(*lines: str) -> str:
    return "\n".join(lines) + "\n"
