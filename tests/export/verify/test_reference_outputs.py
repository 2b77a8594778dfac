"""What is kept of torch's outputs, and at which sizes a component is verified."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from flowblending.contracts.graph import GraphSpec, Precision, TensorSpec
from flowblending.export.graph.exportable import Exportable, Part, Tensors
from flowblending.export.verify import reference_outputs
from flowblending.export.verify.reference_outputs import ReferenceRecorder

OWN = ({"batch": 1, "width": 2}, {"batch": 3, "width": 5})
SMALLEST, LARGEST = {"batch": 1, "width": 4, "frames": 9}, {"batch": 2, "width": 4, "frames": 9}


def part(factors: Mapping[Precision, float]) -> Part:
    """y = factor * x, with another factor in each precision, and a module of ten weights."""

    def load(precision: Precision) -> Exportable:
        def inputs(sizes: Mapping[str, int], generator: torch.Generator) -> Tensors:
            return (torch.randn((sizes["batch"], 3, sizes["width"]), generator=generator),)

        shape = ("batch", 3, "width")
        return Exportable(
            spec=GraphSpec(
                name="toy",
                precision=precision,
                inputs=(TensorSpec(name="x", dtype="float32", shape=shape),),
                outputs=(TensorSpec(name="y", dtype="float32", shape=shape),),
            ),
            module=torch.nn.Linear(10, 1, bias=False),
            reference=lambda x: (factors[precision] * x,),
            inputs=inputs,
            export_sizes=OWN[0],
            verify_sizes=OWN,
        )

    return Part(name="toy", sources=(), load=load, revision="toy 1")


def verify(exportable: Exportable) -> None:
    """Call the reference as a verification does."""
    for seed, sizes in enumerate(exportable.verify_sizes, start=1):
        exportable.reference(*exportable.inputs(sizes, torch.Generator().manual_seed(seed)))


def test_the_profile_is_verified_and_kept_in_fp32(tmp_path: Path) -> None:
    recorder = ReferenceRecorder(part({Precision.FP32: 2.0, Precision.BF16: 3.0}), (SMALLEST, LARGEST))
    for precision in (Precision.BF16, Precision.FP32, Precision.BF16):
        verify(recorder.part.load(precision))
    assert recorder.sizes == (*OWN, {"batch": 1, "width": 4}, {"batch": 2, "width": 4})
    assert recorder.save(tmp_path / "toy.npz")
    with np.load(tmp_path / "toy.npz") as kept:
        assert sorted(kept.files) == ["0/inputs/x", "0/outputs/y", "1/inputs/x", "1/outputs/y"]
        assert [kept[f"{index}/inputs/x"].shape for index in "01"] == [(1, 3, 4), (2, 3, 4)]
        for index in "01":
            np.testing.assert_array_equal(kept[f"{index}/outputs/y"], 2 * kept[f"{index}/inputs/x"])


def test_a_size_that_is_verified_anyway_is_kept_and_not_verified_twice(tmp_path: Path) -> None:
    recorder = ReferenceRecorder(part({Precision.FP16: 1.0}), ({**OWN[1], "frames": 1}, {**OWN[1], "frames": 1}))
    verify(recorder.part.load(Precision.FP16))
    assert recorder.sizes == OWN
    assert recorder.save(tmp_path / "toy.npz")


def test_what_is_too_much_work_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Ten weights, each used once at 4 and at 8 places.
    monkeypatch.setattr(reference_outputs, "AFFORDABLE", 2 * 10 * 4)
    recorder = ReferenceRecorder(part({Precision.FP32: 2.0}), (SMALLEST, LARGEST))
    verify(recorder.part.load(Precision.FP32))
    assert recorder.sizes == (*OWN, {"batch": 1, "width": 4})
    monkeypatch.setattr(reference_outputs, "LARGEST", 10)
    assert not recorder.save(tmp_path / "toy.npz")
    assert not (tmp_path / "toy.npz").exists()
