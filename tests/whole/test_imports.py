"""Imports run one way, heavy libraries stay in the files that need them, and --help answers at once."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.imports import Rules, files, imports, is_module, violations

ROOT = Path(__file__).parents[2]

GROUND = {"contracts", "system"}
"""What the stages write for one another, and what any of them needs of the operating system. They know nobody."""
ENGINE = {*GROUND, "engine/backends", "engine/bundle"}
"""What of the engine is there when a bundle runs."""
OPTIONS = {"runtime/option", "runtime/options", "runtime/machine_options", "runtime/option_values"}
"""What a job and a machine may be told; standard library only."""
FRONT = {"runtime/arguments", "runtime/prompt_file"}
"""Ways in for it."""
SAMPLING = {
    *ENGINE,
    *OPTIONS,
    "runtime/decode_conditioning",
    "runtime/program",
    "runtime/devices",
    "runtime/refusals",
    "runtime/sampler",
    "runtime/media",
    "runtime/conditions",
    "runtime/jobs",
    "runtime/memory",
}
RUN = {
    *SAMPLING,
    *FRONT,
    "runtime/events",
    "runtime/given_files",
    "runtime/pipeline",
    "runtime/planned_job",
    "runtime/stage_times",
    "runtime/unused",
    "runtime/decode_run",
    "runtime/previews",
    "runtime/run",
    "runtime/generate",
    "runtime/warm_up",
}

PACKAGES: dict[str, set[str]] = {
    "contracts": set(),
    "system": set(),
    "export/checkpoint": GROUND,
    "export/lora": {*GROUND, "export/checkpoint"},
    "export/graph": {*GROUND, "export/checkpoint", "export/lora"},
    "export/families": {*GROUND, "export/checkpoint", "export/graph", "export/lora"},
    "export/verify": {*GROUND, "export/graph"},
    "export/fp8": {*GROUND, "export/graph", "export/verify"},
    "export/preview": {*GROUND, "export/graph"},
    "engine/backends": GROUND,
    "engine/bundle": {*GROUND, "engine/backends"},
    "engine/store": GROUND,
    "runtime/program": GROUND,
    "runtime/measures": GROUND,
    "runtime/decode_conditioning": GROUND,
    "runtime/option": GROUND,
    "runtime/devices": {*GROUND, "engine/backends"},
    "runtime/memory": {*ENGINE, "runtime/devices"},
    "runtime/options": {*GROUND, "runtime/option", "runtime/program"},
    "runtime/machine_options": {"runtime/memory", "runtime/option"},
    "runtime/option_values": {"runtime/option", "runtime/options"},
    "runtime/arguments": {*OPTIONS, "system"},
    "runtime/prompt_file": OPTIONS,
    "runtime/refusals": GROUND,
    "runtime/media": {*GROUND, "engine/backends", "runtime/decode_conditioning", "runtime/devices", "runtime/refusals"},
    "runtime/conditions": {*GROUND, "engine/backends", "runtime/devices", "runtime/media", "runtime/program"},
    "runtime/jobs": {
        *GROUND,
        "engine/bundle",
        "runtime/conditions",
        "runtime/decode_conditioning",
        "runtime/media",
        "runtime/options",
        "runtime/program",
    },
    "runtime/job_facts": {*GROUND, "engine/bundle", "runtime/jobs", "runtime/options", "runtime/program"},
    "runtime/sampler": {*GROUND, "engine/backends", "runtime/devices", "runtime/program", "runtime/refusals"},
    "runtime/events": {"runtime/devices", "runtime/media", "runtime/sampler"},
    "runtime/shown_inputs": {*GROUND, "runtime/conditions", "runtime/jobs", "runtime/media", "runtime/options"},
    "runtime/pipeline": {*SAMPLING, "runtime/shown_inputs"},
    "runtime/given_files": {*GROUND, "runtime/conditions", "runtime/options"},
    "runtime/planned_job": SAMPLING,
    "runtime/previews": {*SAMPLING, "runtime/events", "runtime/pipeline"},
    "runtime/authors": {*GROUND, "runtime/options", "runtime/program"},
    "runtime/unused": {*ENGINE, "runtime/jobs", "runtime/machine_options", "runtime/options", "runtime/program"},
    "runtime/video_metadata": {*GROUND, "runtime/options", "runtime/program"},
    "runtime/stage_times": {*SAMPLING, "runtime/pipeline"},
    "runtime/decode_run": {*SAMPLING, "runtime/events", "runtime/pipeline", "runtime/stage_times"},
    "runtime/run": {
        *SAMPLING,
        "runtime/decode_run",
        "runtime/events",
        "runtime/pipeline",
        "runtime/planned_job",
        "runtime/previews",
        "runtime/stage_times",
        "runtime/unused",
        "runtime/video_metadata",
    },
    "runtime/warm_up": {*SAMPLING, "runtime/pipeline"},
    "runtime/generate": {*SAMPLING, "runtime/events", "runtime/pipeline", "runtime/stage_times", "runtime/run"},
    "runtime/dry_run": {
        *ENGINE,
        "runtime/authors",
        "runtime/conditions",
        "runtime/devices",
        "runtime/job_facts",
        "runtime/jobs",
        "runtime/machine_options",
        "runtime/media",
        "runtime/memory",
        "runtime/options",
        "runtime/program",
    },
    "runtime/given": {*SAMPLING, "runtime/events", "runtime/pipeline"},
    "runtime/given_images": {*GROUND, "runtime/conditions", "runtime/media"},
    "runtime/api": {*RUN, "runtime/given", "runtime/given_images"},
    "runtime/diffusers": {*RUN, "runtime/api", "runtime/given", "runtime/given_images"},
    "diffusers": {"runtime/diffusers"},
    "runtime/golden": RUN,
    "runtime/calibrate": {*RUN, "runtime/measures"},
    "runtime/compare": {*RUN, "runtime/measures", "runtime/calibrate"},
    "runtime/cluster": {*ENGINE, "runtime/devices", "runtime/machine_options"},
    "runtime/batch": {*RUN, "runtime/cluster"},
    "runtime/serve": {*RUN, "runtime/batch", "runtime/cluster"},
    "runtime/serve/comfyui": {*RUN, "runtime/api"},
    "runtime/decode_file": RUN,
    "runtime/run_arguments": {*RUN, "runtime/decode_file"},
    "runtime/cli": {
        *RUN,
        "runtime/batch",
        "runtime/cluster",
        "runtime/decode_file",
        "runtime/dry_run",
        "runtime/job_facts",
        "runtime/run_arguments",
    },
    # The one room that calls all others.
    "engine/build": {
        *RUN,
        "runtime/authors",
        "engine/store",
        "export/checkpoint",
        "export/families",
        "export/fp8",
        "export/graph",
        "export/lora",
        "export/preview",
        "export/verify",
    },
    "engine/cli": {*ENGINE, *OPTIONS, "engine/build", "engine/store"},
    "flowblending": {"runtime/api", "runtime/events", "runtime/sampler"},
}
"""What each package may import beside itself: only rows above it, so that there are no cycles.

