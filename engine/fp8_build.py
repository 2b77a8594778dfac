"""The graphs of the fp8 transformers of a bundle.

With `build`, `fp8_calibrate`, `proof_build` and `pair_build`, the only files of this package that call the exporter.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from flowblending.engine.console import Console
from flowblending.engine.fp8_calibrate import SCRATCH, Calibrator, Pair
from flowblending.engine.fp8_options import Fp8Options
from flowblending.export.spec import ExportedGraph, Precision

if TYPE_CHECKING:
    from flowblending.export.family import Part
    from flowblending.export.size import Fp8Blocks
    from flowblending.export.verify import Parity


class Fp8Builder:
    """Makes the graphs of the fp8 transformers.

    Args:
        pair: what is built.
        options: as checked.
        base: precision of everything that is not fp8.
        calibrator: of the pair.
    """

    def __init__(
        self, pair: Pair, options: Fp8Options, *, base: Precision, calibrator: Calibrator, console: Console
    ) -> None:
        self._pair = pair
        self._options = options
        self._base = base
        self._console = console
        self.calibrator = calibrator

    def check(self) -> None:
        """Refuse trajectories that cannot be, and blocks to keep that leave none, before anything is exported.

        Raises:
            UsageError: likewise.
            FlowBlendingError: a calibration file of other weights, or that cannot be read.
        """
        from flowblending.export.fp8 import check_kept

        for name in self._pair.models:
            blocks = self.blocks(name)
            check_kept(name, blocks.count, blocks.keep)
        self.calibrator.check()

    def key(self, name: str) -> dict[str, str]:
        """What determines an fp8 graph beside the checkpoint; after the calibration was obtained."""
        keep = self._options.kept(name)
        kept = "default" if keep is None else str(keep)
        return {"precision": f"fp8, else {self._base}, {kept} blocks kept", **self.calibrator.key}

    def blocks(self, name: str) -> Fp8Blocks:
        """Which blocks of a transformer will be fp8."""
        from flowblending.export.checkpoint import read_json
        from flowblending.export.size import Fp8Blocks

        config = next(path for path in self._pair.parts[name].sources if path.name == "config.json")
        count = int(read_json(config).get("num_layers", 1))
        return Fp8Blocks(count=count, keep=self._kept(name, count), base=self._base)

    def export(self, part: Part, work: Path) -> tuple[ExportedGraph, Parity]:
        """Export and verify a transformer, and say what of it is in fp8."""
        from flowblending.export.audit import audit
        from flowblending.export.fp8_export import export_fp8

        model = self.calibrator.calibration.models[part.name]
        samples = self.calibrator.conditions(work / SCRATCH)
        blocks = 1 + max((int(name.split(".")[1]) for name in model.layers), default=-1)
        with self._console.phase(f"{part.name}: exporting") as report:
            graph, parity = export_fp8(
                part,
                model.amax,
                self._kept(part.name, blocks),
                base=self._base,
                folder=work,
                weights_sha256=self._pair.weights(part),
                samples=samples,
                timesteps=model.timesteps,
                report=report,
            )
        _, frames, height, width = self._pair.geometry.latent_shape
        found = audit(graph.onnx, {"batch": 1, "frames": frames, "height": height, "width": width})
        self._console.log(
            f"{part.name}: {found.layers[Precision.FP8]} of {sum(found.layers.values())} layers in fp8, "
            f"{found.share(Precision.FP8):.1%} of their operations, else {self._base}; "
            f"{parity}, from torch's fp32"
        )
        return graph, parity

    def _kept(self, model: str, blocks: int) -> int:
        from flowblending.export.fp8 import kept_blocks

        keep = self._options.kept(model)
        return kept_blocks(blocks) if keep is None else keep
