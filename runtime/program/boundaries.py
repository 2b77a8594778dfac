"""Where a stage ends, without counting steps: ``0.82`` is a noise level, ``t818`` a timestep, ``40%`` a share of steps.

A noise level means the same for any number of steps, solver and shift: which step comes first behind it differs. As in
diffusers' WanPipeline, whose ``boundary_ratio`` is such a boundary, a step at the boundary belongs before it.
"""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from flowblending import UsageError
from flowblending.contracts.model_sampling import MOST, is_number, write_number

if TYPE_CHECKING:
    from flowblending.runtime.program.sigmas import Grid

EXAMPLES = "0.82 (a noise level), t818 (a timestep) or 40% (of the steps)"

_END = {"sigma": 1, "timestep": MOST, "share": 100}


@dataclass(frozen=True, kw_only=True)
class Boundary:
    """The end of a stage.

    Attributes:
        kind: what the value is: a noise level in (0, 1), a timestep in (0, 1000), or a share of the steps in per cent.
    """

    kind: Literal["sigma", "timestep", "share"]
    value: float

    def __str__(self) -> str:
        number = write_number(self.value)
        return {"sigma": number, "timestep": f"t{number}", "share": f"{number}%"}[self.kind]

    def step(self, grid: Grid) -> int:
        """How many steps of a run lie before it; half a step of a share counts as one."""
        if self.kind == "share":
            return round_half_up(self.value * len(grid.timesteps) / 100)
        levels = grid.timesteps if self.kind == "timestep" else grid.sigmas[:-1]
        # The levels are float32 values, of which 0.7 is less than the decimal number.
        (rounded,) = struct.unpack("f", struct.pack("f", self.value))
        return sum(level >= rounded for level in levels)

    def comes_before(self, other: Boundary) -> bool:
        """Whether a run reaches it first, as far as that can be told without the run."""
        if self.kind != other.kind:
            return True
        return self.value < other.value if self.kind == "share" else self.value > other.value


def read_boundary(text: str, what: str) -> Boundary:
    """Read one.

    Args:
        what: what gives it, for the message: ``The stage L@x``.

    Raises:
        UsageError: it is none, or no place inside a run.
    """
    word = text.strip().lower()
    boundary: Boundary | None = None
    if word.startswith("t") and is_number(word[1:]):
        boundary = Boundary(kind="timestep", value=float(word[1:]))
    elif word.endswith("%") and is_number(word[:-1]):
        boundary = Boundary(kind="share", value=float(word[:-1]))
    elif is_number(word):
        boundary = Boundary(kind="sigma", value=float(word))
    if boundary is None:
        raise UsageError(f"{what} has {text.strip() or 'nothing'} where a boundary was expected; give {EXAMPLES}.")
    if not 0 < boundary.value < _END[boundary.kind]:
        unit = {"sigma": "a noise level", "timestep": "a timestep", "share": "a share in per cent"}[boundary.kind]
        raise UsageError(
            f"{what} has the boundary {boundary}, but {unit} between 0 and {_END[boundary.kind]} was expected; "
            f"give {EXAMPLES}."
        )
    return boundary


def read_boundaries(text: str, what: str = "The list of boundaries") -> tuple[Boundary, ...]:
    """Read several with commas between them, in the order in which a run reaches them.

    Raises:
        UsageError: they are none, or in another order.
    """
    boundaries = tuple(read_boundary(each, what) for each in text.split(","))
    check_order(boundaries, what)
    return boundaries


def check_order(boundaries: Sequence[Boundary], what: str) -> None:
    """Refuse boundaries that no run reaches in their order.

    Raises:
        UsageError: noise levels or timesteps that do not fall, or shares that do not rise.
    """
    for one, other in itertools.pairwise(boundaries):
        if not one.comes_before(other):
            way = "rise" if one.kind == "share" else "fall"
            raise UsageError(
                f"{what} has {one} before {other}, but they have to {way} from stage to stage; change their order."
            )


def round_half_up(value: float) -> int:
    """Half up; the small term undoes products such as 0.29 * 50 = 14.499999999999998."""
    return math.floor(value + 0.5 + 1e-9)
