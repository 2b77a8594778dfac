"""From a job to the tensors that a client sends: its options, and the files that it names."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowblending import FlowBlendingError, UsageError
from flowblending.runtime.option import Option
from flowblending.runtime.options import options, served_options
from flowblending.runtime.serve.triton.signature import AT, NAME, dtype_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from flowblending.runtime.serve.triton.client import Arrays
    from flowblending.runtime.serve.uploads import Upload


def request_inputs(
    fields: Mapping[str, Any], results: Sequence[str], *, progress: bool = True, noise: Path | None = None
) -> Arrays:
    """The inputs of a request.

    Args:
        fields: of a job; what is left out is the model's to choose.
        results: see `signature.RESULTS`.
        progress: whether every step is to be told.
        noise: a file of initial latents (.npy).

    Raises:
        FlowBlendingError: a file is missing or cannot be read, or they are too large together.
    """
    import numpy as np

    inputs: dict[str, npt.NDArray[np.generic]] = {
        "result": _texts([each.encode() for each in results]),
        "progress": np.array([progress]),
    }
    for option in served_options():
        if (value := fields.get(option.name)) is not None:
            inputs[option.name] = _tensor(option, value)
    for option in options():
        if option.file:
            inputs |= _file_tensors(option, _read_files(option, fields.get(option.name)))
    _check_size(inputs)
    if noise is not None:
        inputs["latents"] = _latents(noise)
    return inputs


def _tensor(option: Option, value: Any) -> npt.NDArray[np.generic]:
    import numpy as np

    if option.kind is str:
        return _texts([value.encode()])
    kind = np.dtype(dtype_of(option))
    try:
        return np.array([value], kind)
    except OverflowError:
        raise UsageError(
            f"{value} was given to {option.option}, but it must fit in {kind}; give a smaller one."
        ) from None


def _texts(values: Sequence[bytes]) -> npt.NDArray[np.object_]:
    import numpy as np

    return np.array(values, np.object_)


def _file_tensors(option: Option, uploads: Sequence[Upload]) -> Arrays:
    if not uploads:
        return {}
    found = {option.name: [each.content for each in uploads]}
    found[option.name + NAME] = [each.name.encode() for each in uploads]
    if option.placed:
        found[option.name + AT] = [each.at.encode() for each in uploads]
    return {name: _texts(values) for name, values in found.items()}


def _read_files(option: Option, value: Any) -> list[Upload]:
    """The files that an option names.

    Raises:
        FlowBlendingError: one is missing or cannot be read.
    """
    if not value:
        return []
    from flowblending.runtime.conditions.given import read_given, tail_of

    if not option.several:
        return [_read_file(Path(value), "")]
    if not option.placed:
        return [_read_file(Path(each), "") for each in value]
    return [_read_file(read_given(each).path, tail_of(each)) for each in value]


def _read_file(path: Path, at: str) -> Upload:
    from flowblending.runtime.media.file_checks import check_is_file
    from flowblending.runtime.serve.uploads import Upload, check_bytes, shown_name
    from flowblending.system.printable import printable

    try:
        if path.is_dir():
            return Upload(name=shown_name(path.resolve().name), content=_packed(path), at=at)
        check_is_file(path, "image or video")
        check_bytes(path.stat().st_size)
        return Upload(name=shown_name(path.name), content=path.read_bytes(), at=at)
    except OSError as error:
        raise FlowBlendingError(f"Cannot read {printable(path)} ({error.strerror}); give another file.") from None


def _packed(folder: Path) -> bytes:
    """A folder's images as a ZIP file, not compressed: they are already."""
    from flowblending.runtime.media.frame_source import folder_images
    from flowblending.runtime.serve.uploads import check_bytes

    images = folder_images(folder)
    check_bytes(sum(each.stat().st_size for each in images))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for each in images:
            archive.writestr(zipfile.ZipInfo(each.name), each.read_bytes())
    return packed.getvalue()


def _check_size(inputs: Arrays) -> None:
    from flowblending.runtime.serve.uploads import check_bytes

    names = {option.name for option in options() if option.file}
    check_bytes(sum(len(each) for name, array in inputs.items() if name in names for each in array.tolist()))


def _latents(path: Path) -> npt.NDArray[np.float32]:
    import numpy as np

    from flowblending.runtime.media.latents import read_latents

    content = read_latents(path)
    if content.dtype.kind != "f":
        raise UsageError(f"{path} holds {content.dtype}, but float32 was expected; convert it.")
    with np.errstate(over="ignore"):  # the model refuses infinite numbers
        return np.asarray(content, np.float32)
