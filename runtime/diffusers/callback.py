"""diffusers' ``callback_on_step_end``: shown every step's latents, and allowed to change them where that is exact."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from flowblending import UsageError
from flowblending.contracts.program import Program
from flowblending.runtime.devices.protocol import Device
from flowblending.runtime.diffusers.latents import as_torch, as_type, packed, unpacked
from flowblending.runtime.option_values import shown
from flowblending.runtime.program.solvers.registry import SOLVERS
from flowblending.runtime.sampler.loop import Trajectory

StepCallback = Callable[[Any, int, Any, dict[str, Any]], Mapping[str, Any] | None]
"""Called with the pipeline, the step from 0 on, its timestep, and tensors by name; returns those that are to change."""

_LATENTS: Final = "latents"


@dataclass(frozen=True)
class StepCaller:
    """Calls a callback after each step of a run whose steps are told one at a time.

    Attributes:
        pipeline: what the callback is given as the pipeline.
        callback: the user's.
        packed: whether it is shown tokens [1, F * H * W, C].
        program: that runs.
        device: that it runs on.
    """

    pipeline: object
    callback: StepCallback
    packed: bool
    program: Program
    device: Device

    def __call__(self, index: int, trajectory: Trajectory) -> npt.NDArray[np.float32]:
        """Call it after a step, and return the latents that the next one starts from.

        Raises:
            UsageError: it changed something that the run cannot go on with.
        """
        before: npt.NDArray[np.float32] = self.device.download(trajectory.latents)
        names = {_LATENTS: as_torch(packed(before) if self.packed else before.copy())}
        timestep = as_torch(np.array(self.program.steps[index].timestep, np.float32))
        answer = self.callback(self.pipeline, index, timestep, names)
        after = self._answered(answer, names[_LATENTS])
        if np.array_equal(after, before):
            return before
        if SOLVERS.get(self.program.solver).order > 1:
            raise UsageError(
                f"callback_on_step_end changed the latents, but {self.program.solver} remembers earlier steps, which "
                "were of other latents; leave them as they are, or give solver='euler' to the call."
            )
        self.device.copy(self.device.upload(after), trajectory.latents)
        return after

    def _answered(self, answer: object, shown_latents: Any) -> npt.NDArray[np.float32]:
        changed = {} if answer is None else answer
        if not isinstance(changed, Mapping) or not changed.keys() <= {_LATENTS}:
            raise UsageError(
                f"callback_on_step_end returned {shown(answer)}, but a dictionary of nothing but latents can be "
                "honoured; return callback_kwargs, or {}."
            )
        shape = self.program.latent_shape
        latents = as_type(unpacked(changed.get(_LATENTS, shown_latents), shape, "latents"), "float32")
        array = np.ascontiguousarray(latents.cpu() if hasattr(latents, "cpu") else latents, np.float32)
        if array.shape != (1, *shape):
            raise UsageError(
                f"callback_on_step_end returned latents of the shape {list(array.shape)}, but {[1, *shape]} was "
                "expected; return them as they were given."
            )
        return array


def check_callback(callback: object, names: Sequence[str] | None, videos: int) -> None:
    """Refuse before the work what cannot be honoured.

    Args:
        callback: the user's, or None.
        names: of the tensors that it is to be shown; those that the callback names itself come first.
        videos: that the call makes.

    Raises:
        UsageError: it is no function, asks for other tensors than latents, or is to see several videos at once.
    """
    if callback is None:
        return
    if not callable(callback):
        raise UsageError(f"callback_on_step_end is {shown(callback)}, but a function was expected; give one.")
    others = [each for each in getattr(callback, "tensor_inputs", names) or [] if each != _LATENTS]
    if others:
        raise UsageError(
            f"callback_on_step_end_tensor_inputs names {', '.join(map(str, others))}, but latents alone can be shown; "
            "leave it out."
        )
    if videos > 1:
        raise UsageError(
            f"callback_on_step_end was given and {videos} videos were asked for, which are made one after the other "
            "here; call the pipeline once for each."
        )
    as_torch(np.zeros(1))
