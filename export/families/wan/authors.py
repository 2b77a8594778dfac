"""How the authors of known Wan models sample, which scheduler_config.json and WanPipeline's defaults do not say."""

from __future__ import annotations

from collections.abc import Mapping

from flowblending.contracts.graph import WAN_T2V_1_3B, WAN_T2V_14B, AuthorsSampling

AUTHORS: Mapping[tuple[str, bool], AuthorsSampling] = {
    (WAN_T2V_14B, False): AuthorsSampling(
        model="Wan 2.1 T2V 14B",
        shift=5.0,
        steps=50,
        guidance=(5.0,),
        source="generate.py of github.com/Wan-Video/Wan2.1",
    ),
    # The README calls a shift from 8 to 12 good.
    (WAN_T2V_1_3B, False): AuthorsSampling(
        model="Wan 2.1 T2V 1.3B",
        shift=8.0,
        steps=50,
        guidance=(6.0,),
        source="README.md of github.com/Wan-Video/Wan2.1",
    ),
    (WAN_T2V_14B, True): AuthorsSampling(
        model="Wan 2.2 T2V A14B",
        shift=12.0,
        steps=40,
        guidance=(4.0, 3.0),
        source="wan/configs/wan_t2v_A14B.py of github.com/Wan-Video/Wan2.2",
    ),
}
"""By the transformer's published name, and whether there are two of it: experts for high and for low noise."""


def authors_sampling(architecture: str | None, *, experts: bool) -> AuthorsSampling | None:
    """That of a text-to-video model; None for one that is not known.

    Args:
        architecture: the transformer's published name, if it has one.
        experts: whether the checkpoint has a second transformer, for low noise.
    """
    return None if architecture is None else AUTHORS.get((architecture, experts))
