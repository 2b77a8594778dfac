"""A prompt in; progress, latents and frames as they come.

Usage: 01_events.py BUNDLE PROMPT
"""

import sys

import flowblending
from flowblending import FramesEvent, LatentsEvent, LoadEvent, StepEvent

bundle, prompt = sys.argv[1:]
with flowblending.open(bundle) as sampler:
    for event in sampler.generate(prompt, seed=7):
        match event:
            case LoadEvent():
                print("loading", event.component)
            case StepEvent():
                print(f"step {event.index + 1} of {event.steps}: {event.model}, {event.seconds:.3f} s")
            case LatentsEvent():
                print("latents", event.latents.shape)
            case FramesEvent():
                print("frames from", event.first, event.images().shape)  # uint8 [frames, height, width, 3]
