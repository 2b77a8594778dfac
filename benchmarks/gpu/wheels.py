"""Installs wheels that came in parts, on a machine without a network."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from flowblending import FlowBlendingError, UsageError

_PART = re.compile(r"(?P<wheel>.+\.whl)\.part(?P<number>\d+)")


def join_parts(folder: Path) -> list[Path]:
    """Put together ``NAME.whl.part0``, ``NAME.whl.part1``, ... where the wheel is not there yet.

    Returns:
        Every wheel in the folder.

    Raises:
        UsageError: there is no such folder, a part is missing, or there is no wheel.
    """
    if not folder.is_dir():
        raise UsageError(f"--wheels {folder} is no folder; give one with wheels, or with their parts.")
    parts: dict[str, dict[int, Path]] = {}
    for path in sorted(folder.iterdir()):
        match = _PART.fullmatch(path.name)
        if match is not None:
            parts.setdefault(match["wheel"], {})[int(match["number"])] = path
    for name, found in parts.items():
        missing = sorted(set(range(max(found) + 1)) - found.keys())
        if missing:
            raise UsageError(f"{folder / name}.part{missing[0]} is missing; bring it, too.")
        whole = folder / name
        if whole.exists() and whole.stat().st_size == sum(path.stat().st_size for path in found.values()):
            continue
        with whole.open("wb") as file:
            for number in sorted(found):
                with found[number].open("rb") as part:
                    shutil.copyfileobj(part, file)
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        raise UsageError(f"There is no wheel in {folder}; give a folder with some, or with their parts.")
    return wheels


def install(folder: Path, target: Path) -> list[Path]:
    """Join the wheels of a folder, and install them into another for this process and those that it starts.

    It takes no network, nothing that they depend on, and leaves the Python that it runs in as it is.

    Returns:
        The wheels.

    Raises:
        FlowBlendingError: pip refuses.
    """
    wheels = join_parts(folder)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--upgrade"]
    command += ["--no-compile", "--disable-pip-version-check", "--target", str(target), *map(str, wheels)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        why = " ".join((done.stderr or done.stdout).split())[-400:]
        raise FlowBlendingError(f"pip cannot install the wheels of {folder} ({why}); bring wheels for this Python.")
    sys.path.insert(0, str(target))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(target), os.environ.get("PYTHONPATH"))))
    return wheels
