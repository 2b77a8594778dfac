"""A pair's bundle on a GPU, as the stages of `benchmarks.gpu.videos` measure it."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path

from benchmarks.gpu.pairs import Pair
from benchmarks.gpu.random_bundle import RandomBundle
from benchmarks.gpu.stage import Work
from flowblending import FlowBlendingError
from flowblending.contracts.graph import Precision
from flowblending.contracts.manifest import Manifest
from flowblending.engine.backends.gpu import free_memory
from flowblending.runtime.pipeline import Pipeline


class Measured:
    """A pair's bundle, and the pipeline that it is opened as when it is first needed.

    Args:
        pair: at its real size, or a tiny one.
        precision: of the transformers.
        backend: that runs them.
        work: of the stage.
    """

    def __init__(self, pair: Pair, precision: Precision, backend: str, work: Work) -> None:
        self.work = work
        folder = work.folder / "bundles"
        self.bundle: RandomBundle = RandomBundle(
            pair=pair,
            precision=precision,
            backend=backend,
            checkpoints=work.folder / "checkpoints" / f"{pair.name}{'-tiny' * work.tiny}",
            folder=folder / f"{pair.name}-{backend}-{precision}",
        )
        _make_room(folder, self.bundle.folder)
        self.free: int | None = free_memory()
        """Bytes of the GPU's memory that were free before anything of this stage was opened."""

    @functools.cached_property
    def pipeline(self) -> Pipeline:
        """Opened on the GPU, with no engine yet."""
        from flowblending.runtime.devices.cuda import CudaDevice

        opened = Pipeline(bundle=self.bundle.open(), device=CudaDevice())
        self.work.closing.callback(opened.close)
        self.work.closing.callback(opened.device.close)
        return opened

    @property
    def manifest(self) -> Manifest:
        """Of the bundle."""
        return self.pipeline.bundle.manifest

    def check(self, *names: str) -> None:
        """Refuse to run without these components."""
        missing = [name for name in names if not self.bundle.built(name)]
        if missing:
            raise FlowBlendingError(f"{' and '.join(missing)} could not be built, so that this was not measured.")

    @property
    def transformers(self) -> tuple[str, ...]:
        """Names of the models' engines."""
        return tuple(name for name in self.bundle.components if not name.startswith(("vae", "text_encoder")))


def _make_room(folder: Path, keep: Path) -> None:
    """Remove the bundles of other stages: two of 14B plans do not fit on one disk."""
    for other in folder.iterdir() if folder.exists() else ():
        if other != keep:
            shutil.rmtree(other, ignore_errors=True)
