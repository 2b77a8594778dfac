"""Trains the pair, one command from nothing to diffusers checkpoints.

    python -m benchmarks.shapes.train --work train-shapes                  # hours on two cores, minutes on a GPU
    python -m benchmarks.shapes.train --work train-shapes --minutes 30     # stop in time; run again to go on
    python -m benchmarks.shapes.train --work smoke --smoke                 # a few steps of everything

``--work`` holds the states, the logs and, when all is trained, ``checkpoints/``: large/ (a whole LTXPipeline),
small/ (a transformer) and features.safetensors (for the Fréchet distance).
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import shutil
import sys
import time
from pathlib import Path

import torch
from diffusers import LTXPipeline, LTXVideoTransformer3DModel
from rich.progress import Progress
from safetensors.torch import save_file
from torch import nn

from benchmarks.shapes import data, networks
from benchmarks.shapes.encode import encode
from benchmarks.shapes.scene import caption
from benchmarks.shapes.tasks import TEXT, FeatureTask, FlowTask, TextModel, TextTask, VaeTask
from benchmarks.shapes.training import Recipe, Task, Trainer, progress_bar


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """How long everything is trained.

    Args:
        clips: how many clips the transformers learn from.
        captions: how many captions the tokenizer learns from.
    """

    vae: Recipe
    text: Recipe
    features: Recipe
    large: Recipe
    small: Recipe
    clips: int
    captions: int = 2000


FULL = Plan(
    vae=Recipe(steps=10_000, rate=1e-3),
    text=Recipe(steps=5000, rate=2e-3),
    features=Recipe(steps=1200, rate=2e-3),
    large=Recipe(steps=8000, rate=1e-3),
    small=Recipe(steps=8000, rate=1.5e-3),
    clips=24_000,
)
SMOKE = Plan(
    vae=Recipe(steps=10, rate=1e-3, warmup=2),
    text=Recipe(steps=10, rate=2e-3, warmup=2),
    features=Recipe(steps=5, rate=1e-3, warmup=2),
    large=Recipe(steps=5, rate=1e-3, warmup=2),
    small=Recipe(steps=5, rate=1e-3, warmup=2),
    clips=64,
)


class OutOfTimeError(Exception):
    """``--minutes`` are over; everything is saved."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Session:
    """One call of the command.

    Args:
        plan: what to train.
        work: folder of states and logs.
        seed: of everything random.
        device: where.
        compiled: compile the VAE.
        until: ``time.monotonic()`` at which to stop.
        progress: bars go here.
    """

    plan: Plan
    work: Path
    seed: int
    device: torch.device
    compiled: bool
    until: float
    progress: Progress

    def train(self, task: Task) -> None:
        """Train a task to its end, and leave the averaged weights in its module, in evaluation mode.

        Raises:
            OutOfTimeError: it is not finished.
        """
        trainer = Trainer(task, self.work)
        if not trainer.run(self.progress, until=self.until):
            raise OutOfTimeError
        task.module.load_state_dict(trainer.average)
        task.module.eval().requires_grad_(False)

    def new(self, module: nn.Module) -> None:
        """Move a fresh module to the device, ready to train."""
        module.to(self.device).train()


def train_all(session: Session) -> Path:
    """Train everything and write the checkpoints; the folder they are in.

    Raises:
        OutOfTimeError: everything is saved, and the next call goes on there.
    """
    plan, seed = session.plan, session.seed
    torch.manual_seed(seed)
    # All modules are made first, in one order, so that what they start from does not depend on where a run resumes.
    vae, text_encoder = networks.vae(), networks.text_encoder()
    tokenizer = networks.tokenizer(caption(scene) for scene in data.scenes([TEXT, seed], plan.captions))
    text_model = TextModel(text_encoder, text_encoder.config.vocab_size)
    feature_network = networks.FeatureNetwork(tuple(len(names) for names in data.ATTRIBUTES))
    pair = {name: networks.transformer(name) for name in networks.TRANSFORMERS}
    for module in (vae, text_model, feature_network, *pair.values()):
        session.new(module)

    vae_task = VaeTask(vae, plan.vae, seed)
    if session.compiled:
        vae_task.compile()
    session.train(vae_task)
    session.train(TextTask(text_model, tokenizer, plan.text, seed))
    session.train(FeatureTask(feature_network, plan.features, seed))
    file = session.work / "encoded.pt"
    encoded = encode(vae, text_encoder, tokenizer, count=plan.clips, seed=seed, file=file, progress=session.progress)
    for name, module in pair.items():
        session.train(FlowTask(name, module, encoded, getattr(plan, name), seed))
    pipeline = LTXPipeline(
        scheduler=networks.scheduler(),
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        transformer=pair["large"],
    )
    return _write(session.work / "checkpoints", pipeline, pair["small"], feature_network)


def _write(folder: Path, pipeline: LTXPipeline, small: LTXVideoTransformer3DModel, features: nn.Module) -> Path:
    """Everything in fp16, under a temporary name until it is whole."""
    unfinished = folder.with_suffix(".part")
    shutil.rmtree(unfinished, ignore_errors=True)
    pipeline.to(torch.float16).save_pretrained(unfinished / "large", safe_serialization=True)
    small.half().save_pretrained(unfinished / "small", safe_serialization=True)
    weights = {name: value.half().contiguous() for name, value in features.state_dict().items()}
    save_file(weights, unfinished / "features.safetensors")
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)
    return folder


def main() -> int:
    """Train, or go on training."""
    parser = argparse.ArgumentParser(description="Train the large and the small model of the shapes pair.")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="states, logs and results")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after this time; run again to go on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="compile the VAE (needs a C++ compiler)")
    parser.add_argument("--smoke", action="store_true", help="a few steps of everything, to see that it runs")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    with progress_bar() as progress:
        session = Session(
            plan=SMOKE if arguments.smoke else FULL,
            work=arguments.work,
            seed=arguments.seed,
            device=torch.device(arguments.device),
            compiled=arguments.compile,
            until=time.monotonic() + 60 * arguments.minutes,
            progress=progress,
        )
        try:
            folder = train_all(session)
        except OutOfTimeError:
            print("Time is over; run the same command again to go on.", file=sys.stderr)
            return 3
        except KeyboardInterrupt:
            print("Stopped; everything is saved, run the same command again to go on.", file=sys.stderr)
            return 130
    print(f"{folder}: large, small and features.safetensors")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