A package is a folder or one of the files that lie beside folders; the errors and the version are everybody's.
"""
TRANSFORMERS = ("export", "runtime/measures/networks.py")
"""The exporter, and networks that look at videos, where the user has them."""
LIBRARIES = {
    "torch": (*TRANSFORMERS, "runtime/diffusers", "runtime/serve/comfyui/nodes.py"),
    "diffusers": ("export/families", "export/graph"),
    "transformers": TRANSFORMERS,
    "huggingface_hub": ("export/checkpoint",),
    "gguf": ("export/checkpoint/gguf_file.py",),
    "onnx": ("export/graph",),
    "onnx_ir": ("export/graph", "export/fp8"),
    "onnxruntime": ("export/graph", "export/verify", "engine/backends/onnxruntime"),
    "tensorrt": ("engine/backends/tensorrt",),
    "tensorrt_rtx": ("engine/backends/tensorrt",),
    "cuda": ("engine/backends/gpu.py", "runtime/devices"),
    "av": ("runtime/media", "runtime/compare"),
    "PIL": ("runtime/media", "runtime/diffusers/frames.py", "runtime/serve/comfyui/host.py"),
    "pillow_heif": ("runtime/media/image_file.py",),
    "matplotlib": ("runtime/calibrate/plot.py",),
    "tokenizers": ("export/families", "runtime/media/prompt.py"),
    "ftfy": ("runtime/media/prompt.py",),
    "ray": ("runtime/cluster/connection.py",),
    "tritonclient": ("runtime/serve/triton",),
    "fastapi": ("runtime/serve/http",),
    "starlette": ("runtime/serve/http",),
    "uvicorn": ("runtime/serve/http",),
    "prometheus_client": ("runtime/serve/http",),
    "comfy": ("runtime/serve/comfyui/host.py",),
    "folder_paths": ("runtime/serve/comfyui/host.py",),
    "triton_python_backend_utils": ("runtime/serve/triton",),
}
RULES = Rules(
    packages=PACKAGES,
    face=("DeviceError", "DiskError", "FlowBlendingError", "OutOfMemoryError", "UsageError", "__version__"),
    libraries=LIBRARIES,
    # A function that a user names.
    dynamic=("runtime/measures/function.py", "flowblending/system/extras.py"),
)
SLOW = {*LIBRARIES, "numpy", "rich", "pydantic"}


def test_every_file_imports_what_its_package_may() -> None:
    paths = list(files(ROOT))
    assert len(paths) > 200
    found = [each for file in paths for each in violations(ROOT, file, (ROOT / file).read_text(), RULES)]
    assert not found, "\n".join(found)


def test_the_table_has_no_cycles() -> None:
    above: set[str] = set()
    for package, allowed in PACKAGES.items():
        assert allowed <= above, f"{package} may import {sorted(allowed - above)}, which stand below it"
        above.add(package)


def test_every_row_is_a_package() -> None:
    paths = list(files(ROOT))
    for package in PACKAGES:
        prefixes = (f"{package}/", f"{package}.py")
        inside = [each for each in paths if each.removeprefix("flowblending/").startswith(prefixes)]
        assert inside or package == "flowblending", f"{package} is no folder and no file any more"


def test_who_may_know_whom() -> None:
    """What the table must go on saying, however packages are cut."""
    for package, allowed in PACKAGES.items():
        if package not in ("engine/build", "engine/cli"):
            assert "engine/build" not in allowed
        if package.startswith("runtime/"):
            assert not any(each.startswith("export/") or each == "engine/store" for each in allowed)
        if package.startswith("export/"):
            assert all(each in GROUND or each.startswith("export/") for each in allowed)
        if package in ("engine/backends", "engine/bundle", "engine/store"):
            assert all(each in GROUND or each.startswith("engine/") for each in allowed)
        assert "engine/cli" not in allowed
        assert "runtime/cli" not in allowed


def test_families_do_not_know_one_another() -> None:
    families = sorted(each.parent for each in (ROOT / "export/families").glob("*/__init__.py"))
    assert len(families) >= 2
    for folder in families:
        others = tuple(f"flowblending.export.families.{each.name}" for each in families if each != folder)
        for path in folder.rglob("*.py"):
            names = [each.name or "" for each in imports(path.read_text(), lambda name: is_module(ROOT, name))]
            assert not [name for name in names if name.startswith(others)], path


@pytest.mark.parametrize(
    ("file", "source", "said"),
    [
        ("runtime/build.py", "from flowblending.export.graph.trace import trace", "no package of the table"),
        ("runtime/program/build.py", "from flowblending.export.graph.trace import trace", "may not know export/graph"),
        ("runtime/program/build.py", "from flowblending.export import graph", "may not know export/graph"),
        ("runtime/program/build.py", "import flowblending.engine.build.build as b", "may not know engine/build"),
        (
            "runtime/pipeline.py",
            "def f():\n    from flowblending.engine.build import disk",
            "may not know engine/build",
        ),
        (
            "engine/bundle/x.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import flowblending.runtime.jobs",
            "x.py:3 imports flowblending.runtime.jobs, but engine/bundle may not know runtime/jobs",
        ),
        ("engine/backends/x.py", "MODULE = 'flowblending.runtime.pipeline'", "may not know runtime/pipeline"),
        (
            "engine/backends/x.py",
            "call('from flowblending.runtime import jobs')",
            "x.py:1 imports flowblending.runtime",
        ),
        ("engine/store/x.py", "f(f'import flowblending.engine.build.{name}')", "made while it runs"),
        ("engine/store/x.py", "f('flowblending.' + room)", "made while it runs"),
        ("engine/store/x.py", "f(f'{python} -c import flowblending.runtime.jobs')", "may not know runtime/jobs"),
        ("engine/store/x.py", "import importlib\nimportlib.import_module('flowblending.runtime.jobs')", "runtime/jobs"),
        ("engine/store/x.py", "import_module(name)", "made while it runs"),
        ("engine/store/x.py", "import_module('.jobs', 'flowblending' '.runtime')", "made while it runs"),
        ("engine/store/x.py", "__import__('torch')", "imports torch, which belongs to export"),
        ("engine/store/x.py", "from ..bundle import bundle", "made while it runs"),
        ("engine/store/x.py", "import flowblending\nflowblending.runtime.jobs.Job", "may not know runtime/jobs"),
        ("engine/store/x.py", "from flowblending import open", "for users of the product"),
        (
            "flowblending/system/x.py",
            "from flowblending.engine.bundle.bundle import alive",
            "may not know engine/bundle",
        ),
        ("flowblending/contracts/x.py", "from flowblending.system import lock", "may not know system"),
        ("runtime/sampler/x.py", "import torch.nn", "imports torch.nn, which belongs to export"),
        ("runtime/devices/x.py", "from onnxruntime import InferenceSession", "engine/backends/onnxruntime"),
        ("runtime/measures/x.py", "import torch", "runtime/measures/networks.py"),
        ("engine/build/x.py", "from tests.support import plans", "no part of the product"),
        ("export/families/x.py", "from benchmarks.shapes import data", "no part of the product"),
        (
            "engine/__init__.py",
            "from flowblending.engine.bundle.bundle import open_bundle",
            "may not know engine/bundle",
        ),
        ("flowblending/__init__.py", "from flowblending.engine.build.build import build_bundle", "engine/build"),
    ],
)
def test_what_is_planted_is_found(file: str, source: str, said: str) -> None:
    found = violations(ROOT, file, source, RULES)
    assert any(said in each for each in found), found


@pytest.mark.parametrize(
    ("file", "source"),
    [
        (
            "engine/build/x.py",
            "from flowblending.runtime.pipeline import Pipeline\nimport flowblending.export.fp8.layers",
        ),
        ("runtime/program/x.py", "from flowblending import UsageError\nfrom flowblending.contracts import graph"),
        ("runtime/program/x.py", "import flowblending\nflowblending.__version__\nimport math, numpy"),
        ("engine/store/x.py", '"""See `flowblending.runtime.jobs`."""\nA = 1\n"""As flowblending.export."""'),
        ("runtime/program/x.py", "Registry('flowblending.solvers', 'flowblending {version}')"),
        ("runtime/measures/function.py", "importlib.import_module(module)"),
        ("runtime/__init__.py", '"""Prose."""'),
    ],
)
def test_what_is_allowed_is_not(file: str, source: str) -> None:
    assert not violations(ROOT, file, source, RULES)


@pytest.mark.parametrize(
    "program",
    [
        "flowblending.runtime.cli",
        "flowblending.runtime.calibrate.cli",
        "flowblending.runtime.compare.cli",
        "flowblending.engine.cli",
        "flowblending.runtime.serve.triton.cli",
        "flowblending.runtime.serve.triton.client_cli",
        "flowblending.runtime.serve.http.cli",
    ],
)
def test_help_answers_at_once_and_loads_nothing_heavy(program: str) -> None:
    code = (
        f"import sys; sys.argv = ['x', '--help']; from {program} import main\n"
        "try: main()\n"
        f"except SystemExit: print('LOADED', *sorted(set(sys.modules) & {SLOW!r}))"
    )
    output, seconds = fastest(code)
    assert "usage:" in output
    assert output.splitlines()[-1] == "LOADED"
    # As a ratio, since a busy machine takes three times as long for both: up to 2.9, where `import numpy` alone is 4.4.
    assert seconds < 4 * fastest("import argparse, dataclasses, json, pathlib")[1]


def fastest(code: str) -> tuple[str, float]:
    """The output of a program, and the least that it took of a processor in three tries, in seconds."""
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return output, min(seconds)
