"""Leaving a run in the middle: what it held is freed, and the sampler makes the next video.

Usage: 04_stop_early.py BUNDLE PROMPT
"""

import sys

import flowblending
from flowblending import StepEvent

bundle, prompt = sys.argv[1:]
with flowblending.open(bundle) as sampler:
    for event in sampler.generate(prompt, steps=20):
        if isinstance(event, StepEvent) and event.index == 2:
            print(f"left after step {event.index + 1} of {event.steps}")
            break
    print("the next one:", sampler.generate(prompt, steps=4).latents().shape)
