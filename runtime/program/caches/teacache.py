"""TeaCache (arXiv 2411.19108): skip while what enters a model's blocks has hardly changed, rescaled by a polynomial.

Source: ali-vilab/TeaCache, TeaCache4Wan2.1/teacache_generate.py (with ``use_ret_steps``) and
TeaCache4LTX-Video/teacache_ltx.py. With m the input as the timestep modulates it (the *signal*), a step's distance is

    d_t = mean|m_t - m_(t-1)| / mean|m_(t-1)|

and polynomial(d_t) adds up over the steps since the last computed one; a step is skipped as long as the sum is below
the threshold. Wan's signal is the projected timestep embedding, which knows no latents: its distances are a table.
LTX's is the modulated input of the first block, which does know them; here its distances are means over the prompts of
``fb-calibrate`` along all-large sampling, so that the decisions are made beforehand, where the source makes them while
it samples. The source reuses the residual of the block stack; an engine shows nothing of its inside, and so the
velocity of the last computed step is reused here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flowblending import UsageError
from flowblending.contracts.graph import LTX_2B, WAN_T2V_1_3B, WAN_T2V_14B
from flowblending.runtime.program.caches.arguments import read_positive
from flowblending.runtime.program.caches.cache import Cache, Measurement, Series, View
from flowblending.runtime.program.caches.policy import Decisions, Outline

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

NAME = "teacache"
TIMESTEPS = "teacache-timesteps"
COEFFICIENTS = "teacache-coefficients"
"""What ``fb-calibrate`` adds to a bundle: distances, the timesteps that they are of, and a polynomial of its own."""

CHANGES = "teacache-changes"
"""How much the velocity changed from step to step: what the polynomial predicts from the distances."""

DEGREE = 4
_TOLERANCE = 1.0
"""Of a timestep: two solvers of a checkpoint round the same noise levels differently."""


@dataclass(frozen=True, kw_only=True)
class TeaCacheConstants:
    """What is published of a model.

    Attributes:
        coefficients: of the polynomial, the highest power first.
        threshold: a dial; the more careful of those published for it.
        first: steps at the start of a run that compute.
        last: steps at its end that compute.
    """

    coefficients: tuple[float, ...]
    threshold: float
    first: int
    last: int


CONSTANTS: Mapping[str, TeaCacheConstants] = {
    WAN_T2V_1_3B: TeaCacheConstants(
        coefficients=(-5.21862437e04, 9.23041404e03, -5.28275948e02, 1.36987616e01, -4.99875664e-02),
        threshold=0.05,
        first=5,
        last=0,
    ),
    WAN_T2V_14B: TeaCacheConstants(
        coefficients=(-3.03318725e05, 4.90537029e04, -2.65530556e03, 5.87365115e01, -3.15583525e-01),
        threshold=0.1,
        first=5,
        last=0,
    ),
    # Fitted to LTX-Video 0.9.1.
    LTX_2B: TeaCacheConstants(
        coefficients=(2.14700694e01, -1.28016453e01, 2.31279151e00, 7.92487521e-01, 9.69274326e-03),
        threshold=0.03,
        first=1,
        last=1,
    ),
}
_UNPUBLISHED = TeaCacheConstants(coefficients=(), threshold=0.05, first=5, last=1)


@dataclass(frozen=True, kw_only=True)
class TeaCache:
    """The rule above; at a switch the sum starts anew.

    Attributes:
        threshold: in place of the published one.
    """

    threshold: float | None = None

    def narrow(self, decisions: Decisions, outline: Outline) -> Decisions:
        """Leave out the steps whose sum stays small.

        Raises:
            UsageError: nothing was measured on the bundle, or at other steps than the run's.
        """
        import numpy as np

        constants = {model: _constants(model, outline) for model in outline.schedule.models}
        changes = {
            model: np.polyval(own.coefficients, _measured(NAME, model, outline)).tolist()
            for model, own in constants.items()
        }
        computed: list[bool] = []
        total = 0.0
        for step, model in enumerate(outline.schedule.models):
            own = constants[model]
            total += changes[model][step]
            forced = step in outline.starts or not own.first <= step < outline.steps - own.last
            computed.append(forced or total >= (own.threshold if self.threshold is None else self.threshold))
            if computed[-1]:
                total = 0.0
        return decisions.only(computed)


def signal_distance(signal: npt.NDArray[np.floating], before: npt.NDArray[np.floating]) -> float:
    """d_t above, of two arrays of one shape; also how a velocity's change is told, which the polynomial predicts."""
    import numpy as np

    size = float(np.abs(before).mean(dtype=np.float64))
    return float(np.abs(signal - before).mean(dtype=np.float64)) / max(size, float(np.finfo(np.float32).tiny))


