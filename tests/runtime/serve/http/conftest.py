"""One service for the tests that leave it as it was."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from flowblending.engine.bundle.bundle import Bundle
from tests.conftest import Build
from tests.support.video_server import VideoServer, serving


@pytest.fixture(scope="session")
def wan(build: Build) -> Bundle:
    return build("wan")


@pytest.fixture(scope="session")
def server(wan: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VideoServer]:
    data = tmp_path_factory.mktemp("served") / "data"
    with serving(wan.folder, "--name", "wan", "--max-queue", 3, data=data) as found:
        yield found
