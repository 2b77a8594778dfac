"""A pair's velocities in torch, for a whole trajectory: what its engines are measured against, step by step."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

from flowblending.export.family import Exportable
from flowblending.export.spec import LARGE
from flowblending.export.stored import weights_on_demand

Floats = npt.NDArray[np.float32]
Conditions = Mapping[str, Mapping[str, torch.Tensor]]
"""By guidance branch: what a transformer takes beside latents and timestep."""

_OWN = ("latents", "timestep")


def draw(exportable: Exportable, sizes: Mapping[str, int], branches: tuple[str, ...]) -> tuple[Floats, Conditions]:
    """Noise [1, C, F, H, W], and random conditions for every branch; equal ones whenever it is asked."""
    names = [tensor.name for tensor in exportable.spec.inputs]
    generator = torch.Generator().manual_seed(0)
    drawn = [
        dict(zip(names, exportable.inputs({**sizes, "batch": 1}, generator), strict=True)) for _ in branches or (LARGE,)
    ]
    conditions = {
        branch: {name: value for name, value in each.items() if name not in _OWN}
        for branch, each in zip(branches, drawn, strict=True)
    }
    return drawn[0]["latents"].numpy(), conditions


class TorchPair:
    """Computes velocities with modules in torch, on the CPU.

    Args:
        models: ``large`` and ``small``.
        conditions: as `draw` gives them.
        stock: whether by the unmodified classes; else by the modules that were exported.
    """

    def __init__(self, models: Mapping[str, Exportable], conditions: Conditions, *, stock: bool) -> None:
        self._calls = {name: each.reference if stock else each.module for name, each in models.items()}
        self._streamed = {name: each.streamed for name, each in models.items()}
        self._names = {name: [tensor.name for tensor in each.spec.inputs] for name, each in models.items()}
        self._conditions = conditions

    def __call__(self, model: str, latents: Floats, timestep: float, branch: str) -> Floats:
        """The velocity of latents fp32 [1, C, F, H, W]."""
        given = {
            "latents": torch.from_numpy(latents),
            "timestep": torch.tensor([timestep], dtype=torch.float32),
            **self._conditions[branch],
        }
        with torch.no_grad(), weights_on_demand(*self._streamed[model]):
            (velocity,) = self._calls[model](*(given[name] for name in self._names[model]))
        return np.asarray(velocity.float().numpy())
