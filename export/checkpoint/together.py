"""Whether the components of one pipeline fit together: each may be whole, and the next not take it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from flowblending import FlowBlendingError
from flowblending.contracts.graph import IMAGE_ENCODER
from flowblending.export.checkpoint.checkpoint import TRANSFORMER, Checkpoint, vae_statistics
from flowblending.export.checkpoint.naming import shown


@dataclass(frozen=True, kw_only=True)
class TokenIds:
    """What a tokenizer gives.

    Attributes:
        largest: of all ids.
        end: the id that ends every text; None where nothing does.
        pad: the id that fills up; None where there is none.
    """

    largest: int
    end: int | None
    pad: int | None


def check_together(checkpoint: Checkpoint, ids: TokenIds, *, beside: int = 0) -> None:
    """Compare what each component gives with what the next one takes, from configurations and the tokenizer.

    Args:
        ids: that the tokenizer gives.
        beside: channels that the transformer takes beside those of the latents.

    Raises:
        FlowBlendingError: names two components, and both numbers.
    """
    text = checkpoint.config("text_encoder")
    for given, count, taken, wanted in _joints(checkpoint, beside):
        if count is not None and wanted is not None and count != wanted:
            raise _apart(checkpoint, f"{given} {count}, but {taken} {wanted}")
    rows = text.get("vocab_size")
    if rows is not None and ids.largest >= rows:
        raise _apart(
            checkpoint,
            f"the tokenizer gives ids up to {ids.largest}, but the text encoder has a table of {rows} rows",
        )
    for what, found, name in (("ends texts", ids.end, "eos_token_id"), ("fills them up", ids.pad, "pad_token_id")):
        wanted = text.get(name)
        # A text that does not end as those of the training did gives another embedding, and no error.
        if isinstance(wanted, int) and found != wanted:
            token = "no token" if found is None else f"token {found}"
            raise _apart(checkpoint, f"the tokenizer {what} with {token}, but the text encoder's {name} is {wanted}")


def _apart(checkpoint: Checkpoint, how: str) -> FlowBlendingError:
    return FlowBlendingError(
        f"The components of {shown(checkpoint.folder)} do not fit together: {how}; give a checkpoint whose components "
        "belong to one another."
    )


def _joints(checkpoint: Checkpoint, beside: int) -> Iterator[tuple[str, int | None, str, int | None]]:
    """What gives how much, and what takes how much; None where a configuration leaves it to the class."""
    transformer, vae = checkpoint.config(TRANSFORMER), checkpoint.config("vae")
    channels = transformer.get("in_channels")
    if isinstance(channels, int):
        channels -= beside
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
    if transformer.get("image_dim") is not None:
        yield (
            "the width of the image encoder's output is",
            checkpoint.config(IMAGE_ENCODER).get("hidden_size"),
            "the transformer takes images of width",
            transformer["image_dim"],
        )
    yield (
        "the number of the VAE's statistics is",
        len(vae_statistics(checkpoint)[0]),
        "that of its latent channels is",
        latents,
    )
