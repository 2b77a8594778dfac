"""Verifying a component at the sizes that an engine is compiled for, and keeping what torch gives there.

What is kept is small, goes into the bundle, and lets an engine be compared with torch where neither torch nor the
checkpoint is: on the GPU that a plan was compiled for.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from flowblending.contracts.graph import GraphSpec, Precision
from flowblending.export.graph.exportable import Exportable, Part, Tensors

AFFORDABLE = 5e12
"""Operations of one call that a few cores do in a minute. What takes more is not compared at a profile's sizes."""

LARGEST = 64e6
"""Bytes that are kept of a component at most."""

Sizes = Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class _Sample:
    precision: Precision
    arrays: Mapping[str, npt.NDArray[Any]]

    @property
    def bytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())


class ReferenceRecorder:
    """A component that is verified at a profile's sizes too, and what its reference gives there.

    Args:
        part: the component.
        profile: sets of sizes of every symbol, and perhaps of more; what is too much work for a CPU is left out.
    """

    def __init__(self, part: Part, profile: Sequence[Sizes]) -> None:
        self.part = dataclasses.replace(part, load=self._load)
        self.sizes: tuple[Sizes, ...] = ()
        """At which the part was verified; known once it has been loaded."""
        self._plain = part
        self._profile = profile
        self._samples: dict[tuple[tuple[str, int], ...], _Sample] = {}

    def save(self, path: Path) -> bool:
        """Write ``INDEX/inputs/NAME`` and ``INDEX/outputs/NAME`` for the profiles' sizes into an ``.npz`` file.

        The smallest go first, and those after ``LARGEST`` bytes are left out.

        Returns:
            Whether there was anything to keep.
        """
        arrays: dict[str, Any] = {}
        left = LARGEST
        for index, sample in enumerate(sorted(self._samples.values(), key=lambda each: each.bytes)):
            left -= sample.bytes
            if left >= 0:
                arrays |= {f"{index}/{name}": array for name, array in sample.arrays.items()}
        if not arrays:
            return False
        with path.open("wb") as file:
            np.savez_compressed(file, **arrays)
        return True

    def _load(self, precision: Precision) -> Exportable:
        exportable = self._plain.load(precision)
        profile = [{name: sizes[name] for name in exportable.spec.symbols} for sizes in self._profile]
        own = list(exportable.verify_sizes)
        profile = [sizes for sizes in profile if sizes in own or work(exportable, sizes) <= AFFORDABLE]
        self.sizes = (*own, *(sizes for index, sizes in enumerate(profile) if sizes not in [*own, *profile[:index]]))

        def reference(*inputs: torch.Tensor) -> Tensors:
            outputs = exportable.reference(*inputs)
            self._keep(exportable.spec, precision, profile, inputs, outputs)
            return outputs

        return dataclasses.replace(exportable, reference=reference, verify_sizes=self.sizes)

    def _keep(
        self, spec: GraphSpec, precision: Precision, profile: Sequence[Sizes], inputs: Tensors, outputs: Tensors
    ) -> None:
        given = {tensor.name: value for tensor, value in zip(spec.inputs, inputs, strict=True)}
        sizes = spec.sizes({name: tuple(value.shape) for name, value in given.items()})
        key = tuple(sorted(sizes.items()))
        # The best that is known of a component is its reference in fp32, whatever it is built in.
        if sizes not in profile or (key in self._samples and precision is not Precision.FP32):
            return
        found = {tensor.name: value for tensor, value in zip(spec.outputs, outputs, strict=True)}
        self._samples[key] = _Sample(
            precision=precision,
            arrays={f"inputs/{name}": value.numpy().copy() for name, value in given.items()}
            | {f"outputs/{name}": value.float().numpy().copy() for name, value in found.items()},
        )


def work(exportable: Exportable, sizes: Sizes) -> float:
    """Operations of one call, roughly and rather too many: every weight at every place of the inputs and outputs."""
    weights = sum(parameter.numel() for parameter in exportable.module.parameters())
    first, out = (
        math.prod(tensor.resolve(sizes)) for tensor in (exportable.spec.inputs[0], exportable.spec.outputs[0])
    )
    channels = exportable.spec.inputs[0].resolve(sizes)[1]
    return 2.0 * weights * max(first, out) / channels
