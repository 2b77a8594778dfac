"""Embeddings of texts that were encoded before: a negative prompt is the same in most requests, prompts in some."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from flowblending.contracts.program import COND, Program
from flowblending.engine.backends.tensor import Tensor
from flowblending.runtime.options import Job
from flowblending.runtime.pipeline import Pipeline

_KEPT: Final = 32
"""Texts. One of Wan's is 512 x 4096 in fp32: 8 MiB."""


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """The embeddings of a job's branches.

    Attributes:
        conditions: by branch, as `Pipeline.embed` gives them.
        warnings: about texts that are too long.
        counts: texts that were encoded, and that were remembered.
    """

    conditions: Mapping[str, Mapping[str, Tensor]]
    warnings: tuple[str, ...]
    counts: tuple[int, int]


class Texts:
    """What a pipeline's text encoder gave for the texts used last."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._kept: OrderedDict[str, tuple[Mapping[str, Tensor], tuple[str, ...]]] = OrderedDict()

    def encoded(self, job: Job, program: Program) -> Encoded:
        """The embeddings of every branch that a program has."""
        negative = self._pipeline.bundle.manifest.pipeline.negative_prompt
        other = negative if job.negative_prompt is None else job.negative_prompt
        texts = {branch: job.prompt if branch == COND else other for branch in program.branches()}
        new = len(set(texts.values()) - set(self._kept))
        found = {branch: self._one(text) for branch, text in texts.items()}
        return Encoded(
            conditions={branch: embedding for branch, (embedding, _) in found.items()},
            warnings=tuple(dict.fromkeys(line for _, lines in found.values() for line in lines)),
            counts=(new, len(texts) - new),
        )

    def _one(self, text: str) -> tuple[Mapping[str, Tensor], tuple[str, ...]]:
        if text not in self._kept:
            warnings: list[str] = []
            embedding = self._pipeline.embed(text, warnings.append)
            self._kept[text] = (embedding, tuple(warnings))
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(text)
        return self._kept[text]
