"""CLIP's vision encoder as a graph, and what its image processor does to colours.

The graph takes pixels as files of images have them; the processor's division and normalisation are its first nodes.
What the processor does before that, resizing and cropping, is `flowblending.runtime.conditions.image_tokens`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPVisionModel

from flowblending import FlowBlendingError
from flowblending.contracts.graph import IMAGE_ENCODER, GraphSpec, Precision, TensorSpec
from flowblending.export.checkpoint.checkpoint import Checkpoint, component_files, read_json
from flowblending.export.checkpoint.model_files import check_there
from flowblending.export.checkpoint.naming import shown
from flowblending.export.graph.attention import attend
from flowblending.export.graph.exportable import Exportable, Part, Tensors
from flowblending.export.graph.load import check_encoder, load_encoder

REVISION = 1
"""Raised when this file makes other graphs."""

IMAGE_PROCESSOR = "image_processor"

_KIND = "clip_vision_model"
_BICUBIC = 3
_STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")


@dataclass(frozen=True, kw_only=True)
class Colours:
    """How a CLIPImageProcessor brings 8-bit colours to the encoder's range: ``(value * scale - mean) / std``."""

    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


def image_tokens(checkpoint: Checkpoint) -> int:
    """How many tokens the encoder makes of an image: one for each patch, and one for all of it.

    Raises:
        FlowBlendingError: the checkpoint has no encoder, or another one.
    """
    config = _config(checkpoint)
    return int((config["image_size"] // config["patch_size"]) ** 2 + 1)


def image_encoder_part(checkpoint: Checkpoint) -> Part:
    """The graph ``image_encoder``: pixels fp32 [batch, 3, S, S] from 0 to 255 -> tokens fp32 [batch, N, D].

    The tokens are those before the encoder's last layer, as WanImageToVideoPipeline takes them.

    Raises:
        FlowBlendingError: files are missing, or the encoder or its processor is another one.
    """
    folder, config = checkpoint.folder / IMAGE_ENCODER, _config(checkpoint)
    settings, colours = _processor(checkpoint, config["image_size"])
    return Part(
        name=IMAGE_ENCODER,
        sources=(*component_files(checkpoint, IMAGE_ENCODER), settings),
        load=lambda precision: _load(folder, precision, colours),
        revision=f"clip {REVISION}",
        check=lambda: check_encoder(CLIPVisionModel, folder),
    )


def _config(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """The encoder's configuration, with the class's defaults."""
    folder = checkpoint.folder / IMAGE_ENCODER
    if not (folder / "config.json").is_file():
        raise FlowBlendingError(
            f"The transformer of {shown(checkpoint.folder)} looks at images through CLIP, but there is no folder "
            f"{IMAGE_ENCODER}; give a complete diffusers checkpoint."
        )
    found = checkpoint.config(IMAGE_ENCODER)
    if found.get("model_type") != _KIND:
        raise FlowBlendingError(
            f"The image encoder of {shown(checkpoint.folder)} is of type {found.get('model_type')}, but {_KIND} was "
            "expected; give a checkpoint whose image encoder is CLIP's."
        )
    return {"image_size": 224, "patch_size": 32, "num_channels": 3, **found}


def _processor(checkpoint: Checkpoint, size: int) -> tuple[Path, Colours]:
    """The file of the image processor's settings, and what they do to colours.

    Raises:
        FlowBlendingError: it is missing, or brings images to the encoder in another way than CLIP's does.
    """
    folder = checkpoint.folder / IMAGE_PROCESSOR
    path = folder / "preprocessor_config.json"
    if not path.is_file() and (folder / "processor_config.json").is_file():
        path = folder / "processor_config.json"  # of a CLIPProcessor, which holds the image processor's
    check_there(path)
    config = read_json(path)
    config = config.get(IMAGE_PROCESSOR, config)
    usual = (None,) if size == 224 else ()
    edges = dict.fromkeys(("height", "width"), size)
    expected: Mapping[str, Sequence[object]] = {
        **dict.fromkeys(_STEPS, (True, None)),
        "resample": (_BICUBIC, None),
        "size": (size, {"shortest_edge": size}, *usual),
        "crop_size": (size, edges, *usual),
    }
    for name, allowed in expected.items():
        if config.get(name) not in allowed:
            raise FlowBlendingError(
                f"{shown(path)} has {name} = {config.get(name)!r}, but {allowed[0]!r} was expected: images whose "
                f"shorter edge is resized to {size} by bicubic interpolation, and whose middle is cut out; give a "
                "checkpoint with the image processor of its class."
            )
    try:
        mean, std = (tuple(map(float, config[name])) for name in ("image_mean", "image_std"))
        scale = float(config.get("rescale_factor", 1 / 255))
        sound = len(mean) == len(std) == 3 and min(*std, scale) > 0
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        raise FlowBlendingError(
            f"{shown(path)} does not say how colours are normalised (rescale_factor, image_mean and image_std of three "
            "colours); give a complete diffusers checkpoint."
        )
    return path, Colours(scale=scale, mean=mean, std=std)


class ClipEncoder(torch.nn.Module):
    """The forward pass of a CLIPVisionModel up to its last layer but one, over the layers of the stock one.

    transformers modeling_clip.py; arXiv 2103.00020.

    Args:
        stock: used as it is, and not changed.
        colours: see there.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, stock: CLIPVisionModel, colours: Colours) -> None:
        super().__init__()
        self.stock = stock
        # A division by 255 rounds as the processor's product in float64 does, and a product in float32 does not.
        self.divisor = 1 / colours.scale
        for name, values in (("mean", colours.mean), ("std", colours.std)):
            tensor = torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)
            self.register_buffer(name, tensor, persistent=False)

    def normalised(self, pixels: torch.Tensor) -> torch.Tensor:
        """What the processor gives for pixels fp32 [batch, 3, S, S] from 0 to 255."""
        return (pixels / self.divisor - self.mean) / self.std

    def forward(self, pixels: torch.Tensor) -> Tensors:
        """Tokens, fp32 [batch, N, D]."""
        hidden = self.stock.pre_layrnorm(self.stock.embeddings(self.normalised(pixels)))
        for layer in self.stock.encoder.layers[:-1]:
            attention, normal = layer.self_attn, layer.layer_norm1(hidden)
            query, key, value = (project(normal) for project in (attention.q_proj, attention.k_proj, attention.v_proj))
            hidden = hidden + attention.out_proj(attend(query, key, value, attention.num_heads))
            hidden = hidden + layer.mlp(layer.layer_norm2(hidden))
        return (hidden.float(),)


def _load(folder: Path, precision: Precision, colours: Colours) -> Exportable:
    stock: CLIPVisionModel = load_encoder(CLIPVisionModel, folder, precision)
    config = stock.config
    module = ClipEncoder(stock, colours).eval()
    shape = ("batch", config.num_channels, config.image_size, config.image_size)
    tokens = (config.image_size // config.patch_size) ** 2 + 1
    spec = GraphSpec(
        name=IMAGE_ENCODER,
        precision=precision,
        inputs=(TensorSpec(name="pixels", dtype="float32", shape=shape),),
        outputs=(TensorSpec(name="tokens", dtype="float32", shape=("batch", tokens, config.hidden_size)),),
    )

    def reference(pixels: torch.Tensor) -> Tensors:
        """As ``encode_image`` of diffusers' pipeline_wan_i2v.py."""
        seen = stock(module.normalised(pixels).to(stock.dtype), output_hidden_states=True)
        return (seen.hidden_states[-2].float(),)

    def inputs(sizes: Mapping[str, int], generator: torch.Generator) -> Tensors:
        shape = spec.inputs[0].resolve(sizes)
        return (torch.randint(0, 256, shape, generator=generator).float(),)

    return Exportable(
        spec=spec,
        module=module,
        reference=reference,
        inputs=inputs,
        export_sizes={"batch": 2},
        verify_sizes=({"batch": 1}, {"batch": 3}),
        streamed=(stock, module),
    )
