"""Attention of a Wan block in graphs (diffusers models/transformers/transformer_wan.py, WanAttnProcessor).

Where a model looks at images, cross-attention has their tokens before those of the text, with keys and values of their
own; the two results are added. The query of the second is twice the first's, and its key half as large, which changes
no bit of their product: TensorRT-RTX 1.7 ends with a segmentation fault where two attentions have one query.
"""

from __future__ import annotations

import torch
from diffusers.models.transformers.transformer_wan import WanAttention

from flowblending.export.graph.attention import attend, rotate
from flowblending.export.graph.mixed import normalise, project

Positions = tuple[torch.Tensor, torch.Tensor]


class Attention:
    """Queries, keys and values in the type of the weights.

    Args:
        image_tokens: how many tokens of cross-attention are those of images.
    """

    def __init__(self, *, image_tokens: int = 0) -> None:
        self.image_tokens = image_tokens

    def __call__(
        self,
        attention: WanAttention,
        hidden: torch.Tensor,
        text: torch.Tensor | None = None,
        _mask: torch.Tensor | None = None,
        positions: Positions | None = None,
    ) -> torch.Tensor:
        """What the block adds: [batch, tokens, width], like ``hidden``."""
        context = hidden if text is None else text
        image, context = _of_image(attention, context, self.image_tokens)
        query = attention.norm_q(attention.to_q(hidden))
        key = attention.norm_k(attention.to_k(context))
        if positions is not None:
            query = rotate(query, *positions, attention.heads)
            key = rotate(key, *positions, attention.heads)
        attended = attend(query, key, attention.to_v(context), attention.heads)
        if image is not None:
            key = attention.norm_added_k(attention.add_k_proj(image))
            attended = attended + _attend_to_image(attention, query, key, image)
        output: torch.Tensor = attention.to_out[0](attended)
        return output


class MixedAttention:
    """The same with queries and keys in fp32 from the layers on which they come from to the attention itself.

    Args:
        normalised: whether what cross-attention makes its queries of has been through a norm.
        image_tokens: how many tokens of cross-attention are those of images.
    """

    def __init__(self, *, normalised: bool, image_tokens: int = 0) -> None:
        self.normalised = normalised
        self.image_tokens = image_tokens

    def __call__(
        self,
        attention: WanAttention,
        hidden: torch.Tensor,
        text: torch.Tensor | None = None,
        _mask: torch.Tensor | None = None,
        positions: Positions | None = None,
    ) -> torch.Tensor:
        """What the block adds: [batch, tokens, width], like ``hidden``."""
        context = hidden if text is None else text
        image, context = _of_image(attention, context, self.image_tokens)
        bare = text is not None and not self.normalised
        query = normalise(project(attention.to_q, hidden) if bare else attention.to_q(hidden), attention.norm_q)
        key = normalise(attention.to_k(context), attention.norm_k)
        if positions is not None:
            query = rotate(query, *positions, attention.heads)
            key = rotate(key, *positions, attention.heads)
        value = attention.to_v(context)
        query = query.to(value.dtype)
        attended = attend(query, key.to(value.dtype), value, attention.heads)
        if image is not None:
            key = normalise(attention.add_k_proj(image), attention.norm_added_k).to(value.dtype)
            attended = attended + _attend_to_image(attention, query, key, image)
        output: torch.Tensor = attention.to_out[0](attended)
        return output


def _of_image(attention: WanAttention, context: torch.Tensor, tokens: int) -> tuple[torch.Tensor | None, torch.Tensor]:
    """The tokens of images, where the layer looks at them, and those of the text."""
    if attention.add_k_proj is None:
        return None, context
    return context[:, :tokens], context[:, tokens:]


def _attend_to_image(
    attention: WanAttention, query: torch.Tensor, key: torch.Tensor, image: torch.Tensor
) -> torch.Tensor:
    """Twice the query and half the key, so that the query is not the first attention's: see above."""
    return attend(query * 2, key * 0.5, attention.add_v_proj(image), attention.heads)
