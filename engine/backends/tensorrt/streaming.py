"""Weights that stay in the host's memory, from which every call streams them.

A plan that was compiled with ``BuilderFlag.WEIGHT_STREAMING`` has all its weights in a buffer of the host once it is
read, and as many of them on the device as its budget says; the others come through scratch memory, of which contexts
take so much more. The budget is set before there is a context, and takes memory of the device at once (TensorRT's and
TensorRT-RTX's documentation of weight streaming, and of ``ICudaEngine.weight_streaming_budget_v2``).
"""

from __future__ import annotations

from typing import Any, Final

_TRIES: Final = 3
"""Each copies weights to the device, which takes as long as a call or two that stream them."""


class StreamingError(Exception):
    """Why it was not done, and what it would come to; no sentence for the user."""


def leave_in_host(engine: Any, streamed: int) -> None:
    """Take so many bytes of an engine's weights off the device, those counted that it streams them into.

    Args:
        engine: that has no context yet.
        streamed: bytes, more than 0.

    Raises:
        StreamingError: it cannot leave so many there.
    """
    streamable = int(engine.streamable_weights_size)
    room = budget = streamable - streamed
    for _ in range(_TRIES):
        if budget <= 0:
            break
        taken = _scratch(engine, budget)
        if budget + taken <= room:
            return
        # The fewer weights are kept, the more it may be.
        budget = room - taken - taken // 8
    if room < 0 or _scratch(engine, 0) > room:
        raise StreamingError(
            f"of {streamable} bytes of weights that can be streamed, {streamed} were to be, with what that takes"
        )


def _scratch(engine: Any, budget: int) -> int:
    """Set the bytes of weights that stay on the device; what streaming the others takes of scratch memory.

    Raises:
        StreamingError: the library refuses.
    """
    engine.weight_streaming_budget_v2 = budget
    # Setting it says nothing; whatever is refused leaves it as it was.
    if engine.weight_streaming_budget_v2 > budget:
        raise StreamingError(f"a budget of {budget} bytes was refused")
    return int(engine.weight_streaming_scratch_memory_size)
