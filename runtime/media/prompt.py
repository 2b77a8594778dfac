"""From a prompt to token ids, as the reference pipelines do it, without transformers."""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from flowblending import FlowBlendingError, UsageError

TOKENIZER_FILE = "tokenizer.json"
PAD = "<pad>"


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """A tokenised prompt.

    Attributes:
        ids: int64 [1, L], ended by the end-of-sequence token and filled up with the padding token.
        mask: int64 [1, L]; 1 where a token is, 0 where padding is.
        dropped: how many tokens of the prompt did not fit and were left out at its end.
    """

    ids: npt.NDArray[np.int64]
    mask: npt.NDArray[np.int64]
    dropped: int


class Tokenizer:
    """A T5 or UMT5 tokenizer, read from a bundle's ``tokenizer.json``.

    Args:
        source: that file, or the folder it lies in.
        length: L, tokens per prompt including the end-of-sequence token.
        clean: whether prompts go through `clean_prompt` first.

    Raises:
        FlowBlendingError: the file is missing, damaged, or knows no padding token.
    """

    def __init__(self, source: Path, *, length: int, clean: bool) -> None:
        import tokenizers

        path = source / TOKENIZER_FILE if source.is_dir() else source
        if not path.is_file():
            raise FlowBlendingError(f"The tokenizer {path} is missing; build the bundle again.")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises bare Exception for a file that it cannot parse
            raise FlowBlendingError(f"{path} is no tokenizer ({error}); build the bundle again.") from None
        pad = self._tokenizer.token_to_id(PAD)
        if pad is None:
            raise FlowBlendingError(f"The tokenizer {path} has no token {PAD}; give one of T5 or UMT5.")
        self._pad: int = pad
        self._length = length
        self._clean = clean
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(length)

    def encode(self, prompt: str) -> Tokens:
        """Tokenise one prompt.

        Raises:
            UsageError: the prompt is not valid Unicode.
        """
        try:
            prompt.encode()
        except UnicodeEncodeError:
            raise UsageError("The prompt is not valid Unicode; write it in UTF-8.") from None
        text = clean_prompt(prompt) if self._clean else prompt
        encoding = self._tokenizer.encode(text)
        count = len(encoding.ids)
        ids = np.full((1, self._length), self._pad, np.int64)
        ids[0, :count] = encoding.ids
        mask = np.zeros((1, self._length), np.int64)
        mask[0, :count] = 1
        special = self._tokenizer.num_special_tokens_to_add(is_pair=False)
        dropped = sum(len(rest.ids) - special for rest in encoding.overflowing)
        return Tokens(ids=ids, mask=mask, dropped=dropped)


def clean_prompt(text: str) -> str:
    """Mend mis-decoded text, resolve HTML entities (twice escaped ones too) and fold white space.

    What Wan's pipeline does (diffusers pipelines/wan/pipeline_wan.py, prompt_clean, with ftfy installed);
    LTX-Video's takes prompts as they are.
    """
    import ftfy

    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())