def fit(distances: Sequence[float], changes: Sequence[float]) -> list[float]:
    """The polynomial for a model that has none published: velocity changes by signal distances, least squares.

    So the source's were made, of more prompts. Of degree 4, or less where there are too few distinct distances.
    """
    import numpy as np

    degree = min(DEGREE, len(set(distances)) - 1)
    found = np.polynomial.Polynomial.fit(distances, changes, degree).convert()
    return [float(each) for each in reversed(found.coef)]


def _constants(model: str, outline: Outline) -> TeaCacheConstants:
    """Published ones before those of a few prompts; after the check that the distances are of this run's steps."""
    measured = _measured(TIMESTEPS, model, outline)
    if len(measured) != outline.steps or max(map(_distance, measured, outline.timesteps)) > _TOLERANCE:
        raise UsageError(
            f"TeaCache's distances were measured at {len(measured)} steps, and the run has {outline.steps} or other "
            "timesteps; measure them at its own with fb-calibrate BUNDLE --prompts FILE --cache teacache --steps "
            f"{outline.steps}."
        )
    published = CONSTANTS.get(outline.architectures.get(model) or "")
    if published is not None:
        return published
    coefficients = tuple(_measured(COEFFICIENTS, model, outline))
    return TeaCacheConstants(
        coefficients=coefficients,
        threshold=_UNPUBLISHED.threshold,
        first=_UNPUBLISHED.first,
        last=_UNPUBLISHED.last,
    )


def _distance(timestep: float, other: float) -> float:
    return abs(timestep - other)


def _measured(name: str, model: str, outline: Outline) -> Sequence[float]:
    found = outline.constants.get(name, {}).get(model)
    if not found:
        raise UsageError(
            f"TeaCache has no distances for the bundle's {model} model; measure them with fb-calibrate BUNDLE "
            "--prompts FILE --cache teacache, for which the bundle has to be built with fb-build-engines --teacache."
        )
    return found


class Distances:
    """Distances and velocity changes of one model along a trajectory; 0 at its first step."""

    def __init__(self) -> None:
        self._before: View | None = None

    def look(self, view: View) -> Mapping[str, float]:
        """See `Observer`."""
        before, self._before = self._before, view
        assert view.signal is not None
        if before is None or before.signal is None:
            return {NAME: 0.0, CHANGES: 0.0, TIMESTEPS: view.timestep}
        return {
            NAME: signal_distance(view.signal, before.signal),
            CHANGES: signal_distance(view.velocity, before.velocity),
            TIMESTEPS: view.timestep,
        }


def _of_prompts(
    prompts: Sequence[Series],
    mean: Series,
    names: Sequence[str],  # noqa: ARG001 - Measurement.constants
) -> dict[str, dict[str, list[float]]]:
    """Mean distances, the timesteps that they are of, and the polynomial from all prompts' distances to changes."""
    return {
        NAME: {model: list(values) for model, values in mean[NAME].items()},
        TIMESTEPS: {model: list(values) for model, values in mean[TIMESTEPS].items()},
        COEFFICIENTS: {
            model: fit(
                [distance for each in prompts for distance in each[NAME][model][1:]],
                [change for each in prompts for change in each[CHANGES][model][1:]],
            )
            for model in mean[NAME]
        },
    }


def _read(arguments: str, word: str) -> TeaCache:
    return TeaCache(threshold=read_positive(word, arguments)) if arguments else TeaCache()


TEACACHE = Cache(
    name=NAME,
    form=NAME,
    example=NAME,
    read=_read,
    measurement=Measurement(
        name=NAME,
        series=(NAME, CHANGES, TIMESTEPS),
        observer=Distances,
        needs_signal=True,
        constants=_of_prompts,
    ),
)
