"""Every name of TensorRT's bindings that this package uses is there: in the latest release, and in TensorRT-RTX's."""

from __future__ import annotations

import json

import pytest

from flowblending.engine.backends.tensorrt.library import load
from tests.support.plans import RTX, needs_rtx
from tests.support.tensorrt_names import RECORD, used_names

RTX_ALONE = {
    *("ComputeCapability", "DynamicShapesKernelSpecializationStrategy", "IRuntimeCache.deserialize"),
    *("IBuilderConfig.num_compute_capabilities", "IBuilderConfig.set_compute_capability", "IRuntimeCache.serialize"),
    *("IRuntimeConfig.create_runtime_cache", "IRuntimeConfig.set_runtime_cache"),
    "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy",
}
"""Used where the library has what they are about."""


def test_names_of_tensorrt() -> None:
    record = json.loads(RECORD.read_text())
    names = {f"{kind}.{name}" for kind, members in record["names"].items() for name in members}
    used = used_names()
    assert len(used) > 80
    assert used - names - set(record["module"]) == RTX_ALONE
    assert record["version"].startswith("11.4.")


@needs_rtx
def test_names_of_tensorrt_rtx() -> None:
    trt = load(RTX).trt
    for name in sorted(used_names()):
        found = trt
        for part in name.split("."):
            assert hasattr(found, part), name
            found = getattr(found, part)


def test_a_name_that_is_not_there_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.support.tensorrt_names._MODULE", frozenset(("library",)))
    assert "logger" in used_names()
