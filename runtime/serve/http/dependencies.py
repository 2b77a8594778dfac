"""What the functions behind the paths are given: the service, and who asks."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from flowblending.runtime.serve.http.service import Service


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _owner(request: Request) -> str:
    return _service(request).keys.owner(request.headers.get("authorization"))


ServiceOf = Annotated[Service, Depends(_service)]
OwnerOf = Annotated[str, Depends(_owner)]
