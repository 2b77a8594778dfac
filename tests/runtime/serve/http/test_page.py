"""The page at ``/`` in a headless Chromium, with a real service behind it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from flowblending.engine.bundle.bundle import Bundle
from tests.conftest import Build
from tests.support.browser import Browser, find_browser
from tests.support.required import unavailable
from tests.support.video_server import VideoServer, serving, wait_until

pytestmark = [pytest.mark.browser, pytest.mark.slow]

CARDS = "[...document.querySelectorAll('article')]"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = find_browser()
    if program is None:
        unavailable("No Chromium is installed.")
    with Browser(program) as found:
        yield found


def make(browser: Browser, prompt: str, **fields: object) -> None:
    values = {"prompt": prompt, **fields}
    for name, value in values.items():
        browser.evaluate(f"document.forms[0].elements[{name!r}].value = {str(value)!r}")
    browser.evaluate("document.getElementById('make').click()")


def clean(server: VideoServer) -> None:
    for video in server.client().videos.list():
        server.client().videos.delete(video.id)


def test_videos_are_made_seen_compared_and_deleted(browser: Browser, server: VideoServer) -> None:
    browser.open(f"{server.address}/")
    browser.wait("document.forms[0].elements.steps !== undefined")
    assert browser.evaluate("document.forms[0].elements.steps.min") == "1"
    assert browser.evaluate("document.forms[0].elements.steps.placeholder") == "50"
    assert browser.evaluate("document.forms[0].elements.input_reference.checkVisibility()") is False
    assert browser.evaluate("document.getElementById('frames-list').options[0].value") == "9"
    for seed in (1, 2):
        make(browser, "<b>a cat</b>", steps=150, seed=seed)
        browser.wait(f"{CARDS}[0]?.querySelectorAll('.stage').length === 3")  # LSL, while it samples
        browser.wait(f"{CARDS}[0].querySelector('img')?.naturalWidth === 4")  # what it is about to make, 32 pixels wide
        browser.wait(f"{CARDS}.length === {seed} && {CARDS}[0].querySelector('video')?.readyState >= 2")
    assert browser.evaluate("document.querySelector('article p').textContent") == "<b>a cat</b>"
    assert browser.evaluate("document.querySelector('article video').videoWidth") == 32
    for number in (0, 1):
        browser.evaluate(f"{CARDS}[{number}].querySelector('button').click()")
    assert browser.evaluate("document.querySelectorAll('#beside video').length") == 2
    # Another visit finds them again.
    browser.open(f"{server.address}/", dark=True)
    browser.wait("document.querySelectorAll('article video').length === 2")
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 27)"
    browser.evaluate(f"{CARDS}[0].querySelectorAll('button')[1].click()")
    browser.wait(f"{CARDS}.length === 1")
    wait_until(lambda: len(server.client().videos.list().data) == 1, "the deletion")
    assert not browser.complaints
    clean(server)


def test_an_image_goes_with_the_form(browser: Browser, build: Build, tmp_path: Path) -> None:
    ltx = build("ltx-condition")
    with serving(ltx.folder, data=tmp_path / "data") as server:
        browser.open(f"{server.address}/", width=360)
        browser.wait("document.forms[0].elements.input_reference?.checkVisibility()")
        assert browser.evaluate("document.documentElement.scrollWidth") <= 360
        picture = io.BytesIO()
        Image.new("RGB", (96, 64), (200, 30, 30)).save(picture, "PNG")
        browser.evaluate(
            f"const files = new DataTransfer(); const bytes = new Uint8Array({list(picture.getvalue())});"
            "files.items.add(new File([bytes], 'red.png', {type: 'image/png'}));"
            "document.forms[0].elements.input_reference.files = files.files"
        )
        make(browser, "x", steps=2)
        browser.wait(f"{CARDS}[0]?.querySelector('video')?.readyState >= 2")
        (video,) = server.client().videos.list().data
        assert (video.model_extra or {})["input_reference"] == "red.png"
        assert (video.model_extra or {})["options"]["steps"] == 2
        assert not browser.complaints


def test_what_is_wrong_is_told_and_a_phone_has_room(browser: Browser, server: VideoServer) -> None:
    browser.open(f"{server.address}/", width=360)
    browser.wait("document.forms[0].elements.steps !== undefined")
    assert browser.evaluate("document.documentElement.scrollWidth") <= 360
    make(browser, "x", schedule="QQQ")
    browser.wait("document.getElementById('error').textContent.includes('The schedule QQQ has the letter Q')")
    assert not server.client().videos.list().data


def test_a_key_opens_the_page(browser: Browser, wan: Bundle, tmp_path: Path) -> None:
    key = "a-key-of-enough-letters"
    with serving(wan.folder, data=tmp_path / "data", environment={"FB_SERVE_API_KEYS": key}) as server:
        server.client(key).videos.create_and_poll(prompt="x", poll_interval_ms=10, extra_body={"steps": 1})
        browser.open(f"{server.address}/")
        browser.wait("document.getElementById('error').textContent.includes('No API key was given')")
        browser.evaluate(
            f"document.getElementById('key').value = {key!r};"
            "document.getElementById('key').dispatchEvent(new Event('change'))"
        )
        browser.wait("document.querySelector('article video')?.readyState >= 2")
        assert browser.evaluate("document.getElementById('error').textContent") == ""
