"""Whether the components of one pipeline fit together: each may be whole, and the next not take it."""

from __future__ import annotations

from collections.abc import Iterator

from flowblending import FlowBlendingError
from flowblending.export.checkpoint.checkpoint import TRANSFORMER, Checkpoint, vae_statistics
from flowblending.export.checkpoint.naming import shown


def check_together(checkpoint: Checkpoint, last: int) -> None:
    """Compare what each component gives with what the next one takes, from configurations and the tokenizer.

    Args:
        last: the largest id that the tokenizer gives.

    Raises:
        FlowBlendingError: names two components, and both numbers.
    """
    for given, count, taken, wanted in _joints(checkpoint):
        if count is not None and wanted is not None and count != wanted:
            raise FlowBlendingError(
                f"The components of {shown(checkpoint.folder)} do not fit together: {given} {count}, but {taken} "
                f"{wanted}; give a checkpoint whose components belong to one another."
            )
    rows = checkpoint.config("text_encoder").get("vocab_size")
    if rows is not None and last >= rows:
        raise FlowBlendingError(
            f"The components of {shown(checkpoint.folder)} do not fit together: the tokenizer gives ids up to "
            f"{last}, but the text encoder has a table of {rows} rows; give a checkpoint whose components belong to "
            "one another."
        )


def _joints(checkpoint: Checkpoint) -> Iterator[tuple[str, int | None, str, int | None]]:
    """What gives how much, and what takes how much; None where a configuration leaves it to the class."""
    transformer, vae = checkpoint.config(TRANSFORMER), checkpoint.config("vae")
    channels = transformer.get("in_channels")
    text = transformer.get("text_dim", transformer.get("caption_channels"))
    latents = vae.get("z_dim", vae.get("latent_channels"))
    yield (
        "the width of the text encoder's output is",
        checkpoint.config("text_encoder").get("d_model"),
        "the transformer takes texts of width",
        text,
    )
    yield (
        "the number of the VAE's latent channels is",
        latents,
        "that of the channels that the transformer takes is",
        channels,
    )
    yield (
        "the number of channels that the transformer gives is",
        transformer.get("out_channels") or channels,
        "that of the channels that it takes is",
        channels,
    )
    yield (
        "the number of the VAE's statistics is",
        len(vae_statistics(checkpoint)[0]),
        "that of its latent channels is",
        latents,
    )
