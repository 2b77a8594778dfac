import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from flowblending import FlowBlendingError, UsageError
from flowblending.system.output import check_file, check_folder, check_new_folder, check_replaceable
from flowblending.system.whole_file import replace_file, whole_folder, write_whole
from tests.support.mounts import mounted

GOOD = [
    "video.mp4",
    "#x?y%03d&.mp4",
    "file:x.mp4",
    "li\nne\t.mp4",
    " blanks ",
    "dots..",
    "X.MP4",
    "-x",
    "中" * 80,
    "x" * 255,
    "a'b\"c\\d",
]


def listing(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.parametrize("name", GOOD)
def test_what_passes_can_be_written_and_leaves_no_trace(tmp_path: Path, name: str) -> None:
    check_file(tmp_path / name)
    check_new_folder(tmp_path / name)
    check_folder(tmp_path / name)
    assert listing(tmp_path) == []
    write_whole(tmp_path / name, b"content")
    check_file(tmp_path / name)
    assert (tmp_path / name).read_bytes() == b"content"
    assert os.listdir(tmp_path) == [name]
    (tmp_path / name).unlink()
    with whole_folder(tmp_path / name) as new:
        (new / "file").touch()
    check_folder(tmp_path / name)
    check_replaceable(tmp_path / name)
    assert listing(tmp_path) == [name, f"{name}/file"]


@pytest.mark.parametrize(
    "name",
    [
        "-",
        "x" * 256,
        "中" * 86,
        "new/" * 3 + "x" * 256,
        "x/" * 2048 + "x",
        "a\0b",
        "b\udcff",
        "/dev/stdout",
        "/dev/fd/1",
    ],
    ids=ascii,
)
def test_what_cannot_be_a_name_is_refused(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for check in (check_file, check_new_folder, check_folder):
        with pytest.raises(FlowBlendingError) as error:
            check(Path(name))
        assert "\n" not in str(error.value)
    with pytest.raises(FlowBlendingError):
        check_file(Path(name), parents=True)
    assert listing(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("~/x.mp4", "begins with ~"),
        ("~nobody/videos", "begins with ~nobody"),
        ("s3://bucket/x.mp4", "begins as an address does"),
        ("file:///tmp/x.mp4", "begins as an address does"),
        ("gs:/bucket", "begins as an address does"),
    ],
)
def test_names_of_other_places_make_no_folder_here(
    tmp_path: Path, name: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for check in (lambda path: check_file(path, parents=True), check_new_folder, check_folder):
        with pytest.raises(UsageError, match=told):
            check(Path(name))
    assert listing(tmp_path) == []
    first = Path(name).parts[0]
    Path(first).mkdir()
    check_file(Path(first, "x.mp4"))


@pytest.mark.parametrize("name", ["~", "~x.mp4", "12:30/x.mp4", "http:"])
def test_names_with_a_tilde_or_a_colon_are_names(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_file(Path(name), parents=True)


def test_a_link_into_a_folder_that_nobody_makes(tmp_path: Path) -> None:
    (tmp_path / "link.mp4").symlink_to("missing/x.mp4")
    with pytest.raises(FlowBlendingError, match="missing is no folder"):
        check_file(tmp_path / "link.mp4", parents=True)


def test_too_long_a_name_is_named(tmp_path: Path) -> None:
    with pytest.raises(FlowBlendingError, match="File name too long"):
        check_file(tmp_path / ("x" * 256))


def test_pipes_devices_and_sockets_are_refused_and_stay(tmp_path: Path) -> None:
    pipe, link, end = tmp_path / "pipe.mp4", tmp_path / "link.mp4", tmp_path / "socket.mp4"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(end))
        for path, kind in ((pipe, "pipe"), (link, "pipe"), (end, "socket"), (Path("/dev/null"), "device")):
            for check in (check_file, check_new_folder, check_folder):
                with pytest.raises(UsageError, match=f"is a {kind}, but "):
                    check(path)
            # Nor is one replaced by whoever has not asked.
            with pytest.raises(FlowBlendingError, match="it is no file"):
                write_whole(path, b"")
    assert pipe.is_fifo() and end.is_socket() and Path("/dev/null").is_char_device()


def test_links(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("old")
    for name, target in {
        "file": "full/file",
        "dangling": "full/new",
        "folder": "full",
        "loop": "pool",
        "pool": "loop",
        "nowhere": "missing/new",
    }.items():
        (tmp_path / name).symlink_to(target)
    check_file(tmp_path / "file")
    check_file(tmp_path / "dangling")
    check_new_folder(tmp_path / "dangling")
    check_folder(tmp_path / "folder")
    check_file(tmp_path / "folder" / "new")
    with pytest.raises(UsageError, match="folder is a folder, but a file was expected"):
        check_file(tmp_path / "folder")
    with pytest.raises(UsageError, match="exists already and is not empty"):
        check_new_folder(tmp_path / "folder")
    with pytest.raises(FlowBlendingError, match="Too many levels of symbolic links"):
        check_file(tmp_path / "loop")
    with pytest.raises(FlowBlendingError, match="is no folder"):
        check_file(tmp_path / "nowhere")
    replace_file(tmp_path / "dangling", b"new")
    assert (tmp_path / "full" / "new").read_bytes() == b"new" and (tmp_path / "dangling").is_symlink()
    assert (tmp_path / "full" / "file").read_text() == "old"


def test_folders_in_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    for check in (check_new_folder, check_folder):
        with pytest.raises(FlowBlendingError, match="file is no folder"):
            check(tmp_path / "file" / "new")
    with pytest.raises(FlowBlendingError, match="missing is no folder"):
        check_file(tmp_path / "missing" / "file")
    check_file(tmp_path / "missing" / "file", parents=True)
    with pytest.raises(UsageError, match="the folder that this runs in"):
        check_replaceable(Path())
    assert listing(tmp_path) == ["file"]


def test_a_folder_that_is_read_only_or_full_is_refused(tmp_path: Path) -> None:
    for options, why in (("ro", "Read-only file system"), ("nr_inodes=2", "No space left on device")):
        with mounted(tmp_path / options, options) as folder:
            if "inodes" in options:
                (folder / "only").touch()
            for check in (check_file, check_new_folder, check_folder):
                with pytest.raises(FlowBlendingError, match=f"Cannot write .* \\({why}\\)"):
                    check(folder / "new")


def test_another_users_folder_is_refused(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        code = (
            "import os, sys, pathlib, random\nfrom flowblending.system.output import check_file\nos.setuid(65534)\n"
            "try: check_file(pathlib.Path('/root-only/x'))\nexcept Exception as error: print(error)"
        )
        folder = tmp_path / "closed"
        folder.mkdir(mode=0o755)
        for parent in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
            parent.chmod(0o755)
        code = code.replace("/root-only", str(folder))
        said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    else:
        folder = tmp_path / "closed"
        folder.mkdir(mode=0o555)
        with pytest.raises(FlowBlendingError) as error:
            check_file(folder / "x")
        said = str(error.value)
    assert "(Permission denied)" in said


def test_a_mount_point_cannot_be_replaced_but_filled(tmp_path: Path) -> None:
    with mounted(tmp_path / "mounted point", "size=64k") as folder:
        for check in (check_new_folder, check_replaceable):
            with pytest.raises(FlowBlendingError, match="a mount point"):
                check(folder)
        with pytest.raises(FlowBlendingError, match="name a folder in it"):
            check_folder(folder, beside=True)
        check_folder(folder)
        check_new_folder(folder / "new")
        file, inside = tmp_path / "file", folder / "file"
        file.write_text("outside")
        inside.touch()
        if subprocess.run(["mount", "--bind", file, inside], check=False).returncode == 0:
            try:
                with pytest.raises(FlowBlendingError, match="a mount point"):
                    check_file(inside)
            finally:
                subprocess.run(["umount", inside], check=True)
