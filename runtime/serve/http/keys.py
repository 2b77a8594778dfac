"""API keys: who may use the service, and whose a video is."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Final

from flowblending import FlowBlendingError, UsageError
from flowblending.runtime.serve.http.errors import ApiError

VARIABLE: Final = "FB_SERVE_API_KEYS"
"""The environment variable with keys, separated by commas."""

_LEAST: Final = 16
"""Characters of a key: fewer can be guessed."""


class Keys:
    """The keys of a service. Only their SHA-256 is kept.

    Args:
        keys: none of them lets everybody in.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = tuple({_digest(key) for key in keys})

    def __bool__(self) -> bool:
        return bool(self._digests)

    def owner(self, authorization: str | None) -> str:
        """Who asks: a part of the key's digest, or nothing where there are no keys.

        Args:
            authorization: the request's header.

        Raises:
            ApiError: there is no key in it, or a wrong one.
        """
        if not self._digests:
            return ""
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise _refused("No API key was given; send the header Authorization: Bearer KEY.")
        digest = _digest(key.strip())
        # All are compared, so that the time tells nothing.
        if sum(hmac.compare_digest(digest, each) for each in self._digests) == 0:
            raise _refused("The API key is none of this service's; ask whoever runs it for one.")
        return digest[:16]


def read_keys(file: Path | None, environment: Mapping[str, str]) -> Keys:
    """The keys of a file, one a line, and of the environment; lines that begin with ``#`` are left out.

    Raises:
        FlowBlendingError: the file cannot be read.
        UsageError: it has no key, or one is too short.
    """
    lines = environment.get(VARIABLE, "").split(",")
    if file is not None:
        try:
            found = file.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise FlowBlendingError(f"Cannot read {file} ({reason}); give a file with one key a line.") from None
        if not any(_keys(found)):
            raise UsageError(f"{file} has no key; write one a line.")
        lines += found
    keys = list(_keys(lines))
    for key in keys:
        if len(key) < _LEAST or not key.isascii() or not key.isprintable() or " " in key:
            raise UsageError(
                f"An API key has {len(key)} characters, but at least {_LEAST} letters, digits and signs were expected; "
                "make one with openssl rand -hex 24."
            )
    return Keys(keys)


def _keys(lines: Iterable[str]) -> Iterable[str]:
    return (line.strip() for line in lines if line.strip() and not line.strip().startswith("#"))


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _refused(message: str) -> ApiError:
    return ApiError(
        HTTPStatus.UNAUTHORIZED,
        message,
        code="invalid_api_key",
        headers={"WWW-Authenticate": 'Bearer realm="fb-serve"'},
    )
