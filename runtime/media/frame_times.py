"""When frames are shown: whether a video has one frame rate, and which of its frames a player shows at a time."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

FASTEST = 60
"""Frames per second, at which a video of variable rate is compared at most: screens show no more."""


@dataclass(frozen=True, kw_only=True)
class FrameTimes:
    """When a video's frames are shown.

    Attributes:
        starts: of every frame, in seconds from the first one on, never decreasing.
        length: in seconds, of all frames together.
    """

    starts: Sequence[float]
    length: float

    @property
    def constant(self) -> bool:
        """Whether frames follow one another evenly, but for the rounding of containers that count hundredths."""
        period = self._period
        even = all(abs(gap - period) < period / 2 for gap in self._gaps)
        return even and all(abs(start - index * period) <= period / 2 for index, start in enumerate(self.starts))

    def rate(self, said: Iterable[Fraction | None]) -> float:
        """Frames per second: the first of what the file says that fits the frames, or else as they come.

        A video of variable rate has that of its quickest frames.
        """
        if len(self.starts) < 2 or not self.constant:
            known = [each for each in said if each]
            return self._quickest if len(self.starts) > 1 else float(known[0]) if known else 1 / self._period
        fitting = [float(each) for each in said if each and self._distance(float(each)) <= self._period / 4]
        return fitting[0] if fitting else float(Fraction(1 / self._period).limit_denominator(1001))

    def shown(self, times: Iterable[float]) -> list[int]:
        """The frames that a player shows at such times, in seconds from the first frame on."""
        return [max(0, bisect_right(self.starts, time) - 1) for time in times]

    @property
    def _gaps(self) -> list[float]:
        return [after - before for before, after in itertools.pairwise(self.starts)]

    @property
    def _period(self) -> float:
        if len(self.starts) < 2:
            return self.length or 1 / 25
        return (self.starts[-1] - self.starts[0]) / (len(self.starts) - 1)

    @property
    def _quickest(self) -> float:
        gaps = [gap for gap in self._gaps if gap > 1 / (1.5 * FASTEST)]
        if not gaps:
            return FASTEST
        quick = [gap for gap in gaps if gap < 1.5 * min(gaps)]
        return min(FASTEST, len(quick) / math.fsum(quick))

    def _distance(self, rate: float) -> float:
        return max(abs(start - index / rate) for index, start in enumerate(self.starts))


def middles(rate: float, count: int) -> list[float]:
    """The middle of every frame of an even clock, in seconds: there, what was rounded makes no difference."""
    return [(index + 0.5) / rate for index in range(count)]
