from __future__ import annotations

from types import SimpleNamespace

import pytest

from flowblending import UsageError
from flowblending.engine.backends.tensorrt import targets as trt_targets
from flowblending.engine.backends.tensorrt.targets import check_fp8, check_targets
from tests.support.plans import RTX, needs_rtx, stub


@needs_rtx
def test_targets_of_tensorrt_rtx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trt_targets, "gpu_architecture", lambda: None)
    assert check_targets(RTX, ("sm120", "sm89", "sm120")) == ("sm89", "sm120")
    for unknown in ("foo", "SM89", "sm1", ""):
        with pytest.raises(UsageError, match=rf" sm75, sm86, .*sm120.*, and not for '{unknown}'; choose a --target"):
            check_targets(RTX, ("sm89", unknown))
    for unsupported in ("sm80", "sm90", "sm100"):
        with pytest.raises(
            UsageError, match=rf"not for '{unsupported}', and its support .*; use --backend tensorrt on"
        ):
            check_targets(RTX, ("sm89", unsupported))
    with pytest.raises(UsageError, match=r"No CUDA driver .* give --target with one or more of sm75, .*sm120"):
        check_targets(RTX, ())
    monkeypatch.setattr(trt_targets, "gpu_architecture", lambda: "sm90")
    with pytest.raises(UsageError, match=r"not for 'sm90', and its .* use --backend tensorrt on that machine"):
        check_targets(RTX, ())
    assert check_targets(RTX, ("sm89",)) == ("sm89",)
    monkeypatch.setattr(trt_targets, "gpu_architecture", lambda: "sm86")
    assert check_targets(RTX, ()) == ("sm86",)


def test_targets_of_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trt_targets, "load", lambda _: stub(SimpleNamespace()))
    monkeypatch.setattr(trt_targets, "gpu_architecture", lambda: "sm90")
    assert check_targets("tensorrt", ()) == check_targets("tensorrt", ("sm90",)) == ("sm90",)
    with pytest.raises(UsageError, match=r"'sm89' was given, but TensorRT .* compiles for the GPU present, sm90, or"):
        check_targets("tensorrt", ("sm89",))
    monkeypatch.setattr(trt_targets, "gpu_architecture", lambda: None)
    with pytest.raises(UsageError, match=r"compiles on the GPU that will run the plan, but no CUDA .* tensorrt-rtx"):
        check_targets("tensorrt", ())


@needs_rtx
def test_fp8_is_for_ada_and_later(monkeypatch: pytest.MonkeyPatch) -> None:
    check_fp8(RTX, ("sm89", "sm120"))
    with pytest.raises(UsageError, match=r"sm80 and sm86 cannot compute in it; use --target sm89,sm120,sm121 or some"):
        check_fp8(RTX, ("sm80", "sm89", "sm86"))
    monkeypatch.setattr(trt_targets, "load", lambda _: stub(SimpleNamespace()))
    check_fp8("tensorrt", ("sm90",))
    with pytest.raises(UsageError, match=r"sm75 cannot compute in it; build on a GPU of sm89 or later, or --precision"):
        check_fp8("tensorrt", ("sm75",))
