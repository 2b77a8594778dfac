"""--list-cache and --prune: what they say, what they remove, and what they leave alone."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from flowblending import FlowBlendingError, UsageError
from flowblending.contracts.manifest import Component
from flowblending.engine.backends.tensorrt.kept import Kept, kept_files
from flowblending.engine.bundle.bundle import describe_file
from flowblending.engine.store import prune
from flowblending.engine.store.prune import Rule, parse_rule
from flowblending.engine.store.store import open_store
from tests.engine.store.test_store import built, process
from tests.support import store_process
from tests.support.store_process import Recorder

DAY = 86400


@pytest.fixture(autouse=True)
def _own_checksums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(os, "fsync", lambda _: None)


def fill(cache: Path, bundle: Path, ages: Sequence[float]) -> list[Path]:
    """Entries of a megabyte each, last used so many days ago."""
    bundle.mkdir()
    entries: list[Path] = []
    for age in ages:

        def make(work: Path) -> Component:
            path = work / f"plan-{len(entries)}"
            path.write_bytes(bytes(10**6))
            made = store_process.make(work, lambda _: None)
            return made.model_copy(update={"files": (describe_file(work, path),)})

        order = dataclasses.replace(store_process.order(bundle, make), key={"weights": str(age)})
        with open_store(cache, bundle, Recorder()) as store:
            store.obtain(order)
        entries.append(cache / order.digest)
        os.utime(entries[-1] / "entry.json", (time.time() - age * DAY,) * 2)
    return entries


def after(cache: Path, what: str, entries: Sequence[Path]) -> tuple[list[bool], str]:
    """Which entries are left by ``--prune what``, and what it said."""
    console = Recorder()
    prune.prune(cache, parse_rule(what), console)
    return [entry.exists() for entry in entries], "\n".join(console.lines)


def test_pruning_by_age_size_and_all(tmp_path: Path) -> None:
    cache, bundle = tmp_path / "cache", tmp_path / "bundle"
    entries = fill(cache, bundle, (1, 40, 3, 20))
    (cache / "mine.txt").write_text("precious")
    (cache / "a folder").mkdir()
    left, said = after(cache, "30d", entries)
    assert left == [True, False, True, True]
    # The bundle still has a name for that file.
    assert "Removed 1 entry of 1.0 MB from" in said
    assert "0.0 MB were freed; bundles still hold the other 1.0 MB (hard links)." in said
    assert sorted(bundle.iterdir()) == [bundle / f"plan-{index}" for index in range(4)]
    (bundle / "plan-3").unlink()
    left, said = after(cache, "2.5MB", entries)
    assert left == [True, False, True, False]
    assert "were freed." in said
    assert "Removed 1 entry of 1.0 MB" in said
    assert said.endswith("2.0 MB are left in the cache.")
    left, said = after(cache, "5GB", entries)
    assert left == [True, False, True, False]
    assert "Removed 0 entries" in said
    assert after(cache, "all", entries)[0] == [False] * 4
    assert sorted(path.name for path in cache.iterdir()) == ["a folder", "mine.txt"]
    assert all((bundle / f"plan-{index}").stat().st_size == 10**6 for index in range(3))


def test_what_tensorrt_keeps_is_listed_and_pruned_too(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    plan = tmp_path / "large.plan"
    plan.write_bytes(b"a plan")
    keep = [Kept("timings", "11.4.0.106", "sm90"), Kept("kernels", "1.7.1.116", "sm89", plan)]
    paths = []
    for age, each in zip((40, 2), keep, strict=True):
        each.write(bytes(1000))
        assert each.path is not None
        paths.append(each.path)
        os.utime(each.path, (time.time() - age * DAY,) * 2)
    (paths[0].parent / ".flowblending-1.part").write_bytes(b"in work")
    assert sorted(kept_files()) == sorted(paths)
    (entry,) = fill(cache, tmp_path / "bundle", (10,))
    console = Recorder()
    prune.show_list(cache, console, kept_files())
    rows = [line.split() for line in console.lines if line.endswith("kept")]
    assert [row[:3] for row in rows] == [["kernels", "sm89", "1.7.1.116"], ["timings", "sm90", "11.4.0.106"]]
    prune.prune(cache, parse_rule("30d"), console, kept_files())
    assert [path.exists() for path in (*paths, entry)] == [False, True, True]
    prune.prune(cache, parse_rule("all"), console, kept_files())
    assert [path.exists() for path in (*paths, entry)] == [False, False, False]
    assert keep[1].read() == b""
    # What is read is in use.
    keep[1].write(b"again")
    os.utime(paths[1], (0, 0))
    assert Kept("kernels", "1.7.1.116", "sm89", plan).read() == b"again"
    assert time.time() - paths[1].stat().st_mtime < DAY


def test_folders_of_other_programs_are_left_alone(tmp_path: Path) -> None:
    # As Docker names its containers' folders.
    precious = tmp_path / ("ab" * 32) / "config.json"
    precious.parent.mkdir()
    precious.write_text("precious")
    assert store_process.listed(tmp_path) == [f"The cache {tmp_path} is empty."]
    assert "Removed 0 entries" in after(tmp_path, "all", [])[1]
    assert precious.read_text() == "precious"


def test_a_cache_on_a_read_only_file_system_can_be_listed_and_is_not_pruned(tmp_path: Path) -> None:
    fill(tmp_path / "cache", tmp_path / "bundle", (0,))
    command = ["mount", "--bind", "-o", "ro", str(tmp_path / "cache"), str(tmp_path / "cache")]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("only root can mount a file system")
    try:
        assert listed(tmp_path / "cache")[0]["state"] == "whole"
        with pytest.raises(FlowBlendingError, match=r"Cannot lock .* \(Read-only file system\); check its permissions"):
            after(tmp_path / "cache", "all", [])
    finally:
        subprocess.run(["umount", str(tmp_path / "cache")], check=True)


def test_use_makes_an_entry_young(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert built(cache, tmp_path / "one") == ["export", "compile"]
    (entry,) = (path for path in cache.iterdir() if path.is_dir())
    os.utime(entry / "entry.json", (0, 0))
    assert built(cache, tmp_path / "two") == []
    assert after(cache, "1h", [entry])[0] == [True]
    os.utime(entry / "entry.json", (0, 0))
    assert after(cache, "1h", [entry])[0] == [False]


def test_what_a_running_build_uses_is_left_alone(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    (old,) = fill(cache, tmp_path / "old", (10,))
    with process(cache, tmp_path / "one", "compile") as (_, told):
        assert [told.readline(), told.readline()] == ["export\n", "compile\n"]
        (work,) = cache.glob("*.work")
        left, said = after(cache, "all", [old, work])
        assert left == [False, True]
        assert "A running build uses 1 more, which were left alone." in said
    # It was killed: what it left is nobody's now.
    assert after(cache, "all", [work])[0] == [False]
    # "done" is told when the component is there and the build, which has others to make, still uses it.
    with process(cache, tmp_path / "two", "done") as (two, told):
        assert [told.readline() for _ in range(3)] == ["export\n", "compile\n", "done\n"]
        (entry,) = (path for path in cache.iterdir() if path.is_dir())
        assert after(cache, "all", [entry])[0] == [True]
        two.communicate("\n", timeout=60)
    assert after(cache, "all", [entry])[0] == [False]
    assert not list(cache.iterdir())


def test_the_list_names_every_entry_and_its_state(tmp_path: Path) -> None:
    cache, bundle = tmp_path / "cache", tmp_path / "bundle"
    _, damaged, garbled = fill(cache, bundle, (0, 2, 3))
    (damaged / "plan-1").write_bytes(bytes(10**6 - 1) + b"x")
    (garbled / "entry.json").write_text("{}")
    (bundle / "plan-2").unlink()
    with process(cache, tmp_path / "one", "compile") as (_, said):
        assert [said.readline(), said.readline()] == ["export\n", "compile\n"]
        assert listed(cache)[0]["state"] == "in use"
    entries = listed(cache)
    assert [each["state"] for each in entries] == ["interrupted", "unreadable", "whole", "damaged"]
    assert entries[0]["component"] == "large"
    whole = {
        "component": "large",
        "source": "wan Org/Model",
        "precision": "fp32",
        "target": "any",
        "backend": "tensorrt 1",
        "size": "1.0 MB",
        "last_used": "now",
        "state": "whole",
        "bytes": entries[2]["bytes"],
        "folder": entries[2]["folder"],
    }
    assert entries[2] == whole
    assert Path(whole["folder"]).parent == cache
    assert entries[3]["last_used"] == "2 d ago"
    lines = told(cache)
    assert lines[0] == f"The cache {cache}"
    assert "of which 1.0 MB share no disk space with a bundle" in lines[1]
    assert all(len(line) <= 80 for line in lines[1:])
    for heading, key in (("of", "source"), ("precision", "precision"), ("back end", "backend"), ("state", "state")):
        assert f"  {heading}: {whole[key]}" in lines


def told(cache: Path, *options: str) -> list[str]:
    """What ``fb-build-engines --list-cache`` prints."""
    command = [sys.executable, "-m", "flowblending.engine.cli", "--list-cache", "--cache-dir", str(cache), *options]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert not result.stderr
    return result.stdout.splitlines()


def listed(cache: Path) -> list[dict[str, Any]]:
    """The entries that it tells."""
    document = json.loads("\n".join(told(cache, "--json")))
    assert document["cache"] == str(cache)
    assert document["bytes"] == sum(entry["bytes"] for entry in document["entries"])
    entries: list[dict[str, Any]] = document["entries"]
    return entries


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("30d", Rule(seconds=30 * DAY)),
        ("1.5 h", Rule(seconds=5400)),
        ("50GB", Rule(bytes=50e9)),
        ("0.5tb", Rule(bytes=5e11)),
        ("ALL", Rule(seconds=-math.inf)),
    ],
)
def test_rules(text: str, rule: Rule) -> None:
    assert parse_rule(text) == rule


@pytest.mark.parametrize("text", ["", "30", "d", "-3d", "3 weeks", "50GiB", "1e3d", "everything"])
def test_what_is_no_rule(text: str) -> None:
    with pytest.raises(UsageError, match=r"but an age \(30d, 12h\), a size to leave \(500MB, 50GB\) or all was"):
        parse_rule(text)


WRONG: list[tuple[tuple[str, ...], str]] = [
    ((), "The following arguments are required: --large (or --model), --out"),
    (("--large", "x", "--small", "y"), "The following arguments are required: --out"),
    (("--list-cache", "--out", "x"), "error: --list-cache builds nothing; leave out --out"),
    (("--prune", "all", "--no-cache"), "error: --prune builds nothing; leave out --no-cache"),
    (("--prune", "all", "--list-cache"), "error: --list-cache builds nothing; leave out --prune"),
    (("--prove", "b", "--precision", "fp8", "--frames", "9"), "--prove builds nothing; leave out --frames, --prec"),
    (("--prune", "all", "--target", "sm89"), "error: --prune builds nothing; leave out --target"),
    (("--prune", "some"), "--prune 'some' was given, but an age"),
    (("--list-cache", "--cache-dir", ""), "--cache-dir: a folder was expected, but its name is empty"),
    # Of fb-run; here it might be taken for the beginning of --cache-dir.
    (("--large", "x", "--small", "y", "--out", "z", "--cache", "magcache"), "There is no option --cache; "),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=lambda value: " ".join(value)[:40])
def test_wrong_arguments(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "flowblending.engine.cli", *arguments, "--cache-dir", str(tmp_path / "cache")]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_cache_that_is_not_there_is_empty(tmp_path: Path) -> None:
    console = Recorder()
    assert store_process.listed(tmp_path / "cache") == [f"The cache {tmp_path / 'cache'} is empty."]
    prune.prune(tmp_path / "cache", parse_rule("all"), console)
    assert console.lines[0].startswith("Removed 0 entries")
    assert not list(tmp_path.iterdir())
