"""Asking a Triton server for a video: one generator over tritonclient's gRPC stream. Needs the extra ``client``."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from queue import SimpleQueue
from typing import TYPE_CHECKING

from flowblending import DeviceError, FlowBlendingError, UsageError
from flowblending.system.extras import install

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import tritonclient.grpc as triton

    Arrays = Mapping[str, npt.NDArray[np.generic]]
    Arrived = SimpleQueue[triton.InferResult | triton.InferenceServerException]

_MICROSECONDS = 1_000_000
_CONNECT_SECONDS = 20.0

_REASONS = {
    "Exceeds maximum queue size": "too many requests wait for this model already; try again later",
    "Request timeout expired": "the request waited longer than it may; try again later, or allow a longer timeout",
    "unknown model": "it does not serve this model; ask for one that it has loaded",
    "is not healthy": "the model's process has died; unload the model and load it again",
}
"""What Triton says in words of its own, and what to do about it. Everything else comes from the model itself."""


def responses(
    url: str, model: str, inputs: Arrays, *, priority: int = 0, timeout: float | None = None
) -> Generator[Arrays]:
    """Send a request, and yield its responses as they come: one per step, then the result, which has a ``report``.

    Closing the generator cancels the request: the server stops after the step under way.

    Args:
        url: host and port of the server's gRPC service.
        inputs: see `signature.inputs`; strings as object arrays of bytes.
        priority: from 1, served first; 0 for the model's default.
        timeout: seconds after which a request that still waits is refused; None for the model's default.

    Raises:
        UsageError: a timeout that is no positive number, or a negative priority.
        FlowBlendingError: the server is not there, or refused the request, or failed; or the extra is missing.
    """
    if priority < 0:
        raise UsageError(f"Priority {priority} was given, but a number from 1 on was expected; 1 is served first.")
    if timeout is not None and not (math.isfinite(timeout) and timeout > 0):
        raise UsageError(f"A timeout of {timeout:g} seconds was given, but a positive number was expected.")
    try:
        import tritonclient.grpc as triton
    except ImportError:
        raise FlowBlendingError(
            f"Talking to a Triton server needs tritonclient, which is not installed; {install('client')}."
        ) from None
    arrived: Arrived = SimpleQueue()
    client = triton.InferenceServerClient(url)
    ended = True
    try:
        _check_there(client, url)
        client.start_stream(lambda result, error: arrived.put(result if error is None else error))
        client.async_stream_infer(
            model,
            _tensors(inputs),
            enable_empty_final_response=True,
            priority=priority,
            timeout=None if timeout is None else round(timeout * _MICROSECONDS),
        )
        ended = False
        while not ended:
            result = arrived.get()
            if isinstance(result, triton.InferenceServerException):
                ended = True
                raise result
            response = result.get_response()
            ended = response.parameters["triton_final_response"].bool_param
            yield {output.name: result.as_numpy(output.name) for output in response.outputs}
    except triton.InferenceServerException as error:
        raise _refused(url, error) from None
    finally:
        # Triton 2.51 never unloads a model when a request that it had refused in the queue is cancelled as well.
        client.stop_stream(cancel_requests=not ended)
        client.close()


def _tensors(inputs: Arrays) -> Sequence[triton.InferInput]:
    import tritonclient.grpc as triton
    from tritonclient.utils import np_to_triton_dtype

    tensors = []
    for name, array in inputs.items():
        tensors.append(triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
        tensors[-1].set_data_from_numpy(array)
    return tensors


def _check_there(client: triton.InferenceServerClient, url: str) -> None:
    """A stream to nowhere fails in several ways, depending on when; this fails in one."""
    import tritonclient.grpc as triton

    try:
        client.is_server_live(client_timeout=_CONNECT_SECONDS)
    except triton.InferenceServerException:
        raise DeviceError(
            f"No Triton server answers at {url}; start it, or give the host and port of its gRPC service (8001)."
        ) from None


def _refused(url: str, error: triton.InferenceServerException) -> FlowBlendingError:
    message = error.message() or "no reason given"
    for words, reason in _REASONS.items():
        if words in message:
            return FlowBlendingError(f"The server at {url} refused the request ({message}): {reason}.")
    if error.status() is not None:
        return FlowBlendingError(f"The connection to the server at {url} broke ({message}); send the request again.")
    return FlowBlendingError(message)
