"""fp16-mixed: matrix products in fp16, and everything between them in fp32.

A transformer adds the result of every block to one stream, whose largest values grow with the depth and with the
gates; in fp16 they overflow at 65504 and the video turns black. The products themselves take normalised values and
stay far below that.
"""

from __future__ import annotations

import torch

_SMALLEST = 1e-9
"""Below this a stream counts as zero: its square would vanish in fp32."""


def narrow_layers(model: torch.nn.Module) -> None:
    """Make every layer with a matrix of weights take its input in the type of these weights.

    What a layer gives stays in that type, and is widened by the first sum or product with an fp32 value.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv3d):
            module.register_forward_pre_hook(_narrow)


def _narrow(layer: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    return inputs[0].to(weight.dtype)


def normalise(values: torch.Tensor, norm: torch.nn.RMSNorm) -> torch.Tensor:
    """RMS norm in fp32 of a layer's 16-bit result, fp32: its squares overflow fp16 from 256 on."""
    assert norm.weight is not None
    return torch.nn.functional.rms_norm(values.float(), tuple(norm.normalized_shape), norm.weight.float(), norm.eps)


def project(layer: torch.nn.Linear, stream: torch.Tensor) -> torch.Tensor:
    """A layer over a stream that no norm has brought to size: a 16-bit product, and a result in fp32.

    Every token is divided by its root mean square before the product and multiplied by it afterwards, so that
    neither input nor product leaves the range of fp16.

    Args:
        layer: with 16-bit weights.
        stream: fp32 [..., channels], of any magnitude.
    """
    size = stream.square().mean(dim=-1, keepdim=True).sqrt().clamp(min=_SMALLEST)
    product = torch.nn.functional.linear((stream / size).to(layer.weight.dtype), layer.weight).float() * size
    return product if layer.bias is None else product + layer.bias.float()
