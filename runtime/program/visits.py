"""From letters to engines: which engine every step of a run calls, and with which guidance."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace

from flowblending.contracts.models import Model
from flowblending.runtime.program.schedule import StageSchedule
from flowblending.runtime.program.sigmas import Grid


@dataclass(frozen=True, kw_only=True)
class Visits:
    """What every step of a run calls.

    Attributes:
        written: the schedule, for messages.
        models: its engine.
        scales: its guidance scale, 1 or less for none; None for the run's.
        switches: the first step of every stage but the first. A stage is what steps have in common that know of one
            another: one engine, one scale, and no timesteps of their own.
    """

    written: str
    models: tuple[str, ...]
    scales: tuple[float | None, ...]
    switches: frozenset[int]

    def __str__(self) -> str:
        return self.written

    def begun_at(self, step: int) -> Visits:
        """The same where a run begins at a step: what was before it is of no use to it."""
        return self if not step else replace(self, switches=self.switches | {step})

    def rest(self, step: int) -> Visits:
        """The steps from one on, counted anew."""
        return replace(
            self,
            models=self.models[step:],
            scales=self.scales[step:],
            switches=frozenset(each - step for each in self.switches if each > step),
        )

    def guidance(self, otherwise: float) -> tuple[float, ...]:
        """The guidance scale of every step, ``otherwise`` where it has the run's."""
        return tuple(otherwise if scale is None else scale for scale in self.scales)


def visits_of(
    schedule: StageSchedule,
    models: Mapping[str, Model],
    grid: Grid,
    engine_guidance: Mapping[str, float] | None = None,
) -> Visits:
    """The engines of a schedule's steps.

    A model of two experts runs one of them at each step, by the step's timestep, and where it goes from one to the
    other a stage begins: what is cached of one is of no use to the other. A solver's history goes on, as WanPipeline's.

    Args:
        schedule: of the steps that are made.
        models: by letter, all that the schedule has.
        grid: noise levels of as many steps.
        engine_guidance: by engine, its scale where its stage has none.
    """
    engines = [
        models[letter].component(timestep, grid.train_timesteps)
        for letter, timestep in zip(schedule.letters, grid.timesteps, strict=True)
    ]
    own = [stage.guidance for stage in schedule.stages for _ in range(stage.steps)]
    scales = [
        (engine_guidance or {}).get(engine) if scale is None else scale
        for engine, scale in zip(engines, own, strict=True)
    ]
    changes = {
        step
        for step, (before, now) in enumerate(itertools.pairwise(zip(engines, scales, strict=True)), start=1)
        if before != now
    }
    return Visits(
        written=str(schedule), models=tuple(engines), scales=tuple(scales), switches=schedule.switches | changes
    )
