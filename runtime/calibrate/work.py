"""The work folder: what was measured of each prompt, so that a killed calibration goes on where it was.

A file is known by a digest of everything that it depends on: the bundle, the prompt and the settings. Prompts that are
added later, or other settings, therefore find what was measured before.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flowblending import FlowBlendingError
from flowblending.runtime.media.latents import npy_bytes
from flowblending.system.whole_file import write_whole


@dataclass(frozen=True, kw_only=True)
class Work:
    """A folder of measurements.

    Raises (on writing):
        FlowBlendingError: it cannot be written.
    """

    folder: Path

    def open(self) -> None:
        """Make the folder.

        Raises:
            FlowBlendingError: it cannot be made.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FlowBlendingError(
                f"Cannot make the work folder {self.folder} ({error.strerror}); choose another --work."
            ) from None

    def read(self, kind: str, key: object) -> Any:
        """What was written under a key, or None; a file that is damaged counts as none."""
        try:
            return json.loads(self._path(kind, key, "json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def write(self, kind: str, key: object, content: object) -> None:
        """Keep plain data, whole or not at all."""
        write_whole(self._path(kind, key, "json"), json.dumps(content).encode())

    def read_array(self, kind: str, key: object) -> npt.NDArray[Any] | None:
        """An array that was written under a key, or None."""
        try:
            found: npt.NDArray[Any] = np.load(self._path(kind, key, "npy"), allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        return found

    def write_array(self, kind: str, key: object, array: npt.NDArray[Any]) -> None:
        """Keep an array, whole or not at all."""
        write_whole(self._path(kind, key, "npy"), npy_bytes(array))

    def _path(self, kind: str, key: object, suffix: str) -> Path:
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:20]
        return self.folder / f"{kind}-{digest}.{suffix}"
