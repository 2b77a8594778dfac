"""Scorers: what is asked about a video beside its likeness to the reference. The user's judge is one."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from flowblending import FlowBlendingError, UsageError

Frames = npt.NDArray[np.uint8]
"""[F, H, W, 3]."""

ADHERENCE = "adherence"


@dataclass(frozen=True, kw_only=True)
class Column:
    """One of a scorer's figures in the table.

    Attributes:
        about: a sentence that explains it.
        share: whether it is shown as a percentage.
        relative: whether it is measured against the reference.
    """

    heading: str
    about: str
    share: bool = False
    relative: bool = False


class ScoringError(FlowBlendingError):
    """A scorer failed, and would again on the next video."""


class Scorer(Protocol):
    """Gives a video figures of which more is better."""

    @property
    def key(self) -> str:
        """Names the scorer and what it depends on: figures under another key are not its own."""
        ...

    def columns(self, names: list[str]) -> list[Column]:
        """How its figures of these names are shown."""
        ...

    def score(self, frames: Frames, prompt: str, reference: Frames | None) -> Mapping[str, float]:
        """Finite figures of a video by name.

        Args:
            frames: uint8 [F, H, W, 3].
            prompt: that it was made for.
            reference: the reference's of the same prompt and noise; None for the reference itself.

        Raises:
            ScoringError: it cannot.
        """
        ...


class Judge:
    """A function of the user's that says how well a video shows its prompt.

    Args:
        name: ``module:function``. It is called with the frames, uint8 [F, H, W, 3], and the prompt, and gives a share
            from 0 to 1 or a mapping of names to such. The working directory is searched for the module too.

    Raises:
        UsageError: there is no such function.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._function = _load(name)

    @property
    def key(self) -> str:
        """By the function's name."""
        return f"judge {self._name}"

    def columns(self, names: list[str]) -> list[Column]:
        """One for each name that it gave."""
        about = f"What the judge {self._name} says of the video and its prompt, 0 to 100 %."
        return [Column(heading=name, share=True, about=about) for name in names]

    def score(self, frames: Frames, prompt: str, reference: Frames | None) -> Mapping[str, float]:  # noqa: ARG002
        """Ask the function.

        Raises:
            ScoringError: it failed, or gave something else.
        """
        try:
            given = self._function(frames, prompt)
        except Exception as error:
            raise ScoringError(
                f"The judge {self._name} failed on the prompt {prompt!r} ({type(error).__name__}: {error}); mend it "
                "and run again."
            ) from error
        shares: dict[str, float] = {}
        for name, value in (given if isinstance(given, Mapping) else {ADHERENCE: given}).items():
            # numpy's numbers are no instances of float, but turn into one.
            share = float(value) if isinstance(value, int | float | np.number | np.bool_) else -1.0
            if not 0 <= share <= 1:
                raise ScoringError(
                    f"The judge {self._name} gave {value!r} as {name}, but a number from 0 to 1 was expected; mend it "
                    "and run again."
                )
            shares[str(name)] = share
        return shares


def _load(name: str) -> Callable[[Frames, str], object]:
    module, _, function = name.partition(":")
    if not module or not function:
        raise UsageError(f"The judge is {name!r}, but module:function was expected; give --judge my_judge:judge.")
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        found: object = importlib.import_module(module)
        for part in function.split("."):
            found = getattr(found, part)
    except Exception as error:  # a module of the user's may fail in any way
        raise UsageError(
            f"The judge {name} cannot be imported ({type(error).__name__}: {error}); give --judge module:function "
            "of a module that Python finds here."
        ) from None
    finally:
        sys.path.remove(folder)
    if not callable(found):
        raise UsageError(f"The judge {name} is no function; give --judge module:function.")
    return found
