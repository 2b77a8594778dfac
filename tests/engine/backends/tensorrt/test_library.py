from __future__ import annotations

import sys

import pytest

from flowblending import FlowBlendingError
from flowblending.engine.backends.tensorrt import library as trt_library
from flowblending.engine.backends.tensorrt.library import Messages
from tests.support.plans import RTX


@pytest.mark.parametrize(
    ("backend", "modules"),
    [("tensorrt", ["tensorrt"]), (RTX, ["tensorrt_rtx", "tensorrt_rtx_bindings", "onnxruntime_ep_nv_tensorrt_rtx"])],
)
def test_a_library_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, backend: str, modules: list[str]) -> None:
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(FlowBlendingError, match=rf"RT.* is not installed \(.+\); run pip install '\.\[{backend}\]'"):
        trt_library.load.__wrapped__(backend)


def test_the_first_error_is_the_cause() -> None:
    messages = Messages()
    assert messages.error() == "it gave no reason"
    for severity, line in ((4, "verbose"), (3, "info"), (2, "warning"), (1, "the\n  cause"), (0, "its consequence")):
        messages.add(severity, line)
    assert messages.lines() == ("info", "warning", "the\n  cause", "its consequence")
    assert messages.error() == "the cause"
    messages.clear()
    assert messages.error() == "it gave no reason"
