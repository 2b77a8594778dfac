"""What a program decides while it runs, bound to memory: one small read at every step that may be left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flowblending.contracts.program import Choice, Distance, Mix, Place, Rescale
from flowblending.engine.backends.tensor import Tensor
from flowblending.runtime.devices.protocol import Device, Probe, Term
from flowblending.runtime.program.caches.easycache import predicted_change

_MOVED, _TRAVELLED, _CHANGED, _SIZE = range(4)
_Pair = tuple[Tensor, Tensor | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sum:
    """A mix of bound tensors."""

    out: Tensor
    terms: tuple[Term, ...]

    @classmethod
    def of(cls, mix: Mix, slots: Mapping[str, Tensor]) -> Sum:
        """A mix on tensors."""
        return cls(out=slots[mix.out], terms=tuple((coefficient, slots[name]) for coefficient, name in mix.terms))

    def enqueue(self, device: Device) -> None:
        """Compute it."""
        device.mix(self.out, self.terms)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rescaling:
    """A `Rescale` of bound tensors."""

    out: Tensor
    reference: Tensor
    share: float

    @classmethod
    def of(cls, each: Rescale, slots: Mapping[str, Tensor]) -> Rescaling:
        """A rescaling on tensors."""
        return cls(out=slots[each.out], reference=slots[each.reference], share=each.share)

    def enqueue(self, device: Device) -> None:
        """Compute it."""
        device.rescale(self.out, self.reference, self.share)


@dataclass(frozen=True, kw_only=True, slots=True)
class Placing:
    """A `Place` of bound tensors."""

    out: Tensor
    source: Tensor
    frames: tuple[int, ...]

    @classmethod
    def of(cls, each: Place, slots: Mapping[str, Tensor], partial: Mapping[str, tuple[int, ...]]) -> Placing:
        """A placing on tensors."""
        return cls(out=slots[each.out], source=slots[each.source], frames=partial[each.source])

    def enqueue(self, device: Device) -> None:
        """Copy the latent frames."""
        device.hold(self.out, self.source, self.frames)


class Chooser:
    """Decides at every step of a run whether it computes; see `Choice`.

    The rule is that of `flowblending.runtime.program.caches.easycache`.

    On a GPU every decision waits for the stream: it has to know what the step before gave.
    """

    def __init__(self, choice: Choice, slots: Mapping[str, Tensor], device: Device) -> None:
        def pair(distance: Distance) -> _Pair:
            return slots[distance.slot], None if distance.other is None else slots[distance.other]

        self._choice = choice
        self._device = device
        self._moved = pair(choice.moved)
        self._learned = tuple(pair(each) for each in choice.learned)
        self._kept = tuple(Sum.of(each, slots) for each in choice.kept)
        self._reuse = tuple(
            None if each is None else tuple(Sum.of(mix, slots) for mix in each) for each in choice.reuse
        )
        self._probe: Probe = device.probe(4)
        self._sum = 0.0

    def reuse(self, index: int) -> tuple[Sum, ...] | None:
        """What a step executes in place of its own instructions, or None if it computes; asked once, in order."""
        instead = self._reuse[index]
        if instead is not None:
            self._probe.measure(_MOVED, *self._moved)
            numbers = self._probe.read()
            self._sum += predicted_change(
                moved=numbers[_MOVED], travelled=numbers[_TRAVELLED], changed=numbers[_CHANGED], size=numbers[_SIZE]
            )
            if self._sum < self._choice.threshold:
                return instead
        self._sum = 0.0
        return None

    def computed(self, index: int) -> None:
        """Enqueue what is learned of a step that computed."""
        if index not in self._choice.starts:
            for number, (tensor, other) in zip((_TRAVELLED, _CHANGED, _SIZE), self._learned, strict=True):
                self._probe.measure(number, tensor, other)
        for each in self._kept:
            each.enqueue(self._device)
