"""Whether a node has what a worker on it needs. Runs on the node."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import flowblending
from flowblending import FlowBlendingError
from flowblending.engine.bundle.bundle import Bundle, open_bundle
from flowblending.runtime.devices.open import open_device
from flowblending.runtime.devices.protocol import Device


@dataclass(frozen=True, kw_only=True)
class NodeBundle:
    """A bundle that every node has to have.

    Attributes:
        folder: absolute, the same on every node.
        id: of the one that was given.
        version: of this package, where it was given.
    """

    folder: str
    id: str
    version: str = flowblending.__version__

    @classmethod
    def of(cls, bundle: Bundle) -> NodeBundle:
        """A bundle of this machine."""
        return cls(folder=str(bundle.folder.absolute()), id=bundle.manifest.id)


def bundle_here(wanted: NodeBundle, *, verify: bool = True) -> Bundle:
    """The bundle on this node.

    Args:
        wanted: as it was given.
        verify: compare its files with their checksums.

    Raises:
        FlowBlendingError: the node has another version of this package, another bundle, or one that is damaged.
    """
    where = _where()
    if flowblending.__version__ != wanted.version:
        raise FlowBlendingError(f"{where} has flowblending {flowblending.__version__}; install {wanted.version} there.")
    try:
        bundle = open_bundle(Path(wanted.folder))
        if verify:
            bundle.verify()
    except FlowBlendingError as error:
        raise FlowBlendingError(f"on {where}: {error}") from None
    if bundle.manifest.id != wanted.id:
        raise FlowBlendingError(f"{where} has another bundle at {wanted.folder}; copy the one that was given there.")
    return bundle


def device_here(choice: str, bundle: Bundle) -> Device:
    """The device for a bundle on this node; see `open_device`.

    Raises:
        FlowBlendingError: there is none that it runs on.
    """
    try:
        return open_device(choice, bundle.manifest)
    except FlowBlendingError as error:
        raise FlowBlendingError(f"on {_where()}: {error}") from None


def _where() -> str:
    return f"the node {os.uname().nodename}"
