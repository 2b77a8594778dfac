"""What the authors of LTX-Video call the parameters of their transformer, by the names that diffusers gives them.

The other way round, it is diffusers' convert_ltx_transformer_checkpoint_to_diffusers (loaders/single_file_utils.py).
"""

from __future__ import annotations

import re

_RENAMED: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^proj_in\.", "patchify_proj."),
        (r"^time_embed\.", "adaln_single."),
        (r"\.norm_([qk])\.", r".\1_norm."),
    )
)


def authors_name(parameter: str) -> str:
    """``transformer_blocks.0.attn1.q_norm.weight`` for ``transformer_blocks.0.attn1.norm_q.weight``."""
    for pattern, name in _RENAMED:
        parameter = pattern.sub(name, parameter)
    return parameter
