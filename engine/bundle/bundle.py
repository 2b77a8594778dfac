"""Bundles on disk: opening and verifying one, and writing one so that a killed build leaves nothing behind."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from flowblending import FlowBlendingError, UsageError
from flowblending.contracts import upgrade
from flowblending.contracts.graph import PipelineSpec
from flowblending.contracts.manifest import EVIDENCE, MANIFEST, BundleFile, Component, Manifest, VideoProfile
from flowblending.contracts.models import Model
from flowblending.contracts.tiling import Tiling
from flowblending.system import temporary
from flowblending.system.checksum import ChecksumCache, sha256
from flowblending.system.output import check_new_folder, check_replaceable, resolve
from flowblending.system.shell import command
from flowblending.system.whole_file import whole_folder

REPORT = "report.json"
TRAJECTORY = "pair.golden.npz"
ABOUT = frozenset({REPORT, TRAJECTORY})
"""Files that tell of a bundle and are no part of it: they may be written and removed without making it another."""


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """An opened bundle: its folder and its manifest. ``verify`` has to be called before its files are trusted."""

    folder: Path
    manifest: Manifest

    def path(self, component: str) -> Path:
        """The engine file of a component.

        Raises:
            FlowBlendingError: the bundle has no such component.
        """
        found = self.manifest.components.get(component)
        if found is None:
            raise FlowBlendingError(
                f"Bundle {self.folder} has no component {component}; rebuild it with: {self.rebuild}"
            )
        return self.folder / found.files[0].path

    @property
    def rebuild(self) -> str:
        """The command that makes this bundle again, ready for a shell; where it lies now, which may be elsewhere."""
        words = list(self.manifest.rebuild)
        if "--out" in words[:-1]:
            words[words.index("--out") + 1] = str(self.folder.absolute())
        return command(*words)

    def files(self) -> Iterator[BundleFile]:
        """Every file that the manifest names."""
        for component in (*self.manifest.components.values(), *self.manifest.signals.values()):
            yield from component.files
        yield from self.manifest.tokenizer
        if self.manifest.calibration is not None:
            yield from self.manifest.calibration.evidence
        if self.manifest.fp8_calibration is not None:
            yield self.manifest.fp8_calibration
        if self.manifest.preview is not None:
            yield self.manifest.preview.file

    def verify(self, *, recompute: bool = False, progress: Callable[[int], None] | None = None) -> None:
        """Check that every file is there, whole and unaltered, and that there is no other.

        Args:
            recompute: read every file, also those unchanged since they were last verified.
            progress: told the bytes that were hashed.

        Raises:
            FlowBlendingError: names the first missing, truncated, altered or foreign file.
        """
        checksums = ChecksumCache()
        for file in self.files():
            self._verify_file(file, checksums, recompute, progress)
        expected = {MANIFEST, *ABOUT, *(file.path for file in self.files())}
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            # Evidence is written before the manifest that names it: a killed fb-calibrate may have left some.
            known = name in expected or EVIDENCE.fullmatch(name) or temporary.NAME.fullmatch(name.partition("/")[0])
            if path.is_file() and not known:
                raise FlowBlendingError(
                    f"{path} does not belong to this bundle, whose manifest does not name it; "
                    f"remove it, or rebuild with: {self.rebuild}"
                )

    def _verify_file(
        self, file: BundleFile, checksums: ChecksumCache, recompute: bool, progress: Callable[[int], None] | None
    ) -> None:
        path = self.folder / file.path
        try:
            size = path.stat().st_size
            if size != file.bytes:
                raise FlowBlendingError(
                    f"{path} has {size} bytes, but {file.bytes} were expected; rebuild with: {self.rebuild}"
                )
            if checksums.sha256(path, recompute=recompute, progress=progress) != file.sha256:
                raise FlowBlendingError(
                    f"{path} was altered after the build (its SHA-256 differs from the manifest's); "
                    f"rebuild with: {self.rebuild}"
                )
        except FileNotFoundError:
            raise FlowBlendingError(f"{path} is missing from the bundle; rebuild with: {self.rebuild}") from None
        except OSError as error:
            raise FlowBlendingError(f"Cannot read {path} ({error.strerror}); check its permissions.") from None


def open_bundle(folder: Path) -> Bundle:
    """Read a bundle's manifest, of any format up to the present one; nothing is written.

    Raises:
        FlowBlendingError: there is no bundle, or it is damaged or of a later format.
    """
    path = folder / MANIFEST
    try:
        text = path.read_text(encoding="utf-8")
    except PermissionError as error:
        raise FlowBlendingError(f"Cannot read {path} ({error.strerror}); check its permissions.") from None
    except OSError:
        raise FlowBlendingError(
            f"{folder} is no bundle (it has no readable {MANIFEST}); make one with "
            f"{command('fb-build-engines', '--out', folder)}."
        ) from None
    except UnicodeDecodeError:
        text = ""
    try:
        content = json.loads(text)
        rebuild = command(*map(str, content.get("rebuild", ["fb-build-engines"])))
        content = upgrade.MANIFEST.upgrade(content, path, f"rebuild with: {rebuild}")
    except (ValueError, TypeError, AttributeError):
        raise FlowBlendingError(f"{path} is damaged; build the bundle again with fb-build-engines.") from None
    try:
        return Bundle(folder=folder, manifest=Manifest.model_validate_json(json.dumps(content)))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise FlowBlendingError(f"{path} is damaged at {where} ({first['msg']}); rebuild with: {rebuild}") from None


def carry_calibration(old: Bundle | None, manifest: Manifest, folder: Path) -> Manifest:
    """The manifest of a bundle that is being written to ``folder``, with what of the old one's calibration still holds.

    It holds while nothing that determines the videos has changed, and its evidence is whole.
    """
    calibration = None if old is None else old.manifest.calibration
    if old is None or calibration is None or old.manifest.id != manifest.id:
        return manifest
    if [model.letter for model in old.manifest.models] != [model.letter for model in manifest.models]:
        return manifest
    for file in calibration.evidence:
        source = old.folder / file.path
        if not source.is_file() or describe_file(old.folder, source) != file:
            return manifest
        shutil.copyfile(source, folder / file.path)
    return manifest.model_copy(update={"calibration": calibration})


def describe_file(folder: Path, path: Path) -> BundleFile:
    """The manifest's entry of a file inside ``folder``."""
    return BundleFile(path=path.relative_to(folder).as_posix(), bytes=path.stat().st_size, sha256=sha256(path))


