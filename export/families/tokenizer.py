"""The tokenizer of a bundle: the one file that the runtime reads, and whether transformers reads prompts alike.

A checkpoint's ``tokenizer.json`` is what its model was trained with. transformers 5 makes a tokenizer of its own of it,
from the vocabulary alone: normalisation and byte fallback are lost, so that an emoji, or a full-width comma, becomes an
unknown token. The bundle therefore takes the checkpoint's own file; diffusers' pipelines with such a version of
transformers see other tokens where the two differ, which is said when a bundle is built.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from flowblending import FlowBlendingError
from flowblending.export.checkpoint.checkpoint import Checkpoint
from flowblending.export.checkpoint.naming import shown
from flowblending.export.checkpoint.together import TokenIds

TOKENIZER_FILE = "tokenizer.json"
PAD = "<pad>"

PROBES = (
    "A cat walks on the grass, realistic style.",
    "",
    "  two  spaces,\ttab and\nnew line ",
    "一只猫在草地上行走，写实风格。",
    "emoji 🐈‍⬛, ligature ﬁ, accent é, unknown \u0e5b",
    "literal </s> and <pad> and <extra_id_0>",
    "long " * 40,
    "Ｆｕｌｌ　ｗｉｄｔｈ！",
    "🙂",
    "e\u0301 and é, “quotes” – dash … x² ½ Å",
)
"""Prompts to compare on: white space, scripts, special tokens, what normalisation changes, what no vocabulary has."""


@dataclass(frozen=True, kw_only=True)
class TokenizerFile:
    """What a bundle takes.

    Attributes:
        content: of ``tokenizer.json``, for the ``tokenizers`` library.
        origin: where it is from, and where transformers differs, as a sentence's end.
    """

    content: bytes
    origin: str


def read_tokenizer(checkpoint: Checkpoint) -> TokenizerFile:
    """The tokenizer of a checkpoint: its own ``tokenizer.json``, or else what transformers makes of its other files.

    Raises:
        FlowBlendingError: transformers cannot read it; or there is no ``tokenizer.json``, and what transformers makes
            of the rest cannot be used without it.
    """
    folder = checkpoint.folder / "tokenizer"
    version = f"transformers {transformers.__version__}"
    try:
        stock = AutoTokenizer.from_pretrained(folder)
        content: str = stock.backend_tokenizer.to_str()
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError) as error:
        raise FlowBlendingError(
            f"Cannot read the tokenizer in {shown(folder)} ({_first_line(error)}); give a complete diffusers "
            "checkpoint."
        ) from error
    stock.model_max_length = len(" ".join(PROBES))  # it would warn of the long one
    theirs = [list(ids) for ids in stock(list(PROBES))["input_ids"]]
    own = _own(folder / TOKENIZER_FILE, stock)
    if own is None:
        _check_alone(Tokenizer.from_str(content), stock, folder)
        mended = _with_byte_fallback(content)
        source = f"{_source(folder)} as {version} reads it" + (
            ", with the bytes that it drops" if mended != content else ""
        )
        content = mended
    else:
        content, source = own, f"the checkpoint's own {TOKENIZER_FILE}"
    ours = [Tokenizer.from_str(content).encode(probe).ids for probe in PROBES]
    return TokenizerFile(content=content.encode(), origin=f"{source}{_compared(ours, theirs, stock, version, own)}")


def token_ids(content: bytes) -> TokenIds:
    """The ids that a ``tokenizer.json`` gives."""
    tokenizer = Tokenizer.from_str(content.decode())
    tokenizer.no_padding()
    return TokenIds(
        largest=max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0),
        end=next(reversed(tokenizer.encode("").ids), None),
        pad=tokenizer.token_to_id(PAD),
    )


def _own(path: Path, stock: Any) -> str | None:
    """The checkpoint's own file, if it is complete: one that ends prompts and pads them as the model expects."""
    if not path.is_file():
        return None
    try:
        content = path.read_text(encoding="utf-8")
        tokenizer = Tokenizer.from_str(content)
    except Exception as error:  # tokenizers raises bare Exception for a file that it cannot parse
        raise FlowBlendingError(
            f"Cannot read the tokenizer in {shown(path.parent)} ({_first_line(error)}); give a complete diffusers "
            "checkpoint."
        ) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    complete = tokenizer.token_to_id(PAD) == stock.pad_token_id
    return content if complete and tokenizer.encode("").ids == list(stock([""])["input_ids"][0]) else None


def _source(folder: Path) -> str:
    """What transformers read."""
    models = sorted(path.name for path in folder.glob("*.model"))
    return models[0] if models else f"an incomplete {TOKENIZER_FILE}"


def _with_byte_fallback(content: str) -> str:
    """With the bytes of characters that no piece has, where the vocabulary has a piece for every byte.

    Only a SentencePiece model that was trained with ``byte_fallback`` has them; transformers 5 drops the setting.
    """
    described = json.loads(content)
    model = described["model"]
    pieces = {piece for piece, _ in model["vocab"]} if model.get("type") == "Unigram" else set()
    if model.get("byte_fallback") or not {f"<0x{byte:02X}>" for byte in range(256)} <= pieces:
        return content
    model["byte_fallback"] = True
    return json.dumps(described, ensure_ascii=False)


def _check_alone(alone: Tokenizer, stock: Any, folder: Path) -> None:
    """Refuse a tokenizer of transformers' that does more than its serialised part."""
    for length in (16, 128):
        alone.enable_truncation(length)
        alone.enable_padding(length=length, pad_id=stock.pad_token_id, pad_token=stock.pad_token)
        expected = stock(list(PROBES), padding="max_length", max_length=length, truncation=True)
        for prompt, found, ids, mask in zip(
            PROBES, alone.encode_batch(list(PROBES)), expected["input_ids"], expected["attention_mask"], strict=True
        ):
            if (found.ids, found.attention_mask) != (ids, mask):
                raise FlowBlendingError(
                    f"The tokenizer in {shown(folder)} cannot be used without transformers, as {TOKENIZER_FILE} alone "
                    f"reads {prompt[:24]!r} differently; give a checkpoint with a T5 or UMT5 tokenizer."
                )


def _compared(ours: Sequence[list[int]], theirs: Sequence[list[int]], stock: Any, version: str, own: str | None) -> str:
    """How transformers, and thereby diffusers, reads the probes."""
    differing = [
        (probe, found, other) for probe, found, other in zip(PROBES, ours, theirs, strict=True) if found != other
    ]
    if not differing:
        return "" if own is None else f", which {version} reads alike"
    # The plainest example: what is unknown there and not here.
    probe, found, other = max(differing, key=lambda each: each[2].count(stock.unk_token_id) / len(each[2]))
    unknown = other.count(stock.unk_token_id)
    return (
        f"; {version} reads {len(differing)} of {len(PROBES)} probes differently, and so do diffusers' pipelines with "
        f"it: {probe[:24]!r} as {len(other)} tokens, {unknown} of them unknown, instead of {len(found)}"
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
