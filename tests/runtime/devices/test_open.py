"""Where bundles run: every combination of bundle, choice and machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowblending import FlowBlendingError, UsageError
from flowblending.contracts.manifest import Manifest
from flowblending.engine.backends.onnxruntime.run import CPU_PROVIDER, CUDA_PROVIDER
from flowblending.runtime.devices import open as place
from flowblending.runtime.devices.host import HostDevice
from flowblending.runtime.devices.open import device_kind, open_device
from tests.support import manifests


@pytest.fixture
def graphs(tmp_path: Path) -> Manifest:
    """A bundle that ONNX Runtime runs."""
    return manifests.write(tmp_path / "graphs")


@pytest.fixture
def plans(tmp_path: Path) -> Manifest:
    """A bundle of plans for two architectures."""
    return manifests.write(tmp_path / "plans", backend="tensorrt", targets=("sm89", "sm90"))


def machine(monkeypatch: pytest.MonkeyPatch, gpu: str | None, *providers: str) -> None:
    """Pretend to be on a machine with this GPU and with an ONNX Runtime of these providers."""
    monkeypatch.setattr(place, "gpu_architecture", lambda _index=0: gpu)
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: [*providers, CPU_PROVIDER])


@pytest.mark.parametrize(
    ("gpu", "providers", "automatic"),
    [
        (None, (), "cpu"),
        (None, (CUDA_PROVIDER,), "cpu"),
        ("sm86", (), "cpu"),
        ("sm86", (CUDA_PROVIDER,), "cuda"),
    ],
)
def test_graphs_go_where_they_can_or_where_they_are_told(
    monkeypatch: pytest.MonkeyPatch, graphs: Manifest, gpu: str | None, providers: tuple[str, ...], automatic: str
) -> None:
    machine(monkeypatch, gpu, *providers)
    assert device_kind("auto", graphs) == automatic
    assert device_kind("cpu", graphs) == "cpu"
    assert device_kind("cuda", graphs) == "cuda"


def test_plans_go_to_a_gpu_and_are_refused_on_the_cpu(monkeypatch: pytest.MonkeyPatch, plans: Manifest) -> None:
    machine(monkeypatch, None)
    assert device_kind("auto", plans) == device_kind("cuda", plans) == "cuda"
    for ask in (device_kind, open_device):
        with pytest.raises(UsageError, match=r"--device cpu was given, but large is a TensorRT plan.*onnxruntime"):
            ask("cpu", plans)


def test_one_plan_is_enough_to_need_a_gpu(monkeypatch: pytest.MonkeyPatch, graphs: Manifest, plans: Manifest) -> None:
    machine(monkeypatch, None)
    mixed = graphs.model_copy(update={"components": {**graphs.components, "small": plans.components["small"]}})
    assert device_kind("auto", mixed) == "cuda"
    with pytest.raises(UsageError, match="small is a TensorRT plan"):
        device_kind("cpu", mixed)


def test_the_cpu_opens_without_a_gpu(monkeypatch: pytest.MonkeyPatch, graphs: Manifest) -> None:
    machine(monkeypatch, None)
    for choice in ("auto", "cpu"):
        assert isinstance(open_device(choice, graphs), HostDevice)


def test_a_machine_without_a_gpu_is_told_what_to_do(
    monkeypatch: pytest.MonkeyPatch, graphs: Manifest, plans: Manifest
) -> None:
    machine(monkeypatch, None)
    for choice in ("cuda", "auto"):
        with pytest.raises(FlowBlendingError, match=r"no CUDA driver or GPU was found; .*--backend onnxruntime"):
            open_device(choice, plans)
    with pytest.raises(FlowBlendingError, match=r"GPU was found; leave it out, and this bundle runs on the CPU"):
        open_device("cuda", graphs)


def test_plans_for_another_gpu_are_refused_before_it_is_touched(
    monkeypatch: pytest.MonkeyPatch, plans: Manifest
) -> None:
    machine(monkeypatch, "sm120")
    with pytest.raises(FlowBlendingError, match=r"compiled for sm89 and sm90, but this GPU is sm120; .*--target sm120"):
        open_device("auto", plans)
