"""The component cache: killed at every change it makes to the disk, shared by processes, damaged, full, unusable."""

from __future__ import annotations

import errno
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from flowblending import FlowBlendingError, UsageError
from flowblending.contracts.manifest import BundleFile, Component
from flowblending.engine.bundle.bundle import describe_file, open_bundle
from flowblending.engine.cli import build, parser
from flowblending.engine.store.entry import damaged_file, read_entry
from flowblending.engine.store.folder import usable_folder
from flowblending.engine.store.store import Order, open_store
from flowblending.system.checksum import ChecksumCache
from tests.support import manifests, store_process
from tests.support.store_process import NAME, PLAN, Recorder, obtain

WORK = ["export", "compile"]


@pytest.fixture(autouse=True)
def _own_checksums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    # What a power cut would leave is no matter here, and a busy disk takes a second for each.
    monkeypatch.setattr(os, "fsync", lambda _: None)


def built(cache: Path | None, bundle: Path, console: Recorder | None = None) -> list[str]:
    """Build, and return the work that this took; the result is what it should be."""
    told: list[str] = []
    component, found = obtain(cache, bundle, told.append, console)
    assert [path.name for path in bundle.iterdir()] == [f"{NAME}.plan"]
    assert (bundle / f"{NAME}.plan").read_bytes() == PLAN
    assert component.files[0].bytes == len(PLAN)
    assert told.pop() == "done"
    assert found == (told == [])
    return told


def entries(cache: Path) -> list[Path]:
    return [path for path in cache.iterdir() if path.is_dir() and not path.suffix]


KILLED_AT_EVERY_CHANGE = """
import os, signal, sys
from pathlib import Path
from tests.support.store_process import obtain
folder = Path(sys.argv[1])
os.fsync = lambda _: None
CHANGES = {"open", "os.mkdir", "os.rename", "os.link", "os.remove", "os.rmdir", "os.utime"}
for count in range(1, 1000):
    (folder / str(count)).mkdir()
    child = os.fork()
    if child == 0:
        os.environ["XDG_CACHE_HOME"] = str(folder / str(count) / "xdg")
        seen = 0
        def hook(event, arguments):
            global seen
            # Of the calls of open, those that create or change a file.
            flags = arguments[2] if event == "open" else os.O_CREAT
            if event in CHANGES and isinstance(flags, int) and flags & (os.O_CREAT | os.O_RDWR | os.O_WRONLY):
                seen += 1
                if seen == count:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)
        obtain(folder / str(count) / "cache", folder / str(count) / "bundle", lambda _: None)
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
"""


