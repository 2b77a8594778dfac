"""What served bundles are called."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from flowblending import UsageError

_NAME = re.compile(r"\w[\w.-]*", re.ASCII)


def model_names(bundles: Sequence[Path], names: Sequence[str]) -> list[str]:
    """A name for each bundle: those given, else the bundles' folder names.

    Raises:
        UsageError: their number differs, one occurs twice, or one cannot be a model's.
    """
    if names and len(names) != len(bundles):
        raise UsageError(
            f"{len(names)} names were given for {len(bundles)} bundles; give --name once for each bundle, in order."
        )
    chosen = list(names) or [bundle.absolute().name for bundle in bundles]
    for name in chosen:
        if not _NAME.fullmatch(name):
            raise UsageError(f"{name!r} cannot name a model; give letters, digits, '_', '-' and '.' to --name.")
        if chosen.count(name) > 1:
            raise UsageError(f"Two models would be called {name}; tell them apart with --name.")
    return chosen
