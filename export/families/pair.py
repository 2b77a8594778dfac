"""Whether two checkpoints can be a pair: what they must share, told from their configurations alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from flowblending import FlowBlendingError
from flowblending.export.checkpoint.checkpoint import Checkpoint, read_json, vae_statistics
from flowblending.export.checkpoint.model_files import STATISTICS
from flowblending.export.checkpoint.naming import shown
from flowblending.export.families.registry import vae_factors


def check_pair(
    large: Checkpoint,
    large_transformer: Path,
    small_transformer: Path,
    small: Checkpoint | None,
    names: tuple[str, str] = ("the large one", "the small one"),
) -> None:
    """Refuse a pair that cannot share latents or text.

    What can be seen from the configurations: two VAEs of one architecture and equal statistics count as the same.

    Args:
        large: the pipeline that text encoder, VAE and scheduler are taken from.
        large_transformer: folder of its transformer.
        small_transformer: folder of the other transformer.
        small: the pipeline that the other transformer came from; None where it was given alone.
        names: what messages call the two.

    Raises:
        FlowBlendingError: names the first field that differs, and both values.
    """
    if small is not None and small.pipeline != large.pipeline:
        raise FlowBlendingError(
            f"{names[0].capitalize()} is a {large.pipeline} but {names[1]} is a {small.pipeline}, and no pipeline runs "
            "both; choose two checkpoints of one model family."
        )
    for field, ours, theirs in _compared(large, large_transformer, small_transformer, small):
        if not _same(ours, theirs):
            raise FlowBlendingError(
                f"The two checkpoints cannot be a pair: {field} is {_show(ours)} in {names[0]} "
                f"({shown(large.folder)}) but {_show(theirs)} in {names[1]} ({shown(small_transformer)}); "
                "choose two that share latents and text."
            )


def _compared(
    large: Checkpoint, large_transformer: Path, small_transformer: Path, small: Checkpoint | None
) -> Iterator[tuple[str, object, object]]:
    """Fields that must agree, with the value of each side."""
    ours, theirs = (read_json(folder / "config.json") for folder in (large_transformer, small_transformer))
    fields = (
        "_class_name",
        "in_channels",
        "patch_size",
        "patch_size_t",
        "text_dim",
        "caption_channels",
        "vace_in_channels",
        "image_dim",
        "pos_embed_seq_len",
    )
    for field in fields:
        yield f"the transformer's {field.strip('_')}", ours.get(field), theirs.get(field)
    # The classes take no out_channels for as many as in_channels.
    of_ours, of_theirs = (config.get("out_channels") or config.get("in_channels") for config in (ours, theirs))
    yield "the transformer's out_channels", of_ours, of_theirs
    if small is None:
        return
    yield "the transformer's timestep per token", large.timestep_per_token, small.timestep_per_token
    if small.has("vae"):
        yield from _compared_vaes(large, small)
    if small.has("text_encoder"):
        yield from _fields("text_encoder", ("model_type", "d_model", "vocab_size"), large, small)


def _compared_vaes(large: Checkpoint, small: Checkpoint) -> Iterator[tuple[str, object, object]]:
    yield from _fields("vae", ("_class_name", "z_dim", "latent_channels", "scaling_factor"), large, small)
    yield "the VAE's compression (frames, pixels)", vae_factors(large), vae_factors(small)
    if not all(small.config("vae").get(name) for name in STATISTICS) and not small.has_weights("vae"):
        return
    statistics = zip(vae_statistics(large), vae_statistics(small), strict=True)
    for name, both in zip(STATISTICS, statistics, strict=True):
        yield f"the number of the VAE's {name}", len(both[0]), len(both[1])
        for channel, (mean, other) in enumerate(zip(*both, strict=True)):
            yield f"the VAE's {name}[{channel}]", mean, other


def _fields(
    component: str, names: Sequence[str], large: Checkpoint, small: Checkpoint
) -> Iterator[tuple[str, object, object]]:
    ours, theirs = large.config(component), small.config(component)
    for name in names:
        yield f"the {component}'s {name.strip('_')}", ours.get(name), theirs.get(name)


def _same(ours: object, theirs: object) -> bool:
    if isinstance(ours, float) and isinstance(theirs, float):
        # The same statistics may have been stored in fp32 once and in bf16 (8 bits) once.
        return math.isclose(ours, theirs, rel_tol=2**-8, abs_tol=1e-6)
    return ours == theirs


def _show(value: object) -> str:
    if value is None:
        return "missing"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
