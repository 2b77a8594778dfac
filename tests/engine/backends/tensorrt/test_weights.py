from __future__ import annotations

import ctypes
import os
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from flowblending import FlowBlendingError
from flowblending.engine.backends.tensorrt.weights import map_weights
from tests.support.graphs import linear


def test_weights_are_the_bytes_that_onnx_itself_reads(tmp_path: Path) -> None:
    path = linear(tmp_path).onnx
    weights = map_weights(path, path.read_bytes())
    expected = {each.name: numpy_helper.to_array(each).tobytes() for each in onnx.load(path).graph.initializer}
    assert {each.name: ctypes.string_at(each.address, each.nbytes) for each in weights} == expected


def test_an_entry_without_a_length_reaches_to_the_end_of_its_file(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"abc\0\0\0\0")
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=(1,), data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="weights")
    tensor.external_data.add(key="offset", value="3")
    model = helper.make_model(helper.make_graph([], "g", [], [], [tensor])).SerializeToString()
    (weight,) = map_weights(tmp_path / "m.onnx", model)
    assert ctypes.string_at(weight.address, weight.nbytes) == bytes(4)


def test_missing_and_short_files_are_named(tmp_path: Path) -> None:
    graph = linear(tmp_path)
    os.truncate(graph.data, 100)
    with pytest.raises(FlowBlendingError, match=r"large\.onnx\.data is 100 bytes long, but the weight weight .* 16384"):
        map_weights(graph.onnx, graph.onnx.read_bytes())
    graph.data.unlink()
    with pytest.raises(FlowBlendingError, match=r"large\.onnx\.data of large\.onnx cannot be read \(No such file"):
        map_weights(graph.onnx, graph.onnx.read_bytes())


def test_what_is_no_model_is_refused_wherever_it_breaks(tmp_path: Path) -> None:
    graph = linear(tmp_path)
    content = graph.onnx.read_bytes()
    for broken in (b"", b"x" * 999, b"\xff" * 40, b"version https://git-lfs.github.com/spec/v1\noid sha256:0"):
        with pytest.raises(FlowBlendingError, match=r"large\.onnx is not an ONNX model \(.+\); export it again"):
            map_weights(graph.onnx, broken)
    for length in range(len(content)):
        try:
            map_weights(graph.onnx, content[:length])
        except FlowBlendingError:
            continue
        # The only cuts that leave a whole graph are those behind it.
        assert onnx.load_from_string(content[:length]).graph.node
