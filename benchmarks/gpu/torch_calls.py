"""The stages that measure what one would use otherwise: diffusers' classes in torch, eager and compiled, in bf16."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.gpu.pairs import WAN, Pair
from benchmarks.gpu.stage import Item, Results, Unavailable, Work
from benchmarks.gpu.timing import summary
from benchmarks.random_checkpoint import Model

_MOST = 40.0
"""Seconds of calls that are timed, beside the first."""
_CALLS = 6
_COMPILE = 240.0
"""Seconds that compiling one is expected to take."""


def torch_calls(pair: Pair, work: Work) -> Iterable[Item]:
    """The measurements of this stage: one call of each model, batch 1."""
    device = _device(tiny=work.tiny)
    for name, model in (("large", pair.large), ("small", pair.small)):
        for how in ("eager", "compile"):
            yield _item(name, model, how, pair, device)


def _device(*, tiny: bool) -> str:
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if tiny:
        return "cpu"
    raise Unavailable("this torch has no CUDA, or finds no GPU; install a build of torch for CUDA.")


def _item(name: str, model: Model, how: str, pair: Pair, device: str) -> Item:
    def run(_: Results) -> dict[str, Any]:
        return _measured(model, how, pair, device)

    expected = None if device == "cpu" or how == "eager" else lambda _: _COMPILE
    return Item(key=f"{name} {how}", run=run, expected=expected)


def _measured(model: Model, how: str, pair: Pair, device: str) -> dict[str, Any]:
    import torch

    network = _network(model, device)
    inputs = _inputs(model, pair, device)
    # Without a GPU this is a trial, of which nobody wants to wait for a C++ compiler.
    backend = "inductor" if device == "cuda" else "eager"
    called = network if how == "eager" else torch.compile(network, backend=backend)
    once = _timed(lambda: called(**inputs, return_dict=False), device)
    with torch.no_grad():
        first, times = once(), [once()]
        while len(times) < _CALLS and sum(times) < _MOST:
            times.append(once())
    found: dict[str, Any] = {**summary(first, times), "device": device}
    if device == "cuda":
        found["peak bytes"] = torch.cuda.max_memory_allocated()
        del network, called, inputs, once
        torch.compiler.reset()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return found


def _network(model: Model, device: str) -> Any:
    """A transformer with random weights, made where it runs, with the types that ``from_pretrained`` gives it."""
    import diffusers
    import torch

    kind = getattr(diffusers, model.kind)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            network = kind(**model.settings).eval()
    finally:
        torch.set_default_dtype(before)
    kept = kind._keep_in_fp32_modules or ()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.normal_(std=0.02)
            if any(each in name.split(".") for each in kept):
                parameter.data = parameter.data.float()
    return network


def _inputs(model: Model, pair: Pair, device: str) -> dict[str, Any]:
    import torch

    width, height = map(int, pair.size.split("x"))
    kind: dict[str, Any] = {"device": device, "dtype": torch.bfloat16}
    if pair.family == WAN:
        text = model.settings["text_dim"]
        return {
            "hidden_states": torch.randn(1, 16, (pair.frames - 1) // 4 + 1, height // 8, width // 8, **kind),
            "timestep": torch.full((1,), 500.0, device=device),
            "encoder_hidden_states": torch.randn(1, 512, text, **kind),
        }
    frames, rows, columns = (pair.frames - 1) // 8 + 1, height // 32, width // 32
    text, channels = model.settings.get("caption_channels", 4096), model.settings.get("in_channels", 128)
    return {
        "hidden_states": torch.randn(1, frames * rows * columns, channels, **kind),
        "encoder_hidden_states": torch.randn(1, 256, text, **kind),
        "timestep": torch.full((1,), 500.0, device=device),
        "encoder_attention_mask": torch.ones(1, 256, **kind),
        "num_frames": frames,
        "height": rows,
        "width": columns,
        "rope_interpolation_scale": (8 / 24, 32, 32),
    }


def _timed(call: Callable[[], object], device: str) -> Callable[[], float]:
    import torch

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def once() -> float:
        wait()
        begun = time.perf_counter()
        call()
        wait()
        return time.perf_counter() - begun

    return once
