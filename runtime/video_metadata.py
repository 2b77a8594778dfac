"""What a video's file says about how it was made."""

from __future__ import annotations

from hashlib import sha256

import numpy as np
import numpy.typing as npt

from flowblending.contracts.manifest import Manifest
from flowblending.contracts.program import Program
from flowblending.runtime.options import Job
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
        **({"lora": manifest.loras} if manifest.loras else {}),
        **({"guidance_rescale": f"{program.guidance_rescale:g}"} if program.guidance_rescale else {}),
        **({} if job.shift is None else {"shift": f"{job.shift:g}"}),
        **({"image": " ".join(job.image)} if job.image else {}),
        **({} if job.video is None else {"video": job.video}),
        **({} if job.mask is None else {"mask": job.mask}),
        **({"reference": " ".join(job.reference)} if job.reference else {}),
        **({} if job.strength is None else {"strength": f"{job.strength:g}"}),
        **({} if job.control_scale is None else {"control_scale": job.control_scale}),
        **({} if job.cache == OFF else {"cache": job.cache}),
        **({} if job.decode_timestep is None else {"decode_timestep": f"{job.decode_timestep:g}"}),
        **({} if job.decode_noise_scale is None else {"decode_noise_scale": f"{job.decode_noise_scale:g}"}),
    }
