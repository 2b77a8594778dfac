"""An MP4 file from Python, with a line of progress.

Usage: 02_mp4.py BUNDLE PROMPT VIDEO.mp4
"""

import sys

import flowblending
from flowblending import StepEvent


def show(event: object) -> None:
    """Tell how far it is."""
    if isinstance(event, StepEvent):
        print(f"\r{event.index + 1} of {event.steps} steps", end="", flush=True)


bundle, prompt, out = sys.argv[1:]
with flowblending.open(bundle) as sampler:
    sampler.generate(prompt, seed=7).save(out, show)
print(f"\n{out}")
