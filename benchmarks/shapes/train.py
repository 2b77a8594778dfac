"""Trains the pair, one command from nothing to diffusers checkpoints.

    python -m benchmarks.shapes.train --work train-shapes                  # hours on two cores, minutes on a GPU
    python -m benchmarks.shapes.train --work train-shapes --minutes 30     # stop in time; run again to go on
    python -m benchmarks.shapes.train --work smoke --smoke                 # a few steps of everything
    python -m benchmarks.shapes.train --work image --first-frame train-shapes/checkpoints     # see first_frame.py

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
from diffusers import AutoencoderKLLTXVideo, LTXPipeline, LTXVideoTransformer3DModel
from safetensors.torch import load_file, save_file
from transformers import T5EncoderModel, T5Tokenizer

from benchmarks.shapes import data, first_frame, networks
from benchmarks.shapes.encode import encode
from benchmarks.shapes.scene import caption
from benchmarks.shapes.tasks import TEXT, FeatureTask, FlowTask, TextModel, TextTask, VaeTask
from benchmarks.shapes.training import OutOfTimeError, Recipe, Session, progress_bar


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
    vae=Recipe(steps=16_000, rate=1e-3),
    text=Recipe(steps=2500, rate=2e-3),
    features=Recipe(steps=4000, rate=2e-3),
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


FEATURES_FILE = "features.safetensors"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """What the two transformers share, trained."""

    vae: AutoencoderKLLTXVideo
    text_encoder: T5EncoderModel
    tokenizer: T5Tokenizer
    features: networks.FeatureNetwork


def _feature_network() -> networks.FeatureNetwork:
    return networks.FeatureNetwork(tuple(len(names) for names in data.ATTRIBUTES))


def train_parts(session: Session, plan: Plan) -> Parts:
    """Train VAE, text encoder and feature network.

    Raises:
        OutOfTimeError: everything is saved, and the next call goes on there.
    """
    seed = session.seed
    torch.manual_seed(seed)
    # All are made first, in one order, so that what they start from does not depend on where a run resumes.
    vae, text_encoder, features = networks.vae(), networks.text_encoder(), _feature_network()
    tokenizer = networks.tokenizer(caption(scene) for scene in data.scenes([TEXT, seed], plan.captions))
    text_model = TextModel(text_encoder, text_encoder.config.vocab_size)
    for module in (vae, text_model, features):
        session.new(module)
    vae_task = VaeTask(vae, plan.vae, seed)
    if session.compiled:
        vae_task.compile()
    session.train(vae_task)
    session.train(TextTask(text_model, tokenizer, plan.text, seed))
    session.train(FeatureTask(features, plan.features, seed))
    return Parts(vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, features=features)


def load_parts(session: Session, folder: Path) -> Parts:
    """The parts of checkpoints that were written before."""
    features = _feature_network()
    weights = load_file(folder / FEATURES_FILE)
    features.load_state_dict({name: value.float() for name, value in weights.items()})
    vae = AutoencoderKLLTXVideo.from_pretrained(folder / "large/vae", torch_dtype=torch.float32)
    text_encoder = T5EncoderModel.from_pretrained(folder / "large/text_encoder", dtype=torch.float32)
    for module in (vae, text_encoder, features):
        module.to(session.device).eval().requires_grad_(False)
    tokenizer = T5Tokenizer.from_pretrained(folder / "large/tokenizer")
    return Parts(vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, features=features)


def train_pair(session: Session, plan: Plan, parts: Parts) -> Path:
    """Train both transformers and write all checkpoints; the folder they are in.

    Raises:
        OutOfTimeError: everything is saved, and the next call goes on there.
    """
    seed = session.seed
    torch.manual_seed(seed)
    pair = {name: networks.transformer(name) for name in networks.TRANSFORMERS}
    encoded = encode(
        parts.vae,
        parts.text_encoder,
        parts.tokenizer,
        count=plan.clips,
        seed=seed,
        file=session.work / "encoded.pt",
        progress=session.progress,
    )
    for name, module in pair.items():
        session.new(module)
        task = FlowTask(name, module, encoded, getattr(plan, name), seed)
        if session.compiled:
            task.compile()
        session.train(task)
    return _write(session.work / "checkpoints", parts, pair["large"], pair["small"])


def _write(folder: Path, parts: Parts, large: LTXVideoTransformer3DModel, small: LTXVideoTransformer3DModel) -> Path:
    """Everything in fp16, under a temporary name until it is whole."""
    unfinished = folder.with_suffix(".part")
    shutil.rmtree(unfinished, ignore_errors=True)
    pipeline = LTXPipeline(
        scheduler=networks.scheduler(),
        vae=parts.vae,
        text_encoder=parts.text_encoder,
        tokenizer=parts.tokenizer,
        transformer=large,
    )
    pipeline.to(torch.float16).save_pretrained(unfinished / "large", safe_serialization=True)
    small.half().save_pretrained(unfinished / "small", safe_serialization=True)
    weights = {name: value.half().contiguous() for name, value in parts.features.state_dict().items()}
    save_file(weights, unfinished / FEATURES_FILE)
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)
    return folder


def _train(session: Session, arguments: argparse.Namespace) -> tuple[Path, str]:
    """What the command line asks for: the folder that is written, and what is in it."""
    if arguments.first_frame:
        plan = first_frame.SMOKE if arguments.smoke else first_frame.FULL
        return first_frame.teach(session, plan, arguments.first_frame), "large and small, transformers alone"
    whole = SMOKE if arguments.smoke else FULL
    parts = load_parts(session, arguments.parts) if arguments.parts else train_parts(session, whole)
    return train_pair(session, whole, parts), f"large, small and {FEATURES_FILE}"


def main() -> int:
    """Train, or go on training."""
    parser = argparse.ArgumentParser(description="Train the large and the small model of the shapes pair.")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="states, logs and results")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after this time; run again to go on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="compile the networks (needs a C++ compiler)")
    parser.add_argument(
        "--parts", type=Path, metavar="DIR", help="train the transformers alone; take the rest from these checkpoints"
    )
    parser.add_argument(
        "--first-frame", type=Path, metavar="DIR", help="teach this trained pair to go on from a given first frame"
    )
    parser.add_argument("--smoke", action="store_true", help="a few steps of everything, to see that it runs")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    with progress_bar() as progress:
        session = Session(
            work=arguments.work,
            seed=arguments.seed,
            device=torch.device(arguments.device),
            compiled=arguments.compile,
            until=time.monotonic() + 60 * arguments.minutes,
            progress=progress,
        )
        try:
            folder, content = _train(session, arguments)
        except OutOfTimeError:
            print("Time is over; run the same command again to go on.", file=sys.stderr)
            return 3
        except KeyboardInterrupt:
            print("Stopped; everything is saved, run the same command again to go on.", file=sys.stderr)
            return 130
    print(f"{folder}: {content}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
