"""The calibration of a pair for fp8: how large the values are that enter each layer, and on what that was found.

A readable file, ``fp8_calibration.json`` in the bundle. It covers every linear layer of the blocks, also those that are
kept, so that another choice of layers needs no other calibration.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flowblending import FlowBlendingError
from flowblending.contracts import upgrade

FORMAT = upgrade.FP8_CALIBRATION.number

_INNERMOST = re.compile(r"[{\[][^{}\[\]]*[}\]]")
_DIGITS = 6


@dataclass(frozen=True, kw_only=True)
class LayerRange:
    """What enters a layer, in absolute values.

    Attributes:
        amax: what the largest fp8 number stands for: ``percentile`` times the margin. The one that is used.
        percentile: the largest of all calls' percentiles.
        largest: of all values.
        timestep: of the call in which the percentile was largest.
    """

    amax: float
    percentile: float
    largest: float
    timestep: float


@dataclass(frozen=True, kw_only=True)
class ModelCalibration:
    """The layers of a model.

    Attributes:
        weights: SHA-256 of its checkpoint.
        calls: how many were observed, each guidance branch of each prompt at each of its steps.
        timesteps: at which it was observed, one per step.
        layers: by name.
    """

    weights: str
    calls: int
    timesteps: tuple[float, ...]
    layers: Mapping[str, LayerRange]

    @property
    def amax(self) -> dict[str, float]:
        """``amax`` by layer."""
        return {name: each.amax for name, each in self.layers.items()}


@dataclass(frozen=True, kw_only=True)
class Fp8Calibration:
    """A pair's calibration.

    Attributes:
        pipeline: diffusers class whose trajectory it was.
        size: of the videos, ``832x480``.
        seeds: of the noise, one per prompt.
        schedule: of the trajectory: ``L20 S20 L10``.
        percentile: see `flowblending.export.fp8.observe.observe`.
        margin: factor on the percentile.
        models: those that the schedule runs.
    """

    pipeline: str
    size: str
    frames: int
    prompts: tuple[str, ...]
    negative_prompt: str
    seeds: tuple[int, ...]
    schedule: str
    steps: int
    solver: str
    guidance: float
    percentile: float
    margin: float
    models: Mapping[str, ModelCalibration]

    def write(self, path: Path) -> None:
        """Write the file."""
        content = {"format": FORMAT} | dataclasses.asdict(self)
        models = json.dumps(content.pop("models"), indent=2).replace("\n", "\n  ")
        # A layer is a line. There is no text in this part that could hold a bracket.
        models = _INNERMOST.sub(lambda match: " ".join(match[0].split()), models)
        path.write_text(json.dumps(content, indent=2).removesuffix("\n}") + f',\n  "models": {models}\n}}\n')

    @classmethod
    def read(cls, path: Path) -> Fp8Calibration:
        """Read a file.

        Raises:
            FlowBlendingError: it is missing, damaged, or of a later format.
        """
        try:
            content = upgrade.FP8_CALIBRATION.upgrade(json.loads(path.read_text(encoding="utf-8")), path, _AGAIN)
            del content["format"]
        except OSError as error:
            raise FlowBlendingError(f"Cannot read the calibration {path} ({error.strerror}); {_AGAIN}.") from None
        except ValueError as error:
            raise FlowBlendingError(f"{path} is no calibration ({error}); {_AGAIN}.") from None
        try:
            models = {name: _model(each) for name, each in content.pop("models").items()}
            for field in ("prompts", "seeds"):
                content[field] = tuple(content[field])
            return cls(models=models, **content)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            reason = f"it lacks {error}" if isinstance(error, KeyError) else error
            raise FlowBlendingError(f"{path} is no calibration, or is damaged ({reason}); {_AGAIN}.") from None

    def model(self, name: str, weights: str, path: Path) -> ModelCalibration:
        """A model's part.

        Args:
            name: ``large`` or ``small``.
            weights: SHA-256 of the checkpoint to quantise.
            path: of this file, for messages.

        Raises:
            FlowBlendingError: it was calibrated on other weights, or not at all.
        """
        found = self.models.get(name)
        if found is None:
            raise FlowBlendingError(f"{path} is a calibration of {' and '.join(self.models)}, not of {name}; {_AGAIN}.")
        if found.weights != weights:
            raise FlowBlendingError(
                f"{path} was made with other weights of {name} (SHA-256 {found.weights[:12]}..., and the checkpoint's "
                f"is {weights[:12]}...); {_AGAIN}."
            )
        return found


_AGAIN = "leave out --fp8-calibration to calibrate anew, or give an fp8_calibration.json that fb-build-engines wrote"


def summarise(
    rows: Sequence[Sequence[str]],
    ranges: npt.NDArray[np.float32],
    timesteps: Sequence[float],
    *,
    weights: str,
    margin: float,
) -> ModelCalibration:
    """The largest of what was observed, layer by layer.

    The percentile is taken in each call and not over all of them: at no timestep are more values clipped than it says.

    Args:
        rows: the layers of each row.
        ranges: [calls, rows, 2], as the observed graph gives them.
        timesteps: of the calls.
        weights: SHA-256 of the checkpoint.
        margin: factor on the percentile.

    Raises:
        FlowBlendingError: something observed is not finite.
    """
    worst = ranges[:, :, 0].argmax(axis=0)
    layers: dict[str, LayerRange] = {}
    for row, names in enumerate(rows):
        percentile, largest = float(ranges[worst[row], row, 0]), float(ranges[:, row, 1].max())
        if not math.isfinite(largest):
            raise FlowBlendingError(
                f"Infinite or undefined values enter {names[0]}, so it cannot be calibrated; check the checkpoint."
            )
        layers |= dict.fromkeys(
            names,
            LayerRange(
                amax=_rounded(percentile * margin),
                percentile=_rounded(percentile),
                largest=_rounded(largest),
                timestep=float(timesteps[worst[row]]),
            ),
        )
    return ModelCalibration(
        weights=weights,
        calls=len(ranges),
        timesteps=tuple(dict.fromkeys(map(float, timesteps))),
        layers=dict(sorted(layers.items(), key=lambda item: _natural(item[0]))),
    )


def _rounded(value: float) -> float:
    """To a few digits, for the reader: scales have fewer."""
    return float(f"{value:.{_DIGITS}g}")


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts ``blocks.2`` before ``blocks.10``."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in name.split(".")]


def _model(content: Mapping[str, Any]) -> ModelCalibration:
    layers = {
        name: LayerRange(**{key: float(value) for key, value in each.items()})
        for name, each in content["layers"].items()
    }
    for name, each in layers.items():
        if not (math.isfinite(each.amax) and each.amax >= 0):
            raise ValueError(f"amax of {name} is {each.amax}")
    timesteps = tuple(float(each) for each in content["timesteps"])
    if not timesteps or not all(map(math.isfinite, timesteps)):
        raise ValueError(f"the timesteps are {list(timesteps)}")
    if not isinstance(content["weights"], str):
        raise ValueError(f"the weights are {content['weights']}, which is no SHA-256")
    return ModelCalibration(weights=content["weights"], calls=content["calls"], timesteps=timesteps, layers=layers)
