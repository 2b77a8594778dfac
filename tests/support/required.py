"""What a test needs from the machine beside this package's own dependencies."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

REQUIRE = "FLOWBLENDING_REQUIRE_TOOLS"
"""Set by ``make test-embedding`` and by CI: what the tests need has to be there."""


def unavailable(reason: str) -> NoReturn:
    """Skip the test that cannot run here, or fail it where it has to run."""
    if os.environ.get(REQUIRE):
        pytest.fail(reason)
    pytest.skip(reason)
