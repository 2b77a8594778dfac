"""Asking the runtime to run trajectories and to tell what enters the layers of the transformers on them.

The trajectories have to be those that the runtime samples on, so the runtime makes them, from its own program. This
package does not import it: the request goes to a process of its own, as a compilation does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flowblending import FlowBlendingError
from flowblending.contracts.graph import GraphSpec, PipelineSpec
from flowblending.contracts.manifest import Geometry
from flowblending.system.subprocess_call import EndedError, call_in_subprocess

REVISION = 1
"""Raised when the same pair, prompts and options give other ranges: the observed graphs, and all that samples."""

_MODULE = "flowblending.engine.build.fp8.trajectories_worker"


@dataclass(frozen=True, kw_only=True)
class HeldWeight:
    """A weight in a file of the checkpoint.

    Attributes:
        name: of the graph's input that it is.
        path: absolute, of the file.
        offset: of its first byte.
        shape: in the file.
        itemsize: bytes of a number.
        kind: ONNX's number of its type.
    """

    name: str
    path: Path
    offset: int
    shape: tuple[int, ...]
    itemsize: int
    kind: int


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A graph for ONNX Runtime, with absolute path, and the weights that it takes as inputs."""

    onnx: Path
    spec: GraphSpec
    weights: tuple[HeldWeight, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Trajectories:
    """What to sample.

    Attributes:
        prompts: each has its number as the seed of its noise.
        schedule: ``LSL`` or ``L20 S20 L10``.
        steps: None is the family's default.
    """

    prompts: tuple[str, ...]
    schedule: str
    steps: int | None


@dataclass(frozen=True, kw_only=True)
class RangesRequest:
    """What to run.

    Attributes:
        graphs: ``text_encoder``, and ``large`` and ``small``, which have the output ``ranges`` [rows, 2] behind the
            velocity; without any, the trajectories are planned and that is all.
        tokenizer: ``tokenizer.json``.
        sample: whether to sample; else the prompts are encoded, and nothing more.
    """

    pipeline: PipelineSpec
    geometry: Geometry
    graphs: Mapping[str, Graph]
    tokenizer: Path
    trajectories: Trajectories
    sample: bool


@dataclass(frozen=True, kw_only=True)
class Observed:
    """The calls of a model: the timestep of each, and its ranges fp32 [calls, rows, 2]."""

    timesteps: tuple[float, ...]
    ranges: npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class TrajectoryRanges:
    """What was found.

    Attributes:
        schedule, steps, solver, guidance: of the program that was run.
        calls: by model, for all prompts together.
        models: those that the schedule runs; empty when nothing was sampled.
        conditions: what the transformers take beside latents and timestep, [samples, ...] by input: both guidance
            branches of the first prompts.
    """

    schedule: str
    steps: int
    solver: str
    guidance: float
    calls: Mapping[str, int]
    models: Mapping[str, Observed]
    conditions: Mapping[str, npt.NDArray[Any]]


def measure(request: RangesRequest, progress: Callable[[str], None]) -> TrajectoryRanges:
    """Run trajectories in a process of its own, with one transformer in memory at a time.

    Raises:
        UsageError: schedule and steps that make no program.
        FlowBlendingError: an engine fails or gives infinite values, or memory runs out.
    """
    try:
        measured: TrajectoryRanges = call_in_subprocess(_MODULE, request, progress)
    except EndedError as end:
        if end.killed:
            raise FlowBlendingError(
                "The calibration was killed, most likely because memory ran out; use a machine with more memory, "
                "or calibrate there and give the file to --fp8-calibration here."
            ) from None
        raise FlowBlendingError(f"The calibration ended with {end.how} ({end.last}); try fewer prompts.") from None
    return measured
