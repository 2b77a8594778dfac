"""What makes components be built anew, on keys as a build computes them from an edited copy of this package."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.plans import needs_rtx

pytestmark = [pytest.mark.slow, pytest.mark.long, needs_rtx]

ROOT = Path(__file__).parents[2]
ROOMS = ("flowblending", "export", "engine", "runtime")

_PROGRAM = """
import json, sys
from pathlib import Path
from types import SimpleNamespace
import flowblending
from flowblending.contracts.graph import Precision
from flowblending.contracts.manifest import Component
from flowblending.engine.build.components import ComponentBuilder
from flowblending.engine.build.fp8.options import Fp8Options
from flowblending.engine.build.request import BuildRequest, named_models
from flowblending.engine.bundle.geometry import plan_profiles
from flowblending.engine.store.store import Order, open_store
from flowblending.system.console import Console
from tests.support.revisions import MODELS, read_pipeline

assert Path(flowblending.__file__).is_relative_to(sys.argv[1]), flowblending.__file__
keys = {}
for kind, backend in (("wan", "tensorrt-rtx"), ("ltx", "onnxruntime")):
    pair = Path(sys.argv[2]).with_name(kind)
    pipeline = read_pipeline(pair)
    request = BuildRequest(
        models=named_models(str(pair / "large"), str(pair / "small")), out=Path("out"), size="64x64", frames=9,
        precision=None, backend=backend, targets=("sm89",) if backend != "onnxruntime" else (), fp8=Fp8Options(steps=3),
    )
    console, folder = Console(quiet=True), Path(sys.argv[3])
    profiles = plan_profiles(pipeline.spec, "64x64", 9)
    with open_store(None, folder, console) as store:
        builder = ComponentBuilder(
            request=request, console=console, pipeline=pipeline.spec, profiles=profiles, folder=folder, store=store
        )
        # Of a plan, what is looked at.
        plan = SimpleNamespace(
            parts=tuple(pipeline.parts.values()), models=MODELS, tokenizer=SimpleNamespace(content=pipeline.tokenizer)
        )
        fp8 = builder._fp8(plan, ("small",), None)
        for name, part in pipeline.parts.items():
            precision = Precision.FP8 if name == "small" else Precision.FP32
            key = builder.key(part, precision, fp8)
            order = Order(kind=Component, name=name, key=key, family="", source="", into=folder, make=None)
            keys[f"{kind} {name}"] = key | {"entry": order.digest}
print(json.dumps(keys))
"""

Keys = dict[str, dict[str, str]]


def keys(copy: Path, pair: Path) -> Keys:
    """The keys, and the names of the cache's entries, as the package in ``copy`` has them."""
    scratch = copy / "scratch"
    scratch.mkdir(exist_ok=True)
    path = os.pathsep.join([str(copy), str(ROOT)])
    ended = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(copy), str(pair), str(scratch)],
        env={**os.environ, "PYTHONPATH": path},
        cwd=scratch,
        stdout=subprocess.PIPE,
        check=True,
    )
    found: Keys = json.loads(ended.stdout.splitlines()[-1])
    return found


def edit(path: Path, pattern: str, replacement: str) -> None:
    content, count = re.subn(pattern, replacement, path.read_text(), count=1)
    assert count == 1, path
    path.write_text(content)


def test_comments_help_texts_and_another_family_rebuild_nothing(
    checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    checkpoints("ltx")
    pair, copy = checkpoints("wan"), tmp_path / "copy"
    for room in ROOMS:
        shutil.copytree(ROOT / room, copy / room, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    before = keys(copy, pair)
    assert len(before) == 9
    # A comment in every file, and other words for the user and for whoever reads the code.
    for path in (path for room in ROOMS for path in (copy / room).rglob("*.py")):
        with path.open("a") as file:
            file.write("\n# a comment\n")
    edit(copy / "engine/cli.py", r'help="', 'help="in other words: ')
    edit(copy / "flowblending/contracts/manifest.py", r'"""One engine:', '"""In other words, one engine:')
    edit(copy / "export/graph/trace.py", "cannot be exported", "could not be exported")
    # Code of a family that computes the same.
    with (copy / "export/families/ltx/transformer.py").open("a") as file:
        file.write("\n\ndef _unused() -> int:\n    return 1\n")
    assert keys(copy, pair) == before
    # Code of a family that computes something else: its transformers are another thing, and nothing else is.
    edit(copy / "export/families/ltx/transformer.py", r"REVISION = (\d+)", r"REVISION = 1\1")
    # What samples the ranges of fp8, the compiler.
    edit(copy / "engine/build/fp8/trajectories.py", r"REVISION = (\d+)", r"REVISION = 1\1")
    edit(copy / "engine/backends/tensorrt/backend.py", r"REVISION = (\d+)", r"REVISION = 1\1")
    after = keys(copy, pair)
    changed = {name: {part for part in key if key[part] != before[name][part]} for name, key in after.items()}
    plan = {"compiler", "entry"}
    assert changed == {
        "wan large": plan,
        "wan small": {*plan, "calibration"},
        "wan text_encoder": plan,
        "wan vae_first": plan,
        "wan vae_next": plan,
        "ltx large": {"graph", "entry"},
        "ltx small": {"graph", "calibration", "entry"},
        "ltx text_encoder": set(),
        "ltx vae": set(),
    }
