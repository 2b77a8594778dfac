"""Linear combinations of slots, so that a solver's formula is written as its paper writes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flowblending.contracts.program import Mix


@dataclass(frozen=True)
class Combination:
    """A sum of slots with float64 coefficients: ``x - sigma * v``."""

    coefficients: Mapping[str, float]

    def __add__(self, other: Combination) -> Combination:
        total = dict(self.coefficients)
        for slot, coefficient in other.coefficients.items():
            total[slot] = total.get(slot, 0.0) + coefficient
        return Combination(total)

    def __rmul__(self, factor: float) -> Combination:
        return Combination({slot: factor * coefficient for slot, coefficient in self.coefficients.items()})

    def __sub__(self, other: Combination) -> Combination:
        return self + -1.0 * other

    def into(self, out: str) -> Mix:
        """The instruction that computes this combination.

        Slots whose coefficient is exactly 0 are left out; ``out`` itself stands first if it is a term.
        """
        terms = [(coefficient, slot) for slot, coefficient in self.coefficients.items() if coefficient != 0.0]
        return Mix(out=out, terms=tuple(sorted(terms, key=lambda term: term[1] != out)))


def slot(name: str) -> Combination:
    """The slot ``name`` itself."""
    return Combination({name: 1.0})
