"""Attention written so that it becomes the ONNX operators Attention and RotaryEmbedding.

Both operators work on heads laid side by side in the last dimension, which spares every transposition
that torch's own attention needs.
"""

from __future__ import annotations

import torch
from torch.onnx import ops


def rotate(values: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, heads: int) -> torch.Tensor:
    """Rotary position embedding of neighbouring pairs (RoFormer, arXiv 2104.09864, equation 34), in fp32.

    Args:
        values: [batch, tokens, heads * head_dim].
        cos: fp32 [batch, tokens, head_dim / 2]; the last size must be a number, not traced.
        sin: like ``cos``.
        heads: how many heads the last dimension of ``values`` holds.

    Returns:
        Shape and type of ``values``.
    """
    return ops.rotary_embedding(values.float(), cos, sin, interleaved=True, num_heads=heads).to(values.dtype)


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Scaled dot-product attention.

    Args:
        query: [batch, tokens, heads * head_dim].
        key: [batch, keys, heads * head_dim].
        value: like ``key``.
        heads: how many heads the last dimension holds.
        mask: added to the scores before the softmax, of the type of ``query``;
            broadcastable to [batch, heads, tokens, keys].

    Returns:
        Shape and type of ``query``.
    """
    return ops.attention(query, key, value, attn_mask=mask, q_num_heads=heads, kv_num_heads=heads)[0]
