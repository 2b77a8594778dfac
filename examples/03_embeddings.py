"""A prompt and a negative prompt encoded once, and a video of each of three seeds.

Usage: 03_embeddings.py BUNDLE PROMPT
"""

import sys

import numpy as np

import flowblending

bundle, prompt = sys.argv[1:]
with flowblending.open(bundle) as sampler:
    wanted, unwanted = sampler.encode(prompt), sampler.encode("blurred, still")
    for seed in range(3):
        latents = sampler.generate(wanted, negative_prompt=unwanted, guidance=3, seed=seed).latents()
        print(f"seed {seed}: latents {latents.shape}, standard deviation {np.std(latents.numpy()):.3f}")
