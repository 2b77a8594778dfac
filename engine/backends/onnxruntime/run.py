"""ONNX Runtime: runs the exported ONNX file itself, on CPUs everywhere and on GPUs through its CUDA provider."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from flowblending import DeviceError, FlowBlendingError, OutOfMemoryError
from flowblending.contracts.graph import GraphSpec, Precision
from flowblending.engine.backends.checks import check_tensors
from flowblending.engine.backends.gpu import free_memory
from flowblending.engine.backends.tensor import CPU, CUDA, Tensor
from flowblending.system.extras import install
from flowblending.system.processors import processors

CUDA_PROVIDER = "CUDAExecutionProvider"
CPU_PROVIDER = "CPUExecutionProvider"
BINDINGS = 64
"""Bindings kept per engine: a sampler uses a handful, a streaming decoder two sets of caches."""


def installed_version() -> str:
    """The version of the one ONNX Runtime distribution that is installed.

    Raises:
        FlowBlendingError: none is installed, or both, which overwrite each other's files.
    """
    found = {}
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    if not found:
        raise FlowBlendingError(
            f"ONNX Runtime is not installed; {install('cpu', 'cuda')} (the second for an NVIDIA GPU)."
        )
    if len(found) == 2:
        raise FlowBlendingError(
            "Both onnxruntime and onnxruntime-gpu are installed and overwrite each other's files; "
            "uninstall both, then install the one you want."
        )
    return next(iter(found.values()))


def cuda_available() -> bool:
    """Whether this ONNX Runtime has the CUDA provider."""
    installed_version()
    import onnxruntime

    return CUDA_PROVIDER in onnxruntime.get_available_providers()


@dataclass(frozen=True, kw_only=True)
class BoundWeight:
    """A weight that a graph takes as an input.

    Attributes:
        name: of the input.
        tensor: its bytes, of a numpy type of the same size.
        kind: ONNX's number of its type, which numpy may not have (bfloat16).
    """

    name: str
    tensor: Tensor
    kind: int


class OrtEngine:
    """A session over an ONNX file with external data.

    Tensors are bound by address, without a copy, and a set of tensors that comes again is not bound again.

    Args:
        path: the ONNX file; its external data lies beside it.
        spec: its inputs and outputs.
        device: ``cpu`` or ``cuda``.
        index: which of the GPUs that CUDA shows.
        stream: handle of the CUDA stream that every call is enqueued on; unused on the CPU.
        threads: of the CPU; None takes every core that this process may use.
        weights: inputs of the graph beside those of ``spec``, which are the same in every call. With any, nodes run in
            the order of the file and as they stand there, so that the graph can say what is in memory together.

    Raises:
        FlowBlendingError: ONNX Runtime is missing, lacks the device, or cannot load the file.
    """

    def __init__(
        self,
        path: Path,
        spec: GraphSpec,
        *,
        device: str = CPU,
        index: int = 0,
        stream: int = 0,
        threads: int | None = None,
        weights: Sequence[BoundWeight] = (),
    ) -> None:
        installed_version()
        import onnxruntime

        if device == CPU and spec.precision == Precision.BF16:
            raise FlowBlendingError(
                f"Engine {spec.name} is bf16, which ONNX Runtime's CPU kernels cannot run; "
                "build it with --precision fp32, fp16-mixed or fp16."
            )
        if device == CUDA and CUDA_PROVIDER not in onnxruntime.get_available_providers():
            raise FlowBlendingError(f"This ONNX Runtime has no CUDA provider; {install('cuda')}, or use --device cpu.")
        self._spec = spec
        self._device = device
        self._index = index if device == CUDA else 0
        self._stream = stream
        self._weights = tuple(weights)
        try:
            self._session: Any = _session(path, self._providers(), _options(threads, device, lean=bool(weights)))
        except FlowBlendingError:
            raise
        except Exception as error:
            raise FlowBlendingError(
                f"ONNX Runtime cannot load {path} ({_first_line(error)}); build the bundle again."
            ) from None
        self._run_options = _run_options(device)
        self._bindings: OrderedDict[tuple[tuple[str, int, tuple[int, ...], np.dtype[Any]], ...], Any] = OrderedDict()

    @property
    def spec(self) -> GraphSpec:
        """Inputs, outputs and precision."""
        return self._spec

    def run(self, tensors: Mapping[str, Tensor], stream: int) -> None:
        """Run the graph on bound memory; see `Engine.run`."""
        if stream != self._stream:
            raise FlowBlendingError(
                f"Engine {self._spec.name} was opened for another CUDA stream; open one engine per stream."
            )
        key = tuple((name, tensor.address, tensor.shape, tensor.dtype) for name, tensor in tensors.items())
        binding = self._bindings.get(key)
        if binding is not None:
            self._bindings.move_to_end(key)
        else:
            binding = self._bind(tensors)
            self._bindings[key] = binding
            if len(self._bindings) > BINDINGS:
                self._bindings.popitem(last=False)
        try:
            self._session.run_with_iobinding(binding, self._run_options)
        except Exception as error:
            raise _kind(error)(
                f"ONNX Runtime failed in engine {self._spec.name} ({_first_line(error)}); "
                "if memory ran out, build a smaller size."
            ) from None

    def _bind(self, tensors: Mapping[str, Tensor]) -> Any:
        if self._session is None:
            raise FlowBlendingError(f"Engine {self._spec.name} has been closed; open it again.")
        check_tensors(self._spec, tensors, self._device)
        binding = self._session.io_binding()
        for specs, bind in ((self._spec.inputs, binding.bind_input), (self._spec.outputs, binding.bind_output)):
            for spec in specs:
                tensor = tensors[spec.name]
                bind(spec.name, self._device, self._index, tensor.dtype, tensor.shape, tensor.address)
        for weight in self._weights:
            held = weight.tensor
            binding.bind_input(weight.name, self._device, self._index, weight.kind, held.shape, held.address)
        return binding

    def _providers(self) -> list[Any]:
        if self._device != CUDA:
            return [CPU_PROVIDER]
        place = {"device_id": str(self._index), "user_compute_stream": str(self._stream)}
        return [(CUDA_PROVIDER, {**place, **_bounds(self._index)}), CPU_PROVIDER]

    def close(self) -> None:
        """Drop the session and its memory."""
        self._bindings.clear()
        self._session = None
        self._weights = ()


def _options(threads: int | None, device: str, *, lean: bool) -> Any:
    """Session options whose threads leave the cores to whoever needs them.

    A session's idle threads spin for a while in case another call comes. Here another engine's call comes, and
    spinning takes the cores that it needs: two sessions taking turns on two idle cores ran at half speed (22.0 ms
    for a call of 9.9 ms). On a machine that does other work as well, spinning of any length cost a factor of two
    to three; threads that stop at the end of a call, and spin for 20 microseconds inside one, were the fastest there.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # Errors are raised anyway, and told in our words.
    options.log_severity_level = 4
    if lean:
        # The file's own order: in any other, ONNX Runtime casts weights long before they are needed, and of eight
        # layers of Wan 14B it held 6 GB. Rewritten nodes would lose their place.
        options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        # It keeps what was once taken, and weights are of many sizes: memory grew by half in the second call.
        options.enable_cpu_mem_arena = False
    if device == CUDA:
        # Weights of a session's own, each of its size, and not parts of what it keeps for calls.
        options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    options.intra_op_num_threads = threads or processors()
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry("session.intra_op.spin_duration_us", "20")
    return options


