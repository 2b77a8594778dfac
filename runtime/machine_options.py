"""What a program may be told of the machine that it runs on, whatever the job: device, threads, graphs and memory.

Standard library only: every ``--help`` needs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from flowblending.runtime.memory.plan import AUTO, MODES
from flowblending.runtime.option import COMPARE, EXPORT_TRITON, RUN, SERVE, Option

MACHINE: Final = "machine"

DEVICES: Final = ("auto", "cpu", "cuda")
MOST_THREADS: Final = 4096
"""More than any machine has; ONNX Runtime makes as many as it is told to, until the system gives no more."""

DEVICE: Final = Option(
    name="device",
    default="auto",
    section=MACHINE,
    help="for onnxruntime bundles",
    usual="auto",
    choices=DEVICES,
    example="cpu",
)
THREADS: Final = Option(
    name="threads",
    kind=int,
    nullable=True,
    section=MACHINE,
    help="CPU threads of ONNX Runtime",
    usual="one per processor, within a container's limit",
    metavar="N",
    unit="threads",
    least=1,
    most=MOST_THREADS,
    example=2,
)
NO_GRAPHS: Final = "off"
CUDA_GRAPH: Final = Option(
    name="cuda_graph",
    default="auto",
    section=MACHINE,
    help="launch steps that come again as CUDA graphs, where the engines are TensorRT's and enough steps are alike; or "
    "enqueue every step",
    usual="auto",
    choices=("auto", NO_GRAPHS),
    example=NO_GRAPHS,
    programs=frozenset({RUN, SERVE, EXPORT_TRITON}),
)
MEMORY: Final = Option(
    name="memory",
    default="auto",
    section=MACHINE,
    help="of the GPU: every engine stays open, or only those that a phase of the run needs, or of these as much as "
    "fits, and every call streams the rest of the weights from the host",
    usual="auto, the first of these that fits what is free",
    choices=MODES,
    example="phases",
    programs=frozenset({RUN, COMPARE, EXPORT_TRITON, SERVE}),
)


@dataclass(frozen=True, kw_only=True)
class MachineSettings:
    """How engines use the machine that they run on: what the options above but for the device were set to.

    Attributes:
        threads: of ONNX Runtime on the CPU; None for one per processor.
        cuda_graph: whether steps that come again are launched as CUDA graphs, where that can be.
        memory: ``auto``, ``resident``, ``phases`` or ``stream``; see `flowblending.runtime.memory.plan`.
    """

    threads: int | None = None
    cuda_graph: bool = True
    memory: str = AUTO

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> MachineSettings:
        """Of values by the options' names; what a program does not offer is as usual.

        Args:
            values: of a command line, or the texts that stand for them in a file.
        """
        threads = values.get(THREADS.name)
        return cls(
            threads=None if threads is None else int(threads),
            cuda_graph=values.get(CUDA_GRAPH.name) != NO_GRAPHS,
            memory=values.get(MEMORY.name, AUTO),
        )

    def values(self) -> dict[str, str]:
        """What is not as usual, as texts of which `of` makes the same."""
        graphs = {} if self.cuda_graph else {CUDA_GRAPH.name: NO_GRAPHS}
        threads = {} if self.threads is None else {THREADS.name: str(self.threads)}
        return {**({MEMORY.name: self.memory} if self.memory != AUTO else {}), **threads, **graphs}


DEFAULTS: Final = MachineSettings()
"""Where nothing was said."""
