"""What is measured of every clip, and the features of whole sets of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from benchmarks.schedules.run import Clip, Made, Prompt, evaluation_scenes
from benchmarks.schedules.samples import ATTRIBUTES, REFERENCE, RENDERED, Samples, table
from benchmarks.shapes.adherence import Adherence
from benchmarks.shapes.data import ATTRIBUTES as CLASSES
from benchmarks.shapes.networks import FeatureNetwork
from benchmarks.shapes.render import render
from benchmarks.shapes.scene import Scene
from flowblending import FlowBlendingError
from flowblending.contracts.manifest import Geometry
from flowblending.runtime.measures.similarity import cosine, frechet, psnr, ssim, temporal_smoothness
from flowblending.runtime.options import Job

REAL = 512
"""Drawn clips that sets of clips are compared with."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """All that a run has measured.

    Args:
        samples: of every schedule, and of `RENDERED`, which has no times.
        frechet: squared Fréchet distance to `REAL` drawn clips, likewise.
        shown: clips for the picture, one for each prompt that is shown.
    """

    samples: Mapping[str, Samples]
    frechet: Mapping[str, float]
    shown: Mapping[str, Sequence[Clip]]


class Features:
    """The trained feature network.

    Args:
        file: as the training writes it.

    Raises:
        FlowBlendingError: it holds other weights, or none.
    """

    def __init__(self, file: Path) -> None:
        self._network = FeatureNetwork(tuple(len(names) for names in CLASSES)).eval()
        try:
            self._network.load_state_dict({name: value.float() for name, value in load_file(file).items()})
        except (RuntimeError, SafetensorError):
            raise FlowBlendingError(
                f"{file} does not hold the weights of this version's feature network; train the pair again."
            ) from None

    @torch.no_grad()
    def __call__(self, clips: Iterable[Clip], batch: int = 32) -> npt.NDArray[np.float32]:
        """Clips -> features [N, 64]; ``batch`` clips at a time."""
        every, waiting = list[npt.NDArray[np.float32]](), list[Clip]()
        for clip in clips:
            waiting.append(clip)
            if len(waiting) == batch:
                every.append(self._of(waiting))
                waiting.clear()
        if waiting:
            every.append(self._of(waiting))
        return np.concatenate(every)

    def _of(self, clips: Sequence[Clip]) -> npt.NDArray[np.float32]:
        stacked = torch.from_numpy(np.stack(clips)).permute(0, 4, 1, 2, 3) * 2 - 1
        features: npt.NDArray[np.float32] = self._network.features(stacked).numpy()
        return features


def measure(
    make: Callable[[Job], Made],
    prompts: Sequence[Prompt],
    jobs: Mapping[str, Job],
    *,
    geometry: Geometry,
    features: Callable[[Iterable[Clip]], npt.NDArray[np.float32]],
    shown: Sequence[int],
    seed: int,
    advance: Callable[[int], None],
) -> Measured:
    """Make every prompt's clip with every schedule, from the same noise, and measure it.

    Schedules take turns, and so does the one that comes first: what else the machine does meets all alike.

    Args:
        make: makes a clip.
        prompts: at least two, since one clip has no spread.
        jobs: options of every schedule, `REFERENCE` among them; prompt and seed are put in.
        geometry: of the clips.
        features: clips -> [N, D], for the Fréchet distance.
        shown: indices of the prompts whose clips are kept.
        seed: of the drawn clips for the Fréchet distance.
        advance: told of every clip.
    """
    names = (*jobs, RENDERED)
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    seen: dict[str, list[npt.NDArray[np.float32]]] = {name: [] for name in names}
    kept: dict[str, list[Clip]] = {name: [] for name in names}
    for index, prompt in enumerate(prompts):
        made: dict[str, Made] = {}
        turn = index % len(jobs)
        for name in (*list(jobs)[turn:], *list(jobs)[:turn]):
            made[name] = make(prompt.job(jobs[name]))
            advance(1)
        clips = {name: made[name].frames for name in jobs} | {RENDERED: draw(prompt.scene, geometry)}
        of_reference = made[REFERENCE]
        for name, clip in clips.items():
            values = judged(prompt, clip)
            if name in made:
                values |= compared(made[name], None if name == REFERENCE else of_reference)
            rows[name].append(values)
            if index in shown:
                kept[name].append(clip)
        for name, vector in zip(clips, features(clips.values()), strict=True):
            seen[name].append(vector)
    real = features(draw(scene, geometry) for scene in evaluation_scenes([seed, 1], REAL))
    return Measured(
        samples={name: table(of_name) for name, of_name in rows.items()},
        frechet={name: frechet(np.stack(vectors), real) for name, vectors in seen.items()},
        shown=kept,
    )


def draw(scene: Scene, geometry: Geometry) -> Clip:
    """The scene's clip at a bundle's size and length."""
    return render(scene, frames=geometry.frames, width=geometry.width, height=geometry.height)


def judged(prompt: Prompt, clip: Clip) -> dict[str, float]:
    """What a clip shows of its prompt, and its temporal roughness."""
    verdict = prompt.judge(clip)
    return {
        "attributes": verdict.share,
        "all_right": float(verdict.all_right),
        **shares(verdict),
        "roughness": temporal_smoothness(clip),
    }


def shares(verdict: Adherence) -> dict[str, float]:
    """The share that is right of every one of `ATTRIBUTES`; not a number for a relation that is not asked for."""
    of_shapes = {
        name: sum(getattr(shape, name) for shape in verdict.shapes) / len(verdict.shapes)
        for name in ("colour", "kind", "motion")
    }
    relation = float("nan") if verdict.relation is None else float(verdict.relation)
    every = {
        "number": float(verdict.number),
        **of_shapes,
        "relation": relation,
        "background": float(verdict.background),
    }
    return {name: every[name] for name in ATTRIBUTES}


def compared(made: Made, reference: Made | None) -> dict[str, float]:
    """Likeness to the reference's clip of the same noise (none for the reference itself), the FLOPs, and the times."""
    likeness = {}
    if reference is not None:
        likeness = {
            "psnr": psnr(made.frames, reference.frames),
            "ssim": ssim(made.frames, reference.frames),
            "cosine": cosine(made.latents, reference.latents),
        }
    return {**likeness, "flops": made.flops, "loop": made.loop, "engines": made.engines, "total": made.total}
