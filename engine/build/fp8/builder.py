"""The graphs of the fp8 transformers of a bundle."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from flowblending import FlowBlendingError
from flowblending.contracts.graph import ExportedGraph, Precision
from flowblending.engine.build.fp8.calibrate import SCRATCH, Pair, RangeCalibrator
from flowblending.engine.build.fp8.options import Fp8Options
from flowblending.system.console import Console

if TYPE_CHECKING:
    from flowblending.export.checkpoint.size import Fp8Blocks
    from flowblending.export.graph.exportable import Part
    from flowblending.export.verify.verify import Parity


class Fp8Builder:
    """Makes the graphs of the fp8 transformers.

    Args:
        pair: what is built.
        options: as checked.
        base: precision of everything that is not fp8.
        calibrator: of the pair.
    """

    def __init__(
        self, pair: Pair, options: Fp8Options, *, base: Precision, calibrator: RangeCalibrator, console: Console
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
        from flowblending.export.fp8.layers import check_kept

        for name in self._pair.quantised:
            blocks = self.blocks(name)
            check_kept(name, blocks.count, blocks.keep)
        self.calibrator.check()
        if self._options.attention and self._options.calibration is not None:
            for name in self._pair.quantised:
                self._check_attention(name, self._options.calibration)

    def without_attention(self) -> Fp8Builder:
        """The same with attention as it is in the blocks that are not fp8."""
        options = dataclasses.replace(self._options, attention=False)
        return Fp8Builder(self._pair, options, base=self._base, calibrator=self.calibrator, console=self._console)

    def key(self, name: str) -> dict[str, str]:
        """What determines an fp8 graph beside the checkpoint; after the calibration was obtained."""
        from flowblending.export.fp8.export import REVISION

        keep = self._options.kept(name)
        kept = "default" if keep is None else str(keep)
        attention = ", attention too" if self._options.attention else ""
        precision = f"fp8, else {self._base}, {kept} blocks kept{attention}"
        return {"precision": precision, "fp8": f"fp8 {REVISION}", **self.calibrator.key}

    def blocks(self, name: str) -> Fp8Blocks:
        """Which blocks of a transformer will be fp8."""
        from flowblending.export.checkpoint.checkpoint import read_json
        from flowblending.export.checkpoint.size import Fp8Blocks

        config = next(path for path in self._pair.parts[name].sources if path.name == "config.json")
        count = int(read_json(config).get("num_layers", 1))
        return Fp8Blocks(count=count, keep=self._kept(name, count), base=self._base)

    def export(self, part: Part, work: Path) -> tuple[ExportedGraph, Parity]:
        """Export and verify a transformer, and say what of it is in fp8."""
        from flowblending.export.fp8.export import export_fp8
        from flowblending.export.graph.audit import audit

        model = self.calibrator.calibration.models[part.name]
        samples = self.calibrator.conditions(work / SCRATCH)
        blocks = 1 + max((int(name.split(".")[1]) for name in model.layers), default=-1)
        with self._console.phase(f"{part.name}: exporting") as report:
            graph, parity = export_fp8(
                part,
                model.amax,
                self._kept(part.name, blocks),
                attention=self._options.attention,
                base=self._base,
                folder=work,
                weights_sha256=self._pair.weights(part),
                samples=samples,
                timesteps=model.timesteps,
                report=report,
            )
        _, frames, height, width = self._pair.geometry.latent_shape
        found = audit(graph.onnx, {"batch": 1, "frames": frames, "height": height, "width": width})
        asked = found.attention.get(Precision.FP8)
        attention = f"attention in {asked} of {sum(found.attention.values())} places, " if asked else ""
        own = f"{found.own_fp8} of them with the file's own weights, " if found.own_fp8 else ""
        self._console.log(
            f"{part.name}: {found.layers[Precision.FP8]} of {sum(found.layers.values())} layers in fp8, {own}"
            f"{found.share(Precision.FP8):.1%} of their operations at {self._pair.geometry}, {attention}"
            f"else {self._base}; {parity}, from torch's fp32"
        )
        return graph, parity

    def _check_attention(self, model: str, path: Path) -> None:
        """Refuse a calibration file that was written when attention had no ranges, or that has lost some.

        Raises:
            FlowBlendingError: likewise.
        """
        from flowblending.export.fp8.attention import operand_names

        ranges, blocks = self.calibrator.calibration.models[model].layers, self.blocks(model)
        for name in ranges:
            attention, _, layer = name.rpartition(".")
            block, control = int(name.split(".")[1]), name.startswith("vace_")
            needed = layer == "to_q" and (control or blocks.keep <= block < blocks.count - blocks.keep)
            for operand in operand_names(attention) if needed else ():
                if operand not in ranges:
                    raise FlowBlendingError(
                        f"{path} has no range for {operand} of {model}, which --fp8-attention needs; leave out "
                        "--fp8-calibration to calibrate anew, or leave out --fp8-attention."
                    )

    def _kept(self, model: str, blocks: int) -> int:
        from flowblending.export.fp8.layers import kept_blocks

        keep = self._options.kept(model)
        return kept_blocks(blocks) if keep is None else keep
