"""What every request passes: its id, its size, where it comes from, and the line about it in the log."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import re
import secrets
import time
import traceback
from collections.abc import Mapping
from http import HTTPStatus
from typing import Final
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flowblending.runtime.serve.http.errors import ApiError
from flowblending.runtime.serve.http.service import Service
from flowblending.runtime.serve.uploads import MOST_BYTES

MOST_BODY: Final = 2**24
"""Bytes of a request: a prompt and some numbers take little of it, the rest is for an image."""
MOST_FORM: Final = MOST_BYTES + 2**20
"""Bytes of one that is a form, whose files do not lie in memory as a whole."""

_MOST_DRAINED: Final = 2**27
_PATIENCE: Final = 10.0
"""Bytes and seconds that the rest of a refused body is read for."""

_ID: Final = re.compile(r"[\w.-]{1,64}", re.ASCII)
_METHODS: Final = {"GET", "HEAD", "POST", "DELETE", "OPTIONS", "PUT", "PATCH"}


class Gate:
    """The application behind it, and nothing that may not pass.

    Args:
        app: that answers.
        service: whose log and figures are told of every request.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 0
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        given = headers.get("x-request-id", "")
        id = given if _ID.fullmatch(given) else secrets.token_hex(12)

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", id.encode()),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(message)

        refused = self._refused(headers)
        try:
            if refused is not None:
                await _drain(receive)
                await refused.response()(scope, receive, sending)
            else:
                await self._app(scope, _limited(receive, _most(headers)), sending)
        except Exception:
            self._service.log.event("internal_error", request=id, traceback=traceback.format_exc())
            if not status:
                error = ApiError(
                    HTTPStatus.INTERNAL_SERVER_ERROR, f"The service failed; its log tells how, at request {id}."
                )
                await error.response()(scope, receive, sending)
        finally:
            seconds = time.perf_counter() - began
            route = getattr(scope.get("route"), "path", "other")
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._service.metrics.requested(method, route, status, seconds)
            self._service.log.event(
                "request", request=id, method=method, route=route, status=status, seconds=round(seconds, 6)
            )

    def _refused(self, headers: Mapping[str, str]) -> ApiError | None:
        """Why a request may not pass; None if it may."""
        host = headers.get("host", "")
        if not self._service.keys and not is_loopback(_name(host)):
            # A page whose name leads to this machine (DNS rebinding) would be let in.
            message = f"The host {host[:60]!r} was asked for, but without API keys only localhost is answered."
            return ApiError(HTTPStatus.FORBIDDEN, message, code="wrong_host")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            message = f"The page {origin[:60]!r} may not use this service; only its own may."
            return ApiError(HTTPStatus.FORBIDDEN, message, code="wrong_origin")
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length[:20]) > _most(headers):
            return _too_large(_most(headers))
        return None


def is_loopback(host: str) -> bool:
    """Whether a name or an address is this machine's own, and no other can reach it."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _name(host: str) -> str:
    """A host without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _most(headers: Mapping[str, str]) -> int:
    """Bytes that a request's body may have."""
    return MOST_FORM if headers.get("content-type", "").lower().startswith("multipart/form-data") else MOST_BODY


def _too_large(most: int) -> ApiError:
    message = f"The body is larger than {most} bytes; shorten the prompt, or send smaller files."
    return ApiError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message, code="body_too_large")


def _limited(receive: Receive, most: int) -> Receive:
    """Messages until the body is too large, whatever its header said."""
    total = 0

    async def limited() -> Message:
        nonlocal total
        message = await receive()
        total += len(message.get("body", b""))
        if total > most:
            if message.get("more_body"):
                await _drain(receive)
            raise _too_large(most)
        return message

    return limited


async def _drain(receive: Receive) -> None:
    """Read what is left of a body that is refused, within bounds.

    Most clients read no answer before they have sent everything: closed earlier, they would see a broken connection in
    place of the sentence.
    """
    total = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_PATIENCE):
            while total < _MOST_DRAINED:
                message = await receive()
                total += len(message.get("body", b""))
                if not message.get("more_body"):
                    return
