"""fb-compare's page in a headless Chromium, from file://: it loads, plays in step, shows differences, and sorts."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from flowblending.runtime.compare import layout
from flowblending.runtime.compare.columns import COLUMNS
from flowblending.runtime.compare.report import (
    CalibrationDivergence,
    ChartLine,
    ComparedPrompt,
    ComparedRun,
    ComparedVideo,
    ComparisonReport,
    GivenPicture,
    in_use,
)
from flowblending.runtime.devices.pictures import to_uint8
from flowblending.runtime.media.video import open_writer
from tests.support.browser import Browser, find_browser
from tests.support.required import unavailable
from tests.support.scenes import film, one, two

pytestmark = pytest.mark.browser

ARTIFACTS = Path(__file__).parents[3] / "artifacts"
"""Screenshots of the last run, for people; ignored by git."""
FRAMES = 13
PICTURE = "data:image/gif;base64,R0lGODlhAQABAIAAAP8AAAAAACwAAAAAAQABAAACAkQBADs="
"""One red pixel."""
FIGURES = {
    "LLL": {"seconds": 4.0, "flops": 10.0, "smoothness": 0.02},
    "LSL": {"seconds": 2.5, "flops": 6.0, "psnr": 24.0, "ssim": 0.91, "cosine": 0.98, "smoothness": 0.03},
    "SSS": {"seconds": 0.8, "flops": 1.5, "psnr": 9.5, "ssim": 0.41, "cosine": 0.71, "smoothness": 0.01},
    "SSS + taylor:1": {"seconds": 0.5, "flops": 0.9, "psnr": 9.0, "ssim": 0.4, "cosine": 0.70, "smoothness": 0.04},
}


def write(path: Path, clip: npt.NDArray[np.float32]) -> None:
    with open_writer(path, width=64, height=64, frame_rate=8, metadata={}) as writer:
        writer.write(to_uint8(clip.transpose(3, 0, 1, 2) * 2 - 1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of two prompts and four runs, whose videos are drawn."""
    folder = tmp_path_factory.mktemp("report")
    cases = []
    for index, scene in enumerate((one(), two())):
        clips = {}
        for run, (label, values) in enumerate(FIGURES.items()):
            video = f"videos/{index}-{run}.mp4"
            clip = film(scene)
            # LSL is LLL with a lighter corner; the others are turned.
            clip[:, :20, :20] = np.minimum(clip[:, :20, :20] + 0.3 * (run == 1), 1)
            write(folder / video, clip if run < 2 else clip[:, ::-1])
            steps = () if run == 0 else tuple(1 - 0.05 * run * step / 10 for step in range(10))
            clips[label] = ComparedVideo(
                video=video, values={k: v * (1 + index / 10) for k, v in values.items()}, steps=steps
            )
        cases.append(
            ComparedPrompt(
                title=("a circle", "two <shapes>")[index],
                note=f"seed {index}",
                # The second prompt gave an image.
                given=(GivenPicture(option="image", file="cat.png", about="<cat>.png", picture=PICTURE),) * index,
                clips=clips,
            )
        )
    runs = (
        ComparedRun(label="LLL", schedule="LLL", stages="L10", computed="1" * 10),
        ComparedRun(label="LSL", schedule="LSL", stages="L4 S4 L2", computed="1" * 10),
        ComparedRun(label="SSS", schedule="SSS", stages="S10", computed="1" * 10),
        ComparedRun(label="SSS + taylor:1", schedule="SSS", cache="taylor:1", stages="S10", computed="1010101011"),
    )
    report = ComparisonReport(
        name="drawn",
        subtitle="Drawn videos.",
        facts=(("video", "64×64, 13 frames"),),
        runs=runs,
        cases=tuple(cases),
        columns=in_use(COLUMNS, cases),
        notes=("Nothing of this is measured.",),
        frame_rate=8,
        divergence=CalibrationDivergence(
            about="How far the small model is from the large one.",
            first="L",
            stages="L4 S4 L2",
            lines={
                name: tuple(
                    ChartLine(
                        about=about,
                        mean=tuple(high * (0.2 + (step - 5) ** 2 / 40) for step in range(10)),
                        spread=(0.05,) * 10,
                    )
                    for about, high in (("along L10", top), ("along L4 S4 L2", 1.2 * top))
                )
                for name, top in (("cosine distance", 1.0), ("relative L2 distance", 1.5))
            },
        ),
    )
    layout.write(folder, report)
    return folder


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    program = find_browser()
    if program is None:
        unavailable("There is no Chromium here; install the package chromium or chromium-headless-shell.")
    with Browser(program) as browser:
        yield browser


@pytest.fixture
def browser(chromium: Browser, folder: Path) -> Iterator[Browser]:
    """The page, loaded anew; nothing on it may complain."""
    chromium.open(folder / "index.html")
    chromium.wait("cells.length === 4 && cells.every(({ video }) => video.readyState >= 3)")
    yield chromium
    assert chromium.complaints == []