def test_a_build_killed_at_any_change_resumes_where_it_was(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED_AT_EVERY_CHANGE, tmp_path], check=True, timeout=120)
    runs = sorted((path for path in tmp_path.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
    assert len(runs) > 20
    repeated = []
    for run in runs:
        cache = run / "cache"
        for entry in entries(cache) if cache.exists() else []:
            found = read_entry(entry)
            assert found is not None
            assert damaged_file(entry, found.files, ChecksumCache()) is None
        console = Recorder()
        repeated.append(built(cache, run / "again", console))
        assert not console.lines
        (entry,) = entries(cache)
        assert {path.name for path in cache.iterdir()} == {entry.name, f"{entry.name}.lock"}
        assert {path.name for path in entry.iterdir()} == {"entry.json", f"{NAME}.plan"}
    # The later it was killed, the less is left to do.
    assert [work for work, _ in itertools.groupby(repeated)] == [WORK, ["compile"], []]


@contextmanager
def process(cache: Path, bundle: Path, pause: str) -> Iterator[tuple[subprocess.Popen[str], IO[str]]]:
    """A build in a process of its own, which waits for a line before it does what ``pause`` names."""
    command = [sys.executable, "-m", "tests.support.store_process", str(cache), str(bundle), pause]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        try:
            yield running, running.stdout
        finally:
            running.kill()


def test_two_builds_at_once_share_the_work(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with process(cache, tmp_path / "one", "compile") as (one, told):
        assert [told.readline(), told.readline()] == ["export\n", "compile\n"]
        with process(cache, tmp_path / "two", "never") as (two, told_two):
            with pytest.raises(subprocess.TimeoutExpired):
                two.wait(1)
            assert one.communicate("\n", timeout=60)[0] == "done\n"
            assert told_two.read() == "done\n"
            assert two.wait(60) == 0
    (entry,) = entries(cache)
    for bundle in ("one", "two"):
        assert (tmp_path / bundle / f"{NAME}.plan").samefile(entry / f"{NAME}.plan")


def test_a_killed_build_holds_no_lock_and_who_waits_goes_on_with_its_work(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with process(cache, tmp_path / "one", "compile") as (one, told):
        assert [told.readline(), told.readline()] == ["export\n", "compile\n"]
        with process(cache, tmp_path / "two", "never") as (two, told_two):
            with pytest.raises(subprocess.TimeoutExpired):
                two.wait(1)
            one.send_signal(signal.SIGKILL)
            assert told_two.read() == "compile\ndone\n"
            assert two.wait(60) == 0
    assert built(cache, tmp_path / "three") == []


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[7] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda entry: os.truncate(entry / f"{NAME}.plan", 10), "large.plan has 10 bytes, not 4000"),
    "altered": (lambda entry: _flip(entry / f"{NAME}.plan"), "large.plan was altered"),
    "missing": (lambda entry: (entry / f"{NAME}.plan").unlink(), "large.plan cannot be read (No such file"),
    "undescribed": (lambda entry: (entry / "entry.json").unlink(), "its entry.json cannot be read"),
    "garbled": (lambda entry: (entry / "entry.json").write_bytes(b"\xff{"), "its entry.json cannot be read"),
}


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_a_damaged_entry_is_built_anew(tmp_path: Path, damage: str) -> None:
    cache = tmp_path / "cache"
    assert built(cache, tmp_path / "one") == WORK
    assert built(cache, tmp_path / "two") == []
    (entry,) = entries(cache)
    act, message = DAMAGES[damage]
    act(entry)
    console = Recorder()
    assert built(cache, tmp_path / "three", console) == WORK
    (line,) = console.lines
    assert line.startswith(f"warning: large is in the cache, but damaged ({message}")
    assert built(cache, tmp_path / "four") == []


def test_a_damaged_graph_of_an_interrupted_build_is_exported_again(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    changes: list[Callable[[Path], object]] = [lambda path: os.truncate(path, 3), Path.unlink, Path.touch]
    for change in changes:
        with process(cache, tmp_path / "killed", "compile") as (_, told):
            assert told.readline() == "export\n"
            assert told.readline() == "compile\n"
        (graph,) = cache.glob("*.work/export/large.onnx.data")
        change(graph)
    assert built(cache, tmp_path / "bundle") == WORK


def test_an_interrupt_keeps_the_verified_graph_and_an_error_for_one_more_attempt(tmp_path: Path) -> None:
    cache, console = tmp_path / "cache", Recorder()

    def failing(error: BaseException, where: str = "compile") -> tuple[list[str], set[str]]:
        def tell(word: str) -> None:
            told.append(word)
            if word == where:
                raise error

        told: list[str] = []
        with pytest.raises(type(error)):
            obtain(cache, tmp_path / "bundle", tell, console)
        return told, {path.suffix for path in cache.iterdir()}

    assert failing(FlowBlendingError("no disk"), "export") == (["export"], {".lock"})
    for interrupt in (KeyboardInterrupt(), KeyboardInterrupt(), KeyboardInterrupt()):
        told, left = failing(interrupt)
        assert left == {".lock", ".work"}
    assert told == ["compile"]
    # The graph may be what is wrong.
    assert failing(FlowBlendingError("no memory")) == (["compile"], {".lock"})
    assert not console.lines
    assert failing(FlowBlendingError("no memory")) == (WORK, {".lock", ".work"})
    assert console.lines == [f"large: its verified graph is kept in {cache} for one more attempt"]
    assert built(cache, tmp_path / "bundle") == ["compile"]


def test_an_entry_has_its_name_when_its_content_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(Path(f"/proc/self/fd/{file}").readlink()))
    cache = tmp_path / "cache"
    built(cache, tmp_path / "bundle")
    (entry,) = entries(cache)
    work = entry.with_suffix(".work")
    files = [work / "export" / f"{NAME}.{suffix}" for suffix in ("json", "onnx", "onnx.data")]
    assert synced == [*files, work / "entry.json", work / f"{NAME}.plan", work, cache]


def test_files_are_copied_where_they_cannot_be_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    cache, console = tmp_path / "cache", Recorder()
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", refuse)
        assert built(cache, tmp_path / "far", console) == WORK
    (line,) = console.lines
    assert f"copied, because the bundle cannot share the files of the cache {cache} by hard link" in line
    (tmp_path / "far" / f"{NAME}.plan").write_bytes(b"altered")
    console = Recorder()
    assert built(cache, tmp_path / "near", console) == []
    assert not console.lines
    assert (tmp_path / "near" / f"{NAME}.plan").stat().st_nlink == 2


@pytest.mark.parametrize("apart", [True, False])
def test_weights_beside_a_graph_are_files_of_the_bundle_if_there_is_room(tmp_path: Path, apart: bool) -> None:
    cache, bundle, names = tmp_path / "cache", tmp_path / "bundle", ("large.onnx", "large.onnx.data")
    bundle.mkdir()

    def make(work: Path) -> Component:
        made = store_process.make(work, lambda _: None)
        for name in names:
            (work / name).write_bytes(name.encode())
        return made.model_copy(update={"files": tuple(describe_file(work, work / name) for name in names)})

    with open_store(cache, bundle, Recorder()) as store:
        store.apart = apart
        store.obtain(store_process.order(bundle, make))
    assert [(bundle / name).read_bytes() for name in names] == [name.encode() for name in names]
    assert [(bundle / name).stat().st_nlink for name in names] == [2, 1 if apart else 2]


def test_without_a_cache_nothing_is_kept_and_nothing_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", None)
    for _ in range(2):
        assert built(None, tmp_path / "bundle") == WORK


def test_a_full_disk_of_the_cache_is_a_sentence_and_leaves_no_half_component(tmp_path: Path) -> None:
    cache = tmp_path / "cache"

    def fill(work: Path) -> Component:
        (work / "half").write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with (
        open_store(cache, tmp_path, Recorder()) as store,
        pytest.raises(FlowBlendingError, match=f"The disk of the cache {cache} is full; free some space there"),
    ):
        store.obtain(store_process.order(tmp_path, fill))
    assert {path.suffix for path in cache.iterdir()} == {".lock"}


def test_a_full_disk_of_the_bundle_is_not_blamed_on_the_cache(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), open_store(tmp_path / "cache", tmp_path, Recorder()) as store:
        store.obtain(store_process.order(tmp_path / "missing", lambda work: store_process.make(work, lambda _: None)))
    assert built(tmp_path / "cache", tmp_path / "bundle") == []


def test_a_file_that_is_no_component_is_kept_too(tmp_path: Path) -> None:
    made: list[Path] = []

    def measure(work: Path) -> BundleFile:
        made.append(work)
        (work / "table.json").write_text("[1, 2]")
        return describe_file(work, work / "table.json")

    for bundle in (tmp_path / "one", tmp_path / "two"):
        bundle.mkdir()
        with open_store(tmp_path / "cache", bundle, Recorder()) as store:
            order = Order(
                kind=BundleFile,
                name="table",
                key={"n": "2"},
                family="wan",
                source="Org/Model",
                into=bundle,
                make=measure,
            )
            file, found = store.obtain(order)
        assert (file.path, file.bytes, found) == ("table.json", 6, bundle.name == "two")
        assert (bundle / "table.json").read_text() == "[1, 2]"
        # Whoever edits it in a bundle edits no other one.
        (bundle / "table.json").write_text("edited")
    assert len(made) == 1
    lines = store_process.listed(tmp_path / "cache")
    assert lines[-1].split() == ["table", "wan", "Org/Model", "0.0", "MB", "now", "whole"]


def test_every_part_of_the_key_makes_another_entry(tmp_path: Path) -> None:
    first = store_process.order(tmp_path, lambda _: pytest.fail("is not made"))

    def digest(**changes: object) -> str:
        return Order(**{**vars(first), **changes}).digest

    assert digest(family="ltx", source="x", into=tmp_path / "x") == first.digest
    others = [digest(name="small"), *(digest(key={**store_process.KEY, name: "other"}) for name in store_process.KEY)]
    assert len({first.digest, *others}) == 1 + len(others)


def _unusable(tmp_path: Path) -> Path:
    """Also root cannot make a folder below a file."""
    (tmp_path / "file").write_text("")
    return tmp_path / "file"


def test_an_unusable_default_cache_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(_unusable(tmp_path)))
    console = Recorder()
    assert usable_folder(None, console) is None
    (line,) = console.lines
    assert "cannot be used (Not a directory)" in line
    assert line.endswith("This build goes on without a cache.")


def test_an_unusable_cache_that_was_asked_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FlowBlendingError, match="give --cache-dir a folder that you can write to, or --no-cache"):
        usable_folder(_unusable(tmp_path) / "cache", Recorder())


def test_a_read_only_file_system_is_unusable(tmp_path: Path) -> None:
    command = ["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", str(tmp_path)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("this user may not mount a file system")
    try:
        with pytest.raises(FlowBlendingError, match=r"cannot be used \(Read-only file system"):
            usable_folder(tmp_path, Recorder())
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_usable_folder_says_to_backup_programs_what_it_is(tmp_path: Path) -> None:
    folder = usable_folder(tmp_path / "new" / "cache", Recorder())
    assert folder is not None
    assert [path.name for path in folder.iterdir()] == ["CACHEDIR.TAG"]
    assert (folder / "CACHEDIR.TAG").read_text().startswith("Signature: 8a477f597d28d172789f06886806bc55\n")


def test_a_bundle_is_no_cache(tmp_path: Path) -> None:
    manifests.write(tmp_path / "bundle")
    arguments = ["--large", "x", "--small", "y", "--out", str(tmp_path / "out"), "--backend", "onnxruntime"]
    for place in ("bundle", "bundle/cache"):
        with pytest.raises(UsageError, match="lies in the bundle"):
            build(parser().parse_args([*arguments, "--cache-dir", str(tmp_path / place)]))
    open_bundle(tmp_path / "bundle").verify()
