"""What ``fb-build-engines`` is told about fp8."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowblending import FlowBlendingError, UsageError
from flowblending.engine.fp8_options import PROMPTS, Fp8Options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Fp8Options(keep="x"), "--fp8-keep x was given, but a number of blocks was expected"),
        (Fp8Options(keep="-1"), "--fp8-keep -1 was given"),
        (Fp8Options(keep="medium=1"), "--fp8-keep medium=1 was given"),
        (Fp8Options(percentile=0.0), "percentile of 0 was given"),
        (Fp8Options(percentile=100.1), "percentile of 100.1 was given"),
        (Fp8Options(percentile=float("nan")), "percentile of nan was given"),
        (Fp8Options(margin=0.9), "margin of 0.9 was given, but a factor of 1 or more"),
        (Fp8Options(margin=float("inf")), "margin of inf was given"),
        (Fp8Options(calibration=Path("c"), steps=3), "from a file, which --fp8-steps cannot change"),
        (Fp8Options(calibration=Path("c"), size="64x32"), "from a file, which --fp8-size cannot change"),
    ],
)
def test_wrong_options(options: Fp8Options, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        options.check(("small",))


def test_options_without_fp8_are_refused() -> None:
    Fp8Options().check(())
    with pytest.raises(UsageError, match="--fp8-margin was given, but nothing is built in fp8"):
        Fp8Options(margin=1.2).check(())
    Fp8Options(calibration=Path("c"), keep="2").check(("large",))


@pytest.mark.parametrize(
    ("text", "large", "small"),
    [(None, None, None), ("2", 2, 2), ("large=3", 3, None), ("large=3, small=0", 3, 0), ("4,small=1", 4, 1)],
)
def test_kept_blocks(text: str | None, large: int | None, small: int | None) -> None:
    options = Fp8Options(keep=text)
    assert (options.kept("large"), options.kept("small")) == (large, small)


def test_prompts(tmp_path: Path) -> None:
    assert Fp8Options().read_prompts() == PROMPTS
    path = tmp_path / "prompts.txt"
    path.write_text("\ufeff# not one\n a cat \n\n一只猫\n", encoding="utf-8")
    assert Fp8Options(prompts=path).read_prompts() == ("a cat", "一只猫")
    path.write_text("# none\n")
    with pytest.raises(UsageError, match="holds no prompt"):
        Fp8Options(prompts=path).read_prompts()
    path.write_bytes(b"\xff\xfe\xfd")
    for wrong in (path, tmp_path / "none"):
        with pytest.raises(FlowBlendingError, match=r"Cannot read the prompts .*; give a UTF-8 text file"):
            Fp8Options(prompts=wrong).read_prompts()
