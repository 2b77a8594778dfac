"""FlowBlending: large -> small -> large video diffusion in compiled engines.

The three stages are three packages, and imports run one way::

    runtime  ->  engine  ->  export

This package holds what all of them share: the version and the one error class.
"""

__version__ = "0.1.0"

__all__ = ["FlowBlendingError", "__version__"]


class FlowBlendingError(Exception):
    """Something the user can mend.

    The message is one sentence: what was got, what was expected, what to do.
    The command-line programs print it without a traceback and exit with ``exit_code``.
    """

    exit_code = 1


class UsageError(FlowBlendingError):
    """A wrong argument: found before any work was done."""

    exit_code = 2
