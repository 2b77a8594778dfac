"""The bundles that a service has, as models by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flowblending.contracts.conditions import Source, pixel_sources, takes
from flowblending.contracts.manifest import Manifest
from flowblending.engine.bundle.bundle import Bundle


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A bundle under a name.

    Attributes:
        created: when the bundle was written, in seconds since 1970.
    """

    name: str
    bundle: Bundle
    created: int

    @classmethod
    def of(cls, name: str, bundle: Bundle) -> ServedModel:
        """A bundle that was opened."""
        return cls(name=name, bundle=bundle, created=int((bundle.folder / "manifest.json").stat().st_mtime))

    @property
    def manifest(self) -> Manifest:
        """Of the bundle."""
        return self.bundle.manifest

    @property
    def about(self) -> dict[str, Any]:
        """What a client has to know of it: its videos, and the values of fields that are left out."""
        pipeline, first = self.manifest.pipeline, self.manifest.geometry
        return {
            "family": pipeline.family,
            "videos": [{"size": each.sizes, "frames": each.lengths} for each in self.manifest.profiles],
            "input_reference": takes(pipeline.conditions, Source.IMAGE),
            "takes": [source.value for source in pixel_sources(pipeline.conditions)],
            "preview": self.manifest.preview is not None,
            "defaults": {
                "size": first.size,
                "frames": first.frames,
                "frame_rate": pipeline.frame_rate,
                "steps": pipeline.steps,
                "guidance": pipeline.guidance,
                "solver": pipeline.solver,
                "negative_prompt": pipeline.negative_prompt,
            },
        }
