"""A pair's velocities in torch, for a whole trajectory: what its engines are measured against, step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from flowblending.contracts.conditions import Condition, Source, input_key, inputs_from
from flowblending.export.graph.exportable import Exportable
from flowblending.export.graph.stored import weights_on_demand

Floats = npt.NDArray[np.float32]
Conditions = Mapping[str, Mapping[str, torch.Tensor]]
"""By guidance branch: what a transformer takes beside latents and timestep."""

Tokens = Mapping[str, Mapping[str, npt.NDArray[np.int64]]]
"""By guidance branch: ``ids`` and ``mask`` [1, L] of a prompt."""


def encode(
    text_encoder: Exportable,
    tokens: Tokens,
    declared: Sequence[Condition],
    shared: Mapping[str, npt.NDArray[np.float32]],
    shown: Mapping[str, npt.NDArray[np.float32]] | None = None,
) -> Conditions:
    """What the runtime makes of prompts, by the stock text encoder.

    Args:
        text_encoder: in fp32.
        tokens: of every branch.
        declared: the family's conditions.
        shared: what is the same for every branch, by source, such as the frame rate.
        shown: likewise, by input, what has a recipe.
    """
    names = [tensor.name for tensor in text_encoder.spec.inputs]
    conditions = {}
    for branch, each in tokens.items():
        given = {name: torch.from_numpy(values) for name, values in each.items()}
        with torch.no_grad(), weights_on_demand(*text_encoder.streamed):
            (text,) = text_encoder.reference(*(given[name] for name in names))
        alike = {source: torch.from_numpy(values) for source, values in shared.items()}
        made: dict[str, torch.Tensor] = {Source.TEXT: text, Source.TEXT_MASK: given["mask"], **alike}
        made_of = {name: torch.from_numpy(values) for name, values in (shown or {}).items()}
        conditions[branch] = inputs_from(declared, made) | made_of
    return conditions


class TorchPair:
    """Computes velocities with modules in torch, on the CPU.

    Args:
        models: ``large`` and ``small``.
        conditions: as `encode` gives them.
        stock: whether by the unmodified classes; else by the modules that were exported.
    """

    def __init__(self, models: Mapping[str, Exportable], conditions: Conditions, *, stock: bool) -> None:
        self._calls = {name: each.reference if stock else each.module for name, each in models.items()}
        self._streamed = {name: each.streamed for name, each in models.items()}
        self._specs = {name: each.spec for name, each in models.items()}
        self._conditions = conditions

    def __call__(self, model: str, latents: Floats, timestep: float, branch: str) -> Floats:
        """The velocity of latents fp32 [1, C, F, H, W]."""
        spec = self._specs[model]
        given = {
            "latents": torch.from_numpy(latents),
            "timestep": torch.full(spec.timestep_shape(latents.shape[1:], 1), timestep, dtype=torch.float32),
            **self._conditions[branch],
        }
        taken = [given[input_key(given, model, each.name)] for each in spec.inputs]
        with torch.no_grad(), weights_on_demand(*self._streamed[model]):
            (velocity,) = self._calls[model](*taken)
        return np.asarray(velocity.float().numpy())
