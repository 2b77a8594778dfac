"""A function of the user's, named ``module:function``: a judge of videos, or what takes features of them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

from flowblending import FlowBlendingError, UsageError


class MeasureError(FlowBlendingError):
    """What looks at videos failed, and would again on the next one."""


def load_function(name: str, *, kind: str) -> Callable[..., object]:
    """The function that ``module:function`` names.

    The working directory is searched after everything that is installed, and stays on the path: the function may
    import more from there when it is called.

    Args:
        kind: what it is to be, for the errors: ``judge``.

    Raises:
        UsageError: there is no such function.
    """
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise UsageError(f"The {kind} is {name!r}, but MODULE:FUNCTION was expected; give my_module:function.")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        found: object = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:  # a module of the user's may fail in any way
        raise UsageError(
            f"The {kind} {name} cannot be imported ({type(error).__name__}: {error}); give MODULE:FUNCTION of a module "
            "in this folder or an installed one."
        ) from None
    if not callable(found):
        raise UsageError(f"The {kind} {name} is no function; give MODULE:FUNCTION.")
    return found
