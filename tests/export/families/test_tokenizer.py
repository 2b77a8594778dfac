"""The tokenizer of a bundle against the checkpoint's own files and against transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer

from benchmarks.checkpoints import CORPUS
from flowblending import FlowBlendingError
from flowblending.export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from flowblending.export.families import tokenizer as tokenizer_module
from flowblending.export.families.tokenizer import PROBES, read_tokenizer

PROMPTS = ["A cat walks on the grass.", "", "一只猫 🐈 " + "walks over the wooden floor and back again, " * 60]
VERSION = f"transformers {transformers.__version__}"
SETTINGS = {
    "tokenizer_class": "T5Tokenizer",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "extra_ids": 0,
}
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def umt5_like(folder: Path, *, ends: bool = True) -> Checkpoint:
    """A checkpoint whose tokenizer.json normalises and falls back to bytes, as UMT5's does."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((byte, -20.0) for byte in BYTES)]
    pieces += [("▁", -2.0), ("▁cat", -1.0), *((letter, -4.0) for letter in "abcdefghijklmnopqrstuvwxyzA.,")]
    made = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=True))
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    if ends:
        made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    made.add_special_tokens(["<pad>", "</s>", "<unk>"])
    (folder / "tokenizer").mkdir()
    made.save(str(folder / "tokenizer/tokenizer.json"))
    (folder / "tokenizer/tokenizer_config.json").write_text(json.dumps(SETTINGS))
    return Checkpoint(folder=folder, pipeline="WanPipeline")


def sentencepiece_model(folder: Path, *, byte_fallback: bool) -> Checkpoint:
    """A checkpoint whose tokenizer is a SentencePiece model alone."""
    (folder / "tokenizer").mkdir()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 10),
        model_prefix=str(folder / "tokenizer/spiece"),
        vocab_size=100 + 256 * byte_fallback,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        pad_piece="<pad>",
        character_coverage=1.0,
        byte_fallback=byte_fallback,
        minloglevel=2,
    )
    (folder / "tokenizer/spiece.vocab").unlink()
    (folder / "tokenizer/tokenizer_config.json").write_text(json.dumps(SETTINGS))
    return Checkpoint(folder=folder, pipeline="LTXPipeline")


def test_what_transformers_drops_of_the_checkpoints_own_is_kept_and_said(tmp_path: Path) -> None:
    checkpoint = umt5_like(tmp_path)
    found = read_tokenizer(checkpoint)
    assert found.content == (tmp_path / "tokenizer/tokenizer.json").read_bytes()
    alone = Tokenizer.from_str(found.content.decode())
    # A cat's face is four bytes of UTF-8; a full-width comma is a comma.
    assert alone.encode("🐈").tokens == ["▁", "<0xF0>", "<0x9F>", "<0x90>", "<0x88>", "</s>"]
    assert alone.encode("cat，cat").tokens == ["▁cat", ",", "c", "a", "t", "</s>"]
    stock = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    if stock("🐈")["input_ids"] == alone.encode("🐈").ids:
        pytest.skip(f"{VERSION} reads the file as it is")
    assert found.origin.startswith("the checkpoint's own tokenizer.json; " + VERSION + " reads ")
    assert f"of {len(PROBES)} probes differently, and so do diffusers' pipelines with it: " in found.origin
    assert " of them unknown, instead of " in found.origin


def test_byte_fallback_of_a_sentencepiece_model(tmp_path: Path) -> None:
    found = read_tokenizer(sentencepiece_model(tmp_path, byte_fallback=True))
    alone = Tokenizer.from_str(found.content.decode())
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer/spiece.model"))
    for prompt in (*CORPUS, *PROBES):
        if "</s>" not in prompt:
            assert alone.encode(prompt).ids == [*pieces.encode(prompt), 1], prompt
    assert found.origin.startswith(f"spiece.model as {VERSION} reads it, with the bytes that it drops; ")


def test_a_tokenizer_that_does_not_end_prompts_is_not_taken_as_it_is(tmp_path: Path) -> None:
    checkpoint = umt5_like(tmp_path, ends=False)
    found = read_tokenizer(checkpoint)
    assert found.origin.startswith(f"an incomplete tokenizer.json as {VERSION} reads it, with the bytes")
    alone = Tokenizer.from_str(found.content.decode())
    assert alone.encode("🐈").tokens == ["▁", "<0xF0>", "<0x9F>", "<0x90>", "<0x88>", "</s>"]


def _same_ids(content: bytes, folder: Path) -> None:
    alone, reference = Tokenizer.from_str(content.decode()), AutoTokenizer.from_pretrained(folder)
    for prompt in (*PROMPTS, *CORPUS, *PROBES):
        assert alone.encode(prompt).ids == reference(prompt)["input_ids"]


@pytest.mark.parametrize("kind", ["wan", "ltx"])
def test_tokenizer_alone_gives_the_same_ids(checkpoints: Callable[[str], Path], kind: str) -> None:
    checkpoint = open_checkpoint(str(checkpoints(kind) / "large"))
    _same_ids(read_tokenizer(checkpoint).content, checkpoint.folder / "tokenizer")


def test_tokenizer_from_a_sentencepiece_model(tmp_path: Path) -> None:
    checkpoint = sentencepiece_model(tmp_path, byte_fallback=False)
    found = read_tokenizer(checkpoint)
    _same_ids(found.content, tmp_path / "tokenizer")
    assert found.origin == f"spiece.model as {VERSION} reads it"
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer/spiece.model"))
    assert Tokenizer.from_str(found.content.decode()).encode(CORPUS[1]).ids == [*pieces.encode(CORPUS[1]), 1]


def test_refuses_a_tokenizer_that_cannot_be_read_or_is_not_all_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = sentencepiece_model(tmp_path, byte_fallback=False)

    class Shouting:
        """A tokenizer that does something to the text before its fast part sees it."""

        def __init__(self, folder: Path) -> None:
            self.quiet = AutoTokenizer.from_pretrained(folder)

        def __getattr__(self, name: str) -> object:
            return getattr(self.quiet, name)

        def __call__(self, prompts: list[str], **options: object) -> object:
            return self.quiet([prompt.upper() for prompt in prompts], **options)

    class Auto:
        from_pretrained = Shouting

    monkeypatch.setattr(tokenizer_module, "AutoTokenizer", Auto)
    with pytest.raises(FlowBlendingError, match=r"tokenizer\.json alone reads 'A cat walks"):
        read_tokenizer(checkpoint)
    monkeypatch.undo()
    for path in (tmp_path / "tokenizer").iterdir():
        path.write_text("{")
    with pytest.raises(FlowBlendingError, match="Cannot read the tokenizer"):
        read_tokenizer(checkpoint)
