"""Components that are whole, each of them, and do not fit together."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from flowblending import FlowBlendingError
from flowblending.export.checkpoint.checkpoint import open_checkpoint
from flowblending.export.checkpoint.together import check_together
from flowblending.export.families.tokenizer import read_tokenizer, token_ids


@pytest.fixture(params=["wan", "ltx"])
def large(request: pytest.FixtureRequest, checkpoints: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of a pipeline that a test may damage."""
    return shutil.copytree(checkpoints(request.param) / "large", tmp_path / "large")


def test_a_whole_pipeline_fits_together(large: Path) -> None:
    checkpoint = open_checkpoint(large)
    check_together(checkpoint, token_ids(read_tokenizer(checkpoint).content))


@pytest.mark.parametrize(
    ("component", "fields", "says"),
    [
        ("text_encoder", ("d_model",), "text encoder's output is {value}, but the transformer takes texts of width"),
        ("transformer", ("text_dim", "caption_channels"), "but the transformer takes texts of width {value};"),
        ("transformer", ("in_channels",), "but that of the channels that the transformer takes is {value};"),
        ("transformer", ("out_channels",), "channels that the transformer gives is {value}, but"),
        ("vae", ("z_dim", "latent_channels"), "the VAE's latent channels is {value}, but"),
        ("text_encoder", ("vocab_size",), "but the text encoder has a table of {value} rows;"),
        ("text_encoder", ("eos_token_id",), "ends texts with token 1, but the text encoder's eos_token_id is {value};"),
        (
            "text_encoder",
            ("pad_token_id",),
            "fills them up with token 0, but the text encoder's pad_token_id is {value};",
        ),
    ],
)
def test_every_joint(large: Path, component: str, fields: tuple[str, ...], says: str) -> None:
    path = large / component / "config.json"
    config = json.loads(path.read_text())
    field = next(name for name in fields if name in config)
    path.write_text(json.dumps(config | {field: 5}))
    checkpoint = open_checkpoint(large)
    with pytest.raises(FlowBlendingError) as caught:
        check_together(checkpoint, token_ids(read_tokenizer(checkpoint).content))
    assert says.format(value=5) in str(caught.value)
    assert str(caught.value).startswith(f"The components of {large} do not fit together: ")
    assert "\n" not in str(caught.value)


def test_statistics_of_another_number_of_channels(checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    large = shutil.copytree(checkpoints("wan") / "large", tmp_path / "large")
    path = large / "vae" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"latents_mean": config["latents_mean"][:7]}))
    checkpoint = open_checkpoint(large)
    with pytest.raises(FlowBlendingError, match="VAE's statistics is 7, but that of its latent channels is 16;"):
        check_together(checkpoint, token_ids(read_tokenizer(checkpoint).content))


@pytest.mark.parametrize(("ending", "found"), [(None, "no token"), ("</s>", "token 4")])
def test_a_tokenizer_that_ends_texts_otherwise(large: Path, ending: str | None, found: str) -> None:
    """Every id is in the text encoder's table, and nothing would fail but what the prompt means."""
    checkpoint = open_checkpoint(large)
    tokenizer = json.loads(read_tokenizer(checkpoint).content)
    if ending is None:
        tokenizer["post_processor"] = None
    else:
        tokenizer["post_processor"]["special_tokens"][ending]["ids"] = [4]
    with pytest.raises(FlowBlendingError, match=f"the tokenizer ends texts with {found}, but .* eos_token_id is 1;"):
        check_together(checkpoint, token_ids(json.dumps(tokenizer).encode()))
