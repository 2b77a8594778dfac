from __future__ import annotations

from pathlib import Path

import pytest

from flowblending import UsageError
from flowblending.contracts.graph import LARGE, SMALL, WAN_T2V_1_3B, WAN_T2V_14B
from flowblending.runtime.jobs import compile_job
from flowblending.runtime.options import Job
from flowblending.runtime.prompt_file import read_jobs
from tests.support import manifests

DEFAULTS = Job(prompt="", seed=7, steps=4)


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_line_may_have_a_cache_of_its_own(tmp_path: Path) -> None:
    manifest = manifests.write(tmp_path / "bundle")
    text = '{"prompt": "x", "cache": "mask:1010"}\n{"prompt": "x", "cache": "mask:101"}\nx\n'
    own, wrong, plain = (line.job for line in read_jobs(write(tmp_path, text), Job(prompt="", steps=4, schedule="LLL")))
    assert own and wrong and plain
    assert [compile_job(job, manifest).calls("large") for job in (own, plain)] == [4, 8]
    assert own.file_stem("b") != plain.file_stem("b")
    with pytest.raises(UsageError, match="The mask has 3 digits, but the run has 4 steps"):
        compile_job(wrong, manifest)


def test_magcache_knows_the_models_by_the_manifest(tmp_path: Path) -> None:
    manifest = manifests.write(tmp_path / "bundle")
    job = Job(prompt="x", schedule="LSL", cache="magcache")
    with pytest.raises(UsageError, match="the bundle's large model is not known as one of them"):
        compile_job(job, manifest)
    names = {LARGE: WAN_T2V_14B, SMALL: WAN_T2V_1_3B}
    components = {
        name: component.model_copy(update={"architecture": names.get(name)})
        for name, component in manifest.components.items()
    }
    program = compile_job(job, manifest.model_copy(update={"components": components}))
    assert program.schedule == "L20 S20 L10"
    assert program.calls(LARGE) + program.calls(SMALL) < 100


def test_file_names_are_readable_and_follow_the_job() -> None:
    job = Job(prompt="A cat / walks: on the grass, in a very realistic style 🐈")
    assert job.file_stem("b").startswith("a-cat-walks-on-the-grass-in-a-very")
    assert job.file_stem("b") == Job(prompt=job.prompt).file_stem("b")
    assert job.file_stem("b") != Job(prompt=job.prompt, seed=1).file_stem("b")
    assert job.file_stem("b") != job.file_stem("another bundle")
    assert "-" not in Job(prompt="🐈").file_stem("b")
