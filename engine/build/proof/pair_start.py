"""Asking the runtime for what a trajectory starts from: a real prompt's tokens, and noise.

This package does not import the runtime: a process of its own answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flowblending import FlowBlendingError
from flowblending.contracts.manifest import Manifest
from flowblending.engine.bundle.bundle import Bundle
from flowblending.system.subprocess_call import EndedError, call_in_subprocess

_MODULE = "flowblending.engine.build.proof.pair_start_worker"


@dataclass(frozen=True, kw_only=True)
class StartRequest:
    """What to start from.

    Attributes:
        tokenizer: ``tokenizer.json``; absolute.
        prompt: of the branch ``cond``; that of ``uncond`` is the pipeline's negative prompt.
    """

    manifest: Manifest
    tokenizer: Path
    prompt: str


@dataclass(frozen=True, kw_only=True)
class Start:
    """The beginning of a trajectory.

    Attributes:
        latents: noise fp32 [1, C, F, H, W], as ``fb-run`` draws it.
        tokens: by guidance branch: ``ids`` and ``mask``, int64 [1, L], as ``fb-run`` gives them to the text encoder.
    """

    latents: npt.NDArray[np.float32]
    tokens: Mapping[str, Mapping[str, npt.NDArray[np.int64]]]


def pair_start(bundle: Bundle, prompt: str, progress: Callable[[str], None]) -> Start:
    """What a run of a bundle on a prompt starts from.

    Raises:
        FlowBlendingError: the tokenizer cannot be read, or the process ended.
    """
    tokenizer = (bundle.folder / bundle.manifest.tokenizer[0].path).absolute()
    request = StartRequest(manifest=bundle.manifest, tokenizer=tokenizer, prompt=prompt)
    try:
        start: Any = call_in_subprocess(_MODULE, request, progress)
    except EndedError as end:
        raise FlowBlendingError(f"Reading the prompt to measure on ended with {end.how} ({end.last}).") from None
    assert isinstance(start, Start)
    return start
