"""Existing videos in a headless Chromium: what it shows of a file is what was measured, whatever the file is called."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from flowblending.runtime.compare import cli
from flowblending.runtime.media.read_video import pictures as shown_by_us
from flowblending.runtime.media.read_video import read_video
from tests.support.browser import Browser, find_browser
from tests.support.clips import MATRICES, TURNED, Pictures, pictures, set_matrix, write_clip
from tests.support.required import unavailable
from tests.support.scenes import film, one

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    program = find_browser()
    if program is None:
        unavailable("There is no Chromium here; install the package chromium or chromium-headless-shell.")
    with Browser(program) as browser:
        yield browser


@pytest.fixture(scope="module")
def clip() -> Pictures:
    frames = pictures(film(one(), (6, 96, 128)))
    frames[:, :24, :40] = (200, 190, 40)
    return frames


def screenshot(browser: Browser, element: str) -> npt.NDArray[np.float64]:
    image = Image.open(io.BytesIO(browser.screenshot(element=element))).convert("RGB")
    return np.asarray(image, np.float64)


@pytest.mark.parametrize(
    ("name", "aspect"),
    [
        *((name, Fraction(1)) for name in MATRICES),
        ("as it is", Fraction(2)),
        ("90", Fraction(2)),
        ("180", Fraction(2, 3)),
    ],
)
def test_a_browser_shows_what_is_measured(
    tmp_path: Path, chromium: Browser, clip: Pictures, name: str, aspect: Fraction
) -> None:
    path = write_clip(tmp_path / "a.mp4", clip, aspect=aspect)
    set_matrix(path, *MATRICES[name])
    page = tmp_path / "page.html"
    page.write_text('<body style="margin:0"><video src="a.mp4" muted preload="auto" style="display:block"></video>')
    chromium.open(page)
    chromium.wait("document.querySelector('video').readyState >= 2")
    ours = next(shown_by_us(read_video(path))).astype(float)
    theirs = screenshot(chromium, "video")
    assert theirs.shape == ours.shape
    assert np.abs(theirs - ours).mean() < 6
    if aspect == 1:
        assert np.abs(theirs - TURNED[name](clip)[0]).mean() < 8


@pytest.mark.parametrize("height", [256, 576, 716, 720, 1080])
def test_a_browser_shows_the_colours_that_are_measured(tmp_path: Path, chromium: Browser, height: int) -> None:
    frames = np.zeros((2, height, 64, 3), np.uint8)
    frames[..., 0], frames[..., 1] = 30, 180
    path = write_clip(tmp_path / "a.mp4", frames)  # which does not say how its colours are coded
    page = tmp_path / "page.html"
    page.write_text('<body style="margin:0"><video src="a.mp4" muted preload="auto" style="display:block"></video>')
    chromium.open(page)
    chromium.wait("document.querySelector('video').readyState >= 2")
    ours = next(shown_by_us(read_video(path)))[height // 2, 32].astype(float)
    assert np.abs(screenshot(chromium, "video")[height // 2, 32] - ours).max() < 5


NAMES = [
    "first.mp4",
    "a b  c.mp4",
    "#1.mp4",
    "what?x=1&y=2.mp4",
    "100%25 %2f.mp4",
    '"quo\'ted".mp4',
    "<b>bold &amp;.mp4",
    "new\nline\tand\x1b[31m.mp4",
    os.fsdecode(b"\xff\xfe latin \xe9.mp4"),
    "影片" * 30 + ".mp4",
    "x" * 251 + ".mp4",
    "[red]rich[bold].mp4",
    "back\\slash.mp4",
    "UPPER.MP4",
    "no suffix",
    "folder/first.mp4",
    "folder #2/first.mp4",
]
"""Of files; those that are no plain text are shown with escapes."""


def test_every_name_is_a_link_that_plays(
    tmp_path: Path, chromium: Browser, clip: Pictures, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = write_clip(tmp_path / "plain.mp4", clip)
    paths = [tmp_path / name for name in NAMES]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(plain.read_bytes())
    turned = write_clip(tmp_path / "turned.mp4", np.ascontiguousarray(TURNED["180"](clip)))
    set_matrix(turned, *MATRICES["180"])
    odd = write_clip(tmp_path / "odd #.avi", clip, codec="rawvideo", pixels="bgr24")
    out = tmp_path / "out #1 100%?"
    arguments = ["--videos", *map(str, [*paths, turned, odd]), "--out", str(out)]
    assert cli.run(cli.parser().parse_args(arguments)) == 0
    assert "new\\nline\\tand\\x1b[31m.mp4" in capsys.readouterr().out
    chromium.open(out / "index.html")
    chromium.wait("[...document.querySelectorAll('video')].every((each) => each.readyState >= 2)")
    count = chromium.evaluate("document.querySelectorAll('video').length")
    assert count == len(paths) + 2
    labels = chromium.evaluate("[...document.querySelectorAll('figcaption b')].map((each) => each.textContent)")
    assert len(set(labels)) == count
    assert {"#1.mp4", "<b>bold &amp;.mp4", "[red]rich[bold].mp4", "\\xff\\xfe latin \\xe9.mp4"} <= {
        Path(label).name for label in labels
    }
    assert {"folder/first.mp4", "folder #2/first.mp4"} <= set(labels)
    # Long names leave the figures in sight.
    assert chromium.evaluate("document.documentElement.scrollWidth <= innerWidth")
    edges = chromium.evaluate("[...document.querySelectorAll('td')].map((each) => each.getBoundingClientRect().right)")
    assert max(edges) <= 1280
    chromium.evaluate("document.body.insertAdjacentHTML('afterbegin', '<div id=\"alone\"></div>')")
    for index in (0, count - 2, count - 1):
        chromium.evaluate(
            f"(() => {{ const each = [...document.querySelectorAll('video')][{index}].cloneNode(); "
            "each.style.width = 'auto'; document.getElementById('alone').replaceChildren(each); })()"
        )
        chromium.wait("document.querySelector('#alone video').readyState >= 2")
        assert np.abs(screenshot(chromium, "#alone video") - clip[0]).mean() < 8, labels[index]
    assert chromium.complaints == []
