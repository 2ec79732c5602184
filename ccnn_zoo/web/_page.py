"""The one page, as HTML with its scripts and style: of a static site, and of the service."""

from __future__ import annotations

from html import escape
from importlib.resources import files

from ccnn_zoo._base.version import version

_SHARED = ("icon.svg", "page.css", "page.js", "pad.js", "pictures.js", "show.js")
_SERVICE = (*_SHARED, "service.js")
_STATIC = (*_SHARED, "engine.js", "web.js")

# Nothing but the page's own scripts and style, nothing from elsewhere, no form. WebAssembly counts as a kind of eval.
_POLICY = (
    "default-src 'none'; script-src 'self'{scripts}; style-src 'self'; img-src 'self' blob:; media-src 'self' blob:; "
    "connect-src 'self'; worker-src 'self'; base-uri 'none'; form-action 'none'"
)
SERVICE_POLICY = _POLICY.format(scripts="")
STATIC_POLICY = _POLICY.format(scripts=" 'wasm-unsafe-eval'")

_PROMISE = (
    "The network runs in this browser, on this machine. Pictures never leave it: nothing is sent, and nothing is kept."
)
_WAITING = (
    "Loading. If this stays here, scripts are off, or the page was opened as a file: serve its folder instead, e.g. "
    "with python -m http.server."
)


def asset(name: str) -> bytes:
    """Return a file of the package's folder ``assets``."""
    return files(__package__).joinpath("assets", name).read_bytes()


def static_files(runtime: str) -> dict[str, bytes]:
    """Return the files of a static site that do not depend on its networks.

    Args:
        runtime: what runs the networks, with its version.
    """
    page = _page(
        script="web.js",
        policy=STATIC_POLICY,
        promise=_PROMISE,
        waiting=_WAITING,
        footer=f"Made by ccnn-zoo {version()}. Runs on {runtime}, which is under the MIT License.",
    )
    return {"index.html": page, **{name: asset(name) for name in _STATIC}}


def service_page(base: str) -> bytes:
    """Return the page that ``ccnn serve`` shows, as HTML.

    Args:
        base: where its parts lie, see :func:`service_part`; ends with a slash.
    """
    return _page(
        base=base,
        script="service.js",
        policy=SERVICE_POLICY,
        promise="A picture that you choose, draw or show to the camera is sent to this service, which classifies it.",
        waiting="Loading. If this stays here, scripts are off.",
        footer=f"Served by ccnn-zoo {version()}.",
    )


def service_part(name: str) -> bytes | None:
    """Return a file of that page, None where there is none of this name."""
    return asset(name) if name in _SERVICE else None


def _page(**values: str) -> bytes:
    text = asset("page.html").decode()
    for name, value in {"base": "", **values}.items():
        text = text.replace(f"{{{{{name}}}}}", escape(value))
    return text.encode()
