from __future__ import annotations

import sys
import threading
from types import SimpleNamespace

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
    monkeypatch.setattr(trt_library, "_LOADED", set())
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(FlowBlendingError, match=rf"RT.* is not installed \(.+\); run pip install '\.\[{backend}\]'"):
        trt_library.load.__wrapped__(backend)


@pytest.mark.parametrize(("first", "second"), [("tensorrt", RTX), (RTX, "tensorrt")])
def test_two_libraries_of_the_same_names_are_not_mixed_up(
    monkeypatch: pytest.MonkeyPatch, first: str, second: str
) -> None:
    module = SimpleNamespace(__version__="1.0", ILogger=type("ILogger", (), {}))
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(trt_library, "_LOADED", set())
    loaded = trt_library.load.__wrapped__(first)
    assert trt_library.load.__wrapped__(first).title == loaded.title
    with pytest.raises(FlowBlendingError, match=f"{loaded.title} is in use in this process, .* in another process"):
        trt_library.load.__wrapped__(second)


def test_messages_are_read_while_the_library_adds_some() -> None:
    messages, stop = Messages(), threading.Event()

    def compile_in_threads() -> None:
        while not stop.is_set():
            messages.add(3, "line")

    threads = [threading.Thread(target=compile_in_threads) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(300):
            assert messages.error() == "it gave no reason"
            messages.lines()
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_the_first_error_is_the_cause() -> None:
    messages = Messages()
    assert messages.error() == "it gave no reason"
    for severity, line in ((4, "verbose"), (3, "info"), (2, "warning"), (1, "the\n  cause"), (0, "its consequence")):
        messages.add(severity, line)
    assert messages.lines() == ("info", "warning", "the\n  cause", "its consequence")
    assert messages.error() == "the cause"
    messages.clear()
    assert messages.error() == "it gave no reason"
