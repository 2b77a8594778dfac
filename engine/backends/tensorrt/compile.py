"""One graph -> one plan, in this process. `trt_build` calls it in a process of its own."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from flowblending import FlowBlendingError
from flowblending.contracts.graph import Dim, GraphSpec, TensorSpec, is_transformer
from flowblending.engine.backends.backend import Fp8AttentionError, PlanInfo
from flowblending.engine.backends.gpu import free_memory
from flowblending.engine.backends.protocol import ShapeProfile
from flowblending.engine.backends.tensorrt.attention import quantise_attention
from flowblending.engine.backends.tensorrt.kept import Kept
from flowblending.engine.backends.tensorrt.library import Library, load
from flowblending.engine.backends.tensorrt.weights import map_weights

_MEMORY = re.compile(r"out of memory|OutOfMemory|cudaErrorMemoryAllocation|bad_alloc|insufficient memory", re.I)
_NOT_FUSED = "not supported by a dedicated kernel"


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """What to compile: see `trt_build.build_plan`. ``targets`` is not empty."""

    library: str
    onnx: Path
    spec: GraphSpec
    profiles: tuple[ShapeProfile, ...]
    targets: tuple[str, ...]
    out: Path
    weight_streaming: bool = False


def compile_plan(request: PlanRequest, progress: Callable[[str], None]) -> PlanInfo:
    """Compile a graph and write the plan to ``request.out``, which is left incomplete on an error.

    Every type is the one that the graph names (strong typing). Weights are read from the mapped file, so
    that the compiler's memory is about the size of the weights, not three times that.

    Raises:
        FlowBlendingError: the graph or the profile is not usable, or the compiler refuses.
        OSError: the plan cannot be written.
    """
    start = time.monotonic()
    library = load(request.library)
    trt = library.trt
    library.messages.clear()
    progress("reading the graph")
    builder = trt.Builder(library.logger)
    network = _made(library, request, builder.create_network(_network_flags(trt)))
    # The parser and the mapped weights must outlive the compilation.
    kept = _parse(library, request, network)
    _check_network(library, request, network)
    _allow_decomposition(trt, network, request.spec.name)
    in_fp8 = quantise_attention(trt, network, _attention_layers(trt, network))
    config = _made(library, request, builder.create_builder_config())
    for profile in request.profiles:
        _add_profile(library, request, profile, builder, config)
    _set_targets(library, request, config)
    if request.weight_streaming:
        config.set_flag(trt.BuilderFlag.WEIGHT_STREAMING)
    else:
        _require_given_memory(library, config)
    timings = None if _ahead_of_time(library) else _use_timings(library, request, config)
    config.progress_monitor = _monitor(trt, progress)
    progress("compiling")
    with request.out.open("wb") as file:
        writer = _writer(trt, file)
        built = builder.build_serialized_network_to_stream(network, config, writer)
        if writer.error is not None:
            raise writer.error
    if not built:
        heads = {layer.get_input(0).shape[-1] for layer in _attention_layers(trt, network)}
        raise _refusal(library, request, heads, fp8=in_fp8 > 0)
    del kept
    if timings is not None:
        timings.write(bytes(config.get_timing_cache().serialize()))
    weights, scratch = (_logged_bytes(library, f"{title} Memory") for title in ("Total Weights", "Max Scratch"))
    return PlanInfo(
        bytes=request.out.stat().st_size,
        weights_bytes=max(weights, default=None),
        scratch_bytes=max(scratch, default=None),
        # One for each profile, in their order; where they are not, which is whose is unknown.
        profile_scratch=scratch if len(scratch) == max(1, config.num_optimization_profiles) else (),
        layers=network.num_layers,
        seconds=time.monotonic() - start,
        version=library.version,
    )


def _network_flags(trt: Any) -> int:
    """Strong typing must be asked for as long as there is another kind, whose builder flags name precisions."""
    return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED) if hasattr(trt.BuilderFlag, "FP16") else 0


def _parse(library: Library, request: PlanRequest, network: Any) -> object:
    """Fill the network from the ONNX file; what is returned must be kept until it is compiled."""
    try:
        model = request.onnx.read_bytes()
    except OSError as error:
        raise FlowBlendingError(
            f"The graph {request.onnx} cannot be read ({error.strerror}); export it again."
        ) from None
    weights = map_weights(request.onnx, model)
    parser = library.trt.OnnxParser(network, library.logger)
    parsed = (
        parser.load_model_proto(model, str(request.onnx))
        and all(parser.load_initializer(weight.name, weight.address, weight.nbytes) for weight in weights)
        and parser.parse_model_proto()
    )
    if not parsed:
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        reason = library.messages.error()
        if errors:
            reason = f"{errors[0].desc()} at {errors[0].node_operator() or 'the graph'} {errors[0].node_name()}".strip()
        raise FlowBlendingError(
            f"{library.title} {library.version} cannot read {request.onnx} ({reason}); "
            f"export it again, or install a newer {library.title}."
        )
    return parser, weights


def _check_network(library: Library, request: PlanRequest, network: Any) -> None:
    """Whether the graph takes and gives what its specification says."""
    expected = {spec.name: f"{spec.dtype} {[_fixed(dim) for dim in spec.shape]}" for spec in request.spec.inputs}
    found = {}
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        found[tensor.name] = f"{library.dtype_name(tensor.dtype)} {list(tensor.shape)}"
    # Of the outputs' shapes the compiler may know more than the specification.
    expected |= {spec.name: spec.dtype for spec in request.spec.outputs}
    for index in range(network.num_outputs):
        tensor = network.get_output(index)
        found[tensor.name] = library.dtype_name(tensor.dtype)
    if found != expected:
        raise FlowBlendingError(
            f"The graph {request.onnx} has {_listed(found)}, but its specification {request.spec.name} "
            f"has {_listed(expected)}; export it again."
        )


def _fixed(dim: Dim) -> int:
    return dim if isinstance(dim, int) else -1


def _listed(tensors: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {what}" for name, what in tensors.items())


def _allow_decomposition(trt: Any, network: Any, component: str) -> None:
    """Let the compiler take attention apart where no fused kernel exists: in fp32, and in the VAE's wide heads.

    A transformer's 16-bit attention stays whole: either it is fused or the compilation fails, and never does
    a plan silently hold the scores of all pairs of tokens in memory.
    """
    for layer in _attention_layers(trt, network):
        if layer.get_input(0).dtype == trt.float32 or not is_transformer(component):
            layer.__class__ = trt.IAttentionInputLayer  # get_layer knows the base class only
            layer.attention.decomposable = True


def _attention_layers(trt: Any, network: Any) -> Iterator[Any]:
    """The layers that queries, keys and values (in this order) go into."""
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            yield layer


def _add_profile(library: Library, request: PlanRequest, sizes: ShapeProfile, builder: Any, config: Any) -> None:
    """Tell the compiler a range for every input that has symbolic sizes."""
    dynamic = [spec for spec in request.spec.inputs if any(isinstance(dim, str) for dim in spec.shape)]
    if not dynamic:
        return
    profile = _made(library, request, builder.create_optimization_profile())
    for spec in dynamic:
        smallest, usual, largest = _shapes(request, sizes, spec)
        profile.set_shape(spec.name, smallest, usual, largest)
        # set_shape returns nothing and accepts anything, but gives back what it has kept.
        if [tuple(shape) for shape in profile.get_shape(spec.name)] != [smallest, usual, largest]:
            raise _refusal(library, request)
    if config.add_optimization_profile(profile) < 0:
        raise _refusal(library, request)


def _shapes(
    request: PlanRequest, sizes: ShapeProfile, spec: TensorSpec
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    try:
        shapes = sizes.shapes(spec)
    except KeyError as error:
        raise FlowBlendingError(
            f"The profile gives no size for {error.args[0]} of input {spec.name} of {request.spec.name}; "
            "give a range for every symbol."
        ) from None
    for low, usual, high in zip(*shapes, strict=True):
        if not 0 < low <= usual <= high:
            raise FlowBlendingError(
                f"The profile gives input {spec.name} of {request.spec.name} the shapes {list(shapes[0])}, "
                f"{list(shapes[1])} and {list(shapes[2])}, but 0 < smallest <= most usual <= largest was expected; "
                "correct the ranges."
            )
    return shapes


def _ahead_of_time(library: Library) -> bool:
    """Whether it compiles without looking at a GPU: TensorRT-RTX, which measures nothing meanwhile."""
    return hasattr(library.trt, "ComputeCapability")


def _use_timings(library: Library, request: PlanRequest, config: Any) -> Kept:
    """Let the compiler know which kernels were the fastest at other times, and how much of the GPU's memory is free.

    It measures kernels on the GPU, which is most of what a build takes, and would take all of the GPU's memory for it.
    """
    timings = Kept("timings", library.version, request.targets[0])
    cache = config.create_timing_cache(timings.read()) or config.create_timing_cache(b"")
    if cache is None or not config.set_timing_cache(cache, False):
        raise _refusal(library, request)
    free = free_memory()
    if free is not None:
        config.set_memory_pool_limit(library.trt.MemoryPoolType.WORKSPACE, free)
    return timings


def _require_given_memory(library: Library, config: Any) -> None:
    """Have TensorRT-RTX allocate nothing in a call, whatever the sizes: what it needs is in the scratch memory.

    Calls that allocate would run out of memory in the middle of a video, and cannot be captured as a CUDA graph. Plans
    that stream weights cannot have it: TensorRT-RTX 1.7.1 refuses both flags together.
    """
    flag = getattr(library.trt.BuilderFlag, "REQUIRE_USER_ALLOCATION", None)
    if flag is not None:
        config.set_flag(flag)


def _set_targets(library: Library, request: PlanRequest, config: Any) -> None:
    """Name the GPUs to compile for, where that is not always the one present."""
    if not hasattr(config, "num_compute_capabilities"):
        return
    known = library.trt.ComputeCapability.__members__
    config.num_compute_capabilities = len(request.targets)
    for index, target in enumerate(request.targets):
        # Whether a GPU that has no name can be compiled for is left to the compiler.
        capability = known.get(target.upper(), known["CURRENT"])
        if not config.set_compute_capability(capability, index):
            raise _refusal(library, request)


def _monitor(trt: Any, progress: Callable[[str], None]) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc] # the library has no type information
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase: str, _parent: str | None, _steps: int) -> None:
            progress(phase)

        def phase_finish(self, _phase: str) -> None:
            pass

        def step_complete(self, _phase: str, _step: int) -> bool:
            return True

    return Monitor()


def _writer(trt: Any, file: BinaryIO) -> Any:
    class Writer(trt.IStreamWriter):  # type: ignore[misc] # the library has no type information
        def __init__(self) -> None:
            trt.IStreamWriter.__init__(self)
            self.error: OSError | None = None

        def write(self, data: bytes) -> int:
            # An exception would end in the library, which tells it to nobody.
            try:
                return file.write(data)
            except OSError as error:
                self.error = error
                return 0

    return Writer()


def _logged_bytes(library: Library, title: str) -> tuple[int, ...]:
    """The numbers that the compiler told under a title: of scratch memory it tells one for each profile."""
    found = (re.search(rf"{title}: (\d+) bytes", line) for line in library.messages.lines())
    return tuple(int(match[1]) for match in found if match)


def _made(library: Library, request: PlanRequest, thing: Any) -> Any:
    if thing is None:
        raise _refusal(library, request)
    return thing


def _refusal(
    library: Library, request: PlanRequest, heads: Collection[int] = (), *, fp8: bool = False
) -> FlowBlendingError:
    """The sentence for a call that failed, with the compiler's own words.

    ``heads``: the attention's head sizes. ``fp8``: whether some attention was to be in fp8.
    """
    name, reason = request.spec.name, library.messages.error()
    if _MEMORY.search(reason):
        return FlowBlendingError(
            f"{library.title} ran out of memory while compiling {name} ({reason}); "
            "stop other programs, use a machine with more memory, or build a smaller size."
        )
    if _NOT_FUSED in reason:
        kernel = (
            f"{library.title} {library.version} has no fused kernel for the {request.spec.precision} attention of "
            f"{name}, whose heads have {' and '.join(map(str, sorted(heads)))} channels, on "
            f"{' and '.join(request.targets)}"
        )
        if fp8:
            return Fp8AttentionError(f"{kernel} at these sizes")
        return FlowBlendingError(f"{kernel}; build it with --precision {name}=fp32.")
    return FlowBlendingError(
        f"{library.title} {library.version} cannot compile {name} for {' and '.join(request.targets)} ({reason}); "
        "try another --precision, --target or --backend."
    )