def _session(path: Path, providers: list[Any], options: Any) -> Any:
    import onnxruntime

    on_gpu = providers != [CPU_PROVIDER]
    if on_gpu:
        # Finds the CUDA libraries of pip's packages, which are not on the loader's path.
        onnxruntime.preload_dlls()
    session = onnxruntime.InferenceSession(path, sess_options=options, providers=providers, enable_fallback=0)
    # Without its libraries the provider is left out with no more than a log line, and CPU kernels would be given
    # addresses of GPU memory.
    if on_gpu and CUDA_PROVIDER not in session.get_providers():
        raise FlowBlendingError(
            "ONNX Runtime could not load its CUDA provider, probably because cuDNN or cuBLAS is missing; "
            f"{install('cuda')}, or use --device cpu."
        )
    return session


def _run_options(device: str) -> Any:
    if device != CUDA:
        return None
    import onnxruntime

    options = onnxruntime.RunOptions()
    # Waiting is the caller's business: the next engine is enqueued on the same stream.
    options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    # The value that it has anyhow. ONNX Runtime's Python code asks for it on every call, and loses 30 microseconds
    # in an exception when it is not there.
    options.add_run_config_entry("gpu_graph_id", "-1")
    return options


def _bounds(index: int) -> dict[str, str]:
    """Have a session take what it needs and no more: it would double what it has whenever that is too small.

    It may have what is free now, so that what does not fit is said in its own words and not in the driver's.
    """
    free = free_memory(index)
    limit = {} if free is None else {"gpu_mem_limit": str(free)}
    return {"arena_extend_strategy": "kSameAsRequested", **limit}


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _kind(error: Exception) -> type[FlowBlendingError]:
    """What an error of ONNX Runtime's, which has no class that tells, is about."""
    if re.search(r"bad_alloc|allocate memory|out of memory|Available memory", str(error), re.I):
        return OutOfMemoryError
    return DeviceError if re.search(r"CUDA (failure|error)|cudaError", str(error)) else FlowBlendingError
