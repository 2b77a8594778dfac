"""Fixtures of the slow tests: checkpoints made on the fly, and bundles built from them once per session."""

from __future__ import annotations

import dataclasses
import gc
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flowblending.contracts.conditions import Source
from flowblending.engine.bundle.bundle import Bundle
from tests.support.cuda import plugin
from tests.support.shared import alone, shared_folder

Build = Callable[..., Bundle]


def pytest_addoption(parser: pytest.Parser) -> None:
    """That of the process which runs tests on the stand-in for a GPU."""
    plugin.add_option(parser)


def pytest_configure(config: pytest.Config) -> None:
    """A shell's background has the tests ignore SIGINT, and nohup SIGHUP; every child would inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    plugin.configure(config)
    # Tracing makes very many objects that stay; to look for garbage among them took a twelfth of its time.
    gc.set_threshold(20_000, 20, 20)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where processes share the files of tests, those that take long come first, so that all end together.

    What drives other programs mostly waits for them, and takes longest. See --no-loadscope-reorder in the Makefile.
    """
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    marks: dict[Path, int] = {}
    for item in items:
        rank = next((rank for rank, mark in enumerate(("embedding", "slow")) if item.get_closest_marker(mark)), 2)
        marks[item.path] = min(rank, marks.get(item.path, rank))
    items.sort(key=lambda item: marks[item.path])


@pytest.fixture(scope="session")
def shared(pytestconfig: pytest.Config) -> Path:
    """A folder that all processes of one test run have in common."""
    return shared_folder(pytestconfig)


@pytest.fixture(scope="session")
def checkpoints(shared: Path) -> Callable[[str], Path]:
    """``checkpoints("wan")`` is a folder with ``large`` and ``small``; one per kind in ``benchmarks.checkpoints``."""

    def make(kind: str) -> Path:
        folder = shared / kind
        with alone(shared, kind):
            if not folder.exists():
                from benchmarks.checkpoints import PAIRS

                unfinished = folder.with_suffix(".part")
                PAIRS[kind](unfinished)
                unfinished.rename(folder)
        return folder

    return make


@dataclasses.dataclass(frozen=True)
class Geometry:
    """A size and a frame count as the command line takes them."""

    size: str
    frames: int | str


SMALLEST = {
    "wan": Geometry("32x48", 9),
    "wan-other": Geometry("64x32", 5),
    "ltx": Geometry("96x64", 17),
    "wan-experts": Geometry("32x48", 9),
    "wan-vace": Geometry("32x48", 9),
    "wan-image": Geometry("32x48", 9),
    "wan-clip": Geometry("32x48", 9),
    "wan-ends": Geometry("32x48", 9),
    "skyreels": Geometry("32x48", 9),
    "ltx-0.9.0": Geometry("64x96", 9),
    "ltx-condition": Geometry("96x64", 17),
}


CONDITIONS = {"ltx-condition": (Source.IMAGE,)}
"""What bundles of a kind take beside text where a test says nothing else."""


SEVERAL = {"wan": ("32x48,48x32..64x64", "9,5..13"), "ltx": ("96x64,64x64..64x128", "17,9..25")}
"""Sizes and frames of bundles with four profiles: of each a single one, and a range."""

IN_PLANS = {"wan": ("32x48,48x32..64x48", "5..9"), "ltx": ("96x64,64x64..128x64", "17")}
"""Of real plans with two profiles, which take longer."""


@pytest.fixture(scope="session")
def engine_cache(shared: Path) -> Path:
    """Where the bundles of `build` have their engines from; other builds of the same checkpoints may use it, too."""
    return shared / "engines"


@pytest.fixture(scope="session")
def build(shared: Path, engine_cache: Path, checkpoints: Callable[[str], Path]) -> Build:
    """Builds a bundle of a kind of checkpoint, or returns the one already built with the same options."""
    from flowblending.engine.bundle.bundle import open_bundle

    root = shared / "bundles"
    root.mkdir(exist_ok=True)

    def make(
        kind: str,
        *,
        size: str | None = None,
        frames: int | str | None = None,
        precision: str | None = None,
        backend: str = "onnxruntime",
        targets: tuple[str, ...] = (),
        conditions: tuple[Source, ...] | None = None,
    ) -> Bundle:
        if conditions is None:
            conditions = CONDITIONS.get(kind, ())
        size, frames = size or SMALLEST[kind].size, frames or SMALLEST[kind].frames
        components = f"{kind}-{precision}-{backend}-{'-'.join((*targets, *conditions))}".replace("=", "")
        out = root / f"{components}-{size}-{frames}"
        with alone(root, components):
            if out.exists():
                return open_bundle(out)
            from flowblending.engine.build.build import BuildRequest, build_bundle
            from flowblending.engine.build.request import named_models
            from flowblending.system.console import Console

            folder = checkpoints(kind)
            request = BuildRequest(
                models=named_models(
                    str(folder / "large"),
                    str(folder / "small"),
                    [f"draft={folder / 'draft'}"] if (folder / "draft").is_dir() else [],
                ),
                out=out,
                size=size,
                frames=frames,
                precision=precision,
                backend=backend,
                targets=targets,
                conditions=conditions,
                cache=engine_cache,
            )
            try:
                return build_bundle(request, Console(quiet=True))
            except BaseException:
                shutil.rmtree(out, ignore_errors=True)
                raise

    return make


@pytest.fixture(autouse=True, scope="session")
def _plain_previews() -> Iterator[None]:
    """Every build fits a map for previews, here on fewer clips; tests of the map have them all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flowblending.export.preview.pictures.LATENTS", 256)
        yield


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test, and no fixture of any scope, reads or writes the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
        patch.delenv("FLOWBLENDING_CACHE_DIR", raising=False)
        yield