def times(browser: Browser) -> npt.NDArray[np.float64]:
    return np.array(browser.evaluate("cells.map(({ video }) => video.currentTime)"))


def picture(browser: Browser, selector: str) -> npt.NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(browser.screenshot(element=selector))).convert("RGB"))


def test_videos_play_in_step_and_loop(browser: Browser) -> None:
    assert browser.evaluate("cells.map(({ video }) => [video.videoWidth, video.videoHeight])") == [[64, 64]] * 4
    assert browser.evaluate("at('frame').textContent") == f"1 / {FRAMES}"
    browser.evaluate("at('play').click()")
    browser.wait("leader().currentTime > 0.5")
    drifts, last, looped = [], 0.0, False
    end = time.monotonic() + 30
    while not looped and time.monotonic() < end:
        now = times(browser)
        looped = now[0] < last
        last = now[0]
        drifts.append(np.ptp(now))
    assert looped
    # Over a second of playing: half of the looks find all within a frame of an eighth of a second.
    assert np.median(drifts) < 1 / 8
    browser.wait("leader().currentTime > 0.3")
    browser.evaluate("at('play').click()")
    browser.wait("cells.every(({ video }) => video.paused && !video.seeking)")
    assert np.ptp(times(browser)) == 0


def test_what_a_prompt_gave_is_shown_above_its_videos(browser: Browser) -> None:
    assert browser.evaluate("at('given').hidden")
    browser.evaluate("at('next').click()")
    browser.wait("[...document.querySelectorAll('#given img')].every((each) => each.complete && each.naturalWidth)")
    assert browser.evaluate("[...document.querySelectorAll('#given img')].map((each) => each.alt)") == ["<cat>.png"]
    assert browser.evaluate("at('given').textContent") == "<cat>.png"
    assert not browser.evaluate("at('given').hidden")
    browser.evaluate("at('next').click()")
    assert browser.evaluate("at('given').hidden && !at('given').childElementCount")


def test_frames_one_by_one(browser: Browser) -> None:
    for button, frame in (("forward", 2), ("forward", 3), ("back", 2), ("back", 1), ("back", 1)):
        browser.evaluate(f"at('{button}').click()")
        browser.wait("cells.every(({ video }) => !video.seeking)")
        assert browser.evaluate("at('frame').textContent") == f"{frame} / {FRAMES}"
    browser.evaluate("place.value = 12; place.oninput()")
    browser.wait("cells.every(({ video }) => !video.seeking)")
    assert times(browser) == pytest.approx([12.5 / 8] * 4)
    for target in ("document", "document.body"):
        browser.evaluate(f"{target}.dispatchEvent(new KeyboardEvent('keydown', {{ key: 'ArrowLeft', bubbles: true }}))")
    browser.wait("cells.every(({ video }) => !video.seeking)")
    assert browser.evaluate("at('frame').textContent") == f"11 / {FRAMES}"


