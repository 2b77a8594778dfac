"""Where the service keeps what it made: one folder, that one service at a time has."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from flowblending import UsageError
from flowblending.runtime.serve.uploads import Kept, Upload, keep
from flowblending.system.lock import exclusive_if_free
from flowblending.system.output import cannot_write, check_folder
from flowblending.system.temporary import sweep
from flowblending.system.whole_file import flush


class DataFolder:
    """The jobs' database, two files per video, and a folder of what was uploaded for it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def jobs(self) -> Path:
        """The database."""
        return self._folder / "jobs.sqlite"

    @property
    def videos(self) -> Path:
        """The folder of the files."""
        return self._folder / "videos"

    def video(self, id: str) -> Path:
        """A video."""
        return self.videos / f"{id}.mp4"

    def thumbnail(self, id: str) -> Path:
        """An image of its middle frame."""
        return self.videos / f"{id}.png"

    def upload(self, id: str) -> Path:
        """The folder of files that were uploaded for a video."""
        return self.videos / f"{id}.upload"

    def keep_uploads(self, id: str, uploads: Mapping[str, Sequence[Upload]]) -> Kept:
        """Keep such files; they are on the disk then. What a kill leaves of them is no job's, and `tidy` removes it.

        Raises:
            UsageError: they are too many or too large.
            OSError: they cannot be written.
        """
        folder = self.upload(id)
        folder.mkdir()
        kept = keep(uploads, folder)
        for path in _files(folder):
            flush(path)
        with contextlib.suppress(OSError):  # of file systems that have no names to wait for
            for path in (*(each for each in folder.rglob("*") if each.is_dir()), folder, self.videos):
                flush(path)
        return kept

    def size(self, id: str) -> int:
        """Bytes of a video's files."""
        kept = (self.video(id), self.thumbnail(id), *_files(self.upload(id)))
        return sum(path.stat().st_size for path in kept)

    def remove(self, id: str) -> None:
        """Remove all of a video's files."""
        self.remove_results(id)
        shutil.rmtree(self.upload(id), ignore_errors=True)

    def remove_results(self, id: str) -> None:
        """Remove what was made of a video, and what a worker that was killed left of it."""
        for path in (self.video(id), self.thumbnail(id)):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            sweep(path)

    def tidy(self, known: Collection[str]) -> None:
        """Remove the files of jobs that are not known."""
        for path in self.videos.iterdir():
            if path.suffix in (".mp4", ".png", ".upload") and path.stem not in known:
                self.remove(path.stem)


def _files(folder: Path) -> list[Path]:
    """The files of a folder and of those in it; none if there is none."""
    return [path for path in folder.rglob("*") if path.is_file()]


@contextmanager
def data_folder(folder: Path) -> Iterator[DataFolder]:
    """Have a folder for a block, which is made if it is not there.

    Raises:
        UsageError: another service has it.
        FlowBlendingError: it cannot be written to.
    """
    check_folder(folder)
    data = DataFolder(folder)
    try:
        data.videos.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)  # prompts and videos of others
    except OSError as error:
        raise cannot_write(folder, error) from None
    with exclusive_if_free(folder / "lock") as free:
        if not free:
            raise UsageError(f"Another fb-serve has the folder {folder}; stop it, or give another one to --data.")
        yield data
