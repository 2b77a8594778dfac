"""What a model family tells the exporter. One file per family (``wan``, ``ltx``) answers these questions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from flowblending.contracts.graph import GraphSpec, PipelineSpec, Precision
from flowblending.export.checkpoint.checkpoint import Checkpoint
from flowblending.export.lora.file import LoraFile
from flowblending.export.lora.fit import Lora

Tensors = tuple[torch.Tensor, ...]

TORCH_DTYPES: Mapping[Precision, torch.dtype] = {
    Precision.FP32: torch.float32,
    Precision.FP16: torch.float16,
    Precision.FP16_MIXED: torch.float16,
    Precision.BF16: torch.bfloat16,
}
"""The type of a graph's weights, those aside that diffusers keeps in fp32. fp8 is made of graphs of these types."""


@dataclass(frozen=True, kw_only=True)
class Exportable:
    """A loaded module, ready to be exported and verified.

    Attributes:
        spec: inputs, outputs, precision of the graph to be.
        module: in eval mode; takes the inputs in the order of ``spec`` and returns the outputs in its order.
        reference: the same weights through the unmodified diffusers or transformers classes, called
            as the reference pipeline calls them. What the graph is verified against; in fp16-mixed, which these
            classes cannot compute in, it is plain fp16, and the graph is verified against the fp32 one. Of a bf16
            text encoder it is the class in fp32, which the graph is nearer to than the class in bf16 is.
        inputs: makes random inputs for the given symbol sizes.
        export_sizes: symbol sizes to trace at.
        verify_sizes: two or more others to verify at.
        streamed: modules that compute on large weights which are still in their files.
    """

    spec: GraphSpec
    module: torch.nn.Module
    reference: Callable[..., Tensors]
    inputs: Callable[[Mapping[str, int], torch.Generator], Tensors]
    export_sizes: Mapping[str, int]
    verify_sizes: tuple[Mapping[str, int], ...]
    streamed: tuple[torch.nn.Module, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Part:
    """A component of a pipeline that becomes one graph.

    Attributes:
        name: the component's name in the bundle.
        sources: files that determine the graph and its weights (configuration and weight files), for its key.
        load: reads the weights and builds the module in a precision; the memory is the caller's to release.
        revision: of the code that says what the graph computes, such as ``wan transformer 1``; part of the key.
        check: compares the headers of the weights with the class, before anything is read or built; gives lines about
            what is left out, and raises a FlowBlendingError about what does not fit.
        architecture: of a transformer: its published name, if `flowblending.contracts.graph` has one.
        loras: that ``load`` fuses into the weights.
    """

    name: str
    sources: tuple[Path, ...]
    load: Callable[[Precision], Exportable]
    revision: str
    check: Callable[[], tuple[str, ...]] = tuple
    architecture: str | None = None
    loras: tuple[Lora, ...] = ()

    @property
    def changed(self) -> frozenset[str]:
        """Names of the weights that differ from the checkpoint's."""
        return frozenset(name for lora in self.loras for name in lora.changes)


class Family(Protocol):
    """What the pipelines of a model family consist of; see `flowblending.export.families.model_family.ModelFamily`."""

    def advise(self, checkpoint: Checkpoint) -> str | None:
        """What to tell someone who builds this checkpoint with its pipeline class; None for nothing."""
        ...

    def describe(self, checkpoint: Checkpoint) -> PipelineSpec:
        """What the runtime must know, read from the configuration files (no weights beside statistics)."""
        ...

    def transformer(self, checkpoint: Checkpoint, folder: Path, name: str, loras: Sequence[Lora] = ()) -> Part:
        """The transformer in ``folder`` as the component ``name`` of the pipeline ``checkpoint``.

        Args:
            loras: to fuse into its weights.
        """
        ...

    def fit_lora(self, folder: Path, file: LoraFile, strength: float) -> Lora:
        """What a LoRA file changes in the transformer in ``folder``.

        Raises:
            UsageError: it was made for another one.
        """
        ...

    def signal(self, folder: Path, name: str, loras: Sequence[Lora] = ()) -> Part:
        """What TeaCache looks at in the transformer in ``folder``: a small graph of latents or timestep, in fp32.

        Its one output is ``signal`` [batch, ...]; see `flowblending.runtime.program.caches.teacache`.
        """
        ...

    def parts(self, checkpoint: Checkpoint) -> tuple[Part, ...]:
        """Text encoder and VAE decoder graphs."""
        ...

    def vae_encoder(self, checkpoint: Checkpoint) -> tuple[Part, ...]:
        """The graphs of the VAE's encoder, whether or not they are among ``parts``: previews are fitted with them."""
        ...
