"""A bundle whose engines are formulas: every interpreter can run it, and its golden vectors need no model.

It holds as much of a manifest as a sampler reads. Only interpreters under test have the back end ``fake``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import flowblending
from flowblending.contracts import upgrade
from flowblending.contracts.conditions import own_input
from flowblending.contracts.graph import GraphSpec, Precision, SigmaGrid, TensorSpec
from flowblending.contracts.models import Model, by_letter
from flowblending.contracts.program import COND, UNCOND
from flowblending.engine.backends.function import Arrays, FunctionEngine
from flowblending.engine.backends.protocol import Engine
from flowblending.runtime.program.caches.parse import parse_cache
from flowblending.runtime.program.compile import compile_program
from flowblending.runtime.program.held import hold
from flowblending.runtime.program.program_file import ProgramFile
from flowblending.runtime.program.schedule import StageSchedule
from flowblending.runtime.program.sigmas import sigma_grid

Latent = tuple[int, int, int, int]

LATENT: Latent = (4, 3, 2, 5)
"""Of a video whose size nobody asked for."""

SMALLEST: Latent = (4, 1, 2, 2)
LARGEST: Latent = (4, 5, 4, 8)
"""The ends of the range of all the other sizes that the bundle makes."""

_TEXT_LENGTH, _TEXT_WIDTH = 3, 6
_SHARED = ("frame_rate", "frame_times", "scale")
"""Inputs that all rows of a call have in common."""

HOLDING = {"still": 2, "moving": 3}
"""Models that take a timestep for every latent frame, and so many numbers of their own in ``scale``."""


@dataclass(frozen=True, kw_only=True)
class ClosedForm:
    """An engine that is a formula: ``gain * latents + drift * timestep / 1000 + condition * sum of means``.

    The last sum runs over the conditions, each with the mean of the row's own elements, or of those that all rows
    share. A timestep for every latent frame counts with their mean. Everything that does not depend on the latents is
    summed in float64 and rounded once.
    """

    gain: float
    drift: float
    condition: float

    def __call__(self, arrays: Arrays) -> dict[str, npt.NDArray[Any]]:
        """The velocity for a batch."""
        batch = len(arrays["latents"])
        timestep = arrays["timestep"].reshape(batch, -1).mean(axis=1, dtype=np.float64)
        shift = self.drift * timestep / 1000.0
        for name, array in arrays.items():
            if name not in ("latents", "timestep"):
                rows = array.reshape(1 if name in _SHARED else batch, -1)
                shift = shift + self.condition * rows.mean(axis=1, dtype=np.float64)
        rounded = shift.astype(np.float32).reshape(-1, 1, 1, 1, 1)
        return {"velocity": np.float32(self.gain) * arrays["latents"] + rounded}


FORMS = {
    "large": ClosedForm(gain=-0.9, drift=0.2, condition=0.05),
    "small": ClosedForm(gain=-0.8, drift=0.1, condition=0.03),
    "duo_high": ClosedForm(gain=-0.7, drift=0.15, condition=0.02),
    "duo_low": ClosedForm(gain=-0.6, drift=0.05, condition=0.04),
    "still": ClosedForm(gain=-0.75, drift=0.12, condition=0.06),
    "moving": ClosedForm(gain=-0.85, drift=0.08, condition=0.05),
}

MODELS = (
    Model(name="large", letter="L", components=("large",)),
    Model(name="small", letter="S", components=("small",)),
    Model(name="duo", letter="D", components=("duo_high", "duo_low"), boundary=0.7, letters=("H", "W")),
    Model(name="still", letter="T", components=("still",)),
    Model(name="moving", letter="M", components=("moving",)),
)


@dataclass(frozen=True, kw_only=True)
class ClosedFormCase:
    """A program for the formulas: ``batched`` takes both guidance branches in one call, ``latent`` is [C, F, H, W].

    ``strengths`` are those of latent frames that are given, the first ``extra`` of them before the video's own.
    """

    schedule: str
    solver: str
    guidance: float
    batched: bool
    cache: str = "off"
    latent: Latent = LATENT
    rescale: float = 0.0
    strengths: tuple[float, ...] = ()
    extra: int = 0

    def program(self) -> ProgramFile:
        """The case's program, bound to the formulas."""
        schedule = StageSchedule.runs(self.schedule)
        program = compile_program(
            schedule=schedule,
            models=by_letter(MODELS),
            solver=self.solver,
            grid=sigma_grid(SigmaGrid(kind="shifted", shift=3.0), self.solver, schedule.steps, 30),
            latent_shape=self.latent,
            guidance=self.guidance,
            batched=self.batched,
            cache=parse_cache(self.cache),
            guidance_rescale=self.rescale,
        )
        if self.strengths:
            program = hold(program, self.strengths, noise_scale=0.15, train_timesteps=1000, extra=self.extra)
        specs = {name: _spec(name) for name in FORMS}
        return ProgramFile.of(program, bundle=bundle_id(), specs=specs, own=["scale"])

    def conditions(self, random: np.random.Generator) -> dict[str, dict[str, npt.NDArray[Any]]]:
        """Numbers for every condition of every branch."""
        branches = [COND, UNCOND] if self.guidance > 1.0 else [COND]
        found = {branch: _conditions(random, length) for length, branch in enumerate(branches, start=1)}
        if self.strengths:
            times = np.arange(len(self.strengths)).astype(np.float32)
            scales = {own_input(name, "scale"): np.linspace(0.5, 1, n, dtype=np.float32) for name, n in HOLDING.items()}
            found = {branch: {**inputs, "frame_times": times, **scales} for branch, inputs in found.items()}
        return found


