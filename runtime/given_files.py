"""The files of images and videos that a job names, and what they hold: another content makes another video."""

from __future__ import annotations

from pathlib import Path

from flowblending import FlowBlendingError
from flowblending.runtime.conditions.given import read_given
from flowblending.runtime.options import Job
from flowblending.system.checksum import ChecksumCache


def given_files(job: Job) -> dict[str, tuple[Path, ...]]:
    """By option, the files and folders that a job names; options that name none are left out.

    Raises:
        UsageError: an image's place or strength cannot be read.
    """
    found = {
        "image": tuple(read_given(each).path for each in job.image),
        "video": () if job.video is None else (Path(job.video),),
        "mask": () if job.mask is None else (Path(job.mask),),
        "reference": tuple(map(Path, job.reference)),
    }
    return {name: paths for name, paths in found.items() if paths}


def given_digests(job: Job) -> dict[str, list[str]]:
    """SHA-256 of the files of a job, by option; of a folder, those of the files in it.

    Raises:
        FlowBlendingError: one is missing, or cannot be read.
    """
    checksums = ChecksumCache()
    return {
        name: [each for path in paths for each in _digests(path, checksums)] for name, paths in given_files(job).items()
    }


def _digests(path: Path, checksums: ChecksumCache) -> list[str]:
    try:
        files = sorted(each for each in path.iterdir() if each.is_file()) if path.is_dir() else [path]
        return [f"{each.name} {checksums.sha256(each)}" for each in files]
    except OSError as error:
        raise FlowBlendingError(f"Cannot read {path} ({error.strerror}); give another file.") from None
