"""What a video file says about how it was made."""

from __future__ import annotations

from hashlib import sha256

import numpy as np
import numpy.typing as npt

from flowblending.contracts.manifest import Manifest
from flowblending.contracts.program import Program
from flowblending.runtime.jobs import Job
from flowblending.runtime.program.caches.parse import OFF


def video_metadata(
    manifest: Manifest, job: Job, program: Program, given: npt.NDArray[np.float32] | None = None
) -> dict[str, str]:
    """The metadata of a job's video; initial latents that were given are known by their digest."""
    noise = {"seed": str(job.seed)} if given is None else {"latents_sha256": sha256(given.tobytes()).hexdigest()}
    return {
        "prompt": job.prompt,
        **noise,
        "schedule": program.schedule,
        "solver": program.solver,
        "guidance": f"{program.guidance:g}",
        "bundle": manifest.id,
        **({} if job.cache == OFF else {"cache": job.cache}),
    }
