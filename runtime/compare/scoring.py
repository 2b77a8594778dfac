"""Scorers: what is asked about a video beside its likeness to the reference. The user's judge is one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from flowblending.runtime.measures.function import MeasureError, load_function
from flowblending.runtime.measures.networks import Features, Frames

ADHERENCE = "adherence"


@dataclass(frozen=True, kw_only=True)
class ScoreColumn:
    """One of a scorer's figures in the table.

    Attributes:
        about: a sentence that explains it.
        share: whether it is shown as a percentage.
        relative: whether it is measured against the reference.
        better: 1 where more is better, -1 where less is.
    """

    heading: str
    about: str
    share: bool = False
    relative: bool = False
    better: int = 1


class Scorer(Protocol):
    """Gives figures of single videos."""

    @property
    def key(self) -> str:
        """Names the scorer and what it depends on: figures under another key are not its own."""
        ...

    def columns(self, names: list[str]) -> list[ScoreColumn]:
        """How its figures of these names are shown."""
        ...

    def score(self, frames: Frames, prompt: str, reference: Frames | None) -> Mapping[str, float]:
        """Finite figures of a video by name.

        Args:
            frames: uint8 [F, H, W, 3].
            prompt: that it was made for; empty if unknown.
            reference: the reference's of the same prompt and noise; None for the reference itself.

        Raises:
            MeasureError: it cannot.
        """
        ...


class SetScorer(Protocol):
    """Gives features of videos, whose Fréchet distance compares a run's videos with the reference's, as sets."""

    @property
    def key(self) -> str:
        """As a scorer's."""
        ...

    @property
    def column(self) -> ScoreColumn:
        """How the distance is shown."""
        ...

    def features(self, frames: Frames) -> Features:
        """Of a video, [samples, dimensions].

        Raises:
            MeasureError: it cannot.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What was asked to be measured beside likeness, time and FLOPs."""

    scorers: Sequence[Scorer] = ()
    sets: Sequence[SetScorer] = ()

    @property
    def keys(self) -> list[str]:
        """Of all of them; the first word of each says what it is."""
        return [*(each.key for each in self.scorers), *(each.key for each in self.sets)]


class Judge:
    """A function of the user's that says how well a video shows its prompt.

    Args:
        name: ``module:function``, see `load_function`. It is called with the frames, uint8 [F, H, W, 3], and the
            prompt, and gives a share from 0 to 1 or a mapping of names to such.

    Raises:
        UsageError: there is no such function.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._function = load_function(name, kind="judge")

    @property
    def key(self) -> str:
        """By the function's name."""
        return f"judge {self._name}"

    def columns(self, names: list[str]) -> list[ScoreColumn]:
        """One for each name that it gave."""
        about = f"What the judge {self._name} says of the video and its prompt, 0 to 100 %."
        return [ScoreColumn(heading=name, share=True, about=about) for name in names]

    def score(self, frames: Frames, prompt: str, reference: Frames | None) -> Mapping[str, float]:  # noqa: ARG002 - Scorer
        """Ask the function.

        Raises:
            MeasureError: it failed, or gave something else.
        """
        try:
            given = self._function(frames, prompt)
        except Exception as error:
            raise MeasureError(
                f"The judge {self._name} failed on the prompt {prompt!r} ({type(error).__name__}: {error}); mend it "
                "and run again."
            ) from error
        shares: dict[str, float] = {}
        for name, value in (given if isinstance(given, Mapping) else {ADHERENCE: given}).items():
            # numpy's numbers are no instances of float, but turn into one.
            share = float(value) if isinstance(value, int | float | np.number | np.bool_) else -1.0
            if not 0 <= share <= 1:
                raise MeasureError(
                    f"The judge {self._name} gave {value!r} as {name}, but a number from 0 to 1 was expected; mend it "
                    "and run again."
                )
            shares[str(name)] = share
        return shares
