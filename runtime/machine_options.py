"""What a program may be told of the machine that it runs on, whatever the job: device, threads, graphs and memory.

Standard library only: every ``--help`` needs it.
"""

from __future__ import annotations

from typing import Final

from flowblending.runtime.memory.plan import MODES
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
