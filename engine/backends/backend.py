"""What a back end is: facts about it, and what it does. Standard library only: command lines read the facts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from flowblending import FlowBlendingError
from flowblending.contracts.graph import ExportedGraph, GraphSpec, Precision

if TYPE_CHECKING:
    from flowblending.engine.backends.protocol import Engine, ShapeProfile


@dataclass(frozen=True, kw_only=True)
class PlanInfo:
    """What a compilation has given.

    Attributes:
        bytes: size of the plan.
        weights_bytes: memory of the weights on the device; None if the compiler did not tell.
        scratch_bytes: memory on the device for one execution context at the largest shapes; None likewise.
        profile_scratch: the same for the largest shapes of each optimization profile; empty likewise.
        layers: of the network, before the compiler fused them.
        seconds: that it took.
        version: of the library.
    """

    bytes: int
    weights_bytes: int | None
    scratch_bytes: int | None
    layers: int
    seconds: float
    version: str
    profile_scratch: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What engine files tell of themselves without being run. Each function takes the file.

    Attributes:
        product_types: the types of the operands of every layer, by the name of its node; empty if the file does not
            tell.
        fused_attention: the nodes whose work is done in kernels of fused attention, by name.
        fp8_attention: those whose kernel reads fp8.
    """

    product_types: Callable[[Path], Mapping[str, frozenset[str]]]
    fused_attention: Callable[[Path], frozenset[str]]
    fp8_attention: Callable[[Path], frozenset[str]]


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """What became of a graph.

    Attributes:
        files: the engine's own file first.
        plan: what the compiler stated; None where the graph is the engine.
        listing: how to read the engine's file; None if it tells nothing.
    """

    files: tuple[Path, ...]
    plan: PlanInfo | None = None
    listing: Listing | None = None


class Fp8AttentionError(FlowBlendingError):
    """Why attention that was to be one fp8 kernel is not: no sentence for the user, but what the build says of it.

    The build then goes on without.
    """


class Compile(Protocol):
    """Compiles an exported graph into ``folder``."""

    def __call__(
        self,
        graph: ExportedGraph,
        *,
        profiles: Sequence[ShapeProfile],
        targets: tuple[str, ...],
        weight_streaming: bool,
        folder: Path,
        progress: Callable[[str], None],
    ) -> Compiled:
        """Compile; what ``progress`` raises ends it.

        Args:
            graph: its files may be moved where the graph is the engine, and stay as they are otherwise.
            profiles: the sizes that the engine must take.
            targets: as the back end's ``targets`` gave them.
            weight_streaming: whether the engine shall be able to leave weights in the host's memory; only of back ends
                that can (`Backend.weight_streaming`).
            folder: to write into; file names begin with the graph's name.
            progress: told what is being done.

        Raises:
            Fp8AttentionError: fp8 attention that the graph asks for has no kernel.
            FlowBlendingError: the compiler refuses.
        """
        ...


class Open(Protocol):
    """Opens a compiled engine."""

    def __call__(
        self, path: Path, spec: GraphSpec, *, device: str, index: int, stream: int, threads: int | None, streamed: int
    ) -> Engine:
        """Open.

        Args:
            path: the engine's own file.
            spec: what it takes and gives.
            device: ``cpu`` or ``cuda``; ``cuda`` only where the back end needs or can use a GPU.
            index: which of the GPUs that CUDA shows; it is the current one.
            stream: handle of the CUDA stream that it will be run on; 0 on the CPU.
            threads: on the CPU; None for every core.
            streamed: bytes of weights to leave in the host's memory, and stream from there in every call; 0 unless it
                was compiled for it.

        Raises:
            FlowBlendingError: the library is missing, or the file cannot be loaded.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Backend:
    """A back end.

    Attributes:
        name: as ``--backend`` and manifests write it.
        title: as people call it.
        help: what it does, for --help.
        precisions: in which it can run these graphs.
        base: its usual precision of transformers and text encoder, and that of an fp8 transformer where it is not fp8.
        on_gpu: the usual precision of transformers where this machine's GPU will run them, if that is another one.
        needs_gpu: whether its engines run on NVIDIA GPUs only; else they run on the CPU too.
        any_size: whether an engine takes every size; else it is compiled for some, which are part of its cache key.
        compiles: whether an engine is a file of its own, tied to the system and the kind of processor that it was
            compiled on; else the graph is the engine, and ``compile`` gives no plan.
        cuda_graphs: whether its engines' calls can be captured (`CapturableEngine`).
        fp8_attention: whether there are kernels of attention in fp8.
        weight_streaming: whether engines can be compiled that leave weights in the host's memory, from which calls
            stream them.
        suffix: of engine files; the engine of the component ``large`` is ``large`` and this.
        revision: changes when it compiles the same graph to another engine; part of the cache key.
        triton: the name of Triton's own back end for its engines; None if there is none.
        version: of the installed library; raises FlowBlendingError, which names the extra to install.
        compile: see `Compile`.
        open: see `Open`.
        targets: what it will compile for: the GPU architectures given, or the GPU present; raises UsageError for those
            that it does not know. None where it compiles for no GPU in particular.
        check_precisions: raises UsageError for precisions of components that some target cannot compute in.
        uses_gpu: whether the installed library can run engines on a GPU, where ``needs_gpu`` is not said.
    """

    name: str
    title: str
    help: str
    precisions: tuple[Precision, ...]
    base: Precision
    needs_gpu: bool
    any_size: bool
    compiles: bool
    cuda_graphs: bool = False
    fp8_attention: bool = False
    weight_streaming: bool = False
    suffix: str
    revision: str = ""
    triton: str | None = None
    version: Callable[[], str]
    compile: Compile
    open: Open
    targets: Callable[[Sequence[str]], tuple[str, ...]] | None = None
    check_precisions: Callable[[Sequence[str], Mapping[str, Precision]], None] | None = None
    uses_gpu: Callable[[], bool] = lambda: False
    on_gpu: Precision | None = None
