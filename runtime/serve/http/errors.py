"""Errors of the API in OpenAI's shape: ``{"error": {"message", "type", "param", "code"}}``."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.responses import JSONResponse


class ApiError(Exception):
    """What a request is answered with in place of what it asked for.

    Attributes:
        status: of HTTP.
        message: one sentence.
        code: for programs.
        param: the field that is wrong, if it is one.
        headers: of the response.
    """

    def __init__(
        self,
        status: HTTPStatus,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers = dict(headers or {})

    def response(self) -> JSONResponse:
        """The response."""
        return JSONResponse(self.body(), self.status, self.headers)

    def body(self) -> dict[str, Any]:
        """The response's JSON."""
        return {"error": {"message": self.message, "type": _kind(self.status), "param": self.param, "code": self.code}}


def _kind(status: int) -> str:
    """OpenAI's name for the kind of error that a status is."""
    match status:
        case HTTPStatus.UNAUTHORIZED:
            return "authentication_error"
        case HTTPStatus.FORBIDDEN:
            return "permission_error"
        case HTTPStatus.TOO_MANY_REQUESTS:
            return "rate_limit_error"
        case _ if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return "server_error"
    return "invalid_request_error"


def bad_request(message: str, *, code: str | None = None, param: str | None = None) -> ApiError:
    """Something in the request is wrong."""
    return ApiError(HTTPStatus.BAD_REQUEST, message, code=code, param=param)


def no_video(id: str) -> ApiError:
    """There is no such video, or it is another's."""
    shown = id if len(id) <= 60 else f"{id[:60]}..."
    return ApiError(HTTPStatus.NOT_FOUND, f"There is no video {shown!r}.", code="video_not_found", param="video_id")
