"""A program of ours as it runs where some libraries are not installed.

python -m tests.support.without torch,diffusers flowblending.runtime.cli --help
"""

from __future__ import annotations

import runpy
import subprocess
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path


class Hidden:
    """Finds for some modules that there are none."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = frozenset(names)

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Refuse as an import does."""
        del path, target
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


def run(hidden: Sequence[str], module: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a program without some libraries."""
    command = [sys.executable, "-m", "tests.support.without", ",".join(hidden), module, *map(str, arguments)]
    return subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False, timeout=300
    )


if __name__ == "__main__":
    sys.meta_path.insert(0, Hidden(sys.argv[1].split(",")))
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