CASES = {
    "unipc-two-calls": ClosedFormCase(schedule="L2 S3 L1", solver="unipc", guidance=5.0, batched=False),
    "dpm-one-call": ClosedFormCase(schedule="L2 S2 L1", solver="dpm++", guidance=3.0, batched=True),
    "euler-no-guidance": ClosedFormCase(schedule="L1 S1", solver="euler", guidance=1.0, batched=False),
    "unipc-distilled": ClosedFormCase(schedule="L3 S4:g1:t900.5,700 L2", solver="unipc", guidance=5.0, batched=True),
    "unipc-taylor": ClosedFormCase(
        schedule="L5 S4", solver="unipc", guidance=5.0, batched=False, cache="mask:111001100+taylor:2"
    ),
    "dpm-guidance-skip": ClosedFormCase(
        schedule="L4 S3", solver="dpm++", guidance=3.0, batched=True, cache="mask:1101101+taylor:1+guidance:2,1001"
    ),
    "unipc-another-size": ClosedFormCase(
        schedule="L2 S2", solver="unipc", guidance=5.0, batched=True, latent=(4, 4, 3, 7)
    ),
    "dpm-smallest": ClosedFormCase(schedule="L1 S2", solver="dpm++", guidance=3.0, batched=False, latent=SMALLEST),
    "euler-rescale": ClosedFormCase(schedule="L2 S1", solver="euler", guidance=3.0, batched=True, rescale=0.7),
    "unipc-rescale-taylor": ClosedFormCase(
        schedule="L4 S3", solver="unipc", guidance=5.0, batched=False, rescale=1.0, cache="mask:1101101+taylor:1"
    ),
    "unipc-experts": ClosedFormCase(schedule="L1 D3 W1 S1", solver="unipc", guidance=5.0, batched=False),
    "euler-largest": ClosedFormCase(schedule="L1 S1", solver="euler", guidance=3.0, batched=True, latent=LARGEST),
    "euler-held": ClosedFormCase(
        schedule="T2 M3", solver="euler", guidance=3.0, batched=True, strengths=(0.8, 0.6, 1.0, 1.0, 0.0), extra=2
    ),
    "unipc-held-first": ClosedFormCase(
        schedule="T3 M2", solver="unipc", guidance=3.0, batched=False, strengths=(0.7, 0.0, 0.0)
    ),
}


