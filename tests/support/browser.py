"""A headless Chromium, driven over its debugging pipe: the DevTools protocol as JSON, ended by a zero byte."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Self

NAMES = ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome")
PHONE = 600
"""Pixels below which a window is a phone's, which does as the page's viewport says."""
PATIENCE = 60.0
"""Seconds: machines that test are busy."""


def find_browser() -> str | None:
    """The program's path; None if there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One page in a browser of its own; a context manager.

    Attributes:
        complaints: what the page has written to the console as warnings and errors, and what it has thrown.
    """

    def __init__(self, program: str, *, width: int = 1280, height: int = 1000) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True)
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        # The browser reads from file 3 and writes to file 4; a shell puts them there.
        command = [
            *("bash", "-c", f'exec "$0" "$@" 3<&{to_browser} 4>&{from_browser}', program, "--headless=new"),
            *("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--mute-audio"),
            *("--no-first-run", "--disable-extensions", "--disable-background-networking", "--disable-sync"),
            *("--remote-debugging-pipe", f"--user-data-dir={self._folder.name}", f"--window-size={width},{height}"),
            "about:blank",
        ]
        self._process = subprocess.Popen(
            command, pass_fds=(to_browser, from_browser), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(to_browser)
        os.close(from_browser)
        self._waiting = b""
        self._number = 0
        self._session: str | None = None
        self._size = (width, height)
        self.complaints: list[str] = []
        targets = self._call("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        self._session = self._call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._call(f"{domain}.enable")

    def open(self, path: Path | str, *, dark: bool = False, still: bool = True, width: int | None = None) -> None:
        """Load a file or an address, and wait until it is loaded.

        Args:
            dark: whether the user likes pages dark.
            still: whether the user wants motion to be reduced.
            width: of the window; None for the browser's own. Narrow ones are phones'.
        """
        features = {
            "prefers-color-scheme": "dark" if dark else "light",
            "prefers-reduced-motion": "reduce" if still else "no-preference",
        }
        self._call(
            "Emulation.setEmulatedMedia", features=[{"name": name, "value": value} for name, value in features.items()]
        )
        self._width = width or self._size[0]
        self._resize(self._size[1])
        self._call("Page.navigate", url=path if isinstance(path, str) else path.resolve().as_uri())
        self.wait("document.readyState === 'complete'")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; a promise is awaited. What it throws is an AssertionError."""
        answer = self._call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True, userGesture=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, expression: str) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + PATIENCE
        while not self.evaluate(expression):
            assert time.monotonic() < end, f"{expression} did not come true"
            time.sleep(0.05)

    def screenshot(self, *, element: str | None = None) -> bytes:
        """A PNG of the whole page, or of the element that a selector names."""
        box = "document.documentElement" if element is None else f"document.querySelector({element!r})"
        x, y, width, height = self.evaluate(
            f"(() => {{ const r = {box}.getBoundingClientRect(); return [r.x + scrollX, r.y + scrollY, r.width, "
            "r.height]; })()"
        )
        clip = {"x": x, "y": y, "width": width, "height": height, "scale": 1}
        if element is None:  # in a window as high as the page, what sticks to the window's edge lies where it belongs
            self._resize(round(height))
        shot = self._call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)["data"]
        self._resize(self._size[1])
        return base64.b64decode(shot)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._write)
        os.close(self._read)
        self._folder.cleanup()

    def _resize(self, height: int) -> None:
        size = {"width": self._width, "height": height, "deviceScaleFactor": 1, "mobile": self._width < PHONE}
        self._call("Emulation.setDeviceMetricsOverride", **size)

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                result: dict[str, Any] = answer["result"]
                return result
            self._notice(answer)

    def _receive(self) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE
        while b"\0" not in self._waiting:
            ready, _, _ = select.select([self._read], [], [], max(0.0, end - time.monotonic()))
            assert ready, "the browser does not answer"
            part = os.read(self._read, 1 << 16)
            assert part, "the browser has gone"
            self._waiting += part
        message, _, self._waiting = self._waiting.partition(b"\0")
        content: dict[str, Any] = json.loads(message)
        return content

    def _notice(self, event: dict[str, Any]) -> None:
        parameters = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(str(parameters["exceptionDetails"]))
        elif event.get("method") == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning", "assert"):
            self.complaints.append(str(parameters["args"]))
        elif event.get("method") == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
            self.complaints.append(str(parameters["entry"]))
