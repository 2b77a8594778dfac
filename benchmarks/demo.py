"""The whole path in one go, on a CPU: two small random checkpoints -> bundle -> videos.

It runs the same two programs as a user would, and prints each command before it runs it. The weights are
random, so the videos show abstract patterns; everything else is as with a real pair.

    python -m benchmarks.demo --out demo
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

from benchmarks.checkpoints import PAIRS

PROMPT = "A cat walks on the grass, realistic style."
PROGRAMS = {"fb-build-engines": "flowblending.engine.cli", "fb-run": "flowblending.runtime.cli"}


def run(*command: str | Path) -> None:
    """Print a command and run it with this interpreter; a failing one ends the demo with its exit code."""
    words = [str(word) for word in command]
    print(f"\n$ {shlex.join(words)}", flush=True)
    code = subprocess.run([sys.executable, "-m", PROGRAMS[words[0]], *words[1:]], check=False).returncode
    if code:
        raise SystemExit(code)


def main() -> None:
    """Make the checkpoints, build them, and generate one video per schedule."""
    parser = argparse.ArgumentParser(description="Build and run a small random pair on the CPU.")
    parser.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR")
    parser.add_argument("--family", choices=list(PAIRS), default="wan")
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    print(f"Making a small random {arguments.family} pair in {out / 'checkpoints'}", flush=True)
    PAIRS[arguments.family](out / "checkpoints")
    run(
        *("fb-build-engines", "--large", out / "checkpoints/large", "--small", out / "checkpoints/small"),
        *("--out", out / "bundle", "--backend", "onnxruntime", "--size", "256x160", "--frames", "25"),
    )
    run("fb-run", out / "bundle", "--prompt", PROMPT, "--dry-run")
    for schedule in ("LLL", "SSS"):
        run("fb-run", out / "bundle", "--prompt", PROMPT, "--schedule", schedule, "--out", out / f"{schedule}.mp4")
    run("fb-run", out / "bundle", "--prompt", PROMPT, "--schedule", "LSL", "--out", out / "video.mp4")
    print(f"\nDone: {out / 'video.mp4'} (LSL), with {out / 'LLL.mp4'} and {out / 'SSS.mp4'} to compare it with.")


if __name__ == "__main__":
    main()
