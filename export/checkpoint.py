"""Reading diffusers checkpoints: folders or hub ids, their family, and whether two of them can be a pair."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowblending import FlowBlendingError


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A diffusers pipeline folder.

    Attributes:
        folder: holds ``model_index.json`` and one folder per component.
        pipeline: the class that ``model_index.json`` names.
    """

    folder: Path
    pipeline: str

    def config(self, component: str) -> dict[str, Any]:
        """The configuration of a component (``transformer``, ``vae``, ``scheduler``, ...)."""
        name = "scheduler_config.json" if component == "scheduler" else "config.json"
        return read_json(self.folder / component / name)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        FlowBlendingError: the file is missing or no JSON object.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise FlowBlendingError(f"Cannot read {path} ({error}); give a complete diffusers checkpoint.") from None
    if not isinstance(content, dict):
        raise FlowBlendingError(f"{path} holds no JSON object; give a complete diffusers checkpoint.")
    return content
