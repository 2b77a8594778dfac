"""Schedules on the toy bundle's two models, as what plans caches and velocities takes them."""

from __future__ import annotations

from flowblending.contracts.graph import SigmaGrid
from flowblending.runtime.program.schedule import StageSchedule
from flowblending.runtime.program.sigmas import sigma_grid
from flowblending.runtime.program.visits import Visits, visits_of
from tests.support.manifests import PAIR


def visits(text: str) -> Visits:
    """The engines of runs such as ``L4 S3``."""
    schedule = StageSchedule.runs(text)
    return visits_of(schedule, PAIR, sigma_grid(SigmaGrid(kind="shifted", shift=3.0), "euler", schedule.steps, 0))
