"""What operators need, and the page."""

from __future__ import annotations

from http import HTTPStatus
from pathlib import Path
from typing import Final

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import FileResponse

from flowblending.runtime.serve.http.dependencies import OwnerOf, ServiceOf

_PAGE_KINDS: Final = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_PAGE_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; media-src blob:; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

operations = APIRouter()


@operations.get("/health", responses={503: {"description": "No worker is ready."}})
@operations.get("/health/ready", responses={503: {"description": "No worker is ready."}})
def health(response: Response, service: ServiceOf) -> dict[str, str]:
    """Whether videos can be made."""
    if service.dispatcher.is_ready:
        return {"status": "ready"}
    response.status_code = HTTPStatus.SERVICE_UNAVAILABLE
    return {"status": "draining" if service.dispatcher.draining else "starting"}


@operations.get("/health/live")
def alive() -> dict[str, str]:
    """Whether the service answers."""
    return {"status": "live"}


@operations.get("/metrics", response_class=Response)
def metrics(service: ServiceOf, owner: OwnerOf) -> Response:  # noqa: ARG001 - a key is asked for
    """Figures for Prometheus."""
    service.metrics.state(service.store.counts(), service.dispatcher.processes())
    return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)


@operations.get("/", include_in_schema=False)
def page() -> Response:
    """The page, which needs nothing from elsewhere."""
    return _page_file("page.html")


@operations.get("/page.css", include_in_schema=False)
@operations.get("/page.js", include_in_schema=False)
def page_part(request: Request) -> Response:
    """What it is made of."""
    return _page_file(request.url.path.removeprefix("/"))


def _page_file(name: str) -> Response:
    path = Path(__file__).with_name(name)
    headers = {"cache-control": "no-cache", "content-security-policy": _PAGE_POLICY, "x-frame-options": "DENY"}
    return FileResponse(path, media_type=_PAGE_KINDS[path.suffix], headers=headers)
