"""The checkpoints of a build: where they are, and folders in diffusers' format for all of them.

Calls the exporter inside its functions, as `build` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flowblending import UsageError
from flowblending.engine.build.disk import check_download
from flowblending.engine.build.request import BuildRequest

if TYPE_CHECKING:
    from flowblending.export.checkpoint.source import Source

BASE = "_base"
"""What no model can be called."""


@dataclass(frozen=True, kw_only=True)
class Folders:
    """Folders in diffusers' format.

    Attributes:
        base: the pipeline that VAE, text encoder, tokenizer and scheduler are taken from.
        models: by name, each a pipeline or a transformer.
        left_out: lines about tensors in files of weights that are no part of a transformer.
    """

    base: Path
    models: Mapping[str, Path]
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Sources:
    """The checkpoints of a build, of which only JSON files and headers may be here.

    Attributes:
        sources: by the model's name, and `BASE` where a pipeline was given beside the models.
        names: what the user calls them.
        base: the name of the one that is the pipeline.
        folders: for all of them, with what is here.
        scratch: for more of these folders.
    """

    sources: Mapping[str, Source]
    names: Mapping[str, str]
    base: str
    folders: Folders
    scratch: Path

    @property
    def remote(self) -> bool:
        """Whether weights are still to be fetched."""
        return any(source.remote is not None for source in self.sources.values())

    @property
    def checksums(self) -> Mapping[Path, str]:
        """Of files that are still to be fetched."""
        found = {path: checksum for source in self.sources.values() for path, checksum in source.checksums.items()}
        # A folder that stands for a file holds links.
        links = [path for folder in self.folders.models.values() for path in folder.iterdir() if path.is_symlink()]
        return found | {link: found[link.readlink()] for link in links if link.readlink() in found}

    def check_download(self) -> None:
        """Refuse weights that there is no room for in the cache of huggingface_hub.

        Raises:
            FlowBlendingError: likewise.
        """
        from flowblending.export.checkpoint.hub import cache_folder

        left = {self.names[name]: source.left(_needed(name, self.base)) for name, source in self.sources.items()}
        check_download(sum(left.values()), cache_folder(), " and ".join(name for name, count in left.items() if count))

    def fetch(self) -> Folders:
        """The folders with every weight that a build needs."""
        paths = {name: source.fetch(_needed(name, self.base)) for name, source in self.sources.items()}
        return _folders(paths, self.base, self.scratch / "fetched", dict.fromkeys(paths, True))


def find_sources(request: BuildRequest, scratch: Path) -> Sources:
    """Find the checkpoints: first the configurations of all, then the headers of their weights.

    Args:
        scratch: an empty folder, for as long as the sources are looked at.

    Raises:
        UsageError: there is no pipeline among them.
        FlowBlendingError: one is not there, or its configurations are not those of a checkpoint that can be built.
    """
    from flowblending.export.checkpoint.checkpoint import open_checkpoint, open_transformer
    from flowblending.export.checkpoint.source import TRANSFORMER_HEADERS, locate
    from flowblending.export.checkpoint.weights_file import is_weights
    from flowblending.export.families.pipeline_class import check_class
    from flowblending.export.families.registry import pipeline_classes

    check_class(request.pipeline)
    names = {model.name: model.source for model in request.models}
    names |= {} if request.base is None else {BASE: request.base}
    sources = {name: locate(given, TRANSFORMER_HEADERS, scratch / name) for name, given in names.items()}
    base = _pipeline(sources, names)
    classes = pipeline_classes()
    pipeline = open_checkpoint(sources[base].folder, classes, whole=False)
    for source in sources.values():
        if not is_weights(source.folder):
            open_transformer(source.folder, pipeline, classes, whole=False)
    for name, source in sources.items():
        # Of a model's VAE nothing is needed but the statistics, which may be among its weights.
        source.read_headers(_needed(name, base) if name == BASE else (*TRANSFORMER_HEADERS, *_needed(name, base)))
    here = {name: source.remote is None or not source.left(_needed(name, base)) for name, source in sources.items()}
    folders = _folders({name: source.folder for name, source in sources.items()}, base, scratch / "found", here)
    return Sources(sources=sources, names=names, base=base, folders=folders, scratch=scratch)


def _pipeline(sources: Mapping[str, Source], names: Mapping[str, str]) -> str:
    """The name of the source that VAE, text encoder, tokenizer and scheduler are taken from."""
    from flowblending.export.checkpoint.checkpoint import MODEL_INDEX, check_transformer
    from flowblending.export.checkpoint.hub import EXPECTED
    from flowblending.export.checkpoint.weights_file import is_weights

    if BASE in sources:
        return BASE
    found = next((name for name, source in sources.items() if (source.folder / MODEL_INDEX).is_file()), None)
    if found is None:
        for source in sources.values():
            if not is_weights(source.folder):
                check_transformer(source.folder)
        raise UsageError(
            f"{' and '.join(names.values())} hold transformers alone; give the pipeline that they run in, for its VAE, "
            f"text encoder, tokenizer and scheduler: --base PIPELINE, which is {EXPECTED.removeprefix('give ')}."
        )
    return found


def _needed(name: str, base: str) -> tuple[str, ...]:
    """Folders whose weights a build needs of a source."""
    from flowblending.export.checkpoint.source import PIPELINE_WEIGHTS, TRANSFORMER_WEIGHTS, WHOLE_WEIGHTS

    if name == BASE:
        return PIPELINE_WEIGHTS
    return WHOLE_WEIGHTS if name == base else TRANSFORMER_WEIGHTS


def _folders(paths: Mapping[str, Path], base: str, scratch: Path, here: Mapping[str, bool]) -> Folders:
    """Folders in diffusers' format of what was found, or fetched.

    Args:
        here: by name, whether all of it is here.
    """
    from flowblending.export.checkpoint.checkpoint import open_checkpoint
    from flowblending.export.checkpoint.weights_file import is_weights, read_weights
    from flowblending.export.families.stand_in import stand_in

    pipeline = open_checkpoint(paths[base], whole=False)
    models: dict[str, Path] = {}
    left_out: list[str] = []
    for name, path in paths.items():
        if name == BASE:
            continue
        models[name] = path
        if is_weights(path):
            found = stand_in(read_weights(path), pipeline, scratch / name, here=here[name])
            models[name] = found.folder
            left_out += found.left_out
    return Folders(base=paths[base], models=models, left_out=tuple(left_out))
