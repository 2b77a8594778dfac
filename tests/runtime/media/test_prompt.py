"""Tokenising against transformers, and cleaning against diffusers, with small T5 tokenizers made on the fly."""

import importlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from transformers import T5Tokenizer

from flowblending import FlowBlendingError, UsageError
from flowblending.runtime.media.prompt import Tokenizer, clean_prompt

CORPUS = [
    "a cat sits on the mat in the morning light",
    "a dog runs through the park, 4k video, film grain",
    "The quick brown fox jumps over the lazy dog.",
    "一只猫坐在垫子上",
    "红色的汽车在雨中行驶",
]
PROMPTS = [
    "a cat on the mat",
    "",
    " leading, two  spaces and \t tabs\nand lines ",
    "一只红色的猫在雨中",
    "cat 🐱👩‍🚀 emoji",
    "salt &amp; pepper &amp;lt; &quot;x&quot;",
    "literal </s> and <pad> and <extra_id_3> inside",
    "ﬁlm ½ Ａ１ é e\u0301 \u200b\ufeff",
    "âœ” mojibake, itâ€™s",
    "a dog and a cat in the park " * 9,
    "🐱" * 40,
]


@pytest.fixture(scope="module", params=["t5", "umt5"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, T5Tokenizer]:
    """A tokenizer folder as it lies in a checkpoint, and transformers' tokenizer read from it.

    The vocabulary is SentencePiece's; umt5 keeps its normaliser (nmt_nfkc), as the released files do.
    """
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 20),
        model_writer=model,
        vocab_size=120,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    # Its classes are made by protobuf on import, so no type checker can see them.
    content = importlib.import_module("sentencepiece.sentencepiece_model_pb2").ModelProto.FromString(model.getvalue())
    charsmap = content.normalizer_spec.precompiled_charsmap if request.param == "umt5" else None
    made = T5Tokenizer(
        vocab=[(piece.piece, piece.score) for piece in content.pieces],
        _spm_precompiled_charsmap=charsmap,
        extra_ids=10,
    )
    folder = tmp_path_factory.mktemp(request.param)
    made.save_pretrained(folder)
    return folder, T5Tokenizer.from_pretrained(folder)


@pytest.mark.parametrize("length", [6, 24])
@pytest.mark.parametrize("clean", [False, True])
def test_equals_transformers(tokenizer: tuple[Path, T5Tokenizer], length: int, clean: bool) -> None:
    folder, reference = tokenizer
    ours = Tokenizer(folder, length=length, clean=clean)
    cut = 0
    for prompt in PROMPTS:
        text = prompt_clean(prompt) if clean else prompt
        expected = reference([text], padding="max_length", max_length=length, truncation=True, return_tensors="np")
        got = ours.encode(prompt)
        assert got.ids.dtype == got.mask.dtype == np.int64
        np.testing.assert_array_equal(got.ids, expected["input_ids"], err_msg=repr(prompt))
        np.testing.assert_array_equal(got.mask, expected["attention_mask"], err_msg=repr(prompt))
        assert got.dropped == max(0, len(reference(text)["input_ids"]) - length), repr(prompt)
        cut += got.dropped > 0
    assert 0 < cut < len(PROMPTS)


@pytest.mark.parametrize("text", [*PROMPTS, "&amp;amp;nbsp;x", "\x1c a \u3000 b \x85", "\ud800 lone"])
def test_cleaning_equals_diffusers(text: str) -> None:
    assert clean_prompt(text) == prompt_clean(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # Where a text has a "<" of its own, ftfy leaves entities alone, and both times are ours.
        ("a < b &lt; c", "a < b < c"),
        ("a < b &amp;lt; c", "a < b < c"),
        ("a < b &amp;amp;lt; c", "a < b &lt; c"),
        ("a < b &amp;amp;amp;lt; c", "a < b &amp;lt; c"),
        # Elsewhere ftfy resolves them until there are none left.
        ("a &amp;amp;lt; b", "a < b"),
        ("a &amp;amp;amp;lt; b", "a < b"),
        # White space that an entity stands for is folded too.
        ("<x>&amp;nbsp; y&#10;", "<x> y"),
    ],
)
def test_entities_are_resolved_twice(text: str, expected: str) -> None:
    assert clean_prompt(text) == prompt_clean(text) == expected


def test_a_file_will_do_and_its_own_padding_is_ignored(tokenizer: tuple[Path, T5Tokenizer], tmp_path: Path) -> None:
    folder, _ = tokenizer
    content = json.loads((folder / "tokenizer.json").read_text())
    content["truncation"] = {"direction": "Left", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    content["padding"] = {
        "strategy": {"Fixed": 9},
        "direction": "Left",
        "pad_to_multiple_of": None,
        "pad_id": 1,
        "pad_type_id": 0,
        "pad_token": "</s>",
    }
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))
    got = Tokenizer(path, length=16, clean=False).encode("a cat on the mat")
    expected = Tokenizer(folder, length=16, clean=False).encode("a cat on the mat")
    np.testing.assert_array_equal(got.ids, expected.ids)
    assert got.dropped == 0


def test_errors_name_the_file(tokenizer: tuple[Path, T5Tokenizer], tmp_path: Path) -> None:
    with pytest.raises(FlowBlendingError, match=r"tokenizer\.json is missing"):
        Tokenizer(tmp_path, length=8, clean=False)
    broken = tmp_path / "tokenizer.json"
    broken.write_text('{"version": "1.0"')
    with pytest.raises(FlowBlendingError, match=r"tokenizer\.json is no tokenizer"):
        Tokenizer(tmp_path, length=8, clean=False)
    broken.write_text((tokenizer[0] / "tokenizer.json").read_text().replace("<pad>", "<none>"))
    with pytest.raises(FlowBlendingError, match="no token <pad>"):
        Tokenizer(tmp_path, length=8, clean=False)


def test_invalid_unicode_is_refused(tokenizer: tuple[Path, T5Tokenizer]) -> None:
    with pytest.raises(UsageError, match="not valid Unicode"):
        Tokenizer(tokenizer[0], length=8, clean=False).encode("caf\udce9")
