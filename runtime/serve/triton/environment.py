"""What the model's process has to be given, and what must not be in it."""

from __future__ import annotations

from collections.abc import MutableMapping
from pathlib import Path

from flowblending import FlowBlendingError

_VISIBLE = "CUDA_VISIBLE_DEVICES"


def check_numpy(stub: Path, version: str) -> None:
    """Refuse a numpy that the Python backend does not understand.

    A backend built before numpy 2 passes empty tensors on under it, without any error of its own (python_backend,
    pull request 384). Which it is shows in the name under which its pybind11 looks for numpy's core: since 2.12 it
    knows both, ``numpy.core`` and numpy 2's ``numpy._core``.

    Args:
        stub: the executable of the model's process.
        version: of numpy.

    Raises:
        FlowBlendingError: they do not go together.
    """
    if int(version.partition(".")[0]) >= 2 and b"numpy._core" not in stub.read_bytes():
        raise FlowBlendingError(
            f"This Triton's Python backend does not understand NumPy {version}; install 'numpy<2' where the model "
            "runs, or use a newer Triton."
        )


def show_one_gpu(index: int, variables: MutableMapping[str, str]) -> None:
    """Leave this process the GPU that Triton gave it, before CUDA is initialised: every library then finds it first.

    Args:
        index: among the GPUs that the server sees.
        variables: the process's environment.
    """
    visible = [each.strip() for each in variables.get(_VISIBLE, "").split(",") if each.strip()]
    variables[_VISIBLE] = visible[index] if visible else str(index)
