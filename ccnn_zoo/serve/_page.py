"""What people see at the service's address: a page on which they drop a picture. Programs get JSON there."""

from __future__ import annotations

from pathlib import PurePosixPath

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from ccnn_zoo.web import SERVICE_POLICY, service_page, service_part

PARTS = "/page/{name}"
"""Where the page's scripts and style lie."""

_HEADERS = {"Content-Security-Policy": f"{SERVICE_POLICY}; frame-ancestors 'none'", "X-Content-Type-Options": "nosniff"}
_KINDS = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


def wants_page(request: Request) -> bool:
    """Whether a browser asks, which says that it takes HTML; curl and clients of the API do not."""
    return "text/html" in request.headers.get("accept", "")


def page_of(request: Request) -> Response:
    """Return the page."""
    root = request.scope.get("root_path", "")
    # Relative where nobody says at which path the service lies: a proxy may have cut it off.
    return HTMLResponse(service_page(f"{root}/page/" if root else "page/"), headers={**_HEADERS, "Vary": "Accept"})


async def part_of(request: Request) -> Response:
    """Return a script, the style or the icon of the page."""
    name = request.path_params["name"]
    content = service_part(name)
    if content is None:
        raise HTTPException(404)
    return Response(content, media_type=_KINDS[PurePosixPath(name).suffix], headers=_HEADERS)