def engines() -> dict[str, Engine]:
    """The formulas as engines."""
    return {name: FunctionEngine(_spec(name), form) for name, form in FORMS.items()}


def bundle_id() -> str:
    """The id of the bundle that `write_bundle` writes."""
    components = {name: _component(name) for name in FORMS}
    return hashlib.sha256(json.dumps(components, sort_keys=True).encode()).hexdigest()[:16]


def write_bundle(folder: Path) -> None:
    """Write the formulas and a manifest into a new folder."""
    folder.mkdir(parents=True)
    manifest = {
        "format": upgrade.MANIFEST.number,
        "id": bundle_id(),
        "profiles": [_profile(LATENT, LATENT, LATENT), _profile(SMALLEST, (4, 3, 3, 4), LARGEST)],
        "models": [model.model_dump(mode="json") for model in MODELS],
        "components": {name: _component(name) for name in FORMS},
        "tokenizer": [],
        "rebuild": ["python", "-m", "flowblending.runtime.golden.vectors", "--out", "DIR"],
        "created_by": flowblending.__version__,
    }
    for name in FORMS:
        (folder / f"{name}.json").write_bytes(_content(name))
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


def _geometry(latent: Latent) -> Mapping[str, object]:
    """A size of videos, 8 pixels and 4 frames to a latent."""
    _, frames, height, width = latent
    return {"width": 8 * width, "height": 8 * height, "frames": 4 * frames - 3, "latent_shape": latent}


def _profile(smallest: Latent, usual: Latent, largest: Latent) -> Mapping[str, object]:
    return {"min": _geometry(smallest), "opt": _geometry(usual), "max": _geometry(largest)}


def _content(name: str) -> bytes:
    return (json.dumps(dataclasses.asdict(FORMS[name]), indent=1) + "\n").encode()


def _component(name: str) -> Mapping[str, object]:
    content = _content(name)
    file = {"path": f"{name}.json", "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return {
        "spec": dataclasses.asdict(_spec(name)),
        "backend": "fake",
        "backend_version": "1",
        "targets": [],
        "files": [file],
        "key": {},
        "flops": None,
    }


def _spec(name: str) -> GraphSpec:
    latent = ("batch", LATENT[0], "frames", "height", "width")
    return GraphSpec(
        name=name,
        precision=Precision.FP32,
        inputs=(
            TensorSpec(name="latents", dtype="float32", shape=latent),
            TensorSpec(name="timestep", dtype="float32", shape=("batch", "frames") if name in HOLDING else ("batch",)),
            TensorSpec(name="text", dtype="float32", shape=("batch", _TEXT_LENGTH, _TEXT_WIDTH)),
            TensorSpec(name="text_mask", dtype="int64", shape=("batch", _TEXT_LENGTH)),
            TensorSpec(name="frame_rate", dtype="float32", shape=(1,)),
            *(_held_inputs(name) if name in HOLDING else ()),
        ),
        outputs=(TensorSpec(name="velocity", dtype="float32", shape=latent),),
    )


def _held_inputs(name: str) -> tuple[TensorSpec, ...]:
    times = TensorSpec(name="frame_times", dtype="float32", shape=("frames",))
    return times, TensorSpec(name="scale", dtype="float32", shape=(HOLDING[name],))


def _conditions(random: np.random.Generator, length: int) -> dict[str, npt.NDArray[Any]]:
    return {
        "text": random.standard_normal((1, _TEXT_LENGTH, _TEXT_WIDTH)).astype(np.float32),
        "text_mask": (np.arange(_TEXT_LENGTH)[None] < length).astype(np.int64),
        "frame_rate": np.array([16.0], np.float32),
    }