def bundle_id(
    pipeline: PipelineSpec,
    profiles: Sequence[VideoProfile],
    components: Mapping[str, Component],
    tokenizer: bytes,
    models: Sequence[Model],
    *,
    tiling: Tiling | None = None,
) -> str:
    """Sixteen digits that change when anything that determines the videos changes."""
    digest = hashlib.sha256(repr((pipeline, tuple(profiles))).encode() + tokenizer)
    sampling = {component: model.sampling for model in models for component in model.components}
    for name, component in components.items():
        digest.update(json.dumps(component.key, sort_keys=True).encode())
        asked = sampling.get(name)
        if asked is not None:
            digest.update(asked.model_dump_json().encode())
    for model in models:
        if model.boundary is not None:
            digest.update(repr(model.boundary).encode())
    if tiling is not None:
        digest.update(str(tiling).encode())
    return digest.hexdigest()[:16]


def check_outside(path: Path, *, itself: bool = True) -> None:
    """Refuse an output in a bundle: what is in one and not in its manifest makes it a bundle that nothing opens.

    Args:
        path: of the output, which need not be there.
        itself: whether it may not be a bundle either.

    Raises:
        UsageError: it lies in a bundle.
        FlowBlendingError: the name can be no output; see `flowblending.system.output.resolve`.
    """
    target = resolve(path)
    for folder in (target, *target.parents) if itself else target.parents:
        if _is_bundle(folder):
            raise UsageError(
                f"{path} lies in the bundle {folder}, which holds nothing but engines; choose another place."
            )


def _is_bundle(folder: Path) -> bool:
    if not (folder / MANIFEST).is_file():
        return False
    try:
        open_bundle(folder)
    except FlowBlendingError:
        return False
    return True


def check_bundle_place(out: Path) -> None:
    """Find out before hours of work whether a bundle can be put there.

    Raises:
        FlowBlendingError: ``out`` holds something that is no bundle, lies in one, or cannot be written or replaced.
    """
    target = resolve(out)
    check_outside(out, itself=False)
    if (target / MANIFEST).is_file():
        check_replaceable(out)
    elif target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FlowBlendingError(f"{out} exists and is no bundle; choose another --out or remove it.")
    else:
        check_new_folder(out)


@contextmanager
def write_bundle(out: Path) -> Iterator[Path]:
    """A folder to fill, which becomes ``out`` when the block ends well and vanishes when it does not.

    An existing bundle at ``out`` stays whole until the new one is. Leftovers of killed builds are removed.

    Raises:
        FlowBlendingError: ``out`` holds something that is no bundle, or its parent cannot be written.
    """
    check_bundle_place(out)
    # A link is followed, so that the bundle lies on the disk that the user means.
    out = out.resolve()
    failure: BaseException | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with whole_folder(out, replace=True) as folder:
            try:
                yield folder
            except BaseException as error:
                failure = error
                raise
    except OSError as error:
        if error is failure:
            raise
        raise FlowBlendingError(
            f"Cannot write a bundle to {out} ({error.strerror}); choose a folder that you can write to."
        ) from None
