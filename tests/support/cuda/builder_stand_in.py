"""TensorRT's compiler where the GPU is a stand-in: a plan is the graph itself, with the weights that it was told of.

As the real one, it reads large weights where it is told that they are in memory, and nothing from the graph's folder
once the plan is written.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import onnx

from flowblending.contracts.graph import ExportedGraph
from tests.support.cuda.tensorrt_stand_in import DataType, ILogger, write_plan

__all__ = [
    "Builder",
    "BuilderFlag",
    "IProgressMonitor",
    "IStreamWriter",
    "LayerType",
    "MemoryPoolType",
    "OnnxParser",
    "float32",
]

float32 = DataType.FLOAT
_SCRATCH = 1 << 16


class BuilderFlag(Enum):
    """None that names a type: networks are strongly typed."""

    TF32 = 0
    WEIGHT_STREAMING = 20


class LayerType(Enum):
    """Those that are looked for; there are none."""

    ATTENTION_INPUT = 0
    SHUFFLE = 1
    ELEMENTWISE = 2
    DEQUANTIZE = 3


class MemoryPoolType(Enum):
    WORKSPACE = 0


class IProgressMonitor:
    """Told the phases."""

    def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
        """A phase begins."""


class IStreamWriter:
    """Given the plan."""

    def write(self, data: bytes) -> int:
        """Take some of it."""
        raise NotImplementedError


@dataclass(frozen=True)
class _Tensor:
    name: str
    dtype: DataType
    shape: tuple[int, ...]

    @classmethod
    def of(cls, value: onnx.ValueInfoProto) -> _Tensor:
        kind = value.type.tensor_type
        dims = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in kind.shape.dim)
        return cls(value.name, DataType(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name), dims)


class _Network:
    """What the parser fills."""

    num_layers = 0

    def __init__(self) -> None:
        self.model: onnx.ModelProto | None = None
        self.path: Path | None = None

    @property
    def _inputs(self) -> list[_Tensor]:
        assert self.model is not None
        return [_Tensor.of(value) for value in self.model.graph.input]

    @property
    def _outputs(self) -> list[_Tensor]:
        assert self.model is not None
        return [_Tensor.of(value) for value in self.model.graph.output]

    @property
    def num_inputs(self) -> int:
        return len(self._inputs)

    @property
    def num_outputs(self) -> int:
        return len(self._outputs)

    def get_input(self, index: int) -> _Tensor:
        return self._inputs[index]

    def get_output(self, index: int) -> _Tensor:
        return self._outputs[index]


class OnnxParser:
    """Reads a graph whose weights are elsewhere in memory."""

    num_errors = 0

    def __init__(self, network: _Network, logger: ILogger) -> None:
        self._network = network
        self._logger = logger
        self._given: dict[str, bytes] = {}

    def load_model_proto(self, model: bytes, path: str) -> bool:
        self._network.model = onnx.ModelProto.FromString(model)
        self._network.path = Path(path)
        return True

    def load_initializer(self, name: str, address: int, size: int) -> bool:
        self._given[name] = ctypes.string_at(address, size)
        return True

    def parse_model_proto(self) -> bool:
        assert self._network.model is not None
        for tensor in self._network.model.graph.initializer:
            if tensor.data_location != onnx.TensorProto.EXTERNAL:
                continue
            if tensor.name not in self._given:
                self._logger.log(1, f"the weight {tensor.name} was not given")
                return False
            tensor.ClearField("external_data")
            tensor.data_location = onnx.TensorProto.DEFAULT
            tensor.raw_data = self._given[tensor.name]
        return True


class _Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, list[list[int]]] = {}

    def set_shape(self, name: str, *shapes: Sequence[int]) -> None:
        self.shapes[name] = [list(shape) for shape in shapes]

    def get_shape(self, name: str) -> list[list[int]]:
        return self.shapes[name]


class _TimingCache:
    def serialize(self) -> bytes:
        return b"kernels' times"


class _Config:
    """What a compilation is asked for."""

    progress_monitor: IProgressMonitor | None = None

    def __init__(self) -> None:
        self.profiles: list[_Profile] = []
        self.flags: set[BuilderFlag] = set()

    def set_flag(self, flag: BuilderFlag) -> None:
        self.flags.add(flag)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.profiles)

    def add_optimization_profile(self, profile: _Profile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, content: bytes) -> _TimingCache:  # noqa: ARG002
        return _TimingCache()

    def set_timing_cache(self, cache: _TimingCache, ignore_mismatch: bool) -> bool:  # noqa: ARG002
        return True

    def get_timing_cache(self) -> _TimingCache:
        return _TimingCache()

    def set_memory_pool_limit(self, pool: MemoryPoolType, size: int) -> None:
        """Remember nothing: it takes no memory."""


class Builder:
    """Compiles."""

    def __init__(self, logger: ILogger) -> None:
        self._logger = logger

    def create_network(self, flags: int) -> _Network:  # noqa: ARG002
        return _Network()

    def create_builder_config(self) -> _Config:
        return _Config()

    def create_optimization_profile(self) -> _Profile:
        return _Profile()

    def build_serialized_network_to_stream(self, network: _Network, config: _Config, writer: IStreamWriter) -> bool:
        assert network.model is not None
        assert network.path is not None
        if config.progress_monitor is not None:
            config.progress_monitor.phase_start("Building Engine", None, 1)
        spec = ExportedGraph.read(network.path).spec
        profiles: list[Mapping[str, Any]] = [each.shapes for each in config.profiles]
        content = network.model.SerializeToString()
        # Where the stand-in's own package lies, which goes with the tests' temporary files.
        folder = _package().parent / "graphs"
        folder.mkdir(exist_ok=True)
        graph = folder / f"{hashlib.sha256(content).hexdigest()}.onnx"
        graph.write_bytes(content)
        with tempfile.TemporaryDirectory() as temporary:
            plan = Path(temporary) / "plan"
            fixed = {
                each.name: [list(each.resolve({}))] * 3
                for each in spec.inputs
                if all(isinstance(dim, int) for dim in each.shape)
            }
            write_plan(
                plan,
                onnx=graph,
                spec=spec,
                profiles=[{**fixed, **each} for each in profiles],
                scratch=_SCRATCH,
                weights=len(content),
                weight_streaming=BuilderFlag.WEIGHT_STREAMING in config.flags,
            )
            written = plan.read_bytes()
        assert json.loads(written)
        self._logger.log(3, f"Max Scratch Memory: {_SCRATCH} bytes")
        self._logger.log(3, f"Total Weights Memory: {len(content)} bytes")
        return writer.write(written) == len(written)


def _package() -> Path:
    import tensorrt

    return Path(str(tensorrt.__file__)).parent