def test_the_difference_is_black_where_videos_are_alike(browser: Browser) -> None:
    browser.evaluate("seek(5)")
    browser.evaluate("at('mode').value = 'difference'; at('mode').onchange()")

    def cell(index: int) -> npt.NDArray[np.uint8]:
        return picture(browser, f".grid figure:nth-child({index}) canvas")[8:-8, 8:-8]  # its corners are round

    browser.wait("getComputedStyle(cells[0].canvas).visibility === 'visible'")
    assert cell(1).max() == 0
    lsl = cell(2)
    side = len(lsl)
    assert lsl[: side // 4 - 8, : side // 4 - 8].min() > 100
    assert lsl[side // 2 :].mean() < 12
    # Against LSL, it is LLL whose corner shines.
    browser.evaluate("at('against').value = 'LSL'; at('against').onchange()")
    assert cell(2).max() == 0
    assert cell(1)[: side // 4 - 8, : side // 4 - 8].min() > 100
    browser.evaluate("at('gain').value = '1'; at('gain').onchange()")
    assert cell(1)[: side // 4 - 8, : side // 4 - 8].mean() == pytest.approx(0.3 * 255, abs=12)


def order(browser: Browser) -> list[str]:
    names: list[str] = browser.evaluate("[...document.querySelectorAll('#figures .name')].map((e) => e.textContent)")
    return names


def test_sorting(browser: Browser) -> None:
    def click(key: str) -> None:
        browser.evaluate(f"document.querySelector('#figures th[data-key={key}] button').click()")

    every = list(FIGURES)
    assert order(browser) == every
    click("seconds")
    assert order(browser) == every[::-1]
    click("seconds")
    assert order(browser) == every
    # The best first, and what has no figure last, both ways.
    click("ssim")
    assert order(browser) == ["LSL", "SSS", "SSS + taylor:1", "LLL"]
    click("ssim")
    assert order(browser) == ["SSS + taylor:1", "SSS", "LSL", "LLL"]
    click("smoothness")
    assert order(browser) == ["SSS", "LLL", "LSL", "SSS + taylor:1"]
    assert browser.evaluate("document.querySelectorAll('#figures th[aria-sort]').length") == 1


def test_choosing_a_prompt_and_a_chart(browser: Browser) -> None:
    browser.evaluate("at('next').click()")
    browser.wait("cells.every(({ video }) => video.readyState >= 2)")
    assert browser.evaluate("at('prompt').textContent") == "two <shapes>seed 1"
    assert browser.evaluate("cells.map(({ video }) => video.src.split('/').pop())") == [
        f"1-{run}.mp4" for run in range(4)
    ]
    assert browser.evaluate("document.querySelector('.grid figure:nth-child(2) p').textContent").startswith("2.75 s ")
    shown = "[...document.querySelectorAll('.scatter:not([hidden])')].map((e) => e.dataset.y + ' ' + e.dataset.x)"
    assert browser.evaluate(shown) == ["PSNR sampling"]
    browser.evaluate("at('quality').value = 'SSIM'; at('cost').value = 'TFLOPs'; at('cost').onchange()")
    assert browser.evaluate(shown) == ["SSIM TFLOPs"]
    measures = "[...document.querySelectorAll('.measure:not([hidden])')].map((e) => e.dataset.measure)"
    assert browser.evaluate(measures) == ["cosine distance"]
    browser.evaluate("at('measure').value = 'relative L2 distance'; at('measure').onchange()")
    assert browser.evaluate(measures) == ["relative L2 distance"]


OUTSIDE = """[...document.querySelectorAll("body *")].filter((each) => {
  const box = each.getBoundingClientRect();
  return box.width && !each.closest(".wide table") && (box.left < -0.5 || box.right > innerWidth + 0.5);
}).map((each) => each.outerHTML.slice(0, 80))"""
"""What is cut at the window's edges, but for the table, which scrolls by itself."""


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 768, 1280, 1920])
def test_nothing_is_cut_in_windows_of_any_width(browser: Browser, folder: Path, width: int, dark: bool) -> None:
    browser.open(folder / "index.html", dark=dark, width=width)
    browser.wait("cells.length === 4 && cells.every(({ video }) => video.readyState >= 2)")
    assert browser.evaluate("[innerWidth, document.documentElement.scrollWidth]") == [width, width]
    assert browser.evaluate(OUTSIDE) == []
    tops = browser.evaluate("cells.map(({ figure }) => Math.round(figure.getBoundingClientRect().top))")
    assert tops.count(tops[0]) == (2 if width == 390 else 3 if width == 768 else 4)
    # Where the table is wider than the window, runs stay beside their figures, and headings above.
    assert browser.evaluate("wide.scrollWidth > wide.clientWidth") == (width < 1280)
    assert browser.evaluate("!at('more').hidden") == (width < 1280)
    browser.evaluate("wide.style.maxHeight = '120px'; wide.scrollTo(1e4, 1e4)")
    for side, cells in (("left", "td:first-child, th:first-child"), ("top", "th")):
        away = browser.evaluate(
            f"[...wide.querySelectorAll('{cells}')].map((each) => each.getBoundingClientRect().{side} - "
            f"wide.getBoundingClientRect().{side})"
        )
        assert np.abs(away).max() < 1, side
    assert browser.evaluate("wide.scrollTop") > 20
    browser.evaluate("wide.style.maxHeight = ''")
    shot = browser.screenshot()
    ARTIFACTS.mkdir(exist_ok=True)
    (ARTIFACTS / f"fb-compare-{width}-{'dark' if dark else 'light'}.png").write_bytes(shot)
    pixels = np.asarray(Image.open(io.BytesIO(shot)).convert("RGB"))
    assert pixels.shape[1] == width
    assert (pixels[5, 5].mean() < 60) == dark


@pytest.mark.parametrize("still", [False, True])
def test_it_plays_at_once_unless_motion_is_to_be_reduced(browser: Browser, folder: Path, still: bool) -> None:
    browser.open(folder / "index.html", still=still)
    if still:
        browser.wait("cells.every(({ video }) => video.readyState >= 3)")
        time.sleep(0.3)
        assert browser.evaluate("playing") is False
        assert times(browser).max() == 0
        return
    playing = "playing && cells.length === 4 && cells.every(({ video }) => !video.paused && video.currentTime > 0.2)"
    browser.wait(playing)
    # Another prompt goes on playing; one that was paused by hand stays so.
    browser.evaluate("at('next').click()")
    browser.wait(f"shown === 1 && {playing}")
    browser.evaluate("at('play').click()")
    browser.evaluate("at('next').click()")
    browser.wait("shown === 0 && cells.every(({ video }) => video.readyState >= 3)")
    assert browser.evaluate("[playing, eager, cells.some(({ video }) => !video.paused)]") == [False, False, False]
