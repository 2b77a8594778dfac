"""Networks as scorers: CLIP, DINO and LPIPS of every video, FID and FVD of all videos of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from flowblending.runtime.compare.scoring import ScoreColumn
from flowblending.runtime.measures import networks
from flowblending.runtime.measures.networks import LOOKS, Features, Frames, Network
from flowblending.runtime.measures.similarity import mean_cosine

PROMPT, REFERENCE = "prompt", "reference"

_TO_PROMPT = ScoreColumn(
    heading="CLIP to prompt",
    about=f"Mean cosine of CLIP's embedding of the prompt with those of {LOOKS} frames (CLIPScore of Hessel et al. "
    "2021, without its factor 2.5).",
)
_LPIPS = ScoreColumn(
    heading="LPIPS",
    about=f"Learned perceptual distance (Zhang et al. 2018, VGG) of {LOOKS} frames from the reference's same frames, "
    "0 when equal.",
    relative=True,
    better=-1,
)
_FID = ScoreColumn(
    heading="FID",
    about=f"Fréchet distance of Inception's features (Heusel et al. 2017) of {LOOKS} frames of every video from those "
    "of the reference's. With few videos it is too large, so compare values of equally many only.",
    relative=True,
    better=-1,
)
_FVD = ScoreColumn(
    heading="FVD",
    about="Fréchet distance of I3D's features (Unterthiner et al. 2018) of the videos from those of the reference's. "
    "With few videos it is too large, so compare values of equally many only.",
    relative=True,
    better=-1,
)


class _Last:
    """A network that remembers what it saw last: the reference is the same for all runs of a prompt."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._frames: Frames | None = None
        self._features: Features | None = None

    def __call__(self, frames: Frames) -> Features:
        if self._features is None or self._frames is not frames:
            self._frames, self._features = frames, self._network(frames)
        return self._features


class ClipScore:
    """Likeness of frames to the prompt, where it is known, and to the reference's frames."""

    def __init__(self, folder: Path) -> None:
        self.key = f"clip {folder.resolve()}"
        self._network = networks.Clip(folder)
        self._of_reference = _Last(self._network)

    def columns(self, names: list[str]) -> list[ScoreColumn]:
        """Cosines."""
        return [_TO_PROMPT if name == PROMPT else _to_reference("CLIP") for name in names]

    def score(self, frames: Frames, prompt: str, reference: Frames | None) -> Mapping[str, float]:
        """``prompt`` and, unless it is the reference itself, ``reference``."""
        seen = self._network(frames)
        scores = {}
        if prompt:
            scores[PROMPT] = float((seen @ self._network.text(prompt)[0]).mean())
        if reference is not None:
            scores[REFERENCE] = mean_cosine(seen, self._of_reference(reference))
        return scores


class DinoScore:
    """Likeness of frames to the reference's frames."""

    def __init__(self, folder: Path) -> None:
        self.key = f"dino {folder.resolve()}"
        self._network = networks.Dino(folder)
        self._of_reference = _Last(self._network)

    def columns(self, names: list[str]) -> list[ScoreColumn]:
        """Cosines."""
        return [_to_reference("DINO") for _ in names]

    def score(self, frames: Frames, prompt: str, reference: Frames | None) -> Mapping[str, float]:  # noqa: ARG002 - Scorer
        """``reference``; nothing for the reference itself."""
        if reference is None:
            return {}
        return {REFERENCE: mean_cosine(self._network(frames), self._of_reference(reference))}


class LpipsScore:
    """Perceptual distance of frames from the reference's frames."""

    def __init__(self, file: Path) -> None:
        self.key = f"lpips {file.resolve()}"
        self._network = networks.Lpips(file)

    def columns(self, names: list[str]) -> list[ScoreColumn]:
        """The distance."""
        return [_LPIPS for _ in names]

    def score(self, frames: Frames, prompt: str, reference: Frames | None) -> Mapping[str, float]:  # noqa: ARG002 - Scorer
        """``reference``; nothing for the reference itself."""
        if reference is None:
            return {}
        return {REFERENCE: self._network.distance(frames, reference)}


class Fid:
    """Inception's features of frames."""

    column = _FID

    def __init__(self, file: Path) -> None:
        self.key = f"fid {file.resolve()}"
        self.features = networks.open_network(networks.INCEPTION, file)


class Fvd:
    """I3D's features of videos, one sample each."""

    column = _FVD

    def __init__(self, file: Path) -> None:
        self.key = f"fvd {file.resolve()}"
        self.features = networks.open_network(networks.I3D, file)


def _to_reference(model: str) -> ScoreColumn:
    about = f"Mean cosine of {model}'s embeddings of {LOOKS} frames with those of the reference's same frames."
    return ScoreColumn(heading=f"{model} to {REFERENCE}", about=about, relative=True)
